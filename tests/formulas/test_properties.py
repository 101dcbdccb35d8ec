"""What holds for any boxes: identity, symmetry, invariance, ranges, and what grows when boxes move."""

import itertools

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import icr_kernels as icr
from icr_kernels.variants import DISTANCES, LOSS_NAMES, LOSSES, PENALTIES
from inputs import (
    INTERPRETED,
    RESTING,
    device_of,
    every_loss,
    every_loss_and_penalty,
    every_penalty,
    every_quick_backend,
    value_range,
)
from oracle import BOXES, Result, evaluate

# Losses in which prediction and target are interchangeable.
SYMMETRIC = ("iou", "giou", "diou", "ciou", "eiou", "siou")

coordinate = st.floats(-100, 100, allow_subnormal=False)
side = st.floats(0.01, 100)


@st.composite
def boxes(draw) -> list[float]:
    x, y = draw(coordinate), draw(coordinate)
    return [x, y, x + draw(side), y + draw(side)]


# Multiples of 1/8: sums, products and comparisons of them are exact.
eighth = st.integers(0, 80).map(lambda k: k / 8)


@st.composite
def grid_boxes(draw) -> list[float]:
    x, y = draw(eighth), draw(eighth)
    return [x, y, x + draw(eighth.filter(bool)), y + draw(eighth.filter(bool))]


def tensors(backend: str, *rows: list[float]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor([row], dtype=torch.float64, device=device_of(backend)) for row in rows)


def result_of(backend: str, *rows: list[float], **options) -> Result:
    boxes = (*tensors(backend, *rows), None)[:3]
    return evaluate(icr.icr_loss, *boxes, reduction="sum", backend=backend, **options)


def loss_of(backend: str, pred: list[float], target: list[float], **options) -> float:
    return icr.box_iou_loss(*tensors(backend, pred, target), backend=backend, **options).item()


def penalty_of(backend: str, plate: list[float], car: list[float], **options) -> float:
    return icr.icr_terms(*tensors(backend, plate, plate, car), backend=backend, **options).penalty.item()


@pytest.mark.parametrize(("loss", "backend"), [each for each in RESTING if each[1] not in INTERPRETED])
def test_identity(loss, backend):
    @given(boxes())
    def holds(b):
        result = result_of(backend, b, b, loss=loss)
        assert result.value == 0
        assert not result.pred.any() and not result.target.any()

    holds()


@every_quick_backend
@pytest.mark.parametrize("loss", SYMMETRIC)
def test_symmetry(loss, backend):
    """Loss of (P, G) is loss of (G, P), and the gradient by P of the one is the gradient by G of the other."""

    @given(boxes(), boxes())
    def holds(p, g):
        one, other = result_of(backend, p, g, loss=loss), result_of(backend, g, p, loss=loss)
        assert one.value.item() == pytest.approx(other.value.item(), abs=1e-12)
        assert one.pred[0].tolist() == pytest.approx(other.target[0].tolist(), rel=1e-9, abs=1e-11)
        assert one.target[0].tolist() == pytest.approx(other.pred[0].tolist(), rel=1e-9, abs=1e-11)

    holds()


@every_quick_backend
@every_loss_and_penalty
def test_mirrored_and_turned_boxes(loss, penalty, backend):
    """x and y may change places, and x may be mirrored: the same loss, the gradients change with them."""

    def turned(b):
        return [b[1], b[0], b[3], b[2]]

    def mirrored(b):
        return [-b[2], b[1], -b[0], b[3]]

    @given(grid_boxes(), grid_boxes(), grid_boxes())
    def holds(p, g, a):
        result = result_of(backend, p, g, a, loss=loss, penalty=penalty)
        for change, back in ((turned, turned), (mirrored, mirrored)):
            other = result_of(backend, change(p), change(g), change(a), loss=loss, penalty=penalty)
            assert other.value.item() == pytest.approx(result.value.item(), abs=1e-12)
            for name in BOXES:
                expected = back(getattr(result, name)[0].tolist())
                assert getattr(other, name)[0].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-11), name

    holds()


@every_quick_backend
@every_loss_and_penalty
def test_shift(loss, penalty, backend):
    """A common shift changes nothing: so the gradients by all x coordinates sum to 0, and those by all y."""

    @given(grid_boxes(), grid_boxes(), grid_boxes(), st.integers(-4000, 4000), st.integers(-4000, 4000))
    def holds(p, g, a, x, y):
        result = result_of(backend, p, g, a, loss=loss, penalty=penalty)
        shifted = ([b[0] + x, b[1] + y, b[2] + x, b[3] + y] for b in (p, g, a))
        other = result_of(backend, *shifted, loss=loss, penalty=penalty)
        assert other.value.item() == pytest.approx(result.value.item(), abs=1e-12)
        gradients = torch.cat([getattr(result, name) for name in BOXES])
        largest = gradients.abs().max().item()
        assert gradients[:, 0::2].sum().item() == pytest.approx(0, abs=1e-12 + 1e-12 * largest)
        assert gradients[:, 1::2].sum().item() == pytest.approx(0, abs=1e-12 + 1e-12 * largest)

    holds()


@every_quick_backend
@every_loss_and_penalty
def test_scale(loss, penalty, backend):
    """A common scale changes nothing either, once eps is out of the way; gradients shrink as boxes grow."""

    @given(grid_boxes(), grid_boxes(), grid_boxes(), st.integers(-10, 20))
    def holds(p, g, a, power):
        scale, options = 2.0**power, {"loss": loss, "penalty": penalty, "eps": 1e-20}
        result = result_of(backend, p, g, a, **options)
        # Parameters in pixels keep their meaning.
        other = result_of(backend, *([scale * x for x in b] for b in (p, g, a)), scale=1 / scale, **options)
        assert other.value.item() == pytest.approx(result.value.item(), abs=1e-12)
        for name in BOXES:
            expected = (getattr(result, name)[0] / scale).tolist()
            assert getattr(other, name)[0].tolist() == pytest.approx(expected, rel=1e-10, abs=1e-12 / scale), name

    holds()


@every_quick_backend
@pytest.mark.parametrize(
    ("loss", "penalty"),
    [(loss, "containment") for loss in LOSS_NAMES if loss not in ("mpdiou", "nwd", "wiou")]
    + [("iou", "inverse"), ("iou", "log")],
)
def test_gradient_along_the_boxes_themselves_is_0(loss, penalty, backend):
    """Euler: what does not change with a common scale has sum(x dF/dx) = 0. (Pull holds its sides constant and wiou the
    diagonal, so their gradients do not; mpdiou and nwd have a unit.)"""

    @given(grid_boxes(), grid_boxes(), grid_boxes())
    def holds(p, g, a):
        result = result_of(backend, p, g, a, loss=loss, penalty=penalty, eps=1e-20)
        coordinates = torch.cat(tensors(backend, p, g, a))
        products = coordinates * torch.cat([getattr(result, name) for name in BOXES])
        assert products.sum().item() == pytest.approx(0, abs=1e-11 * (1 + products.abs().max().item()))

    holds()


@every_quick_backend
@every_loss
def test_loss_is_in_the_range_that_the_registry_states(loss, backend):
    low, high = value_range(LOSSES, loss)

    @given(boxes(), boxes())
    def holds(p, g):
        assert low - 1e-12 <= loss_of(backend, p, g, loss=loss) <= high + 1e-12

    holds()


@every_quick_backend
@every_penalty
def test_penalty_is_in_the_range_that_the_registry_states(penalty, backend):
    low, high = value_range(PENALTIES, penalty)

    @given(boxes(), boxes())
    def holds(p, a):
        assert low - 1e-12 <= penalty_of(backend, p, a, penalty=penalty) <= high + 1e-12

    holds()


@every_quick_backend
@every_loss
def test_range_is_reached(loss, backend):
    """A bound far above all that boxes reach would make the range say nothing. Small and far away, thin and across."""
    _, high = value_range(LOSSES, loss)
    far = loss_of(backend, [0, 0, 1e-3, 1e-3], [1e3, 1e3, 1e3 + 1, 1e3 + 1], loss=loss)
    others = [
        loss_of(backend, [0, 0, 1e-3, 1], [1e3, 1e-3, 2e3, 2e-3], loss=loss),
        loss_of(backend, [0, 0.4999, 1e3, 0.5001], [999.999, 0, 1000.001, 1], loss=loss),
        loss_of(backend, [0, 0, 1e-6, 1e-6], [1, 1, 2, 2], loss=loss),
    ]
    # piou2 pays most attention to boxes of middling quality.
    near = loss_of(backend, [0, 0, 1, 1], [2, 0, 3, 1], loss=loss)
    assert max(far, near, *others) > 0.6 * high


@every_quick_backend
def test_containment_is_1_exactly_inside(backend):
    @given(grid_boxes(), grid_boxes())
    def holds(p, a):
        contained = icr.icr_terms(*tensors(backend, p, p, a), backend=backend).containment.item()
        inside = a[0] <= p[0] and a[1] <= p[1] and p[2] <= a[2] and p[3] <= a[3]
        disjoint = p[2] <= a[0] or a[2] <= p[0] or p[3] <= a[1] or a[3] <= p[1]
        assert (contained == 1) == inside
        assert (contained == 0) == disjoint

    holds()


@every_quick_backend
@every_penalty
def test_penalty_is_0_inside_with_no_gradient(penalty, backend):
    share = st.floats(0.01, 0.98)

    @given(boxes(), share, share, share, share)
    def holds(a, x, y, w, h):
        # A plate at a share of its car's sides, with a share of what is left of them.
        x1, y1 = a[0] + x * (a[2] - a[0]), a[1] + y * (a[3] - a[1])
        x2, y2 = x1 + w * (a[2] - x1), y1 + h * (a[3] - y1)
        assume(a[0] < x1 < x2 < a[2] and a[1] < y1 < y2 < a[3])
        assume((x2 - x1) * (y2 - y1) > 1e-6)
        plate, car = (rows.requires_grad_() for rows in tensors(backend, [x1, y1, x2, y2], a))
        terms = icr.icr_terms(plate, plate.detach(), car, penalty=penalty, backend=backend)
        assert terms.penalty.item() == 0 and terms.containment.item() == 1
        for gradient in torch.autograd.grad(terms.penalty, (plate, car), torch.ones_like(terms.penalty)):
            assert not gradient.any()

    holds()


@every_quick_backend
@every_penalty
def test_penalty_does_not_fall_while_a_plate_leaves_its_car(penalty, backend):
    """Along x, from inside to far outside."""

    @given(st.floats(0.5, 20), st.floats(0, 5), st.lists(st.floats(0, 200), min_size=2, max_size=8))
    def holds(w, y, places):
        values = [penalty_of(backend, [x, y, x + w, y + 2], [-30, 0, 20, 6], penalty=penalty) for x in sorted(places)]
        assert all(b >= a - 1e-12 for a, b in itertools.pairwise(values))

    holds()


@every_quick_backend
@pytest.mark.parametrize("penalty", ["pull", "containment+pull"])
def test_pull_rises_for_as_long_as_a_plate_moves_away(penalty, backend):
    values = [penalty_of(backend, [x, 1, x + 4, 2], [0, 0, 20, 6], penalty=penalty) for x in range(17, 400)]
    assert all(b > a for a, b in itertools.pairwise(values))


@every_quick_backend
@every_loss
def test_loss_rises_while_equal_boxes_part(loss, backend):
    """By steps along x, overlapping at first and disjoint later; iou stays at 1 from there."""
    values = [loss_of(backend, [x, 0, x + 8, 6], [0, 0, 8, 6], loss=loss) for x in range(0, 40, 2)]
    overlapping, disjoint = values[:5], values[4:]
    assert all(b > a for a, b in itertools.pairwise(overlapping))
    if loss in ("iou", "alpha_iou"):
        assert set(disjoint) == {1.0}
    elif loss != "piou2":  # which turns away from boxes that are far off
        assert all(b > a for a, b in itertools.pairwise(disjoint))


@every_quick_backend
@pytest.mark.parametrize("loss", [loss for loss in LOSS_NAMES if loss not in ("piou2", "sd", *DISTANCES)])
def test_iou_similarity_bounds_losses(loss, backend):
    """But for those that weigh it, and those without, a loss is 1 - IoU or more plus terms that are not negative."""

    @given(boxes(), boxes())
    def holds(p, g):
        terms = icr.icr_terms(*tensors(backend, p, g), None, loss=loss, backend=backend)
        assert terms.loss.item() >= 1 - terms.iou.item() - 1e-12
        assert terms.iou.item() == pytest.approx(1 - loss_of(backend, p, g, loss="iou"), abs=1e-12)

    holds()


@every_quick_backend
@every_loss_and_penalty
def test_loss_is_box_loss_plus_weighted_penalty(loss, penalty, backend):
    @given(boxes(), boxes(), boxes(), st.floats(-3, 3))
    def holds(p, g, a, weight):
        options = {"loss": loss, "penalty": penalty, "backend": backend}
        terms = icr.icr_terms(*tensors(backend, p, g, a), penalty_weight=weight, **options)
        expected = loss_of(backend, p, g, loss=loss) + weight * penalty_of(backend, p, a, penalty=penalty)
        assert terms.loss.item() == pytest.approx(expected, abs=1e-11)

    holds()


@every_quick_backend
@every_penalty
def test_relative_penalty_lies_between_0_and_the_penalty(penalty, backend):
    @given(boxes(), boxes(), boxes())
    def holds(p, g, a):
        options = {"penalty": penalty, "backend": backend}
        relative = icr.icr_terms(*tensors(backend, p, g, a), relative=True, **options).penalty.item()
        excess = penalty_of(backend, p, a, penalty=penalty) - penalty_of(backend, g, a, penalty=penalty)
        assert relative == pytest.approx(max(excess, 0), abs=1e-12)

    holds()


@every_quick_backend
@every_loss
def test_descent_brings_a_prediction_to_its_target(loss, backend):
    """The gradient points the right way: a few hundred small steps from an overlapping box halve the loss twice."""
    pred = torch.tensor([[3.0, 2.0, 9.0, 9.0]], dtype=torch.float64, device=device_of(backend))
    target = torch.tensor([[1.0, 4.0, 8.0, 8.0]], dtype=torch.float64, device=pred.device)
    start, rate = icr.box_iou_loss(pred, target, loss=loss, backend=backend).item(), 2.0
    for _ in range(300):
        value, gradient = icr.icr_loss_and_grad(pred, target, loss=loss, backend=backend)
        pred = pred - rate * gradient
        rate *= 0.99
    assert value.item() < start / 4
