"""The files of a study: a row per run, a row per point of its learning curve, and some of its detections."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from studies.scenes import viewer
from studies.scenes.viewer import Detections

from .protocol import PICTURES, Run

RESULTS, CURVES = "results.csv", "curves.csv"

MEASURED = [
    *("ap", "ap50", "ap_small", "ap_tiny", "ar_small", "part_ap", "part_ap50", "whole_ap", "whole_ap50", "classes"),
    *("parts_detected", "parts_outside", "parts_inside_mean"),
]
SEEN = [
    *("paired", "mean_penalty", "chosen", "mean_loss", "photographs", "seconds", "device", "threads", "torch"),
    *("framework", "icr_kernels"),
]
COLUMNS = {RESULTS: [*Run._fields, *MEASURED, *SEEN], CURVES: [*Run._fields, "epoch", *MEASURED]}


def read(path: Path) -> list[dict[str, str]]:
    """The rows of results.csv or of curves.csv. ValueError: it is of another version."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        expected = COLUMNS[path.name]
        if reader.fieldnames != expected:
            other = [name for name in reader.fieldnames or () if name not in expected] or "fewer"
            raise ValueError(f"{path}: expected the columns {', '.join(expected)}, got {', '.join(other)}")
        return list(reader)


def run_of(row: dict[str, str]) -> Run:
    kinds = (str, str, float, str, int, int, int, int, float, int)
    return Run(*(kind(row[name]) for kind, name in zip(kinds, Run._fields, strict=True)))


def append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS[path.name], lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def _detections_file(output: Path, run: Run) -> Path:
    return output / "detections" / f"{run}.json"


def _shown(detections: Detections) -> list[list[float]]:
    """What a picture shows of them: four sides, score and label of each, to hundredths."""
    boxes, scores, labels = (values[detections.scores >= viewer.SHOWN] for values in detections)
    rows = torch.cat((boxes, scores[:, None], labels[:, None].to(boxes.dtype)), 1)
    return [[round(value, 2) for value in row] for row in rows.tolist()]


def keep(output: Path, run: Run, detections: Sequence[Detections]) -> None:
    """Writes what the pictures of a run are made of: its detections on the first images."""
    path = _detections_file(output, run)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([_shown(each) for each in detections[:PICTURES]]))


def has_pictures(output: Path, run: Run) -> bool:
    return _detections_file(output, run).exists()


def pictured(output: Path, run: Run) -> list[Detections]:
    """The detections that a run has kept, of as many images."""
    kept = [torch.tensor(rows).view(-1, 6) for rows in json.loads(_detections_file(output, run).read_text())]
    return [Detections(rows[:, :4], rows[:, 4], rows[:, 5].long()) for rows in kept]
