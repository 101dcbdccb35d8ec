"""The door: the public functions. Each checks its arguments, chooses a backend and calls it."""

import textwrap
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import arguments, autograd, reference, shortcut, transforms
from .backends import choose, device_type
from .calls import PRED, Formula, LossCall, Pairs, TermsCall
from .reference import ICRTerms
from .specifications import BoxLoss, Penalty
from .variants import COMMON_LOSS_NAMES, FURTHER_LOSS_NAMES, REDUCTION_IDS


def listed(names: Sequence[str]) -> str:
    """As a docstring lists names."""
    return textwrap.fill(", ".join(f'"{name}"' for name in names), 104, subsequent_indent=" " * 12)


_ARGUMENTS = """
    Args:
        pred: predictions, boxes of shape (..., 4), float16, bfloat16, float32 or float64.
        target: their ground truth, of the same shape; or a table (M, 4) with ``target_index``.
        target_index: (...) int64 or int32, the row of ``target`` that belongs to each pair. -1 (and any number outside
            the table): no target, and the pair does not count, as one that ``mask`` leaves out."""

_ANCHOR_OBJECTS = """
        anchor_objects: the anchor object of each pair, of the shape of pred; or a table (M, 4) with ``anchor_index``;
            or None: no penalty. A plate's anchor object is its car.
        anchor_index: (...) int64 or int32, the row of ``anchor_objects`` that belongs to each pair. -1 (and any number
            outside the table): no anchor object, penalty 0."""

_LOSS = f"""
        loss: {listed(COMMON_LOSS_NAMES)},
            {listed(FURTHER_LOSS_NAMES)}; or a `BoxLoss`, for
            other parameters and modifiers."""

_PENALTY = """
        penalty: "containment", "inverse", "log", "pull" or "containment+pull"; or a `Penalty`, for another clamp.
            "pull" moves the box as a rigid body: sides are constant under differentiation and edges follow the centre.
            So the gradient of both that have it is not the slope of their value, and gradcheck fails.
        penalty_weight: what the penalty is multiplied by before it is added to the box loss.
        relative: penalise only what exceeds the target's own penalty, relu(pen(P, A) - pen(G, A)), so that a label that
            sticks out of its anchor object stays the optimum."""

_REDUCTION = """
        weight: (...) floating, multiplies each pair. No gradient flows to it.
        mask: (...) bool. A pair whose mask is False does not count: it contributes exactly 0 to loss and gradient,
            whatever it holds.
        normalizer: what "mean" divides the sum by, a number or a 0-dim tensor that stays on its device; None: the
            number of pairs that count. A normalizer below eps counts as eps.
        reduction: "none" (one loss per pair), "sum" or "mean". The mean of no pair is 0, with a gradient of zeros."""

_MASK = """
        mask: (...) bool. A pair whose mask is False has 0 in every term and in every gradient, whatever it holds."""

_REST = """
        scale: how many pixels a unit of the boxes has, a positive number or a tensor without gradient, 0-dim or (...):
            the stride, for boxes in grid units. It matters to losses whose parameters are in pixels ("mpdiou", "sd",
            "nwd"); with 1 these are in the unit of the boxes.
        wise_mean: with a `BoxLoss` that is ``wise``, the running mean of 1 - IoU, a 0-dim tensor on the same device; it
            is read and not changed. (`ICRLoss` and `BoxIoULoss` keep one.)
        eps: every denominator is max(denominator, eps), in the square of the boxes' unit (pixels or normalised).
        box_format: "xyxy", "cxcywh" or "xywh", of all boxes of the call; gradients come back in it.
        backend: name of a backend, or None: the first of `available_backends` that can run these tensors.

    Boxes may be in any unit, the same for all boxes of the call. An inverted side (x2 < x1) counts as length 0, and
    coordinates beyond 1e18 as 1e18: every finite box has a finite loss and gradient, and NaN stays NaN. A side of
    exactly 0 can grow, but by "gcd", "kld" and "reverse_kld". The arithmetic is float32, or float64 if any box is
    float64, under autocast too; tensors may differ in dtype. A gradient in half precision is the float32 one rounded,
    beyond its range infinite."""

_GRADIENT = """

    Gradients reach ``pred``, ``target`` and ``anchor_objects``, as far as they require grad, in their own dtypes.
    Transforms of `torch.func` and forward mode differentiate them too; a second derivative is a RuntimeError, but with
    backend="reference"."""

RAISES = """

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device, name or number.
        RuntimeError: the backend that was asked for cannot run here.
"""


def documented(*parts: str):
    """Puts the parts of a docstring together that several functions share."""

    def decorate(described):
        described.__doc__ += "".join(parts)
        return described

    return decorate


@documented(_ARGUMENTS, _ANCHOR_OBJECTS, _LOSS, _PENALTY, _REDUCTION, _REST, _GRADIENT, RAISES)
def icr_loss(
    pred: Tensor,
    target: Tensor,
    anchor_objects: Tensor | None,
    *,
    target_index: Tensor | None = None,
    anchor_index: Tensor | None = None,
    loss: str | BoxLoss = "ciou",
    penalty: str | Penalty = "containment",
    penalty_weight: float = 1.0,
    relative: bool = False,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    reduction: str = "mean",
    scale: float | Tensor = 1.0,
    wise_mean: Tensor | None = None,
    eps: float = 1e-7,
    box_format: str = "xyxy",
    backend: str | None = None,
) -> Tensor:
    """Box-regression loss plus inter-class relational penalty: loss(pred, target) + penalty_weight * penalty(pred, A).

    The penalty is 0 while the prediction lies inside its anchor object (after the idea of Ning and Han 2025,
    arXiv 2508.14343; the losses' papers are in `icr_kernels.variants`). The result is float32, or float64 for float64
    boxes: a 0-dim tensor, or one loss per pair with reduction="none".
    """
    if _is_plain(target_index, scale, wise_mean):
        result = shortcut.icr_loss(
            pred,
            target,
            anchor_objects,
            anchor_index,
            weight,
            mask,
            normalizer,
            reduction,
            loss,
            penalty,
            box_format,
            relative,
            penalty_weight,
            eps,
            backend,
        )
        if result is not None:
            return result
    pairs = arguments.pairs(pred, target, anchor_objects, target_index, anchor_index, weight, mask, scale, wise_mean)
    formula = arguments.formula(loss, penalty, box_format, relative, penalty_weight, eps, scale)
    arguments.wise(formula, wise_mean)
    arguments.reduction(reduction)
    arguments.normalizer(normalizer, reduction, pred)
    chosen = choose(backend, device_type(pred))
    is_transformed = transforms.active()
    if chosen.operators is None or transforms.loses_derivative(is_transformed) or (is_transformed and _has_more(pairs)):
        return reference.icr_loss(
            pred,
            target,
            anchor_objects,
            target_index=target_index,
            anchor_index=anchor_index,
            weight=weight,
            mask=mask,
            scale=pairs.pixels,
            wise_mean=wise_mean,
            normalizer=normalizer,
            reduction=reduction,
            **formula._asdict(),
        )
    if is_transformed:
        return transforms.icr_loss(pairs, formula, normalizer, reduction, chosen.name)
    call = _loss_call(pairs, formula, normalizer, reduction, autograd.wanted(pred, target, anchor_objects))
    if call.wanted:
        return autograd.Loss.apply(pred, target, anchor_objects, chosen.name, call)
    return chosen.operators.loss(*call)[0]


@documented(_ARGUMENTS, _LOSS, _REDUCTION, _REST, _GRADIENT, RAISES)
def box_iou_loss(
    pred: Tensor,
    target: Tensor,
    *,
    target_index: Tensor | None = None,
    loss: str | BoxLoss = "ciou",
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    reduction: str = "mean",
    scale: float | Tensor = 1.0,
    wise_mean: Tensor | None = None,
    eps: float = 1e-7,
    box_format: str = "xyxy",
    backend: str | None = None,
) -> Tensor:
    """Aligned box-regression loss of each (prediction, target) pair, without anchor objects.

    The result is float32, or float64 for float64 boxes: a 0-dim tensor, or one loss per pair with reduction="none".
    """
    return icr_loss(
        pred,
        target,
        None,
        target_index=target_index,
        loss=loss,
        weight=weight,
        mask=mask,
        normalizer=normalizer,
        reduction=reduction,
        scale=scale,
        wise_mean=wise_mean,
        eps=eps,
        box_format=box_format,
        backend=backend,
    )


@documented(_ARGUMENTS, _ANCHOR_OBJECTS, _LOSS, _PENALTY, _MASK, _REST, _GRADIENT, RAISES)
def icr_terms(
    pred: Tensor,
    target: Tensor,
    anchor_objects: Tensor | None,
    *,
    target_index: Tensor | None = None,
    anchor_index: Tensor | None = None,
    loss: str | BoxLoss = "ciou",
    penalty: str | Penalty = "containment",
    penalty_weight: float = 1.0,
    relative: bool = False,
    mask: Tensor | None = None,
    scale: float | Tensor = 1.0,
    wise_mean: Tensor | None = None,
    eps: float = 1e-7,
    box_format: str = "xyxy",
    backend: str | None = None,
) -> ICRTerms:
    """The terms of every pair in one pass: `ICRTerms` (loss, iou, containment, penalty), each (...).

    ``loss`` is box loss + penalty_weight * penalty, ``iou`` the plain IoU of prediction and target, ``containment`` the
    share of the prediction inside its anchor object (1 without one), ``penalty`` the penalty before weighting. Every
    term is differentiable.
    """
    pairs = arguments.pairs(pred, target, anchor_objects, target_index, anchor_index, None, mask, scale, wise_mean)
    formula = arguments.formula(loss, penalty, box_format, relative, penalty_weight, eps, scale)
    arguments.wise(formula, wise_mean)
    chosen = choose(backend, device_type(pred))
    is_transformed = transforms.active()
    if chosen.operators is None or transforms.loses_derivative(is_transformed) or (is_transformed and _has_more(pairs)):
        return reference.icr_terms(
            pred,
            target,
            anchor_objects,
            target_index=target_index,
            anchor_index=anchor_index,
            mask=mask,
            scale=pairs.pixels,
            wise_mean=wise_mean,
            **formula._asdict(),
        )
    if is_transformed:
        return transforms.icr_terms(pairs, formula, chosen.name)
    call = TermsCall(
        pred, target, anchor_objects, target_index, anchor_index, mask, pairs.pixels, wise_mean, formula.packed()
    )
    if autograd.wanted(pred, target, anchor_objects):
        return ICRTerms(*autograd.Terms.apply(pred, target, anchor_objects, chosen.name, call))
    return ICRTerms(*chosen.operators.terms(*call))


@documented(_ARGUMENTS, _ANCHOR_OBJECTS, _LOSS, _PENALTY, _REDUCTION, _REST, RAISES)
def icr_loss_and_grad(
    pred: Tensor,
    target: Tensor,
    anchor_objects: Tensor | None = None,
    *,
    target_index: Tensor | None = None,
    anchor_index: Tensor | None = None,
    loss: str | BoxLoss = "ciou",
    penalty: str | Penalty = "containment",
    penalty_weight: float = 1.0,
    relative: bool = False,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    reduction: str = "mean",
    scale: float | Tensor = 1.0,
    wise_mean: Tensor | None = None,
    eps: float = 1e-7,
    box_format: str = "xyxy",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient with respect to pred, in one pass and without autograd.

    Returns the loss of `icr_loss` and the gradient, of shape and dtype of pred; with reduction="none" the gradient of
    each pair's own loss. Neither requires grad. Under transforms of `torch.func` the loss has a derivative, and to
    differentiate the gradient is a RuntimeError.
    """
    if _is_plain(target_index, scale, wise_mean):
        result = shortcut.icr_loss_and_grad(
            pred,
            target,
            anchor_objects,
            anchor_index,
            weight,
            mask,
            normalizer,
            reduction,
            loss,
            penalty,
            box_format,
            relative,
            penalty_weight,
            eps,
            backend,
        )
        if result is not None:
            return result
    with torch.no_grad():
        pairs = arguments.pairs(
            pred, target, anchor_objects, target_index, anchor_index, weight, mask, scale, wise_mean
        )
        formula = arguments.formula(loss, penalty, box_format, relative, penalty_weight, eps, scale)
        arguments.wise(formula, wise_mean)
        arguments.reduction(reduction)
        arguments.normalizer(normalizer, reduction, pred)
        chosen = choose(backend, device_type(pred))
        is_transformed = transforms.active()
        if chosen.operators is not None and not is_transformed:
            call = _loss_call(pairs, formula, normalizer, reduction, PRED)
            # The gradient is rounded once: by the loss, or by the scaling that is left to do.
            pending = chosen.operators.is_pending(call)
            value, factor, gradient, *_ = chosen.operators.loss(*call._replace(in_box_dtype=not pending))
            if pending:
                gradient = chosen.operators.scaled(gradient, factor, None, pred.dtype, None, None)
            return value, gradient
    options: dict[str, Any] = {
        "target_index": target_index,
        "anchor_index": anchor_index,
        "weight": weight,
        "mask": mask,
        "normalizer": normalizer,
        "reduction": reduction,
        "scale": scale,
        "wise_mean": wise_mean,
        "loss": formula.loss,
        "penalty": formula.penalty,
        "penalty_weight": formula.penalty_weight,
        "relative": relative,
        "eps": formula.eps,
        "box_format": box_format,
    }
    if is_transformed:

        def total(pred: Tensor) -> tuple[Tensor, Tensor]:
            value = icr_loss(pred, target, anchor_objects, backend=chosen.name, **options)
            return value.sum(), value

        gradient, value = torch.func.grad(total, has_aux=True)(pred)
        return value, gradient
    # The reference needs a graph for its gradient, and inference tensors cannot be part of one.
    with torch.inference_mode(False), torch.enable_grad():
        leaf = _outside_inference(pred).requires_grad_()
        options = {name: _outside_inference(value) for name, value in options.items()}
        value = icr_loss(
            leaf, _outside_inference(target), _outside_inference(anchor_objects), backend="reference", **options
        )
        return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def _is_plain(target_index: Tensor | None, scale: float | Tensor, wise_mean: Tensor | None) -> bool:
    """Whether the short way can be asked."""
    if target_index is not None or wise_mean is not None or type(scale) is not float or scale != 1:
        return False
    return not torch.compiler.is_compiling() and not arguments.CHECK_VALUES


def _has_more(pairs: Pairs) -> bool:
    """What the kernels under transforms do not know."""
    return pairs.pixels is not None or pairs.wise_mean is not None


def _outside_inference(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.clone() if value.is_inference() else value.detach()


def _loss_call(
    pairs: Pairs, formula: Formula, normalizer: float | Tensor | None, reduction: str, wanted: int
) -> LossCall:
    """A normalizer that is a number is part of the scale."""
    scale = 1.0
    if normalizer is not None and not isinstance(normalizer, Tensor):
        scale, normalizer, reduction = 1.0 / max(float(normalizer), formula.eps), None, "sum"
    return LossCall(*pairs, normalizer, scale, REDUCTION_IDS[reduction], formula.packed(), wanted, False)
