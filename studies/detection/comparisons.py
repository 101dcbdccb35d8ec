"""The numbers of what is compared: each arm over its seeds, and its difference to the same seeds of another."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .protocol import ARMS, BASELINE, PHOTOGRAPHS, Run
from .results import run_of

# To each column of results.csv what it is called, and whether more is better.
METRICS = {
    "part_ap50": ("part AP50", True),
    "part_ap": ("part AP", True),
    "whole_ap": ("whole AP", True),
    "ap50": ("AP50", True),
    "ap": ("AP", True),
    "ap_small": ("AP small", True),
    "parts_outside": ("parts outside", False),
}
RESAMPLES = 10_000
CONFIDENCE = 0.95


class Comparison(NamedTuple):
    """What all its runs share."""

    detector: str
    labels: str
    images: int
    epochs: int
    size: int
    zoom: float
    batch: int

    def __str__(self) -> str:
        source = PHOTOGRAPHS if self.labels == PHOTOGRAPHS else f"scenes, {self.labels} labels"
        return f"{self.detector}, {source}, {self.images:,} training images of {self.size} px, {self.epochs} epochs"

    @classmethod
    def of(cls, run: Run) -> "Comparison":
        return cls(*(getattr(run, name) for name in cls._fields))

    def run(self, arm: str, weight: float, seed: int) -> Run:
        return Run(arm=arm, weight=weight, seed=seed, **self._asdict())


Arm = tuple[str, float]  # its name and weight
Values = dict[Arm, dict[int, dict[str, float]]]  # of each arm and seed the metrics


class Difference(NamedTuple):
    """To the baseline, over the seeds that both have; ``low`` and ``high`` bound the mean."""

    mean: float
    low: float
    high: float
    better: int
    seeds: int


def comparisons(rows: Sequence[dict[str, str]]) -> dict[Comparison, Values]:
    found: dict[Comparison, Values] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        run = run_of(row)
        if run.arm not in ARMS:
            raise ValueError(f"arm: expected one of {', '.join(ARMS)}, got {run.arm!r}")
        found[Comparison.of(run)][run.arm, run.weight][run.seed] = {name: float(row[name]) for name in METRICS}
    order = list(ARMS)

    def place(arm: Arm) -> tuple[int, float]:
        return order.index(arm[0]), arm[1]

    return {comparison: {arm: values[arm] for arm in sorted(values, key=place)} for comparison, values in found.items()}


def paired_bootstrap(differences: Sequence[float]) -> tuple[float, float]:
    """The percentile interval of the mean: seeds are drawn again, each with both of its runs."""
    values = np.asarray(differences, np.float64)
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def difference(values: Values, arm: Arm, metric: str, to: Arm = (BASELINE, 0.0)) -> Difference | None:
    """None where no seed has both runs, or one of them has no number."""
    ours, base = values.get(arm, {}), values.get(to, {})
    pairs = [(ours[seed][metric], base[seed][metric]) for seed in sorted(ours.keys() & base.keys())]
    differences = [ours - theirs for ours, theirs in pairs]
    if not differences or np.isnan(differences).any():
        return None
    is_more_better = METRICS[metric][1]
    better = sum((each > 0) if is_more_better else (each < 0) for each in differences)
    return Difference(statistics.fmean(differences), *paired_bootstrap(differences), better, len(differences))


def label(arm: Arm) -> str:
    name, weight = arm
    return f"{name}, weight {weight:g}" if ARMS[name].has_weight else name
