"""What all adapters share: the handle that they return, its statistics, how they ask for their framework, and whether a
loss of theirs is one of ours."""

import importlib
import math
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

# So many training steps without a single pair are worth a warning: a model, or data, that has no such relations.
STEPS_WITHOUT_PAIRS = 200

# Losses are the same if they differ by less, relatively. On the trial boxes rounding and other guards of denominators
# make up 2e-6, and the nearest relatives, DIoU and CIoU, are 1e-2 apart.
ROUNDING = 1e-4

Losses = Mapping[str, Tensor]


class Statistics(NamedTuple):
    """What was trained on since the start or the last reset.

    ``positives`` counts predictions with a target, ``parts`` those whose target is of a part's class, ``paired`` those
    of them that have an anchor object; ``mean_penalty`` is the mean of these, before weighting (NaN without any).
    ``chosen`` counts those whose target the uniform term is of; ``mean_loss`` is the mean of these, before weighting.
    """

    steps: int
    positives: int
    parts: int
    paired: int
    mean_penalty: float
    chosen: int = 0
    mean_loss: float = math.nan


class Record:
    """Running sums on the device, of training only: what happens without gradients is not added. They are read when
    somebody asks, and then only does anything wait."""

    def __init__(self, relations: object, uniform: object = None) -> None:
        self.relations = None if relations is None else repr(relations)
        self.uniform = None if uniform is None else str(uniform)
        self.reset()

    def reset(self) -> None:
        self.steps = 0
        self.sums: dict[str, Tensor] = {}
        self.warns = True

    def __getstate__(self) -> dict[str, Any]:
        # A pickle is read where there is no such device, too.
        return {**self.__dict__, "sums": {name: total.cpu() for name, total in self.sums.items()}}

    def add_positives(self, is_positive: Tensor) -> None:
        """Which predictions have a target."""
        self._add(positives=is_positive.sum())

    def add_penalty(self, is_part: Tensor, is_paired: Tensor, penalty: Tensor) -> None:
        """Which of them are parts, which have an anchor object, and the penalty before weighting."""
        of_paired = torch.where(is_paired, penalty.detach(), 0).sum(dtype=torch.float64)
        self._add(parts=is_part.sum(), paired=is_paired.sum(), penalty=of_paired)

    def add_uniform(self, is_chosen: Tensor, mean_loss: Tensor) -> None:
        """Which of them the uniform term is of, and their mean."""
        chosen = is_chosen.sum()
        self._add(chosen=chosen, loss=chosen * mean_loss.detach())

    def _add(self, **sums: Tensor) -> None:
        if not torch.is_grad_enabled():
            return
        for name, value in sums.items():
            total = self.sums.get(name)
            value = value.to(torch.float64)
            self.sums[name] = value if total is None else total.to(value.device) + value

    def step(self) -> None:
        """Ends a training step. After many without a pair it warns, once."""
        if not torch.is_grad_enabled():
            return
        self.steps += 1
        if not self.warns or self.steps % STEPS_WITHOUT_PAIRS != 0:
            return
        self.warns = False
        statistics = self.statistics()
        if self.relations is not None and statistics.paired == 0:
            warnings.warn(
                f"icr_kernels: in {self.steps} training steps no part was paired with a whole; "
                f"{self.relations} may not fit the data, or the labels have no wholes",
                stacklevel=2,
            )
        elif self.uniform is not None and statistics.chosen == 0:
            warnings.warn(
                f"icr_kernels: in {self.steps} training steps nothing counted in the uniform term, {self.uniform}; "
                "that may not fit the data",
                stacklevel=2,
            )

    def statistics(self) -> Statistics:
        sums: dict[str, float] = defaultdict(float, {name: total.item() for name, total in self.sums.items()})
        positives, parts, paired, chosen = (int(sums[name]) for name in ("positives", "parts", "paired", "chosen"))
        mean_penalty, mean_loss = _mean(sums["penalty"], paired), _mean(sums["loss"], chosen)
        return Statistics(self.steps, positives, parts, paired, mean_penalty, chosen, mean_loss)


def _mean(total: float, count: float) -> float:
    return total / count if count else math.nan


class Handle:
    """What `enable_icr` and its like return: ``statistics`` so far, ``reset()`` to count anew, ``disable()`` to go back
    to the stock loss.

    A copy, and what comes out of a pickle, has the statistics but no model: its ``disable()`` is an error. Copied or
    pickled together with the model that it is of, it goes on counting what the copied model is trained on."""

    _disable: Callable[[], None] | None = None

    def __init__(self, record: Record, disable: Callable[[], None]) -> None:
        self._record = record
        self._disable = disable

    def __getstate__(self) -> dict[str, Any]:
        return {"_record": self._record}

    @property
    def statistics(self) -> Statistics:
        """`Statistics` since the start or the last reset. Reading them waits for the device."""
        return self._record.statistics()

    def reset(self) -> None:
        self._record.reset()

    def disable(self) -> None:
        if self._disable is None:
            raise RuntimeError(
                "disable: expected the handle of a model, got a copy of one, which has the statistics alone; "
                "enable_icr on a copied model returns its own"
            )
        self._disable()

    def __repr__(self) -> str:
        terms = [term for term in (self._record.relations, self._record.uniform) if term is not None]
        return f"{type(self).__name__}({', '.join([*terms, str(self.statistics)])})"


def trial_boxes() -> tuple[Tensor, Tensor]:
    """Predictions and targets to compare losses on: normalised, as cxcywh, some overlapping and some apart."""
    random = torch.rand(2, 64, 4, generator=torch.Generator().manual_seed(0))
    pred, target = torch.cat((0.3 + 0.4 * random[..., :2], 0.1 + 0.4 * random[..., 2:]), -1)
    return pred, target


def are_same(stock: Callable[[Tensor], Losses], own: Callable[[Tensor], Losses], pred: Tensor) -> bool:
    """Whether two functions of predictions give losses of the same names, values and gradients, but for rounding."""
    of_stock, of_own = (_with_gradients(losses_of, pred) for losses_of in (stock, own))
    return of_stock.keys() == of_own.keys() and all(
        (theirs - ours).norm() <= ROUNDING * ours.norm()
        for name in of_own
        for theirs, ours in zip(of_stock[name], of_own[name], strict=True)
    )


def _with_gradients(losses_of: Callable[[Tensor], Losses], pred: Tensor) -> dict[str, tuple[Tensor, ...]]:
    with torch.enable_grad():
        leaf = pred.detach().clone().requires_grad_()
        losses = losses_of(leaf)
        return {
            name: (loss.detach(), *torch.autograd.grad(loss, leaf, retain_graph=True)) for name, loss in losses.items()
        }


def framework(name: str, oldest: str, newest: str) -> ModuleType:
    """The framework, imported; or an error that says what is missing. ``newest`` is the first that is too new.

    What is imported counts: a checkout, beside which another version may be installed."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ImportError(f"{name} is not installed; pip install '{name}>={oldest},<{newest}'") from None
    version = getattr(module, "__version__", None)
    if not isinstance(version, str) or not _numbers(oldest) <= _numbers(version) < _numbers(newest):
        raise ImportError(
            f"{name}: expected a version from {oldest} on and below {newest}, got {version} in {place_of(module)}"
        )
    return module


def place_of(module: ModuleType) -> str:
    """The folder of a package, or the file of a module that is none."""
    return next(iter(getattr(module, "__path__", ())), None) or str(module.__file__)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))
