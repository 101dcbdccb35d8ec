"""The autograd boundary: one Function a differentiable result, outside the operators, for every backend that has any.

The loss computes its gradient in the forward pass, in the arithmetic's dtype, and the backward pass scales it out of
place: a second backward pass works, and a half-precision gradient is rounded once, after scaling. On a CPU, where the
arithmetic and not memory is the bound, that is faster than computing the gradient anew; on a GPU, where memory is, it
moves 96 bytes a pair in both passes and computing anew would move 112. The terms, which have four upstream gradients,
do compute theirs anew, and so do matrices of all pairs, which are larger than their boxes.

The boxes are kept in any case: what a backward pass returns is a function of them, and where autograd makes a graph of
it, it has to say so.
"""

import torch

from . import transforms
from .backends import BY_NAME
from .operators import WANTED_ANCHOR_OBJECTS, WANTED_BOXES1, WANTED_BOXES2, WANTED_PRED, WANTED_TARGET, wanted_boxes


def needs_gradient(first: torch.Tensor, second: torch.Tensor, third: torch.Tensor | None = None) -> bool:
    return torch.is_grad_enabled() and (
        first.requires_grad or second.requires_grad or (third is not None and third.requires_grad)
    )


class Once(torch.autograd.Function):
    """The first ``count`` tensors, which are gradients, as a function of the others, on which they depend: its
    derivative is an error, and not left out."""

    @staticmethod
    def forward(count, *tensors):
        # Not the tensors themselves: what a Function returns as it came may not be changed in place.
        return tuple(each.clone() for each in tensors[:count])

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(transforms.NO_SECOND_DERIVATIVE)

    jvp = backward

    @staticmethod
    def vmap(info, in_dims, count, *tensors):
        return Once.apply(count, *tensors), in_dims[1 : 1 + count]


def first_derivative(backward):
    """A backward pass without a derivative of its own. Its context saves the boxes that require grad first."""

    def first(ctx, *upstream):
        if not torch.is_grad_enabled() and not transforms.active():
            return backward(ctx, *upstream)
        with torch.no_grad():
            results = backward(ctx, *upstream)
        gradients = [each for each in results if each is not None]
        arguments = [each for each in (*upstream, *ctx.saved_tensors[:3]) if each is not None]
        once = iter(Once.apply(len(gradients), *gradients, *arguments))
        return tuple(None if each is None else next(once) for each in results)

    return first


class Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pred, target, anchor_objects, anchor_index, weight, mask, normalizer, backend, options):
        operators = BY_NAME[backend].operators
        wanted = wanted_boxes(ctx.needs_input_grad)
        loss, pending, grad_pred, grad_target, grad_anchor_objects = operators.loss(
            pred, target, anchor_objects, anchor_index, weight, mask, normalizer, *options, wanted, False
        )
        ctx.save_for_backward(
            pred if wanted & WANTED_PRED else None,
            target if wanted & WANTED_TARGET else None,
            anchor_objects if wanted & WANTED_ANCHOR_OBJECTS else None,
            anchor_index if wanted & WANTED_ANCHOR_OBJECTS else None,
            pending if pending.numel() else None,
            grad_pred if wanted & WANTED_PRED else None,
            grad_target if wanted & WANTED_TARGET else None,
            grad_anchor_objects if wanted & WANTED_ANCHOR_OBJECTS else None,
        )
        ctx.scaled = operators.scaled
        return loss

    @staticmethod
    @first_derivative
    def backward(ctx, grad_loss):
        pred, target, anchor_objects, anchor_index, pending, grad_pred, grad_target, grad_anchor_objects = (
            ctx.saved_tensors
        )
        if pred is not None:
            pred = ctx.scaled(grad_pred, grad_loss, pending, pred.dtype, None, None)
        if target is not None:
            target = ctx.scaled(grad_target, grad_loss, pending, target.dtype, None, None)
        if anchor_objects is not None:
            table = None if anchor_index is None else anchor_objects
            anchor_objects = ctx.scaled(
                grad_anchor_objects, grad_loss, pending, anchor_objects.dtype, table, anchor_index
            )
        return pred, target, anchor_objects, None, None, None, None, None, None


class Terms(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pred, target, anchor_objects, anchor_index, mask, backend, options):
        operators = BY_NAME[backend].operators
        ctx.save_for_backward(pred, target, anchor_objects, anchor_index, mask)
        ctx.terms_backward, ctx.options = operators.terms_backward, options
        return operators.terms(pred, target, anchor_objects, anchor_index, mask, *options)

    @staticmethod
    @first_derivative
    def backward(ctx, *grad_terms):
        wanted = wanted_boxes(ctx.needs_input_grad)
        pred, target, anchor_objects = ctx.terms_backward(*grad_terms, *ctx.saved_tensors, *ctx.options, wanted)
        return (
            pred if wanted & WANTED_PRED else None,
            target if wanted & WANTED_TARGET else None,
            anchor_objects if wanted & WANTED_ANCHOR_OBJECTS else None,
            None,
            None,
            None,
            None,
        )


class Pairwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, boxes1, boxes2, backend, options):
        operators = BY_NAME[backend].operators
        ctx.save_for_backward(boxes1, boxes2)
        ctx.pairwise_backward, ctx.options = operators.pairwise_backward, options
        return operators.pairwise(boxes1, boxes2, *options)

    @staticmethod
    @first_derivative
    def backward(ctx, gradient):
        wanted = (WANTED_BOXES1 if ctx.needs_input_grad[0] else 0) | (WANTED_BOXES2 if ctx.needs_input_grad[1] else 0)
        first, second = ctx.pairwise_backward(gradient, *ctx.saved_tensors, *ctx.options, wanted)
        return (
            first if wanted & WANTED_BOXES1 else None,
            second if wanted & WANTED_BOXES2 else None,
            None,
            None,
        )
