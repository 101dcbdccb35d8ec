"""What the package is built on, one fact per test: when each penalty has a gradient, and what it does to a plate."""

from math import log

import pytest
import torch

import icr_kernels as icr
from golden_scenes import PLATES_AND_CARS
from inputs import (
    box,
    device_of,
    every_backend,
    every_penalty,
    every_quick_backend,
)

# What the package is built on, one fact per test.


def penalty_and_gradient(plate, car, penalty, backend, **options):
    device = device_of(backend)
    plate = box(*plate, device=device).requires_grad_()
    value = icr.icr_terms(
        plate, plate.detach(), box(*car, device=device), penalty=penalty, backend=backend, **options
    ).penalty
    (gradient,) = torch.autograd.grad(value.sum(), plate)
    return value.item(), gradient[0].tolist()


@every_backend
@pytest.mark.parametrize("penalty", ["containment", "inverse", "log"])
def test_overlap_has_no_gradient_once_disjoint(penalty, backend):
    value, gradient = penalty_and_gradient((-40, -30, -38, -29), (0, 0, 10, 5), penalty, backend)
    assert value > 0
    assert gradient == [0, 0, 0, 0]


@every_backend
@pytest.mark.parametrize("penalty", ["pull", "containment+pull"])
def test_pull_has_a_gradient_however_far_the_plate_is(penalty, backend):
    _, (x1, y1, x2, y2) = penalty_and_gradient((-4000, -3000, -3998, -2999), (0, 0, 10, 5), penalty, backend)
    assert x1 == x2 < 0, "towards the car, which is to the right"
    assert y1 == y2 < 0, "and below"


@every_backend
@pytest.mark.parametrize("penalty", ["containment", "inverse", "log"])
@pytest.mark.parametrize(
    ("inside", "width_of_a_step"), [(0.75, "shrinks"), (0.5, "keeps"), (0.25, "grows")], ids=["more", "half", "less"]
)
def test_overlap_shrinks_a_plate_more_than_half_inside_and_grows_one_less(inside, width_of_a_step, penalty, backend):
    """A descent step changes the width by -(g_x2 - g_x1), in proportion to w - 2 I/h."""
    _, (x1, _, x2, _) = penalty_and_gradient((-4 * (1 - inside), 1, 4 * inside, 2), (0, 0, 10, 5), penalty, backend)
    growth = x1 - x2
    assert {"shrinks": growth < -1e-3, "keeps": abs(growth) < 1e-12, "grows": growth > 1e-3}[width_of_a_step]
    assert -x1 > 0, "the outer edge moves inwards in every case"
    assert -x2 > 0, "and so does the inner one"


@every_quick_backend
def test_pull_brings_a_plate_into_its_car_without_resizing_it(backend):
    plate, car = torch.tensor([-9.0, 7.0, -7.0, 8.0], dtype=torch.float64), (0, 0, 10, 5)
    for _ in range(400):
        value, gradient = penalty_and_gradient(plate.tolist(), car, "pull", backend)
        if value == 0:
            break
        plate -= 4 * torch.tensor(gradient, dtype=torch.float64)
    x1, y1, x2, y2 = plate.tolist()
    assert value == 0 and x1 >= 0 and y2 <= 5
    assert (x2 - x1, y2 - y1) == pytest.approx((2, 1), abs=1e-12)


@every_backend
@every_penalty
def test_relative_keeps_the_optimum_at_a_label_that_sticks_out_of_its_car(penalty, backend):
    label, car = (-1, 1, 1, 2), (0, 0, 10, 5)
    absolute, pushed = penalty_and_gradient(label, car, penalty, backend)
    assert absolute > 0 and any(pushed), "without relative=True the penalty pushes a perfect prediction off its label"
    assert penalty_and_gradient(label, car, penalty, backend, relative=True) == (0, [0, 0, 0, 0])


@every_backend
@every_penalty
def test_relative_is_what_exceeds_the_penalty_of_the_label(penalty, backend):
    """Prediction: half outside. Label: over the corner, and so with the larger penalty; then the other way round."""
    device = device_of(backend)
    half, corner = PLATES_AND_CARS[1], PLATES_AND_CARS[2]
    excess = corner.penalties[penalty] - half.penalties[penalty]
    half_box, corner_box = box(-1, 1, 1, 2, device=device), box(-1, -1, 1, 1, device=device)
    car = box(0, 0, 10, 10, device=device)
    options = {"penalty": penalty, "relative": True, "backend": backend}
    assert icr.icr_terms(half_box, corner_box, car, **options).penalty.item() == 0
    assert icr.icr_terms(corner_box, half_box, car, **options).penalty.item() == pytest.approx(excess, abs=1e-12)


@every_backend
@pytest.mark.parametrize(
    ("penalty", "clamp", "largest"), [("inverse", 0.1, 9), ("log", 0.01, log(100))], ids=["inverse", "log"]
)
def test_clamp_bounds_the_penalty_and_its_gradient(penalty, clamp, largest, backend):
    """With 1% less than the clamp inside: the largest value and no gradient; with 1% more: less, and a gradient."""

    def plate_with(share: float):
        return penalty_and_gradient((share * 100 - 100, 1, share * 100, 2), (0, 0, 200, 5), penalty, backend)

    value, gradient = plate_with(clamp * 0.99)
    assert value == pytest.approx(largest, abs=1e-12) and gradient == [0, 0, 0, 0]
    value, gradient = plate_with(clamp * 1.01)
    assert 0 < value < largest
    # d pen/ds times ds/dx1 = s/w: -1/s2 and -1/s.
    slope = {"inverse": -1 / (clamp * 1.01), "log": -1.0}[penalty]
    assert gradient[0] == pytest.approx(slope / 100, rel=1e-9)


@every_backend
def test_small_normalised_boxes_are_not_biased_by_eps(backend):
    """A square of side 0.001 of the image, shifted by a tenth of its side along both axes: I = 0.81, U = 1.19, C = 1.21
    of its area. Adding 1e-7 to the denominators instead of guarding them would give 0.39."""
    device, exact = device_of(backend), 1 - 0.81 / 1.19 + (1.21 - 1.19) / 1.21
    side = 1e-3
    pred = box(0.5, 0.5, 0.5 + side, 0.5 + side, device=device)
    value = icr.box_iou_loss(pred, pred + side / 10, loss="giou", backend=backend)
    assert value.item() == pytest.approx(exact, abs=1e-9)
