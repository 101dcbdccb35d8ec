"""What is added to the box loss of a model, what that means on a data set, and for what a head predicts."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import wise
from ...functional import icr_terms
from ...relations import Relations
from ...specifications import BoxLoss, box_loss
from ..handle import Record
from ..uniform import Chooser, UniformTerm

# The columns of the terms in the log.
PENALTY, UNIFORM = "icr_loss", "uniform_loss"


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
    iou_loss: str | BoxLoss | None
    auxiliary: bool
    denoising: bool
    record: Record


class Terms(NamedTuple):
    """The options of a training run with what it is on."""

    options: Options
    relations: Relations | None
    chooser: Chooser | None
    image_size: float
    means: dict[int, Tensor]  # of each head, where its loss is wise

    @classmethod
    def of(cls, options: Options, trainer: Any, names: Mapping[int, str]) -> "Terms":
        penalty, uniform = options.penalty, options.uniform
        if trainer.args.single_cls and (penalty is not None or (uniform is not None and uniform.names is not None)):
            raise ValueError("single_cls: expected False, because terms of some classes need them, got True")
        relations = None
        if penalty is not None:
            relations = Relations(penalty.pairs, names, min_containment=penalty.min_containment)
        chooser = None if uniform is None else uniform.chooser(names)
        return cls(options, relations, chooser, trainer.args.imgsz, {})

    def mean_of(self, head: int, pred: Tensor, target: Tensor, **pairs: Any) -> Tensor | None:
        """The running mean of 1 - IoU of a head, updated by these pairs in training."""
        if self.options.iou_loss is None or box_loss(self.options.iou_loss).wise is None:
            return None
        mean = self.means.setdefault(head, torch.ones((), device=pred.device))
        if torch.is_grad_enabled():
            wise.update(mean, pred, target, **pairs)
        return mean.clone()

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


class Assigned(NamedTuple):
    """What a head predicts for B images, at A points each, and is trained towards."""

    pred: Tensor  # (B, A, 4) corners in pixels, with their gradient
    index: Tensor  # type: ignore[assignment]  # a method of tuples; (B, A), the row of the target, -1 for none
    score: Tensor  # (B, A)
    normalizer: Tensor | float  # what the sum weighted by scores is divided by
    table: Tensor  # (M, 4) corners in pixels, the ground truth of all images
    labels: Tensor  # (M,)
    image: Tensor  # (M,), -1 for padding


class HeadTerms:
    """The terms of one head, in one step."""

    def __init__(self, terms: Terms, gain: float, head: int) -> None:
        self.terms = terms
        self.gain = gain
        self.head = head
        # To each column what is added to the head's box_loss, with its gain, without gradient.
        self.added: dict[str, Tensor] = {}

    def box_loss(self, decoded: Tensor, table: Tensor, index: Tensor) -> dict[str, Any]:
        """That of the boxes, where it is not the stock one, as options of `dense_detection_loss`."""
        loss = self.terms.options.iou_loss
        if loss is None:
            return {}
        return {"loss": loss, "wise_mean": self.terms.mean_of(self.head, decoded, table, target_index=index)}

    def of(self, found: Assigned) -> Tensor | float:
        """Their sum, before the gain of the box loss."""
        total: Tensor | float = 0.0
        if len(found.table) == 0:
            return total
        options, relations, chooser = self.terms.options, self.terms.relations, self.terms.chooser
        is_positive = found.index >= 0
        # Background gets the first row; the masks leave it out.
        row = found.index.clamp(min=0)
        options.record.add_positives(is_positive)
        if options.penalty is not None and relations is not None:
            anchor_index = relations.anchor_index(found.table, found.labels, found.image)[row]
            is_paired = is_positive & (anchor_index >= 0)
            penalty = icr_terms(
                found.pred,
                found.table,
                found.table,
                target_index=found.index,
                anchor_index=anchor_index,
                loss="iou",
                penalty_weight=0.0,
                mask=is_paired,
                **options.penalty.formula,
            ).penalty
            if options.penalty.weighting == "uniform":
                mean = penalty.sum() / is_paired.sum().clamp(min=1)
            else:
                mean = (penalty * found.score).sum() / found.normalizer
            total = total + self._added(PENALTY, options.penalty.weight, mean)
            is_part = is_positive & relations.is_part(found.labels)[row]
            options.record.add_penalty(is_part, is_paired, penalty)
        if options.uniform is not None and chooser is not None:
            is_chosen = is_positive & chooser(found.labels, found.table[:, 2:] - found.table[:, :2])[row]
            mean = options.uniform.mean(found.pred, found.table[row], is_chosen)
            total = total + self._added(UNIFORM, options.uniform.weight, mean)
            options.record.add_uniform(is_chosen, mean)
        return total

    def _added(self, column: str, weight: float, mean: Tensor) -> Tensor:
        term = weight * mean
        self.added[column] = term.detach() * self.gain
        return term
