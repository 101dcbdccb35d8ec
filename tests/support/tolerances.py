"""The one table of tolerances, and how results are compared."""

import math

import torch
from torch import Tensor

from oracle import BOXES, Result

# Relative L2 error of a result of this dtype. Half precision: the arithmetic is float32, so all that is lost is one
# rounding, of at most half a unit in the last place.
RELATIVE_L2 = {
    torch.float64: 1e-10,
    torch.float32: 2e-6,
    torch.float16: 2**-11,
    torch.bfloat16: 2**-8,
}

# Absolute error of a single hand-computed number of order 1, from float64 and from float32 arithmetic.
GOLDEN = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-6, torch.bfloat16: 1e-6}


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    """||actual - expected|| / ||expected||; anything but 0 where 0 is expected is an infinite error."""
    truth = expected.cpu().double()
    error = (actual.cpu().double() - truth).norm()
    return float(error / truth.norm()) if error != 0 else 0.0


def assert_close(actual: Tensor, expected: Tensor, what: str) -> None:
    """``actual`` is ``expected`` as well as its dtype can tell."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    assert actual.isfinite().all(), f"{what}: not finite in rows {(~actual.isfinite()).nonzero()[:5].tolist()}"
    difference, truth = actual.cpu().double() - expected.cpu().double(), expected.cpu().double().norm()
    # Where a dtype's smallest numbers are, half of one of them is lost as well.
    info = torch.finfo(actual.dtype)
    limit = RELATIVE_L2[actual.dtype] * truth + info.smallest_normal * info.eps / 2 * math.sqrt(actual.numel())
    if not difference.norm() <= limit:
        worst = int(difference.abs().argmax())
        raise AssertionError(
            f"{what}: L2 error {difference.norm():.3g}, allowed {limit:.3g}, of {truth:.3g}; worst at flat position "
            f"{worst}: got {actual.flatten()[worst]:.9g}, expected {expected.flatten()[worst]:.9g}"
        )


def assert_result(actual: Result, expected: Result) -> None:
    """Value and gradients, and None in the same places."""
    assert_close(actual.value, expected.value, "value")
    for name in BOXES:
        gradient, truth = getattr(actual, name), getattr(expected, name)
        assert (gradient is None) == (truth is None), f"gradient of {name}: got {gradient}, expected {truth}"
        if truth is not None:
            assert_close(gradient, truth, f"gradient of {name}")


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Equal to the last bit; a NaN equals itself, 0 and -0 differ."""
    return first.dtype == second.dtype and first.shape == second.shape and _bytes(first) == _bytes(second)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
