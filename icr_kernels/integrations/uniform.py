"""The uniform term: the plain mean of a box loss over the predictions of some objects, whatever weight the detector's
own loss gives to each of them. It knows of no relation between objects."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import arguments
from ..calls import Formula
from ..functional import box_iou_loss
from ..relations import Relations, are_of, labels_of
from ..specifications import BoxLoss

LossFunction = Callable[[Tensor, Tensor], Tensor]


class UniformTerm(NamedTuple):
    """Whose predictions count, how much, and with which loss.

    ``names``: objects of these classes; None: of all. ``max_side``: objects below this root of their area; None: of
    any size. ``loss``: what `box_iou_loss` takes, but for a `BoxLoss` that is wise, or a function of predictions and
    targets (..., 4) that gives the loss of each (...).
    """

    weight: float
    loss: str | BoxLoss | LossFunction = "iou"
    names: tuple[str, ...] | None = None
    max_side: float | None = None

    @classmethod
    def of_parts(cls, weight: float, relations: Relations) -> "UniformTerm | None":
        """What ``box_term`` of an `enable_icr` stands for: none at weight 0, which is the stock loss."""
        weight = arguments.number("box_term", weight, 0)
        return cls(weight, names=tuple(relations.pairs)) if weight else None

    @classmethod
    def of_objects(
        cls, weight: float, loss: str | BoxLoss | LossFunction, names: Iterable[str] | None, max_side: float | None
    ) -> "UniformTerm | None":
        """Checked but for whether there are classes of these names; none at weight 0, which is the stock loss."""
        weight = arguments.number("weight", weight, 0)
        if not callable(loss):
            arguments.wise(arguments.formula(*Formula(loss)), None)
        if max_side is not None:
            max_side = arguments.number("max_side", max_side, 0)
        if names is not None:
            if isinstance(names, (str, bytes)) or not isinstance(names, Iterable):
                raise TypeError(f"names: expected a sequence of names of classes, got {names!r}")
            names = tuple(names)
            if not names:
                raise ValueError("names: expected at least one class, got none")
            for name in names:
                if not isinstance(name, str):
                    raise TypeError(f"names: expected names of classes, got {name!r}")
        return cls(weight, loss, names, max_side) if weight else None

    def chooser(self, names: Sequence[str] | Mapping[int, str]) -> "Chooser":
        if self.names is None:
            return Chooser(None, self.max_side)
        labels = labels_of(names)
        for name in self.names:
            if name not in labels:
                raise ValueError(f"names: expected classes among {', '.join(labels)}, got {name!r}")
        return Chooser([labels[name] for name in self.names], self.max_side)

    def __str__(self) -> str:
        of = "all objects" if self.names is None else ", ".join(self.names)
        below = "" if self.max_side is None else f" of an area below {self.max_side:g}² pixels"
        loss = self.loss if not callable(self.loss) else getattr(self.loss, "__name__", type(self.loss).__name__)
        return f"{loss} of {of}{below}"

    def mean(self, pred: Tensor, target: Tensor, is_chosen: Tensor, **options: Any) -> Tensor:
        """Before weighting; 0 where nothing is chosen. ``options``: eps and box_format of `box_iou_loss`."""
        if not callable(self.loss):
            return box_iou_loss(pred, target, loss=self.loss, mask=is_chosen, **options)
        # A function sees ordinary boxes alone: whatever it makes of others, their gradient would not stay out.
        ordinary = pred.new_tensor((1.0, 1.0, 2.0, 2.0))
        pred, target = (torch.where(is_chosen.unsqueeze(-1), boxes, ordinary) for boxes in (pred, target))
        losses = self.loss(pred, target)
        if not isinstance(losses, Tensor):
            raise TypeError(f"loss: expected a function that returns a tensor, got {type(losses).__name__} from it")
        if losses.shape != is_chosen.shape or not losses.is_floating_point():
            raise ValueError(
                f"loss: expected a function that returns a floating-point tensor of shape {tuple(is_chosen.shape)}, "
                f"one value per prediction, got {losses.dtype} of shape {tuple(losses.shape)} from it"
            )
        return torch.where(is_chosen, losses, 0).sum() / is_chosen.sum().clamp(min=1)


class Chooser(NamedTuple):
    """Which objects of the ground truth count."""

    labels: list[int] | None
    max_side: float | None

    def __call__(self, labels: Tensor, sides: Tensor) -> Tensor:
        """Of labels (n,) and sides (n, 2) in pixels: bool (n,)."""
        chosen = torch.ones_like(labels, dtype=torch.bool)
        if self.labels is not None:
            chosen = are_of(labels, self.labels)
        if self.max_side is not None:
            chosen = chosen & (sides.prod(-1) < self.max_side**2)
        return chosen
