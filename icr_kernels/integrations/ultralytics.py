"""Ultralytics 8.3.150 to 8.4: YOLO (11, 12, 26 and other detectors of its kind) and RT-DETR.

Tried with ultralytics 8.3.150, 8.4.0 and 8.4.190.

Nothing of Ultralytics is changed and nothing of this package is stored: when a training run begins, a callback puts a
criterion around that of the model and of its moving average, and that criterion watches the stock one while it runs.
Checkpoints load where this package is not installed.
"""

import copy
import inspect
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import checks
from ..functional import box_iou_loss, icr_terms
from ..relations import Relations, names_of_wholes
from .handle import Handle, Losses, Record, are_same, framework, trial_boxes
from .uniform import BoxLoss, Chooser, UniformTerm

EVENT = "on_pretrain_routine_end"
# The columns of the terms in the log.
PENALTY, UNIFORM = "icr_loss", "uniform_loss"
WEIGHTINGS = ("uniform", "tal")
SMALL = 32.0

# The boxes of RT-DETR are normalised: at 640 pixels an area of 1e-7 is one of 0.2 pixels squared.
NORMALISED_EPS = 1e-16


def enable_icr(
    model: Any,
    pairs: Mapping[str, str | Sequence[str]],
    *,
    weight: float = 0.5,
    penalty: str = "containment",
    relative: bool = False,
    weighting: str = "uniform",
    replace_iou_loss: bool = False,
    auxiliary: bool = True,
    denoising: bool = False,
    min_containment: float = 0.5,
    box_term: float = 0.0,
) -> Handle:
    """Adds the penalty to the box loss of every training run of this model that begins from now on.

    ::

        model = YOLO("yolo11n.pt")
        icr = enable_icr(model, {"plate": ("car", "truck", "bus")})
        model.train(data="plates.yaml", epochs=100)

    Anchor objects are found by geometry, batch by batch, among the ground-truth boxes of the image that the network
    sees, so mosaic and crops are no obstacle. The gradient of the penalty reaches the predicted boxes; which anchor
    point is assigned to which object stays Ultralytics' choice.

    Where the loss items of a version have names (8.4.120 is one, 8.4.60 is not) the term has a column of its own,
    ``icr_loss``, in the progress bar and in results.csv, in training and in validation, and ``box_loss`` is what it is
    without it. In older versions it is part of ``box_loss``, and for RT-DETR, whose items are fixed, of ``giou_loss``.

    A resumed run is a new model: call this again before ``model.train(resume=True)``. Under DDP the term is trained
    with, but the statistics stay in the processes of the ranks.

    Args:
        model: an `ultralytics.YOLO` or `ultralytics.RTDETR` that detects (not segments, not YOLO-World or YOLOE).
        pairs: to each part the name or names of its wholes, as the data set's yaml spells them.
        weight: of the penalty, in the unit of the CIoU loss (RT-DETR: of the GIoU loss): a mean penalty of 1 counts
            ``weight`` times as much as boxes without overlap, and ``box`` of the training arguments (RT-DETR: the
            gain of the GIoU loss) multiplies both.
        penalty, relative: as of `icr_loss`.
        weighting: "uniform": the mean over the predictions that are assigned to a part with an anchor object. "tal":
            weighted as the box loss weighs its terms, by the assigner's scores and over all predictions with a target
            (RT-DETR: the sum divided by their number). These scores grow with the overlap that is reached: early in
            training, and for small parts, they make the term a thousand times smaller.
        replace_iou_loss: the CIoU (RT-DETR: GIoU) loss of this package in place of the stock one: the same but for
            rounding and degenerate boxes. A model with another box loss, as forks have it, is refused.
        auxiliary: RT-DETR: also at the outputs of the decoder's earlier layers and of the encoder.
        denoising: RT-DETR: also at the denoising queries.
        min_containment: a part of which no whole contains at least this share has no anchor object.
        box_term: the weight of the uniform term of the parts, as `enable_small_object_term` adds it for ``names=`` the
            parts, with a column of its own. One model has one of the two functions: the last call counts.

    Returns:
        A `Handle`: statistics (of the training steps; of both heads of an end-to-end model), reset, disable.

    Raises:
        ImportError: ultralytics is missing or of a version that is not supported.
        TypeError, ValueError: not such a model, or a wrong name or number. The classes are those of the data set, so a
            class that it lacks, ``single_cls=True``, and ``replace_iou_loss=True`` with another box loss, are a
            ValueError when training begins.
    """
    _check_model(model)
    # The names are known once the data set is; all else is checked now.
    mentioned = Relations(pairs, _mentioned(pairs), min_containment=min_containment)
    checks.number("weight", weight, 0)
    checks.formula("ciou", penalty, weight, relative, NORMALISED_EPS, "xyxy", None)
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting: expected one of {', '.join(WEIGHTINGS)}, got {weighting!r}")
    uniform = UniformTerm.of_parts(box_term, mentioned)
    formula = {"penalty": penalty, "relative": relative}
    added = Penalty(dict(pairs), min_containment, weight, formula, weighting)
    return _enable(model, Options(added, uniform, replace_iou_loss, auxiliary, denoising, Record(mentioned, uniform)))


def enable_small_object_term(
    model: Any,
    *,
    max_side: float | None = None,
    names: Iterable[str] | None = None,
    weight: float = 0.1,
    loss: str | BoxLoss = "iou",
    auxiliary: bool = True,
    denoising: bool = False,
) -> Handle:
    """Adds to the box loss of a model, in every training run that begins from now on, one of its small objects alone.

    ::

        model = YOLO("yolo11n.pt")
        enable_small_object_term(model)
        model.train(data="plates.yaml", epochs=100)

    Ultralytics weighs the box loss of each prediction by the assigner's score, which grows with the overlap that is
    reached: a small object that is not hit yet has next to no gradient. The term is ``weight`` times the plain mean of
    the loss over the predictions that are assigned to a small object. No other object has to do with it. What it does
    to detectors is measured in docs/evidence.md. ``weight=0`` is the stock loss.

    For YOLO the term has a column of its own, ``uniform_loss``, where the loss items of a version have names; in older
    versions it is part of ``box_loss``, and for RT-DETR of ``giou_loss``. A model has this or `enable_icr`: the last
    call counts. As there, nothing of the model's weights and checkpoints changes, and a resumed run needs another call.

    Args:
        model: as of `enable_icr`.
        max_side: objects below this root of their area, in pixels of the image that the network sees (RT-DETR: of one
            of the size ``imgsz``). None: 32, COCO's bound of "small", or of any size if there are names.
        names: objects of these classes; None: of all. With max_side, those that are both.
        weight: in the unit of the CIoU loss (RT-DETR: of the GIoU loss): a mean loss of 1 counts ``weight`` times as
            much as boxes without overlap, and ``box`` of the training arguments multiplies both.
        loss: a name of `box_iou_loss`, or a function of predictions and targets (..., 4), corners in pixels (RT-DETR:
            cxcywh, normalised), that gives the loss of each (...). In the place of pairs that are not of the term it
            sees ordinary boxes, and what it makes of them does not count.
        auxiliary, denoising: as of `enable_icr`.

    Returns:
        A `Handle`, in whose statistics are ``chosen`` and ``mean_loss``.

    Raises:
        ImportError: ultralytics is missing or of a version that is not supported.
        TypeError, ValueError: not such a model, or a wrong name or number. A class that the data set lacks is a
            ValueError when training begins.
    """
    _check_model(model)
    if names is None and max_side is None:
        max_side = SMALL
    uniform = UniformTerm.of_objects(weight, loss, names, max_side)
    return _enable(model, Options(None, uniform, False, auxiliary, denoising, Record(None, uniform)))


def _check_model(model: Any) -> None:
    ultralytics = framework("ultralytics", "8.3.150", "8.5")
    if not isinstance(model, (ultralytics.YOLO, ultralytics.RTDETR)):
        raise TypeError(f"model: expected an ultralytics.YOLO or ultralytics.RTDETR, got {type(model).__name__}")
    if model.task != "detect":
        raise ValueError(f"model: expected one with the task detect, got {model.task}")


def _enable(model: Any, options: "Options") -> Handle:
    start = Start(options)

    def disable() -> None:
        _remove_callbacks(model, start)
        for trained in _trained_models(getattr(model, "trainer", None)):
            criterion = getattr(trained, "criterion", None)
            if isinstance(criterion, Criterion) and criterion.terms.options is options:
                _set_criterion(trained, criterion.stock)

    _remove_callbacks(model)
    model.add_callback(EVENT, start)
    return Handle(options.record, disable)


class Penalty(NamedTuple):
    pairs: dict[str, str | Sequence[str]]
    min_containment: float
    weight: float
    formula: dict[str, Any]
    weighting: str


class Options(NamedTuple):
    penalty: Penalty | None
    uniform: UniformTerm | None
    replace_iou_loss: bool
    auxiliary: bool
    denoising: bool
    record: Record


class Start:
    """The callback: a training run is about to begin, its model and data are there."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def __call__(self, trainer: Any) -> None:
        from ultralytics.utils import LOGGER

        models = _trained_models(trainer)
        terms = Terms.of(self.options, trainer, models[0].names)
        for model in models:
            # A resumed end-to-end model has a criterion already, which knows how far its schedule has come.
            stock = _stock_criterion(model)
            stock = model.init_criterion() if stock is None else stock
            criterion = _criterion(stock, terms)
            if self.options.replace_iou_loss:
                criterion.check_iou_loss(next(model.parameters()).device)
            _set_criterion(model, criterion)
        of_detr = isinstance(model.criterion, DetrCriterion)
        # Where the trainer takes its names from the criterion it has none yet.
        has_columns = not of_detr and not trainer.loss_names
        for column, text in zip(terms.columns, terms.described(), strict=True):
            place = column if has_columns else "giou_loss" if of_detr else "box_loss"
            LOGGER.info(f"{text}, in {place}")


class Terms(NamedTuple):
    """The options of a training run with what it is on."""

    options: Options
    relations: Relations | None
    chooser: Chooser | None
    image_size: float

    @classmethod
    def of(cls, options: Options, trainer: Any, names: Mapping[int, str]) -> "Terms":
        penalty, uniform = options.penalty, options.uniform
        if trainer.args.single_cls and (penalty is not None or (uniform is not None and uniform.names is not None)):
            raise ValueError("single_cls: expected False, because terms of some classes need them, got True")
        relations = None
        if penalty is not None:
            relations = Relations(penalty.pairs, names, min_containment=penalty.min_containment)
        chooser = None if uniform is None else uniform.chooser(names)
        return cls(options, relations, chooser, trainer.args.imgsz)

    @property
    def columns(self) -> list[str]:
        """Those of the log, one per term."""
        present = {PENALTY: self.options.penalty, UNIFORM: self.options.uniform}
        return [column for column, term in present.items() if term is not None]

    def described(self) -> list[str]:
        """The term of each column."""
        found = []
        penalty, uniform = self.options.penalty, self.options.uniform
        if penalty is not None and self.relations is not None:
            pairs = "; ".join(f"{part} in {' or '.join(wholes)}" for part, wholes in self.relations.pairs.items())
            found.append(f"ICR penalty: {pairs}, weight {penalty.weight:g} ({penalty.weighting})")
        if uniform is not None:
            found.append(f"Uniform term: {uniform}, weight {uniform.weight:g}")
        return found


class Criterion:
    """Around a criterion of Ultralytics. Copied it is another such; pickled it is the stock criterion."""

    iou_loss: str

    def __init__(self, stock: Any, terms: Terms) -> None:
        self.stock = stock
        self.terms = terms

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stock, name)

    def __deepcopy__(self, memo: dict) -> "Criterion":
        return type(self)(copy.deepcopy(self.stock, memo), self.terms)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # From protocol 2 on pickle insists that an object is pickled as one of its own class.
        return self.stock.__reduce_ex__(1)

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

    def has_iou_loss(self, pred: Tensor, target: Tensor) -> bool:
        # In cells of a level, as corners.
        pred, target = (
            20 * torch.cat((each[:, :2] - each[:, 2:] / 2, each[:, :2] + each[:, 2:] / 2), 1) for each in (pred, target)
        )
        return all(_has_ciou(head, pred, target) for head in _heads(self.stock))

    def __call__(self, preds: Any, batch: Any) -> tuple[Tensor, Any]:
        heads = [HeadTerms(head, self.terms) for head in _heads(self.stock)]
        # The hooks are there during this call only: nothing that belongs to a graph stays behind.
        with ExitStack() as hooks:
            for head in heads:
                hooks.enter_context(head.stock.assigner.register_forward_hook(head.after_assigner))
                hooks.enter_context(head.stock.bbox_loss.register_forward_hook(head.after_box_loss))
            loss, items = self.stock(preds, batch)
        self.terms.options.record.step()
        if isinstance(items, dict):
            # The items of an end-to-end model are those of its last head.
            for column in self.terms.columns:
                term = heads[-1].added.get(column, torch.zeros_like(items["box_loss"]))
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


class HeadTerms:
    """Watches the assigner and the box loss of one head, once each, and adds the terms to the latter."""

    def __init__(self, stock: Any, terms: Terms) -> None:
        self.stock = stock
        self.terms = terms
        # To each column what is added to the head's box_loss, with its gain, without gradient.
        self.added: dict[str, Tensor] = {}

    def after_assigner(self, _: nn.Module, inputs: tuple, outputs: tuple) -> None:
        # It alone sees which ground truth each prediction is assigned to, and the labels.
        self.points, self.labels, self.boxes, self.is_box = inputs[2:6]
        self.gt_index = outputs[4]

    def after_box_loss(self, _: nn.Module, inputs: tuple, outputs: tuple) -> tuple | None:
        pred, points, _, scores, scores_sum, is_positive = inputs[1:7]
        batch, padded = self.boxes.shape[:2]
        if padded == 0:
            return None
        options = self.terms.options
        image = torch.arange(batch, device=self.boxes.device)[:, None]
        table, labels = self.boxes.flatten(0, 1), self.labels.flatten().long()
        # On the background the index is 0; the masks leave it out.
        rows = self.gt_index.long() + padded * image
        # Predictions are in cells of their own level, ground truth in pixels; a point is known in both.
        stride = (self.points / points)[:, :1]
        pred = pred.to(torch.promote_types(pred.dtype, torch.float32)) * stride
        iou_loss = outputs[0]
        options.record.add_positives(is_positive)
        if options.penalty is not None and self.terms.relations is not None:
            # Rows of padding are boxes of no image.
            box_image = torch.where(self.is_box[..., 0] > 0, image, -1).flatten()
            anchor_index = self.terms.relations.anchor_index(table, labels, box_image)[rows]
            is_paired = is_positive & (anchor_index >= 0)
            terms = icr_terms(
                pred,
                table[rows],
                table,
                anchor_index=anchor_index,
                loss="ciou" if options.replace_iou_loss else "iou",
                penalty_weight=0.0,
                mask=is_positive if options.replace_iou_loss else is_paired,
                **options.penalty.formula,
            )
            box_weight = scores.sum(-1)
            if options.replace_iou_loss:
                iou_loss = (terms.loss * box_weight).sum() / scores_sum
            iou_loss = iou_loss + self._added(
                PENALTY,
                options.penalty.weight,
                terms.penalty.sum() / is_paired.sum().clamp(min=1)
                if options.penalty.weighting == "uniform"
                else (terms.penalty * box_weight).sum() / scores_sum,
            )
            is_part = is_positive & self.terms.relations.is_part(labels)[rows]
            options.record.add_penalty(is_part, is_paired, terms.penalty)
        if options.uniform is not None and self.terms.chooser is not None:
            is_chosen = is_positive & self.terms.chooser(labels, table[:, 2:] - table[:, :2])[rows]
            mean = options.uniform.mean(pred, table[rows], is_chosen)
            iou_loss = iou_loss + self._added(UNIFORM, options.uniform.weight, mean)
            options.record.add_uniform(is_chosen, mean)
        return iou_loss, *outputs[1:]

    def _added(self, column: str, weight: float, mean: Tensor) -> Tensor:
        term = weight * mean
        self.added[column] = term.detach() * self.stock.hyp.box
        return term


class DetrCriterion(Criterion):
    """Around an `RTDETRDetectionLoss`."""

    iou_loss = "GIoU"

    def has_iou_loss(self, pred: Tensor, target: Tensor) -> bool:
        def stock(pred: Tensor) -> Losses:
            return {"giou": self.stock._get_loss_bbox(pred, target)["loss_giou"]}

        def own(pred: Tensor) -> Losses:
            loss = box_iou_loss(pred, target, loss="giou", eps=NORMALISED_EPS, box_format="cxcywh")
            return {"giou": self.stock.loss_gain["giou"] * loss}

        return are_same(stock, own, pred)

    def __call__(self, preds: Any, batch: Any, *rest: Any, **named: Any) -> dict[str, Tensor]:
        # A short-lived twin of the stock criterion: what it notes about the batch goes with it.
        base: Any = type(self.stock)
        running = object.__new__(_with_penalty(base))
        running.__dict__.update(self.stock.__dict__, icr=self)
        losses = running(preds, batch, *rest, **named)
        self.terms.options.record.step()
        return losses


class WithPenalty:
    """Before an `RTDETRDetectionLoss`: matched boxes come normalised, as cxcywh, ground truth in one table."""

    icr: DetrCriterion

    def forward(self, preds: Any, batch: dict[str, Any], *rest: Any, **named: Any) -> dict[str, Tensor]:
        self._is_main = True
        self._table = batch["bboxes"]
        labels = batch["cls"]
        relations, chooser, image_size = self.icr.terms[1:]
        if relations is not None:
            self._is_part = relations.is_part(labels)
            self._anchor_index = relations.anchor_index(
                self._table, labels, batch["batch_idx"], eps=NORMALISED_EPS, box_format="cxcywh"
            )
        if chooser is not None:
            self._is_chosen = chooser(labels, image_size * self._table[:, 2:])
        return super().forward(preds, batch, *rest, **named)  # type: ignore[misc]

    def _get_loss_aux(self, *arguments: Any, **named: Any) -> dict[str, Tensor]:
        self._is_main = False
        losses = super()._get_loss_aux(*arguments, **named)  # type: ignore[misc]
        self._is_main = True
        return losses

    def _get_index(self, match_indices: list[tuple]) -> tuple:
        index = super()._get_index(match_indices)  # type: ignore[misc]
        self._rows = index[1].to(self._table.device)
        return index

    def _get_loss_bbox(self, pred: Tensor, target: Tensor, postfix: str = "") -> dict[str, Tensor]:
        losses = super()._get_loss_bbox(pred, target, postfix)  # type: ignore[misc]
        options = self.icr.terms.options
        is_denoising = bool(postfix)
        wanted = (options.denoising or not is_denoising) and (options.auxiliary or self._is_main)
        if len(target) == 0 or not (wanted or options.replace_iou_loss):
            return losses
        # The key of the stock loss, because only those are added up.
        name = f"loss_giou{postfix}"
        gain = self.loss_gain["giou"]  # type: ignore[attr-defined]
        is_recorded = self._is_main and not is_denoising
        if is_recorded:
            options.record.add_positives(self._rows >= 0)
        if options.penalty is not None:
            anchor_index = self._anchor_index[self._rows]
            terms = icr_terms(
                pred,
                target,
                self._table,
                anchor_index=anchor_index,
                loss="giou",
                penalty_weight=0.0,
                eps=NORMALISED_EPS,
                box_format="cxcywh",
                **options.penalty.formula,
            )
            if options.replace_iou_loss:
                losses[name] = gain * terms.loss.mean()
            if not wanted:
                return losses
            is_paired = anchor_index >= 0
            count = is_paired.sum().clamp(min=1) if options.penalty.weighting == "uniform" else len(target)
            losses[name] = losses[name] + gain * options.penalty.weight * terms.penalty.sum() / count
            if is_recorded:
                options.record.add_penalty(self._is_part[self._rows], is_paired, terms.penalty)
        if options.uniform is not None:
            is_chosen = self._is_chosen[self._rows]
            mean = options.uniform.mean(pred, target, is_chosen, eps=NORMALISED_EPS, box_format="cxcywh")
            losses[name] = losses[name] + gain * options.uniform.weight * mean
            if is_recorded:
                options.record.add_uniform(is_chosen, mean)
        return losses


@cache
def _with_penalty(base: Any) -> Any:
    return type(f"ICR{base.__name__}", (WithPenalty, base), {})


def _criterion(stock: Any, terms: Terms) -> Criterion:
    if hasattr(stock, "_get_loss_bbox"):
        return DetrCriterion(stock, terms)
    if all(hasattr(head, name) for head in _heads(stock) for name in ("assigner", "bbox_loss")):
        return YoloCriterion(stock, terms)
    raise ValueError(
        f"model: expected one whose criterion has an assigner and a box loss, got one with {type(stock).__name__}"
    )


def _heads(stock: Any) -> list[Any]:
    return [stock.one2many, stock.one2one] if hasattr(stock, "one2one") else [stock]


def _trained_models(trainer: Any) -> list[Any]:
    """The model of a training run and, for validation, its moving average."""
    average = getattr(getattr(trainer, "ema", None), "ema", None)
    models = [getattr(trainer, "model", None), average]
    return [_detector(model) for model in models if isinstance(model, nn.Module)]


def _detector(model: nn.Module) -> nn.Module:
    """Without the wrappers of DDP, torch.compile and distillation."""
    for wrapper in ("_orig_mod", "module", "student_model"):
        inner = getattr(model, wrapper, None)
        if isinstance(inner, nn.Module):
            return _detector(inner)
    return model


def _stock_criterion(model: nn.Module) -> Any:
    criterion = getattr(model, "criterion", None)
    return criterion.stock if isinstance(criterion, Criterion) else criterion


def _set_criterion(model: nn.Module, criterion: Any) -> None:
    if hasattr(model, "criterion"):
        # One that is a module would not let one that is none take its place.
        del model.criterion
    model.criterion = criterion


def _remove_callbacks(model: Any, only: Start | None = None) -> None:
    model.callbacks[EVENT][:] = [
        each for each in model.callbacks[EVENT] if not isinstance(each, Start) or only not in (None, each)
    ]


def _mentioned(pairs: Any) -> list[str]:
    if not isinstance(pairs, Mapping):
        return []
    wholes = [name for part, names in pairs.items() for name in names_of_wholes(part, names)]
    return list(dict.fromkeys([*pairs, *wholes]))
