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

from icr_kernels.integrations.ultralytics import enable_icr
from icr_kernels.integrations.ultralytics.start import EVENT

from .run import seconds_of
from .yolo import batch, loss_alone, network, step


def with_the_term(model: Any, side: int) -> Any:
    """As `enable_icr` makes it when a trainer begins."""
    yolo = importlib.import_module("ultralytics").YOLO("yolov8n.yaml")
    enable_icr(yolo, {"plate": "car"})
    arguments = types.SimpleNamespace(single_cls=False, imgsz=side)
    trainer = types.SimpleNamespace(model=model, ema=None, args=arguments, loss_names=("giou_loss", "box_loss"))
    for callback in yolo.callbacks[EVENT]:
        callback(trainer)
    return model


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
