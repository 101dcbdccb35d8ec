"""What is changed in the box loss of a model, what that means on a data set, and for what a head predicts."""

from collections.abc import Iterable, Mapping, Sequence
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
    auxiliary: bool
    denoising: bool
    record: Record


class Terms(NamedTuple):
    """What joins the box loss of a training run: the options with what it is on."""

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
    def record(self) -> Record:
        return self.options.record

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


class OtherLoss(NamedTuple):
    """What is in the place of the stock box loss in a training run."""

    loss: str | BoxLoss
    image_size: float
    means: dict[int, Tensor]  # of each head, where the loss is wise
    record: Record

    def mean_of(self, head: int, pred: Tensor, target: Tensor, **pairs: Any) -> Tensor | None:
        """The running mean of 1 - IoU of a head, updated by these pairs in training."""
        if box_loss(self.loss).wise is None:
            return None
        mean = self.means.setdefault(head, torch.ones((), device=pred.device))
        if torch.is_grad_enabled():
            wise.update(mean, pred, target, **pairs)
        return mean.clone()


class Changes(NamedTuple):
    """What of the box loss of a model is not stock."""

    terms: Terms | None = None
    box_loss: OtherLoss | None = None

    @property
    def columns(self) -> list[str]:
        return [] if self.terms is None else self.terms.columns

    @property
    def records(self) -> Iterable[Record]:
        """Once each: both may be of one call."""
        return dict.fromkeys(each.record for each in self if each is not None)

    def without(self, record: Record) -> "Changes":
        """What other calls have changed of it."""
        of_record = [name for name, each in self._asdict().items() if each is not None and each.record is record]
        return self._replace(**dict.fromkeys(of_record))


class Assigned(NamedTuple):
    """What a head predicts for B images, at A points each, and is trained towards."""

    pred: Tensor  # (B, A, 4) corners in pixels, with their gradient
    index: Tensor  # type: ignore[assignment]  # a method of tuples; (B, A), the row of the target, -1 for none
    score: Tensor  # (B, A)
    normalizer: Tensor | float  # what the sum weighted by scores is divided by
    table: Tensor  # (M, 4) corners in pixels, the ground truth of all images
    labels: Tensor  # (M,)
    image: Tensor  # (M,), -1 for padding


class HeadChanges:
    """The changes of one head's box loss, in one step."""

    def __init__(self, changes: Changes, gain: float, head: int) -> None:
        self.terms, self.other = changes
        self.records = changes.records
        self.gain = gain
        self.head = head
        # To each column what is added to the head's box_loss, with its gain, without gradient.
        self.added: dict[str, Tensor] = {}

    def count(self, index: Tensor) -> None:
        """Which predictions have a target, as `Assigned` has it."""
        for record in self.records:
            record.add_positives(index >= 0)

    def box_loss(self, pred: Tensor, table: Tensor, index: Tensor) -> dict[str, Any]:
        """That of the boxes, where it is not the stock one, as options of `box_iou_loss` and `dense_detection_loss`."""
        if self.other is None:
            return {}
        return {"loss": self.other.loss, "wise_mean": self.other.mean_of(self.head, pred, table, target_index=index)}

    def of(self, found: Assigned) -> Tensor | float:
        """The sum of the terms, before the gain of the box loss."""
        total: Tensor | float = 0.0
        if self.terms is None or len(found.table) == 0:
            return total
        options, relations, chooser = self.terms.options, self.terms.relations, self.terms.chooser
        is_positive = found.index >= 0
        # Background gets the first row; the masks leave it out.
        row = found.index.clamp(min=0)
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
