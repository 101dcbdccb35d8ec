"""The one table of tolerances, and how results are compared."""

import math

import torch
from torch import Tensor

import icr_kernels as icr
from oracle import BOXES, Result, evaluate, expected

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


def assert_result(actual: Result, truth: Result) -> None:
    """Value and gradients, and None in the same places."""
    assert_close(actual.value, truth.value, "value")
    for name in BOXES:
        gradient, wanted = getattr(actual, name), getattr(truth, name)
        assert (gradient is None) == (wanted is None), f"gradient of {name}: got {gradient}, expected {wanted}"
        if wanted is not None:
            assert_close(gradient, wanted, f"gradient of {name}")


def assert_matches_reference(*boxes: Tensor | None, backend: str, wanted: tuple[str, ...] = BOXES, **options) -> None:
    """`icr_loss` of a backend and its gradients are those of the reference, in the dtypes that they have to have."""
    actual = evaluate(icr.icr_loss, *boxes, wanted=wanted, backend=backend, **options)
    assert_result(actual, expected(*boxes, wanted=wanted, **options))
    compute = torch.float64 if any(b is not None and b.dtype == torch.float64 for b in boxes) else torch.float32
    assert actual.value.dtype == compute
    for name, rows in zip(BOXES, boxes, strict=False):
        if name in wanted and rows is not None:
            assert getattr(actual, name).dtype == rows.dtype


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Equal to the last bit; a NaN equals itself, 0 and -0 differ."""
    return first.dtype == second.dtype and first.shape == second.shape and _bytes(first) == _bytes(second)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
