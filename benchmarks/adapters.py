"""How much longer a training step takes with a term in the loss: ``python -m benchmarks.adapters [FAMILY ...]``.

The same network, images and weights, stock and with `enable_icr`, in turns: the whole step, and the loss and its
backward pass alone, because steps differ among themselves by more than the term takes. The Ultralytics that is imported
is measured, also that of a fork (``PYTHONPATH=/path/to/yolov12 python -m benchmarks.adapters yolov12n``).
"""

import argparse
import importlib
import statistics
import sys
import types
from typing import Any

import torch

from icr_kernels.integrations.ultralytics import enable_icr
from icr_kernels.integrations.ultralytics.start import EVENT, set_criterion

from .case import Call
from .run import seconds_of

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


def network(family: str) -> Any:
    tasks = importlib.import_module("ultralytics.nn.tasks")
    torch.manual_seed(0)
    kind = tasks.RTDETRDetectionModel if "rtdetr" in family else tasks.DetectionModel
    model = kind(f"{family}.yaml", nc=len(NAMES), verbose=False)
    model.args, model.names, model.nc = importlib.import_module("ultralytics.cfg").get_cfg(), NAMES, len(NAMES)
    return model.train()


def with_the_term(model: Any, side: int) -> Any:
    """As `enable_icr` makes it when a trainer begins."""
    yolo = importlib.import_module("ultralytics").YOLO("yolov8n.yaml")
    enable_icr(yolo, {"plate": "car"})
    arguments = types.SimpleNamespace(single_cls=False, imgsz=side)
    trainer = types.SimpleNamespace(model=model, ema=None, args=arguments, loss_names=("giou_loss", "box_loss"))
    for callback in yolo.callbacks[EVENT]:
        callback(trainer)
    return model


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
    arguments, named = leaves(taken["arguments"]), leaves(taken["named"])

    def run() -> None:
        losses = criterion(*arguments, **named)
        each = losses.values() if isinstance(losses, dict) else losses[:1]
        torch.stack([loss.sum() for loss in each]).sum().backward()

    return run


def leaves(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {name: leaves(each) for name, each in value.items()}
    return type(value)(map(leaves, value)) if isinstance(value, (list, tuple)) else value


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adapters", description=__doc__.partition(":")[0])
    parser.add_argument("families", nargs="*", default=["yolo11n", "yolov8n-rtdetr"])
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--side", type=int, default=320)
    parser.add_argument("--objects", type=int, default=20, help="per image")
    parser.add_argument("--seconds", type=float, default=120, help="per family, for both ways together")
    chosen = parser.parse_args(arguments)
    given = batch(chosen.images, chosen.side, chosen.objects)
    for family in chosen.families:
        models = network(family), with_the_term(network(family), chosen.side)
        steps = seconds_of([step(model, given) for model in models], chosen.seconds * 3 / 8)
        losses = seconds_of([loss_alone(model, given) for model in models], chosen.seconds / 8)
        stock, ours, of_stock, of_ours = (1e3 * statistics.median(each) for each in (*steps, *losses))
        print(
            f"{family}: step {stock:.1f} ms, with the term {ours:.1f} ms, {ours / stock:.3f} x; loss alone "
            f"{of_stock:.2f} ms, with the term {of_ours:.2f} ms: {(of_ours - of_stock) / stock:+.2%} of the step"
        )


if __name__ == "__main__":
    from .torchvision_without_extension import make_importable

    make_importable()
    main(sys.argv[1:])
