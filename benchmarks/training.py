"""A training step of a detector: a small RT-DETR of transformers with random weights, with its stock loss and with the
adapter's. The penalty has weight 0, so both train the same; it is computed all the same."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .case import Call, Case, Function, Inputs, LeftOut

IMAGES, SIDE, QUERIES, LAYERS = 4, 192, 300, 3
STEP, LOSS = "training step", "its loss and matching"
NAMES = {0: "car", 1: "plate"}
NAME, OBJECTS = "RT-DETR", (6, 100)  # objects per image: sparse and crowded
WHOLE, ALONE = "a training step", "loss and matching"


def scene(objects: int) -> Inputs:
    """Images, and of each the boxes (cxcywh, normalised) of cars and of as many plates in them."""
    generator = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(IMAGES, objects // 2, 2, generator=generator)

    centers, sides = uniform(0.2, 0.8), uniform(0.05, 0.3)
    plates = torch.cat((centers + sides * uniform(-0.3, 0.3), sides * uniform(0.1, 0.3)), -1)
    boxes = torch.cat((torch.cat((centers, sides), -1), plates), 1)
    return torch.rand(IMAGES, 3, SIDE, SIDE, generator=generator), boxes


class Detector:
    """A model whose every step draws the same denoising queries."""

    def __init__(self, enable: Callable[[Any], object] | None) -> None:
        from .torchvision_without_extension import make_importable

        make_importable()
        transformers: Any = importlib.import_module("transformers")
        torch.manual_seed(0)
        backbone = transformers.RTDetrResNetConfig(
            embedding_size=32,
            hidden_sizes=[32, 64, 128, 256],
            depths=[2, 2, 2, 2],
            layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        )
        config = transformers.RTDetrConfig(
            backbone_config=backbone,
            encoder_in_channels=[64, 128, 256],
            encoder_hidden_dim=128,
            decoder_in_channels=[128, 128, 128],
            d_model=128,
            encoder_ffn_dim=256,
            decoder_ffn_dim=256,
            num_queries=QUERIES,
            decoder_layers=LAYERS,
            id2label=NAMES,
            label2id={name: label for label, name in NAMES.items()},
        )
        self.model = transformers.RTDetrForObjectDetection(config).train()
        if enable is not None:
            enable(self.model)

    def __call__(self, images: Tensor, boxes: Tensor) -> Tensor:
        torch.manual_seed(0)
        self.model.to(images.device)
        return self.model(pixel_values=images, labels=labels_of(boxes)).loss

    def step(self, images: Tensor, boxes: Tensor) -> Tensor:
        self.model.zero_grad()
        loss = self(images, boxes)
        loss.backward()
        return loss

    def loss_alone(self, images: Tensor, boxes: Tensor) -> Call:
        """The loss function and its backward pass, on what the network gave it once."""
        given: dict[str, Any] = {}
        function = self.model.loss_function

        def record(*arguments: Any, **named: Any) -> Any:
            given.update(arguments=arguments, named=named)
            return function(*arguments, **named)

        self.model.loss_function = record
        self(images, boxes)
        self.model.loss_function = function
        leaves: list[Tensor] = []

        def leaf(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.requires_grad:
                return value
            leaves.append(value.detach().requires_grad_())
            return leaves[-1]

        arguments = [leaf(value) for value in given["arguments"]]
        named = {name: leaf(value) for name, value in given["named"].items()}

        def run() -> Tensor:
            for each in leaves:
                each.grad = None
            loss = function(*arguments, **named)[0]
            loss.backward()
            return loss

        return run


def labels_of(boxes: Tensor) -> list[dict[str, Tensor]]:
    objects = boxes.shape[1]
    classes = torch.arange(2, device=boxes.device).repeat_interleave(objects // 2)
    return [{"boxes": of_image, "class_labels": classes} for of_image in boxes]


@functools.cache
def stock() -> Detector:
    return Detector(None)


@functools.cache
def adapted() -> Detector:
    from icr_kernels.integrations.transformers import enable_icr

    return Detector(lambda model: enable_icr(model, {"plate": "car"}, weight=0.0))


def ours(backend: str) -> Detector:
    if backend not in ("cpu", "cuda"):
        raise LeftOut("the adapter takes the first backend that can run")
    return adapted()


def agrees(detector: Function, inputs: Inputs, truth: float) -> bool:
    return abs(detector(*inputs).item() - truth) < 1e-4 * truth


def shape(objects: int, what: str) -> str:
    return f"{IMAGES} images of {objects} objects, {what}"


def cases() -> list[Case]:
    def case(objects: int, what: str, **rest: Any) -> Case:
        return Case(
            name=NAME,
            shape=shape(objects, what),
            pairs=IMAGES * objects,
            inputs=functools.partial(scene, objects),
            ours=ours,
            peers={"stock loss": stock},
            truth=lambda inputs: stock()(*inputs).item(),
            agrees=agrees,
            full=True,
            memory=True,
            **rest,
        )

    def step(detector: Any, inputs: Inputs) -> Call:
        return functools.partial(detector.step, *inputs)

    def loss(detector: Any, inputs: Inputs) -> Call:
        return detector.loss_alone(*inputs)

    found = []
    for objects in OBJECTS:
        found.append(case(objects, WHOLE, quantities={STEP: step, LOSS: loss}))
        found.append(case(objects, ALONE, quantities={LOSS: loss}))
    return found
