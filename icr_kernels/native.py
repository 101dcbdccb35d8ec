"""The compiled operators: loads the extension, binds its operators and describes their outputs to the compiler.

A missing extension is not an error: `LOAD_ERROR` then says why, and the reference runs instead.
"""

import importlib
from typing import Any

import torch
from torch import Tensor

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


def _compute_dtype(*boxes: Tensor | None) -> torch.dtype:
    double = any(rows is not None and rows.dtype == torch.float64 for rows in boxes)
    return torch.float64 if double else torch.float32


def _loss_like(pred: Tensor, target: Tensor, anchors: Tensor | None, reduction: int) -> Tensor:
    shape = pred.shape[:-1] if reduction == REDUCTION_IDS["none"] else ()
    return pred.new_empty(shape, dtype=_compute_dtype(pred, target, anchors))


def _gradients_like(
    pred: Tensor, target: Tensor, anchors: Tensor | None, wanted: int
) -> tuple[Tensor, Tensor, Tensor]:
    def gradient(boxes: Tensor | None, bit: int) -> Tensor:
        return boxes.new_empty(boxes.shape) if boxes is not None and wanted & bit else pred.new_empty(0)

    return gradient(pred, WANTED_PRED), gradient(target, WANTED_TARGET), gradient(anchors, WANTED_ANCHORS)


if LOAD_ERROR is None:
    loss = torch.ops.icr_kernels.loss.default
    loss_backward = torch.ops.icr_kernels.loss_backward.default
    loss_and_grad = torch.ops.icr_kernels.loss_and_grad.default
    terms = torch.ops.icr_kernels.terms.default
    terms_backward = torch.ops.icr_kernels.terms_backward.default

    # The arguments stand in the order of the schemas in csrc/ops.cpp.
    @torch.library.register_fake("icr_kernels::loss")
    def _(pred, target, anchors, anchor_index, weight, mask, normalizer, scale, reduction, *formula):
        return _loss_like(pred, target, anchors, reduction), _loss_like(pred, target, anchors, REDUCTION_IDS["sum"])

    @torch.library.register_fake("icr_kernels::loss_and_grad")
    def _(pred, target, anchors, anchor_index, weight, mask, normalizer, scale, reduction, *formula):
        return _loss_like(pred, target, anchors, reduction), pred.new_empty(pred.shape)

    @torch.library.register_fake("icr_kernels::loss_backward")
    def _(grad_loss, pred, target, anchors, anchor_index, weight, mask, denominator, scale, reduction, *rest):
        return _gradients_like(pred, target, anchors, rest[-1])

    @torch.library.register_fake("icr_kernels::terms")
    def _(pred, target, anchors, anchor_index, mask, *formula):
        return tuple(_loss_like(pred, target, anchors, REDUCTION_IDS["none"]) for _ in range(4))

    @torch.library.register_fake("icr_kernels::terms_backward")
    def _(grad_loss, grad_iou, grad_containment, grad_penalty, pred, target, anchors, anchor_index, mask, *rest):
        return _gradients_like(pred, target, anchors, rest[-1])
