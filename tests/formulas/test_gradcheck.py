"""The gradients are the derivatives of the values: finite differences in double precision, for each input.

Where a formula holds a value constant (alpha of CIoU, the sides of the pull penalty) its gradient is not the derivative
of its value, but of the formula with those values frozen. `icr_kernels.selfcheck.frozen` freezes them in the
reference, and
    F(x) = kernel(x) + (frozen_reference(x) - reference(x)).detach()
has the kernel's gradient, and the frozen formula's value as long as kernel and reference agree.

All inputs move at once, in a random direction (`fast_mode`): a coordinate whose gradient is off by a thousandth shows.
"""

import pytest
import torch
from torch import Tensor

import icr_kernels as icr
from icr_kernels import reference
from icr_kernels.selfcheck import frozen
from inputs import (
    as_table,
    device_of,
    every_format,
    every_loss,
    every_penalty,
    every_quick_backend,
    pairs,
    pairs_of_a_table,
    some_losses,
)
from oracle import BOXES


def check(function, truth, boxes: dict[str, Tensor | None], asked: tuple[str, ...], backend: str, **options) -> None:
    def call(chosen, leaves, **more):
        values = chosen(*{**boxes, **dict(zip(asked, leaves, strict=True))}.values(), **options, **more)
        return values if isinstance(values, tuple) else (values,)

    fixed = frozen(lambda *leaves: call(truth, leaves))
    fixed(*(boxes[name] for name in asked))

    def composed(*leaves: Tensor) -> tuple[Tensor, ...]:
        values = call(function, leaves, backend=backend)
        corrections = zip(fixed(*leaves), call(truth, leaves), strict=True)
        return tuple(value + (a - b).detach() for value, (a, b) in zip(values, corrections, strict=True))

    leaves = tuple(boxes[name].detach().requires_grad_() for name in asked)
    assert torch.autograd.gradcheck(composed, leaves, eps=1e-6, atol=1e-8, rtol=1e-6, nondet_tol=0.0, fast_mode=True)


def plates(backend: str, seed: int = 3, **options) -> dict[str, Tensor]:
    return dict(zip(BOXES, pairs(6, dtype=torch.float64, seed=seed, device=device_of(backend), **options), strict=True))


@every_quick_backend
@every_loss
def test_losses(loss, backend):
    options = {"loss": loss, "penalty": "containment+pull", "reduction": "none"}
    check(icr.icr_loss, reference.icr_loss, plates(backend), BOXES, backend, **options)


@every_quick_backend
@pytest.mark.parametrize("argument", BOXES)
def test_each_input_alone(argument, backend):
    options = {"loss": "siou", "penalty": "containment+pull", "reduction": "none"}
    check(icr.icr_loss, reference.icr_loss, plates(backend), (argument,), backend, **options)


@every_quick_backend
@every_penalty
def test_penalties(penalty, backend):
    options = {"loss": "iou", "penalty": penalty, "penalty_weight": 1.5, "reduction": "none"}
    check(icr.icr_loss, reference.icr_loss, plates(backend, seed=4), BOXES, backend, **options)


@every_quick_backend
@every_penalty
def test_all_inputs_together_with_a_relative_penalty(penalty, backend):
    options = {"loss": "ciou", "penalty": penalty, "relative": True}
    check(icr.icr_loss, reference.icr_loss, plates(backend, seed=5), BOXES, backend, **options)


@every_quick_backend
@every_format
@some_losses
def test_box_formats(loss, box_format, backend):
    options = {"loss": loss, "penalty": "containment+pull", "box_format": box_format}
    boxes = plates(backend, seed=6, box_format=box_format)
    check(icr.icr_loss, reference.icr_loss, boxes, BOXES, backend, **options)


@every_quick_backend
@some_losses
def test_loss_without_anchor_objects(loss, backend):
    boxes = {**plates(backend, seed=7), "anchor_objects": None}
    check(icr.icr_loss, reference.icr_loss, boxes, ("pred", "target"), backend, loss=loss, reduction="none")


@every_quick_backend
@some_losses
def test_terms(loss, backend):
    """All four terms: loss, IoU, containment and penalty."""
    options = {"loss": loss, "penalty": "containment+pull", "penalty_weight": 0.5}
    check(icr.icr_terms, reference.icr_terms, plates(backend, seed=8), BOXES, backend, **options)


@every_quick_backend
@every_penalty
def test_terms_with_each_penalty(penalty, backend):
    options = {"loss": "giou", "penalty": penalty}
    check(icr.icr_terms, reference.icr_terms, plates(backend, seed=9), BOXES, backend, **options)


@every_quick_backend
def test_tables_with_weight_and_mask(backend):
    pred, target, table, index = pairs_of_a_table(9, 4, dtype=torch.float64, seed=10, device=device_of(backend))
    target, target_index = as_table(target)
    boxes = dict(zip(BOXES, (pred, target, table), strict=True))
    options = {
        "target_index": target_index,
        "anchor_index": index,
        "weight": torch.linspace(0.5, 2, 9, dtype=torch.float64, device=pred.device),
        "mask": torch.arange(9, device=pred.device) % 4 != 1,
        "penalty": "containment+pull",
    }
    for reduction in ("none", "sum", "mean"):
        check(icr.icr_loss, reference.icr_loss, boxes, BOXES, backend, reduction=reduction, **options)
