"""The study's figures (PNG). The only module that needs matplotlib; losses and penalties differ by more than colour."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from icr_kernels.variants import COMMON_LOSS_NAMES, DISTANCES, NO_PENALTY, PENALTY_NAMES

from . import grid as study
from .plates import WEIGHTS, Outcome, motion
from .protocol import ASPECT_RATIOS, CENTER, RADIUS, Regression

DPI = 100
INK, FAINT = "0.15", "0.6"
LOSS_STYLES: dict[str, dict[str, Any]] = {
    "iou": {"color": "0.1", "linestyle": "-", "marker": "o"},
    "giou": {"color": "#0072b2", "linestyle": "--", "marker": "s"},
    "diou": {"color": "#d55e00", "linestyle": "-.", "marker": "^"},
    "ciou": {"color": "#009e73", "linestyle": "-", "marker": "D"},
    "eiou": {"color": "#cc79a7", "linestyle": ":", "marker": "v"},
    "siou": {"color": "#999999", "linestyle": "--", "marker": "x"},
}
PENALTY_STYLES: dict[str, dict[str, Any]] = {
    NO_PENALTY: {"color": "white", "markeredgecolor": "0.1", "marker": "o", "markersize": 9},
    "containment": {"color": "#0072b2", "marker": "s"},
    "inverse": {"color": "#d55e00", "marker": "v"},
    "log": {"color": "#e69f00", "marker": "^"},
    "pull": {"color": "#009e73", "marker": "D"},
    "containment+pull": {"color": "#56b4e9", "marker": "P", "markersize": 8},
}
# For those that have none above, in turn.
SPARE_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#882255", "marker": "*", "linestyle": "-"},
    {"color": "#44aa99", "marker": "<", "linestyle": "--"},
    {"color": "#aa7744", "marker": ">", "linestyle": "-."},
    {"color": "#332288", "marker": "p", "linestyle": ":"},
    {"color": "#d55e00", "marker": "h", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
    {"color": "#0072b2", "marker": "X", "linestyle": (0, (8, 2))},
    {"color": "#999933", "marker": "d", "linestyle": (0, (3, 1, 1, 1))},
)
MODIFIER_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "0.1", "marker": "o", "markersize": 8, "markerfacecolor": "none"},
    {"color": "#0072b2", "marker": "<"},
    {"color": "#d55e00", "marker": ">"},
    {"color": "#009e73", "marker": "x"},
    {"color": "#cc79a7", "marker": "2", "markersize": 9},
    {"color": "#882255", "marker": "3", "markersize": 9},
)
COLUMNS = 3
# The plate and car of the penalties' field, in sides of a square plate.
PLATE = (2.0, 0.5)
CAR = (6.0, 5.0)


def error_curves(path: Path, formula: dict[str, Regression], as_published: dict[str, Regression]) -> None:
    """Mean error of a case after each iteration, with the formulas' gradients and with the published simulation's."""
    figure = Figure(figsize=(10, 4.4), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    titles = ("Gradients of the formulas", "Gradients of the paper's own simulation")
    styles = styled(formula, LOSS_STYLES)
    for axes, title, results in zip(panels, titles, (formula, as_published), strict=True):
        for loss, result in results.items():
            steps = range(1, len(result.errors) + 1)
            axes.plot(steps, result.errors, label=loss, markevery=max(1, len(steps) // 8), markersize=4, **styles[loss])
        axes.set(title=title, xlabel="iteration", yscale="log")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("mean error of a case, |dx|+|dy|+|dw|+|dh|\n(sides of the square target)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path)


def error_plane(path: Path, points: Tensor, formula: dict[str, Regression]) -> None:
    """Final error of the cases that start at each anchor point, one panel per loss, one colour scale."""
    figure, panels = grid(len(formula), 2.9)
    scale = ScalarMappable(LogNorm(1e-3, 10), "viridis")
    x, y = points.T
    for axes, (loss, result) in zip(panels, formula.items(), strict=True):
        errors = result.final_errors.mean(1)
        axes.hexbin(x, y, errors, gridsize=24, cmap=scale.cmap, norm=scale.norm, linewidths=0, antialiased=False)
        for ratio in (ASPECT_RATIOS[0], 1.0, ASPECT_RATIOS[-1]):
            _box(axes, (CENTER, CENTER), (ratio**0.5, ratio**-0.5), edgecolor="white", linewidth=0.8)
        axes.set(title=f"{loss}: mean {errors.mean():.4f}", aspect="equal")
        axes.set(
            xlim=(CENTER - 1.1 * RADIUS, CENTER + 1.1 * RADIUS), ylim=(CENTER - 1.1 * RADIUS, CENTER + 1.1 * RADIUS)
        )
    figure.supxlabel("x of the prediction's centre at the start (sides of the square target)", fontsize="medium")
    figure.supylabel("y at the start", fontsize="medium")
    figure.colorbar(
        scale, ax=figure.axes, label="mean final error of the 343 cases of a point", extend="both", aspect=35
    )
    figure.savefig(path)


# The two losses that each panel of the curves of all shows, for comparison.
COMPARED = ("iou", "ciou")


def grid_curves(path: Path, results: Sequence[study.Result]) -> None:
    """Mean error of a case after each iteration, of every loss alone: a panel for each family."""
    curves = {each.outcome.loss: each.errors for each in results if each.outcome.modifier == study.ALONE}
    families: dict[str, list[str]] = {"common": [], "powers": [], "other terms": [], "distances": []}
    for loss in curves:
        family = "common" if loss in COMMON_LOSS_NAMES else "powers" if loss.startswith("alpha_") else "other terms"
        families["distances" if loss in DISTANCES else family].append(loss)
    figure = Figure(figsize=(12.5, 4.4), dpi=DPI, layout="constrained")
    for axes, (family, losses) in zip(figure.subplots(1, len(families), sharey=True), families.items(), strict=True):
        drawn = losses if family == "common" else [*COMPARED, *losses]
        styles = styled(drawn, LOSS_STYLES)
        for loss in drawn:
            style = {**styles[loss], "linewidth": 1.8}
            if loss not in losses:
                style = {
                    "color": "0.72",
                    "linestyle": styles[loss]["linestyle"],
                    "linewidth": 1.2,
                    "marker": "",
                    "zorder": 1,
                }
                style["linestyle"] = ":" if loss == "iou" else "-"
            steps = range(1, len(curves[loss]) + 1)
            axes.plot(steps, curves[loss], label=loss, markevery=max(1, len(steps) // 6), markersize=4, **style)
        axes.set(title=family, xlabel="iteration", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small", loc="lower left")
        axes.tick_params(labelleft=family == "common")
    figure.axes[0].set_ylabel("mean error of a case, |dx|+|dy|+|dw|+|dh|\n(sides of the square target)")
    figure.savefig(path)


def grid_table(path: Path, outcomes: Sequence[study.Outcome]) -> None:
    """Unsolved cases of every loss and modifier: a mark for each modifier in the row of a loss."""
    losses = list(dict.fromkeys(each.loss for each in outcomes))
    figure = Figure(figsize=(9.8, 1.4 + 0.28 * len(losses)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for modifier, style in zip(study.MODIFIERS, MODIFIER_STYLES, strict=True):
        found = [(100 * each.unsolved, losses.index(each.loss)) for each in outcomes if each.modifier == modifier]
        axes.plot(*zip(*found, strict=True), linestyle="", label=modifier, **style)
    axes.set_yticks(range(len(losses)), losses)
    axes.set_xscale("symlog", linthresh=0.01)
    marks = [0, 0.01, 0.1, 1, 10, 100]
    axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
    axes.set(ylim=(len(losses) - 0.5, -0.5), xlim=(-0.004, 130))
    axes.set_xlabel(f"cases with a final error above {study.UNSOLVED:g}, in % (linear below 0.01)")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(study.MODIFIERS), frameon=False)
    figure.savefig(path)


def penalty_fields(path: Path) -> None:
    """Where each penalty moves a plate of fixed size, for every position of its centre around its car."""
    figure, (*panels, key) = grid(len(PENALTY_NAMES) + 1, 2.6)
    across, down = torch.meshgrid(torch.arange(-5.4, 5.41, 0.9), torch.arange(-4.8, 4.81, 0.6), indexing="xy")
    centers = torch.stack((across, down), dim=-1).reshape(-1, 2)
    plates = torch.cat((centers, torch.tensor(PLATE).expand_as(centers)), dim=-1)
    scale = ScalarMappable(LogNorm(0.01, 10), "viridis_r")
    for axes, penalty in zip(panels, PENALTY_NAMES, strict=True):
        move = motion(plates, torch.tensor((0, 0, *CAR)), penalty)
        strength = move.norm(dim=1)
        pulled = strength > 0
        still = centers[~pulled]
        axes.scatter(*still.T, s=2, color=FAINT)
        axes.quiver(
            *centers[pulled].T,
            *(move[pulled] / strength[pulled, None]).T,
            strength[pulled],
            cmap=scale.cmap,
            norm=scale.norm,
            angles="xy",
            scale_units="xy",
            scale=1.6,
            width=0.006,
        )
        _box(axes, (0, 0), CAR, edgecolor=INK, linewidth=1.6)
        axes.set(title=penalty, aspect="equal", xlim=(-6.2, 6.2), ylim=(-5.2, 5.2))
    key.set(title="to read the panels", aspect="equal")
    _box(key, (0, 0), CAR, edgecolor=INK, linewidth=1.6)
    _box(key, (0, 0), PLATE, edgecolor=INK, linewidth=1.2, linestyle="--")
    key.annotate("car", (0, CAR[1] / 2), (0, 3), textcoords="offset points", ha="center")
    key.annotate("plate", (0, PLATE[1] / 2), (0, 3), textcoords="offset points", ha="center")
    key.annotate(
        "arrow: where a plate with its\ncentre here moves; dot: nowhere",
        (0, -3.8),
        ha="center",
        va="center",
        size="small",
    )
    figure.supxlabel("x of the plate's centre (sides of a square plate)", fontsize="medium")
    figure.supylabel("y of the plate's centre", fontsize="medium")
    figure.colorbar(scale, ax=figure.axes, label="|d penalty / d centre|", extend="both", aspect=35)
    figure.savefig(path)


def scenarios(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Mean final IoU of plates: a panel per scenario and weight, a row per base loss, a dot per penalty."""
    names = list(dict.fromkeys(outcome.scenario for outcome in outcomes))
    figure = Figure(figsize=(13, 1.6 + 0.8 * len(COMMON_LOSS_NAMES)), dpi=DPI, layout="constrained")
    panels = figure.subplots(len(WEIGHTS), len(names), sharex=True, sharey=True)
    styles = styled((NO_PENALTY, *PENALTY_NAMES), PENALTY_STYLES)
    for row, weight in zip(panels, WEIGHTS, strict=True):
        for axes, name in zip(row, names, strict=True):
            for penalty, style in styles.items():
                ious = [
                    outcome.iou
                    for outcome in outcomes
                    if (outcome.scenario, outcome.penalty) == (name, penalty) and outcome.weight in (0, weight)
                ]
                label = "base loss alone" if penalty == NO_PENALTY else penalty
                axes.plot(ious, range(len(COMMON_LOSS_NAMES)), label=label, alpha=0.9, **{**style, "linestyle": ""})
            axes.set_yticks(range(len(COMMON_LOSS_NAMES)), COMMON_LOSS_NAMES)
            axes.grid(axis="both", alpha=0.3)
            axes.set(xlim=(-0.04, 1.04), ylim=(len(COMMON_LOSS_NAMES) - 0.5, -0.5))
        row[0].set_ylabel(f"penalty weight {weight:g}")
    for axes, name in zip(panels[0], names, strict=True):
        axes.set_title(name.replace(", ", ",\n"))
    figure.supxlabel("mean IoU with the label after the last iteration", fontsize="medium")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=6, frameon=False)
    figure.savefig(path)


def styled(names: Iterable[str], styles: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A style for each name."""
    spare = cycle(SPARE_STYLES)
    return {name: styles.get(name) or next(spare) for name in names}


def grid(count: int, height: float) -> tuple[Figure, list[Any]]:
    """A figure and its panels, row by row, with common axes; ``height`` inches of a row."""
    rows = -(-count // COLUMNS)
    figure = Figure(figsize=(9.8, 0.4 + height * rows), dpi=DPI, layout="constrained")
    panels = list(figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    for axes in panels[max(count - COLUMNS, 0) : count]:
        axes.tick_params(labelbottom=True)
    return figure, panels[:count]


def _box(axes: Axes, center: tuple[float, float], sides: tuple[float, float], **style) -> None:
    corner = (center[0] - sides[0] / 2, center[1] - sides[1] / 2)
    axes.add_patch(Rectangle(corner, *sides, fill=False, **style))
