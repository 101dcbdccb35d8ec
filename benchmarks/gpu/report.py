"""The report on a folder of results: what passed, which speed targets are met, the figures, and their plots."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import aligned, assignment, detection, results
from benchmarks.case import BOTH, FORWARD
from benchmarks.report import Target, at_least, label, markdown, size_of, target, time_of
from benchmarks.results import Row, Table
from benchmarks.tables import WALL, Machine, operators, shape_of

from .measure import ASSIGNMENTS, COUNTED_SIZE, CRITERIA, MATRICES, SELECTIONS
from .parts import PARTS, Outcome, outcomes

CLAMP, TORCHVISION = "eager, clamp form", "eager, torchvision"
COMPILED = ("torch.compile, clamp form, dynamic", "torch.compile, reference, dynamic")


OF_A_COPY = "device time, forward with gradient, 10,000,000 pairs, of a copy of the same 64 bytes per pair"
BOTH_PASSES = "device time, forward + backward, 10,000,000 pairs, of that of the forward with gradient"
HOST_TIME = "host time, one forward with gradient, 1,000 pairs"
OF_A_FILL = "device time, IoU matrix of 8400 x 1000, of a fill of its memory"
PAIRS_A_SECOND = "device time, row maximum of 1,000,000 x 2000: pairs per second"

# What is expected of an H100 (132 multiprocessors at 1.755 GHz, 3.35 TB/s), by the instructions a pair that
# tests/builds/cuda_instructions.csv has, written down before anything ran: 273 for the first, 26 for the matrix, 19 for
# the last. A backward pass by 1 is a launch that reads it and ends. The host's time is a CPU's and a launch.
PREDICTED = {
    OF_A_COPY: "95 to 100 %",
    BOTH_PASSES: "1.01 to 1.03 x",
    HOST_TIME: "6 to 12 µs",
    OF_A_FILL: "80 to 95 %",
    PAIRS_A_SECOND: "1.2 to 1.5e+12",
}


class Prediction(NamedTuple):
    """Of a whole call on an H100, written down before anything ran."""

    time: str
    peak_bytes: float
    kernels: int


POINTS = assignment.pairs(1, 1, 640)  # of an image
# Of a whole assignment most of it are the points that boxes take. Beyond 12 bytes of each point that are the result, it
# holds 8.
PREDICTED_ASSIGNMENTS = {
    shape: Prediction(time, 20 * images * POINTS, 4)
    for shape, time, images in zip(ASSIGNMENTS, ("0.1 ms", "2 ms"), (16, 128), strict=True)
}
# Of the criterion: what has to be moved (Head.moved_bytes) at four fifths of the memory's speed, and the assignment. It
# holds the gradients and what the points are assigned to. Kernels: one decodes, four assign, three are the loss, two
# its gradients; PyTorch adds up four terms and makes the 1 that a backward pass begins with.
PREDICTED_CRITERIA = {
    f"{head}{', bfloat16' * (head.dtype == torch.bfloat16)}": Prediction(
        time, head.gradient_bytes + 12 * head.images * POINTS, 10 + 5
    )
    for head, time in zip(CRITERIA, ("0.15 ms", "0.1 ms", "0.5 ms"), strict=True)
}


def targets(rows: Sequence[Row]) -> list[Target]:
    """Each speed target: what of, how much is wanted, what was measured, met or not."""
    table = Table(rows, aligned.MAIN)
    row = table.row("device", "cuda", "forward with gradient", 10_000_000)
    share = None if row is None else float(row["fraction_of_copy"])
    found = [target(OF_A_COPY, ">= 95 %", share, "{:.1%}".format, share is not None and share >= 0.95)]
    both, first = (table.median("device", "cuda", name, 10_000_000) for name in (BOTH, "forward with gradient"))
    times = None if both is None or first is None else both / first
    found.append(target(BOTH_PASSES, "<= 1.05 x", times, "{:.2f} x".format, times is not None and times <= 1.05))
    for name in (CLAMP, TORCHVISION):
        for pairs, times in ((1_000, 25), (10_000, 25), (100_000, 25), (10_000_000, 20)):
            what = f"end to end, forward + backward, {pairs:,} pairs, against {name}"
            found.append(at_least(what, times, table.ratio("end to end", BOTH, pairs, [name])))
    for pairs in (1_000, 10_000, 100_000):
        what = f"end to end, forward + backward, {pairs:,} pairs, against the faster torch.compile(dynamic=True)"
        found.append(at_least(what, 3, table.ratio("end to end", BOTH, pairs, COMPILED)))
    what = "device time, forward + backward, 10,000,000 pairs, against the faster torch.compile(dynamic=True)"
    found.append(at_least(what, 1.2, table.ratio("device", BOTH, 10_000_000, COMPILED), digits=2))
    time = table.median("host", "cuda", "forward with gradient", 1_000)
    found.append(target(HOST_TIME, "<= 15 µs", time, "{:.1f} µs".format, time is not None and time <= 15))
    ratios = [
        ratio
        for quantity in table.quantities("device")
        for pairs in table.sizes("device")
        if (ratio := table.ratio("device", quantity, pairs, ["triton"])) is not None
    ]
    worst = max(ratios, default=None)
    what = "device time, Triton against cuda, the worst of all sizes and quantities"
    found.append(target(what, "<= 1.3 x", worst, "{:.2f} x".format, worst is not None and worst <= 1.3))
    matrix = Table(rows, "pairwise iou").row("device", "cuda", FORWARD, 8_400 * 1_000)
    share = None if matrix is None else float(matrix["fraction_of_copy"])
    found.append(target(OF_A_FILL, ">= 85 %", share, "{:.1%}".format, share is not None and share >= 0.85))
    time = Table(rows, "row maximum").median("device", "cuda", FORWARD, 1_000_000 * 2_000)
    speed = None if time is None else 1_000_000 * 2_000 / time * 1e6
    found.append(target(PAIRS_A_SECOND, "> 10^12", speed, "{:.2e}".format, speed is not None and speed > 1e12))
    return found


def figure_table(table: Table, figure: str, quantity: str, extra: Callable[[Row], str]) -> str:
    """Medians by implementation and number of pairs, with what ``extra`` says of each row."""
    sizes = table.sizes(figure)
    lines = []
    for name in table.names(figure):
        rows = [table.row(figure, name, quantity, pairs) for pairs in sizes]
        if any(rows):
            lines.append([name, *("" if row is None else time_of(float(row["p50"])) + extra(row) for row in rows)])
    return markdown(["", *(f"{pairs:,} pairs" for pairs in sizes)], lines)


def share_of_copy(row: Row) -> str:
    return "" if row["fraction_of_copy"] == "" else f" ({float(row['fraction_of_copy']):.0%})"


def spread(row: Row) -> str:
    return f" ({float(row['p20']):,.1f} to {float(row['p80']):,.1f})"


def all_pairs(rows: Sequence[Row]) -> list[str]:
    """Time on the device of matrices and of selections."""
    lines = []
    for row in rows:
        if row["figure"] == "device" and row["case"] in MATRICES + SELECTIONS and row["p50"] != "":
            time, share = float(row["p50"]), row["fraction_of_copy"]
            cells = [time_of(time), f"{int(row['pairs']) / time * 1e6:.2e}", f"{float(share):.0%}" if share else ""]
            lines.append([f"{row['case']}, {row['shape']}, {label(row['implementation'])}", *cells])
    if not lines:
        return []
    head = ["all pairs", "time on the device", "pairs per second", "of a fill of its memory"]
    return ["## All pairs, time on the device", "", markdown(head, lines), ""]


def whole_calls(rows: Sequence[Row], case: str, predicted: Mapping[str, Prediction]) -> list[str]:
    """Figures of ours and of Ultralytics, with what is predicted of CUDA's."""
    found = {
        (shape_of(row), row["implementation"], row["figure"], row["unit"]): float(row["p50"])
        for row in rows
        if row["case"] == case and row["p50"] != ""
    }
    columns: tuple[tuple[str, str, str, Callable[[float], str]], ...] = (
        ("time on the device", "device", "us", time_of),
        ("end to end", "end to end", "us", time_of),
        ("peak memory beyond the inputs", "counts", "peak bytes", size_of),
        ("kernels", "counts", "kernels", "{:,.0f}".format),
        ("synchronisations", "counts", "synchronisations", "{:,.0f}".format),
    )
    lines = []
    for shape, (time, peak, kernels) in predicted.items():
        lines.append([f"{shape}, CUDA, **predicted** for an H100", time, "", size_of(peak), str(kernels), "0"])
        for name in dict.fromkeys(name for of, name, *_ in found if of == shape):
            cells = [form(found[key]) if (key := (shape, name, *of)) in found else "" for _, *of, form in columns]
            lines.append([f"{shape}, {label(name)}", *cells])
    if not found:
        return []
    head = ["", *(title for title, *_ in columns)]
    return [f"## {case.capitalize()}", "", markdown(head, lines), ""]


def counts_table(table: Table, quantity: str) -> str:
    units = list(dict.fromkeys(key[4] for key in table.rows if key[0] == "counts" and key[2] == quantity))
    lines = []
    for name in table.names("counts"):
        counts = [table.median("counts", name, quantity, COUNTED_SIZE, unit) for unit in units]
        lines.append([name, *("" if count is None else f"{count:,.0f}" for count in counts)])
    return markdown([quantity, *units], lines)


def figures(table: Table) -> list[str]:
    """The four figures, each in tables of its own."""
    lines: list[str] = []
    if table.sizes("device"):
        lines += ["## Time on the device", ""]
        lines += ["At cold cache, launches by the host not counted. In brackets: share of a copy of the same bytes."]
        for quantity in table.quantities("device"):
            lines += ["", f"**{quantity}**", "", figure_table(table, "device", quantity, share_of_copy)]
        lines.append("")
    if table.sizes("host"):
        lines += ["## Time of the host", ""]
        lines += ["A call in a loop that does not wait for the device (quantiles 20 and 80 %)."]
        for quantity in table.quantities("host"):
            lines += ["", f"**{quantity}**", "", figure_table(table, "host", quantity, spread)]
        lines.append("")
    if table.sizes("end to end"):

        def times_ours(row: Row) -> str:
            ratio = table.ratio("end to end", BOTH, int(row["pairs"]), [row["implementation"]])
            return "" if ratio is None else f" ({ratio:.1f}x)"

        lines += ["## End to end", ""]
        lines += ["Forward and backward through autograd, by the clock. In brackets: over cuda.", ""]
        lines += [figure_table(table, "end to end", BOTH, times_ours), ""]
    if table.sizes("counts"):
        lines += ["## Memory, launches, waiting", "", f"{COUNTED_SIZE:,} pairs, gradient to the prediction.", ""]
        for quantity in table.quantities("counts"):
            lines += [counts_table(table, quantity), ""]
    return lines


def take(source: Path) -> list[Path]:
    """Puts the results of a run with those of its kind of GPU in benchmarks/results."""
    found, rows = outcomes(source), results.read(source)
    devices = dict.fromkeys(row["device"] for row in rows)
    devices |= dict.fromkeys(outcome.machine["device"] for outcome in found.values() if outcome.machine)
    for device in devices:
        folder = results.RESULTS / results.slug(device)
        results.merge(folder, [row for row in rows if row["device"] == device])
        for part, outcome in found.items():
            if outcome.machine.get("device") == device:
                outcome.save(folder, part)
    return [results.RESULTS / results.slug(device) for device in devices]


def write(folder: Path) -> Path:
    """Writes report.md and the plots into the folder, from whatever parts are there."""
    ended, rows = outcomes(folder), results.read(folder)
    machine = next((outcome.machine for outcome in reversed(ended.values()) if outcome.machine), {})
    device = machine.get("device") or next((row["device"] for row in rows), folder.name)
    lines = [f"# {device}", "", "CIoU + containment, float32, mean, valid boxes.", ""]
    lines += [f"- {name}: {value}" for name, value in machine.items() if name != "device"]
    lines += ["", "## Parts", "", *parts_table(ended), ""]
    if rows:
        table = Table(rows, aligned.MAIN)
        met = targets(rows)
        reached = sum(each[3] == "yes" for each in met)
        lines += ["## Speed targets", "", f"{reached} of {len(met)} met.", ""]
        head, beside = ("target", "wanted", "predicted", "measured", "met"), PREDICTED
        lines += [markdown(head, [(what, wanted, beside.get(what, ""), *rest) for what, wanted, *rest in met]), ""]
        lines += [
            *figures(table),
            *all_pairs(rows),
            *whole_calls(rows, assignment.NAME, PREDICTED_ASSIGNMENTS),
            *whole_calls(rows, detection.NAME, PREDICTED_CRITERIA),
            *others(folder, rows),
            *plot_links(folder, rows),
            *unmeasured(rows),
        ]
    for part, outcome in ended.items():
        if not outcome.ok and outcome.details:
            lines += [f"## What failed: {part}", "", "```", *outcome.details, "```", ""]
    path = folder / "report.md"
    path.write_text("\n".join(lines).rstrip() + "\n")
    return path


def parts_table(ended: dict[str, Outcome]) -> list[str]:
    lines = []
    for part in PARTS:
        outcome = ended.get(part)
        if outcome is None:
            lines.append(f"- {part}: not run")
        else:
            lines.append(
                f"- {part}: {'ok' if outcome.ok else '**FAILED**'}, {outcome.seconds:.0f} s, "
                f"{outcome.machine.get('date', '')}, {outcome.machine.get('commit', '')}: {outcome.summary}"
            )
    return lines


def unmeasured(rows: Iterable[Row]) -> list[str]:
    notes = dict.fromkeys(
        f"- {row['figure']}, {row['case']}, {row['implementation']}: {row['note']}" for row in rows if row["note"]
    )
    return ["## Without a result", "", *notes, ""] if notes else []


def others(folder: Path, rows: list[Row]) -> list[str]:
    """All other cases: this package and the fastest peers."""
    if all(row["case"] == aligned.MAIN or row["figure"] != WALL for row in rows):
        return []
    return ["## Other cases, end to end", "", operators(Machine(folder, rows)), ""]


def plot_links(folder: Path, rows: Sequence[Row]) -> list[str]:
    try:
        from benchmarks import plots
    except ImportError as error:
        return [f"No plots: {error}.", ""]
    return ["## Plots", "", *(f"![{text}]({path.name})" for path, text in plots.draw(folder, rows)), ""]
