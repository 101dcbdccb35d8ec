"""Hugging Face transformers 5.x: DETR, Conditional and Deformable DETR, RT-DETR (v1, v2), D-FINE, LW-DETR, RF-DETR.

Tried with transformers 5.24.
"""

import types
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..relations import Relations
from .handle import Handle, framework
from .set_criterion import Terms, WithTerms


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
    terms = Terms.of(relations, weight, penalty, relative, auxiliary, denoising, box_term, "class_labels")
    stock = model.loss_function
    if isinstance(stock, ICRLossFunction):
        stock = stock.stock
    _, criterion = _criterion_of(stock)
    bare: Any = object.__new__(criterion)  # what it holds is for the other losses
    torch.nn.Module.__init__(bare)
    terms.look_at(bare)
    model.loss_function = ICRLossFunction(stock, terms)

    def disable() -> None:
        model.loss_function = stock

    return Handle(terms.record, disable)


def _names(model: Any) -> Mapping[int, str]:
    names = getattr(getattr(model, "config", None), "id2label", None)
    if names is None or not hasattr(model, "loss_function"):
        raise TypeError(f"model: expected an object detection model of transformers, got {type(model).__name__}")
    return names


class ICRLossFunction:
    """A detector's loss function, run with its criterion replaced by one that adds the penalty."""

    def __init__(self, stock: Any, terms: Terms) -> None:
        self.stock = stock
        self.terms = terms

    def __call__(self, *arguments: Any, **named: Any) -> tuple:
        name, base = _criterion_of(self.stock)
        criterion = type(f"ICR{base.__name__}", (WithTerms, base), {"icr": self.terms})
        # The same code over one other global: which criterion it makes.
        function = types.FunctionType(
            self.stock.__code__,
            {**self.stock.__globals__, name: criterion},
            self.stock.__name__,
            self.stock.__defaults__,
            self.stock.__closure__,
        )
        function.__kwdefaults__ = self.stock.__kwdefaults__
        self.terms.logged = {}
        loss, parts, auxiliary = function(*arguments, **named)
        self.terms.record.step()
        logged, self.terms.logged = self.terms.logged, {}
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
