"""The autograd boundary: one Function a differentiable result, outside the operators, for every backend that has any.

The loss computes its gradient in the forward pass, in the arithmetic's dtype, and the backward pass scales it out of
place: a second backward pass works, and a half-precision gradient is rounded once, after scaling. On a CPU that costs
two thirds of computing the gradient anew (docs/performance.md). The terms, which have four upstream gradients, do
compute theirs anew.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from .backends import BY_NAME
from .checks import Formula, Pairs
from .native import WANTED_ANCHORS, WANTED_PRED, WANTED_TARGET
from .variants import BOX_FORMAT_IDS, LOSS_IDS, PENALTY_IDS


def numbers(formula: Formula) -> tuple[Any, ...]:
    """The formula as the operators take it."""
    return (
        LOSS_IDS[formula.loss],
        PENALTY_IDS[formula.penalty],
        float(formula.penalty_weight),
        bool(formula.relative),
        float(formula.eps),
        BOX_FORMAT_IDS[formula.box_format],
    )


def needs_gradient(pairs: Pairs) -> bool:
    return torch.is_grad_enabled() and (
        pairs.pred.requires_grad
        or pairs.target.requires_grad
        or (pairs.anchors is not None and pairs.anchors.requires_grad)
    )


def _wanted(needs_input_grad: tuple[bool, ...]) -> int:
    pred, target, anchors = needs_input_grad
    return WANTED_PRED * pred | WANTED_TARGET * target | WANTED_ANCHORS * anchors


class Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pred, target, anchors, anchor_index, weight, mask, normalizer, backend, *options):
        needed = ctx.needs_input_grad[:3]
        loss, *gradients = BY_NAME[backend].operators.loss(
            pred, target, anchors, anchor_index, weight, mask, normalizer, *options, _wanted(needed), False
        )
        kept = (gradient if need else None for gradient, need in zip(gradients, needed, strict=True))
        ctx.save_for_backward(*kept, anchor_index if needed[2] else None)
        ctx.backend, ctx.dtypes = backend, (pred.dtype, target.dtype, None if anchors is None else anchors.dtype)
        ctx.table = 0 if anchors is None else anchors.shape[0]
        ctx.nones = (None,) * (5 + len(options))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        scaled = BY_NAME[ctx.backend].operators.scaled
        pred, target, anchors, anchor_index = ctx.saved_tensors
        pred_dtype, target_dtype, anchors_dtype = ctx.dtypes
        return (
            None if pred is None else scaled(pred, grad_loss, pred_dtype, None, 0),
            None if target is None else scaled(target, grad_loss, target_dtype, None, 0),
            None if anchors is None else scaled(anchors, grad_loss, anchors_dtype, anchor_index, ctx.table),
            *ctx.nones,
        )


class Terms(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pred, target, anchors, anchor_index, mask, backend, *options):
        terms = BY_NAME[backend].operators.terms(pred, target, anchors, anchor_index, mask, *options)
        ctx.save_for_backward(pred, target, anchors, anchor_index, mask)
        ctx.backend, ctx.options = backend, options
        return terms

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_terms):
        needed = ctx.needs_input_grad[:3]
        gradients = BY_NAME[ctx.backend].operators.terms_backward(
            *grad_terms, *ctx.saved_tensors, *ctx.options, _wanted(needed)
        )
        return *(
            gradient if need else None for gradient, need in zip(gradients, needed, strict=True)
        ), *(None,) * (3 + len(ctx.options))
