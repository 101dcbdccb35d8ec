"""The study's plots and pictures."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import torch
from matplotlib.figure import Figure

from .. import scenes
from ..scenes import viewer
from ..scenes.drawing import Picture
from ..scenes.viewer import Detections
from . import BASELINE, PICTURED_SEED, PICTURES, VALIDATION_SEED, pictured, run_of
from .report import Arm, Comparison, Values, difference, label

DPI = 100
STYLES: dict[str, dict[str, Any]] = {
    "off": {"color": "0.1", "linestyle": "-", "marker": "o"},
    "containment": {"color": "#0072b2", "linestyle": "--", "marker": "s"},
    "containment+pull": {"color": "#d55e00", "linestyle": "-.", "marker": "^"},
    "relative": {"color": "#009e73", "linestyle": ":", "marker": "D"},
    "box loss x 1.5": {"color": "0.5", "linestyle": "-", "marker": "v"},
}
SHOWN = {"plate_ap50": "plate AP50", "ap": "AP, all classes", "plates_outside": "plates outside every vehicle"}


def draw(folder: Path, found: dict[Comparison, Values], curves: Sequence[dict[str, str]]) -> list[Path]:
    return [
        differences(folder / "differences.png", found),
        learning(folder / "curves.png", found, curves),
        *detections(folder, found),
    ]


def differences(path: Path, found: dict[Comparison, Values]) -> Path:
    """Of every arm the difference to no penalty, with its interval: a panel a metric, a group of rows a comparison."""
    rows: list[tuple[Comparison, Arm]] = [
        (comparison, arm) for comparison, values in found.items() for arm in values if arm[0] != BASELINE
    ]
    figure = Figure(figsize=(12, 1.6 + 0.28 * len(rows) + 0.3 * len(found)), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(SHOWN), sharey=True)
    heights, ticks = [], []
    height, before = 0.0, None
    for comparison, arm in rows:
        height -= 1 if comparison == before else 2.2
        before = comparison
        heights.append(height)
        ticks.append(label(arm))
    for axes, (metric, title) in zip(panels, SHOWN.items(), strict=True):
        axes.patch.set_visible(False)  # titles run over the next panels
        axes.axvline(0, color="0.6", linewidth=1)
        for at, (comparison, arm) in zip(heights, rows, strict=True):
            change = difference(found[comparison], arm, metric)
            if change is not None:
                style = STYLES[arm[0]]
                mean, low, high = (100 * each for each in change[:3])
                axes.plot([low, high], [at, at], color=style["color"], linewidth=2)
                axes.plot(mean, at, color=style["color"], marker=style["marker"], markersize=6)
        axes.set(xlabel=f"{title}:\ndifference to no penalty (points)")
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(heights, ticks)
    for comparison in found:
        first = next((at for at, row in zip(heights, rows, strict=True) if row[0] == comparison), None)
        if first is not None:
            title = panels[0].annotate(
                str(comparison), (0, first + 0.85), xycoords=("axes fraction", "data"), size="small", weight="bold"
            )
            title.set_in_layout(False)
    panels[0].set_ylim(min(heights) - 0.8, max(heights) + 1.6)
    figure.savefig(path)
    return path


def learning(path: Path, found: dict[Comparison, Values], curves: Sequence[dict[str, str]]) -> Path:
    """Plate AP50 of the validation images by epoch: the mean of the seeds, and the band from the worst to the best."""
    columns = min(len(found), 2)
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(5.2 * columns, 4.2 * rows), dpi=DPI, layout="constrained")
    for place, (comparison, values) in enumerate(found.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        own = [(run_of(row), row) for row in curves if Comparison.of(run_of(row)) == comparison]
        for arm in values:
            points: dict[int, list[float]] = {}
            for run, row in own:
                if (run.arm, run.weight) == arm:
                    points.setdefault(int(row["epoch"]), []).append(100 * float(row["plate_ap50"]))
            epochs = sorted(points)
            style = STYLES[arm[0]]
            means = [np.mean(points[epoch]) for epoch in epochs]
            width = 2 * (arm[1] or 0.5) ** (1 / 3)  # the heavier the penalty
            axes.plot(epochs, means, label=label(arm), markersize=2.5 * width, linewidth=width, **style)
            low, high = ([of(points[epoch]) for epoch in epochs] for of in (min, max))
            axes.fill_between(epochs, low, high, color=style["color"], alpha=0.1, linewidth=0)
        axes.set(title=str(comparison).replace(", ", ",\n", 1), xlabel="epoch", ylabel="plate AP50 (%)")
        axes.title.set_fontsize("small")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small", loc="upper left")
    figure.savefig(path)
    return path


def detections(folder: Path, found: dict[Comparison, Values]) -> list[Path]:
    """Of one seed of each comparison: the labels, then what each arm detects, an image a row."""
    paths = []
    for number, (comparison, values) in enumerate(found.items(), start=1):
        columns = {
            label(arm): pictured(folder, comparison.run(*arm, PICTURED_SEED))
            for arm, of_seeds in values.items()
            if PICTURED_SEED in of_seeds
        }
        paths.append(folder / f"detections-{number}.jpg")
        viewer.save(paths[-1], _side_by_side(comparison, columns))
    return paths


def _side_by_side(comparison: Comparison, columns: dict[str, list[Detections]]) -> Picture:
    scale = max(round(320 / comparison.size), 1)
    cells = []
    for number in range(PICTURES):
        picture, (boxes, labels, parents) = scenes.render(VALIDATION_SEED, number, comparison.size, comparison.zoom)
        row = [viewer.labelled(picture, *map(torch.from_numpy, (boxes, labels, parents)), scale=scale)]
        row += [viewer.detected(picture, kept[number], scale=scale) for kept in columns.values()]
        titles = ["labels", *columns]
        cells += [viewer.titled(each, title) for each, title in zip(row, titles, strict=True)]
    return viewer.contact_sheet(cells, len(columns) + 1)
