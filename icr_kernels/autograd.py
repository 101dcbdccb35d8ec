"""The autograd boundary: one Function per differentiable result, outside the operators, for every backend that has any.

The loss computes its gradient in the forward pass, in the arithmetic's dtype, and the backward pass scales it out of
place: a second backward pass works, and a half-precision gradient is rounded once, after scaling. On a CPU, where the
arithmetic and not memory is the bound, that is faster than computing the gradient anew; on a GPU, where memory is, it
moves 96 bytes per pair in both passes and computing anew would move 112. The terms, which have four upstream gradients,
do compute theirs anew, and so do matrices of all pairs, which are larger than their boxes.

The boxes are kept in any case: what a backward pass returns is a function of them, and where autograd makes a graph of
it, it has to say so.
"""

import torch
from torch import Tensor

from . import calls, transforms
from .backends import BY_NAME
from .calls import ANCHOR_OBJECTS, BOXES1, BOXES2, PRED, TARGET


def wanted(first: Tensor, second: Tensor, third: Tensor | None = None) -> int:
    """The bits of the gradients that autograd will ask for."""
    if not torch.is_grad_enabled():
        return 0
    return calls.wanted(first.requires_grad, second.requires_grad, third is not None and third.requires_grad)


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
    def forward(ctx, pred, target, anchor_objects, backend, call):
        operators = BY_NAME[backend].operators
        loss, pending, grad_pred, grad_target, grad_anchor_objects = operators.loss(*call)
        of_pred, of_target, of_anchor_objects = call.wanted & PRED, call.wanted & TARGET, call.wanted & ANCHOR_OBJECTS
        ctx.save_for_backward(
            pred if of_pred else None,
            target if of_target else None,
            anchor_objects if of_anchor_objects else None,
            call.anchor_index if of_anchor_objects else None,
            pending if pending.numel() else None,
            grad_pred if of_pred else None,
            grad_target if of_target else None,
            grad_anchor_objects if of_anchor_objects else None,
        )
        ctx.scaled = operators.scaled
        return loss

    @staticmethod
    @first_derivative
    def backward(ctx, grad_loss):
        pred, target, anchor_objects, index, pending, grad_pred, grad_target, grad_anchor_objects = ctx.saved_tensors
        if pred is not None:
            pred = ctx.scaled(grad_pred, grad_loss, pending, pred.dtype, None, None)
        if target is not None:
            target = ctx.scaled(grad_target, grad_loss, pending, target.dtype, None, None)
        if anchor_objects is not None:
            table = None if index is None else anchor_objects
            anchor_objects = ctx.scaled(grad_anchor_objects, grad_loss, pending, anchor_objects.dtype, table, index)
        return pred, target, anchor_objects, None, None


class Terms(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pred, target, anchor_objects, backend, call):
        operators = BY_NAME[backend].operators
        ctx.save_for_backward(pred, target, anchor_objects, call.anchor_index, call.mask)
        ctx.terms_backward, ctx.numbers = operators.terms_backward, call.numbers
        return operators.terms(*call)

    @staticmethod
    @first_derivative
    def backward(ctx, *grad_terms):
        bits = calls.wanted(*ctx.needs_input_grad[:3])
        pred, target, anchor_objects = ctx.terms_backward(*grad_terms, *ctx.saved_tensors, ctx.numbers, bits)
        return (
            pred if bits & PRED else None,
            target if bits & TARGET else None,
            anchor_objects if bits & ANCHOR_OBJECTS else None,
            None,
            None,
        )


class Pairwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, boxes1, boxes2, backend, numbers):
        operators = BY_NAME[backend].operators
        ctx.save_for_backward(boxes1, boxes2)
        ctx.pairwise_backward, ctx.numbers = operators.pairwise_backward, numbers
        return operators.pairwise(boxes1, boxes2, numbers)

    @staticmethod
    @first_derivative
    def backward(ctx, gradient):
        bits = calls.wanted(*ctx.needs_input_grad[:2])
        boxes1, boxes2 = ctx.pairwise_backward(gradient, *ctx.saved_tensors, ctx.numbers, bits)
        return boxes1 if bits & BOXES1 else None, boxes2 if bits & BOXES2 else None, None, None
