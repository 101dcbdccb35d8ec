"""What a matrix of all pairs of boxes can hold, made from the losses and penalties: in the order of their names in
icr_kernels/variants.py."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .box import containment, similarity
from .iou_losses import LOSSES, iou
from .number import one_minus
from .penalties import PENALTIES


class PairFunction(NamedTuple):
    """A function of two boxes, or 1 minus it."""

    function: Any
    complement: bool


@triton.jit
def of_pair(p, q, eps, FUNCTION: tl.constexpr, COMPLEMENT: tl.constexpr):
    y = FUNCTION(p, q, eps)
    return one_minus(y) if COMPLEMENT else y


def similarity_of(loss) -> PairFunction:
    """1 - loss, without a detour for the plain IoU: the smallest overlaps keep their order."""
    return PairFunction(similarity, False) if loss is iou else PairFunction(loss, True)


PAIR_FUNCTIONS = [
    *map(similarity_of, LOSSES),
    PairFunction(containment, False),
    *(PairFunction(penalty, False) for penalty in PENALTIES),
]
