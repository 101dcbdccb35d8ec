"""Criteria of the DETR family outside transformers: RT-DETR (v1, v2), D-FINE, DEIM (v1, v2), and RF-DETR (rfdetr).

docs/frameworks.md says which versions were tried, and how their users get hold of the criterion before training begins.
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

from ..relations import Relations, labels_of
from .handle import Handle
from .set_criterion import Terms, WithTerms

# Those of loss_boxes, in this order.
ARGUMENTS = ["outputs", "targets", "indices", "num_boxes"]
# Of models whose targets are more than boxes; rfdetr divides these losses after the criterion.
OTHER_LOSSES = ("masks", "keypoints")


def enable_icr(
    criterion: Any,
    pairs: Mapping[str, str | Sequence[str]],
    names: Sequence[str] | Mapping[int, str],
    *,
    weight: float = 0.5,
    penalty: str = "containment",
    relative: bool = False,
    auxiliary: bool = True,
    denoising: bool = False,
    min_containment: float = 0.5,
    box_term: float = 0.0,
) -> Handle:
    """Adds the penalty to the box loss of a criterion, and computes its GIoU pair by pair.

    ::

        cfg = YAMLConfig("configs/rtdetrv2/rtdetrv2_r18vd_120e_coco.yml")
        icr = enable_icr(cfg.criterion, {"plate": ("car", "truck", "bus")}, names=("car", "truck", "bus", "plate"))

    Criteria with other box losses than L1 and GIoU keep them: then the penalty is added to their "loss_giou", and a
    warning says so. Weights of the GIoU losses (``boxes_weight_format``) are not those of the penalty.

    The class of the criterion becomes a subclass of itself; an attribute would be passed by where rfdetr compiles its
    losses. The ``state_dict``, which is what these repositories store, is unchanged. A copy goes on with the penalty,
    and so does what another process unpickles. Anchor objects are found among the ground-truth boxes of the same image,
    with mixup of the images that it mixes; where every target has a ``parent_idx`` (n,) beside its boxes (int64: row of
    the whole, -1: unknown, -2: none), that takes precedence.

    Args:
        criterion: what is called with ``(outputs, targets)`` and has a ``loss_boxes``; boxes are normalised, as cxcywh.
        pairs: to each part the name or names of its wholes.
        names: of all classes, by the labels that are in the targets: a sequence, or a mapping from label to name.
        weight: of the penalty, beside the GIoU loss of the same pair, whose coefficient multiplies both.
        penalty, relative: as of `icr_loss`.
        auxiliary: also at the outputs of the decoder's earlier layers and of the encoder.
        denoising: also at the denoising queries.
        min_containment: a part of which no whole contains at least this share has no anchor object.
        box_term: the weight of the plain mean of 1 - IoU over the predictions of parts, in the unit of the GIoU loss
            and wherever the penalty is. No relation has to do with it.

    Returns:
        A `Handle`: statistics, reset, disable. The dictionary of losses has the keys that it had, because these
        repositories add up all of them.

    Raises:
        TypeError, ValueError: no such criterion, one of masks or keypoints, an unknown class, a wrong name or number. A
            label without a name is a ValueError at the first batch.
    """
    _check_criterion(criterion)
    relations = Relations(pairs, names, min_containment=min_containment)
    terms = Terms.of(relations, weight, penalty, relative, auxiliary, denoising, box_term, "labels")
    terms.unseen_labels = {label: name for name, label in labels_of(names).items()}
    _disable(criterion)
    terms.look_at(criterion)
    stock: Any = type(criterion)
    criterion.__class__ = _with_terms(stock)
    criterion.icr = terms

    def disable() -> None:
        if getattr(criterion, "icr", None) is terms:
            _disable(criterion)

    return Handle(terms.record, disable)


def _check_criterion(criterion: Any) -> None:
    # Of the class: what wraps a criterion, as torch.compile does, has its attributes, and runs it all the same.
    loss = getattr(type(criterion), "loss_boxes", None)
    taken = [] if loss is None else list(inspect.signature(loss).parameters)[1:]
    if not isinstance(criterion, nn.Module) or taken[: len(ARGUMENTS)] != ARGUMENTS:
        raise TypeError(
            f"criterion: expected a module with loss_boxes({', '.join(ARGUMENTS)}), as those of RT-DETR, D-FINE, DEIM "
            f"and RF-DETR have it, neither wrapped nor compiled, got {type(criterion).__name__}"
        )
    for name in ("forward", "loss_boxes"):
        if name in vars(criterion):
            raise ValueError(
                f"criterion: expected one with the {name} of its class, got one with its own; enable the penalty first"
            )
    losses = list(getattr(criterion, "losses", ()))
    if "boxes" not in losses or any(other in losses for other in OTHER_LOSSES):
        raise ValueError(
            f"criterion: expected one with boxes among its losses and none of {', '.join(OTHER_LOSSES)}, got "
            f"{', '.join(map(str, losses))}"
        )


class OfCriterion(WithTerms):
    """Copied or pickled it is another such."""

    def forward(self, outputs: Any, targets: Any, *rest: Any, **named: Any) -> Any:
        if self.icr.unseen_labels is not None:
            _check_labels(targets, self.icr.unseen_labels)
            self.icr.unseen_labels = None
        losses = super().forward(outputs, targets, *rest, **named)
        self.icr.logged.clear()
        self.icr.record.step()
        return losses

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made at run time, and cannot be found by its name.
        return _bare, (_stock_class(self),), self.__dict__


def _check_labels(targets: Any, known: Mapping[int, str]) -> None:
    """Once, because it waits for the device."""
    # Those of padding are none.
    labels = [each["labels"][each["valid"].bool()] if "valid" in each else each["labels"] for each in targets]
    for label in torch.cat(labels).unique().tolist() if labels else ():
        if label not in known:
            raise ValueError(
                f"names: expected one for each label of the targets, got none for {label}; there are "
                f"{', '.join(f'{each}: {name}' for each, name in known.items())}"
            )


def _bare(stock: Any) -> Any:
    kind = _with_terms(stock)
    return kind.__new__(kind)


def _disable(criterion: Any) -> None:
    if isinstance(criterion, OfCriterion):
        criterion.__class__ = _stock_class(criterion)
        del criterion.icr


def _stock_class(criterion: OfCriterion) -> Any:
    return type(criterion).__bases__[1]


@cache
def _with_terms(stock: Any) -> Any:
    return type(stock.__name__, (OfCriterion, stock), {"__module__": stock.__module__})
