"""Where box losses break: ties, touching edges, boxes at rest, and empty and inverted boxes."""

import itertools
import math

import pytest
import torch
from torch import Tensor

import icr_kernels as icr
from icr_kernels.variants import BOX_FORMATS, DISTANCES
from inputs import (
    RESTING,
    SOME_LOSSES,
    box,
    device_of,
    every_backend,
    every_compiled_backend,
    every_dtype,
    every_format,
    every_iou_loss,
    every_loss,
    every_loss_and_penalty,
    every_penalty,
    every_quick_backend,
    full_precision,
    some_losses,
    to_format,
)
from oracle import BOXES, evaluate
from tolerances import relative_l2, same_bits

# Boxes at rest.

AWKWARD = torch.tensor(
    [
        [0.1, 0.2, 0.3, 0.7],
        [1 / 3, 1 / 7, 2 / 3, 5 / 7],
        [-17.3, -0.01, -17.2, 0.013],
        [123.456, 654.321, 123.556, 655.111],
        [4095.9, 2047.3, 4096.2, 2049.9],
        [1e-3, 1e-3, 2.1e-3, 1.7e-3],
        [-1e6, -1e6, 1e6, 1.1e6],
        [3e8, 1e9, 3.3e8, 7e9],
        [0.0, 0.0, 1e15, 1e16],
        [-0.0, 0.0, 1920.0, 1080.0],
        [-1e17, -3e17, 2e17, 1e16],
    ],
    dtype=torch.float64,
)


def boxes_at_rest(dtype: torch.dtype, device: str) -> Tensor:
    """The awkward boxes, and as many of random size and place as it takes to meet every rounding; all of an area above
    eps in this dtype."""
    generator = torch.Generator().manual_seed(5)
    center = torch.empty(2000, 2, dtype=torch.float64).uniform_(-500, 500, generator=generator)
    size = torch.empty(2000, 2, dtype=torch.float64).uniform_(-6, 7, generator=generator).exp()
    limit = min(torch.finfo(dtype).max, 1e30)
    boxes = torch.cat((AWKWARD.clamp(-limit, limit), torch.cat((center - size / 2, center + size / 2), 1)))
    boxes = boxes.to(dtype)
    sides = boxes[:, 2:].double() - boxes[:, :2].double()
    return boxes[(sides > 0).all(1) & (sides.prod(1) > 1e-6)].to(device)


def assert_at_rest(boxes: Tensor, **options) -> None:
    """Loss exactly 0 and gradient exactly 0 by either box: a perfect prediction is not pushed by rounding errors."""
    assert len(boxes) > 500
    values = icr.box_iou_loss(boxes, boxes.clone(), reduction="none", **options)
    result = evaluate(icr.icr_loss, boxes, boxes.clone(), None, reduction="sum", **options)
    moved = (values != 0) | (result.pred != 0).any(1) | (result.target != 0).any(1)
    assert not moved.any(), (
        f"{int(moved.sum())} boxes of {len(boxes)} do not rest, the first {boxes[moved][0].tolist()}"
    )


every_loss_at_rest = pytest.mark.parametrize(("loss", "backend"), RESTING)


@every_dtype
@every_loss_at_rest
def test_identical_boxes_rest(loss, dtype, backend):
    assert_at_rest(boxes_at_rest(dtype, device_of(backend)), loss=loss, backend=backend)


@full_precision
@pytest.mark.parametrize("box_format", ["cxcywh", "xywh"])
@pytest.mark.parametrize(("loss", "backend"), [each for each in RESTING if each[0] in SOME_LOSSES])
def test_identical_boxes_rest_in_other_formats(loss, box_format, dtype, backend):
    boxes = to_format(boxes_at_rest(torch.float64, device_of(backend)), box_format).to(dtype)
    # A side must survive the rounding of its own corners.
    boxes = boxes[(boxes[:, :2].abs() < 1e4 * boxes[:, 2:]).all(1)]
    assert_at_rest(boxes, loss=loss, box_format=box_format, backend=backend)


@every_compiled_backend
@every_dtype
@some_losses
def test_identical_boxes_rest_whatever_the_gradient_is_scaled_with(loss, dtype, backend):
    """A mean, weights and a gradient from above. (In the reference autograd rounds what cancels piece by piece.)"""
    boxes = boxes_at_rest(dtype, device_of(backend))
    weight = torch.linspace(0.1, 3, len(boxes), device=boxes.device)
    for reduction in ("none", "mean"):
        options = {"loss": loss, "weight": weight, "reduction": reduction, "backend": backend}
        result = evaluate(icr.icr_loss, boxes, boxes.clone(), None, **options)
        assert not result.value.any() and not result.pred.any() and not result.target.any()


@every_loss_at_rest
def test_identical_tiny_boxes_rest_when_eps_is_smaller_than_their_area(loss, backend):
    boxes = torch.tensor([[0.5, 0.5, 0.50001, 0.50002], [1e-6, 2e-6, 3e-6, 5e-6]], dtype=torch.float64)
    boxes = boxes.to(device_of(backend))
    result = evaluate(icr.icr_loss, boxes, boxes.clone(), None, loss=loss, eps=1e-16, reduction="sum", backend=backend)
    assert result.value.item() == 0
    assert not result.pred.any() and not result.target.any()


@every_backend
@every_dtype
@every_penalty
def test_plates_inside_their_cars_are_not_penalised(penalty, dtype, backend):
    """Exactly 0 and a gradient of exactly 0, with awkward coordinates and an ulp of room; containment exactly 1."""
    plates = boxes_at_rest(dtype, "cpu")  # where nextafter knows every dtype
    infinity = torch.tensor(float("inf"), dtype=dtype)
    cars = torch.cat((plates[:, :2].nextafter(-infinity), plates[:, 2:].nextafter(infinity)), 1)
    plates, cars = plates.to(device_of(backend)), cars.to(device_of(backend))
    assert (cars[:, :2] < plates[:, :2]).all() and (cars[:, 2:] > plates[:, 2:]).all()
    leaves = [plates.detach().requires_grad_(), plates, cars.requires_grad_()]
    terms = icr.icr_terms(*leaves, penalty=penalty, backend=backend)
    assert (terms.penalty == 0).all() and (terms.containment == 1).all()
    for gradient in torch.autograd.grad(terms.penalty.sum(), (leaves[0], leaves[2])):
        assert (gradient == 0).all()


@every_backend
@every_dtype
@every_penalty
def test_plates_flush_with_an_edge_of_their_car_are_inside(penalty, dtype, backend):
    """Which edges are shared is every subset of the four. The penalty is exactly 0; a tie gives the overlap's gradient
    half its one-sided value, and pull none (`test_golden.py`)."""
    plates = boxes_at_rest(dtype, device_of(backend))[:200]
    sides = plates[:, 2:].double() - plates[:, :2].double()
    loose = (plates.double() + 3 * torch.cat((-sides, sides), 1)).clamp(-6e4, 6e4).to(dtype)
    contained = (loose[:, :2] < plates[:, :2]).all(1) & (loose[:, 2:] > plates[:, 2:]).all(1)
    plates, loose = plates[contained], loose[contained]
    assert len(plates) > 150
    shared = torch.tensor(list(itertools.product((True, False), repeat=4)), device=plates.device)[:, None]
    cars = torch.where(shared, plates, loose)
    leaf = plates.expand_as(cars).detach().requires_grad_()
    terms = icr.icr_terms(leaf, plates.expand_as(cars), cars, penalty=penalty, backend=backend)
    assert (terms.penalty == 0).all() and (terms.containment == 1).all()
    gradient = torch.autograd.grad(terms.penalty.sum(), leaf)[0]
    if penalty == "pull":
        assert (gradient == 0).all()
    # A side whose two edges are free has no gradient.
    is_free = ~(shared[..., :2] | shared[..., 2:]).repeat(1, 1, 2)
    assert (gradient.masked_fill(~is_free, 0) == 0).all()


# Ties. That every backend splits them as the reference does is held on integer grids in test_parity.py.


@every_backend
@every_loss
def test_touching_edges_have_the_gradient_of_disjoint_boxes(loss, backend):
    """max(x, 0) has gradient 0 at 0: an overlap of exactly 0 pulls on no edge, so that edge's gradient is the limit
    from the disjoint side."""
    device = device_of(backend)
    target = box(0, 0, 2, 2, device=device)
    touching = evaluate(icr.box_iou_loss, box(2, 0.5, 3, 1.5, device=device), target, loss=loss, backend=backend)
    apart = evaluate(
        icr.box_iou_loss, box(2 + 1e-9, 0.5, 3 + 1e-9, 1.5, device=device), target, loss=loss, backend=backend
    )
    assert touching.value.item() == pytest.approx(apart.value.item(), abs=1e-7)
    assert touching.pred[0].tolist() == pytest.approx(apart.pred[0].tolist(), abs=1e-7)


@every_backend
@every_iou_loss
def test_shared_edge_has_the_mean_of_both_one_sided_gradients(loss, backend):
    """min and max split a tie in half: x2 of both boxes is 4, the gradient lies halfway between those at 4 -+ 1e-7."""
    device, target = device_of(backend), box(1, 1, 4, 4, device=device_of(backend))

    def gradient(x2: float) -> Tensor:
        return evaluate(icr.box_iou_loss, box(0, 0.5, x2, 3, device=device), target, loss=loss, backend=backend).pred

    inner, outer = gradient(4 - 1e-7), gradient(4 + 1e-7)
    assert relative_l2(inner[0, 2], outer[0, 2]) > 1e-2, "there is a kink to speak of"
    assert relative_l2(gradient(4), (inner + outer) / 2) < 1e-6


# Empty and inverted boxes.


@every_backend
@full_precision
@every_loss_and_penalty
def test_inverted_side_is_a_side_of_length_0_at_its_first_corner(loss, penalty, dtype, backend):
    """x2 < x1 counts as x2 = x1, whichever box it is: same value, and the gradient of both corners goes to x1. Where
    x2 = x1 each corner has its own."""
    device = device_of(backend)
    inverted = torch.tensor([[4, 1, 2, 3], [1, 5, 3, 2], [6, 6, 2, 1]], dtype=dtype, device=device)
    empty = torch.cat((inverted[:, :2], torch.maximum(inverted[:, :2], inverted[:, 2:])), 1)
    ordinary = torch.tensor([[0, 0, 5, 4], [2, 2, 3, 7], [1, 0, 9, 5]], dtype=dtype, device=device)
    places = torch.arange(3, device=device).repeat_interleave(3)  # which box is inverted, of each of nine triples

    def with_one(other: Tensor) -> list[Tensor]:
        others = (ordinary, ordinary + 1, ordinary - 1)
        return [
            torch.where((places == place)[:, None], other.repeat(3, 1), box.repeat(3, 1))
            for place, box in enumerate(others)
        ]

    options = {"loss": loss, "penalty": penalty, "reduction": "none", "backend": backend}
    result, truth = (evaluate(icr.icr_loss, *with_one(other), **options) for other in (inverted, empty))
    assert same_bits(result.value, truth.value)
    for place, name in enumerate(BOXES):
        is_inverted = (inverted[:, 2:] < inverted[:, :2]).repeat(3, 1) & (places == place)[:, None]
        first, second = getattr(truth, name).split(2, 1)
        wanted = torch.cat((torch.where(is_inverted, first + second, first), second.where(~is_inverted, 0)), 1)
        # The two were rounded before they were added here.
        info = torch.finfo(dtype)
        rounding = 4 * info.eps * torch.maximum(first.abs(), second.abs()) + info.tiny
        assert ((getattr(result, name) - wanted).abs() <= rounding.repeat(1, 2)).all(), f"gradient of {name}"


@every_backend
@pytest.mark.parametrize("box_format", ["cxcywh", "xywh"])
def test_negative_sides_count_as_0(box_format, backend):
    """The first corner stays: of a cxcywh box that is the centre minus half of the negative side."""
    device = device_of(backend)
    target = to_format(box(0, 0, 5, 4, device=device), box_format)
    pred = box(3, 2, -2, 1, device=device)
    first = (3 + 1, 2 - 0.5) if box_format == "cxcywh" else (3, 2)
    empty = box(*first, first[0], first[1] + 1, device=device)
    options = {"loss": "diou", "reduction": "none", "backend": backend}
    value = icr.box_iou_loss(pred, target, box_format=box_format, **options)
    assert value.item() == pytest.approx(
        icr.box_iou_loss(empty, box(0, 0, 5, 4, device=device), **options).item(), abs=1e-12
    )


@every_backend
@every_dtype
@every_format
def test_side_of_exactly_0_has_a_derivative(box_format, dtype, backend):
    """GIoU of a prediction without width, 2 high, in a target of 4 x 4: 2 - U/C with U = 16 + 2 w, C = 16; its upper
    edge is the target's, so of dC = 4 dy2 it has one half."""
    device = device_of(backend)
    pred, target = (
        to_format(box(*corners, device=device), box_format).to(dtype) for corners in ((2, 2, 2, 4), (0, 0, 4, 4))
    )
    wanted = {
        "xyxy": [0.125, 0, -0.125, 0.125],
        "cxcywh": [0, 0.125, -0.125, 0.0625],
        "xywh": [0, 0.125, -0.125, 0.125],
    }
    options = {"loss": "giou", "box_format": box_format, "reduction": "sum", "backend": backend}
    assert evaluate(icr.box_iou_loss, pred, target, **options).pred.tolist() == [
        [x / 2 for x in wanted[box_format]]  # `evaluate` asks for half the gradient
    ]
    assert icr.icr_loss_and_grad(pred, target, **options)[1].tolist() == [wanted[box_format]]


@every_quick_backend
@pytest.mark.parametrize("loss", ["giou", "ciou", "eiou", "siou"])
def test_empty_prediction_grows_by_gradient_descent(loss, backend):
    """DIoU's distance of centres has nothing to say here, nor has an IoU of 0."""
    target = box(0, 0, 4, 4, dtype=torch.float32, device=device_of(backend))
    pred = box(2, 1, 2, 3, dtype=torch.float32, device=device_of(backend))
    for _ in range(300):
        pred -= 0.1 * icr.icr_loss_and_grad(pred, target, loss=loss, reduction="sum", backend=backend)[1]
    assert icr.pairwise_iou(pred, target).item() > 0.95


@every_backend
@full_precision
@every_loss
def test_empty_prediction_has_a_bounded_gradient(loss, dtype, backend):
    """A prediction of no width inside a target of 10: every gradient is of the order of the target's 1/10, not of 1/eps
    (a quotient w/h guarded in one place only gives 10**6 here)."""
    device = device_of(backend)
    preds = torch.tensor([[5, 5, 5, 5], [5, 3, 5, 8], [3, 5, 8, 5]], dtype=dtype, device=device)
    target = box(0, 0, 10, 10, dtype=dtype, device=device).expand(3, 4)
    result = evaluate(icr.box_iou_loss, preds, target, loss=loss, reduction="none", backend=backend)
    assert loss in DISTANCES or (result.value >= 0.99).all()
    assert result.pred.abs().max() < 1
    assert result.target.abs().max() < 1


@every_backend
@full_precision
@every_loss
def test_two_empty_boxes_in_one_place(loss, dtype, backend):
    """0/0: no overlap to speak of, so the loss is 1 (what the formula makes of 1 - IoU), and at rest. As Gaussians they
    are the same."""
    expected = {"interp": 2, "sd": 0.5, "piou2": 3 * 1.3 * math.exp(-(1.3**2)), **dict.fromkeys(DISTANCES, 0)}.get(
        loss, 1
    )
    point = box(3, 4, 3, 4, dtype=dtype, device=device_of(backend))
    result = evaluate(icr.box_iou_loss, point, point.clone(), loss=loss, backend=backend)
    assert result.value.item() == pytest.approx(expected, rel=1e-6)
    assert result.pred.tolist() == [[0, 0, 0, 0]] and result.target.tolist() == [[0, 0, 0, 0]]


@every_backend
@full_precision
@every_loss
def test_sign_of_a_zero_makes_no_difference(loss, dtype, backend):
    """A side of -0 is a side of 0: atan2(0, -0) would be pi."""
    device = device_of(backend)
    zeros = torch.tensor(list(itertools.product((0.0, -0.0), repeat=4)), dtype=dtype, device=device)
    other = box(1, 1, 3, 3, dtype=dtype, device=device).expand(16, 4)
    pred, target = torch.cat((zeros, other, zeros)), torch.cat((other, zeros, zeros.flip(0)))
    for box_format in BOX_FORMATS:
        options = {"loss": loss, "box_format": box_format, "reduction": "none", "backend": backend}
        for values in icr.box_iou_loss(pred, target, **options).split(16):
            assert (values == values[0]).all(), (box_format, values.tolist())


@every_backend
@every_dtype
@every_penalty
def test_empty_prediction_has_the_penalty_of_no_overlap(penalty, dtype, backend):
    point, car = (box(*corners, dtype=dtype, device=device_of(backend)) for corners in ((3, 4, 3, 4), (0, 0, 9, 9)))
    terms = icr.icr_terms(point, point, car, penalty=penalty, backend=backend)
    assert terms.containment.item() == 0
    largest = {"containment": 1, "inverse": 9, "log": 4.605170185988092, "pull": 0, "containment+pull": 1}
    if penalty in largest:
        assert terms.penalty.item() == pytest.approx(largest[penalty], abs=1e-5)
