"""The operators: their schemas, what they return as the compiler has to know it, and who implements them.

Two families share one set of schemas. `compiled` is implemented in C++, for CPU tensors by the extension ``_C`` and for
CUDA tensors by ``_C_cuda``; `triton` in `icr_kernels.triton_kernels`, which is imported by the first call. A missing
extension or Triton is not an error: `CPU_ERROR`, `CUDA_ERROR` or `TRITON_ERROR` says why, and another backend runs.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .arguments import Formula, compute_dtype
from .variants import BOX_FORMAT_IDS, LOSS_IDS, PENALTY_IDS, REDUCTION_IDS

WANTED_PRED, WANTED_TARGET, WANTED_ANCHOR_OBJECTS = 1, 2, 4
WANTED_BOXES1, WANTED_BOXES2 = 1, 2

_PAIRS = "Tensor pred, Tensor target, Tensor? anchor_objects, Tensor? anchor_index"
_FORMULA = "int loss, int penalty, float penalty_weight, bool relative, float eps, int box_format"
_SCHEMAS = {
    "loss": f"({_PAIRS}, Tensor? weight, Tensor? mask, Tensor? normalizer, float scale, int reduction, {_FORMULA}, "
    "int wanted, bool in_box_dtype) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "scaled": "(Tensor gradient, Tensor? factor, Tensor? pending, ScalarType dtype, Tensor? anchor_objects, "
    "Tensor? anchor_index) -> Tensor",
    "terms": f"({_PAIRS}, Tensor? mask, {_FORMULA}) -> (Tensor, Tensor, Tensor, Tensor)",
    "terms_backward": "(Tensor grad_loss, Tensor grad_iou, Tensor grad_containment, Tensor grad_penalty, "
    f"{_PAIRS}, Tensor? mask, {_FORMULA}, int wanted) -> (Tensor, Tensor, Tensor)",
    "pairwise": "(Tensor boxes1, Tensor boxes2, int kind, float eps, int box_format) -> Tensor",
    "pairwise_backward": "(Tensor gradient, Tensor boxes1, Tensor boxes2, int kind, float eps, int box_format, "
    "int wanted) -> (Tensor, Tensor)",
    "selected": "(Tensor queries, Tensor candidates, Tensor? query_group, Tensor? candidate_group, Tensor? offset, "
    "Tensor? at_least, int kind, bool candidate_first, int k, bool larger, float eps, int box_format) "
    "-> (Tensor, Tensor)",
    "matching_cost": "(Tensor boxes, Tensor logits, Tensor? log_normalizer, Tensor target_boxes, Tensor labels, "
    "Tensor image, float class_weight, float l1_weight, float giou_weight, float alpha, float gamma, "
    "float focal_eps, float eps, int box_format) -> Tensor",
}


def wanted_boxes(is_wanted: tuple[bool, ...]) -> int:
    """Whether a gradient is wanted for pred, target and anchor_objects, as the operators take it."""
    return (
        (WANTED_PRED if is_wanted[0] else 0)
        | (WANTED_TARGET if is_wanted[1] else 0)
        | (WANTED_ANCHOR_OBJECTS if is_wanted[2] else 0)
    )


def numbers(formula: Formula) -> tuple[Any, ...]:
    """The formula as the operators take it."""
    return (
        LOSS_IDS[formula.loss],
        PENALTY_IDS[formula.penalty],
        formula.penalty_weight,
        formula.relative,
        formula.eps,
        BOX_FORMAT_IDS[formula.box_format],
    )


class Operators(NamedTuple):
    """``loss`` returns the loss, a factor that its gradients still lack (no elements: none), and the gradients of pred,
    target and anchor_objects, each without elements if it is not wanted. ``scaled`` multiplies such a gradient by an upstream
    factor and by the one it lacks, if any; given the index of a table, it returns the gradient of that table.

    The lacking factor is the 1/count of a mean over the unmasked pairs: on a GPU their number is known only when the
    pass over them is over. ``defers_count`` names the devices where that is so.

    ``pairwise`` looks at all pairs of two sets of boxes (..., N, 4) and (..., M, 4) with the same leading dimensions;
    its backward pass returns both gradients, without elements where they are not wanted.

    ``selected`` returns the values (..., N) and indices of the best candidate of each query, or with k > 0 those of the
    best k, best first. Only pairs of one group count, and none of a negative group; with ``larger`` only candidates of
    a larger area than the query's; NaN does not count. The best has the largest value, less the candidate's ``offset``;
    or, with ``at_least``, the smallest area of those whose value reaches that of the query, and its value is the
    negative area. Of equals the first is best. Where there is none: -inf and -1.

    ``matching_cost`` is that of each target with the queries of its own image.
    """

    loss: Any
    scaled: Any
    terms: Any
    terms_backward: Any
    pairwise: Any
    pairwise_backward: Any
    selected: Any
    matching_cost: Any
    defers_count: tuple[str, ...]

    def is_pending(self, pred: Tensor, mask: Tensor | None, normalizer: Tensor | None, reduction: int) -> bool:
        """Whether the gradients of that call will lack a factor."""
        is_mean_of_unmasked = mask is not None and normalizer is None and reduction == REDUCTION_IDS["mean"]
        return is_mean_of_unmasked and pred.device.type in self.defers_count


def _loss(self, pred, target, anchor_objects, anchor_index, weight, mask, normalizer, scale, reduction, *rest):
    wanted, in_box_dtype = rest[-2:]
    dtype = compute_dtype(pred, target, anchor_objects)
    pending = self.is_pending(pred, mask, normalizer, reduction)
    return (
        pred.new_empty(pred.shape[:-1] if reduction == REDUCTION_IDS["none"] else (), dtype=dtype),
        pred.new_empty(() if pending else (0,), dtype=dtype),
        *_gradients(pred, target, anchor_objects, wanted, dtype, in_box_dtype, pred.shape),
    )


def _gradients(pred, target, anchor_objects, wanted, dtype, in_box_dtype, shape_of_anchor_objects):
    def gradient(boxes: Tensor | None, bit: int, shape: torch.Size) -> Tensor:
        if boxes is None or not wanted & bit:
            return pred.new_empty(0, dtype=dtype)
        return pred.new_empty(shape, dtype=boxes.dtype if in_box_dtype else dtype)

    return (
        gradient(pred, WANTED_PRED, pred.shape),
        gradient(target, WANTED_TARGET, pred.shape),
        gradient(anchor_objects, WANTED_ANCHOR_OBJECTS, shape_of_anchor_objects),
    )


def _scaled(self, gradient, factor, pending, dtype, anchor_objects, anchor_index):
    return gradient.new_empty(gradient.shape if anchor_index is None else anchor_objects.shape, dtype=dtype)


def _terms(self, pred, target, anchor_objects, anchor_index, mask, *formula):
    dtype = compute_dtype(pred, target, anchor_objects)
    return tuple(pred.new_empty(pred.shape[:-1], dtype=dtype) for _ in range(4))


def _terms_backward(self, *arguments):
    pred, target, anchor_objects = arguments[4:7]
    shape = pred.shape if anchor_objects is None else anchor_objects.shape
    dtype = compute_dtype(pred, target, anchor_objects)
    return _gradients(pred, target, anchor_objects, arguments[-1], dtype, True, shape)


def _pairwise(self, boxes1, boxes2, *options):
    shape = (*boxes1.shape[:-1], boxes2.shape[-2])
    return boxes1.new_empty(shape, dtype=compute_dtype(boxes1, boxes2))


def _pairwise_backward(self, gradient, boxes1, boxes2, *options):
    wanted = options[-1]
    return tuple(
        boxes.new_empty(boxes.shape if wanted & bit else 0)
        for boxes, bit in ((boxes1, WANTED_BOXES1), (boxes2, WANTED_BOXES2))
    )


def _selected(self, queries, candidates, *options):
    k = options[6]
    shape = queries.shape[:-1] if k == 0 else (*queries.shape[:-1], k)
    values = queries.new_empty(shape, dtype=compute_dtype(queries, candidates))
    return values, queries.new_empty(shape, dtype=torch.int64)


def _matching_cost(self, boxes, logits, log_normalizer, target_boxes, *options):
    shape = (target_boxes.shape[0], boxes.shape[1])
    return boxes.new_empty(shape, dtype=compute_dtype(boxes, target_boxes, logits))


_FAKES: tuple[Callable, ...] = (
    _loss,
    _scaled,
    _terms,
    _terms_backward,
    _pairwise,
    _pairwise_backward,
    _selected,
    _matching_cost,
)
_library = torch.library.Library("icr_kernels", "DEF")


def define(prefix: str, defers_count: tuple[str, ...]) -> Operators:
    """Defines one family of operators, icr_kernels::{prefix}loss and so on, with their fakes."""
    for name, schema in _SCHEMAS.items():
        _library.define(prefix + name + schema)
    overloads = {name: getattr(torch.ops.icr_kernels, prefix + name).default for name in _SCHEMAS}
    family = Operators(**overloads, defers_count=defers_count)
    for name, fake in zip(_SCHEMAS, _FAKES, strict=True):
        torch.library.register_fake(f"icr_kernels::{prefix}{name}", functools.partial(fake, family), lib=_library)
    return family


def _source_tree() -> str | None:
    """Advice, where what was imported is the source tree and not an installation, an editable one included: only there
    has the folder triton_kernels another place."""
    if importlib.util.find_spec("icr_kernels.triton_kernels") is not None:
        return None
    return (
        f"{Path(__file__).parents[1]} is the source tree: start Python in another folder to import an installed "
        "icr_kernels, or install the tree itself by `pip install --no-build-isolation --editable .`, with a C++17 "
        "compiler (GCC or Clang)"
    )


def _load(name: str, advice: str) -> tuple[Any, str | None]:
    try:
        return importlib.import_module(f"icr_kernels.{name}"), None
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError):
            advice = _source_tree() or advice
        return None, f"the compiled extension icr_kernels.{name} is not usable ({error}); {advice}"


def _load_cuda() -> tuple[Any, str | None]:
    if torch.version.cuda is None:
        return None, "this torch was built without CUDA"
    build, error = _load(
        "_C_cuda", "install the CUDA toolkit (nvcc) and reinstall icr_kernels without build isolation to build it"
    )
    return build, error or _driver_error(*build.cuda_versions())


def _driver_error(driver: int, runtime: int) -> str | None:
    """Versions as CUDA counts them: 12080 is 12.8. The driver's is 0 where there is none, and so no GPU either."""
    if driver == 0 or driver // 1000 >= runtime // 1000:
        return None
    return (
        f"the CUDA kernels were built with CUDA {runtime // 1000} and need a driver for it, got one for CUDA "
        f"{driver // 1000}.{driver % 1000 // 10}; update the driver, or build icr_kernels with an older nvcc"
    )


compiled = define("", defers_count=("cuda",))
cpu_build, CPU_ERROR = _load("_C", "install a C++17 compiler (GCC or Clang) and reinstall icr_kernels to build it")
cuda_build, CUDA_ERROR = _load_cuda()

# Earlier versions lack what the kernels are written with.
_OLDEST_TRITON = (3, 4)


def _triton_error() -> str | None:
    oldest = ".".join(map(str, _OLDEST_TRITON))
    if torch.version.hip is not None:
        return "the Triton kernels are for NVIDIA GPUs, this torch was built for AMD's"
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return f"Triton is not installed; `pip install triton` (at least {oldest})"
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < _OLDEST_TRITON:
        return f"Triton {version} is too old; the kernels need at least {oldest}"
    return _source_tree()


triton = define("triton_", defers_count=("cuda", "cpu"))
TRITON_ERROR = _triton_error()


def triton_interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors: slow, for debugging."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _implement_in_triton() -> None:
    def implementation(name: str):
        def call(*arguments):
            return getattr(importlib.import_module("icr_kernels.triton_kernels"), name)(*arguments)

        return call

    for name in _SCHEMAS:
        for device in ("CUDA", "CPU"):
            _library.impl(f"triton_{name}", implementation(name), device)


_implement_in_triton()
