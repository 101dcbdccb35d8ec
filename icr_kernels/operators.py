"""The operators. Each is one record: its call, what it does, and what it returns as the compiler has to know it.

Two families share them. `compiled` is implemented in C++ (csrc/register.h), for CPU tensors by the extension ``_C`` and
for CUDA tensors by ``_C_cuda``; `triton` by the functions of these names in `icr_kernels.triton_kernels`, which is
imported by the first call.
"""

import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .calls import (
    ANCHOR_OBJECTS,
    BOX_LOGITS,
    BOXES1,
    BOXES2,
    CLASS_LOGITS,
    PRED,
    TARGET,
    AssignmentCall,
    CostCall,
    DecodingCall,
    DetectionCall,
    LossCall,
    OverwritingCall,
    PairwiseCall,
    ScalingCall,
    SelectionCall,
    TermsCall,
    compute_dtype,
    schema_of,
)
from .variants import REDUCTION_IDS

Fake = Callable[..., Tensor | tuple[Tensor, ...] | None]


class Operator(NamedTuple):
    """A backward operator's call is that of its forward operator, after the gradients from ``upstream`` and before the
    bits of the gradients that are wanted; a gradient with a question mark may be None, and counts as 0 then. The fake
    has the family, those gradients, the call and those bits."""

    call: Any
    results: int
    upstream: tuple[str, ...]
    fake: Fake

    def schema(self) -> str:
        parameters = [f"Tensor{'?' * name.endswith('?')} {name.rstrip('?')}" for name in self.upstream]
        parameters += schema_of(self.call)
        if self.upstream:
            parameters.append("int wanted")
        results = ", ".join(["Tensor"] * self.results)
        return f"({', '.join(parameters)}) -> {results if self.results == 1 else f'({results})'}"

    def result(self, family: "Operators", *arguments):
        """What the operator returns of fake tensors."""
        count = len(self.upstream)
        upstream, rest = arguments[:count], arguments[count:]
        call, wanted = (self.call(*rest[:-1]), rest[-1:]) if self.upstream else (self.call(*rest), ())
        return self.fake(family, *upstream, call, *wanted)


OPERATORS: dict[str, Operator] = {}


def operator(call: Any, results: int = 1, upstream: tuple[str, ...] = ()) -> Callable[[Fake], Fake]:
    def record(fake: Fake) -> Fake:
        OPERATORS[fake.__name__] = Operator(call, results, upstream, fake)
        return fake

    return record


@operator(LossCall, results=5)
def loss(family: "Operators", call: LossCall):
    """The loss, a factor that its gradients still lack (no elements: none), and the gradients of pred, target and
    anchor_objects, each without elements if it is not wanted. Those of a table are the rows of its pairs."""
    dtype = compute_dtype(call.pred, call.target, call.anchor_objects)
    return (
        call.pred.new_empty(call.pred.shape[:-1] if call.reduction == REDUCTION_IDS["none"] else (), dtype=dtype),
        call.pred.new_empty(() if family.is_pending(call) else (0,), dtype=dtype),
        *_gradients(call, call.wanted, False, None if call.in_box_dtype else dtype),
    )


@operator(ScalingCall)
def scaled(family: "Operators", call: ScalingCall):
    """Such a gradient times an upstream factor and the one that it lacks, as far as they are there; given the index of
    a table, the gradient of that table."""
    rows = call.gradient if call.table_index is None or call.table is None else call.table
    return call.gradient.new_empty(rows.shape, dtype=call.dtype)


@operator(OverwritingCall, results=0)
def scaled_(family: "Operators", call: OverwritingCall) -> None:
    """The same of a gradient that nobody else has, in its own dtype and place. A factor of 1 costs nothing."""


@operator(TermsCall, results=4)
def terms(family: "Operators", call: TermsCall):
    """Loss, IoU, containment and penalty of every pair."""
    dtype = compute_dtype(call.pred, call.target, call.anchor_objects)
    return tuple(call.pred.new_empty(call.pred.shape[:-1], dtype=dtype) for _ in range(4))


@operator(TermsCall, results=3, upstream=("grad_loss", "grad_iou", "grad_containment", "grad_penalty"))
def terms_backward(family: "Operators", grad_loss, grad_iou, grad_containment, grad_penalty, call: TermsCall, wanted):
    """The gradients of pred, target and anchor_objects, computed anew, each without elements if it is not wanted."""
    return _gradients(call, wanted, True)


def _gradients(call: LossCall | TermsCall, wanted: int, of_tables: bool, dtype: torch.dtype | None = None):
    """Of the three boxes, of tables themselves or of the rows of their pairs; in this dtype or in their own."""

    def gradient(boxes: Tensor | None, bit: int) -> Tensor:
        if boxes is None or not wanted & bit:
            return call.pred.new_empty(0, dtype=dtype or compute_dtype(call.pred, call.target, call.anchor_objects))
        return call.pred.new_empty(boxes.shape if of_tables else call.pred.shape, dtype=dtype or boxes.dtype)

    return gradient(call.pred, PRED), gradient(call.target, TARGET), gradient(call.anchor_objects, ANCHOR_OBJECTS)


@operator(PairwiseCall)
def pairwise(family: "Operators", call: PairwiseCall):
    """The matrix (..., N, M) of all pairs of boxes (..., N, 4) and (..., M, 4) with the same leading dimensions."""
    shape = (*call.boxes1.shape[:-1], call.boxes2.shape[-2])
    return call.boxes1.new_empty(shape, dtype=compute_dtype(call.boxes1, call.boxes2))


@operator(PairwiseCall, results=2, upstream=("gradient",))
def pairwise_backward(family: "Operators", gradient: Tensor, call: PairwiseCall, wanted: int):
    """The gradients of both sets of boxes, each without elements if it is not wanted."""
    return tuple(
        boxes.new_empty(boxes.shape if wanted & bit else 0)
        for boxes, bit in ((call.boxes1, BOXES1), (call.boxes2, BOXES2))
    )


@operator(SelectionCall, results=2)
def selected(family: "Operators", call: SelectionCall):
    """The values (..., N) and indices of the best candidate of each query, or with k > 0 of the best k, best first.

    Only pairs of one group count, and none of a negative group; with ``larger`` only candidates of a larger area than
    the query's; NaN does not count. The best has the largest value, less the candidate's ``offset``; or, with
    ``at_least``, the smallest area of those whose value reaches that of the query, and its value is the negative area.
    Of equals the first is best. Where there is none: -inf and -1.
    """
    shape = call.queries.shape[:-1] if call.k == 0 else (*call.queries.shape[:-1], call.k)
    values = call.queries.new_empty(shape, dtype=compute_dtype(call.queries, call.candidates))
    return values, call.queries.new_empty(shape, dtype=torch.int64)


@operator(CostCall)
def matching_cost(family: "Operators", call: CostCall):
    """The cost of each target with the queries of its own image."""
    shape = (call.target_boxes.shape[0], call.boxes.shape[1])
    return call.boxes.new_empty(shape, dtype=compute_dtype(call.boxes, call.target_boxes, call.logits))


@operator(AssignmentCall, results=2)
def assigned(family: "Operators", call: AssignmentCall):
    """The row of ``truth`` that each point of each image is trained towards, -1 for background, and its score."""
    shape = call.boxes.shape[:-1]
    return call.boxes.new_empty(shape, dtype=torch.int64), call.boxes.new_empty(shape, dtype=torch.float32)


@operator(DecodingCall)
def decoded(family: "Operators", call: DecodingCall):
    """The boxes (B, A, 4) that a dense head predicts, as corners."""
    return call.box_logits.new_empty((*call.box_logits.shape[:-1], 4), dtype=compute_dtype(call.box_logits))


@operator(DecodingCall, upstream=("gradient",))
def decoded_backward(family: "Operators", gradient: Tensor, call: DecodingCall, wanted: int):
    """The gradient of the logits."""
    return like_a_head(call.box_logits)


@operator(DetectionCall, results=5)
def detection_loss(family: "Operators", call: DetectionCall):
    """The terms of box, classification, distribution and penalty, and what they were divided by: (2,), the normalizer
    of the first three, and the number of points whose target has an anchor object, at least 1."""
    dtype = compute_dtype(call.box_logits, call.class_logits, call.truth)
    return (*(call.box_logits.new_empty((), dtype=dtype) for _ in range(4)), call.box_logits.new_empty(2, dtype=dtype))


@operator(
    DetectionCall, results=2, upstream=("grad_box?", "grad_classification?", "grad_distribution?", "grad_penalty?")
)
def detection_loss_backward(
    family: "Operators", grad_box, grad_classification, grad_distribution, grad_penalty, call: DetectionCall, wanted
):
    """The gradients of the logits of boxes and of classes, each without elements if it is not wanted. ``normalizer`` is
    what the forward pass has divided by, both numbers."""
    return tuple(
        like_a_head(logits) if wanted & bit else logits.new_empty(0)
        for logits, bit in ((call.box_logits, BOX_LOGITS), (call.class_logits, CLASS_LOGITS))
    )


def like_a_head(logits: Tensor) -> Tensor:
    """Contiguous, with the points or the channels side by side, as the logits have them."""
    images, points, channels = logits.shape
    if logits.stride(1) < logits.stride(2):
        return logits.new_empty_strided((images, points, channels), (points * channels, 1, points))
    return logits.new_empty((images, points, channels))


_library = torch.library.Library("icr_kernels", "DEF")


class Operators:
    """One family of the operators: icr_kernels::{prefix}loss and so on, as attributes loss and so on.

    The factor that gradients may lack is the 1/count of a mean over the unmasked pairs: on a GPU their number is known
    only when the pass over them is over. ``defers_count`` names the devices where that is so.
    """

    def __init__(self, prefix: str, defers_count: tuple[str, ...]) -> None:
        self.defers_count = defers_count
        for name, operator in OPERATORS.items():
            _library.define(prefix + name + operator.schema())
            setattr(self, name, getattr(torch.ops.icr_kernels, prefix + name).default)
            fake = functools.partial(operator.result, self)
            torch.library.register_fake(f"icr_kernels::{prefix}{name}", fake, lib=_library)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def is_pending(self, call: LossCall) -> bool:
        """Whether the gradients of that call will lack a factor."""
        return call.is_mean_of_unmasked and call.pred.device.type in self.defers_count


compiled = Operators("", defers_count=("cuda",))
triton = Operators("triton_", defers_count=("cuda", "cpu"))


def _implement_in_triton() -> None:
    def implementation(name: str):
        def call(*arguments):
            return getattr(importlib.import_module("icr_kernels.triton_kernels"), name)(*arguments)

        return call

    for name in OPERATORS:
        for device in ("CUDA", "CPU"):
            _library.impl(f"triton_{name}", implementation(name), device)


_implement_in_triton()
