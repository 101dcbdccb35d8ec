"""Geometry small enough to compute by hand, and the known facts about the penalties.

Every number is derived in the comment beside it, never taken from the code. I: intersection, U: union, C: enclosing
box, c2: its squared diagonal, rho2: squared distance of the centres, s: containment, T: overhang in sides of the
prediction.
"""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import icr_kernels as icr
from golden_scenes import PLATES_AND_CARS, SCENES, PlateAndCar, Scene, by_hand
from icr_kernels.calls import Formula
from inputs import (
    box,
    device_of,
    every_backend,
    every_common_loss,
    every_dtype,
    every_penalty,
    full_precision,
    to_format,
)
from tolerances import GOLDEN

every_scene = pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
every_plate_and_car = pytest.mark.parametrize("scene", PLATES_AND_CARS, ids=lambda scene: scene.name)


def rows_of(scenes: Sequence[Scene | PlateAndCar], role: str, dtype: torch.dtype, backend: str) -> Tensor:
    """The boxes of all scenes in one tensor."""
    return torch.tensor([getattr(scene, role) for scene in scenes], dtype=dtype, device=device_of(backend))


def assert_by_hand(
    rows: Tensor, scenes: Sequence[Scene | PlateAndCar], truths: list, tolerance: float, what: str = ""
) -> None:
    found = zip(scenes, rows.tolist(), truths, strict=True)
    wrong = {scene.name: (row, truth) for scene, row, truth in found if row != pytest.approx(truth, abs=tolerance)}
    assert wrong == {}, f"{what}: got, by hand"


@every_backend
@every_dtype
@every_common_loss
def test_losses_of_two_boxes(loss, dtype, backend):
    pred, target = (rows_of(SCENES, role, dtype, backend) for role in ("pred", "target"))
    values = icr.box_iou_loss(pred, target, loss=loss, reduction="none", backend=backend)
    assert_by_hand(values, SCENES, [by_hand(scene.losses, loss, "loss") for scene in SCENES], GOLDEN[dtype])


@every_backend
@full_precision
@every_common_loss
def test_gradients_of_two_boxes(loss, dtype, backend):
    scenes = [scene for scene in SCENES if loss in scene.gradients]
    pred, target = (rows_of(scenes, role, dtype, backend) for role in ("pred", "target"))
    icr.box_iou_loss(pred.requires_grad_(), target, loss=loss, reduction="sum", backend=backend).backward()
    assert_by_hand(pred.grad, scenes, [scene.gradients[loss] for scene in scenes], GOLDEN[dtype])


@every_backend
@every_dtype
@every_penalty
def test_penalties_of_plates_in_cars(penalty, dtype, backend):
    pred, anchor = (rows_of(PLATES_AND_CARS, role, dtype, backend) for role in ("pred", "anchor"))
    terms = icr.icr_terms(pred, pred, anchor, penalty=penalty, penalty_weight=3.0, backend=backend)
    values = [by_hand(scene.penalties, penalty, "penalty") for scene in PLATES_AND_CARS]
    contained = [scene.containment for scene in PLATES_AND_CARS]
    assert_by_hand(terms.penalty, PLATES_AND_CARS, values, GOLDEN[dtype], "penalty")
    assert_by_hand(terms.containment, PLATES_AND_CARS, contained, GOLDEN[dtype], "containment")
    # The predictions are their own targets: the loss is the penalty, weighted, and nothing else.
    assert (terms.iou == 1).all()
    assert_by_hand(terms.loss, PLATES_AND_CARS, [3 * value for value in values], 10 * GOLDEN[dtype], "loss")


@every_backend
@full_precision
@every_penalty
def test_gradients_of_plates_in_cars(penalty, dtype, backend):
    scenes = [scene for scene in PLATES_AND_CARS if penalty in scene.gradients]
    pred, anchor = (rows_of(scenes, role, dtype, backend).requires_grad_() for role in ("pred", "anchor"))
    # Their own targets, the predictions have a box loss at rest: what is left is the penalty's gradient.
    icr.icr_loss(pred, pred.detach(), anchor, penalty=penalty, reduction="sum", backend=backend).backward()
    of_pred, of_anchor = zip(*(scene.gradients[penalty] for scene in scenes), strict=True)
    assert_by_hand(pred.grad, scenes, of_pred, 10 * GOLDEN[dtype], "gradient of pred")
    assert_by_hand(anchor.grad, scenes, of_anchor, 10 * GOLDEN[dtype], "gradient of the anchor objects")


@every_scene
@every_common_loss
def test_single_pair_of_the_extension(scene, loss, extension):
    value, gradient = extension.pair(Formula(loss).packed(), list(scene.pred), list(scene.target), None)
    assert value == pytest.approx(by_hand(scene.losses, loss, "loss"), abs=1e-12)
    if loss in scene.gradients:
        assert gradient[:4] == pytest.approx(scene.gradients[loss], abs=1e-12)


@every_plate_and_car
@every_penalty
def test_single_pair_of_the_extension_with_an_anchor(scene, penalty, extension):
    pred = list(scene.pred)
    formula = Formula("iou", penalty, penalty_weight=2.0)
    value, gradient = extension.pair(formula.packed(), pred, pred, list(scene.anchor))
    assert value == pytest.approx(2 * by_hand(scene.penalties, penalty, "penalty"), abs=1e-12)
    if penalty in scene.gradients:
        by_pred, by_anchor = scene.gradients[penalty]
        assert gradient[:4] == pytest.approx([2 * x for x in by_pred], abs=1e-12)
        assert gradient[8:] == pytest.approx([2 * x for x in by_anchor], abs=1e-12)


@every_backend
def test_gradient_comes_back_in_the_format_of_the_boxes(backend):
    """x1 = cx - w/2, x2 = cx + w/2: by cx the sum of the corners' gradients, by w half their difference; and with
    x2 = x + w the sum by x, that of x2 by w."""
    device = device_of(backend)
    scene = SCENES[0]
    gx1, _, gx2, _ = scene.gradients["giou"]
    for box_format, expected in (
        ("cxcywh", (gx1 + gx2, gx1 + gx2, (gx2 - gx1) / 2, (gx2 - gx1) / 2)),
        ("xywh", (gx1 + gx2, gx1 + gx2, gx2, gx2)),
    ):
        pred, target = (to_format(box(*corners, device=device), box_format) for corners in (scene.pred, scene.target))
        pred.requires_grad_()
        icr.box_iou_loss(pred, target, loss="giou", box_format=box_format, backend=backend).backward()
        assert pred.grad[0].tolist() == pytest.approx(expected, abs=1e-12), box_format
