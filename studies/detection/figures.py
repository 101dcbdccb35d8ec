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

from studies import scenes
from studies.scenes import viewer
from studies.scenes.drawing import Picture
from studies.scenes.viewer import Detections

from .comparisons import Arm, Comparison, Values, difference, label
from .protocol import ARMS, BASELINE, BOTH, LABEL, PICTURED_SEED, PICTURES, UNIFORM, VALIDATION_SEED, WEIGHT
from .results import has_pictures, pictured, run_of

DPI = 100
# Arms by what they are: none, a penalty, the uniform term, both, a control.
COLOURS = {"off": "0.1", "containment": "#0072b2", "uniform": "#d55e00", "both": "#009e73", "control": "0.55"}
MARKERS = "osD^vP*X<>phd8"
SHOWN = {"part_ap50": "AP50 of parts", "whole_ap": "AP of wholes", "ap": "AP of all classes"}
# Of these arms there are curves and pictures, where they were run.
PRINCIPAL = (BASELINE, 0.0), ("containment", WEIGHT), (UNIFORM, WEIGHT), (BOTH, WEIGHT)


def style(name: str) -> dict[str, Any]:
    arm = ARMS[name]
    is_control = arm.in_another_whole or arm.weighting != "uniform" or arm.gain != 1 or arm.uniform == LABEL
    if is_control:
        kind = "control"
    elif arm.uniform:
        kind = "both" if arm.penalty else "uniform"
    else:
        kind = "containment" if arm.penalty else "off"
    return {"color": COLOURS[kind], "marker": MARKERS[list(ARMS).index(name)]}


def draw(folder: Path, found: dict[Comparison, Values], curves: Sequence[dict[str, str]]) -> list[Path]:
    drawn = [learning(folder / "curves.png", found, curves), *detections(folder, found)]
    if any(arm[0] != BASELINE for values in found.values() for arm in values):
        drawn.append(differences(folder / "differences.png", found))
    return drawn


def differences(path: Path, found: dict[Comparison, Values]) -> Path:
    """Of every arm the difference to none, with its interval: a panel per metric, a group of rows per comparison."""
    rows: list[tuple[Comparison, Arm]] = [
        (comparison, arm) for comparison, values in found.items() for arm in values if arm[0] != BASELINE
    ]
    figure = Figure(figsize=(12, 1.6 + 0.2 * len(rows) + 0.36 * len(found)), dpi=DPI, layout="constrained")
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
                mean, low, high = (100 * each for each in change[:3])
                axes.plot([low, high], [at, at], color=style(arm[0])["color"], linewidth=2)
                axes.plot(mean, at, markersize=5, **style(arm[0]))
        axes.set(xlabel=f"{title}:\ndifference to {BASELINE} (points)")
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
    """AP50 of the parts of the validation images by epoch: the mean of the seeds, and the band from worst to best."""
    columns = min(len(found), 2)
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(5.2 * columns, 4.2 * rows), dpi=DPI, layout="constrained")
    for place, (comparison, values) in enumerate(found.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        own = [(run_of(row), row) for row in curves if Comparison.of(run_of(row)) == comparison]
        for arm in (arm for arm in PRINCIPAL if arm in values):
            points: dict[int, list[float]] = {}
            for run, row in own:
                if (run.arm, run.weight) == arm:
                    points.setdefault(int(row["epoch"]), []).append(100 * float(row["part_ap50"]))
            epochs = sorted(points)
            means = [np.mean(points[epoch]) for epoch in epochs]
            axes.plot(epochs, means, label=label(arm), markersize=4, linewidth=1.5, **style(arm[0]))
            low, high = ([of(points[epoch]) for epoch in epochs] for of in (min, max))
            axes.fill_between(epochs, low, high, color=style(arm[0])["color"], alpha=0.1, linewidth=0)
        axes.set(title=str(comparison).replace(", ", ",\n", 1), xlabel="epoch", ylabel="AP50 of parts (%)")
        axes.title.set_fontsize("small")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small")
    figure.savefig(path)
    return path


def detections(folder: Path, found: dict[Comparison, Values]) -> list[Path]:
    """Of one seed of each comparison on scenes: the labels, then what the arms detect, an image per row."""
    paths: list[Path] = []
    for comparison, values in found.items():
        runs = {arm: comparison.run(*arm, PICTURED_SEED) for arm in PRINCIPAL if arm in values}
        columns = {label(arm): pictured(folder, run) for arm, run in runs.items() if has_pictures(folder, run)}
        if not columns:
            continue
        paths.append(folder / f"detections-{len(paths) + 1}.jpg")
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
