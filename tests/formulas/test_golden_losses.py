"""Losses with parameters and modifiers against numbers by hand (support/golden_losses.py)."""

import pytest
import torch

import icr_kernels as icr
from golden_losses import LOSSES, PAIRS, WISE_MEAN
from icr_kernels.calls import Formula
from icr_kernels.variants import FURTHER_LOSS_NAMES
from inputs import box, device_of, every_backend

every_golden = pytest.mark.parametrize("golden", LOSSES, ids=lambda golden: repr(golden.loss))


def test_every_further_loss_has_numbers():
    assert {golden.loss.name for golden in LOSSES} >= set(FURTHER_LOSS_NAMES)


@every_backend
@every_golden
def test_value_and_gradient(golden, backend):
    device = device_of(backend)
    pred, target = (
        torch.cat([box(*pair[side], device=device) for pair in PAIRS.values()]).requires_grad_(side == 0)
        for side in (0, 1)
    )
    mean = torch.tensor(WISE_MEAN, device=device) if golden.loss.wise else None
    value = icr.box_iou_loss(pred, target, loss=golden.loss, wise_mean=mean, reduction="none", backend=backend)
    value.sum().backward()
    assert value.tolist() == pytest.approx(golden.values, abs=1e-12)
    for row, expected in zip(pred.grad.tolist(), golden.gradients, strict=True):
        assert row == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "golden", [each for each in LOSSES if each.loss.wise is None], ids=lambda golden: repr(golden.loss)
)
def test_single_pair_of_the_extension(golden, extension):
    for (pred, target), value, gradient in zip(PAIRS.values(), golden.values, golden.gradients, strict=True):
        found, derivatives = extension.pair(Formula(golden.loss).packed(), list(pred), list(target), None)
        assert found == pytest.approx(value, abs=1e-12)
        assert derivatives[:4] == pytest.approx(gradient, abs=1e-12)


@every_backend
def test_a_large_target_is_ciou_for_the_scale_based_loss(backend):
    """From the area on b is delta, and both weights are 1."""
    device = device_of(backend)
    pred, target = box(0, 0, 11, 9, device=device), box(1, 1, 10, 10, device=device)
    losses = [icr.box_iou_loss(pred, target, loss=loss, backend=backend).item() for loss in ("sd", "ciou")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)
