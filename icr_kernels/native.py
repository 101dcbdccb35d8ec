"""The compiled operators: loads the extension, binds its operators and describes their outputs to the compiler.

A missing extension is not an error: `LOAD_ERROR` then says why, and the reference runs instead.
"""

import importlib
from typing import Any

import torch
from torch import Tensor

from .checks import compute_dtype
from .variants import REDUCTION_IDS

LOAD_ERROR: str | None = None
build: Any = None
try:
    build = importlib.import_module("icr_kernels._C")
except ImportError as error:
    LOAD_ERROR = (
        f"the compiled extension icr_kernels._C is not usable ({error}); "
        "install a C++17 compiler (GCC or Clang) and reinstall icr_kernels to build it"
    )

WANTED_PRED, WANTED_TARGET, WANTED_ANCHORS = 1, 2, 4


if LOAD_ERROR is None:
    loss = torch.ops.icr_kernels.loss.default
    scaled = torch.ops.icr_kernels.scaled.default
    terms = torch.ops.icr_kernels.terms.default
    terms_backward = torch.ops.icr_kernels.terms_backward.default

    # The fakes: what the operators return, for the compiler. Arguments stand as in the schemas of csrc/ops.cpp.

    @torch.library.register_fake("icr_kernels::loss")
    def _(pred, target, anchors, anchor_index, weight, mask, normalizer, scale, reduction, *rest):
        wanted, in_box_dtype = rest[-2:]
        dtype = compute_dtype(pred, target, anchors)

        def gradient(boxes: Tensor | None, bit: int) -> Tensor:
            if boxes is None or not wanted & bit:
                return pred.new_empty(0, dtype=dtype)
            return pred.new_empty(pred.shape, dtype=boxes.dtype if in_box_dtype else dtype)

        value = pred.new_empty(pred.shape[:-1] if reduction == REDUCTION_IDS["none"] else (), dtype=dtype)
        return (
            value,
            gradient(pred, WANTED_PRED),
            gradient(target, WANTED_TARGET),
            gradient(anchors, WANTED_ANCHORS),
        )

    @torch.library.register_fake("icr_kernels::scaled")
    def _(gradient, factor, dtype, anchors, anchor_index):
        return gradient.new_empty(gradient.shape if anchor_index is None else anchors.shape, dtype=dtype)

    @torch.library.register_fake("icr_kernels::terms")
    def _(pred, target, anchors, anchor_index, mask, *formula):
        dtype = compute_dtype(pred, target, anchors)
        return tuple(pred.new_empty(pred.shape[:-1], dtype=dtype) for _ in range(4))

    @torch.library.register_fake("icr_kernels::terms_backward")
    def _(grad_loss, grad_iou, grad_containment, grad_penalty, pred, target, anchors, anchor_index, mask, *rest):
        wanted = rest[-1]
        dtype = compute_dtype(pred, target, anchors)

        def gradient(boxes: Tensor | None, bit: int) -> Tensor:
            if boxes is None or not wanted & bit:
                return pred.new_empty(0, dtype=dtype)
            return boxes.new_empty(boxes.shape)

        return gradient(pred, WANTED_PRED), gradient(target, WANTED_TARGET), gradient(anchors, WANTED_ANCHORS)
