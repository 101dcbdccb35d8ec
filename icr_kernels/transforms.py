"""The kernels under the transforms of `torch.func` and under forward-mode differentiation.

Where one of these looks on, what a kernel computes is one `Term` of every pair, and all around it is plain PyTorch, as
in the reference: the dtype of the arithmetic, the anchor objects of a table, the reduction. No pair depends on another,
so a gradient is one row per pair: a backward pass and a jvp are products with it, and vmap is one dimension more.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import reference
from .backends import BY_NAME
from .calls import Formula, PairFunction, Pairs, TermsCall, compute_dtype, wanted
from .reference import ICRTerms
from .specifications import with_parameters
from .variants import LOSS_NAMES, NO_PENALTY, PENALTY_NAMES

NO_SECOND_DERIVATIVE = (
    "the kernels of icr_kernels have no derivative beyond the first; pass backend='reference', which has"
)

# Their places in the result of the operator.
_LOSS, _IOU, _CONTAINMENT, _PENALTY = range(len(ICRTerms._fields))


def active() -> bool:
    """Whether a transform of `torch.func` or forward-mode differentiation looks on."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def loses_derivative(is_transformed: bool) -> bool:
    """Whether a graph is being made in which a kernel would have no derivative: an exported one, or of transforms. Then
    the reference is called, whatever backend was asked for."""
    return torch.compiler.is_exporting() or (is_transformed and torch.compiler.is_compiling())


def _times(rows: Tensor, factor: Tensor) -> Tensor:
    """Gradient rows times a factor; one that is 0 (a masked pair's) stays 0, whatever the factor."""
    return torch.where(rows == 0, 0, rows * factor)


def _batched(function, info, in_dims, *arguments):
    """Of a function of aligned pairs: the dimension of the batch is the first one of the pairs."""

    def in_front(argument, dimension):
        if not isinstance(argument, Tensor):
            return argument
        if dimension is None:
            return argument.expand(info.batch_size, *argument.shape)
        return argument.movedim(dimension, 0)

    return function.apply(*map(in_front, arguments, in_dims))


class Term(torch.autograd.Function):
    """One term of every pair, (...), from pred, target and anchor objects (..., 4) and a mask (...) or None. ``term``
    is its place in `ICRTerms`, ``packed`` the formula as the operators take it."""

    @staticmethod
    def forward(pred, target, anchor_objects, mask, term, backend, packed):
        call = TermsCall(pred, target, anchor_objects, None, None, mask, None, None, packed)
        return BY_NAME[backend].operators.terms(*call)[term]

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:4])
        ctx.save_for_forward(*inputs[:4])
        ctx.constants = inputs[4:]

    @staticmethod
    def backward(ctx, upstream):
        is_wanted = ctx.needs_input_grad[:3]
        rows = iter(TermGradient.apply(*ctx.saved_tensors, *ctx.constants, is_wanted))
        return (*(_times(next(rows), upstream.unsqueeze(-1)) if each else None for each in is_wanted), *[None] * 4)

    @staticmethod
    def jvp(ctx, *tangents):
        is_wanted = tuple(each is not None for each in tangents[:3])
        rows = TermGradient.apply(*ctx.saved_tensors, *ctx.constants, is_wanted)
        given = (each for each in tangents[:3] if each is not None)
        return sum(_times(*each).sum(-1) for each in zip(rows, given, strict=True))

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return _batched(Term, info, in_dims, *arguments), 0


class TermGradient(torch.autograd.Function):
    """The gradient of a term with respect to those of its three boxes that are wanted, (..., 4) each. Its own
    derivative is an error, and not left out."""

    @staticmethod
    def forward(pred, target, anchor_objects, mask, term, backend, packed, is_wanted):
        one = torch.ones((), dtype=pred.dtype, device=pred.device).expand(pred.shape[:-1])
        upstream = [one if place == term else torch.zeros_like(one) for place in range(len(ICRTerms._fields))]
        call = TermsCall(pred, target, anchor_objects, None, None, mask, None, None, packed)
        rows = BY_NAME[backend].operators.terms_backward(*upstream, *call, wanted(*is_wanted))
        return tuple(each for each, is_one in zip(rows, is_wanted, strict=True) if is_one)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(NO_SECOND_DERIVATIVE)

    jvp = backward

    @staticmethod
    def vmap(info, in_dims, *arguments):
        rows = _batched(TermGradient, info, in_dims, *arguments)
        return rows, (0,) * len(rows)


def icr_terms(pairs: Pairs, formula: Formula, backend: str) -> ICRTerms:
    """`icr_kernels.icr_terms` by the kernels of a backend."""
    dtype = compute_dtype(pairs.pred, pairs.target, pairs.anchor_objects)
    pred = pairs.pred.to(dtype)
    target, has_target = reference.gathered(pairs.target.to(dtype), pairs.target_index)
    mask = reference.both(pairs.mask, has_target)
    without = formula._replace(penalty=NO_PENALTY).packed()
    loss = Term.apply(pred, target, None, mask, _LOSS, backend, without)
    iou = Term.apply(pred, target, None, mask, _IOU, backend, without)
    inside, penalty = torch.ones_like(loss), torch.zeros_like(loss)
    if pairs.anchor_objects is not None:
        anchor_objects, has_anchor = reference.gathered(pairs.anchor_objects.to(dtype), pairs.anchor_index)
        counts = reference.both(mask, has_anchor)
        packed = formula.packed()
        inside = Term.apply(pred, target, anchor_objects, counts, _CONTAINMENT, backend, packed)
        inside = inside if has_anchor is None else torch.where(has_anchor, inside, 1)
        penalty = Term.apply(pred, target, anchor_objects, counts, _PENALTY, backend, packed)
        loss = loss + formula.penalty_weight * penalty
    return ICRTerms(loss, iou, inside if mask is None else torch.where(mask, inside, 0), penalty)


def icr_loss(pairs: Pairs, formula: Formula, normalizer: float | Tensor | None, reduction: str, backend: str) -> Tensor:
    """`icr_kernels.icr_loss` by the kernels of a backend."""
    loss = icr_terms(pairs, formula, backend).loss
    mask = reference.both(pairs.mask, reference.in_table(pairs.target, pairs.target_index))
    return reference.reduced(loss, pairs.weight, mask, normalizer, reduction, formula.eps)


def pairwise_iou(boxes1: Tensor, boxes2: Tensor, function: PairFunction, backend: str) -> Tensor:
    """`icr_kernels.pairwise_iou` by the kernels of aligned pairs: each box of the one set beside each of the other."""
    kind, box_format, eps, parameters = function
    dtype = compute_dtype(boxes1, boxes2)
    first, second = torch.broadcast_tensors(boxes1.to(dtype).unsqueeze(-2), boxes2.to(dtype).unsqueeze(-3))
    if kind in LOSS_NAMES:
        packed = Formula(with_parameters(kind, parameters), NO_PENALTY, box_format, eps=eps).packed()
        if kind == "iou":
            return Term.apply(first, second, None, None, _IOU, backend, packed)
        return 1 - Term.apply(first, second, None, None, _LOSS, backend, packed)
    if kind == "containment":
        term, penalty = _CONTAINMENT, PENALTY_NAMES[0]
    else:
        term, penalty = _PENALTY, kind.removesuffix("_penalty")
    packed = Formula("iou", penalty, box_format, eps=eps).packed()
    return Term.apply(first, first, second, None, term, backend, packed)
