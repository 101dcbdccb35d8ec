"""Geometry small enough to compute by hand, and the known facts about the penalties.

Every number is derived in the comment beside it, never taken from the code. I: intersection, U: union, C: enclosing
box, c2: its squared diagonal, rho2: squared distance of the centres, s: containment, T: overhang in sides of the
prediction.
"""

from dataclasses import dataclass, field
from math import atan, exp, log, pi

import pytest
import torch

import icr_kernels as icr
from icr_kernels.variants import LOSS_NAMES, PENALTY_NAMES
from inputs import (
    box,
    device_of,
    every_backend,
    every_dtype,
    every_loss,
    every_penalty,
    every_quick_backend,
    full_precision,
    to_format,
)
from tolerances import GOLDEN


@dataclass(frozen=True)
class Scene:
    """A prediction and its target, the loss of each kind, and some gradients with respect to the prediction."""

    name: str
    pred: tuple[float, ...]
    target: tuple[float, ...]
    losses: dict[str, float]
    gradients: dict[str, tuple[float, ...]] = field(default_factory=dict)


def _v(w: float, h: float, wg: float, hg: float) -> float:
    return 4 / pi**2 * (atan(wg / hg) - atan(w / h)) ** 2


_CROSS_V = _v(4, 2, 2, 4)
_CROSS_ALPHA = _CROSS_V / (2 / 3 + _CROSS_V)
# dv/dw = 8/pi2 (atan(wg/hg) - atan(w/h)) (-h/(w2 + h2)), with w = 4, h = 2; alpha is constant.
_CROSS_TURN = _CROSS_ALPHA * 8 / pi**2 * (atan(1 / 2) - atan(2)) * -2 / 20

SCENES = (
    # Two 2x2 squares, one shifted by (1, 1): I = 1, U = 4 + 4 - 1 = 7, C = 3 * 3 = 9, rho2 = 2, c2 = 18. Both are
    # square: v = 0. On the diagonal Lambda = 1, so Delta = 2 (1 - exp(-(2 - 1)/9)) and Omega = 0.
    # Gradients, x1 and x2 (y alike): dI = (0, 1), dU = d|P| - dI = (-2, 2) - (0, 1) = (-2, 1), dC = (-3, 0).
    #   1 - I/U: -(dI U - I dU)/U2 = (-2/49, -6/49);    1 - U/C: -(dU C - U dC)/C2 = (-3/81, -9/81);
    #   rho2/c2: d rho2 = (-1, -1), d c2 = (-6, 0): (d rho2 c2 - rho2 d c2)/c2**2 = (-6/324, -18/324).
    Scene(
        "quarter_overlap",
        (0, 0, 2, 2),
        (1, 1, 3, 3),
        {
            "iou": 6 / 7,
            "giou": 6 / 7 + 2 / 9,
            "diou": 6 / 7 + 1 / 9,
            "ciou": 6 / 7 + 1 / 9,
            "eiou": 6 / 7 + 1 / 9,
            "siou": 6 / 7 + 1 - exp(-1 / 9),
        },
        {
            "iou": (-2 / 49, -2 / 49, -6 / 49, -6 / 49),
            "giou": (-2 / 49 - 1 / 27, -2 / 49 - 1 / 27, -6 / 49 - 1 / 9, -6 / 49 - 1 / 9),
            "diou": (-2 / 49 - 1 / 54, -2 / 49 - 1 / 54, -6 / 49 - 1 / 18, -6 / 49 - 1 / 18),
            "ciou": (-2 / 49 - 1 / 54, -2 / 49 - 1 / 54, -6 / 49 - 1 / 18, -6 / 49 - 1 / 18),
        },
    ),
    # Unit squares that share an edge: I = 0, U = C = 2, rho2 = 1, c2 = 2**2 + 1 = 5. Along x Lambda = 0:
    # Delta = 1 - exp(-2 * 1/4).
    Scene(
        "side_by_side",
        (0, 0, 1, 1),
        (1, 0, 2, 1),
        {"iou": 1, "giou": 1, "diou": 1.2, "ciou": 1.2, "eiou": 1.2, "siou": 1 + (1 - exp(-1 / 2)) / 2},
    ),
    # Unit squares two apart: I = 0, U = 2, C = 4: half of C is empty. rho2 = 9, c2 = 17, Delta = 1 - exp(-2 * 9/16).
    # giou, -(dU C - U dC)/C2: by x1 with dU = -1, dC = -1: -(-4 + 2)/16 = 1/8, by x2 with dU = 1, dC = 0: -4/16. So the
    # box grows towards its target. By y1 dU = -1 and dC = -4/2 (a tie): -(-4 + 4)/16 = 0.
    Scene(
        "a_gap_of_two",
        (0, 0, 1, 1),
        (3, 0, 4, 1),
        {
            "iou": 1,
            "giou": 1.5,
            "diou": 1 + 9 / 17,
            "ciou": 1 + 9 / 17,
            "eiou": 1 + 9 / 17,
            "siou": 1 + (1 - exp(-9 / 8)) / 2,
        },
        {"iou": (0, 0, 0, 0), "giou": (1 / 8, 0, -1 / 4, 0)},
    ),
    # Unit squares that touch in a corner: I = 0, U = 2, C = 4: giou = 1 + 2/4. rho2 = 2, c2 = 8, Lambda = 1,
    # Delta = 2 (1 - exp(-1/4)).
    Scene(
        "diagonal_touch",
        (0, 0, 1, 1),
        (1, 1, 2, 2),
        {"iou": 1, "giou": 1.5, "diou": 1.25, "ciou": 1.25, "eiou": 1.25, "siou": 1 + 1 - exp(-1 / 4)},
    ),
    # A 2x2 square in the middle of a 4x4 square: I = 4, U = C = 16, rho2 = 0. Sides differ by half of the larger:
    # eiou adds (2/4)**2 twice, siou (1 - exp(-1/2))**4 twice, halved. Gradient of 1 - I/U = 1 - |P|/16: (2, -2)/16.
    Scene(
        "concentric",
        (1, 1, 3, 3),
        (0, 0, 4, 4),
        {
            "iou": 3 / 4,
            "giou": 3 / 4,
            "diou": 3 / 4,
            "ciou": 3 / 4,
            "eiou": 3 / 4 + 1 / 2,
            "siou": 3 / 4 + (1 - exp(-1 / 2)) ** 4,
        },
        dict.fromkeys(("iou", "giou", "diou", "ciou"), (1 / 8, 1 / 8, -1 / 8, -1 / 8))
        # d (w - wg)2/cw2 by x2 = 2 (2 - 4)/16 = -1/4.
        | {"eiou": (1 / 8 + 1 / 4, 1 / 8 + 1 / 4, -1 / 8 - 1 / 4, -1 / 8 - 1 / 4)},
    ),
    # A wide 4x2 and a tall 2x4 box about one centre: I = 4, U = 12, C = 16. eiou: (4 - 2)2/16 twice; omega = 2/4 twice.
    # 1 - I/U by x2: I does not change, dU = 2: 4 * 2/144 = 1/18.
    # By y2: dI = 2, dU = 4 - 2: -(2 * 12 - 4 * 2)/144 = -1/9.
    Scene(
        "cross",
        (0, 1, 4, 3),
        (1, 0, 3, 4),
        {
            "iou": 2 / 3,
            "giou": 2 / 3 + 1 / 4,
            "diou": 2 / 3,
            "ciou": 2 / 3 + _CROSS_ALPHA * _CROSS_V,
            "eiou": 2 / 3 + 1 / 2,
            "siou": 2 / 3 + (1 - exp(-1 / 2)) ** 4,
        },
        {
            "iou": (-1 / 18, 1 / 9, 1 / 18, -1 / 9),
            # dv/dh = -(w/h) dv/dw = -2 dv/dw.
            "ciou": (
                -1 / 18 - _CROSS_TURN,
                1 / 9 + 2 * _CROSS_TURN,
                1 / 18 + _CROSS_TURN,
                -1 / 9 - 2 * _CROSS_TURN,
            ),
        },
    ),
    # A 2x2 square over the upper half of a 2x4 box, three edges in common, each a tie that splits the gradient in half:
    # I = 4, U = 8. x2: dI = 2/2, dU = 2 - 1: -(1 * 8 - 4 * 1)/64 = -1/16. y2: dI = 2, dU = 0: -16/64. y1: as x1.
    Scene(
        "three_shared_edges",
        (0, 0, 2, 2),
        (0, 0, 2, 4),
        {
            "iou": 1 / 2,
            "giou": 1 / 2,
            "diou": 1 / 2 + 1 / 20,
            "ciou": 1 / 2 + 1 / 20 + _v(2, 2, 2, 4) ** 2 / (1 / 2 + _v(2, 2, 2, 4)),
            "eiou": 1 / 2 + 1 / 20 + 1 / 4,
            # dx = 0, dy = -1: Lambda = 0, rho_y = 1/16; omega_h = 2/4.
            "siou": 1 / 2 + (1 - exp(-2 / 16)) / 2 + (1 - exp(-1 / 2)) ** 4 / 2,
        },
        {"iou": (1 / 16, 1 / 16, -1 / 16, -1 / 4)},
    ),
    Scene(
        "identical", (1, 2, 4, 7), (1, 2, 4, 7), dict.fromkeys(LOSS_NAMES, 0), dict.fromkeys(LOSS_NAMES, (0, 0, 0, 0))
    ),
)


@dataclass(frozen=True)
class PlateAndCar:
    """A prediction and its anchor object, containment, penalties, and gradients by prediction and by anchor object."""

    name: str
    pred: tuple[float, ...]
    anchor: tuple[float, ...]
    containment: float
    penalties: dict[str, float]
    gradients: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=dict)


_STILL = ((0, 0, 0, 0), (0, 0, 0, 0))

PLATES_AND_CARS = (
    PlateAndCar(
        "plate_inside_its_car",
        (4, 1, 6, 2),
        (0, 0, 10, 5),
        1,
        dict.fromkeys(PENALTY_NAMES, 0),
        dict.fromkeys(PENALTY_NAMES, _STILL),
    ),
    # A 2x1 plate, half of it left of its car: s = 1/2. Its centre is 5 from the car's, half sides 1 and 5:
    # T = (5 + 1 - 5)/2. ds/dx1 = (0 * 2 + 1 * 1)/4 = 1/4 and ds/dx2 = (1 * 2 - 1 * 1)/4 = 1/4: it moves in, and at just
    # this share it keeps its size. By the car's edge ds = -1/2. inverse: times 1/s2 = 4, log: times 1/s = 2.
    # pull: dT = -1/2 by the centre, -1/4 by each edge, times 1/(1 + T)2 = 4/9; by the car's edge 1/2 (centre and half
    # side).
    PlateAndCar(
        "plate_half_outside_its_car",
        (-1, 1, 1, 2),
        (0, 0, 10, 5),
        1 / 2,
        {"containment": 1 / 2, "inverse": 1, "log": log(2), "pull": 1 / 3, "containment+pull": 5 / 6},
        {
            "containment": ((-1 / 4, 0, -1 / 4, 0), (1 / 2, 0, 0, 0)),
            "inverse": ((-1, 0, -1, 0), (2, 0, 0, 0)),
            "log": ((-1 / 2, 0, -1 / 2, 0), (1, 0, 0, 0)),
            "pull": ((-1 / 9, 0, -1 / 9, 0), (2 / 9, 0, 0, 0)),
            "containment+pull": ((-13 / 36, 0, -13 / 36, 0), (13 / 18, 0, 0, 0)),
        },
    ),
    # A 2x2 plate centred on the corner of its car: s = 1/4, T = 1/2 + 1/2.
    # ds/dx1 = (0 + 1 * 2)/16, ds/dx2 = (4 - 2)/16.
    PlateAndCar(
        "plate_over_the_corner_of_its_car",
        (-1, -1, 1, 1),
        (0, 0, 10, 10),
        1 / 4,
        {"containment": 3 / 4, "inverse": 3, "log": log(4), "pull": 1 / 2, "containment+pull": 5 / 4},
        {
            "containment": ((-1 / 8,) * 4, (1 / 4, 1 / 4, 0, 0)),
            "pull": ((-1 / 16,) * 4, (1 / 8, 1 / 8, 0, 0)),
        },
    ),
    # Wholly outside: s = 0, and no share of an overlap has a gradient there. T = (8 + 1 - 5)/2 = 2, 1/(1 + T)2 = 1/9.
    PlateAndCar(
        "plate_wholly_outside_its_car",
        (-4, 1, -2, 2),
        (0, 0, 10, 5),
        0,
        {"containment": 1, "inverse": 9, "log": log(100), "pull": 2 / 3, "containment+pull": 5 / 3},
        {
            "containment": _STILL,
            "inverse": _STILL,
            "log": _STILL,
            "pull": ((-1 / 36, 0, -1 / 36, 0), (1 / 18, 0, 0, 0)),
            "containment+pull": ((-1 / 36, 0, -1 / 36, 0), (1 / 18, 0, 0, 0)),
        },
    ),
    # A 4x4 "plate" about a 2x2 car: s = 4/16, and nothing to pull. ds/dx2 = (0 - 4 * 4)/256: it shrinks.
    PlateAndCar(
        "plate_larger_than_its_car",
        (0, 0, 4, 4),
        (1, 1, 3, 3),
        1 / 4,
        {"containment": 3 / 4, "inverse": 3, "log": log(4), "pull": 0, "containment+pull": 3 / 4},
        {
            "containment": ((-1 / 16, -1 / 16, 1 / 16, 1 / 16), (1 / 8, 1 / 8, -1 / 8, -1 / 8)),
            "inverse": ((-1, -1, 1, 1), (2, 2, -2, -2)),
            "log": ((-1 / 4, -1 / 4, 1 / 4, 1 / 4), (1 / 2, 1 / 2, -1 / 2, -1 / 2)),
            "pull": _STILL,
        },
    ),
    # Wider than its car and off its centre by 1: half of P is capped at half of A, T = |2 - 3|/4, 1/(1 + T)2 = 16/25.
    # dT = -1/4 by the centre, -1/8 by each edge; +1/8 by each edge of the car.
    PlateAndCar(
        "plate_wider_than_its_car_and_off_its_centre",
        (0, 1, 4, 2),
        (2, 0, 4, 5),
        1 / 2,
        {"containment": 1 / 2, "inverse": 1, "log": log(2), "pull": 1 / 5, "containment+pull": 7 / 10},
        {"pull": ((-2 / 25, 0, -2 / 25, 0), (2 / 25, 0, 2 / 25, 0))},
    ),
    # 1/20 of a 20x1 plate: below the clamp of inverse (0.1), above that of log (0.01). Its centre is 24 from the car's,
    # half sides 10 and 15: T = (24 + 10 - 15)/20.
    PlateAndCar(
        "a_twentieth_inside",
        (-19, 1, 1, 2),
        (0, 0, 30, 5),
        1 / 20,
        {
            "containment": 19 / 20,
            "inverse": 9,
            "log": log(20),
            "pull": 19 / 39,
            "containment+pull": 19 / 20 + 19 / 39,
        },
        # ds/dx1 = 1/400, ds/dx2 = (20 - 1)/400; -ln s: times -20.
        {"inverse": _STILL, "log": ((-1 / 20, 0, -19 / 20, 0), (1, 0, 0, 0))},
    ),
    # Flush with the edge of its car: inside. The tie gives half of the one-sided gradient of 1 - s; pull rests.
    # ds/dx1: dI = -1/2, d|P| = -1: (-1/2 * 2 + 2)/4 = 1/4; by the car's edge dI = -1/2: -1/4.
    PlateAndCar(
        "plate_flush_with_the_edge_of_its_car",
        (0, 1, 2, 2),
        (0, 0, 10, 5),
        1,
        dict.fromkeys(PENALTY_NAMES, 0),
        {"containment": ((-1 / 4, 0, 0, 0), (1 / 4, 0, 0, 0)), "pull": _STILL},
    ),
)

every_scene = pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
every_plate_and_car = pytest.mark.parametrize("scene", PLATES_AND_CARS, ids=lambda scene: scene.name)


def by_hand(numbers: dict, name: str, what: str):
    assert name in numbers, f"no hand-computed {what} for {name!r}: derive one in tests/formulas/test_golden.py"
    return numbers[name]


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
    value, gradient = extension.pair(loss, "none", list(scene.pred), list(scene.target), None)
    assert value == pytest.approx(by_hand(scene.losses, loss, "loss"), abs=1e-12)
    if loss in scene.gradients:
        assert gradient[:4] == pytest.approx(scene.gradients[loss], abs=1e-12)


@every_plate_and_car
@every_penalty
def test_single_pair_of_the_extension_with_an_anchor(scene, penalty, extension):
    pred = list(scene.pred)
    value, gradient = extension.pair("iou", penalty, pred, pred, list(scene.anchor), penalty_weight=2.0)
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


# What the package is built on, one fact a test.


def penalty_and_gradient(plate, car, penalty, backend, **options):
    device = device_of(backend)
    plate = box(*plate, device=device).requires_grad_()
    value = icr.icr_terms(
        plate, plate.detach(), box(*car, device=device), penalty=penalty, backend=backend, **options
    ).penalty
    (gradient,) = torch.autograd.grad(value.sum(), plate)
    return value.item(), gradient[0].tolist()


@every_backend
@pytest.mark.parametrize("penalty", ["containment", "inverse", "log"])
def test_overlap_has_no_gradient_once_disjoint(penalty, backend):
    value, gradient = penalty_and_gradient((-40, -30, -38, -29), (0, 0, 10, 5), penalty, backend)
    assert value > 0
    assert gradient == [0, 0, 0, 0]


@every_backend
@pytest.mark.parametrize("penalty", ["pull", "containment+pull"])
def test_pull_has_a_gradient_however_far_the_plate_is(penalty, backend):
    _, (x1, y1, x2, y2) = penalty_and_gradient((-4000, -3000, -3998, -2999), (0, 0, 10, 5), penalty, backend)
    assert x1 == x2 < 0, "towards the car, which is to the right"
    assert y1 == y2 < 0, "and below"


@every_backend
@pytest.mark.parametrize("penalty", ["containment", "inverse", "log"])
@pytest.mark.parametrize(
    ("inside", "width_of_a_step"), [(0.75, "shrinks"), (0.5, "keeps"), (0.25, "grows")], ids=["more", "half", "less"]
)
def test_overlap_shrinks_a_plate_more_than_half_inside_and_grows_one_less(inside, width_of_a_step, penalty, backend):
    """A descent step changes the width by -(g_x2 - g_x1), in proportion to w - 2 I/h."""
    _, (x1, _, x2, _) = penalty_and_gradient((-4 * (1 - inside), 1, 4 * inside, 2), (0, 0, 10, 5), penalty, backend)
    growth = x1 - x2
    assert {"shrinks": growth < -1e-3, "keeps": abs(growth) < 1e-12, "grows": growth > 1e-3}[width_of_a_step]
    assert -x1 > 0, "the outer edge moves inwards in every case"
    assert -x2 > 0, "and so does the inner one"


@every_quick_backend
def test_pull_brings_a_plate_into_its_car_without_resizing_it(backend):
    plate, car = torch.tensor([-9.0, 7.0, -7.0, 8.0], dtype=torch.float64), (0, 0, 10, 5)
    for _ in range(400):
        value, gradient = penalty_and_gradient(plate.tolist(), car, "pull", backend)
        if value == 0:
            break
        plate -= 4 * torch.tensor(gradient, dtype=torch.float64)
    x1, y1, x2, y2 = plate.tolist()
    assert value == 0 and x1 >= 0 and y2 <= 5
    assert (x2 - x1, y2 - y1) == pytest.approx((2, 1), abs=1e-12)


@every_backend
@every_penalty
def test_relative_keeps_the_optimum_at_a_label_that_sticks_out_of_its_car(penalty, backend):
    label, car = (-1, 1, 1, 2), (0, 0, 10, 5)
    absolute, pushed = penalty_and_gradient(label, car, penalty, backend)
    assert absolute > 0 and any(pushed), "without relative=True the penalty pushes a perfect prediction off its label"
    assert penalty_and_gradient(label, car, penalty, backend, relative=True) == (0, [0, 0, 0, 0])


@every_backend
@every_penalty
def test_relative_is_what_exceeds_the_penalty_of_the_label(penalty, backend):
    """Prediction: half outside. Label: over the corner, and so with the larger penalty; then the other way round."""
    device = device_of(backend)
    half, corner = PLATES_AND_CARS[1], PLATES_AND_CARS[2]
    excess = corner.penalties[penalty] - half.penalties[penalty]
    half_box, corner_box = box(-1, 1, 1, 2, device=device), box(-1, -1, 1, 1, device=device)
    car = box(0, 0, 10, 10, device=device)
    options = {"penalty": penalty, "relative": True, "backend": backend}
    assert icr.icr_terms(half_box, corner_box, car, **options).penalty.item() == 0
    assert icr.icr_terms(corner_box, half_box, car, **options).penalty.item() == pytest.approx(excess, abs=1e-12)


@every_backend
@pytest.mark.parametrize(
    ("penalty", "clamp", "largest"), [("inverse", 0.1, 9), ("log", 0.01, log(100))], ids=["inverse", "log"]
)
def test_clamp_bounds_the_penalty_and_its_gradient(penalty, clamp, largest, backend):
    """With 1% less than the clamp inside: the largest value and no gradient; with 1% more: less, and a gradient."""

    def plate_with(share: float):
        return penalty_and_gradient((share * 100 - 100, 1, share * 100, 2), (0, 0, 200, 5), penalty, backend)

    value, gradient = plate_with(clamp * 0.99)
    assert value == pytest.approx(largest, abs=1e-12) and gradient == [0, 0, 0, 0]
    value, gradient = plate_with(clamp * 1.01)
    assert 0 < value < largest
    # d pen/ds times ds/dx1 = s/w: -1/s2 and -1/s.
    slope = {"inverse": -1 / (clamp * 1.01), "log": -1.0}[penalty]
    assert gradient[0] == pytest.approx(slope / 100, rel=1e-9)


@every_backend
def test_small_normalised_boxes_are_not_biased_by_eps(backend):
    """A square of side 0.001 of the image, shifted by a tenth of its side along both axes: I = 0.81, U = 1.19, C = 1.21
    of its area. Adding 1e-7 to the denominators instead of guarding them would give 0.39."""
    device, exact = device_of(backend), 1 - 0.81 / 1.19 + (1.21 - 1.19) / 1.21
    side = 1e-3
    pred = box(0.5, 0.5, 0.5 + side, 0.5 + side, device=device)
    value = icr.box_iou_loss(pred, pred + side / 10, loss="giou", backend=backend)
    assert value.item() == pytest.approx(exact, abs=1e-9)
