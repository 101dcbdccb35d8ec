"""The numbers that the pictures of losses are of: one target, and predictions that leave it in three ways.

A gradient is what training sees, so what a formula holds constant is constant here too.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

import icr_kernels as icr
from icr_kernels.specifications import BoxLoss, box_loss
from icr_kernels.variants import LOSS_BY_NAME, LOSS_NAMES

# Sides of the square target in pixels: of losses whose parameters are in pixels each, of others any.
SIZES = (8.0, 32.0, 128.0)
SIZE = 32.0
FARTHEST, LARGEST = 3.0, 4.0
# The mean of 1 - IoU that a loss with ``wise`` compares with here.
WISE_MEAN = 0.5
MODIFIED = {
    "iou": BoxLoss("iou"),
    "inner=0.7": BoxLoss("iou", inner=0.7),
    "inner=1.25": BoxLoss("iou", inner=1.25),
    "focaler=(0, 0.95)": BoxLoss("iou", focaler=(0, 0.95)),
    'wise="v3"': BoxLoss("iou", wise="v3"),
}


class Curve(NamedTuple):
    """A loss and its derivative along a way, (N,) each."""

    along: Tensor
    value: Tensor
    gradient: Tensor


Way = Callable[[Tensor], Tensor]


def moved(offset: Tensor) -> Tensor:
    """Boxes of side 1 so far along x."""
    half = torch.full_like(offset, 0.5)
    return torch.stack((offset - half, -half, offset + half, half), -1)


def scaled(log_scale: Tensor) -> Tensor:
    half = torch.exp(log_scale) / 2
    return torch.stack((-half, -half, half, half), -1)


def squeezed(log_ratio: Tensor) -> Tensor:
    """Boxes of area 1, so many times as wide as high."""
    half_w, half_h = torch.exp(log_ratio / 2) / 2, torch.exp(-log_ratio / 2) / 2
    return torch.stack((-half_w, -half_h, half_w, half_h), -1)


def steps(count: int, least: float, most: float) -> Tensor:
    """Middles of so many equal parts: none of them is where boxes touch or are the same."""
    return least + (most - least) * (torch.arange(count, dtype=torch.float64) + 0.5) / count


def ways(count: int) -> dict[str, tuple[Way, Tensor]]:
    """Each way with its places: sides of the target, natural logarithms of a scale and of a ratio of sides."""
    span = torch.tensor(LARGEST).log().item()
    return {
        "moved": (moved, steps(count, 0, FARTHEST)),
        "scaled": (scaled, steps(count, -span, span)),
        "squeezed": (squeezed, steps(count, -span, span)),
    }


def curve(loss: str | BoxLoss, way: Way, along: Tensor, size: float = SIZE) -> Curve:
    """The loss of predictions of a square target with so many pixels a side."""
    place = along.clone().requires_grad_()
    pred = size * way(place)
    target = size * way(torch.zeros_like(along))
    mean = torch.tensor(WISE_MEAN, dtype=torch.float64) if box_loss(loss).wise is not None else None
    value = icr.box_iou_loss(pred, target, loss=loss, reduction="none", wise_mean=mean, backend="reference")
    return Curve(along, value.detach(), torch.autograd.grad(value.sum(), place)[0])


def sizes_of(loss: str) -> tuple[float, ...]:
    return SIZES if is_in_pixels(loss) else (SIZE,)


def is_in_pixels(loss: str) -> bool:
    """Whether a parameter is a length or an area."""
    return any(parameter.power for parameter in LOSS_BY_NAME[loss].parameters)


# How many places of each curve a picture keeps, for a test to compare.
KEPT = 12


def kept(losses: Iterable[tuple[str | BoxLoss, float]]) -> list[float]:
    """Values and gradients of losses, with the sides of their targets, at a few places."""
    found: list[float] = []
    for loss, size in losses:
        for way, along in ways(KEPT).values():
            _, value, gradient = curve(loss, way, along, size)
            found += [*value.tolist(), *gradient.tolist()]
    return found


def pictures() -> dict[str, list[float]]:
    """Of each picture, by its name, the numbers that it is of."""
    of_losses = {loss: kept((loss, size) for size in sizes_of(loss)) for loss in LOSS_NAMES}
    return {
        **of_losses,
        "all": kept((loss, SIZE) for loss in LOSS_NAMES),
        "modifiers": kept((loss, SIZE) for loss in MODIFIED.values()),
    }
