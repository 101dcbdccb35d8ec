"""The aligned case: CIoU + containment of N (prediction, target, anchor object) triples, forward and backward.

Every implementation gets the same valid boxes, makes the same mean and the same gradient to the predictions, and is
warmed (and compiled) before it is timed.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

import icr_kernels as icr
from icr_kernels import reference

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def boxes(pairs: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions, targets a little off, and anchor objects that most predictions lie in, in pixels."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(pairs, 2, generator=generator) * (high - low) + low

    corner, side = uniform(0, 600), uniform(8, 48)
    pred = torch.cat([corner, corner + side], 1)
    target = pred + torch.cat([uniform(-2, 2), uniform(-2, 2)], 1)
    anchors = torch.cat([corner - uniform(-4, 30), corner + side + uniform(-4, 30)], 1)
    return pred.requires_grad_(), target, anchors


def fused(pred: Tensor, target: Tensor, anchors: Tensor) -> Tensor:
    return icr.icr_loss(pred, target, anchors)


def pure_pytorch(pred: Tensor, target: Tensor, anchors: Tensor) -> Tensor:
    return reference.icr_loss(pred, target, anchors)


def _containment(pred: Tensor, anchors: Tensor, eps: float) -> Tensor:
    shared = (torch.minimum(pred[:, 2:], anchors[:, 2:]) - torch.maximum(pred[:, :2], anchors[:, :2])).clamp(min=0)
    side = pred[:, 2:] - pred[:, :2]
    return shared[:, 0] * shared[:, 1] / (side[:, 0] * side[:, 1] + eps)


def clamp_form(pred: Tensor, target: Tensor, anchors: Tensor, eps: float = 1e-7) -> Tensor:
    """The form that YOLO trainers use: clamped sides, eps added to denominators and heights, alpha without gradient."""
    x1, y1, x2, y2 = pred.unbind(-1)
    tx1, ty1, tx2, ty2 = target.unbind(-1)
    w, h, tw, th = x2 - x1, y2 - y1 + eps, tx2 - tx1, ty2 - ty1 + eps
    shared_w = (torch.minimum(x2, tx2) - torch.maximum(x1, tx1)).clamp(min=0)
    shared_h = (torch.minimum(y2, ty2) - torch.maximum(y1, ty1)).clamp(min=0)
    inter = shared_w * shared_h
    iou = inter / (w * h + tw * th - inter + eps)
    cw = torch.maximum(x2, tx2) - torch.minimum(x1, tx1)
    ch = torch.maximum(y2, ty2) - torch.minimum(y1, ty1)
    rho2 = ((tx1 + tx2 - x1 - x2) ** 2 + (ty1 + ty2 - y1 - y2) ** 2) / 4
    v = (4 / math.pi**2) * (torch.atan(tw / th) - torch.atan(w / h)) ** 2
    with torch.no_grad():
        alpha = v / (v - iou + (1 + eps))
    ciou = iou - (rho2 / (cw**2 + ch**2 + eps) + v * alpha)
    return (1 - ciou + 1 - _containment(pred, anchors, eps)).mean()


def torchvision_form() -> Loss:
    """torchvision's own CIoU loss, with the containment penalty beside it."""
    from tests.torchvision_without_extension import make_importable

    make_importable()
    from torchvision.ops import complete_box_iou_loss

    def loss(pred: Tensor, target: Tensor, anchors: Tensor) -> Tensor:
        return (complete_box_iou_loss(pred, target) + 1 - _containment(pred, anchors, 1e-7)).mean()

    return loss


def implementations() -> dict[str, Loss | str]:
    """What is compared; a peer that cannot run here is the reason why."""
    return {"icr_kernels": fused, **peers()}


def peers() -> dict[str, Loss | str]:
    """The code that users run today."""
    present: dict[str, Loss | str] = {
        "eager, clamp form": clamp_form,
        "eager, torchvision": "",
        "eager, reference": pure_pytorch,
        "torch.compile, clamp form": torch.compile(clamp_form, dynamic=True),
        "torch.compile, reference": torch.compile(pure_pytorch, dynamic=True),
    }
    try:
        present["eager, torchvision"] = torchvision_form()
    except ImportError as error:
        present["eager, torchvision"] = f"absent: {error}"
    return present


def agrees(loss: Loss, pred: Tensor, target: Tensor, anchors: Tensor) -> bool:
    """Value and gradient are those of the reference in double, to what the peers' additive eps allows."""
    expected = pure_pytorch(pred.double(), target.double(), anchors.double())
    (expected_gradient,) = torch.autograd.grad(expected, pred)
    value = loss(pred, target, anchors)
    (gradient,) = torch.autograd.grad(value, pred)
    error = (gradient - expected_gradient).norm() / expected_gradient.norm()
    return bool(abs(value - expected) < 1e-5 * expected and error < 1e-4)


def step(loss: Loss, pred: Tensor, target: Tensor, anchors: Tensor) -> Callable[[], Tensor]:
    """One forward and backward pass; the gradient of the last one goes first, as an optimiser's zero_grad does it."""

    def run() -> Tensor:
        pred.grad = None
        value = loss(pred, target, anchors)
        value.backward()
        return value

    return run


def copy(pairs: int) -> Callable[[], Tensor]:
    """The floor: a copy whose reads and writes together are the 68 bytes of a pair: three boxes, a gradient, a loss."""
    source = torch.rand(pairs * 68 // 2 // 4)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
