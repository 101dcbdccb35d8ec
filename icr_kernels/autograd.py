"""The autograd boundary: one Function per differentiable result, outside the operators, for every backend that has any.

The loss computes its gradient in the forward pass, in the arithmetic's dtype, and the backward pass scales it: in place
where autograd frees the graph, so that a factor of 1 costs nothing, and else out of place, so that a second backward
pass works. A half-precision gradient is rounded once, after scaling. On a CPU, where the arithmetic and not memory is
the bound, that is faster than computing the gradient anew; on a GPU, where memory is, it moves 64 bytes per pair in
both passes (96 with another factor than 1) and computing anew would move 112. The terms, which have four upstream
gradients, do compute theirs anew, and so do matrices of all pairs, which are larger than their boxes, and the terms of
a dense head: there it is three passes over memory of the size of the logits instead of four, gradients in half
precision are rounded once, and nothing of that size is kept between the passes.

The boxes are kept in any case: what a backward pass returns is a function of them, and where autograd makes a graph of
it, it has to say so.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch._C._autograd import _get_current_graph_task_keep_graph, _top_saved_tensors_default_hooks
from torch._C._functorch import is_legacy_batchedtensor

from . import calls, transforms
from .backends import BY_NAME
from .calls import ANCHOR_OBJECTS, BOX_LOGITS, BOXES1, BOXES2, CLASS_LOGITS, PRED, TARGET, DetectionCall
from .operators import Operators, compiled


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
            call.target_index if of_target else None,
            call.anchor_index if of_anchor_objects else None,
            pending if pending.numel() else None,
            grad_pred if of_pred else None,
            grad_target if of_target else None,
            grad_anchor_objects if of_anchor_objects else None,
        )
        ctx.operators = operators
        # A hook of saved tensors may hand out what somebody else has.
        ctx.has_hooks = torch.compiler.is_compiling() or _top_saved_tensors_default_hooks(True) is not None
        return loss

    @staticmethod
    @first_derivative
    def backward(ctx, grad_loss):
        pred, target, anchor_objects, target_index, anchor_index, pending, *gradients = ctx.saved_tensors
        is_last = not torch.compiler.is_compiling() and not ctx.has_hooks and _is_last_pass(grad_loss)

        def scaled(gradient: Tensor | None, boxes: Tensor | None, index: Tensor | None = None) -> Tensor | None:
            if gradient is None or boxes is None:
                return None
            if index is not None:
                return ctx.operators.scaled(gradient, grad_loss, pending, boxes.dtype, boxes, index)
            if not is_last or gradient.dtype != boxes.dtype:
                return ctx.operators.scaled(gradient, grad_loss, pending, boxes.dtype, None, None)
            ctx.operators.scaled_(gradient, grad_loss, pending)
            return gradient

        grad_pred, grad_target, grad_anchor_objects = gradients
        return (
            scaled(grad_pred, pred),
            scaled(grad_target, target, target_index),
            scaled(grad_anchor_objects, anchor_objects, anchor_index),
            None,
            None,
        )


def _is_last_pass(upstream: Tensor) -> bool:
    """Whether autograd will free what this backward pass was saved, and nobody differentiates or batches the pass."""
    is_watched = transforms.active() or is_legacy_batchedtensor(upstream)
    return not _get_current_graph_task_keep_graph() and not is_watched


class _Context(NamedTuple):
    saved_tensors: tuple[Tensor | None, ...]
    operators: Operators
    has_hooks: bool


def backward_of_any(upstream: Tensor, *saved: Tensor | None) -> tuple[Tensor | None, ...]:
    """The backward pass of a loss of the compiled operators, for the node that C++ has of it (csrc/autograd.cpp), which
    knows no index of targets."""
    return Loss.backward(_Context((*saved[:3], None, *saved[3:]), compiled, True), upstream)[:3]


class Terms(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pred, target, anchor_objects, backend, call):
        operators = BY_NAME[backend].operators
        ctx.save_for_backward(pred, target, anchor_objects, *call[3:-1])
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


class Decoded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, box_logits, points, strides, backend):
        operators = BY_NAME[backend].operators
        ctx.save_for_backward(box_logits, points, strides)
        ctx.decoded_backward = operators.decoded_backward
        return operators.decoded(box_logits, points, strides)

    @staticmethod
    @first_derivative
    def backward(ctx, gradient):
        return ctx.decoded_backward(gradient, *ctx.saved_tensors, BOX_LOGITS), None, None, None


class Detection(torch.autograd.Function):
    @staticmethod
    def forward(ctx, box_logits, class_logits, backend, call):
        operators = BY_NAME[backend].operators
        *terms, divisors = operators.detection_loss(*call)
        ctx.save_for_backward(box_logits, class_logits, *call[2:-2], divisors)
        ctx.set_materialize_grads(False)
        ctx.detection_loss_backward, ctx.numbers = operators.detection_loss_backward, call.numbers
        return tuple(terms)

    @staticmethod
    @first_derivative
    def backward(ctx, *grad_terms):
        # Logits on which no term depends that somebody asks about are left out, whatever they hold.
        of_classes = grad_terms[1] is not None
        of_boxes = any(each is not None for number, each in enumerate(grad_terms) if number != 1)
        needs_boxes, needs_classes = ctx.needs_input_grad[:2]
        bits = calls.wanted(needs_boxes and of_boxes, needs_classes and of_classes)
        if not bits:
            return None, None, None, None
        call = DetectionCall(*ctx.saved_tensors, ctx.numbers)
        boxes, classes = ctx.detection_loss_backward(*grad_terms, *call, bits)
        return boxes if bits & BOX_LOGITS else None, classes if bits & CLASS_LOGITS else None, None, None
