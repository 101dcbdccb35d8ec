"""The simulation of Zheng et al. 2020 (Distance-IoU Loss, AAAI, arXiv 1911.08287): regression without a network.

Boxes of every shape around a target descend the gradient of a loss. What is left of their error is the loss's doing
alone. A box is (centre x, centre y, width, height), as in the paper; lengths are in sides of the square target.
"""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import icr_kernels as icr
from icr_kernels.terminal import progress

BOX_FORMAT = "cxcywh"
CENTER = 10.0
RADIUS = 3.0
POINTS = 5000
ITERATIONS = 200
ASPECT_RATIOS = (1 / 4, 1 / 3, 1 / 2, 1.0, 2.0, 3.0, 4.0)
AREAS = (0.5, 0.67, 0.75, 1.0, 1.33, 1.5, 2.0)
CASES_PER_POINT = len(ASPECT_RATIOS) * len(AREAS) * len(ASPECT_RATIOS)

# Points whose cases go through all iterations together: their boxes, targets and gradients then stay in the cache.
POINTS_PER_SLAB = 48

# d loss / d boxes (N, 4) of each pair, times its weight: called with boxes (N, 4), targets (N, 4) and weights (N,).
Gradient = Callable[[Tensor, Tensor, Tensor], Tensor]


class Descent(NamedTuple):
    """``boxes`` (N, 4) at the end; ``errors`` (iterations,) float64, summed over the cases, after each iteration."""

    boxes: Tensor
    errors: Tensor


class Regression(NamedTuple):
    """The paper's cases regressed by one loss: ``errors`` (iterations,) the mean error of a case after each iteration,
    ``final_errors`` and ``ious`` (points, 343) after the last, ``seconds`` the time that the descent took."""

    errors: Tensor
    final_errors: Tensor
    ious: Tensor
    seconds: float


def anchor_points(count: int, seed: int) -> Tensor:
    """(count, 2) points, uniform in the disc around the target's centre."""
    generator = torch.Generator().manual_seed(seed)
    radius, angle = torch.rand(2, count, generator=generator, dtype=torch.float64)
    radius, angle = RADIUS * radius.sqrt(), 2 * math.pi * angle
    return CENTER + torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)


def cases(points: Tensor) -> tuple[Tensor, Tensor]:
    """The boxes at the start and their targets, (343 * points, 4) each: at every point 7 areas x 7 aspect ratios, each
    for the 7 targets of area 1."""
    ratios, areas = torch.tensor(ASPECT_RATIOS).double(), torch.tensor(AREAS).double()
    shapes = torch.stack((ratios.sqrt(), 1 / ratios.sqrt()), dim=-1)
    grid = (len(points), len(AREAS), len(ASPECT_RATIOS), len(ASPECT_RATIOS), 2)
    start_center = points[:, None, None, None].expand(grid)
    start_sides = (areas.sqrt()[:, None, None] * shapes)[:, :, None].expand(grid)
    start = torch.cat((start_center, start_sides), dim=-1)
    target = torch.cat((torch.full_like(start_center, CENTER), shapes.expand(grid)), dim=-1)
    return start.reshape(-1, 4).float(), target.reshape(-1, 4).float()


def fused(**options) -> Gradient:
    """The gradient of `icr_kernels.icr_loss_and_grad` with these options: loss, backend, penalty and others."""

    def gradient(boxes: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        return icr.icr_loss_and_grad(boxes, target, weight=weight, reduction="sum", box_format=BOX_FORMAT, **options)[1]

    return gradient


def learning_rate(iteration: int, iterations: int) -> float:
    """0.1, from 80 % of the iterations on 0.01, from 90 % on 0.001."""
    return 0.1 if iteration < 0.8 * iterations else 0.01 if iteration < 0.9 * iterations else 0.001


def iou_loss(boxes: Tensor, target: Tensor, backend: str | None) -> Tensor:
    """1 - IoU of every case, (N,)."""
    return icr.box_iou_loss(boxes, target, loss="iou", reduction="none", box_format=BOX_FORMAT, backend=backend)


def error(boxes: Tensor, target: Tensor) -> Tensor:
    """|dx| + |dy| + |dw| + |dh| of every case, (N,)."""
    return (boxes - target).abs().sum(-1)


def descend(start: Tensor, target: Tensor, gradient: Gradient, iterations: int, backend: str | None) -> Descent:
    """The paper's Algorithm 1: B <- B - rate (2 - IoU) dL/dB."""
    boxes, difference = start.clone(), torch.empty_like(start)
    errors = torch.empty(iterations, dtype=torch.float64)
    for iteration in range(iterations):
        weight = iou_loss(boxes, target, backend).add_(1)
        boxes.sub_(gradient(boxes, target, weight), alpha=learning_rate(iteration, iterations))
        errors[iteration] = torch.sub(boxes, target, out=difference).abs_().sum()
    return Descent(boxes, errors)


def regress(points: Tensor, gradient: Gradient, iterations: int, backend: str | None, label: str) -> Regression:
    """All cases of the anchor points (points, 2), slab after slab."""
    errors, final_errors, ious = torch.zeros(iterations, dtype=torch.float64), [], []
    seconds = 0.0
    for slab in progress(points.split(POINTS_PER_SLAB), label):
        start, target = cases(slab)
        began = time.perf_counter()
        descent = descend(start, target, gradient, iterations, backend)
        seconds += time.perf_counter() - began
        errors += descent.errors
        final_errors.append(error(descent.boxes, target))
        ious.append(1 - iou_loss(descent.boxes, target, backend))
    return Regression(
        errors / (len(points) * CASES_PER_POINT),
        torch.cat(final_errors).view(len(points), CASES_PER_POINT),
        torch.cat(ious).view(len(points), CASES_PER_POINT),
        seconds,
    )
