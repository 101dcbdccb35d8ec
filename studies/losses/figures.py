"""The pictures of losses (PNG). The only module here that needs matplotlib; lines differ by more than colour.

Each file carries the numbers that it was drawn from, at a few places, so that a test can tell a stale one.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from icr_kernels.specifications import BoxLoss
from icr_kernels.variants import LOSS_NAMES

from . import curves

DPI = 100
NUMBERS = "Source"  # a keyword that PNG defines
POINTS = 240
COLORS = 64
AWAY = "#e8590c"
PLAIN: dict[str, Any] = {"color": "0.6", "linestyle": (0, (1, 1.2)), "linewidth": 1.6, "zorder": 1}
LINES: tuple[dict[str, Any], ...] = (
    {"color": "#0072b2", "linestyle": "-", "linewidth": 2.0},
    {"color": "#d55e00", "linestyle": "--", "linewidth": 1.8},
    {"color": "#009e73", "linestyle": "-.", "linewidth": 1.8},
    {"color": "#aa4499", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "linewidth": 1.8},
)
# Of each way: its title, what is along it, and the ends and marks of that.
SPAN = math.log(curves.LARGEST)
RATIOS = (0.25, 0.5, 1.0, 2.0, 4.0)
WAYS: dict[str, dict[str, Any]] = {
    "moved": {
        "title": "moved along x",
        "xlabel": "offset, in sides of the target",
        "xlim": (0, curves.FARTHEST),
        "xticks": [0, 1, 2, 3],
    },
    "scaled": {
        "title": "scaled about its centre",
        "xlabel": "sides, in those of the target",
        "xlim": (-SPAN, SPAN),
        "xticks": [math.log(ratio) for ratio in RATIOS],
        "xticklabels": ["1/4", "1/2", "1", "2", "4"],
    },
    "squeezed": {
        "title": "squeezed, its area kept",
        "xlabel": "width / height",
        "xlim": (-SPAN, SPAN),
        "xticks": [math.log(ratio) for ratio in RATIOS],
        "xticklabels": ["1/4", "1/2", "1", "2", "4"],
    },
}

Drawn = Sequence[tuple[str, str | BoxLoss, float, dict[str, Any]]]


def draw(folder: Path) -> list[Path]:
    """All pictures: one of each loss, one of the modifiers, and one of all losses."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    numbers = curves.pictures()
    for name in numbers:
        figure = everyone() if name == "all" else of_modifiers() if name == "modifiers" else of_loss(name)
        save(figure, folder / f"{name}.png", numbers[name])
        made.append(folder / f"{name}.png")
    return made


def save(figure: Figure, path: Path, numbers: Sequence[float]) -> None:
    """With few colours: the file is a third as large."""
    figure.savefig(path, metadata={NUMBERS: " ".join(f"{number:.4g}" for number in numbers)})
    with Image.open(path) as image:
        text = image.text[NUMBERS]  # type: ignore[attr-defined]
        fewer = image.convert("RGB").quantize(COLORS if path.stem != "all" else 256, dither=Image.Dither.NONE)
    info = PngInfo()
    info.add_text(NUMBERS, text, zip=True)
    fewer.save(path, optimize=True, pnginfo=info)


def numbers_of(path: Path) -> list[float]:
    """What a picture was drawn from."""
    with Image.open(path) as image:
        return [float(word) for word in image.text.get(NUMBERS, "").split()]  # type: ignore[attr-defined]


def of_loss(name: str) -> Figure:
    if curves.is_in_pixels(name):
        lines = [
            (f"a target of {size:g} px", name, size, style) for size, style in zip(curves.SIZES, LINES, strict=False)
        ]
    else:
        lines = [(name, name, curves.SIZE, LINES[0])]
    if name != "iou":
        lines.append(("iou", "iou", curves.SIZE, PLAIN))
    return panels(lines)


def of_modifiers() -> Figure:
    styles: dict[str, dict[str, Any]] = {
        label: PLAIN if label == "iou" else next(rest) for rest in [iter(LINES)] for label in curves.MODIFIED
    }
    return panels([(label, loss, curves.SIZE, styles[label]) for label, loss in curves.MODIFIED.items()])


def panels(lines: Drawn) -> Figure:
    """Values above, gradients below; a column for each way."""
    figure = Figure(figsize=(8.6, 4.3), dpi=DPI, layout="constrained")
    set_apart(figure)
    rows = figure.subplots(2, len(WAYS), sharex="col", sharey="row")
    for column, (name, (way, along)) in enumerate(curves.ways(POINTS).items()):
        upper, lower = rows[0][column], rows[1][column]
        for label, loss, size, style in lines:
            drawn = curves.curve(loss, way, along, size)
            upper.plot(along, drawn.value, label=label, **style)
            lower.plot(along, with_gaps(drawn.gradient, along), label=label, **style)
        settings = dict(WAYS[name])
        upper.set_title(settings.pop("title"), fontsize="medium")
        lower.set(**settings)
        for axes in (upper, lower):
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            where = 1.0 if name == "moved" else 0.0
            axes.axvline(where, color="0.75", linewidth=0.9, zorder=0)
        lower.axhline(0, color="0.4", linewidth=0.8, zorder=0)
    rows[0][0].annotate(
        "boxes touch", (1, 1), (3, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
        va="top", size="small", color="0.45",
    )  # fmt: skip
    rows[0][0].set_ylim(0, 2.25)
    rows[0][0].set_ylabel("loss")
    rows[1][0].set_ylabel("gradient")
    figure.align_ylabels()
    figure.legend(
        *rows[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=len(lines), frameon=False,
        handlelength=3.2,
    )  # fmt: skip
    return figure


def set_apart(figure: Figure) -> None:
    """So that numbers at the ends of two axes do not meet."""
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(wspace=0.06)  # type: ignore[call-arg]


def with_gaps(gradient: torch.Tensor, along: torch.Tensor) -> torch.Tensor:
    """Where it jumps, at the target itself, no line."""
    return torch.where(along.abs() < (along[1] - along[0]), torch.nan, gradient)


def everyone() -> Figure:
    """Of every loss how strongly it pulls: a row each, darker is stronger, white is not at all."""
    figure = Figure(figsize=(9.4, 1.0 + 0.29 * len(LOSS_NAMES)), dpi=DPI, layout="constrained")
    set_apart(figure)
    strength = LogNorm(1e-3, 3)
    scale = ScalarMappable(strength, "viridis_r")
    panel: Axes
    names = {"moved": "moved along x", "scaled": "scaled about its centre"}
    for panel, name in zip(figure.subplots(1, len(names), sharey=True), names, strict=True):
        way, along = curves.ways(POINTS)[name]
        gradients = torch.stack([curves.curve(loss, way, along).gradient for loss in LOSS_NAMES])
        pulls = torch.where(gradients.abs() < 1e-9, torch.nan, gradients.abs())
        away = torch.where(gradients * along.sign() < -1e-9, 1.0, torch.nan)
        settings: Mapping[str, Any] = WAYS[name]
        place: dict[str, Any] = {
            "extent": (*settings["xlim"], len(LOSS_NAMES) - 0.5, -0.5),
            "aspect": "auto",
            "interpolation": "nearest",
        }
        panel.imshow(pulls, cmap=scale.cmap, norm=strength, **place)
        panel.imshow(away, cmap=ListedColormap([AWAY]), **place)
        panel.set(**settings)
        panel.set_yticks(range(len(LOSS_NAMES)), LOSS_NAMES)
        panel.set_yticks([row + 0.5 for row in range(len(LOSS_NAMES) - 1)], minor=True)
        panel.grid(which="minor", axis="y", color="white", linewidth=2.5)
        panel.tick_params(which="minor", length=0)
        panel.axvline(1.0 if name == "moved" else 0.0, color="0.2", linewidth=0.9, linestyle=":")
    figure.colorbar(scale, ax=figure.axes, label="|gradient|", extend="both", aspect=35, pad=0.02)
    marks = [Patch(facecolor="white", edgecolor="0.4", label="no gradient")]
    marks.append(Patch(facecolor=AWAY, label="a step downwards leads away from the target"))
    figure.legend(handles=marks, loc="outside upper center", ncols=2, frameon=False)
    return figure
