"""A training step of a detector with random weights, with its stock loss and with this package's: a small RT-DETR of
transformers with the adapter's, whose penalty has weight 0, so that both train the same, and is computed all the same;
and a YOLO11n of Ultralytics with the criterion of a dense head."""

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import detection, yolo
from .case import Call, Case, Function, Inputs, LeftOut

SIDE, QUERIES, LAYERS = 192, 300, 3  # of the RT-DETR
STEP, LOSS = "training step", "its loss and matching"
WHOLE, ALONE = "a training step", "loss and matching"
STOCK = "stock loss"
RT_DETR, YOLO = NAMES = ("RT-DETR", "YOLO11n")


class Batch(NamedTuple):
    detector: str
    images: int
    objects: int  # an image

    def __str__(self) -> str:
        return f"{self.detector}, {self.images} images of {self.objects} objects"

    def shape(self, what: str) -> str:
        return f"{self.images} images of {self.objects} objects, {what}"


SPARSE, CROWDED = Batch(RT_DETR, 4, 6), Batch(RT_DETR, 4, 100)
BATCHES = (SPARSE, CROWDED, Batch(YOLO, 16, 20))


def scene(batch: Batch) -> Inputs:
    """Images, and of each the boxes (cxcywh, normalised) of cars and of as many plates in them."""
    generator = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch.images, batch.objects // 2, 2, generator=generator)

    centers, sides = uniform(0.2, 0.8), uniform(0.05, 0.3)
    plates = torch.cat((centers + sides * uniform(-0.3, 0.3), sides * uniform(0.1, 0.3)), -1)
    boxes = torch.cat((torch.cat((centers, sides), -1), plates), 1)
    return torch.rand(batch.images, 3, SIDE, SIDE, generator=generator), boxes


class RtDetr:
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
            id2label=yolo.NAMES,
            label2id={name: label for label, name in yolo.NAMES.items()},
        )
        self.model = transformers.RTDetrForObjectDetection(config).train()
        if enable is not None:
            enable(self.model)

    def __call__(self, images: Tensor, boxes: Tensor) -> Tensor:
        torch.manual_seed(0)
        self.model.to(images.device)
        return self.model(pixel_values=images, labels=labels_of(boxes)).loss

    def step(self, images: Tensor, boxes: Tensor) -> Call:
        def run() -> Tensor:
            self.model.zero_grad()
            loss = self(images, boxes)
            loss.backward()
            return loss

        return run

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


class Yolo:
    """Of 640 px and 80 classes; where training has no randomness of its own."""

    def __init__(self, changed: Callable[[Any], Any] | None) -> None:
        from .torchvision_without_extension import make_importable

        make_importable()
        self.model = yolo.network("yolo11n", {label: str(label) for label in range(80)})
        if changed is not None:
            self.model.criterion = changed(self.model.init_criterion())

    def _given(self, inputs: Inputs) -> dict[str, Tensor]:
        self.model.to(inputs[0].device)
        return dict(zip(("img", "cls", "bboxes", "batch_idx"), inputs, strict=True))

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.model.loss(self._given(inputs))[0].sum()

    def step(self, *inputs: Tensor) -> Call:
        return yolo.step(self.model, self._given(inputs))

    def loss_alone(self, *inputs: Tensor) -> Call:
        return yolo.loss_alone(self.model, self._given(inputs))


@functools.cache
def stock(detector: str) -> Any:
    return RtDetr(None) if detector == RT_DETR else Yolo(None)


@functools.cache
def adapted(detector: str) -> Any:
    if detector == YOLO:
        return Yolo(detection.accelerated)
    from icr_kernels.integrations.transformers import enable_icr

    return RtDetr(lambda model: enable_icr(model, {"plate": "car"}, weight=0.0))


def ours(detector: str, backend: str) -> Any:
    if backend not in ("cpu", "cuda"):
        raise LeftOut("the adapter takes the first backend that can run")
    return adapted(detector)


def agrees(detector: Function, inputs: Inputs, truth: float) -> bool:
    return abs(detector(*inputs).item() - truth) < 1e-4 * truth


def yolo_batch(batch: Batch) -> Inputs:
    return tuple(yolo.batch(batch.images, detection.SIDE, batch.objects).values())


def cases() -> list[Case]:
    def case(batch: Batch, what: str, **rest: Any) -> Case:
        return Case(
            name=batch.detector,
            shape=batch.shape(what),
            pairs=batch.images * batch.objects,
            inputs=functools.partial(scene if batch.detector == RT_DETR else yolo_batch, batch),
            ours=functools.partial(ours, batch.detector),
            peers={STOCK: functools.partial(stock, batch.detector)},
            truth=lambda inputs: stock(batch.detector)(*inputs).item(),
            agrees=agrees,
            full=True,
            memory=True,
            **rest,
        )

    def step(detector: Any, inputs: Inputs) -> Call:
        return detector.step(*inputs)

    def loss(detector: Any, inputs: Inputs) -> Call:
        return detector.loss_alone(*inputs)

    found = []
    for batch in BATCHES:
        found.append(case(batch, WHOLE, quantities={STEP: step, LOSS: loss}))
        found.append(case(batch, ALONE, quantities={LOSS: loss}))
    return found
