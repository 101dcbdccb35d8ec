"""The relational form of the simulation: plates, and the cars that they belong to.

Predictions of a plate start inside, partly outside or wholly outside its car and descend a base loss, alone or with a
penalty. In a last scenario the label itself sticks out of the car's box, as truncation and noise make it, with and
without ``relative``. Boxes are (centre x, centre y, width, height); lengths are in sides of a square plate.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import icr_kernels as icr
from icr_kernels.variants import COMMON_LOSS_NAMES, NO_PENALTY, PENALTY_NAMES

from .protocol import AREAS, BOX_FORMAT, CENTER, descend, error, fused, iou_loss

CASES = 10_000
WEIGHTS = (0.25, 1.0)
CAR_WIDTH, CAR_HEIGHT = (4.0, 8.0), (4.0, 7.0)
PLATE_ASPECT_RATIOS = (2.0, 3.0, 4.0)
START_ASPECT_RATIOS = (1.0, 2.0, 3.0, 4.0)
# How far from the car's edge the centre of a prediction starts at most.
REACH = 3.0
# What lies in its car of a label that sticks out.
LABEL_INSIDE = (0.3, 0.9)


class Scenario(NamedTuple):
    """Pairs that start alike: ``start``, ``target`` and ``cars`` are (N, 4)."""

    name: str
    relative: bool
    start: Tensor
    target: Tensor
    cars: Tensor


class Outcome(NamedTuple):
    """Where one descent of a scenario ended: means over its pairs."""

    scenario: str
    loss: str
    penalty: str
    weight: float
    error: float
    iou: float
    containment: float


def scenarios(count: int, seed: int) -> list[Scenario]:
    """Five scenarios of ``count`` pairs each. A partly outside start has 5 to 95 % of its area in the car."""
    generator = torch.Generator().manual_seed(seed)

    def collect(name: str, accepted: Callable[[Tensor], Tensor], *, label_sticks_out: bool = False) -> Scenario:
        drawn = [torch.empty(0, 4)] * 3
        while len(drawn[0]) < count:
            boxes = _draw(2 * count, generator, label_sticks_out)
            share = icr.icr_terms(*boxes, box_format=BOX_FORMAT, backend="reference").containment
            drawn = [torch.cat((old, new[accepted(share)])) for old, new in zip(drawn, boxes, strict=True)]
        start, target, cars = (boxes[:count] for boxes in drawn)
        return Scenario(name, False, start, target, cars)

    sticking_out = collect("label sticks out", lambda share: share == 1, label_sticks_out=True)
    return [
        collect("inside", lambda share: share == 1),
        collect("partly outside", lambda share: (share > 0.05) & (share < 0.95)),
        collect("wholly outside", lambda share: share == 0),
        sticking_out,
        sticking_out._replace(name="label sticks out, relative", relative=True),
    ]


def _draw(count: int, generator: torch.Generator, label_sticks_out: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions at the start, targets and cars, (count, 4) each."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    def one_of(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values)[torch.randint(len(values), (count,), generator=generator)]

    def sides(area: Tensor, ratio: Tensor) -> Tensor:
        return torch.stack(((area * ratio).sqrt(), (area / ratio).sqrt()), dim=-1)

    def offset() -> Tensor:
        return torch.rand(count, 2, generator=generator) - 0.5

    car = torch.stack((uniform(*CAR_WIDTH), uniform(*CAR_HEIGHT)), dim=-1)
    start = sides(one_of(AREAS), one_of(START_ASPECT_RATIOS))
    plate = sides(torch.ones(count), one_of(PLATE_ASPECT_RATIOS))
    plate_offset = offset() * (car - plate)
    if label_sticks_out:
        over_edge = torch.sign(plate_offset) * (car / 2 + plate * (0.5 - uniform(*LABEL_INSIDE).unsqueeze(-1)))
        horizontally = torch.rand(count, generator=generator) < 0.5
        plate_offset = torch.where(torch.stack((horizontally, ~horizontally), dim=-1), over_edge, plate_offset)
    return (
        torch.cat((CENTER + offset() * (car + 2 * REACH), start), dim=-1),
        torch.cat((CENTER + plate_offset, plate), dim=-1),
        torch.cat((torch.full_like(car, CENTER), car), dim=-1),
    )


def choices() -> list[tuple[str, str, float]]:
    """Every (loss, penalty, weight) that is descended: each common loss alone, and with each penalty at each weight."""
    penalties = [(NO_PENALTY, 0.0), *((penalty, weight) for penalty in PENALTY_NAMES for weight in WEIGHTS)]
    return [(loss, penalty, weight) for loss in COMMON_LOSS_NAMES for penalty, weight in penalties]


def regress(
    scenario: Scenario, loss: str, penalty: str, weight: float, iterations: int, backend: str | None
) -> Outcome:
    """One descent of all pairs of a scenario; the penalty "none" is the loss alone."""
    options: dict[str, Any] = {"loss": loss, "backend": backend}
    if penalty != NO_PENALTY:
        options |= {"anchor_objects": scenario.cars, "relative": scenario.relative}
        options |= {"penalty": penalty, "penalty_weight": weight}
    boxes = descend(scenario.start, scenario.target, fused(**options), iterations, backend).boxes
    share = icr.icr_terms(boxes, scenario.target, scenario.cars, box_format=BOX_FORMAT, backend=backend).containment
    return Outcome(
        scenario.name,
        loss,
        penalty,
        weight,
        error=float(error(boxes, scenario.target).mean()),
        iou=1 - float(iou_loss(boxes, scenario.target, backend).mean()),
        containment=float(share.mean()),
    )


def motion(plates: Tensor, car: Tensor, penalty: str) -> Tensor:
    """How a penalty moves plates (N, 4) of a car (4,): minus its gradient in their centres, (N, 2)."""
    leaf = plates.clone().requires_grad_()
    terms = icr.icr_terms(leaf, plates, car.expand_as(plates), penalty=penalty, box_format=BOX_FORMAT)
    return -torch.autograd.grad(terms.penalty.sum(), leaf)[0][:, :2]
