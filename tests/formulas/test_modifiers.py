"""Inner, focaler and wise on losses, and parameters in pixels, on every backend."""

import pytest
import torch

import icr_kernels as icr
from icr_kernels.variants import DISTANCES, LOSS_NAMES
from inputs import box, device_of, every_backend, every_compiled_backend, every_modified_loss, pairs
from oracle import evaluate
from tolerances import relative_l2

MODIFIERS = ({}, {"inner": 1.3}, {"focaler": (0.1, 0.8)}, {"inner": 0.6, "focaler": (0.05, 0.9), "wise": "v3"})
GRID = [icr.BoxLoss(loss, **each) for loss in LOSS_NAMES for each in MODIFIERS if not each or loss not in DISTANCES]


@every_compiled_backend
@pytest.mark.parametrize("loss", GRID, ids=repr)
def test_every_loss_with_every_modifier_agrees_with_the_reference(loss, backend):
    """Value and gradient by either box, in both dtypes, with pixels of each pair."""
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        pred, target, _ = pairs(41, dtype=torch.float64)
        options = {"loss": loss, "reduction": "none", "scale": torch.linspace(0.5, 4, 41)}
        if loss.wise:
            options["wise_mean"] = torch.tensor(0.6)
        truth = evaluate(icr.box_iou_loss, pred, target, backend="reference", **options)
        moved = {
            name: each.to(device_of(backend)) if isinstance(each, torch.Tensor) else each
            for name, each in options.items()
        }
        boxes = (rows.to(device_of(backend), dtype) for rows in (pred, target))
        found = evaluate(icr.box_iou_loss, *boxes, backend=backend, **moved)
        for name in ("value", "pred", "target"):
            assert relative_l2(getattr(found, name).cpu().double(), getattr(truth, name)) < tolerance, name


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
@every_modified_loss
def test_identical_boxes_rest(modified, backend):
    _, boxes, _ = pairs(200, dtype=torch.float32, device=device_of(backend))
    mean = torch.tensor(0.5, device=boxes.device) if modified.wise else None
    options = {"loss": modified, "wise_mean": mean, "reduction": "sum", "backend": backend}
    result = evaluate(icr.box_iou_loss, boxes, boxes.clone(), **options)
    assert result.value == 0 and not result.pred.any() and not result.target.any()


@every_backend
def test_modifiers_are_one_after_the_other(backend):
    """P = (1, 1, 5, 4), G = (2, 2, 6, 6): IoU 3/11; with sides 5/4 times as long 46/129, of which a focaler of (1/10,
    9/10) makes (46/129 - 1/10) 5/4; beta = (8/11)/(1/2)."""
    device = device_of(backend)
    loss = icr.BoxLoss("iou", inner=1.25, focaler=(0.1, 0.9), wise=("v2", 2))
    boxes = box(1, 1, 5, 4, device=device), box(2, 2, 6, 6, device=device)
    found = icr.box_iou_loss(*boxes, loss=loss, wise_mean=torch.tensor(0.5, device=device), backend=backend)
    assert found.item() == pytest.approx((16 / 11) ** 2 * (1 - (46 / 129 - 0.1) / 0.8), rel=1e-12)


@every_backend
def test_steep_weights_and_small_images_stay_finite(backend):
    """A tiny target and a prediction as far as coordinates go; an image that a unit of the boxes is larger than."""
    device = device_of(backend)
    far, tiny = box(1e18, 1e18, 1e18, 1e18, dtype=torch.float32, device=device), torch.tensor([[0, 0, 1e-3, 1e-3]])
    for loss, scale in ((icr.BoxLoss("shape", exponent=2), 1.0), (icr.BoxLoss("mpdiou"), 1e9)):
        result = evaluate(icr.box_iou_loss, far, tiny.to(device), loss=loss, scale=scale, backend=backend)
        assert result.value.isfinite().all() and result.pred.isfinite().all() and result.target.isfinite().all()
