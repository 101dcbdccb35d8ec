"""What is said of a folder of results, in tables for Markdown."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from . import aligned, assignment, detection, results, training
from .case import BOTH, COPY, DROP_IN
from .report import CALLS, LABELS, OURS, calls_of, cpu_targets, label, markdown, size_of, threads_of, time_of
from .results import Row, Table, is_busy

WALL = "end to end"


class Machine(NamedTuple):
    """A folder of results."""

    folder: Path
    rows: list[Row]

    @property
    def has_cpu(self) -> bool:
        return any(row["implementation"] == "cpu" for row in self.rows)

    @property
    def threads(self) -> int:
        return max(int(row["threads"]) for row in self.rows)

    def table(self, case: str) -> Table:
        return Table(self.rows, case, threads=self.threads)

    def title(self) -> str:
        first = next(row for row in self.rows if row["implementation"] == "cpu")
        commits, dates = (", ".join(dict.fromkeys(row[each] for row in self.rows)) for each in ("commit", "date"))
        busy = "; **on a machine that others used: no number of it is to be quoted**" if is_busy(self.rows) else ""
        return (
            f"{first['device']}, {threads_of(self.threads)}, {first['instruction_set']}, torch {first['torch']}, "
            f"icr_kernels {first['version']} ({commits}), {dates}{busy}"
        )


def machines(folder: Path = results.RESULTS) -> list[Machine]:
    found = (Machine(path, results.read(path)) for path in sorted(folder.glob("*/")))
    return [machine for machine in found if machine.rows]


def times(time: float | None, ours: float | None) -> str:
    if time is None:
        return ""
    if not ours or time == ours:
        return time_of(time)
    return f"{time_of(time)} ({time / ours:.{1 if time > ours else 2}f}x)"


def main_table(machine: Machine) -> str:
    """Time of the main case by implementation and number of pairs."""
    table = machine.table(aligned.MAIN)
    sizes = [pairs for pairs in table.sizes(WALL) if table.median(WALL, "cpu", BOTH, pairs) is not None]
    ours = {pairs: table.median(WALL, "cpu", BOTH, pairs) for pairs in sizes}
    lines = [
        [label(name), *(times(table.median(WALL, name, BOTH, pairs), ours[pairs]) for pairs in sizes)]
        for name in table.names(WALL)
    ]
    if not sizes:
        return ""
    return markdown(["pairs", *(f"{pairs:,}" for pairs in sizes)], lines) + "\n\n" + absent(machine)


def absent(machine: Machine) -> str:
    notes = {row["implementation"]: row["note"] for row in machine.rows if row["note"].startswith("absent: ")}
    return "; ".join(f"{name} {note}" for name, note in notes.items()) + "." if notes else "No peer was absent."


class Fastest(NamedTuple):
    """The fastest of a family of peers."""

    name: str
    time: float
    peak: float | None


class Line(NamedTuple):
    """A case in one shape: this package and the best of others."""

    case: str
    shape: str
    ours: float
    peak: float | None
    eager: Fastest | None
    compiled: Fastest | None


def shape_of(row: Row) -> str:
    """With the dtype, if that is another than usual."""
    return row["shape"] + ("" if row["dtype"] == "float32" else f", {row['dtype']}")


def lines(machine: Machine) -> list[Line]:
    found: dict[tuple[str, ...], dict[tuple[str, str], float]] = {}
    for row in machine.rows:
        figure = "counts" if row["unit"] == "peak bytes" else WALL
        if (int(row["threads"]), row["figure"]) == (machine.threads, figure) and row["p50"] != "":
            key = row["case"], shape_of(row)
            found.setdefault(key, {}).setdefault((row["implementation"], row["unit"]), float(row["p50"]))

    def fastest(numbers: dict[tuple[str, str], float], is_compiled: bool) -> Fastest | None:
        family = [
            Fastest(name, time, numbers.get((name, "peak bytes")))
            for (name, unit), time in numbers.items()
            if unit == "us" and name not in LABELS and name.startswith("torch.compile") == is_compiled
        ]
        return min(family, key=lambda each: each.time, default=None)

    return [
        Line(
            case,
            shape,
            numbers[ours, "us"],
            numbers.get((ours, "peak bytes")),
            *(fastest(numbers, is_compiled) for is_compiled in (False, True)),
        )
        for (case, shape), numbers in found.items()
        for ours in [name for name in OURS if (name, "us") in numbers][:1]
    ]


def case_table(machine: Machine, keep: Callable[[Line], bool]) -> str:
    def of(peer: Fastest | None, ours: float) -> str:
        return "" if peer is None else f"{times(peer.time, ours)}, {peer.name.partition(', ')[2] or peer.name}"

    rows = [
        [f"{line.case}, {line.shape}", time_of(line.ours), of(line.eager, line.ours), of(line.compiled, line.ours)]
        for line in lines(machine)
        if keep(line)
    ]
    return markdown(["", "icr_kernels", "fastest eager code", "fastest torch.compile"], rows)


def operators(machine: Machine) -> str:
    with_tables_of_their_own = (aligned.MAIN, assignment.NAME, detection.NAME, *training.NAMES)
    return case_table(machine, lambda line: line.case not in with_tables_of_their_own)


def training_steps(machine: Machine) -> str:
    """A detector's step with its stock loss and with the adapter's: how much of it is loss and matching, and the memory
    of both."""
    found = {
        (row["case"], row["shape"], row["implementation"], row["quantity"], row["unit"]): float(row["p50"])
        for row in machine.rows
        if row["case"] in training.NAMES and int(row["threads"]) == machine.threads and row["p50"] != ""
    }
    rows = []
    for batch in training.BATCHES:
        step, alone = (batch.shape(what) for what in (training.WHOLE, training.ALONE))
        for name in (training.STOCK, "cpu"):
            numbers = [
                found.get((batch.detector, *key))
                for key in (
                    (step, name, training.STEP, "us"),
                    (step, name, training.LOSS, "us"),
                    (step, name, training.STEP, "peak bytes"),
                    (alone, name, training.LOSS, "peak bytes"),
                )
            ]
            if None not in numbers:
                whole, loss, *peaks = map(float, filter(None, numbers))
                cells = [time_of(whole), time_of(loss), f"{loss / whole:.1%}", *map(size_of, peaks)]
                rows.append([f"{batch}, {label(name)}", *cells])
    head = ["", "step", "loss and matching in it", "share of the step", "peak of a step", "peak of the loss"]
    return markdown(head, rows)


def whole_calls(
    machine: Machine, case: str, names: Sequence[str], counts: Callable[[Callable[[str], float | None]], list[str]]
) -> str:
    """Of a case time, peak of memory and the counts of calls of everybody, or why there are none."""
    found = {
        (shape_of(row), row["implementation"], row["unit"]): row
        for row in machine.rows
        if row["case"] == case and int(row["threads"]) == machine.threads
    }

    def number(*key: str) -> float | None:
        return float(found[key]["p50"]) if key in found and found[key]["p50"] != "" else None

    def cell(shape: str, name: str) -> str:
        def of(unit: str) -> float | None:
            return number(shape, name, unit)

        time, peak = of("us"), of("peak bytes")
        if time is None:
            return found.get((shape, name, "us"), {"note": ""})["note"].removeprefix("left out: ")
        parts = [times(time, number(shape, "cpu", "us"))]
        if peak is not None:
            parts += [size_of(peak), *counts(of)]
        return ", ".join(parts)

    rows = [[shape, *(cell(shape, name) for name in names)] for shape in dict.fromkeys(shape for shape, *_ in found)]
    return markdown(["", *(label(name).removeprefix("eager, ") for name in names)], rows)


def assignments(machine: Machine) -> str:
    """With the number of operators."""

    def counts(of: Callable[[str], float | None]) -> list[str]:
        count = of("operators")
        return [] if count is None else [f"{count:,.0f}"]

    names = ("cpu", DROP_IN, assignment.STOCK, assignment.BY_IMAGE, assignment.REFERENCE)
    return whole_calls(machine, assignment.NAME, names, counts)


def criteria(machine: Machine) -> str:
    """With the number of operators that are no views, and of those for which a host would wait."""

    def counts(of: Callable[[str], float | None]) -> list[str]:
        return calls_of(*(of(unit) for unit in CALLS))

    names = ("cpu", DROP_IN, assignment.STOCK, assignment.REFERENCE, COPY)
    return whole_calls(machine, detection.NAME, names, counts)


LITTLE = 3.0


def little(machine: Machine) -> str:
    """Where somebody else takes less than three times our time."""

    def is_little(line: Line) -> bool:
        return any(peer is not None and peer.time < LITTLE * line.ours for peer in (line.eager, line.compiled))

    return case_table(machine, is_little)


def memory(machine: Machine) -> str:
    def of(peak: float | None) -> str:
        return "" if peak is None else size_of(peak)

    rows = [
        [f"{line.case}, {line.shape}", of(line.peak), *("" if peer is None else of(peer.peak) for peer in line[4:])]
        for line in lines(machine)
        if line.peak is not None
    ]
    return markdown(["", "icr_kernels", "fastest eager code", "fastest torch.compile"], rows)


def floor(machine: Machine) -> str:
    """Nanoseconds per pair, and how that compares with moving the bytes."""
    table, rows = machine.table(aligned.MAIN), []
    for pairs in table.sizes(WALL):
        row, copy = table.row(WALL, "cpu", BOTH, pairs), table.row(WALL, COPY, BOTH, pairs)
        if row is not None and copy is not None:
            spread = f"{time_of(float(row['p20']))} to {time_of(float(row['p80']))}"
            share = f"{float(row['fraction_of_copy']):.0%}"
            rows.append([f"{pairs:,}", spread, f"{float(row['ns_per_pair']):,.2f}", copy["ns_per_pair"], share])
    return markdown(["pairs", "20 % to 80 %", "ns per pair", "the copy's ns per pair", "of the copy's speed"], rows)


def threads(machine: Machine) -> str:
    """Medians on fewer threads, of the cases that were measured so."""
    counts = sorted({int(row["threads"]) for row in machine.rows})
    found: dict[tuple[str, ...], dict[int, float]] = {}
    for row in machine.rows:
        if row["figure"] == WALL and row["p50"] != "":
            key = row["case"], row["shape"], row["dtype"], row["implementation"]
            found.setdefault(key, {})[int(row["threads"])] = float(row["p50"])
    rows = [
        [f"{case}, {shape}", label(name), *(times(medians.get(count), None) for count in counts)]
        for (case, shape, _, name), medians in found.items()
        if len(medians) > 1
    ]
    if not rows:
        return "Not measured on fewer threads here; the full profile does."
    return markdown(["", "", *map(threads_of, counts)], rows)


def targets(machine: Machine) -> str:
    found = cpu_targets(machine.rows, machine.threads)
    if all(met == "not measured" for *_, met in found):
        return ""
    return markdown(("target", "wanted", "measured", "met"), found)
