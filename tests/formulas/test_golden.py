"""Geometry small enough to compute by hand, and the known facts about the penalties.

Every number is derived in the comment beside it, never taken from the code. I: intersection, U: union, C: enclosing
box, c2: its squared diagonal, rho2: squared distance of the centres, s: containment, T: overhang in sides of the
prediction.
"""

import pytest

import icr_kernels as icr
from golden_scenes import PLATES_AND_CARS, SCENES, by_hand
from icr_kernels.calls import Formula
from inputs import (
    box,
    device_of,
    every_backend,
    every_dtype,
    every_loss,
    every_penalty,
    full_precision,
    to_format,
)
from tolerances import GOLDEN

every_scene = pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
every_plate_and_car = pytest.mark.parametrize("scene", PLATES_AND_CARS, ids=lambda scene: scene.name)


@every_backend
@every_dtype
@every_loss
@every_scene
def test_loss_of_two_boxes(scene, loss, dtype, backend):
    device = device_of(backend)
    pred, target = (box(*corners, dtype=dtype, device=device) for corners in (scene.pred, scene.target))
    value = icr.box_iou_loss(pred, target, loss=loss, reduction="none", backend=backend)
    assert value.item() == pytest.approx(by_hand(scene.losses, loss, "loss"), abs=GOLDEN[dtype])


@every_backend
@full_precision
@pytest.mark.parametrize(
    ("scene", "loss"),
    [pytest.param(scene, loss, id=f"{scene.name}-{loss}") for scene in SCENES for loss in scene.gradients],
)
def test_gradient_of_two_boxes(scene, loss, dtype, backend):
    device = device_of(backend)
    pred = box(*scene.pred, dtype=dtype, device=device).requires_grad_()
    icr.box_iou_loss(pred, box(*scene.target, dtype=dtype, device=device), loss=loss, backend=backend).backward()
    assert pred.grad[0].tolist() == pytest.approx(scene.gradients[loss], abs=GOLDEN[dtype])


@every_backend
@every_dtype
@every_penalty
@every_plate_and_car
def test_penalty_of_a_plate_in_a_car(scene, penalty, dtype, backend):
    device = device_of(backend)
    pred, anchor = (box(*corners, dtype=dtype, device=device) for corners in (scene.pred, scene.anchor))
    terms = icr.icr_terms(pred, pred, anchor, penalty=penalty, penalty_weight=3.0, backend=backend)
    value = by_hand(scene.penalties, penalty, "penalty")
    assert terms.penalty.item() == pytest.approx(value, abs=GOLDEN[dtype])
    assert terms.containment.item() == pytest.approx(scene.containment, abs=GOLDEN[dtype])
    # The prediction is its own target: the loss is the penalty, weighted, and nothing else.
    assert terms.iou.item() == 1
    assert terms.loss.item() == pytest.approx(3 * value, abs=10 * GOLDEN[dtype])


@every_backend
@full_precision
@pytest.mark.parametrize(
    ("scene", "penalty"),
    [
        pytest.param(scene, penalty, id=f"{scene.name}-{penalty}")
        for scene in PLATES_AND_CARS
        for penalty in scene.gradients
    ],
)
def test_gradient_of_a_plate_in_a_car(scene, penalty, dtype, backend):
    device = device_of(backend)
    pred = box(*scene.pred, dtype=dtype, device=device).requires_grad_()
    anchor = box(*scene.anchor, dtype=dtype, device=device).requires_grad_()
    # Its own target, the prediction has a box loss at rest: what is left is the penalty's gradient.
    icr.icr_loss(pred, pred.detach(), anchor, penalty=penalty, backend=backend).backward()
    by_pred, by_anchor = scene.gradients[penalty]
    assert pred.grad[0].tolist() == pytest.approx(by_pred, abs=10 * GOLDEN[dtype])
    assert anchor.grad[0].tolist() == pytest.approx(by_anchor, abs=10 * GOLDEN[dtype])


@every_scene
@every_loss
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
