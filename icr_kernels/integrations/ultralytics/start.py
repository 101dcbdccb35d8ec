"""The beginning of a training run, in one process or in each of several."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ...specifications import BoxLoss
from ..handle import Record
from .assigner import replace_assigners
from .criteria import Criterion, DetrCriterion, criterion_of
from .detection import replace_losses
from .in_place import heads, restore
from .terms import Options, OtherLoss, Terms

EVENT = "on_pretrain_routine_end"


class Start:
    """A callback: a training run is about to begin, its model and data are there."""

    thing: str  # of which a model has one

    def __init__(self, caller: str) -> None:
        self.caller = caller  # the function that was called

    def replaces(self, other: Any) -> bool:
        """What brings the same thing, and all that an earlier call of the same function has brought."""
        return isinstance(other, Start) and (other.thing == self.thing or other.caller == self.caller)

    def check(self, trainer: Any, names: Mapping[int, str]) -> None:
        """An error where it will not do on these data."""

    def __call__(self, trainer: Any) -> None:
        raise NotImplementedError

    def end(self, trainer: Any) -> None:
        """Of a run that is on: the stock one goes on."""
        raise NotImplementedError


class ChangesStart(Start):
    """With something in the box loss that is not stock."""

    def __init__(self, caller: str, record: Record) -> None:
        super().__init__(caller)
        self.record = record

    def end(self, trainer: Any) -> None:
        for model in trained_models(trainer):
            criterion = getattr(model, "criterion", None)
            if isinstance(criterion, Criterion):
                criterion.changes = criterion.changes.without(self.record)
                if not any(criterion.changes):
                    set_criterion(model, criterion.stock)


class TermsStart(ChangesStart):
    """With terms."""

    thing = "term"

    def __init__(self, caller: str, options: Options) -> None:
        super().__init__(caller, options.record)
        self.options = options

    def check(self, trainer: Any, names: Mapping[int, str]) -> None:
        Terms.of(self.options, trainer, names)

    def __call__(self, trainer: Any) -> None:
        from ultralytics.utils import LOGGER

        models = trained_models(trainer)
        terms = Terms.of(self.options, trainer, models[0].names)
        for model in models:
            criterion = _watched(model)
            criterion.changes = criterion.changes._replace(terms=terms)
        of_detr = isinstance(criterion, DetrCriterion)
        # Where the trainer takes its names from the criterion, it takes those of the terms as well.
        places = _places(trainer, criterion)
        for column, text in zip(terms.columns, terms.described(), strict=True):
            LOGGER.info(f"{text}, in {places or (criterion.column if of_detr else column)}")


class BoxLossStart(ChangesStart):
    """With another loss of the boxes; None: that of this package which is the stock one, if it is."""

    thing = "box loss"

    def __init__(self, caller: str, record: Record, loss: str | BoxLoss | None) -> None:
        super().__init__(caller, record)
        self.loss = loss

    def __call__(self, trainer: Any) -> None:
        from ultralytics.utils import LOGGER

        means: dict[int, Tensor] = {}  # the average of a model is validated with those of its training
        for model in trained_models(trainer):
            criterion = _watched(model)
            if self.loss is None:
                criterion.check_iou_loss(next(model.parameters()).device)
            loss = self.loss or criterion.iou_loss.lower()
            other = OtherLoss(loss, trainer.args.imgsz, means, self.record)
            criterion.changes = criterion.changes._replace(box_loss=other)
        LOGGER.info(f"Loss of boxes: {loss}, in {_places(trainer, criterion) or criterion.column}")


class AcceleratedStart(Start):
    """With the assigner of this package, and with its loss where that is wanted."""

    thing = "assigner"

    def __init__(self, caller: str, criterion: bool) -> None:
        super().__init__(caller)
        self.criterion = criterion

    def __call__(self, trainer: Any) -> None:
        from ultralytics.utils import LOGGER

        for model in trained_models(trainer):
            stock = _stock_criterion(model)
            stays = "the assigner, and its loss stays" if self.criterion else "the assigner"
            assigners = replace_assigners(stock, stays)
            if self.criterion:
                losses = replace_losses(stock)
            else:
                losses = []
                restore(heads(stock))
            if getattr(model, "criterion", None) is None:
                set_criterion(model, stock)
        for assigner in assigners:
            LOGGER.info(f"Task-aligned assignment of icr_kernels: topk {assigner.topk}")
        for loss in losses:
            LOGGER.info(f"Detection loss of icr_kernels: reg_max {loss.reg_max}")

    def end(self, trainer: Any) -> None:
        for model in trained_models(trainer):
            if getattr(model, "criterion", None) is not None:
                of_heads = heads(_stock_criterion(model))
                restore([*of_heads, *(getattr(head, "assigner", None) for head in of_heads)])


def trained_models(trainer: Any) -> list[Any]:
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


def _places(trainer: Any, criterion: Criterion) -> str:
    """The columns in which the box loss is; none yet where the trainer takes their names from the criterion."""
    return " and ".join(each for each in trainer.loss_names if criterion.column.removesuffix("_loss") in each)


def _watched(model: Any) -> Criterion:
    """What is around the criterion of a model; another call may have put it there."""
    criterion = getattr(model, "criterion", None)
    if not isinstance(criterion, Criterion):
        criterion = criterion_of(_stock_criterion(model))
        set_criterion(model, criterion)
    return criterion


def _stock_criterion(model: Any) -> Any:
    """That of a model, or a new one. A resumed end-to-end model has one already, which knows how far its schedule has
    come."""
    criterion = getattr(model, "criterion", None)
    stock = criterion.stock if isinstance(criterion, Criterion) else criterion
    return model.init_criterion() if stock is None else stock


def set_criterion(model: nn.Module, criterion: Any) -> None:
    if hasattr(model, "criterion"):
        # One that is a module would not let one that is none take its place.
        del model.criterion
    model.criterion = criterion
