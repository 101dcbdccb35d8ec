"""All pairs of two sets of boxes: their matrix, and what is best in its rows or columns without ever making it."""

from torch import Tensor

from . import arguments, autograd, reference, transforms
from .backends import choose, device_type
from .calls import PairFunction, SelectionCall, Sets
from .functional import RAISES, documented, listed
from .reference import Selection
from .specifications import BoxLoss
from .variants import LOSS_NAMES

_KIND = f"""
        kind: {listed(LOSS_NAMES)}: the
            similarity 1 - loss, of a `BoxLoss` with its parameters (in the unit of the boxes) too; "containment", the
            share of the box of boxes1 that lies in that of boxes2, |A and B| / |A|; "containment_penalty",
            "inverse_penalty", "log_penalty", "pull_penalty" or "containment+pull_penalty", of the box of boxes1 as the
            prediction and that of boxes2 as its anchor object. (The losses' papers are in `icr_kernels.variants`.)"""

_REST = """
        eps: every denominator is max(denominator, eps), in the square of the boxes' unit (pixels or normalised).
        box_format: "xyxy", "cxcywh" or "xywh", of all boxes of the call.
        backend: name of a backend, or None: the first of `available_backends` that can run these tensors.

    The arithmetic is float32, or float64 if any box is float64, under autocast too; tensors may differ in dtype. An
    inverted side (x2 < x1) counts as length 0, and coordinates beyond 1e18 as 1e18."""

_SETS = """
    Args:
        boxes1: boxes of shape (..., N, 4), float16, bfloat16, float32 or float64.
        boxes2: boxes of shape (..., M, 4). Leading dimensions are batches, and are broadcast."""

_GROUPS = """
        group1: (..., N) int64 or int32, for example the number of the image that a box belongs to: only pairs of equal
            groups count, so the ragged images of a batch are one call without padding. A negative group, or one beyond
            2^31 - 1, pairs with nothing. Where both sets are sorted by their groups, pairs of unequal
            ones are passed over; unsorted ones are right, but every pair is looked at.
        group2: (..., M), of boxes2; both or neither."""

_SELECTION = """

    A box of which a value is NaN is never chosen, and of equal values the first is. A row without any candidate has the
    value -inf and the index -1. The memory needed besides the result does not depend on N M. No gradient flows: to
    train on the pairs that were found, index the boxes and compute their loss."""


@documented(_SETS, _KIND, _REST, RAISES)
def pairwise_iou(
    boxes1: Tensor,
    boxes2: Tensor,
    *,
    kind: str | BoxLoss = "iou",
    eps: float = 1e-7,
    box_format: str = "xyxy",
    backend: str | None = None,
) -> Tensor:
    """The matrix (..., N, M) of all pairs, float32, or float64 for float64 boxes; in one pass, without temporaries.

    Differentiable in both sets of boxes; nothing but them is kept for the backward pass, which computes the gradient
    anew and adds it up in an order that is always the same. Transforms of `torch.func` and forward mode differentiate
    it too, pair by pair: that takes memory for N M boxes. A second derivative is a RuntimeError, but with
    backend="reference". NaN stays NaN.
    """
    matrix = arguments.sets(boxes1, boxes2)
    function = arguments.pair_function(kind, eps, box_format)
    chosen = choose(backend, device_type(boxes1))
    is_transformed = transforms.active()
    if chosen.operators is None or transforms.loses_derivative(is_transformed):
        return reference.pairwise_iou(matrix.first, matrix.second, function)
    if is_transformed:
        return transforms.pairwise_iou(matrix.first, matrix.second, function, chosen.name)
    numbers = function.packed()
    if autograd.wanted(boxes1, boxes2):
        return autograd.Pairwise.apply(matrix.first, matrix.second, chosen.name, numbers)
    return chosen.operators.pairwise(matrix.first, matrix.second, numbers)


@documented(
    _SETS,
    _KIND,
    _GROUPS,
    """
        dim: dimension of the matrix (..., N, M) to reduce: -1, the best of boxes2 for each of boxes1; or -2, the best
            of boxes1 for each of boxes2.""",
    _REST,
    _SELECTION,
    RAISES,
)
def pairwise_max(
    boxes1: Tensor,
    boxes2: Tensor,
    *,
    kind: str | BoxLoss = "iou",
    group1: Tensor | None = None,
    group2: Tensor | None = None,
    dim: int = -1,
    eps: float = 1e-7,
    box_format: str = "xyxy",
    backend: str | None = None,
) -> Selection:
    """`pairwise_iou(...).max(dim)` without the matrix: `Selection` (values, indices), each (..., N), or (..., M)."""
    function = arguments.pair_function(kind, eps, box_format)
    return select(arguments.sets(boxes1, boxes2, group1, group2), function, dim, backend)


@documented(
    _SETS,
    """
        k: how many, from 1 to 16. Where there are fewer candidates, the rest is -inf and -1.""",
    _KIND,
    _GROUPS,
    """
        dim: as of `pairwise_max`.""",
    _REST,
    _SELECTION,
    RAISES,
)
def pairwise_topk(
    boxes1: Tensor,
    boxes2: Tensor,
    k: int,
    *,
    kind: str | BoxLoss = "iou",
    group1: Tensor | None = None,
    group2: Tensor | None = None,
    dim: int = -1,
    eps: float = 1e-7,
    box_format: str = "xyxy",
    backend: str | None = None,
) -> Selection:
    """The k best of each row, best first: `Selection` (values, indices), each (..., N, k), or (..., M, k)."""
    arguments.selected_count(k)
    function = arguments.pair_function(kind, eps, box_format)
    return select(arguments.sets(boxes1, boxes2, group1, group2), function, dim, backend, k=k)


def select(
    matrix: Sets,
    function: PairFunction,
    dim: int,
    backend: str | None,
    *,
    offset: Tensor | None = None,
    at_least: Tensor | None = None,
    k: int = 0,
    larger: bool = False,
) -> Selection:
    """The operator `selected` on checked sets: the best in each row of their matrix, or in each column."""
    queries, candidates, query_group, candidate_group = matrix
    swapped = not arguments.over_second(dim, matrix)
    if swapped:
        queries, candidates, query_group, candidate_group = candidates, queries, candidate_group, query_group
    tensors = queries.detach(), candidates.detach(), query_group, candidate_group, offset, at_least
    call = *tensors, swapped, k, larger, function.packed()
    chosen = choose(backend, device_type(queries))
    if chosen.operators is None:
        return reference.selected(SelectionCall(*call), function)
    return Selection(*chosen.operators.selected(*call))
