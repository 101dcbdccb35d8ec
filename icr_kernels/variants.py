"""The registry: every box-regression loss and every penalty, once.

The position of a row is the number that the compiled kernels know it by; a test holds this order against the list
that the extension was compiled with. Checks, dispatch, tests, benchmarks and the tables of docs are made from here.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """One loss or penalty: a function of two boxes (prediction and target, or prediction and anchor object)."""

    name: str
    formula: str
    value_range: str
    source: str


# I intersection, U union, C smallest enclosing box with sides cw, ch and squared diagonal c2, rho distance of centres,
# w, h sides of the prediction, wg, hg sides of the target, sg() constant under differentiation.
LOSSES = (
    Variant("iou", "1 - I/U", "[0, 1]", "Yu et al. 2016, UnitBox, arXiv 1608.01471 (linear form)"),
    Variant("giou", "1 - I/U + (C - U)/C", "[0, 2)", "Rezatofighi et al. 2019, arXiv 1902.09630"),
    Variant("diou", "1 - I/U + rho2/c2", "[0, 2)", "Zheng et al. 2020, arXiv 1911.08287"),
    Variant(
        "ciou",
        "diou + sg(alpha) v, v = 4/pi2 (atan(wg/hg) - atan(w/h))2, alpha = v/(1 - I/U + v)",
        "[0, 3)",
        "Zheng et al. 2020, arXiv 1911.08287",
    ),
    Variant(
        "eiou", "diou + (w - wg)2/cw2 + (h - hg)2/ch2", "[0, 4)", "Zhang et al. 2021, arXiv 2101.08158 (Efficient IoU)"
    ),
    Variant("siou", "1 - I/U + (Delta + Omega)/2", "[0, 2.03)", "Gevorgyan 2022, arXiv 2205.12740"),
)

# s = containment, |P intersected with A| / |P|; T = overhang of P over A, in sides of P, summed over both axes.
PENALTIES = (
    Variant("containment", "1 - s", "[0, 1]", "idea: Ning and Han 2025, arXiv 2508.14343"),
    Variant("inverse", "1/max(s, 0.1) - 1", "[0, 9]", "idea: Ning and Han 2025, arXiv 2508.14343"),
    Variant("log", "-ln max(s, 0.01)", "[0, 4.61]", "idea: Ning and Han 2025, arXiv 2508.14343"),
    Variant("pull", "T/(1 + T)", "[0, 1)", "this package"),
    Variant("containment+pull", "(1 - s) + T/(1 + T)", "[0, 2)", "this package"),
)

# Without anchor objects there is no penalty; the kernels know that by this name.
NO_PENALTY = "none"

LOSS_NAMES = tuple(variant.name for variant in LOSSES)
PENALTY_NAMES = tuple(variant.name for variant in PENALTIES)
# What a matrix of all pairs of two sets of boxes can hold: the similarity 1 - loss of each loss, the containment of the
# first box in the second, and each penalty.
KIND_NAMES = (*LOSS_NAMES, "containment", *(f"{name}_penalty" for name in PENALTY_NAMES))
REDUCTIONS = ("none", "sum", "mean")
# Of penalties in a mean: all alike, or by the assigner's score of each.
WEIGHTINGS = ("uniform", "tal")
CLASSIFICATIONS = ("softmax", "focal")
BOX_FORMATS = ("xyxy", "cxcywh", "xywh")

LOSS_IDS = {name: number for number, name in enumerate(LOSS_NAMES)}
PENALTY_IDS = {NO_PENALTY: -1, **{name: number for number, name in enumerate(PENALTY_NAMES)}}
KIND_IDS = {name: number for number, name in enumerate(KIND_NAMES)}
REDUCTION_IDS = {name: number for number, name in enumerate(REDUCTIONS)}
BOX_FORMAT_IDS = {name: number for number, name in enumerate(BOX_FORMATS)}

# Coordinates beyond this magnitude count as this magnitude: areas then stay finite in float32.
COORDINATE_LIMIT = 1e18

# The most partners of a box that are kept while its candidates go by.
MOST_SELECTED = 16
# The most points that a box of the ground truth is assigned to by its own choice.
MOST_ASSIGNED = 32
# A group beyond this pairs with nothing, as a negative one.
LARGEST_GROUP = 2**31 - 1
