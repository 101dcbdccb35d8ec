"""The uniform term: the plain mean of a box loss over the predictions of some objects, whatever weight the detector's
own loss gives to each of them. It knows of no relation between objects."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..functional import box_iou_loss
from ..relations import labels_of

BoxLoss = Callable[[Tensor, Tensor], Tensor]


class UniformTerm(NamedTuple):
    """Whose predictions count, how much, and with which loss.

    ``names``: objects of these classes; None: of all. ``max_side``: objects below this root of their area; None: of
    any size. ``loss``: a name of `box_iou_loss`, or a function of predictions and targets (..., 4), both as corners,
    that gives the loss of each (...).
    """

    weight: float
    loss: str | BoxLoss = "iou"
    names: tuple[str, ...] | None = None
    max_side: float | None = None

    def check(self, argument: str) -> None:
        """All but the names, which are known once the classes are; ``argument`` is what the weight is called."""
        checks.number(argument, self.weight, 0)
        if not callable(self.loss):
            checks.names(reduction="mean", loss=self.loss, eps=1e-7, box_format="xyxy")
        if self.max_side is not None:
            checks.number("max_side", self.max_side, 0)
        if self.names == ():
            raise ValueError("names: expected at least one class, got none")
        for name in self.names or ():
            if not isinstance(name, str):
                raise TypeError(f"names: expected names of classes, got {name!r}")

    def chooser(self, names: Sequence[str] | Mapping[int, str]) -> "Chooser":
        labels = labels_of(names)
        unknown = [name for name in self.names or () if name not in labels]
        if unknown:
            raise ValueError(f"names: expected classes among {', '.join(labels)}, got {unknown[0]!r}")
        return Chooser(None if self.names is None else [labels[name] for name in self.names], self.max_side)

    def described(self) -> str:
        of = "all objects" if self.names is None else ", ".join(self.names)
        below = "" if self.max_side is None else f" below {self.max_side:g} pixels"
        return f"{self.loss if isinstance(self.loss, str) else getattr(self.loss, '__name__', 'a loss')} of {of}{below}"

    def mean(self, pred: Tensor, target: Tensor, is_chosen: Tensor, **options: Any) -> Tensor:
        """Before weighting; 0 where nothing is chosen. ``options``: eps and box_format of `box_iou_loss`."""
        if isinstance(self.loss, str):
            return box_iou_loss(pred, target, loss=self.loss, mask=is_chosen, **options)
        losses = torch.where(is_chosen, self.loss(pred, target), 0)
        return losses.sum() / is_chosen.sum().clamp(min=1)


class Chooser(NamedTuple):
    """Which objects of the ground truth count."""

    labels: list[int] | None
    max_side: float | None

    def __call__(self, labels: Tensor, sides: Tensor) -> Tensor:
        """Of labels (n,) and sides (n, 2) in pixels: bool (n,)."""
        chosen = torch.ones_like(labels, dtype=torch.bool)
        if self.labels is not None:
            chosen = torch.stack([labels == label for label in self.labels]).any(0)
        if self.max_side is not None:
            chosen = chosen & (sides.prod(-1) < self.max_side**2)
        return chosen
