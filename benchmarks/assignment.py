"""Who is trained towards what in a YOLO: task-aligned assignment of points to the boxes of their image.

Ultralytics' assigner is given the truth padded, as its loss makes it, and ours as it comes, box after box: making the
one of the other is in nobody's time. What they return differs: ours the box and the score of each point, Ultralytics'
its label, box, scores of all classes and more; so does the drop-in module, which is called in its place.
"""

import functools
import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import icr_kernels as icr

from .case import DROP_IN, Case, Function, Inputs, LeftOut

NAME = "task-aligned assignment"
STOCK, BY_IMAGE, REFERENCE = "eager, Ultralytics", "eager, Ultralytics, image by image", "eager, reference"
STRIDES, CLASSES = (8, 16, 32), 80
RULE: dict[str, Any] = {"topk": 10, "alpha": 0.5, "beta": 6.0}  # of YOLOv8 to YOLO11 in training

# How many images of how many boxes, and the images' sides in pixels.
SHAPES = (
    *((16, boxes, 640) for boxes in (20, 100, 300, 5_000)),
    *((16, boxes, 1_280) for boxes in (20, 100)),
    (128, 20, 640),
)
MANY = 1_000  # boxes: from here on they are tiny

# A batch of xView: images, boxes in all, and in the image that has most of them.
CROWDED_IMAGES, CROWDED_BOXES, CROWDED_MOST, CROWDED_CLASSES = 128, 75_357, 4_967, 60
CROWDED = f"{CROWDED_IMAGES} images of up to {CROWDED_MOST:,} boxes, {CROWDED_BOXES:,} in all, 640 px"

# Bytes that code with tensors of (images, boxes, points) holds at once for each of their elements, about: Ultralytics'
# are 4 of a metric, 4 of an overlap and some of a byte; those of the reference are of 8.
STOCK_BYTES, REFERENCE_BYTES = 14, 100
# Elements that take a CPU a minute or more.
MINUTES = 1e9


def shape(images: int, boxes: int, side: int) -> str:
    return f"{images} images of {boxes:,} boxes, {side} px"


def pairs(images: int, boxes: int, side: int) -> int:
    return images * boxes * sum((side // stride) ** 2 for stride in STRIDES)


# Inputs


def grids(side: int) -> Tensor:
    """The points of a head: the centres of its cells, level after level."""

    def grid(stride: int) -> Tensor:
        along = (torch.arange(side // stride) + 0.5) * stride
        return torch.cartesian_prod(along, along).flip(1)

    return torch.cat([grid(stride) for stride in STRIDES])


def scene(image: Tensor, images: int, side: int, classes: int, is_tiny: bool) -> Inputs:
    """The arguments of `task_aligned_assign`, and the truth padded. A training has begun: a point predicts, more or
    less well, the box whose centre is nearest. ``image`` is that of each box, in order."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    count, points = len(image), grids(side)
    sides = 4 * 10 ** uniform(count, 2) if is_tiny else 0.02 * side * 20 ** uniform(count, 2)
    corner = uniform(count, 2) * (side - sides)
    truth, labels = torch.cat([corner, corner + sides], 1), torch.randint(classes, (count,), generator=generator)
    counts = torch.bincount(image, minlength=images).tolist()
    nearest = [
        own[torch.cdist(points, (own[:, :2] + own[:, 2:]) / 2).argmin(1)] if len(own) else points.repeat(1, 2)
        for own in truth.split(counts)
    ]
    boxes = torch.stack(nearest)
    extent = (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)
    boxes += 0.1 * extent * torch.randn(boxes.shape, generator=generator)
    scores = uniform(images, len(points), classes)
    both = torch.cat([labels[:, None], truth], 1).split(counts)
    padded_labels, padded_truth = torch.nn.utils.rnn.pad_sequence(list(both), batch_first=True).split((1, 4), 2)
    mask = (padded_truth.sum(2, keepdim=True) > 0).float()
    return scores, boxes, points, truth, labels, image, padded_labels, padded_truth, mask


def crowded_images() -> Tensor:
    """The image of each box: the first has most, the others unequally many."""
    generator = torch.Generator().manual_seed(0)
    weight = (0.7 * torch.randn(CROWDED_IMAGES - 1, generator=generator)).exp()
    others = torch.multinomial(weight, CROWDED_BOXES - CROWDED_MOST, replacement=True, generator=generator) + 1
    return torch.cat([torch.zeros(CROWDED_MOST, dtype=torch.int64), others.sort().values])


# Implementations


def ours(backend: str) -> Function:
    return lambda *inputs: icr.task_aligned_assign(*inputs[:6], **RULE, smallest_side=STRIDES[1], backend=backend)


def fits(elements: int, bytes_of_each: int, device: torch.device) -> None:
    """A GPU says itself that it has no memory left; a CPU's process may be ended for it."""
    if device.type != "cpu":
        return
    need = elements * bytes_of_each
    if need > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise LeftOut(f"would need {need / 1e9:.0f} GB")
    if elements > MINUTES:
        raise LeftOut("would take minutes a call")


def reference() -> Function:
    def assign(*inputs: Tensor) -> Any:
        fits(len(inputs[3]) * len(inputs[2]), REFERENCE_BYTES, inputs[0].device)
        return ours("reference")(*inputs)

    return assign


def assigner_of(module: str, classes: int) -> Any:
    from .torchvision_without_extension import make_importable

    make_importable()
    return importlib.import_module(module).TaskAlignedAssigner(num_classes=classes, **RULE)


def padded(*inputs: Tensor) -> tuple[Tensor, ...]:
    """The arguments of an assigner like Ultralytics'."""
    return *inputs[:3], *inputs[6:]


def drop_in(classes: int) -> Function:
    assign = assigner_of("icr_kernels.integrations.ultralytics", classes)
    return lambda *inputs: assign(*padded(*inputs))


def whole_batch(classes: int) -> Function:
    stock = assigner_of("ultralytics.utils.tal", classes)

    def assign(*inputs: Tensor) -> Any:
        fits(inputs[8].numel() * len(inputs[2]), STOCK_BYTES, inputs[0].device)
        return stock(*padded(*inputs))

    return assign


def image_by_image(classes: int) -> Function:
    """Each image with as many boxes as it has, as the stock assigner does it where CUDA's memory is exhausted."""
    stock = assigner_of("ultralytics.utils.tal", classes)

    def assign(*inputs: Tensor) -> Any:
        fits(len(inputs[3]) * len(inputs[2]), 0, inputs[0].device)
        scores, boxes, points, labels, truth, mask = padded(*inputs)
        found = [
            stock(
                scores[i : i + 1],
                boxes[i : i + 1],
                points,
                *(each[i : i + 1, :count] for each in (labels, truth, mask)),
            )
            for i, count in enumerate(mask.sum((1, 2)).int().tolist())
        ]
        return tuple(map(torch.cat, zip(*found, strict=True)))

    return assign


# Comparisons


def right(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Of the last image alone, by the reference."""
    scores, boxes, points, truth, labels, image = inputs[:6]
    rows = image == len(scores) - 1
    index, score = ours("reference")(
        scores[-1:], boxes[-1:], points, truth[rows], labels[rows], torch.zeros_like(image[rows])
    )
    return index[0], score[0]


def agrees(function: Function, inputs: Inputs, right: tuple[Tensor, Tensor]) -> bool:
    """But for ties: of points that overlap nothing the stock assigner takes any."""
    found = [each[-1] for each in function(*inputs)]
    if len(found) == 2:
        index, score = found
        first = (inputs[5] < len(inputs[0]) - 1).sum()
        index = torch.where(index < 0, index, index - first)
    else:
        *_, scores, is_positive, index = found
        index, score = torch.where(is_positive, index, -1), scores.amax(-1)
    is_same, matters = index == right[0], (index >= 0) | (right[0] >= 0)
    return bool(is_same[matters].double().mean() > 0.99 and (score - right[1])[is_same].abs().max() < 1e-3)


# Cases


def case(name: str, image: Tensor, images: int, side: int, classes: int, is_tiny: bool, **rest: Any) -> Case:
    peers: dict[str, Callable[[], Function]] = {
        DROP_IN: functools.partial(drop_in, classes),
        STOCK: functools.partial(whole_batch, classes),
        BY_IMAGE: functools.partial(image_by_image, classes),
        REFERENCE: reference,
    }
    return Case(
        name=NAME,
        shape=name,
        pairs=pairs(1, len(image), side),
        inputs=functools.partial(scene, image, images, side, classes, is_tiny),
        ours=ours,
        peers=peers,
        truth=right,
        agrees=agrees,
        memory=True,
        operators=True,
        **rest,
    )


def cases() -> Iterator[Case]:
    for images, boxes, side in SHAPES:
        image = torch.arange(images).repeat_interleave(boxes)
        is_quick = (images, boxes, side) == SHAPES[0]
        yield case(shape(images, boxes, side), image, images, side, CLASSES, boxes >= MANY, full=not is_quick)
    yield case(CROWDED, crowded_images(), CROWDED_IMAGES, 640, CROWDED_CLASSES, True, full=True)
