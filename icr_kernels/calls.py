"""What a call asks for, checked and by name: the description that every backend is handed.

Names become numbers once, here: ``packed()`` turns the description of a formula into one list of numbers, in the order
in which csrc/operators.h and triton_kernels/operators.py read them. An operator's call is a record too: its fields are
the operator's schema, from here to C++ and Triton.
"""

from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from .specifications import BoxLoss, Penalty, box_loss, penalty
from .variants import BOX_FORMAT_IDS, KIND_IDS, LOSS_BY_NAME, MOST_PARAMETERS, REDUCTION_IDS

# Which gradients are wanted: bit n is of the n-th boxes of a call.
PRED, TARGET, ANCHOR_OBJECTS = 1, 2, 4
BOXES1, BOXES2 = PRED, TARGET
BOX_LOGITS, CLASS_LOGITS = PRED, TARGET


def wanted(first: bool, second: bool, third: bool = False) -> int:
    """The bits of the boxes whose gradient is wanted."""
    return (PRED if first else 0) | (TARGET if second else 0) | (ANCHOR_OBJECTS if third else 0)


def compute_dtype(*boxes: Tensor | None) -> torch.dtype:
    """What the arithmetic runs in, and the dtype of losses: float32, or float64 if any box is float64."""
    for rows in boxes:
        if rows is not None and rows.dtype == torch.float64:
            return torch.float64
    return torch.float32


class Pairs(NamedTuple):
    """The tensors of aligned pairs."""

    pred: Tensor
    target: Tensor
    anchor_objects: Tensor | None
    target_index: Tensor | None
    anchor_index: Tensor | None
    weight: Tensor | None
    mask: Tensor | None
    pixels: Tensor | None = None  # how many a unit of the boxes has: one for each pair, or one for all
    wise_mean: Tensor | None = None


class Sets(NamedTuple):
    """Two sets of boxes with the same leading dimensions, and the group of each box."""

    first: Tensor
    second: Tensor
    group1: Tensor | None
    group2: Tensor | None


class Formula(NamedTuple):
    """What is computed of each pair. ``pixels`` is how many a unit of the boxes has, where that is a number."""

    loss: str | BoxLoss = "ciou"
    penalty: str | Penalty = "containment"
    box_format: str = "xyxy"
    relative: bool = False
    penalty_weight: float = 1.0
    eps: float = 1e-7
    pixels: float = 1.0

    def packed(self) -> list[float]:
        loss, excess = box_loss(self.loss), penalty(self.penalty)
        numbers = loss.numbers
        if self.pixels != 1 and numbers:
            numbers = (*in_boxes_unit(loss, self.pixels), *numbers[len(loss.parameters) :])
        return [
            loss.number,
            excess.number,
            BOX_FORMAT_IDS[self.box_format],
            self.relative,
            loss.modifiers,
            self.penalty_weight,
            self.eps,
            *(excess.parameters or (0.0,)),
            *numbers,
        ]


def in_boxes_unit(loss: BoxLoss, pixels: Any) -> list[Any]:
    """The parameters of a loss, where a unit of the boxes has so many pixels: a number or a tensor."""
    parameters = LOSS_BY_NAME[loss.name].parameters
    return [
        value / pixels**parameter.power if parameter.power else value
        for parameter, value in zip(parameters, loss.parameters, strict=True)
    ]


class PairFunction(NamedTuple):
    """Which function of two boxes a matrix of all pairs holds."""

    kind: str
    box_format: str
    eps: float
    parameters: tuple[float, ...] = ()

    def packed(self) -> list[float]:
        padding = (0.0,) * (MOST_PARAMETERS - len(self.parameters))
        return [KIND_IDS[self.kind], BOX_FORMAT_IDS[self.box_format], self.eps, *self.parameters, *padding]


class MatchingCost(NamedTuple):
    """What the cost of matching a query to a target is made of."""

    box_format: str
    class_weight: float
    l1_weight: float
    giou_weight: float
    alpha: float
    gamma: float
    focal_eps: float
    eps: float

    def packed(self) -> list[float]:
        box_format, *numbers = self
        return [BOX_FORMAT_IDS[box_format], *numbers]


class AssignmentRule(NamedTuple):
    """How points are assigned to ground truth."""

    box_format: str
    truth_format: str
    topk: int
    topk2: int  # 0: as many as there are
    from_logits: bool
    alpha: float
    beta: float
    smallest_side: float  # negative: boxes as they are
    eps: float

    def packed(self) -> list[float]:
        return [BOX_FORMAT_IDS[self.box_format], BOX_FORMAT_IDS[self.truth_format], *self[2:]]


class DetectionFormula(NamedTuple):
    """What the loss of a dense head is made of."""

    formula: Formula
    box_gain: float
    class_gain: float
    distribution_gain: float
    normalizer: float  # 0: the sum of the scores, or a tensor
    is_uniform: bool  # every penalty alike, and not by the score of its point
    height: float  # of the image, what distances are divided by; 0: the stride of their point
    width: float

    def packed(self) -> list[float]:
        return [*self[1:], *self.formula.packed()]


class LossCall(NamedTuple):
    pred: Tensor
    target: Tensor
    anchor_objects: Tensor | None
    target_index: Tensor | None
    anchor_index: Tensor | None
    weight: Tensor | None
    mask: Tensor | None
    pixels: Tensor | None
    wise_mean: Tensor | None
    normalizer: Tensor | None
    scale: float
    reduction: int
    numbers: list[float]
    wanted: int
    in_box_dtype: bool

    @property
    def is_masked(self) -> bool:
        """Whether there may be pairs that do not count."""
        return self.mask is not None or self.target_index is not None

    @property
    def is_mean_of_unmasked(self) -> bool:
        return self.is_masked and self.normalizer is None and self.reduction == REDUCTION_IDS["mean"]


class ScalingCall(NamedTuple):
    gradient: Tensor
    factor: Tensor | None
    pending: Tensor | None
    dtype: torch.dtype
    table: Tensor | None
    table_index: Tensor | None


Overwritten = Annotated[Tensor, "changed by the operator"]


class OverwritingCall(NamedTuple):
    gradient: Overwritten
    factor: Tensor | None
    pending: Tensor | None


class TermsCall(NamedTuple):
    pred: Tensor
    target: Tensor
    anchor_objects: Tensor | None
    target_index: Tensor | None
    anchor_index: Tensor | None
    mask: Tensor | None
    pixels: Tensor | None
    wise_mean: Tensor | None
    numbers: list[float]


class PairwiseCall(NamedTuple):
    boxes1: Tensor
    boxes2: Tensor
    numbers: list[float]


class SelectionCall(NamedTuple):
    queries: Tensor
    candidates: Tensor
    query_group: Tensor | None
    candidate_group: Tensor | None
    offset: Tensor | None
    at_least: Tensor | None
    candidate_first: bool
    k: int
    larger: bool
    numbers: list[float]


class CostCall(NamedTuple):
    boxes: Tensor
    logits: Tensor
    log_normalizer: Tensor | None
    target_boxes: Tensor
    labels: Tensor
    image: Tensor
    numbers: list[float]


class AssignmentCall(NamedTuple):
    scores: Tensor
    boxes: Tensor
    points: Tensor
    truth: Tensor
    labels: Tensor
    image: Tensor
    numbers: list[float]


class DecodingCall(NamedTuple):
    box_logits: Tensor
    points: Tensor
    strides: Tensor


class DetectionCall(NamedTuple):
    box_logits: Tensor
    class_logits: Tensor
    points: Tensor
    strides: Tensor
    truth: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # a method of tuples
    score: Tensor
    anchor_index: Tensor | None
    class_weight: Tensor | None
    wise_mean: Tensor | None
    normalizer: Tensor | None
    numbers: list[float]


_SCHEMA_TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    Overwritten: "Tensor(a!)",
    torch.dtype: "ScalarType",
    bool: "bool",
    int: "int",
    float: "float",
    list[float]: "float[]",
}


def schema_of(call: Any) -> list[str]:
    """The fields of a call as the parameters of an operator's schema."""
    return [f"{_SCHEMA_TYPES[kind]} {name}" for name, kind in call.__annotations__.items()]
