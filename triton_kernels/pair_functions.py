"""What a matrix of all pairs of boxes can hold, made from the losses and penalties: in the order of their names in
icr_kernels/variants.py."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from icr_kernels.variants import COMMON_LOSS_NAMES, LOSS_BY_NAME

from .box import containment, similarity
from .iou_losses import LOSSES, iou
from .number import one_minus
from .pair import applied
from .penalties import PENALTIES


class PairFunction(NamedTuple):
    """A function of two boxes, or 1 minus it, and how many parameters it has."""

    function: Any
    complement: bool
    parameters: int = 0


@triton.jit
def of_pair(p, q, eps, parameters, FUNCTION: tl.constexpr, COMPLEMENT: tl.constexpr):
    y = applied(p, q, eps, parameters, FUNCTION)
    return one_minus(y) if COMPLEMENT else y


def similarity_of(loss) -> PairFunction:
    """1 - loss, without a detour for the plain IoU: the smallest overlaps keep their order."""
    if loss is iou:
        return PairFunction(similarity, False)
    return PairFunction(loss, True, len(LOSS_BY_NAME[loss.__name__].parameters))


_COMMON = len(COMMON_LOSS_NAMES)
PAIR_FUNCTIONS = [
    *map(similarity_of, LOSSES[:_COMMON]),
    PairFunction(containment, False),
    *(PairFunction(penalty, False, 1) for penalty in PENALTIES),
    *map(similarity_of, LOSSES[_COMMON:]),
]
