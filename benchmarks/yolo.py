"""A network of Ultralytics with random weights, a batch for it, and its training step."""

import importlib
from typing import Any

import torch

from icr_kernels.integrations.ultralytics.start import set_criterion

from .case import Call

NAMES = {0: "car", 1: "plate"}


def batch(images: int, side: int, objects: int) -> dict[str, torch.Tensor]:
    """Cars, and as many plates in them."""
    generator = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(images * objects // 2, 2, generator=generator)

    centers, sides = uniform(0.2, 0.8), uniform(0.05, 0.3)
    plates = torch.cat((centers + sides * uniform(-0.3, 0.3), sides * uniform(0.1, 0.3)), 1)
    cars = torch.cat((centers, sides), 1)
    image = torch.arange(images).repeat_interleave(objects // 2).repeat(2)
    order = image.argsort(stable=True)  # as a data loader has them
    return {
        "img": torch.rand(images, 3, side, side, generator=generator),
        "cls": torch.cat((torch.zeros(len(cars), 1), torch.ones(len(plates), 1)))[order],
        "bboxes": torch.cat((cars, plates))[order],
        "batch_idx": image[order].float(),
    }


def network(family: str, names: dict[int, str] = NAMES) -> Any:
    tasks = importlib.import_module("ultralytics.nn.tasks")
    torch.manual_seed(0)
    kind = tasks.RTDETRDetectionModel if "rtdetr" in family else tasks.DetectionModel
    model = kind(f"{family}.yaml", nc=len(names), verbose=False)
    model.args, model.names, model.nc = importlib.import_module("ultralytics.cfg").get_cfg(), names, len(names)
    return model.train()


def step(model: Any, given: dict[str, torch.Tensor]) -> Call:
    def run() -> None:
        model.zero_grad()
        model.loss(given)[0].sum().backward()

    return run


def loss_alone(model: Any, given: dict[str, torch.Tensor]) -> Call:
    """The criterion and its backward pass, on what the network gave it once."""
    model.loss(given)  # makes the criterion
    criterion = model.criterion
    taken: dict[str, Any] = {}

    def note(*arguments: Any, **named: Any) -> Any:
        taken.update(arguments=arguments, named=named)
        return criterion(*arguments, **named)

    set_criterion(model, note)
    model.loss(given)
    set_criterion(model, criterion)
    found: list[torch.Tensor] = []
    arguments, named = leaves(taken["arguments"], found), leaves(taken["named"], found)

    def run() -> None:
        for leaf in found:
            leaf.grad = None
        losses = criterion(*arguments, **named)
        each = losses.values() if isinstance(losses, dict) else losses[:1]
        torch.stack([loss.sum() for loss in each]).sum().backward()

    return run


def leaves(value: Any, found: list[torch.Tensor]) -> Any:
    """What the network gave, cut off from it; those tensors that require grad are noted."""
    if isinstance(value, torch.Tensor):
        if not value.requires_grad:
            return value
        found.append(value.detach().requires_grad_())
        return found[-1]
    if isinstance(value, dict):
        return {name: leaves(each, found) for name, each in value.items()}
    return type(value)(leaves(each, found) for each in value) if isinstance(value, (list, tuple)) else value
