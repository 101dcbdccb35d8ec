"""torchvision's detectors: RetinaNet, FCOS, Faster R-CNN (and Mask and Keypoint R-CNN, which are made of it).

Tried with torchvision 0.28.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import arguments
from ..calls import Formula
from ..functional import icr_terms
from ..relations import Relations
from .handle import Handle, Record, framework
from .targets import table_of
from .uniform import UniformTerm

# Of boxes in pixels.
EPS = 1e-7


def enable_icr(
    model: nn.Module,
    pairs: Mapping[str, str | Sequence[str]],
    names: Sequence[str] | Mapping[int, str],
    *,
    weight: float = 0.5,
    penalty: str = "containment",
    relative: bool = False,
    min_containment: float = 0.5,
    box_term: float = 0.0,
) -> Handle:
    """Adds "loss_icr" to the losses that a detector returns in training.

    It is ``weight`` times the mean penalty of the positives that have an anchor object: what a box in pixels leaves of
    the ground-truth box that its target belongs to. The model's own losses stay as they are, and so do its weights and
    state dicts; deep copies and `torch.save` of the whole model keep the term.

    Args:
        model: a `RetinaNet`, `FCOS` or `FasterRCNN` of torchvision, not wrapped.
        pairs: to each part the name or names of its wholes.
        names: of the classes, by their label: a sequence with one for each class of the model (the first is the
            background of Faster R-CNN), or a mapping.
        weight: of the term, in the sum of the losses.
        penalty, relative: as of `icr_loss`.
        min_containment: a part of which no whole contains at least this share has no anchor object.
        box_term: the weight of one more loss, "loss_uniform": the plain mean of 1 - IoU over the positives of parts. No
            relation has to do with it.

    Anchor objects are found among the ground-truth boxes of the same image. Where every target has a ``parent_idx``
    (n,) beside its boxes (int64: row of the whole, -1: unknown, -2: none), that takes precedence; as an index it
    survives the model's resizing of boxes, but not a transform that drops boxes.

    Returns:
        A `Handle`: statistics, reset, disable.

    Raises:
        ImportError: torchvision is missing or of a version that is not supported.
        TypeError, ValueError: another model, an unknown class, a wrong name, number or count of names.
    """
    framework("torchvision", "0.20", "1")
    relations = Relations(pairs, names, min_containment=min_containment)
    weight = arguments.number("weight", weight, 0)
    arguments.formula(*Formula(penalty=penalty, relative=relative))
    uniform = UniformTerm.of_parts(box_term, relations)
    terms = _Terms(relations, weight, {"penalty": penalty, "relative": relative}, uniform)
    from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet

    if isinstance(model, (RetinaNet, FCOS)):
        classifier = getattr(model.head, "classification_head", None)
        _one_for_each_class(names, getattr(classifier, "num_classes", None))
        return _enable(terms, model.head, _DenseLoss(model.head, terms), ["compute_loss"])
    if isinstance(model, FasterRCNN):
        heads = model.roi_heads
        classifier = getattr(heads.box_predictor, "cls_score", None)
        _one_for_each_class(names, getattr(classifier, "out_features", None))
        return _enable(terms, heads, _RegionLoss(heads, terms), ["forward", "select_training_samples"])
    raise TypeError(f"model: expected a RetinaNet, FCOS or FasterRCNN of torchvision, got {type(model).__name__}")


def _one_for_each_class(names: Sequence[str] | Mapping[int, str], classes: int | None) -> None:
    """A sequence of another length would shift labels; a mapping may leave classes out. ``classes``: None, where a part
    of the user's own does not say."""
    if not isinstance(names, Mapping) and classes not in (None, len(names)):
        raise ValueError(
            f"names: expected one for each of the {classes} classes of the model, or a mapping from label to name, "
            f"got {len(names)}"
        )


def _enable(terms: "_Terms", module: Any, loss: Any, methods: list[str]) -> Handle:
    """Puts the methods of ``loss`` before those of a module that have the same names."""

    def disable() -> None:
        for name in methods:
            module.__dict__.pop(name, None)

    disable()
    for name in methods:
        module.__dict__[name] = _Method(loss, name)
    return Handle(terms.record, disable)


class _Method:
    """A bound method that follows its object into copies and pickles."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner = owner
        self.name = name

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return getattr(self.owner, self.name)(*arguments, **named)


class _Terms:
    """The losses of a batch of predictions with the rows of their targets."""

    def __init__(
        self, relations: Relations, weight: float, options: dict[str, Any], uniform: UniformTerm | None
    ) -> None:
        self.relations = relations
        self.weight = weight
        self.options = options
        self.uniform = uniform
        self.record = Record(relations, uniform)

    def __call__(
        self, targets: list[dict[str, Tensor]], pred: list[Tensor], matched: list[Tensor]
    ) -> dict[str, Tensor]:
        """``pred`` (A, 4) and ``matched`` (A,) of each image: the row of the target of each, negative for none."""
        losses = self._losses(targets, torch.cat(pred), matched)
        self.record.step()
        return losses

    def _losses(self, targets: list[dict[str, Tensor]], pred: Tensor, matched: list[Tensor]) -> dict[str, Tensor]:
        table = table_of(targets, "labels", self.relations, eps=EPS, box_format="xyxy")
        names = ["loss_icr"] if self.uniform is None else ["loss_icr", "loss_uniform"]
        if len(table.boxes) == 0:  # nothing to index; the sum of no prediction is 0, whatever they hold
            return {name: pred[:0].sum() for name in names}
        rows = table.rows(matched)
        is_positive, rows = rows >= 0, rows.clamp(min=0)
        target, is_part = table.boxes[rows], is_positive & table.is_part[rows]
        anchor_index = torch.where(is_positive, table.anchor_index[rows], -1)
        is_paired = anchor_index >= 0
        penalties = icr_terms(
            pred,
            target,
            table.boxes,
            anchor_index=anchor_index,
            mask=is_paired,
            loss="iou",
            eps=EPS,
            **self.options,
        ).penalty
        losses = [self.weight * (penalties.sum() / is_paired.sum().clamp(min=1))]
        self.record.add_positives(is_positive)
        self.record.add_penalty(is_part, is_paired, penalties)
        if self.uniform is not None:
            mean = self.uniform.mean(pred, target, is_part, eps=EPS)
            losses.append(self.uniform.weight * mean)
            self.record.add_uniform(is_part, mean)
        return dict(zip(names, losses, strict=True))


def _in_full(regression: Tensor) -> Tensor:
    """In half precision a decoded box is off by half a pixel beyond pixel 1024, and overflows sooner."""
    return regression.to(torch.promote_types(regression.dtype, torch.float32))


class _DenseLoss:
    """compute_loss of the heads of RetinaNet and FCOS."""

    def __init__(self, head: Any, terms: _Terms) -> None:
        self.head = head
        self.terms = terms

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        losses = type(self.head).compute_loss(self.head, targets, head_outputs, anchors, matched_idxs)
        regression = _in_full(head_outputs["bbox_regression"])
        coder = getattr(self.head, "box_coder", None)
        if coder is not None:  # FCOS: distances from a point
            pred = list(coder.decode(regression, torch.stack(anchors)))
        else:
            coder = self.head.regression_head.box_coder
            pred = [coder.decode_single(*each) for each in zip(regression, anchors, strict=True)]
        return {**losses, **self.terms(targets, pred, matched_idxs)}


class _RegionLoss:
    """The methods of RoIHeads that see which ground truth a proposal was sampled for, and what was predicted for it."""

    def __init__(self, heads: Any, terms: _Terms) -> None:
        self.heads = heads
        self.terms = terms
        self.samples: tuple | None = None

    def select_training_samples(self, proposals: list[Tensor], targets: list[dict[str, Tensor]]) -> tuple:
        found = type(self.heads).select_training_samples(self.heads, proposals, targets)
        self.samples = found[:3]
        return found

    def forward(self, features: Any, proposals: Any, image_shapes: Any, targets: Any = None) -> tuple:
        regressions: list[Tensor] = []
        hook = self.heads.box_predictor.register_forward_hook(lambda _, __, outputs: regressions.append(outputs[1]))
        try:
            result, losses = type(self.heads).forward(self.heads, features, proposals, image_shapes, targets)
        finally:
            hook.remove()
            samples, self.samples = self.samples, None
        if samples is None:  # not in training
            return result, losses
        proposals, matched, labels = samples
        of_classes = regressions[0].unflatten(-1, (-1, 4))
        if of_classes.shape[1] > 1:  # else one regression for all classes
            of_classes = of_classes.take_along_dim(torch.cat(labels)[:, None, None], 1)
        boxes = self.heads.box_coder.decode_single(_in_full(of_classes.squeeze(1)), torch.cat(proposals))
        pred = list(boxes.view(-1, 4).split([len(each) for each in proposals]))
        rows = [torch.where(of_image > 0, row, -1) for of_image, row in zip(labels, matched, strict=True)]
        return result, {**losses, **self.terms(targets, pred, rows)}
