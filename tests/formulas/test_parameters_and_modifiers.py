"""Parameters, modifiers and pixels of losses on every backend: beside the reference in every operator that has them, by
hand, at rest, and at the limits of numbers."""

import pytest
import torch
from torch import Tensor

import icr_kernels as icr
from detection_scenes import LOGITS, detection_loss, detection_scene, leaves
from icr_kernels import BoxLoss, Penalty
from icr_kernels.variants import DISTANCES, FURTHER_LOSS_NAMES, LOSS_BY_NAME, LOSS_NAMES
from inputs import (
    MODIFIED,
    box,
    crowd,
    device_of,
    every_backend,
    every_compiled_backend,
    every_modified_loss,
    full_precision,
    pairs,
)
from oracle import BOXES, evaluate
from tolerances import relative_l2

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}
PAIRS = 60

# Of every parameter a number that is not the default.
OTHER = {"alpha": 2.5, "width": 90.0, "height": 70.0, "exponent": 1.5, "attention": 0.9, "interpolation": 0.6}
OTHER |= {"delta": 0.8, "area": 400.0, "constant": 20.0, "tau": 2.0}
MODIFIERS = (
    {},
    {"inner": 1.3},
    {"focaler": (0.1, 0.8)},
    {"wise": "v2"},
    {"inner": 0.6, "focaler": (0.05, 0.9), "wise": ("v3", 1.7, 2.0)},
)


def with_other_parameters(name: str, **modifiers) -> BoxLoss:
    return BoxLoss(name, **{each.name: OTHER[each.name] for each in LOSS_BY_NAME[name].parameters}, **modifiers)


GRID = [
    with_other_parameters(name, **each)
    for name in LOSS_NAMES
    for each in MODIFIERS
    if not each or name not in DISTANCES
]


def mean_for(loss: BoxLoss, device: str) -> Tensor | None:
    return torch.tensor(0.4, device=device) if loss.wise is not None else None


def assert_both_agree(results: list[list[Tensor]], tolerance: float = 1e-12) -> None:
    for actual, truth in zip(*results, strict=True):
        assert relative_l2(actual.detach().double(), truth.detach()) < tolerance


def assert_is_reference(loss: BoxLoss, backend: str, scale: float | Tensor, dtype=torch.float64, **options) -> None:
    """Value and gradient by every box, beside the reference in float64."""
    device, results = device_of(backend), []
    options = {"loss": loss, "wise_mean": mean_for(loss, device), "scale": scale, "reduction": "none", **options}
    boxes = pairs(PAIRS, dtype=dtype, device=device)
    for each, of in ((backend, dtype), ("reference", torch.float64)):
        result = evaluate(icr.icr_loss, *(rows.to(of) for rows in boxes), backend=each, **options)
        results.append([result.value, *(getattr(result, name) for name in BOXES)])
    assert_both_agree(results, TOLERANCE[dtype])


@every_compiled_backend
@full_precision
@pytest.mark.parametrize("loss", GRID, ids=repr)
def test_every_loss_with_every_modifier(loss, dtype, backend):
    pixels = torch.linspace(0.5, 4, PAIRS, dtype=torch.float64, device=device_of(backend))
    assert_is_reference(loss, backend, pixels, dtype, relative=True)


@every_compiled_backend
@pytest.mark.parametrize("loss", ["mpdiou", "sd", "nwd", "shape"])
def test_pixels_of_every_pair_of_all_and_as_a_number(loss, backend):
    pixels = torch.linspace(0.5, 8, 2 * PAIRS, dtype=torch.float64, device=device_of(backend))
    for scale in (pixels[::2], pixels[:PAIRS].float(), pixels[7], 4.0):
        assert_is_reference(with_other_parameters(loss), backend, scale)


@every_compiled_backend
@pytest.mark.parametrize("penalty", ["inverse", "log"])
def test_clamp(penalty, backend):
    for relative in (False, True):
        assert_is_reference(BoxLoss("iou"), backend, 1.0, penalty=Penalty(penalty, clamp=0.3), relative=relative)


@every_compiled_backend
def test_terms(backend):
    device, results = device_of(backend), []
    boxes = pairs(PAIRS, dtype=torch.float64, device=device)
    loss = BoxLoss("mpdiou", width=80.0, **MODIFIERS[-1])
    pixels, mask = torch.linspace(1, 4, PAIRS, device=device), torch.arange(PAIRS, device=device) % 4 != 1
    options = {"loss": loss, "penalty": Penalty("log", clamp=0.2), "scale": pixels, "wise_mean": mean_for(loss, device)}
    for each in (backend, "reference"):
        given = [rows.clone().requires_grad_() for rows in boxes]
        terms = icr.icr_terms(*given, mask=mask, backend=each, **options)
        upstream = [torch.linspace(1, 2 + place, PAIRS, device=device).double() for place in range(4)]
        results.append([*terms, *torch.autograd.grad(terms, given, upstream)])
    assert_both_agree(results)


@every_compiled_backend
@pytest.mark.parametrize("kind", FURTHER_LOSS_NAMES)
def test_matrices_with_their_gradients(kind, backend):
    device, results = device_of(backend), []
    first, second = crowd(9, 0, torch.float64, device), crowd(7, 1, torch.float64, device)
    for each in (backend, "reference"):
        given = [rows.clone().requires_grad_() for rows in (first, second)]
        value = icr.pairwise_iou(*given, kind=with_other_parameters(kind), backend=each)
        upstream = torch.linspace(1, 2, 63, dtype=torch.float64, device=device).view(9, 7)
        results.append([value, *torch.autograd.grad(value, given, upstream)])
    assert_both_agree(results)


@every_compiled_backend
def test_selection_with_parameters(backend):
    device = device_of(backend)
    first, second = crowd(9, 0, torch.float64, device), crowd(30, 1, torch.float64, device)
    for loss in (BoxLoss("nwd", constant=30.0), BoxLoss("shape", exponent=1.0)):
        actual, truth = (
            icr.pairwise_topk(first, second, 3, kind=loss, backend=each) for each in (backend, "reference")
        )
        assert torch.equal(actual.indices, truth.indices)
        assert relative_l2(actual.values, truth.values) < 1e-12


@every_compiled_backend
@pytest.mark.parametrize("loss", [BoxLoss("nwd", constant=9.0), BoxLoss("mpdiou", **MODIFIERS[-1])], ids=repr)
def test_dense_heads(loss, backend):
    mean, results = mean_for(loss, device_of(backend)), []
    options = {"loss": loss, "penalty": Penalty("inverse", clamp=0.4), "scale": 2.0, "wise_mean": mean}
    for each in (backend, "reference"):
        scene = leaves(detection_scene(0, dtype=torch.float64))
        terms = detection_loss(scene, each, torch.float64, **options)
        results.append([*terms, *torch.autograd.grad(sum(terms), [scene[name] for name in LOGITS])])
    assert_both_agree(results)


@every_backend
@pytest.mark.parametrize("loss", [*map(BoxLoss, FURTHER_LOSS_NAMES), *MODIFIED], ids=repr)
def test_nan_stays_nan(loss, backend):
    pred, target = pairs(8, device=device_of(backend))[:2]
    for column in range(4):
        pred[column, column] = target[4 + column, column] = float("nan")
    options = {"loss": loss, "reduction": "none", "wise_mean": mean_for(loss, device_of(backend)), "backend": backend}
    result = evaluate(icr.icr_loss, pred, target, None, **options)
    assert result.value.isnan().all() and result.pred.isnan().any(1).all()


# Those in which the paper holds nothing constant under differentiation.
DIFFERENTIATED = [each for each in GRID if each.modifiers and each.wise is None]
DIFFERENTIATED = [each for each in DIFFERENTIATED if each.name not in ("ciou", "alpha_ciou", "wiou", "sd")]


@pytest.mark.parametrize("loss", DIFFERENTIATED, ids=repr)
def test_gradients_of_the_reference_are_its_derivatives(loss):
    pred, target, _ = pairs(9, dtype=torch.float64)

    def function(pred, target):
        return icr.box_iou_loss(pred, target, loss=loss, reduction="none", backend="reference")

    assert torch.autograd.gradcheck(function, (pred.requires_grad_(), target.requires_grad_()))


@every_compiled_backend
@full_precision
@every_modified_loss
def test_identical_boxes_rest(modified, dtype, backend):
    boxes = (1.37 * crowd(500, 3, torch.float64, device_of(backend))).to(dtype)
    mean = mean_for(modified, device_of(backend))
    options = {"loss": modified, "wise_mean": mean, "reduction": "sum", "backend": backend}
    result = evaluate(icr.box_iou_loss, boxes, boxes.clone(), **options)
    assert result.value == 0 and not result.pred.any() and not result.target.any()


@every_backend
def test_modifiers_are_one_after_the_other(backend):
    """P = (1, 1, 5, 4), G = (2, 2, 6, 6): IoU 3/11; with sides 5/4 times as long 46/129, of which a focaler of (1/10,
    9/10) makes (46/129 - 1/10) 5/4; beta = (8/11)/(1/2)."""
    device = device_of(backend)
    loss = BoxLoss("iou", inner=1.25, focaler=(0.1, 0.9), wise=("v2", 2))
    boxes = box(1, 1, 5, 4, device=device), box(2, 2, 6, 6, device=device)
    found = icr.box_iou_loss(*boxes, loss=loss, wise_mean=torch.tensor(0.5, device=device), backend=backend)
    assert found.item() == pytest.approx((16 / 11) ** 2 * (1 - (46 / 129 - 0.1) / 0.8), rel=1e-12)


@every_backend
def test_steep_weights_and_small_images_stay_finite(backend):
    """A tiny target and a prediction as far as coordinates go; an image that a unit of the boxes is larger than."""
    device = device_of(backend)
    far, tiny = box(1e18, 1e18, 1e18, 1e18, dtype=torch.float32, device=device), torch.tensor([[0, 0, 1e-3, 1e-3]])
    for loss, scale in ((BoxLoss("shape", exponent=2), 1.0), (BoxLoss("mpdiou"), 1e9)):
        result = evaluate(icr.box_iou_loss, far, tiny.to(device), loss=loss, scale=scale, backend=backend)
        assert result.value.isfinite().all() and result.pred.isfinite().all() and result.target.isfinite().all()
