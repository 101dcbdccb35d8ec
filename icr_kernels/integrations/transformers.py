"""Hugging Face transformers 5.x: DETR, Conditional and Deformable DETR, RT-DETR (v1, v2), D-FINE, LW-DETR, RF-DETR.

Tried with transformers 5.24.
"""

import types
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..functional import box_iou_loss, icr_terms
from ..relations import Relations
from .handle import Handle, Losses, Record, are_same, framework, trial_boxes
from .targets import table_of
from .uniform import UniformTerm

# Boxes are normalised: an area of 1e-7 is one of a box of 0.2 pixels at 640, and below it they are still told apart.
EPS = 1e-16


def enable_icr(
    model: Any,
    pairs: Mapping[str, str | Sequence[str]],
    *,
    weight: float = 0.5,
    penalty: str = "containment",
    relative: bool = False,
    auxiliary: bool = True,
    denoising: bool = False,
    min_containment: float = 0.5,
    box_term: float = 0.0,
) -> Handle:
    """Adds the penalty to the box loss of a detector, and computes its GIoU pair by pair.

    A criterion with other box losses than the stock L1 and GIoU, as forks have it, keeps them: then the penalty is
    added to its "loss_giou", and a warning says so.

    ``model.loss_function`` is set, nothing else is touched: weights and checkpoints stay ordinary. It survives
    `copy.deepcopy` and `torch.save`; `from_pretrained` makes a new model with the stock loss, for which this is to be
    called again. Anchor objects are found among the ground-truth boxes of the same image; where every label has a
    ``parent_idx`` (n,) beside its boxes (int64: row of the whole, -1: unknown, -2: none), that takes precedence.

    Args:
        model: an object detection model of transformers, not wrapped.
        pairs: to each part the name or names of its wholes, as `model.config.id2label` spells them.
        weight: of the penalty, beside the GIoU loss of the same pair, whose coefficient multiplies both.
        penalty, relative: as of `icr_loss`.
        auxiliary: also at the outputs of the decoder's earlier layers and of the encoder.
        denoising: also at the denoising queries.
        min_containment: a part of which no whole contains at least this share has no anchor object.
        box_term: the weight of the plain mean of 1 - IoU over the predictions of parts, in the unit of the GIoU loss
            and wherever the penalty is. No relation has to do with it.

    Returns:
        A `Handle`: statistics, reset, disable. The mean penalty of a step is also in the model output's ``loss_dict``,
        as "icr_penalty", and that of a uniform term, as "icr_uniform", both before weighting.

    Raises:
        ImportError: transformers is missing or of a version that is not supported.
        TypeError, ValueError: a model without a box loss that is known, an unknown class, a wrong name or number.
    """
    framework("transformers", "5.0", "6")
    relations = Relations(pairs, _names(model), min_containment=min_containment)
    checks.number("weight", weight, 0)
    checks.formula("giou", penalty, weight, relative, EPS, "cxcywh", None)
    uniform = UniformTerm.of_parts(box_term, relations)
    stock = model.loss_function
    if isinstance(stock, ICRLossFunction):
        stock = stock.stock
    loss = ICRLossFunction(stock, relations, weight, penalty, relative, auxiliary, denoising, uniform)
    model.loss_function = loss

    def disable() -> None:
        model.loss_function = stock

    return Handle(loss.record, disable)


def _names(model: Any) -> Mapping[int, str]:
    names = getattr(getattr(model, "config", None), "id2label", None)
    if names is None or not hasattr(model, "loss_function"):
        raise TypeError(f"model: expected an object detection model of transformers, got {type(model).__name__}")
    return names


class ICRLossFunction:
    """A detector's loss function, run with its criterion replaced by one that adds the penalty."""

    def __init__(
        self,
        stock: Any,
        relations: Relations,
        weight: float,
        penalty: str,
        relative: bool,
        auxiliary: bool,
        denoising: bool,
        uniform: UniformTerm | None,
    ) -> None:
        self.stock = stock
        self.relations = relations
        self.weight = weight
        self.options = {"penalty": penalty, "relative": relative}
        self.auxiliary = auxiliary
        self.denoising = denoising
        self.uniform = uniform
        self.record = Record(relations, uniform)
        _, criterion = _criterion_of(stock)
        self.replaces = _has_stock_losses(criterion)
        if not self.replaces:
            warnings.warn(
                f"icr_kernels: the box losses of {criterion.__name__} are not L1 and GIoU; they stay, and the penalty "
                "is added to its loss_giou",
                stacklevel=3,
            )

    def __call__(self, *arguments: Any, **named: Any) -> tuple:
        name, base = _criterion_of(self.stock)
        criterion = type(f"ICR{base.__name__}", (_WithPenalty, base), {"icr": self})
        # The same code over one other global: which criterion it makes.
        function = types.FunctionType(
            self.stock.__code__,
            {**self.stock.__globals__, name: criterion},
            self.stock.__name__,
            self.stock.__defaults__,
            self.stock.__closure__,
        )
        function.__kwdefaults__ = self.stock.__kwdefaults__
        self.logged: dict[str, Tensor] = {}
        loss, parts, auxiliary = function(*arguments, **named)
        self.record.step()
        logged, self.logged = self.logged, {}
        return loss, {**parts, **logged}, auxiliary


def _criterion_of(function: Any) -> tuple[str, type]:
    """The criterion that a loss function of transformers makes, and its name there."""
    for name in getattr(getattr(function, "__code__", None), "co_names", ()):
        criterion = function.__globals__.get(name)
        if isinstance(criterion, type) and hasattr(criterion, "loss_boxes"):
            return name, criterion
    raise ValueError(
        f"model: expected a detector whose loss has a criterion with loss_boxes, got one with the loss function "
        f"{getattr(function, '__name__', function)!r}"
    )


def _has_stock_losses(criterion: type) -> bool:
    """Whether its box losses are those that would take their place, on boxes made for the purpose."""
    pred, target = trial_boxes()
    indices = torch.arange(len(pred)), torch.arange(len(pred))
    bare: Any = object.__new__(criterion)  # what it holds is for the other losses
    torch.nn.Module.__init__(bare)

    def stock(pred: Tensor) -> Losses:
        return bare.loss_boxes({"pred_boxes": pred[None]}, [{"boxes": target}], [indices], len(pred))

    def own(pred: Tensor) -> Losses:
        giou = box_iou_loss(pred, target, loss="giou", eps=EPS, box_format="cxcywh")
        return _box_losses(pred, target, giou * len(pred), len(pred))

    try:
        return are_same(stock, own, pred)
    except Exception:  # a loss that needs more than boxes is another
        return False


def _box_losses(pred: Tensor, target: Tensor, giou: Tensor, num_boxes: float) -> dict[str, Tensor]:
    l1 = torch.nn.functional.l1_loss(pred, target, reduction="none")
    return {"loss_bbox": l1.sum() / num_boxes, "loss_giou": giou / num_boxes}


class _WithPenalty:
    """Before a criterion of transformers: its loss_boxes is replaced."""

    icr: ICRLossFunction

    def forward(self, outputs: dict[str, Any], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        self._main = outputs
        self._denoising = [id(each) for each in outputs.get("dn_auxiliary_outputs") or ()]
        self._table = table_of(targets, "class_labels", self.icr.relations, eps=EPS, box_format="cxcywh")
        return super().forward(outputs, targets)  # type: ignore[misc]

    def loss_boxes(self, outputs, targets, indices, num_boxes) -> dict[str, Tensor]:
        pred = outputs["pred_boxes"][self._get_source_permutation_idx(indices)]  # type: ignore[attr-defined]
        table = self._table
        rows = table.rows([of_image for _, of_image in indices]).to(table.boxes.device)
        target, anchor_index = table.boxes[rows], table.anchor_index[rows]
        is_main = outputs is self._main
        wants_terms = is_main or (self.icr.denoising if id(outputs) in self._denoising else self.icr.auxiliary)
        terms = icr_terms(
            pred,
            target,
            table.boxes,
            anchor_index=anchor_index if wants_terms else torch.full_like(anchor_index, -1),
            loss="giou",
            penalty_weight=self.icr.weight,
            eps=EPS,
            box_format="cxcywh",
            **self.icr.options,
        )
        is_part = table.is_part[rows]
        uniform = self.icr.uniform
        added: Tensor | float = 0.0
        if uniform is not None and wants_terms:
            mean = uniform.mean(pred, target, is_part, eps=EPS, box_format="cxcywh")
            added = uniform.weight * mean
            if is_main:
                self.icr.logged["icr_uniform"] = mean.detach()
                self.icr.record.add_uniform(is_part, mean)
        if is_main:
            penalty = terms.penalty.detach()
            is_paired = anchor_index >= 0
            self.icr.logged["icr_penalty"] = torch.where(is_paired, penalty, 0).sum() / is_paired.sum().clamp(min=1)
            self.icr.record.add_positives(rows >= 0)
            self.icr.record.add_penalty(is_part, is_paired, penalty)
        if self.icr.replaces:
            losses = _box_losses(pred, target, terms.loss.sum(), num_boxes)
        else:
            losses = super().loss_boxes(outputs, targets, indices, num_boxes)  # type: ignore[misc]
            if "loss_giou" not in losses:
                raise ValueError(
                    f"model: expected a criterion with loss_giou among its box losses, got {', '.join(losses)}"
                )
            added = added + self.icr.weight * terms.penalty.sum() / num_boxes
        return {**losses, "loss_giou": losses["loss_giou"] + added}
