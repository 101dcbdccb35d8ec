"""The plots of the measurements (PNG). The only module here that needs matplotlib; lines differ by more than colour.

Each file carries the digest of the rows it was drawn from, so that a test can tell a stale one.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import aligned, assignment, detection, training
from .case import BOTH, COPY, DROP_IN, FORWARD
from .report import OURS, label, size_of, time_of
from .results import KEY, Row, Table, is_busy

DPI = 120
OVERVIEW_PAIRS, OVERVIEW_SETS = 100_000, (8400, 4967)
STYLES: dict[str, dict[str, Any]] = {
    "cpu": {"color": "0.0", "linestyle": "-", "marker": "o", "linewidth": 2.4},
    "cuda": {"color": "0.0", "linestyle": "-", "marker": "o", "linewidth": 2.4},
    "triton": {"color": "#0072b2", "linestyle": "--", "marker": "s", "linewidth": 2.4},
    "eager, clamp form": {"color": "#d55e00", "linestyle": "-", "marker": "^"},
    "eager, torchvision": {"color": "#e69f00", "linestyle": "--", "marker": "v"},
    "eager, reference": {"color": "#cc79a7", "linestyle": "-.", "marker": "D"},
    "mmdet": {"color": "0.4", "linestyle": "-", "marker": "<"},
    "torch-fast-box-ops": {"color": "0.4", "linestyle": "--", "marker": ">"},
    "torch.compile, clamp form, dynamic": {"color": "#009e73", "linestyle": "-", "marker": "x"},
    "torch.compile, clamp form, static": {"color": "#009e73", "linestyle": ":", "marker": "1"},
    "torch.compile, reference, dynamic": {"color": "#56b4e9", "linestyle": "--", "marker": "+"},
    "torch.compile, reference, static": {"color": "#56b4e9", "linestyle": ":", "marker": "2"},
    "torch.compile, torchvision, dynamic": {"color": "#009e73", "linestyle": "-", "marker": "x"},
    "torch.compile, torchvision, static": {"color": "#009e73", "linestyle": ":", "marker": "1"},
    DROP_IN: {"color": "#0072b2", "linestyle": "--", "marker": "s", "linewidth": 2.4},
    assignment.STOCK: {"color": "#d55e00", "linestyle": "-", "marker": "^"},
    assignment.BY_IMAGE: {"color": "#e69f00", "linestyle": "--", "marker": "v"},
    COPY: {"color": "0.55", "linestyle": ":", "linewidth": 2.5},
}
QUANTITY_STYLES: dict[str, dict[str, Any]] = {
    "forward": {"linestyle": ":", "marker": "^"},
    "forward with gradient": {"linestyle": "-", "marker": "o"},
    "backward scaling": {"linestyle": "-.", "marker": "v"},
    "forward + backward": {"linestyle": "--", "marker": "s"},
}
FIGURES = {"device": "on the device, cold cache", "end to end": "end to end, by the clock"}
DIGEST = "Source"  # a keyword that PNG defines

Points = list[tuple[float, float]]


def digest(rows: Iterable[Row]) -> str:
    """Of all numbers that a plot can show."""
    names = (*KEY, "p50", "fraction_of_copy")
    text = "\n".join(sorted(",".join(str(row[name]) for name in names) for row in rows))
    return hashlib.sha256(text.encode()).hexdigest()


def draw(folder: Path, rows: Sequence[Row]) -> list[tuple[Path, str]]:
    """Writes the plots that there are rows for; each file with what it shows."""
    made = []
    threads = max((int(row["threads"]) for row in rows), default=1)
    main = Table(rows, aligned.MAIN, threads=threads)
    plots: tuple[tuple[str, Callable[[], Figure | None], str], ...] = (
        (
            "overview.png",
            lambda: overview(rows, threads),
            "Time of a loss, memory of matching, time in a training step",
        ),
        ("time.png", lambda: times(main), "Time of forward and backward against the number of pairs"),
        ("copy.png", lambda: fractions(main), "Share of a copy's speed against the number of pairs"),
        ("host.png", lambda: host(main), "Time of a call with few pairs"),
        ("memory.png", lambda: memory(Table(rows, "row maximum", threads=threads)), "Memory of matching"),
        (
            "assignment.png",
            lambda: assigned(Table(rows, assignment.NAME, threads=threads)),
            "Memory and time of task-aligned assignment",
        ),
        (
            "criterion.png",
            lambda: criterion(Table(rows, detection.NAME, threads=threads)),
            "Memory and time of the whole criterion of a dense head",
        ),
        ("threads.png", lambda: scaling(rows), "Speed over the number of threads"),
    )
    for name, plot, text in plots:
        figure = plot()
        if figure is not None:
            figure.savefig(folder / name, metadata={DIGEST: digest(rows)})
            made.append((folder / name, text))
    return made


def _below(figure: Figure, panels: Sequence[Axes], columns: int) -> None:
    """One legend for all panels, outside them."""
    entries = {text: handle for axes in panels for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False)


def _panels(count: int, width: float, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False, **options)[0])


def medians(table: Table, figure: str, name: str, quantity: str, unit: str = "us") -> Points:
    found = ((pairs, table.median(figure, name, quantity, pairs, unit)) for pairs in table.sizes(figure))
    return [(pairs, value) for pairs, value in found if value is not None]


def overview(rows: Sequence[Row], threads: int) -> Figure | None:
    """What a loss takes, what a matching holds, and what both are in a training step: a bar for this package, one for
    each eager code that people run, and one for the best of what torch.compile makes of them."""

    def bars(case: str, shape: str, figure: str, unit: str) -> dict[str, float]:
        found = {
            row["implementation"]: float(row["p50"])
            for row in rows
            if (row["case"], row["shape"], row["figure"], row["unit"]) == (case, shape, figure, unit)
            and (row["dtype"], int(row["threads"])) == ("float32", threads)
            and row["p50"] != ""
            and row["implementation"] not in (COPY, "eager, reference")
        }
        compiled = {name: found.pop(name) for name in list(found) if name.startswith("torch.compile")}
        return found | ({"best torch.compile": min(compiled.values())} if compiled else {})

    crowded = training.CROWDED
    panels = (
        (
            f"CIoU + containment, {OVERVIEW_PAIRS:,} pairs:\ntime of forward + backward",
            bars(aligned.MAIN, f"{OVERVIEW_PAIRS:,}", "end to end", "us"),
            time_of,
        ),
        (
            f"best of {OVERVIEW_SETS[1]:,} targets for {OVERVIEW_SETS[0]:,} boxes:\npeak memory",
            bars("row maximum", "{} x {}".format(*OVERVIEW_SETS), "counts", "peak bytes"),
            size_of,
        ),
        (
            f"{crowded}:\ntime of loss and matching",
            bars(crowded.detector, crowded.shape(training.ALONE), "end to end", "us"),
            time_of,
        ),
    )
    if not all(found for _, found, _ in panels):
        return None
    figure, all_axes = _panels(len(panels), 12, 2.2)
    for axes, (title, found, text) in zip(all_axes, panels, strict=True):
        ordered = sorted(found, key=lambda name: (name not in OURS, found[name]))
        for place, name in enumerate(ordered):
            bar = axes.barh(place, found[name], height=0.7, color="#d55e00" if name in OURS else "0.75")
            axes.bar_label(bar, [f" {text(found[name])}"])
        axes.set_yticks(range(len(ordered)), [label(name) for name in ordered])
        axes.set_title(title, fontsize="medium")
        axes.set(ylim=(3.5, -0.5), xlim=(0, 1.45 * max(found.values())), xticks=[])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    first = rows[0]
    figure.supxlabel(
        f"{first['device']}, {threads} threads, {first['instruction_set']}, torch {first['torch']}: shorter is better",
        fontsize="small",
    )
    return figure


def times(table: Table) -> Figure | None:
    present = [which for which in FIGURES if table.sizes(which)]
    if not present:
        return None
    figure, panels = _panels(len(present), 5.2 + 2.9 * len(present), 5.6, sharey=True)
    for axes, which in zip(panels, present, strict=True):
        for name, style in STYLES.items():
            # The floor is the same bytes': it belongs into both panels.
            points = medians(table, present[0] if name == COPY else which, name, BOTH)
            if points:
                points = [(pairs, time / 1e3) for pairs, time in points]
                axes.plot(*zip(*points, strict=True), label=label(name), **style)
        axes.set(title=FIGURES[which], xlabel="number of pairs", xscale="log", yscale="log")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("milliseconds per step")
    figure.suptitle(f"{aligned.MAIN}, forward + backward: lower is better", fontsize="medium")
    _below(figure, panels, 3)
    return figure


def fractions(table: Table) -> Figure | None:
    """On a GPU device time, on a CPU the clock's: a copy there has no launch to hide."""
    which = "device" if table.sizes("device") else "end to end"
    names = [name for name in table.names(which) if name in OURS]
    if not names:
        return None
    figure, panels = _panels(len(names), 4.2 + 3.4 * len(names), 4.8, sharey=True)
    for axes, name in zip(panels, names, strict=True):
        for quantity, style in QUANTITY_STYLES.items():
            rows = [table.row(which, name, quantity, pairs) for pairs in table.sizes(which)]
            points = [
                (int(row["pairs"]), 100 * float(row["fraction_of_copy"]))
                for row in rows
                if row is not None and row["fraction_of_copy"] != ""
            ]
            if points:
                count = next(row["bytes_per_pair"] for row in rows if row is not None)
                text = f"{quantity} ({float(count):.0f} bytes per pair)"
                axes.plot(*zip(*points, strict=True), label=text, color=STYLES[name]["color"], **style)
        axes.axhline(100, color="0.55", linewidth=2.5, linestyle=":", label=label(COPY))
        axes.set(title=label(name), xlabel="number of pairs", xscale="log", ylim=(0, None))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("% of the speed of that copy")
    _below(figure, panels, 3)
    return figure


def host(table: Table) -> Figure | None:
    """Bars on a logarithmic scale, with the number at each: the smallest size that there is."""
    which = "host" if table.sizes("host") else "end to end"
    if not table.sizes(which):
        return None
    pairs = min(table.sizes(which))
    quantities, names = table.quantities(which), [name for name in table.names(which) if name != COPY]
    figure, panels = _panels(
        len(quantities), 5 + 2.6 * len(quantities), 1.2 + 0.3 * len(names), sharex=True, sharey=True
    )
    most = 1.0
    for axes, quantity in zip(panels, quantities, strict=True):
        for place, name in enumerate(names):
            time = table.median(which, name, quantity, pairs)
            if time is not None:
                bar = axes.barh(place, time, color="0.2" if name in OURS else "0.75")
                axes.bar_label(bar, fmt=f" {time:,.0f}" if time >= 100 else f" {time:.1f}")
                most = max(most, time)
        axes.set(title=f"{quantity}, {pairs:,} {'pair' if pairs == 1 else 'pairs'}", xscale="log")
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    panels[0].set_xlim(1, 4 * most)
    panels[0].set_yticks(range(len(names)), [label(name) for name in names])
    panels[0].invert_yaxis()
    figure.supxlabel("microseconds per call: what it costs before there is anything to do", fontsize="medium")
    return figure


def memory(table: Table) -> Figure | None:
    if not table.sizes("counts"):
        return None
    figure, (axes,) = _panels(1, 8.1, 5.2)
    for name, style in STYLES.items():
        points = [(pairs, peak / 2**20) for pairs, peak in medians(table, "counts", name, FORWARD, "peak bytes")]
        if points:
            axes.plot(*zip(*points, strict=True), label=label(name), **style)
    sizes = table.sizes("counts")
    axes.plot(sizes, [4 * pairs / 2**20 for pairs in sizes], label="the matrix itself, float32", **STYLES[COPY])
    axes.set(
        title="row maximum of N x M boxes: lower is better",
        xlabel="N x M",
        ylabel="peak memory beyond the inputs, MiB",
        xscale="log",
        yscale="log",
    )
    axes.grid(alpha=0.3)
    _below(figure, [axes], 2)
    return figure


def assigned(table: Table) -> Figure | None:
    """Against the boxes of an image, in batches of so many images of one size."""
    images, _, side = assignment.SHAPES[0]
    sizes = {
        assignment.pairs(*shape): shape[1] for shape in assignment.SHAPES if (shape[0], shape[2]) == (images, side)
    }
    title = f"{assignment.NAME}, {images} images, {side} px"
    return memory_and_time(table, FORWARD, sizes, "boxes an image", title)


def criterion(table: Table) -> Figure | None:
    """Against the classes, in batches of so many images of so many boxes."""
    images, boxes = detection.USUAL[:2]
    sizes = {
        head.numbers: head.classes for head in detection.HEADS if head == detection.USUAL._replace(classes=head.classes)
    }
    title = f"{detection.NAME}, {images} images of {boxes} boxes, {detection.SIDE} px, {BOTH}"
    return memory_and_time(table, BOTH, sizes, "classes", title)


def memory_and_time(table: Table, quantity: str, sizes: Mapping[int, int], along: str, title: str) -> Figure | None:
    """Of everybody, against what the numbers of pairs stand for."""
    panel_of = (
        ("counts", "peak bytes", 2**20, "peak memory beyond the inputs, MiB"),
        ("end to end", "us", 1e3, "milliseconds"),
    )
    if not sizes.keys() & table.sizes("counts"):
        return None
    figure, panels = _panels(len(panel_of), 11, 5.2)
    for axes, (which, unit, scale, text) in zip(panels, panel_of, strict=True):
        for name, style in STYLES.items():
            found = {at: table.median(which, name, quantity, pairs, unit) for pairs, at in sizes.items()}
            points = [(at, value / scale) for at, value in found.items() if value is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=label(name), **style)
        axes.set(xlabel=along, ylabel=text, xscale="log", yscale="log")
        axes.grid(alpha=0.3)
    busy = "\ntimes are of a machine that others used: not to be quoted" if is_busy(table.rows.values()) else ""
    figure.suptitle(f"{title}: lower is better{busy}", fontsize="medium")
    _below(figure, panels, 3)
    return figure


def scaling(rows: Sequence[Row]) -> Figure | None:
    """Speed relative to one thread of the same implementation."""
    names = (aligned.MAIN, "row maximum")
    shapes = {
        case: [row["shape"] for row in rows if row["case"] == case and row["threads"] == "1" and row["p50"] != ""]
        for case in names
    }
    present = [case for case in names if shapes[case]]
    if not present:
        return None
    figure, panels = _panels(len(present), 2.5 + 4 * len(present), 5.4, sharey=True)
    most = 1
    for axes, case in zip(panels, present, strict=True):
        shape = shapes[case][0]
        for name, style in STYLES.items():
            points = [
                (int(row["threads"]), float(row["p50"]))
                for row in rows
                if (row["case"], row["shape"], row["implementation"], row["figure"])
                == (case, shape, name, "end to end")
                and row["dtype"] == "float32"
                and row["p50"] != ""
            ]
            one = dict(points).get(1)
            if one is not None and len(points) > 1:
                most = max(most, *(threads for threads, _ in points))
                speeds = [(threads, one / time) for threads, time in sorted(points)]
                axes.plot(*zip(*speeds, strict=True), label=label(name), **style)
        axes.set(title=f"{case}, {shape}", xlabel="threads")
        axes.set_ylim(0, None)
        axes.set_xticks(sorted({int(row["threads"]) for row in rows}))
        axes.grid(alpha=0.3)
    for axes in panels:
        axes.plot([1, most], [1, most], color="0.8", linewidth=5, zorder=0, label="as many times as threads")
    panels[0].set_ylabel("times the speed of its own one thread")
    _below(figure, panels, 3)
    return figure
