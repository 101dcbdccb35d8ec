"""Scenes whose losses, penalties and gradients are computed by hand; each states how."""

from dataclasses import dataclass, field
from math import atan, exp, log, pi

from icr_kernels.variants import LOSS_NAMES, PENALTY_NAMES


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


def by_hand(numbers: dict, name: str, what: str):
    assert name in numbers, f"no hand-computed {what} for {name!r}: derive one in tests/support/golden_scenes.py"
    return numbers[name]
