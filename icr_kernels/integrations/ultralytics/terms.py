"""What is added to the box loss of a model, and what that means on a data set."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...relations import Relations
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
    auxiliary: bool
    denoising: bool
    record: Record


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
