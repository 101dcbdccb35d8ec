"""The beginning of a training run, in one process or in each of several."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from .assigner import replace_assigners
from .criteria import Criterion, DetrCriterion, criterion_of
from .detection import replace_losses
from .in_place import heads, restore
from .terms import Options, Terms

EVENT = "on_pretrain_routine_end"


class Start:
    """A callback: a training run is about to begin, its model and data are there."""

    def check(self, trainer: Any, names: Mapping[int, str]) -> None:
        """An error where it will not do on these data."""

    def __call__(self, trainer: Any) -> None:
        raise NotImplementedError

    def end(self, trainer: Any) -> None:
        """Of a run that is on: the stock one goes on."""
        raise NotImplementedError


class TermsStart(Start):
    """With terms in the loss."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def check(self, trainer: Any, names: Mapping[int, str]) -> None:
        Terms.of(self.options, trainer, names)

    def __call__(self, trainer: Any) -> None:
        from ultralytics.utils import LOGGER

        models = trained_models(trainer)
        terms = Terms.of(self.options, trainer, models[0].names)
        for model in models:
            criterion = criterion_of(_stock_criterion(model), terms)
            if self.options.replace_iou_loss:
                criterion.check_iou_loss(next(model.parameters()).device)
            set_criterion(model, criterion)
        of_detr = isinstance(model.criterion, DetrCriterion)
        name = "giou" if of_detr else "box"
        # Where the trainer takes its names from the criterion it has none yet, and takes those of the terms as well.
        places = " and ".join(each for each in trainer.loss_names if name in each)
        for column, text in zip(terms.columns, terms.described(), strict=True):
            LOGGER.info(f"{text}, in {places or (f'{name}_loss' if of_detr else column)}")
        if self.options.iou_loss is not None:
            LOGGER.info(f"Loss of boxes: {self.options.iou_loss}, in {name}_loss")

    def end(self, trainer: Any) -> None:
        for model in trained_models(trainer):
            criterion = getattr(model, "criterion", None)
            if isinstance(criterion, Criterion) and criterion.terms.options is self.options:
                set_criterion(model, criterion.stock)


class AcceleratedStart(Start):
    """With the assigner of this package, and with its loss where that is wanted."""

    def __init__(self, criterion: bool) -> None:
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
