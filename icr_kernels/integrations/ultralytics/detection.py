"""The loss of a dense head, and how it takes the place of the stock one in a criterion."""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ...assignment import task_aligned_assign
from ...detection import decode_boxes, dense_detection_loss
from ..handle import ROUNDING
from .assigner import TRIAL_SIZE, AssignerInPlace, trial_scene
from .in_place import InPlace, before, heads, named
from .terms import Assigned, HeadChanges

# So many sizes of images, as training on several scales has them, are kept of each criterion.
MOST_GRIDS = 64


class Grid(NamedTuple):
    """The points of a head, in pixels."""

    points: Tensor  # (A, 2)
    strides: Tensor  # (A,)
    scale: Tensor  # (4,), what makes pixels of normalised boxes
    image_size: tuple[float, float]  # height, width


# Of each criterion those that it has met. Not among its attributes, which are stock.
_GRIDS: WeakKeyDictionary[Any, dict[Any, Grid]] = WeakKeyDictionary()


class LossInPlace(InPlace):
    """Before a `v8DetectionLoss` with an assigner of this package: `dense_detection_loss` with its options."""

    # Of Ultralytics.
    assigner: AssignerInPlace
    reg_max: int
    nc: int
    stride: Tensor
    hyp: Any
    # What changes the box loss of the step that is on.
    changes: HeadChanges | None = None

    @contextmanager
    def changed_by(self, changes: HeadChanges) -> Iterator[None]:
        self.changes = changes
        try:
            yield
        finally:
            del self.changes

    def _is_as_tried(self) -> bool:
        """Whether nobody has given it another part since; then what it was made of computes, with a warning."""
        reason = _changed(self)
        if reason is not None:
            warnings.warn(f"icr_kernels: {named(self)} is the stock loss in this step, because {reason}", stacklevel=3)
        return reason is None

    def _losses(
        self, boxes: Tensor, scores: Tensor, maps: Sequence[Tensor], batch: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Of logits (B, 4R, A) and (B, C, A): the three losses times B, and as they are, without gradient."""
        device, images = boxes.device, len(boxes)
        points, strides, scale, image_size = self._grid(maps, device)
        truth = batch["bboxes"].to(device) * scale
        labels = batch["cls"].view(-1).to(device, torch.int64)
        image = batch["batch_idx"].view(-1).to(device, torch.int64)
        # The stock criterion takes such boxes for padding.
        image = image.masked_fill(truth[:, :2].sum(1) <= 0, -1)
        box_logits, class_logits = boxes.mT, scores.mT
        # One decoding serves the assignment and the terms; without these nothing asks for its gradient.
        has_terms = self.changes is not None and self.changes.terms is not None
        decoded = decode_boxes(box_logits if has_terms else box_logits.detach(), points, strides)
        assignment = task_aligned_assign(
            class_logits.detach(),
            decoded.detach(),
            points,
            truth,
            labels,
            image,
            from_logits=True,
            truth_format="cxcywh",
            **self.assigner.rule(),
        )
        class_weights = getattr(self, "class_weights", None)
        of_boxes = {}
        if self.changes is not None:
            centre, half = truth[:, :2], truth[:, 2:] / 2
            table = torch.cat((centre - half, centre + half), 1)
            self.changes.count(assignment.index)
            of_boxes = self.changes.box_loss(decoded.detach(), table, assignment.index)
        # Gains of B times as much save a multiplication forward and one backward.
        gains = images * self.hyp.box, images * self.hyp.cls, images * self.hyp.dfl
        found = dense_detection_loss(
            box_logits,
            class_logits,
            points,
            strides,
            truth,
            labels,
            image,
            assignment=assignment,
            class_weight=None if class_weights is None else class_weights.view(-1),
            gains=gains,
            image_size=image_size,
            box_format="cxcywh",
            **of_boxes,
        )
        box = found.box
        if self.changes is not None and has_terms:
            normalizer = assignment.score.sum().clamp(min=1)
            assigned = Assigned(decoded, assignment.index, assignment.score, normalizer, table, labels, image)
            box = box + gains[0] * self.changes.of(assigned)
        losses = torch.stack((box, found.classification, found.distribution))
        return losses, losses.detach() / images

    def _grid(self, maps: Sequence[Tensor], device: torch.device) -> Grid:
        shapes = tuple(tuple(each.shape[2:]) for each in maps)
        known = _GRIDS.setdefault(self, {})
        if (shapes, device) not in known:
            if len(known) == MOST_GRIDS:
                known.clear()
            # What inference makes could not be kept for a backward pass.
            with torch.inference_mode(False):
                known[shapes, device] = _grid_of(shapes, self.stride.tolist(), device)
        return known[shapes, device]


class OfOutputs(LossInPlace):
    """Since 8.4 a head leaves logits of all levels, by name."""

    loss_names: Sequence[str]

    def loss(self, preds: dict[str, Any], batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if not self._is_as_tried():
            return super().loss(preds, batch)  # type: ignore[misc]
        losses, items = self._losses(preds["boxes"], preds["scores"], preds["feats"], batch)
        return losses, dict(zip(self.loss_names, items, strict=True))


class OfMaps(LossInPlace):
    """Before, a map of each level."""

    def __call__(self, preds: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        if not self._is_as_tried():
            return super().__call__(preds, batch)  # type: ignore[misc]
        return self._of_maps(preds, batch)

    def _of_maps(self, preds: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        maps = preds[1] if isinstance(preds, tuple) else preds
        boxes, scores = torch.cat([each.flatten(2) for each in maps], 2).split((4 * self.reg_max, self.nc), 1)
        return self._losses(boxes, scores, maps, batch)


class OfMapsInSum(OfMaps):
    """In the oldest versions losses are added up."""

    def _of_maps(self, preds: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        losses, items = super()._of_maps(preds, batch)
        return losses.sum(), items


def _grid_of(shapes: Sequence[Sequence[int]], steps: Sequence[float], device: torch.device) -> Grid:
    points, strides = [], []
    for (height, width), step in zip(shapes, steps, strict=True):
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        points.append(step * torch.stack((x, y), -1).view(-1, 2))
        strides.append(torch.full((height * width,), step))
    image_size = shapes[0][0] * steps[0], shapes[0][1] * steps[0]
    scale = torch.tensor((*image_size[::-1], *image_size[::-1]))
    return Grid(torch.cat(points).to(device), torch.cat(strides).to(device), scale.to(device), image_size)


def replace_losses(criterion: Any) -> list[LossInPlace]:
    """Puts the loss of this package in the place of each stock one of a criterion whose assigner is in place and that
    gives the same losses and gradients; the others stay, and a warning says which and why, but for those that stay with
    their assigner. Returns what is in place."""
    found = heads(criterion)
    for head in found:
        if isinstance(head, LossInPlace) or not isinstance(head.assigner, AssignerInPlace):
            continue
        base: Any = type(head)
        kind = _kind(head)
        if isinstance(kind, str):
            warnings.warn(f"icr_kernels: {named(head)} stays the loss, because {kind}", stacklevel=2)
        else:
            head.__class__ = before(kind, base)
    return [each for each in found if isinstance(each, LossInPlace)]


def _changed(loss: Any) -> str | None:
    """What of a loss, as it is made or as somebody has changed it, this package does not know."""
    from ultralytics.utils.loss import BboxLoss

    for name, known in (("bbox_loss", BboxLoss), ("bce", nn.BCEWithLogitsLoss)):
        part = getattr(loss, name, None)
        if type(part) is not known:
            return f"its {name}, {named(part)}, is of another class"
    if loss.bce.weight is not None or loss.bce.pos_weight is not None:
        return "its bce has weights of its own"
    if not isinstance(loss.assigner, AssignerInPlace):
        return f"its assigner, {named(loss.assigner)}, is of another class"
    for name in ("box", "cls", "dfl"):
        if not isinstance(getattr(loss.hyp, name), (int, float)):
            return f"its hyp.{name} is no number"
    return None


def _kind(stock: Any) -> Any:
    """What takes the place of a stock loss, or why nothing does."""
    from ultralytics.utils.loss import v8DetectionLoss

    base: Any = type(stock)
    if base is not v8DetectionLoss:
        return "it is of another class"
    if {"loss", "__call__", "get_assigned_targets_and_loss"} & vars(stock).keys():
        return "it has methods of its own"
    try:
        changed = _changed(stock)
        if changed is not None:
            return changed
        trial = Trial(stock)
        theirs = copy.copy(stock)
        # Copied, the assigner is the stock one again.
        theirs.assigner = copy.copy(stock.assigner)
        expected = trial.results(theirs)
        kinds: tuple[Any, ...] = (OfOutputs,) if trial.has_outputs else (OfMaps, OfMapsInSum)
        for kind in kinds:
            ours = copy.copy(stock)
            ours.__class__ = before(kind, base)
            if trial.results(ours).are(expected):
                return kind
        return "it gives other losses on a trial scene"
    except Exception as error:  # whatever one raises that is called in another way
        return f"it cannot be compared ({error})"


class Results(NamedTuple):
    """What a loss gives."""

    names: list[str] | None  # of the items, where they have some
    values: list[Tensor]
    gradients: tuple[Tensor, ...]

    def are(self, other: "Results") -> bool:
        """The same but for rounding."""
        return (
            self.names == other.names
            and all(a.shape == b.shape for a, b in zip(self.values, other.values, strict=True))
            and all(
                torch.allclose(*each, rtol=ROUNDING, atol=0) for each in zip(self.values, other.values, strict=True)
            )
            and all((a - b).norm() <= ROUNDING * b.norm() for a, b in zip(self.gradients, other.gradients, strict=True))
        )


class Trial:
    """What a stock loss is compared on: the scene of assigners, as the outputs of a head that predicts its boxes."""

    def __init__(self, stock: Any) -> None:
        self.has_outputs = hasattr(type(stock), "loss")
        strides = stock.stride.tolist()
        steps = [stride / strides[0] for stride in strides]
        self.sides = [int(TRIAL_SIZE / step) for step in steps]
        scores, predicted, points, labels, boxes, is_box = trial_scene(stock.nc, strides[0], steps)
        stride = torch.cat([torch.full((side * side, 1), step) for side, step in zip(self.sides, strides, strict=True)])
        distance = torch.cat((points - predicted[..., :2], predicted[..., 2:] - points), -1) / stride
        if stock.reg_max > 1:
            # A distribution about it.
            distance = -((distance[..., None] - torch.arange(stock.reg_max)) ** 2).flatten(2)
        self.logits = [each.mT.to(stock.device).requires_grad_() for each in (distance, scores.logit())]
        corners, size = boxes[is_box[..., 0]], TRIAL_SIZE * strides[0]
        self.batch = {
            "batch_idx": is_box[..., 0].nonzero()[:, 0].float(),
            "cls": labels[is_box].float(),
            "bboxes": torch.cat((corners[:, :2] + corners[:, 2:], 2 * (corners[:, 2:] - corners[:, :2])), 1) / 2 / size,
        }

    def results(self, loss: Any) -> Results:
        with torch.enable_grad(), torch.autocast(self.logits[0].device.type, enabled=False):
            boxes, scores = self.logits
            levels = torch.cat((boxes, scores), 1).split([side * side for side in self.sides], 2)
            maps = [level.unflatten(2, (side, side)) for level, side in zip(levels, self.sides, strict=True)]
            preds = {"boxes": boxes, "scores": scores, "feats": maps} if self.has_outputs else maps
            losses, items = loss(preds, {name: each.to(loss.device) for name, each in self.batch.items()})
            names, values = (list(items), list(items.values())) if isinstance(items, dict) else (None, [items])
            return Results(names, [losses.detach(), *values], torch.autograd.grad(losses.sum(), self.logits))
