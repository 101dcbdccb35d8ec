"""The autograd boundary: one Function a differentiable result, outside the operators, for every backend that has any.

Nothing is saved but the inputs: the backward pass computes the gradient anew, scaled as it is rounded, so that a second
backward pass works and a half-precision gradient is rounded once.
"""

from typing import Any

import torch
from torch import Tensor
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


def _asked_for(gradients: tuple[Tensor, ...], needs_input_grad: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    return tuple(
        gradient if needed else None for gradient, needed in zip(gradients, needs_input_grad, strict=True)
    )


class Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pred, target, anchors, anchor_index, weight, mask, normalizer, backend, *options):
        loss, denominator = BY_NAME[backend].operators.loss(
            pred, target, anchors, anchor_index, weight, mask, normalizer, *options
        )
        ctx.save_for_backward(pred, target, anchors, anchor_index, weight, mask, denominator)
        ctx.backend, ctx.options = backend, options
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        needed = ctx.needs_input_grad[:3]
        gradients = BY_NAME[ctx.backend].operators.loss_backward(
            grad_loss, *ctx.saved_tensors, *ctx.options, _wanted(needed)
        )
        return *_asked_for(gradients, needed), *(None,) * (5 + len(ctx.options))


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
        return *_asked_for(gradients, needed), *(None,) * (3 + len(ctx.options))
