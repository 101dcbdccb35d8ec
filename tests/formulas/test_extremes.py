"""Huge, tiny and degenerate coordinates, NaN and infinities: what is finite has a finite loss and gradient."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import icr_kernels as icr
from icr_kernels.variants import COORDINATE_LIMIT, LOSSES, PENALTIES
from inputs import (
    HALF_DTYPES,
    LOSSES_AND_PENALTIES,
    SOME_LOSSES,
    box,
    device_of,
    dtype_id,
    every_backend,
    every_dtype,
    every_format,
    every_loss,
    every_loss_and_penalty,
    every_modified_loss,
    every_quick_compiled_backend,
    full_precision,
    grid_boxes,
    half_precision,
    some_losses,
    to_format,
    value_range,
)
from oracle import BOXES, evaluate, expected
from tolerances import assert_result, relative_l2, same_bits

# Predictions, targets and anchor objects.
OVERLAPPING_AND_APART = ([[1, 1, 5, 5], [1, 1, 5, 5]], [[0, 0, 4, 4], [6, 7, 9, 9]], [[-1, -1, 3, 9], [10, 11, 20, 30]])

# Far out.


@every_backend
@full_precision
@every_loss
def test_coordinates_beyond_the_limit_count_as_the_limit(loss, dtype, backend):
    device = device_of(backend)
    far = torch.tensor([[-3e30, -2e18, 1e19, 5e37], [0, 0, 2e18, 4e30]], dtype=dtype, device=device)
    near = far.clamp(-COORDINATE_LIMIT, COORDINATE_LIMIT)
    target = torch.tensor([[0, 0, 1e18, 1e17], [1e17, -1e17, 5e17, 2e17]], dtype=dtype, device=device)
    options = {"loss": loss, "penalty": "containment+pull", "reduction": "none", "backend": backend}
    for boxes, same in (((far, target, target), (near, target, target)), ((target, far, far), (target, near, near))):
        result = evaluate(icr.icr_loss, *boxes, **options)
        assert same_bits(result.value, evaluate(icr.icr_loss, *same, **options).value)
        for name, rows in zip(BOXES, boxes, strict=True):
            assert (getattr(result, name)[rows.abs() >= COORDINATE_LIMIT] == 0).all(), name


@every_backend
@full_precision
@every_loss
def test_huge_and_tiny_boxes_have_the_loss_of_ordinary_ones(loss, dtype, backend):
    """Scaled by a power of two nothing is rounded differently: the same loss, the gradient scaled the other way."""
    boxes = [grid_boxes(200, 6, seed, dtype).to(device_of(backend)) for seed in range(2)]
    # Not empty: the guard of an empty denominator is what a scale is measured against.
    boxes = [torch.cat((rows[:, :2], rows[:, :2] + rows[:, 2:] + 1), 1) for rows in boxes]
    options = {"loss": loss, "reduction": "none", "backend": backend}
    truth = evaluate(icr.box_iou_loss, *boxes, **options, eps=1e-25)
    for power in (-20, 50):
        unit = torch.tensor(2.0**-power, dtype=dtype, device=boxes[0].device)  # of parameters in pixels
        scaled = evaluate(icr.box_iou_loss, *(rows * 2.0**power for rows in boxes), **options, scale=unit, eps=1e-25)
        assert relative_l2(scaled.value, truth.value) < 1e-6
        assert relative_l2(scaled.pred * 2.0**power, truth.pred) < 1e-6


@every_backend
@every_format
@every_loss_and_penalty
def test_nan_reaches_the_gradient_of_the_prediction(loss, penalty, box_format, backend):
    """Wherever it is, in boxes that overlap and in boxes far apart: a GradScaler must not take the step."""
    places = list(itertools.product(range(3), ([0], [1], [2], [3], [0, 1, 2, 3])))
    boxes = [torch.tensor(corners).float().repeat_interleave(len(places), 0) for corners in OVERLAPPING_AND_APART]
    boxes = [to_format(rows, box_format).to(device_of(backend)) for rows in boxes]
    for row, (number, coordinates) in enumerate(places):
        boxes[number][row :: len(places), coordinates] = float("nan")
    options = {"loss": loss, "penalty": penalty, "box_format": box_format, "reduction": "none", "backend": backend}
    result = evaluate(icr.icr_loss, *boxes, **options)
    assert result.value.isnan().all()
    assert result.pred.isnan().any(1).all(), result.pred.isnan().any(1).tolist()


@every_backend
@half_precision
def test_nan_in_half_precision_reaches_the_gradient(dtype, backend):
    boxes = [torch.tensor(corners).to(device_of(backend), dtype) for corners in OVERLAPPING_AND_APART]
    for number in range(3):
        spoiled = [rows.clone() for rows in boxes]
        spoiled[number][:, 1] = float("nan")
        result = evaluate(icr.icr_loss, *spoiled, penalty="containment+pull", reduction="none", backend=backend)
        assert result.value.isnan().all() and result.pred.isnan().any(1).all(), number


def extreme_numbers(dtype: torch.dtype) -> list[float]:
    info = torch.finfo(dtype)
    ordinary = [0.0, -0.0, 1.0, -1.0, 0.1, 3.0, 100.5, -77.0]
    tiny = [1e-30, -1e-30, 2e-20, 1e-7, info.tiny, -info.tiny, info.smallest_normal / 2, info.eps, 1 + info.eps]
    huge = [1e18, -1e18, 0.9e18, -0.7e18, 1e17, 6e4, -6e4, 1e30, -1e30, info.max, -info.max]
    return ordinary + tiny + [x for x in huge if abs(x) <= info.max]


def assert_finite_and_in_range(boxes: list[Tensor], loss: str, penalty: str, backend: str, **options) -> None:
    terms = icr.icr_terms(*boxes, loss=loss, penalty=penalty, backend=backend, **options)
    low, high = value_range(LOSSES, loss)
    if loss == "mpdiou":  # its range is that of boxes in the image
        high = math.inf
    penalty_low, penalty_high = value_range(PENALTIES, penalty)
    slack = 1e-4
    for name, term, least, most in (
        ("loss", terms.loss - terms.penalty, low, high),
        ("iou", terms.iou, 0, 1),
        ("containment", terms.containment, 0, 1),
        ("penalty", terms.penalty, penalty_low, penalty_high),
    ):
        bad = ~((term >= least - slack) & (term <= most + slack))
        assert not bad.any(), (
            f"{name} = {term[bad][0]} outside [{least}, {most}] for {[rows[bad][0].tolist() for rows in boxes]}"
        )
    result = evaluate(icr.icr_loss, *boxes, loss=loss, penalty=penalty, reduction="none", backend=backend, **options)
    in_half = boxes[0].dtype in HALF_DTYPES
    if in_half:
        wide = [rows.float() for rows in boxes]
        truth = evaluate(icr.icr_loss, *wide, loss=loss, penalty=penalty, reduction="none", backend=backend, **options)
    for name in BOXES:
        gradient = getattr(result, name)
        if in_half:
            assert torch.equal(gradient, getattr(truth, name).to(gradient.dtype)), f"{name}: not the gradient rounded"
            gradient = getattr(truth, name)
        bad = ~gradient.isfinite().all(1)
        assert not bad.any(), (
            f"gradient of {name} = {gradient[bad][0].tolist()} for {[rows[bad][0].tolist() for rows in boxes]}"
        )


@every_backend
@every_dtype
@pytest.mark.parametrize(
    ("loss", "penalty", "box_format"),
    [(*formula, "xyxy") for formula in LOSSES_AND_PENALTIES]
    + [(loss, "pull", box_format) for loss in SOME_LOSSES for box_format in ("cxcywh", "xywh")],
)
def test_every_finite_box_has_a_finite_loss_and_gradient(loss, penalty, box_format, dtype, backend):
    numbers = torch.tensor(extreme_numbers(dtype), dtype=torch.float64).to(dtype)
    generator = torch.Generator().manual_seed(11)
    boxes = [numbers[torch.randint(len(numbers), (1200, 4), generator=generator)] for _ in range(3)]
    # Half of the rows from few numbers: equal coordinates and equal boxes.
    few = numbers[torch.randint(len(numbers), (1200, 1, 2), generator=generator)]
    for rows in boxes:
        choice = torch.randint(2, (600, 4), generator=generator)
        rows[:600] = few[:600].expand(600, 4, 2).gather(2, choice.unsqueeze(-1)).squeeze(-1)
    boxes = [rows.to(device_of(backend)) for rows in boxes]
    assert_finite_and_in_range(boxes, loss, penalty, backend, box_format=box_format)


@every_backend
@full_precision
@every_modified_loss
def test_every_finite_box_has_a_finite_modified_loss_and_gradient(modified, dtype, backend):
    """In whatever unit the boxes are."""
    device = device_of(backend)
    numbers = torch.tensor(extreme_numbers(dtype), dtype=torch.float64).to(dtype)
    generator = torch.Generator().manual_seed(12)
    boxes = [numbers[torch.randint(len(numbers), (600, 4), generator=generator)].to(device) for _ in range(2)]
    options = {"loss": modified, "reduction": "none", "backend": backend}
    if modified.wise:
        options["wise_mean"] = torch.tensor(0.4, dtype=dtype, device=device)
    for scale in (1e-3, torch.logspace(-4, 4, 600, dtype=dtype, device=device)):
        result = evaluate(icr.box_iou_loss, *boxes, scale=scale, **options)
        for name in ("value", "pred", "target"):
            found = getattr(result, name)
            bad = ~found.isfinite() if name == "value" else ~found.isfinite().all(1)
            assert not bad.any(), f"{name}: {[rows[bad][0].tolist() for rows in boxes]}"


@every_quick_compiled_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=dtype_id)
@some_losses
def test_any_finite_numbers_have_a_finite_loss_and_gradient(loss, dtype, backend):
    limit = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max)
    number = st.floats(-limit, limit, width=64 if dtype == torch.float64 else 32)

    @given(st.lists(st.lists(number, min_size=12, max_size=12), min_size=1, max_size=6))
    def holds(rows):
        boxes = torch.tensor(rows, dtype=torch.float64).to(dtype).view(-1, 3, 4).to(device_of(backend))
        assert_finite_and_in_range(list(boxes.unbind(1)), loss, "containment+pull", backend)

    holds()


@every_backend
def test_gradient_in_half_precision_overflows(backend):
    """A normalised prediction of side 0.0002 inside a target of side 0.0004: d(1 - |P|/|G|) by an edge is about
    0.0002/0.0004**2 = 1250, times a weight of 1000 beyond 65504. A GradScaler has to see that."""
    device, infinity = device_of(backend), float("inf")
    pred = box(0, 0, 2e-4, 2e-4, dtype=torch.float16, device=device)
    target = box(-1e-4, -1e-4, 3e-4, 3e-4, dtype=torch.float16, device=device)
    for sign in (1, -1):
        weights = torch.tensor([sign * 1e3], device=device)
        options = {"loss": "iou", "weight": weights, "reduction": "sum", "backend": backend}
        beyond = [[sign * infinity, sign * infinity, -sign * infinity, -sign * infinity]]
        assert icr.icr_loss_and_grad(pred, target, **options)[1].tolist() == beyond
        assert evaluate(icr.icr_loss, pred, target, None, **options).pred.tolist() == beyond


@every_backend
@every_loss_and_penalty
def test_values_of_degenerate_boxes_are_the_reference_s(loss, penalty, backend):
    """In double precision, all of them in one call: empty, inverted, equal, touching, long and thin. From numbers whose
    sums are exact, and with an eps below all that are not 0: a division by 1e-7 would magnify their rounding errors."""
    numbers = torch.tensor([0, 1, 2.5, -3, 1024, 0.125], dtype=torch.float64)
    generator = torch.Generator().manual_seed(13)
    boxes = [numbers[torch.randint(len(numbers), (800, 4), generator=generator)] for _ in range(3)]
    options = {"loss": loss, "penalty": penalty, "eps": 0.01, "reduction": "none"}
    boxes = [rows.to(device_of(backend)) for rows in boxes]
    assert_result(evaluate(icr.icr_loss, *boxes, backend=backend, **options), expected(*boxes, **options))
