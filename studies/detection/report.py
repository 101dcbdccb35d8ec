"""What the runs say: means and spread of each arm, and its difference to the same seeds of another."""

import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import ARMS, BASELINE, BOTH, CURVES, PHOTOGRAPHS, RESULTS, UNIFORM, Run, read, run_of

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
WEIGHT = 0.5
RESAMPLES = 10_000
CONFIDENCE = 0.95
# Tables have lines of their own; what is short stands in a line.
BLOCK = re.compile(
    r"(<!-- training study: (answers|tables|short) -->(\n?)).*?(<!-- end of training study -->)", re.DOTALL
)


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


def tables(rows: Sequence[dict[str, str]]) -> str:
    """Markdown: of each comparison the means, and the differences with their intervals. Numbers in percent."""
    return "\n\n".join(_section(comparison, values) for comparison, values in comparisons(rows).items())


def _section(comparison: Comparison, values: Values) -> str:
    seeds = {len(of_seeds) for of_seeds in values.values()}
    count = "1 seed" if seeds == {1} else f"{' to '.join(map(str, sorted({min(seeds), max(seeds)})))} seeds"
    means = [[label(arm), *(_spread(of_seeds, metric) for metric in METRICS)] for arm, of_seeds in values.items()]
    changes = [
        [label(arm), *(_change(difference(values, arm, metric)) for metric in METRICS)]
        for arm in values
        if arm[0] != BASELINE
    ]
    head = [name for name, _ in METRICS.values()]
    return "\n\n".join(
        [
            f"**{comparison}**; {count}, mean ± standard deviation, in %:",
            _markdown(["arm", *head], means),
            f"Difference to the same seeds of {BASELINE}: mean [{CONFIDENCE:.0%} interval], seeds that are better:",
            _markdown(["arm", *head], changes),
        ]
    )


# The study's questions, each in a metric: what is asked of, the arm, and the one that it is compared with.
ANSWERS: Sequence[tuple[str, str, Arm, Arm]] = (
    ("part_ap50", "the penalty", ("containment", WEIGHT), (BASELINE, 0.0)),
    ("part_ap50", "the uniform term, no relation", (UNIFORM, WEIGHT), (BASELINE, 0.0)),
    ("part_ap50", "the penalty on top of that", (BOTH, WEIGHT), (UNIFORM, WEIGHT)),
    ("whole_ap", "the uniform term", (UNIFORM, WEIGHT), (BASELINE, 0.0)),
    ("part_ap50", "the uniform term, weight 0.1", (UNIFORM, 0.1), (BASELINE, 0.0)),
    ("whole_ap", "the uniform term, weight 0.1", (UNIFORM, 0.1), (BASELINE, 0.0)),
)


def answers(rows: Sequence[dict[str, str]]) -> str:
    """Markdown: each comparison a row, the differences that answer the study's questions, in points."""
    lines = [
        [str(comparison), *(_change(difference(values, arm, metric, to)) for metric, _, arm, to in ANSWERS)]
        for comparison, values in comparisons(rows).items()
    ]
    return _markdown(["detector and data", *(f"{METRICS[metric][0]}: {asked}" for metric, asked, *_ in ANSWERS)], lines)


def short(rows: Sequence[dict[str, str]]) -> str:
    """A line of each detector on exact labels and on photographs with the penalty and the uniform term: the comparison
    that has most runs."""
    found: dict[str, Values] = {}
    for comparison, values in comparisons(rows).items():
        if comparison.labels in ("clean", PHOTOGRAPHS):
            source = PHOTOGRAPHS if comparison.labels == PHOTOGRAPHS else "generated scenes"
            where = f"{comparison.detector} on {source}"
            if where not in found or _runs(values) > _runs(found[where]):
                found[where] = values
    asked = {"the penalty": ("containment", WEIGHT), "a uniform term": (UNIFORM, WEIGHT)}
    parts = []
    for where, values in found.items():
        changes = {name: _change(difference(values, arm, "part_ap50")) for name, arm in asked.items()}
        said = ", ".join(f"{name} {change}" for name, change in changes.items() if change != "-")
        if said:
            parts.append(f"{where}: {said}")
    return "<br>".join(parts) or "nothing has been trained yet"


def _runs(values: Values) -> int:
    return sum(map(len, values.values()))


def _spread(of_seeds: dict[int, dict[str, float]], metric: str) -> str:
    found = [100 * each[metric] for each in of_seeds.values()]
    if np.isnan(found).any():  # a share of nothing
        return "-"
    spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):.1f}{spread}"


def _change(change: Difference | None) -> str:
    if change is None:
        return "-"
    mean, low, high = (100 * each for each in change[:3])
    interval = f" [{low:+.1f}, {high:+.1f}]" if change.seeds > 1 else ""
    return f"{mean:+.1f}{interval} {change.better}/{change.seeds}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def filled(document: str, rows: Sequence[dict[str, str]]) -> str:
    """The document with its blocks, of the answers, of all tables or in short, written anew.

    ValueError: it has none.
    """
    if not BLOCK.search(document):
        raise ValueError(
            "expected a document with <!-- training study: answers -->, or tables or short in its place, before, and "
            "<!-- end of training study --> after what is to be replaced, got one without"
        )
    blocks = {"answers": answers, "tables": tables, "short": short}
    return BLOCK.sub(lambda match: f"{match[1]}{blocks[match[2]](rows)}{match[3]}{match[4]}", document)


def main(folder: Path, documents: Sequence[Path]) -> int:
    rows = read(folder / RESULTS)
    if not rows:
        print(f"No runs in {folder}: `python -m studies.detection run --output {folder}`.")
        return 2
    from . import figures

    written = [*documents]
    texts = {document: filled(document.read_text(), rows) for document in documents}
    for document, text in texts.items():
        document.write_text(text)
    if not documents:
        written = [folder / "report.md"]
        written[0].write_text(f"{answers(rows)}\n\n{tables(rows)}\n")
    drawn = figures.draw(folder, comparisons(rows), read(folder / CURVES))
    print(answers(rows), tables(rows), *(f"written: {path}" for path in (*written, *drawn)), sep="\n")
    return 0
