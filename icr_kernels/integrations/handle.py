"""What all adapters share: the handle that they return, its statistics, and how they ask for their framework."""

import importlib
import importlib.metadata
import re
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

# So many training steps without a single pair are worth a warning: a model, or data, that has no such relations.
STEPS_WITHOUT_PAIRS = 200


class Statistics(NamedTuple):
    """What was trained on since the start or the last reset.

    ``positives`` counts predictions with a target, ``parts`` those whose target is of a part's class, ``paired`` those
    of them that have an anchor object; ``mean_penalty`` is the mean of these, before weighting (NaN without any).
    """

    steps: int
    positives: int
    parts: int
    paired: int
    mean_penalty: float


class Record:
    """Running sums on the device; they are read when somebody asks, and then only does anything wait."""

    def __init__(self, relations: object) -> None:
        self.relations = repr(relations)
        self.reset()

    def reset(self) -> None:
        self.steps = 0
        self.sums: Tensor | None = None
        self.warns = True

    @torch.no_grad()
    def add(self, is_positive: Tensor, is_part: Tensor, is_paired: Tensor, penalty: Tensor) -> None:
        """One row a prediction: whether it counts, is a part, has an anchor object; its penalty before weighting."""
        paired = is_paired & is_positive
        counts = is_positive.sum(), (is_part & is_positive).sum(), paired.sum()
        of_paired = torch.where(paired, penalty, 0).sum(dtype=torch.float64)
        sums = torch.stack([*(count.to(torch.float64) for count in counts), of_paired])
        # Out of place: what was made in inference mode may not be changed outside it.
        self.sums = sums if self.sums is None else self.sums.to(sums.device) + sums

    def step(self) -> None:
        """Ends a training step. After many without a pair it warns, once."""
        self.steps += 1
        if not self.warns or self.steps % STEPS_WITHOUT_PAIRS != 0:
            return
        self.warns = False
        if self.statistics().paired == 0:
            warnings.warn(
                f"icr_kernels: in {self.steps} training steps no part was paired with a whole; "
                f"{self.relations} may not fit the data, or the labels have no wholes",
                stacklevel=2,
            )

    def statistics(self) -> Statistics:
        positives, parts, paired, penalty = [0.0] * 4 if self.sums is None else self.sums.tolist()
        mean = penalty / paired if paired else float("nan")
        return Statistics(self.steps, int(positives), int(parts), int(paired), mean)


class Handle:
    """What `enable_icr` returns: ``statistics`` so far, ``reset()`` to count anew, ``disable()`` to go back to the
    stock loss."""

    def __init__(self, record: Record, disable: Callable[[], None]) -> None:
        self._record = record
        self._disable = disable

    @property
    def statistics(self) -> Statistics:
        """`Statistics` since the start or the last reset. Reading them waits for the device."""
        return self._record.statistics()

    def reset(self) -> None:
        self._record.reset()

    def disable(self) -> None:
        self._disable()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._record.relations}, {self.statistics})"


def framework(name: str, oldest: str, newest: str) -> ModuleType:
    """The framework, imported; or an error that says what is missing. ``newest`` is the first that is too new."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(f"{name} is not installed; pip install '{name}>={oldest},<{newest}'") from None
    if not _numbers(oldest) <= _numbers(version) < _numbers(newest):
        raise ImportError(f"{name}: expected a version from {oldest} on and below {newest}, got {version}")
    return importlib.import_module(name)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))
