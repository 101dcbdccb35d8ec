"""Around a stock criterion, of YOLO or of RT-DETR: it is watched while it runs, and its box loss is changed."""

import copy
import inspect
from contextlib import ExitStack
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ...functional import box_iou_loss, icr_terms
from ..handle import Losses, are_same, trial_boxes
from ..set_criterion import EPS
from .detection import LossInPlace
from .in_place import heads, named
from .terms import Assigned, Changes, HeadChanges

# What is read of the arguments of a head's modules, by the names that they have since 8.0.
READ = {
    "assigner": ("anc_points", "gt_labels", "gt_bboxes", "mask_gt"),
    "bbox_loss": ("pred_bboxes", "anchor_points", "target_scores", "target_scores_sum", "fg_mask"),
}


def criterion_of(stock: Any) -> "Criterion":
    """Without changes yet. An error where it is not of a kind that is known."""
    if all(hasattr(stock, name) for name in ("_get_loss_bbox", "_get_loss_aux", "_get_index")):
        return DetrCriterion(stock, Changes())
    if not all(isinstance(getattr(head, name, None), nn.Module) for head in heads(stock) for name in READ):
        raise ValueError(
            "model: expected one whose criterion has an assigner and a box loss, or is that of RT-DETR, got one with "
            f"{named(stock)}"
        )
    for head in heads(stock):
        for name, read in READ.items():
            module = getattr(head, name)
            taken = inspect.signature(module.forward).parameters
            if not set(read) <= taken.keys():
                raise ValueError(
                    f"model: expected one with {name}.forward({', '.join(read)}, ...), got one with {named(module)}, "
                    f"which takes ({', '.join(taken)})"
                )
    return YoloCriterion(stock, Changes())


class Criterion:
    """Around a criterion of Ultralytics. Copied it is another such; pickled it is the stock criterion."""

    iou_loss: str
    column: str  # of the log, in which the box loss is

    def __init__(self, stock: Any, changes: Changes) -> None:
        self.stock = stock
        self.changes = changes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stock, name)

    def __deepcopy__(self, memo: dict) -> "Criterion":
        return type(self)(copy.deepcopy(self.stock, memo), self.changes)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # From protocol 2 on pickle insists that an object is pickled as one of its own class.
        return self.stock.__reduce_ex__(1)

    def end_step(self) -> None:
        for record in self.changes.records:
            record.step()

    def check_iou_loss(self, device: torch.device) -> None:
        """An error where the stock box loss is not the one that would take its place. Nothing is trained yet."""
        pred, target = (boxes.to(device) for boxes in trial_boxes())
        error = None
        try:
            if self.has_iou_loss(pred, target):
                return
        except Exception as raised:  # a loss that is called in another way is another
            error = raised
        raise ValueError(
            f"replace_iou_loss: expected False, because the box loss of {type(self.stock).__name__} is not the "
            f"{self.iou_loss} that would take its place, got True"
        ) from error


class YoloCriterion(Criterion):
    """Around a `v8DetectionLoss`, or around a criterion that holds one for each of two heads."""

    iou_loss = "CIoU"
    column = "box_loss"

    def has_iou_loss(self, pred: Tensor, target: Tensor) -> bool:
        # In cells of a level, as corners.
        pred, target = (
            20 * torch.cat((each[:, :2] - each[:, 2:] / 2, each[:, :2] + each[:, 2:] / 2), 1) for each in (pred, target)
        )
        return all(_has_ciou(head, pred, target) for head in heads(self.stock))

    def __call__(self, preds: Any, batch: Any) -> tuple[Tensor, Any]:
        of_heads = [HeadChanges(self.changes, head.hyp.box, number) for number, head in enumerate(heads(self.stock))]
        # They are there during this call only: nothing that belongs to a graph stays behind.
        with ExitStack() as call:
            for head, changes in zip(heads(self.stock), of_heads, strict=True):
                # One that calls neither of the two modules takes the changes itself.
                if isinstance(head, LossInPlace):
                    call.enter_context(head.changed_by(changes))
                watch = Watch(changes)
                for module, hook in (
                    (head.assigner, watch.after_assigner),
                    (head.bbox_loss, watch.after_box_loss),
                ):
                    call.enter_context(module.register_forward_hook(hook, with_kwargs=True))
            loss, items = self.stock(preds, batch)
        self.end_step()
        if isinstance(items, dict):
            # The items of an end-to-end model are those of its last head.
            for column in self.changes.columns:
                term = of_heads[-1].added.get(column, torch.zeros_like(items["box_loss"]))
                items = {**items, "box_loss": items["box_loss"] - term, column: term}
        return loss, items


def _has_ciou(head: Any, pred: Tensor, target: Tensor) -> bool:
    """Whether the box loss of a head is the weighted mean of CIoU losses."""
    weight = torch.linspace(0.5, 1.5, len(pred), device=pred.device)
    arguments = {
        "pred_dist": pred.new_zeros(1, len(pred), 4 * head.reg_max),
        "anchor_points": pred.new_zeros(len(pred), 2),
        "target_bboxes": target[None],
        "target_scores": weight[None, :, None],
        "target_scores_sum": weight.sum(),
        "fg_mask": torch.ones(1, len(pred), dtype=torch.bool, device=pred.device),
        "imgsz": pred.new_full((2,), 640),
        "stride": pred.new_ones(len(pred), 1),
    }
    taken = inspect.signature(head.bbox_loss.forward).parameters  # fewer in older versions
    arguments = {name: value for name, value in arguments.items() if name in taken}

    def stock(pred: Tensor) -> Losses:
        return {"ciou": head.bbox_loss(pred_bboxes=pred[None], **arguments)[0]}

    def own(pred: Tensor) -> Losses:
        return {"ciou": box_iou_loss(pred, target, loss="ciou", weight=weight, normalizer=weight.sum())}

    return are_same(stock, own, pred)


class Watch:
    """Of the assigner and the box loss of one head, once each: changes the latter."""

    def __init__(self, changes: HeadChanges) -> None:
        self.changes = changes

    def after_assigner(self, module: nn.Module, arguments: tuple, named: dict, outputs: tuple) -> None:
        # It alone sees which ground truth each prediction is assigned to, and the labels.
        self.points, self.labels, self.boxes, self.is_box = _read("assigner", module, arguments, named)
        self.gt_index = outputs[4]

    def after_box_loss(self, module: nn.Module, arguments: tuple, named: dict, outputs: tuple) -> tuple | None:
        pred, points, scores, scores_sum, is_positive = _read("bbox_loss", module, arguments, named)
        images, padded = self.boxes.shape[:2]
        if padded == 0:
            return None
        image = torch.arange(images, device=self.boxes.device)[:, None]
        # Predictions are in cells of their own level, ground truth in pixels; a point is known in both.
        stride = (self.points / points)[:, :1]
        found = Assigned(
            pred=pred.to(torch.promote_types(pred.dtype, torch.float32)) * stride,
            index=torch.where(is_positive, self.gt_index.long() + padded * image, -1),
            score=scores.sum(-1),
            normalizer=scores_sum,
            table=self.boxes.flatten(0, 1),
            labels=self.labels.flatten().long(),
            # Rows of padding are boxes of no image.
            image=torch.where(self.is_box[..., 0] > 0, image, -1).flatten(),
        )
        self.changes.count(found.index)
        iou_loss, other = outputs[0], self.changes.box_loss(found.pred, found.table, found.index)
        if other:
            iou_loss = box_iou_loss(
                found.pred,
                found.table,
                target_index=found.index,
                weight=found.score,
                normalizer=found.normalizer,
                **other,
            )
        return iou_loss + self.changes.of(found), *outputs[1:]


def _read(name: str, module: nn.Module, arguments: tuple, named: dict) -> list[Any]:
    bound = inspect.signature(module.forward).bind(*arguments, **named).arguments
    return [bound[each] for each in READ[name]]


class DetrCriterion(Criterion):
    """Around an `RTDETRDetectionLoss`."""

    iou_loss = "GIoU"
    column = "giou_loss"

    def has_iou_loss(self, pred: Tensor, target: Tensor) -> bool:
        def stock(pred: Tensor) -> Losses:
            return {"giou": self.stock._get_loss_bbox(pred, target)["loss_giou"]}

        def own(pred: Tensor) -> Losses:
            loss = box_iou_loss(pred, target, loss="giou", eps=EPS, box_format="cxcywh")
            return {"giou": self.stock.loss_gain["giou"] * loss}

        return are_same(stock, own, pred)

    def __call__(self, preds: Any, batch: Any, *rest: Any, **named: Any) -> dict[str, Tensor]:
        # What the stock criterion notes about itself stays its own; what is noted here goes with the call.
        base: Any = type(self.stock)
        self.stock.__class__ = _watched(base)
        self.stock.batch_changes = BatchChanges(self.changes, batch, self.stock.loss_gain["giou"])
        try:
            losses = self.stock(preds, batch, *rest, **named)
        finally:
            del self.stock.batch_changes
            self.stock.__class__ = base
        self.end_step()
        return losses


@cache
def _watched(base: Any) -> Any:
    return type(base.__name__, (Watched, base), {})


class Watched:
    """Before an `RTDETRDetectionLoss`."""

    batch_changes: "BatchChanges"

    def _get_loss_aux(self, *arguments: Any, **named: Any) -> dict[str, Tensor]:
        self.batch_changes.is_main = False
        losses = super()._get_loss_aux(*arguments, **named)  # type: ignore[misc]
        self.batch_changes.is_main = True
        return losses

    def _get_index(self, match_indices: list[tuple]) -> tuple:
        index = super()._get_index(match_indices)  # type: ignore[misc]
        self.batch_changes.rows = index[1]
        return index

    def _get_loss_bbox(self, pred: Tensor, target: Tensor, postfix: str = "") -> dict[str, Tensor]:
        losses = super()._get_loss_bbox(pred, target, postfix)  # type: ignore[misc]
        if len(target) == 0:
            return losses
        # The key of the stock loss, because only those are added up.
        name = f"loss_giou{postfix}"
        return {**losses, name: self.batch_changes.added(losses[name], pred, target, is_denoising=bool(postfix))}


class BatchChanges:
    """The changes of a batch: boxes come normalised, as cxcywh, ground truth in one table."""

    def __init__(self, changes: Changes, batch: dict[str, Any], gain: float) -> None:
        self.changes = changes
        self.gain = gain
        self.table = batch["bboxes"]
        self.is_main = True
        # Which row of the table each matched prediction has as its target.
        self.rows = torch.empty(0, dtype=torch.int64)
        terms, labels = changes.terms, batch["cls"]
        if terms is not None and terms.relations is not None:
            self.is_part = terms.relations.is_part(labels)
            self.anchor_index = terms.relations.anchor_index(
                self.table, labels, batch["batch_idx"], eps=EPS, box_format="cxcywh"
            )
        if terms is not None and terms.chooser is not None:
            self.is_chosen = terms.chooser(labels, terms.image_size * self.table[:, 2:])

    def added(self, loss: Tensor, pred: Tensor, target: Tensor, is_denoising: bool) -> Tensor:
        """The GIoU loss of an output, or what is in its place, with the terms."""
        (terms, other), gain = self.changes, self.gain
        rows = self.rows.to(self.table.device)
        is_recorded = self.is_main and not is_denoising
        if is_recorded:
            for record in self.changes.records:
                record.add_positives(rows >= 0)
        form: dict[str, Any] = {"eps": EPS, "box_format": "cxcywh"}
        if other is not None:
            mean = other.mean_of(0, pred, target, **form)
            scale = float(other.image_size)
            loss = gain * box_iou_loss(pred, target, loss=other.loss, scale=scale, wise_mean=mean, **form)
        if terms is None:
            return loss
        options = terms.options
        if (is_denoising and not options.denoising) or not (self.is_main or options.auxiliary):
            return loss
        if options.penalty is not None:
            anchor_index = self.anchor_index[rows]
            penalty = icr_terms(
                pred,
                target,
                self.table,
                anchor_index=anchor_index,
                loss="iou",
                penalty_weight=0.0,
                **options.penalty.formula,
                **form,
            ).penalty
            is_paired = anchor_index >= 0
            count = is_paired.sum().clamp(min=1) if options.penalty.weighting == "uniform" else len(target)
            loss = loss + gain * options.penalty.weight * penalty.sum() / count
            if is_recorded:
                options.record.add_penalty(self.is_part[rows], is_paired, penalty)
        if options.uniform is not None:
            is_chosen = self.is_chosen[rows]
            mean = options.uniform.mean(pred, target, is_chosen, **form)
            loss = loss + gain * options.uniform.weight * mean
            if is_recorded:
                options.record.add_uniform(is_chosen, mean)
        return loss
