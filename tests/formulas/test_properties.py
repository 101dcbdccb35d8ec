"""What holds for any boxes: identity, symmetry, invariance, ranges, and what grows when boxes move."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import icr_kernels as icr
from icr_kernels.variants import DISTANCES, LOSS_NAMES, LOSSES, PENALTIES
from inputs import (
    INTERPRETED,
    RESTING,
    crowd,
    device_of,
    every_loss,
    every_loss_and_penalty,
    every_penalty,
    every_quick_backend,
    value_range,
)
from oracle import Result, evaluate

# Losses in which prediction and target are interchangeable.
SYMMETRIC = ("iou", "giou", "diou", "ciou", "eiou", "siou")


def uniform(seed: int, low: float, high: float, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def between(places: Tensor, seed: int) -> Tensor:
    """Boxes (3, n, 4) whose sides end at the few ``places`` of their row, (n, 2, k): many share edges, touch or are
    equal."""
    ends = uniform(seed, 0, 1, 3, *places.shape).argsort(-1)[..., :2].sort(-1).values
    return places.expand(3, -1, -1, -1).gather(-1, ends).mT.flatten(-2)


# Predictions, targets and anchor objects (3, n, 4) of several kinds: ordinary ones; such that share edges, with sides
# from 0.01 to 90; the same on a grid; and each inside the one before.
CROWD = torch.stack([crowd(150, seed, torch.float64) for seed in range(3)])
GAPS = uniform(3, math.log(0.01), math.log(30), 150, 2, 4).exp()
SHARING = between(uniform(4, -100, 100, 150, 2, 1) + GAPS.cumsum(-1), 5)
EIGHTHS = between(uniform(6, 1, 41, 150, 2, 4).floor().cumsum(-1) / 8, 7)
WHOLE = between(torch.arange(-1, 3, dtype=torch.float64).expand(150, 2, 4), 8)
STEPS = uniform(9, 1, 17, 50, 2, 6).floor().cumsum(-1) / 8
NESTED = torch.stack([torch.cat((STEPS[..., i], STEPS[..., 5 - i]), 1) for i in range(3)])
# Flipped, each is inside the one after.
ANY = torch.cat((CROWD, SHARING, WHOLE, NESTED, NESTED.flip(0)), 1)
# Multiples of 1/8: sums, products and comparisons of them are exact.
GRID = torch.cat(((8 * CROWD).round() / 8, EIGHTHS, WHOLE, NESTED, NESTED.flip(0)), 1)


def result_of(backend: str, *boxes: Tensor, **options) -> Result:
    """The loss of each pair and its gradients, these times a factor of each row."""
    return evaluate(icr.icr_loss, *(*boxes, None)[:3], reduction="none", backend=backend, **options)


def gradients(result: Result) -> Tensor:
    """By all three boxes, (n, 3, 4)."""
    return torch.stack((result.pred, result.target, result.anchor_objects), 1)


def loss_of(backend: str, pred: Tensor, target: Tensor, **options) -> Tensor:
    return icr.box_iou_loss(pred, target, reduction="none", backend=backend, **options)


def penalty_of(backend: str, plate: Tensor, car: Tensor, **options) -> Tensor:
    return icr.icr_terms(plate, plate, car, backend=backend, **options).penalty


def assert_rows(error: Tensor, boxes: Sequence[Tensor], **numbers: Tensor) -> None:
    """``error`` is nowhere above 0; otherwise the message has the boxes and numbers of the row where it is largest."""
    error = error.double().reshape(len(error), -1).amax(1)
    wrong = ~(error <= 0)  # a NaN too
    if wrong.any():
        worst = int(error.argmax())
        shown = {name: rows[worst].tolist() for name, rows in numbers.items()}
        raise AssertionError(
            f"{int(wrong.sum())} of {len(error)} rows are wrong, row {worst} most: "
            f"boxes {[rows[worst].tolist() for rows in boxes]}, {shown}"
        )


def assert_near(got: Tensor, expected: Tensor, boxes: Sequence[Tensor], absolute: float, relative: float = 0.0) -> None:
    allowed = (relative * expected.abs()).clamp(min=absolute)
    assert_rows((got - expected).abs() - allowed, boxes, got=got, expected=expected)


def test_boxes_meet_in_every_way():
    """Or what follows would say less than it seems to."""
    for one, other in ((boxes[0], rows) for boxes in (ANY, GRID) for rows in boxes[1:]):
        first, last = torch.maximum(one, other)[:, :2], torch.minimum(one, other)[:, 2:]
        overlap, apart = (first < last).all(1), (first > last).any(1)
        equal, shared = (one == other).all(1), (one == other).any(1)
        common = torch.cat((first, last), 1)
        ways = {
            "equal": equal,
            "with an edge in common": overlap & shared & ~equal,
            "overlapping without": overlap & ~shared,
            "inside": (common == one).all(1) & ~shared,
            "around": (common == other).all(1) & ~shared,
            "touching": ~overlap & ~apart,
            "apart": apart,
        }
        counts = {way: int(rows.sum()) for way, rows in ways.items()}
        assert min(counts.values()) >= 5, counts
    width, height = (ANY[..., 2:] - ANY[..., :2]).unbind(-1)
    for rows in (width > 300 * height, height > 300 * width, width * height < 0.01):
        assert rows.sum() >= 5


@pytest.mark.parametrize(("loss", "backend"), [each for each in RESTING if each[1] not in INTERPRETED])
def test_identity(loss, backend):
    boxes = ANY.flatten(0, 1).to(device_of(backend))
    value = loss_of(backend, boxes, boxes, loss=loss)
    # A sum's gradients are all halved: by another factor the reference would round piece by piece what cancels.
    result = evaluate(icr.icr_loss, boxes, boxes, None, loss=loss, reduction="sum", backend=backend)
    moved = torch.cat((value.unsqueeze(1), result.pred, result.target), 1).abs()
    assert_rows(moved, [boxes], value=value, pred=result.pred, target=result.target)


@every_quick_backend
@pytest.mark.parametrize("loss", SYMMETRIC)
def test_symmetry(loss, backend):
    """Loss of (P, G) is loss of (G, P), and the gradient by P of the one is the gradient by G of the other."""
    p, g, _ = ANY.to(device_of(backend))
    one, other = result_of(backend, p, g, loss=loss), result_of(backend, g, p, loss=loss)
    assert_near(one.value, other.value, (p, g), absolute=1e-12)
    assert_near(one.pred, other.target, (p, g), absolute=1e-11, relative=1e-9)
    assert_near(one.target, other.pred, (p, g), absolute=1e-11, relative=1e-9)


@every_quick_backend
@every_loss_and_penalty
def test_mirrored_and_turned_boxes(loss, penalty, backend):
    """x and y may change places, and x may be mirrored: the same loss, the gradients change with them."""

    def turned(b):
        return b[..., [1, 0, 3, 2]]

    def mirrored(b):
        return b[..., [2, 1, 0, 3]] * b.new_tensor([-1, 1, -1, 1])

    boxes = GRID.to(device_of(backend))
    result = result_of(backend, *boxes, loss=loss, penalty=penalty)
    for change in (turned, mirrored):  # each undoes itself
        other = result_of(backend, *change(boxes), loss=loss, penalty=penalty)
        assert_near(other.value, result.value, boxes, absolute=1e-12)
        assert_near(change(gradients(other)), gradients(result), boxes, absolute=1e-11, relative=1e-9)


@every_quick_backend
@every_loss_and_penalty
def test_shift(loss, penalty, backend):
    """A common shift changes nothing: so the gradients by all x coordinates sum to 0, and those by all y."""
    boxes = GRID.to(device_of(backend))
    shift = uniform(14, -4000, 4000, GRID.shape[1], 2).round().repeat(1, 2).to(boxes.device)
    result = result_of(backend, *boxes, loss=loss, penalty=penalty)
    other = result_of(backend, *(boxes + shift), loss=loss, penalty=penalty)
    assert_near(other.value, result.value, boxes, absolute=1e-12)
    by_axis = gradients(result).unflatten(2, (2, 2)).sum((1, 2))
    largest = gradients(result).abs().amax((1, 2))
    assert_rows(by_axis.abs().amax(1) - 1e-12 - 1e-12 * largest, boxes, sums=by_axis, gradients=gradients(result))


@every_quick_backend
@every_loss_and_penalty
def test_scale(loss, penalty, backend):
    """A common scale changes nothing either, once eps is out of the way; gradients shrink as boxes grow."""
    boxes, options = GRID.to(device_of(backend)), {"loss": loss, "penalty": penalty, "eps": 1e-20}
    result = result_of(backend, *boxes, **options)
    for scale in (2.0**-10, 2.0, 2.0**20):
        # Parameters in pixels keep their meaning.
        other = result_of(backend, *(scale * boxes), scale=1 / scale, **options)
        assert_near(other.value, result.value, boxes, absolute=1e-12)
        expected = gradients(result) / scale
        assert_near(gradients(other), expected, boxes, absolute=1e-12 / scale, relative=1e-10)


@every_quick_backend
@pytest.mark.parametrize(
    ("loss", "penalty"),
    [(loss, "containment") for loss in LOSS_NAMES if loss not in ("mpdiou", "nwd", "wiou")]
    + [("iou", "inverse"), ("iou", "log")],
)
def test_gradient_along_the_boxes_themselves_is_0(loss, penalty, backend):
    """Euler: what does not change with a common scale has sum(x dF/dx) = 0. (Pull holds its sides constant and wiou the
    diagonal, so their gradients do not; mpdiou and nwd have a unit.)"""
    boxes = GRID.to(device_of(backend))
    result = result_of(backend, *boxes, loss=loss, penalty=penalty, eps=1e-20)
    products = boxes.transpose(0, 1) * gradients(result)
    total, largest = products.sum((1, 2)), products.abs().amax((1, 2))
    assert_rows(total.abs() - 1e-11 * (1 + largest), boxes, total=total, products=products)


@every_quick_backend
@every_loss
def test_loss_is_in_the_range_that_the_registry_states(loss, backend):
    low, high = value_range(LOSSES, loss)
    p, g, _ = ANY.to(device_of(backend))
    values = loss_of(backend, p, g, loss=loss)
    assert_rows(torch.maximum(low - values, values - high) - 1e-12, (p, g), loss=values)


@every_quick_backend
@every_penalty
def test_penalty_is_in_the_range_that_the_registry_states(penalty, backend):
    low, high = value_range(PENALTIES, penalty)
    p, _, a = ANY.to(device_of(backend))
    values = penalty_of(backend, p, a, penalty=penalty)
    assert_rows(torch.maximum(low - values, values - high) - 1e-12, (p, a), penalty=values)


@every_quick_backend
@every_loss
def test_range_is_reached(loss, backend):
    """A bound far above all that boxes reach would make the range say nothing. Small and far away, thin and across."""
    pairs = [
        ([0, 0, 1e-3, 1e-3], [1e3, 1e3, 1e3 + 1, 1e3 + 1]),
        ([0, 0, 1e-3, 1], [1e3, 1e-3, 2e3, 2e-3]),
        ([0, 0.4999, 1e3, 0.5001], [999.999, 0, 1000.001, 1]),
        ([0, 0, 1e-6, 1e-6], [1, 1, 2, 2]),
        # piou2 pays most attention to boxes of middling quality.
        ([0, 0, 1, 1], [2, 0, 3, 1]),
    ]
    p, g = torch.tensor(pairs, dtype=torch.float64, device=device_of(backend)).unbind(1)
    values = loss_of(backend, p, g, loss=loss)
    assert values.max() > 0.6 * value_range(LOSSES, loss)[1], values.tolist()


@every_quick_backend
def test_containment_is_1_exactly_inside(backend):
    p, _, a = GRID.to(device_of(backend))
    contained = icr.icr_terms(p, p, a, backend=backend).containment
    inside = (a[:, :2] <= p[:, :2]).all(1) & (p[:, 2:] <= a[:, 2:]).all(1)
    disjoint = ((p[:, 2:] <= a[:, :2]) | (a[:, 2:] <= p[:, :2])).any(1)
    wrong = ((contained == 1) != inside) | ((contained == 0) != disjoint)
    assert_rows(wrong, (p, a), contained=contained, inside=inside, disjoint=disjoint)


@every_quick_backend
@every_penalty
def test_penalty_is_0_inside_with_no_gradient(penalty, backend):
    car = ANY[0]
    # A plate at a share of its car's sides, with a share of what is left of them.
    place, share = uniform(10, 0.01, 0.98, len(car), 4).chunk(2, 1)
    first = car[:, :2] + place * (car[:, 2:] - car[:, :2])
    last = first + share * (car[:, 2:] - first)
    inside = (car[:, :2] < first).all(1) & (first < last).all(1) & (last < car[:, 2:]).all(1)
    chosen = inside & ((last - first).prod(1) > 1e-6)
    assert chosen.sum() > 500
    device = device_of(backend)
    plate, car = (rows[chosen].to(device).requires_grad_() for rows in (torch.cat((first, last), 1), car))
    terms = icr.icr_terms(plate, plate.detach(), car, penalty=penalty, backend=backend)
    by_plate, by_car = torch.autograd.grad(terms.penalty.sum(), (plate, car))
    off = torch.stack((terms.penalty, terms.containment - 1), 1)
    moved = torch.cat((off, by_plate, by_car), 1).abs()
    assert_rows(moved, (plate, car), penalty=terms.penalty, containment=terms.containment)


@every_quick_backend
@every_penalty
def test_penalty_does_not_fall_while_a_plate_leaves_its_car(penalty, backend):
    """Along x, from inside to far outside."""
    width, y = uniform(11, 0.5, 20, 60, 1), uniform(12, 0, 5, 60, 1)
    x = 200 * uniform(13, 0, 1, 60, 10) ** 3  # most places are near the car
    for rows in (width, y, x):
        rows[::2] = rows[::2].ceil()  # where edges meet
    x = x.sort(1).values
    plate = torch.stack(torch.broadcast_tensors(x, y, x + width, y + 2), -1).to(device_of(backend))
    car = plate.new_tensor([-30, 0, 20, 6]).expand_as(plate)
    values = penalty_of(backend, plate, car, penalty=penalty)
    assert_rows(-values.diff(dim=1) - 1e-12, [plate], penalty=values)


@every_quick_backend
@pytest.mark.parametrize("penalty", ["pull", "containment+pull"])
def test_pull_rises_for_as_long_as_a_plate_moves_away(penalty, backend):
    x = torch.arange(17, 400, dtype=torch.float64, device=device_of(backend)).unsqueeze(1)
    plate = torch.tensor([0, 1, 4, 2], device=x.device) + x * torch.tensor([1, 0, 1, 0], device=x.device)
    values = penalty_of(backend, plate, plate.new_tensor([0, 0, 20, 6]).expand_as(plate), penalty=penalty)
    assert (values.diff() > 0).all(), values.tolist()


@every_quick_backend
@every_loss
def test_loss_rises_while_equal_boxes_part(loss, backend):
    """By steps along x, overlapping at first and disjoint later; iou stays at 1 from there."""
    target = torch.tensor([[0, 0, 8, 6]], dtype=torch.float64, device=device_of(backend)).expand(20, 4)
    steps = torch.arange(0, 40, 2, device=target.device).unsqueeze(1)
    values = loss_of(backend, target + steps * torch.tensor([1, 0, 1, 0], device=target.device), target, loss=loss)
    overlapping, disjoint = values[:5], values[4:]
    assert (overlapping.diff() > 0).all(), overlapping.tolist()
    if loss in ("iou", "alpha_iou"):
        assert (disjoint == 1).all(), disjoint.tolist()
    elif loss != "piou2":  # which turns away from boxes that are far off
        assert (disjoint.diff() > 0).all(), disjoint.tolist()


@every_quick_backend
@pytest.mark.parametrize("loss", [loss for loss in LOSS_NAMES if loss not in ("piou2", "sd", *DISTANCES)])
def test_iou_similarity_bounds_losses(loss, backend):
    """But for those that weigh it, and those without, a loss is 1 - IoU or more plus terms that are not negative."""
    p, g, _ = ANY.to(device_of(backend))
    terms = icr.icr_terms(p, g, None, loss=loss, backend=backend)
    assert_rows(1 - terms.iou - terms.loss - 1e-12, (p, g), loss=terms.loss, iou=terms.iou)
    assert_near(terms.iou, 1 - loss_of(backend, p, g, loss="iou"), (p, g), absolute=1e-12)


@every_quick_backend
@every_loss_and_penalty
def test_loss_is_box_loss_plus_weighted_penalty(loss, penalty, backend):
    boxes = p, g, a = ANY.to(device_of(backend))
    options = {"loss": loss, "penalty": penalty, "backend": backend}
    alone, added = loss_of(backend, p, g, loss=loss), penalty_of(backend, p, a, penalty=penalty)
    for weight in (-2.3, 0.0, 0.7, 3.0):
        terms = icr.icr_terms(*boxes, penalty_weight=weight, **options)
        assert_near(terms.loss, alone + weight * added, boxes, absolute=1e-11)


@every_quick_backend
@every_penalty
def test_relative_penalty_lies_between_0_and_the_penalty(penalty, backend):
    boxes = p, g, a = ANY.to(device_of(backend))
    relative = icr.icr_terms(*boxes, penalty=penalty, relative=True, backend=backend).penalty
    excess = penalty_of(backend, p, a, penalty=penalty) - penalty_of(backend, g, a, penalty=penalty)
    assert_near(relative, excess.clamp(min=0), boxes, absolute=1e-12)


@every_quick_backend
@every_loss
def test_descent_brings_a_prediction_to_its_target(loss, backend):
    """The gradient points the right way: thirty small steps from an overlapping box halve the loss twice."""
    starts = [[9, 6, 27, 27], [0, 9, 18, 27], [6, 15, 21, 21], [0, 6, 21, 23], [6, 15, 30, 27]]
    pred = torch.tensor(starts, dtype=torch.float64, device=device_of(backend))
    target = pred.new_tensor([3, 12, 24, 24]).expand_as(pred)
    start, rate = loss_of(backend, pred, target, loss=loss), 36.0
    for _ in range(30):
        _, gradient = icr.icr_loss_and_grad(pred, target, reduction="none", loss=loss, backend=backend)
        pred = pred - rate * gradient
        rate *= 0.88
    end = loss_of(backend, pred, target, loss=loss)
    assert (end < start / 4).all(), (end / start).tolist()
