"""The criterion of the DETR family, whoever wrote it: ``forward(outputs, targets)`` matches the predictions of every
output with the boxes of the targets, which are normalised, as cxcywh, and ``loss_boxes`` is their L1 and GIoU loss."""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import arguments
from ..calls import Formula
from ..functional import box_iou_loss, icr_terms
from ..relations import Relations
from .handle import Losses, Record, are_same, trial_boxes
from .targets import table_of
from .uniform import UniformTerm

# Boxes are normalised: an area of 1e-7 is one of a box of 0.2 pixels at 640, and below it they are still told apart.
EPS = 1e-16

# Where outputs hold those of denoising queries.
DENOISING = ("dn_outputs", "dn_aux_outputs", "dn_auxiliary_outputs", "dn_pre_outputs")


@dataclasses.dataclass
class Terms:
    """What is added to a criterion, and what is known of the batch that it computes now."""

    relations: Relations
    weight: float
    formula: Mapping[str, Any]
    auxiliary: bool
    denoising: bool
    uniform: UniformTerm | None
    record: Record
    # Of the targets' dictionaries.
    label_key: str
    # Whether L1 and GIoU are computed here, because those of the criterion are the same.
    replaces: bool = True
    # Names by label until a batch has shown that its labels are among them.
    unseen_labels: Mapping[int, str] | None = None
    batch: "Batch | None" = None
    logged: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        relations: Relations,
        weight: float,
        penalty: str,
        relative: bool,
        auxiliary: bool,
        denoising: bool,
        box_term: float,
        label_key: str,
    ) -> "Terms":
        weight = arguments.number("weight", weight, 0)
        arguments.formula(*Formula(penalty=penalty, relative=relative))
        uniform = UniformTerm.of_parts(box_term, relations)
        formula = {"penalty": penalty, "relative": relative}
        record = Record(relations, uniform)
        return cls(relations, weight, formula, auxiliary, denoising, uniform, record, label_key)

    def look_at(self, criterion: Any) -> None:
        """Finds out whether the box losses of a criterion may be replaced, and warns where they stay."""
        self.replaces = _has_stock_losses(criterion)
        if not self.replaces:
            warnings.warn(
                f"icr_kernels: the box losses of {type(criterion).__name__} are not L1 and GIoU; they stay, and the "
                "penalty is added to its loss_giou",
                stacklevel=3,
            )


class Batch:
    """What is known of a batch before its losses are computed."""

    def __init__(self, outputs: Mapping[str, Any], targets: list[dict[str, Tensor]], terms: Terms) -> None:
        # Labels are read here: where a criterion comes to the encoder it has zeros in their place.
        self.table = table_of(targets, terms.label_key, terms.relations, eps=EPS, box_format="cxcywh")
        # Outputs are told by their boxes, because some criteria copy the dictionary around them.
        self.main = outputs["pred_boxes"]
        denoising = [outputs.get(name) or () for name in DENOISING]
        lists = [[each] if isinstance(each, Mapping) else each for each in denoising]
        self.denoising = [output["pred_boxes"] for outputs in lists for output in outputs]

    def is_main(self, boxes: Tensor) -> bool:
        return boxes is self.main

    def is_denoising(self, boxes: Tensor) -> bool:
        return any(boxes is each for each in self.denoising)


class WithTerms:
    """Before a criterion."""

    icr: Terms

    def forward(self, outputs: Any, targets: Any, *rest: Any, **named: Any) -> dict[str, Tensor]:
        self.icr.batch = Batch(outputs, targets, self.icr)
        try:
            return super().forward(outputs, targets, *rest, **named)  # type: ignore[misc]
        finally:
            self.icr.batch = None

    def loss_boxes(
        self,
        outputs: dict[str, Tensor],
        targets: list[dict[str, Tensor]],
        indices: list[tuple[Tensor, Tensor]],
        num_boxes: Any,
        boxes_weight: Tensor | None = None,
        **named: Any,
    ) -> dict[str, Tensor]:
        """``boxes_weight`` weighs the GIoU losses of the stock criterion, never the terms."""
        icr = self.icr
        batch = icr.batch or Batch(outputs, targets, icr)
        table, boxes = batch.table, outputs["pred_boxes"]
        image = torch.cat([torch.full_like(query, number) for number, (query, _) in enumerate(indices)])
        pred = boxes[image, torch.cat([query for query, _ in indices])]
        rows = table.rows([of_image for _, of_image in indices]).to(table.boxes.device)
        target, anchor_index = table.boxes[rows], table.anchor_index[rows]
        # Under autocast a half-precision output meets targets that are none.
        pred = pred.to(torch.promote_types(pred.dtype, target.dtype))
        is_box = None if table.is_box is None else table.is_box[rows]
        is_main = batch.is_main(boxes)
        wants_terms = is_main or (icr.denoising if batch.is_denoising(boxes) else icr.auxiliary)
        terms = icr_terms(
            pred,
            target,
            table.boxes,
            anchor_index=anchor_index if wants_terms else torch.full_like(anchor_index, -1),
            loss="giou",
            penalty_weight=0.0,
            mask=is_box,
            eps=EPS,
            box_format="cxcywh",
            **icr.formula,
        )
        if icr.replaces:
            giou = terms.loss if boxes_weight is None else terms.loss * boxes_weight
            difference = pred - target
            if is_box is not None:
                difference = torch.where(is_box[:, None], difference, 0)
            losses = _box_losses(difference, giou, num_boxes)
        else:
            if boxes_weight is not None:
                named["boxes_weight"] = boxes_weight
            losses = super().loss_boxes(outputs, targets, indices, num_boxes, **named)  # type: ignore[misc]
            if "loss_giou" not in losses:
                raise ValueError(f"loss_boxes: expected loss_giou among its losses, got {', '.join(losses)}")
        added = icr.weight * terms.penalty.sum() / num_boxes
        is_part = table.is_part[rows]
        if icr.uniform is not None and wants_terms:
            mean = icr.uniform.mean(pred, target, is_part, eps=EPS, box_format="cxcywh")
            added = added + icr.uniform.weight * mean
            if is_main:
                icr.logged["icr_uniform"] = mean.detach()
                icr.record.add_uniform(is_part, mean)
        if is_main:
            penalty = terms.penalty.detach()
            is_paired = anchor_index >= 0
            icr.logged["icr_penalty"] = torch.where(is_paired, penalty, 0).sum() / is_paired.sum().clamp(min=1)
            icr.record.add_positives(rows >= 0 if is_box is None else is_box)
            icr.record.add_penalty(is_part, is_paired, penalty)
        return {**losses, "loss_giou": losses["loss_giou"] + added}


def _box_losses(difference: Tensor, giou: Tensor, num_boxes: Any) -> dict[str, Tensor]:
    return {"loss_bbox": difference.abs().sum() / num_boxes, "loss_giou": giou.sum() / num_boxes}


def _has_stock_losses(criterion: Any) -> bool:
    """Whether its box losses are those that would take their place, on boxes made for the purpose."""
    pred, target = trial_boxes()
    indices = torch.arange(len(pred)), torch.arange(len(pred))

    def stock(pred: Tensor) -> Losses:
        return criterion.loss_boxes({"pred_boxes": pred[None]}, [{"boxes": target}], [indices], len(pred))

    def own(pred: Tensor) -> Losses:
        giou = box_iou_loss(pred, target, loss="giou", reduction="none", eps=EPS, box_format="cxcywh")
        return _box_losses(pred - target, giou, len(pred))

    try:
        return are_same(stock, own, pred)
    except Exception:  # a loss that needs more than boxes is another
        return False
