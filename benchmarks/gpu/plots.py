"""The plots of the measurements (PNG). The only module here that needs matplotlib; lines differ by more than colour."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .measure import OURS
from .results import BOTH, COPY, Table

DPI = 120
STYLES: dict[str, dict[str, Any]] = {
    "cuda": {"color": "0.0", "linestyle": "-", "marker": "o", "linewidth": 2.2},
    "triton": {"color": "#0072b2", "linestyle": "--", "marker": "s", "linewidth": 2.2},
    "eager, clamp form": {"color": "#d55e00", "linestyle": "-", "marker": "^"},
    "eager, torchvision": {"color": "#e69f00", "linestyle": "--", "marker": "v"},
    "eager, reference": {"color": "#cc79a7", "linestyle": "-.", "marker": "D"},
    "torch.compile, clamp form": {"color": "#009e73", "linestyle": "-", "marker": "x"},
    "torch.compile, reference": {"color": "#56b4e9", "linestyle": "--", "marker": "+"},
    COPY: {"color": "0.55", "linestyle": ":", "linewidth": 2.5},
}
QUANTITY_STYLES: dict[str, dict[str, Any]] = {
    "forward": {"linestyle": ":", "marker": "^"},
    "forward with gradient": {"linestyle": "-", "marker": "o"},
    "backward scaling": {"linestyle": "-.", "marker": "v"},
    "forward + backward": {"linestyle": "--", "marker": "s"},
}
LABELS = {COPY: "copy of the same bytes", **{name: f"icr_kernels, {name}" for name in OURS}}


def draw(folder: Path, table: Table) -> list[tuple[Path, str]]:
    """Writes the plots that there are rows for; each file with what it shows."""
    made = []
    for name, plot, figures, text in (
        ("time.png", times, ("device", "end to end"), "Time of forward and backward against the number of pairs"),
        ("copy.png", fractions, ("device",), "Share of a copy's speed against the number of pairs"),
        ("host.png", host, ("host",), "Time of the host a call"),
    ):
        if any(table.sizes(figure) for figure in figures):
            figure = plot(table)
            figure.savefig(folder / name)
            made.append((folder / name, text))
    return made


def _below(figure: Figure, panels: list[Axes], columns: int) -> None:
    """One legend for all panels, outside them."""
    entries = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False)


def times(table: Table) -> Figure:
    figure = Figure(figsize=(11, 5.4), dpi=DPI, layout="constrained")
    panels = list(figure.subplots(1, 2, sharey=True))
    for axes, which, title in zip(
        panels,
        ("device", "end to end"),
        ("On the device, cold cache (96 bytes a pair)", "End to end, by the clock"),
        strict=True,
    ):
        for name, style in STYLES.items():
            # The floor is the same bytes': it belongs into both panels.
            source = "device" if name == COPY else which
            points = [
                (pairs, time)
                for pairs in table.sizes(source)
                if (time := table.median(source, name, BOTH, pairs)) is not None
            ]
            if points:
                axes.plot(*zip(*points, strict=True), label=LABELS.get(name, name), **style)
        axes.set(title=title, xlabel="pairs", xscale="log", yscale="log")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("forward + backward, microseconds")
    _below(figure, panels, 4)
    return figure


def fractions(table: Table) -> Figure:
    figure = Figure(figsize=(11, 4.8), dpi=DPI, layout="constrained")
    panels = list(figure.subplots(1, len(OURS), sharey=True))
    for axes, name in zip(panels, OURS, strict=True):
        for quantity, style in QUANTITY_STYLES.items():
            rows = [table.row("device", name, quantity, pairs) for pairs in table.sizes("device")]
            points = [
                (int(row["pairs"]), 100 * float(row["fraction_of_copy"]))
                for row in rows
                if row is not None and row["fraction_of_copy"] != ""
            ]
            if points:
                label = f"{quantity} ({row_bytes(table, quantity)} bytes a pair)"
                axes.plot(*zip(*points, strict=True), label=label, color=STYLES[name]["color"], **style)
        axes.axhline(100, color="0.55", linewidth=1)
        axes.axhline(90, color="0.55", linewidth=1, linestyle=":")
        axes.set(title=LABELS[name], xlabel="pairs", xscale="log", ylim=(0, None))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("% of the speed of a copy of the same bytes")
    _below(figure, panels, 2)
    return figure


def row_bytes(table: Table, quantity: str) -> str:
    rows = (row for key, row in table.rows.items() if key[0] == "device" and key[2] == quantity)
    return next((row["bytes_per_pair"] for row in rows), "?")


def host(table: Table) -> Figure:
    """Bars on a logarithmic scale, with the number at each: the smallest size that there is."""
    pairs = min(table.sizes("host"))
    quantities, names = table.quantities("host"), table.names("host")
    figure = Figure(figsize=(11, 3.8), dpi=DPI, layout="constrained")
    panels = list(figure.subplots(1, len(quantities), sharex=True, sharey=True, squeeze=False)[0])
    most = 1.0
    for axes, quantity in zip(panels, quantities, strict=True):
        for place, name in enumerate(names):
            time = table.median("host", name, quantity, pairs)
            if time is not None:
                bar = axes.barh(place, time, color="0.25" if name in OURS else "0.75")
                axes.bar_label(bar, fmt=f" {time:,.0f}" if time >= 100 else f" {time:.1f}")
                most = max(most, time)
        axes.set(title=quantity, xscale="log")
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    panels[0].set_xlim(1, 12 * most)
    panels[0].set_yticks(range(len(names)), [LABELS.get(name, name) for name in names])
    panels[0].invert_yaxis()
    figure.supxlabel(f"microseconds of the host a call, {pairs:,} pairs", fontsize="medium")
    return figure
