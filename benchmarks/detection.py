"""What a dense head is trained by, from its raw outputs to their gradients: decoding, assignment, losses.

Everybody starts from what the head leaves, channels first, and ends with the gradients of it; ours is given the ground
truth in pixels, Ultralytics' criterion as its data loader has it. Making the one of the other is in nobody's time, and
neither are the points, which Ultralytics makes in every call.
"""

import functools
import importlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

import icr_kernels as icr
from icr_kernels.integrations.ultralytics.assigner import replace_assigners
from icr_kernels.integrations.ultralytics.detection import replace_losses

from . import assignment
from .assignment import REFERENCE, REFERENCE_BYTES, STOCK, STOCK_BYTES, STRIDES, fits
from .case import BOTH, DROP_IN, Case, Function, Inputs, LeftOut, step

NAME = "dense detection loss"
SIDE = 640
POINTS = sum((SIDE // stride) ** 2 for stride in STRIDES)
ASSIGNED: dict[str, Any] = {"smallest_side": float(STRIDES[1])}  # as Ultralytics 8.4.128 and later do it

# Bytes that Ultralytics' criterion holds at once for each logit of a class, about: scores, targets, losses, gradients.
BYTES_OF_A_CLASS = 30
# Boxes by points that take the reference a minute or more.
MINUTES = 1e8


class Head(NamedTuple):
    """A batch of a dense head: so many images, boxes of each, classes, and logits of a side."""

    images: int
    boxes: int
    classes: int
    bins: int = 16
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        distances = ", distances" if self.bins == 1 else ""
        return f"{self.images} images of {self.boxes} boxes, {self.classes} classes{distances}"

    @property
    def numbers(self) -> int:
        """What there is to look at: of each point its logits and the boxes of its image."""
        return self.images * POINTS * (self.classes + 4 * self.bins + self.boxes)

    @property
    def gradient_bytes(self) -> int:
        return self.images * POINTS * (self.classes + 4 * self.bins) * self.dtype.itemsize

    @property
    def moved_bytes(self) -> int:
        """What both passes have to move: the logits of the boxes are read to decode them, those of the classes in each
        pass, and the gradients are written; of a point there are its box, written and read, and its index and score,
        written and read in each pass."""
        of_a_point = 2 * 16 + 3 * 12
        classes_once_more = self.images * POINTS * self.classes * self.dtype.itemsize
        return 2 * self.gradient_bytes + classes_once_more + self.images * POINTS * of_a_point

    @property
    def rule(self) -> dict[str, Any]:
        """Of the assignment: that of YOLOv8 to YOLO11, and for distances of the one-to-one head of YOLO26."""
        return {"topk": 7, "topk2": 1} if self.bins == 1 else {"topk": 10}


QUICK, USUAL = Head(4, 20, 80), Head(16, 20, 80)
CLASSES = (2, 80, 365)
HEADS = (
    QUICK,
    *(Head(images, boxes, classes) for images in (16, 64) for boxes in (20, 300) for classes in CLASSES),
    *(USUAL._replace(boxes=boxes, dtype=torch.bfloat16) for boxes in (20, 300)),
    USUAL._replace(bins=1),
)


# Inputs


def scene(head: Head) -> Inputs:
    """The arguments of `dense_detection_loss`, and the truth as a loader of Ultralytics has it. A training has begun: a
    point predicts, more or less well, the box whose centre is nearest, and most classes are unlikely."""
    image = torch.arange(head.images).repeat_interleave(head.boxes)
    found = assignment.scene(image, head.images, SIDE, head.classes, is_tiny=False)
    scores, boxes, points, truth, labels = found[:5]
    strides = torch.cat([torch.full(((SIDE // stride) ** 2,), float(stride)) for stride in STRIDES])
    distance = torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), -1) / strides[:, None]
    if head.bins == 1:
        box_logits = distance.mT
    else:
        # A peak where the distance is.
        bin_number = torch.arange(head.bins)[:, None]
        box_logits = -((distance.clamp(0, head.bins - 1).mT.unsqueeze(2) - bin_number) ** 2).flatten(1, 2)
    class_logits = 8 * scores.mT - 8
    leaves = [each.to(head.dtype).contiguous().requires_grad_() for each in (box_logits, class_logits)]
    center, sides = (truth[:, :2] + truth[:, 2:]) / 2, truth[:, 2:] - truth[:, :2]
    loaded = labels[:, None].float(), torch.cat((center, sides), 1) / SIDE, image.float()
    return *leaves, points, strides, truth, labels, image, *loaded


# Implementations


def ours(head: Head, backend: str) -> Function:
    options = head.rule | ASSIGNED

    def loss(box_logits: Tensor, class_logits: Tensor, *rest: Tensor) -> Any:
        terms = icr.dense_detection_loss(
            box_logits.mT, class_logits.mT, *rest[:5], **options, image_size=(SIDE, SIDE), backend=backend
        )
        return sum(terms)

    return loss


def reference(head: Head) -> Function:
    def loss(*inputs: Tensor) -> Any:
        elements, device = len(inputs[4]) * POINTS, inputs[0].device
        fits(elements, REFERENCE_BYTES, device)
        if elements > MINUTES and device.type == "cpu":
            raise LeftOut("would take minutes a call")
        return ours(head, "reference")(*inputs)

    return loss


def accelerated(criterion: Any) -> Any:
    """A criterion of Ultralytics with this package's loss, as `accelerate(model, criterion=True)` changes it."""
    if not (replace_assigners(criterion) and replace_losses(criterion)):
        raise LeftOut("its loss stays the stock one")
    return criterion


def of_ultralytics(head: Head, changed: Callable[[Any], Any] = lambda criterion: criterion) -> Function:
    """Its criterion, under autocast where the logits are of half precision, as its trainers call it."""
    from .torchvision_without_extension import make_importable

    make_importable()
    criterion_of = importlib.import_module("ultralytics.utils.loss").v8DetectionLoss
    options = importlib.import_module("ultralytics.cfg").get_cfg()
    rule = {f"tal_{name}": value for name, value in head.rule.items()}

    @functools.cache
    def criterion(device: torch.device) -> Any:
        """Of a model with as much of a model as a criterion asks for."""
        layer = SimpleNamespace(stride=torch.tensor(STRIDES, device=device).float(), nc=head.classes, reg_max=head.bins)
        parameters = [torch.empty(0, device=device)]
        model = SimpleNamespace(model=[layer], args=options, parameters=lambda: iter(parameters))
        return changed(criterion_of(model, **rule))

    def loss(box_logits: Tensor, class_logits: Tensor, *rest: Tensor) -> Tensor:
        device = box_logits.device
        maps = [box_logits.new_empty(()).expand(head.images, 1, SIDE // each, SIDE // each) for each in STRIDES]
        batch = dict(zip(("cls", "bboxes", "batch_idx"), rest[5:], strict=True))
        losses_of = criterion(device).loss
        with torch.autocast(device.type, torch.bfloat16, enabled=class_logits.dtype == torch.bfloat16):
            losses = losses_of({"boxes": box_logits, "scores": class_logits, "feats": maps}, batch)[0]
        return losses.sum() / head.images

    return loss


def stock(head: Head) -> Function:
    loss = of_ultralytics(head)

    def checked(*inputs: Tensor) -> Tensor:
        fits(head.images * head.boxes * POINTS, STOCK_BYTES, inputs[0].device)
        fits(inputs[1].numel(), BYTES_OF_A_CLASS, inputs[0].device)
        return loss(*inputs)

    return checked


def drop_in(head: Head) -> Function:
    return of_ultralytics(head, accelerated)


# Comparisons


@functools.cache
def right(head: Head, device: torch.device) -> tuple[Tensor, ...]:
    """By the reference, image by image, because its matrices of a batch would not fit: the loss, and of the last image
    the gradients. Once for all rounds."""
    inputs = [each.detach().to(device) for each in scene(head)]
    points, strides, truth, labels, image = inputs[2:7]
    loss, total = torch.zeros((), device=device), torch.zeros((), device=device)
    gradients: tuple[Tensor, ...] = ()
    for number in range(head.images):
        leaves = [each[number : number + 1].requires_grad_() for each in inputs[:2]]
        boxes, classes = (leaf.mT for leaf in leaves)
        rows = image == number
        own, own_labels, own_image = truth[rows], labels[rows], torch.zeros_like(image[rows])
        decoded = icr.decode_boxes(boxes.detach(), points, strides, backend="reference")
        found = icr.task_aligned_assign(
            classes,
            decoded,
            points,
            own,
            own_labels,
            own_image,
            **head.rule,
            **ASSIGNED,
            from_logits=True,
            backend="reference",
        )
        terms = icr.dense_detection_loss(
            boxes,
            classes,
            points,
            strides,
            own,
            own_labels,
            own_image,
            assignment=found,
            normalizer=1.0,
            image_size=(SIDE, SIDE),
            backend="reference",
        )
        of_image = torch.stack(terms).sum()
        gradients = torch.autograd.grad(of_image, leaves)
        loss, total = loss + of_image.detach(), total + found.score.sum()
    total = total.clamp(min=1)
    return loss / total, *(each[0] / total for each in gradients)


def agrees(function: Function, inputs: Inputs, right: tuple[Tensor, ...]) -> bool:
    """In half precision but for the boxes' gradient: whoever decodes boxes in it has them a pixel beside, and others
    are the best for a target then."""
    is_half = inputs[0].element_size() == 2
    value = function(*inputs)
    of_boxes, of_classes = (each[-1] for each in torch.autograd.grad(value, inputs[:2]))

    def is_close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
        return bool((found.double() - expected.double()).norm() <= tolerance * expected.double().norm())

    return (
        is_close(value.detach(), right[0], 1e-2 if is_half else 1e-4)
        and is_close(of_classes, right[2], 5e-2 if is_half else 1e-3)
        and (is_half or is_close(of_boxes, right[1], 1e-3))
    )


# Cases


def case(head: Head, **rest: Any) -> Case:
    peers: dict[str, Callable[[], Function]] = {
        DROP_IN: functools.partial(drop_in, head),
        STOCK: functools.partial(stock, head),
        REFERENCE: functools.partial(reference, head),
    }
    return Case(
        name=NAME,
        shape=str(head),
        pairs=head.numbers,
        inputs=functools.partial(scene, head),
        ours=functools.partial(ours, head),
        peers=peers,
        truth=lambda inputs: right(head, inputs[0].device),
        agrees=agrees,
        quantities={BOTH: step},
        dtype=str(head.dtype).removeprefix("torch."),
        bytes_per_pair=head.moved_bytes / head.numbers,
        memory=True,
        operators=True,
        **rest,
    )


def cases() -> Iterator[Case]:
    for head in HEADS:
        yield case(head, full=head != QUICK)
