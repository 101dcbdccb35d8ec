"""Every loss, alone and with each modifier, on a share of the cases of the DIoU paper.

The unit of the study is the side of the square target, so losses whose parameters are in pixels need others here. They
are those of targets of 8 pixels, for which these losses were made: `FITTING`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import icr_kernels as icr
from icr_kernels import wise
from icr_kernels.specifications import BoxLoss
from icr_kernels.terminal import progress
from icr_kernels.variants import DISTANCES, LOSS_NAMES

from . import protocol
from .protocol import BOX_FORMAT, CASES_PER_POINT, CENTER, Gradient

# Places where boxes start: 82,320 cases.
POINTS = 240
# An error from which on a case counts as unsolved, in sides of the square target.
UNSOLVED = 0.1
# A side of the target is so many pixels.
PIXELS = 8.0
FITTING: dict[str, dict[str, Any]] = {
    # An image with the target in its middle: with 640 pixels there would be next to no second term.
    "mpdiou": {"width": 2 * CENTER, "height": 2 * CENTER},
    "sd": {"area": 81 / PIXELS**2},
    "nwd": {"constant": 12.8 / PIXELS},
}
ALONE = "alone"
MODIFIERS: dict[str, dict[str, Any]] = {
    ALONE: {},
    "inner 0.7": {"inner": 0.7},
    "inner 1.25": {"inner": 1.25},
    "focaler 0, 0.95": {"focaler": (0, 0.95)},
    "wise v2": {"wise": "v2"},
    "wise v3": {"wise": "v3"},
}
# On which `wise` is tried.
WISE_LOSSES = ("iou", "ciou", "wiou")


class Outcome(NamedTuple):
    """Where the descent of a loss with a modifier ended: over all cases; ``unsolved`` is a share."""

    loss: str
    modifier: str
    cases: int
    mean_error: float
    median_error: float
    unsolved: float
    mean_iou: float


class Result(NamedTuple):
    outcome: Outcome
    errors: Tensor  # the mean of the cases after each iteration


def choices() -> list[tuple[str, str]]:
    """Every loss alone, and with what it takes."""

    def takes(loss: str, modifier: str) -> bool:
        if modifier == ALONE:
            return True
        return loss not in DISTANCES and ("wise" not in MODIFIERS[modifier] or loss in WISE_LOSSES)

    return [(loss, modifier) for loss in LOSS_NAMES for modifier in MODIFIERS if takes(loss, modifier)]


def loss_of(name: str, modifier: str) -> BoxLoss:
    return BoxLoss(name, **FITTING.get(name, {}), **MODIFIERS[modifier])


def gradient_of(loss: BoxLoss, backend: str | None) -> Gradient:
    """Of one descent: the running mean of a loss that is wise begins at 1."""
    if loss.wise is None:
        return protocol.fused(loss=loss, backend=backend)
    mean = torch.ones(())

    def gradient(boxes: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        options: dict[str, Any] = {"box_format": BOX_FORMAT, "backend": backend}
        wise.update(mean, boxes, target, **options)
        options |= {"loss": loss, "weight": weight, "reduction": "sum", "wise_mean": mean}
        return icr.icr_loss_and_grad(boxes, target, **options)[1]

    return gradient


def regress(points: Tensor, iterations: int, backend: str | None) -> list[Result]:
    found = []
    for name, modifier in progress(choices(), "grid"):
        errors, final_errors, ious = torch.zeros(iterations, dtype=torch.float64), [], []
        for slab in points.split(protocol.POINTS_PER_SLAB):
            start, target = protocol.cases(slab)
            gradient = gradient_of(loss_of(name, modifier), backend)
            descent = protocol.descend(start, target, gradient, iterations, backend)
            errors += descent.errors
            final_errors.append(protocol.error(descent.boxes, target))
            ious.append(1 - protocol.iou_loss(descent.boxes, target, backend))
        final, cases = torch.cat(final_errors), len(points) * CASES_PER_POINT
        outcome = Outcome(
            name,
            modifier,
            cases,
            float(final.double().mean()),
            float(final.median()),
            float((final > UNSOLVED).double().mean()),
            float(torch.cat(ious).double().mean()),
        )
        found.append(Result(outcome, errors / cases))
    return found


def markdown(outcomes: Sequence[Outcome]) -> str:
    """A row for each loss, a column for each modifier: unsolved cases, and the mean final error."""
    cells = {(each.loss, each.modifier): f"{100 * each.unsolved:.2f} %, {each.mean_error:.4f}" for each in outcomes}
    lines = [["loss", *MODIFIERS], ["---", *["---:"] * len(MODIFIERS)]]
    lines += [
        [f"`{loss}`", *(cells.get((loss, modifier), "") for modifier in MODIFIERS)]
        for loss in dict.fromkeys(each.loss for each in outcomes)
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
