"""The registry: every box-regression loss and every penalty, once.

The position of a row is the number that the compiled kernels know it by; a test holds this order against the list
that the extension was compiled with. Checks, dispatch, tests, benchmarks and the tables of docs are made from here.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Parameter:
    """A number of a loss or penalty. ``power`` is that of the boxes' unit in it: 1 for a length, 2 for an area."""

    name: str
    default: float
    least: float
    most: float
    meaning: str
    power: int = 0


@dataclass(frozen=True)
class Variant:
    """One loss or penalty: a function of two boxes (prediction and target, or prediction and anchor object)."""

    name: str
    formula: str
    value_range: str  # with the defaults of its parameters
    source: str
    parameters: tuple[Parameter, ...] = ()
    held_constant: str = "nothing"  # under differentiation
    ports: str = ""  # where popular ones differ


# What a length may be as a parameter.
LONGEST = 1e9

_ALPHA = (Parameter("alpha", 3.0, 0.5, 10.0, "the power"),)
_ALPHA_SOURCE = "He et al. 2021, arXiv 2110.13675"
_ALPHA_PORTS = (
    "1e-9 is added before a power is taken, so that P = G is slightly below 0; the first release of the authors' code"
    " has (dx^2a + dy^2a)/(cw^2a + ch^2a) in the place of (rho2/c2)^a"
)
_TAU = (Parameter("tau", 1.0, 1.0, 100.0, "what the logarithm is added to"),)

# I intersection, U union, C smallest enclosing box with sides cw, ch and squared diagonal c2, rho distance of centres,
# w, h sides of the prediction, wg, hg sides of the target, sg() constant under differentiation.
COMMON_LOSSES = (
    Variant("iou", "1 - I/U", "[0, 1]", "Yu et al. 2016, UnitBox, arXiv 1608.01471 (linear form)"),
    Variant("giou", "1 - I/U + (C - U)/C", "[0, 2)", "Rezatofighi et al. 2019, arXiv 1902.09630"),
    Variant("diou", "1 - I/U + rho2/c2", "[0, 2)", "Zheng et al. 2020, arXiv 1911.08287"),
    Variant(
        "ciou",
        "diou + sg(alpha) v, v = 4/pi2 (atan(wg/hg) - atan(w/h))2, alpha = v/(1 - I/U + v)",
        "[0, 2.5)",
        "Zheng et al. 2020, arXiv 1911.08287",
        held_constant="alpha",
        ports="MMDetection drops alpha v up to an IoU of 0.5",
    ),
    Variant(
        "eiou", "diou + (w - wg)2/cw2 + (h - hg)2/ch2", "[0, 4)", "Zhang et al. 2021, arXiv 2101.08158 (Efficient IoU)"
    ),
    Variant("siou", "1 - I/U + (Delta + Omega)/2", "[0, 2.03)", "Gevorgyan 2022, arXiv 2205.12740"),
)

# These are called as functions of their own: another one changes no kernel of the common ones.
FURTHER_LOSSES = (
    Variant("alpha_iou", "1 - (I/U)^a", "[0, 1]", _ALPHA_SOURCE, _ALPHA, ports=_ALPHA_PORTS),
    Variant("alpha_giou", "alpha_iou + ((C - U)/C)^a", "[0, 2)", _ALPHA_SOURCE, _ALPHA, ports=_ALPHA_PORTS),
    Variant("alpha_diou", "alpha_iou + (rho2/c2)^a", "[0, 2)", _ALPHA_SOURCE, _ALPHA, ports=_ALPHA_PORTS),
    Variant(
        "alpha_ciou",
        "alpha_diou + (sg(alpha) v)^a, alpha and v as of ciou",
        "[0, 2.13)",
        _ALPHA_SOURCE,
        _ALPHA,
        held_constant="alpha of ciou",
        ports=_ALPHA_PORTS,
    ),
    Variant(
        "mpdiou",
        "1 - I/U + (d1 + d2)/(W2 + H2), d1, d2 squared distances of the first and of the second corners",
        "[0, 3)",
        "Ma and Xu 2023, arXiv 2307.07662",
        (
            Parameter("width", 640.0, 0.5, LONGEST, "W, of the input image", power=1),
            Parameter("height", 640.0, 0.5, LONGEST, "H, of the input image", power=1),
        ),
        ports="W and H in pixels beside boxes in grid units; the size of the feature map; W2 + H2 = 2",
    ),
    Variant(
        "shape",
        "1 - I/U + (hh dx2 + ww dy2)/c2"
        " + ((1 - exp(-hh |w - wg|/max(w, wg)))^4 + (1 - exp(-ww |h - hg|/max(h, hg)))^4)/2,"
        " ww = 2 wg^s/(wg^s + hg^s), hh = 2 hg^s/(wg^s + hg^s)",
        "[0, 2.16)",
        "Zhang and Zhang 2023, arXiv 2312.17663 (Shape-IoU)",
        (Parameter("exponent", 0.0, 0.0, 8.0, "s, which the paper calls scale"),),
        ports="another s than 0 by default",
    ),
    Variant(
        "piou",
        "1 - I/U + 1 - exp(-p2), p = (|x1 - x1g| + |x2 - x2g|)/(4 wg) + (|y1 - y1g| + |y2 - y2g|)/(4 hg)",
        "[0, 2]",
        "Liu et al. 2024, doi 10.1016/j.neunet.2023.11.041 (Powerful-IoU)",
        ports="a loss is returned where other branches return similarities; differences of centres and sides in the"
        " place of corners",
    ),
    Variant(
        "piou2",
        "3 q exp(-q2) piou, q = lambda exp(-p)",
        "[0, 1.87)",
        "Liu et al. 2024, doi 10.1016/j.neunet.2023.11.041 (Powerful-IoU v2)",
        (Parameter("attention", 1.3, 0.01, 10.0, "lambda"),),
        ports="lambda of 1.2",
    ),
    Variant(
        "wiou",
        "exp(rho2/sg(c2)) (1 - I/U)",
        "[0, 2.72)",
        "Tong et al. 2023, arXiv 2301.10051 (Wise-IoU v1)",
        held_constant="c2",
        ports="centre form is expected, and boxes in corners give another loss",
    ),
    Variant(
        "interp",
        "1 - I/U + 1 - IoU((1 - a) P + a G, G)",
        "[0, 2]",
        "Liu and Watanabe 2025, arXiv 2507.12420 (InterpIoU)",
        (Parameter("interpolation", 0.98, 0.0, 1.0, "a"),),
        ports="the weights of P and G swapped; the second term alone; a learnt a",
    ),
    Variant(
        "sd",
        "(1 - delta + b) (1 - I/U + sg(alpha) v) + (1 + delta - b) rho2/c2, b = sg(min(delta wg hg/area, delta))",
        "[0, 2.5)",
        "Yang et al. 2025, arXiv 2412.16986 (scale-based dynamic loss)",
        (
            Parameter("delta", 0.5, 0.0, 1.0, "how much of the weights depends on the size"),
            Parameter("area", 81.0, 1e-12, LONGEST**2, "of a box that is not small", power=2),
        ),
        held_constant="alpha of ciou, b",
        ports="the area in pixels beside boxes in grid units",
    ),
    Variant(
        "nwd",
        "1 - exp(-sqrt(dx2 + dy2 + ((w - wg)2 + (h - hg)2)/4)/c)",
        "[0, 1]",
        "Wang et al. 2021, arXiv 2110.13389 (normalized Wasserstein distance)",
        (Parameter("constant", 12.8, 1e-6, LONGEST, "c, of the data set: 12.8 pixels for AI-TOD", power=1),),
        ports="c in pixels beside boxes in grid units; the centre of corners as x1 + x2/2; 1e-7 or 1e-6 is added to"
        " dx2 + dy2",
    ),
    Variant(
        "gcd",
        "1 - exp(-sqrt(D)), D = (dx2/w2 + dy2/h2 + dx2/wg2 + dy2/hg2)/2"
        " + ((w - wg)2/w2 + (h - hg)2/h2 + (w - wg)2/wg2 + (h - hg)2/hg2)/8",
        "[0, 1]",
        "Guan et al. 2025, arXiv 2510.27649 (Gaussian combined distance)",
        ports="the gradient for P = G is NaN; the sum of three roots instead of the root of a sum",
    ),
    Variant(
        "kld",
        "1 - 1/(tau + ln(1 + KL(P || G))) of Gaussians with centres and half sides",
        "[0, 1]",
        "Yang et al. 2021, arXiv 2106.01883 (Kullback-Leibler divergence, without rotation)",
        _TAU,
        ports="twice the divergence (MMRotate's GDLoss_v1); its square root",
    ),
    Variant(
        "reverse_kld",
        "1 - 1/(tau + ln(1 + KL(G || P)))",
        "[0, 1]",
        "Yang et al. 2021, arXiv 2106.01883, as MMRotate has it but for a square root",
        _TAU,
        ports="the square root of the divergence (MMRotate's GDLoss); 0.05 times the loss",
    ),
)
LOSSES = (*COMMON_LOSSES, *FURTHER_LOSSES)
# Those without an IoU, which modifiers change.
DISTANCES = ("nwd", "gcd", "kld", "reverse_kld")

_RIGID = "w and h in T, whose edges follow the centre"

# s = containment, |P intersected with A| / |P|; T = overhang of P over A, in sides of P, summed over both axes.
PENALTIES = (
    Variant("containment", "1 - s", "[0, 1]", "idea: Ning and Han 2025, arXiv 2508.14343"),
    Variant(
        "inverse",
        "1/max(s, clamp) - 1",
        "[0, 9]",
        "idea: Ning and Han 2025, arXiv 2508.14343",
        (Parameter("clamp", 0.1, 1e-6, 1.0, "the least containment that counts"),),
    ),
    Variant(
        "log",
        "-ln max(s, clamp)",
        "[0, 4.61]",
        "idea: Ning and Han 2025, arXiv 2508.14343",
        (Parameter("clamp", 0.01, 1e-6, 1.0, "the least containment that counts"),),
    ),
    Variant("pull", "T/(1 + T)", "[0, 1)", "this package", held_constant=_RIGID),
    Variant("containment+pull", "(1 - s) + T/(1 + T)", "[0, 2)", "this package", held_constant=_RIGID),
)

# Without anchor objects there is no penalty; the kernels know that by this name.
NO_PENALTY = "none"

COMMON_LOSS_NAMES = tuple(variant.name for variant in COMMON_LOSSES)
FURTHER_LOSS_NAMES = tuple(variant.name for variant in FURTHER_LOSSES)
LOSS_NAMES = (*COMMON_LOSS_NAMES, *FURTHER_LOSS_NAMES)
PENALTY_NAMES = tuple(variant.name for variant in PENALTIES)
# What a matrix of all pairs of two sets of boxes can hold: the similarity 1 - loss of each loss, the containment of the
# first box in the second, and each penalty.
KIND_NAMES = (
    *COMMON_LOSS_NAMES,
    "containment",
    *(f"{name}_penalty" for name in PENALTY_NAMES),
    *FURTHER_LOSS_NAMES,
)
DEFAULTS_OF_KINDS = {
    **{variant.name: tuple(each.default for each in variant.parameters) for variant in LOSSES},
    "containment": (),
    **{f"{variant.name}_penalty": tuple(each.default for each in variant.parameters) for variant in PENALTIES},
}
# The most parameters of a variant.
MOST_PARAMETERS = 4
REDUCTIONS = ("none", "sum", "mean")
# Of penalties in a mean: all alike, or by the assigner's score of each.
WEIGHTINGS = ("uniform", "tal")
CLASSIFICATIONS = ("softmax", "focal")
BOX_FORMATS = ("xyxy", "cxcywh", "xywh")

LOSS_BY_NAME = {variant.name: variant for variant in LOSSES}
PENALTY_BY_NAME = {variant.name: variant for variant in PENALTIES}
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
