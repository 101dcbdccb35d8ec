"""What the runs say, in Markdown: means and spread of each arm, and its difference to the same seeds of another."""

import re
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from . import figures
from .comparisons import CONFIDENCE, METRICS, Arm, Comparison, Difference, Values, comparisons, difference, label
from .protocol import BASELINE, BOTH, PHOTOGRAPHS, UNIFORM, WEIGHT
from .results import CURVES, RESULTS, read

# Tables have lines of their own; what is short stands in a line.
BLOCK = re.compile(
    r"(<!-- training study: (answers|tables|short) -->(\n?)).*?(<!-- end of training study -->)", re.DOTALL
)


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
