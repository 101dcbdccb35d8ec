"""The tables and numbers in the documents, from the CSVs in benchmarks/results: each stands between two comments that
name it, and the folder if it is to be of one machine only. A table has lines of its own; a number stands in a line."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from . import aligned, results, training
from .case import BOTH, COPY
from .report import OURS, cpu_targets, label, markdown, size_of, threads_of, time_of
from .results import ROOT, Row, Table, is_busy

DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "performance.md", ROOT / "docs" / "gpu.md")
BLOCK = re.compile(r"(<!-- measured: (\w+)(?: of ([\w-]+))? -->(\n?)).*?(<!-- end of measured -->)", re.DOTALL)
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
        commits = ", ".join(dict.fromkeys(row["commit"] for row in self.rows))
        busy = "; **on a machine that others used: no number of it is to be quoted**" if is_busy(self.rows) else ""
        return (
            f"{first['device']}, {threads_of(self.threads)}, {first['instruction_set']}, torch {first['torch']}, "
            f"icr_kernels {first['version']} ({commits}), {first['date']}{busy}"
        )


def machines(folder: Path = results.RESULTS) -> list[Machine]:
    found = (Machine(path, results.read(path)) for path in sorted(folder.glob("*/")))
    return [machine for machine in found if machine.rows]


def filled(text: str, measured: Sequence[Machine], folder: Path = ROOT) -> str:
    """The document, which lies in the folder, with its blocks written anew."""
    # Blocks link from the top of the repository.
    up = "../" * len(folder.relative_to(ROOT).parts)

    def block(match: re.Match[str]) -> str:
        head, name, only, line, end = match.groups()
        chosen = [machine for machine in measured if only in (None, machine.folder.name)]
        if only and not chosen:
            raise ValueError(f"{head.strip()}: there is no such folder of results")
        return f"{head}{BLOCKS[name](chosen).replace('](', f']({up}')}{line}{end}"

    return BLOCK.sub(block, text)


def write() -> None:
    for path in DOCUMENTS:
        path.write_text(filled(path.read_text(), machines(), path.parent))
        print(f"written: {path.relative_to(ROOT)}")


def on_each_cpu(table: Callable[[Machine], str]) -> Callable[[Sequence[Machine]], str]:
    def block(measured: Sequence[Machine]) -> str:
        parts = [f"{machine.title()}:\n\n{table(machine)}" for machine in measured if machine.has_cpu]
        return "\n\n".join(parts) or "Not measured yet."

    return block


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


def lines(machine: Machine) -> list[Line]:
    found: dict[tuple[str, ...], dict[tuple[str, str], float]] = {}
    for row in machine.rows:
        figure = "counts" if row["unit"] == "peak bytes" else WALL
        if (int(row["threads"]), row["figure"]) == (machine.threads, figure) and row["p50"] != "":
            key = row["case"], row["shape"] + ("" if row["dtype"] == "float32" else f", {row['dtype']}")
            found.setdefault(key, {}).setdefault((row["implementation"], row["unit"]), float(row["p50"]))

    def fastest(numbers: dict[tuple[str, str], float], is_compiled: bool) -> Fastest | None:
        family = [
            Fastest(name, time, numbers.get((name, "peak bytes")))
            for (name, unit), time in numbers.items()
            if unit == "us" and name not in (*OURS, COPY) and name.startswith("torch.compile") == is_compiled
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
    return case_table(machine, lambda line: line.case not in (aligned.MAIN, training.NAME))


def training_steps(machine: Machine) -> str:
    """A detector's step with its stock loss and with the adapter's: how much of it is loss and matching, and the memory
    of both."""
    found = {
        (row["shape"], row["implementation"], row["quantity"], row["unit"]): float(row["p50"])
        for row in machine.rows
        if row["case"] == training.NAME and int(row["threads"]) == machine.threads and row["p50"] != ""
    }
    rows = []
    for objects in training.OBJECTS:
        step, alone = (training.shape(objects, what) for what in (training.WHOLE, training.ALONE))
        for name in ("stock loss", "cpu"):
            numbers = [
                found.get(key)
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
                rows.append([f"{training.IMAGES} images of {objects} objects, {label(name)}", *cells])
    head = ["", "step", "loss and matching in it", "share of the step", "peak of a step", "peak of the loss"]
    return markdown(head, rows)


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
    return markdown(("target", "wanted", "measured", "met"), cpu_targets(machine.rows, machine.threads))


def figures(measured: Sequence[Machine]) -> str:
    """Links to the plots that lie beside the CSVs."""
    texts = {
        "time.png": "Time of forward and backward against the number of pairs",
        "memory.png": "Peak memory of a row maximum against N x M",
    }
    links = (
        f"![{text}, {machine.rows[0]['device']}]({(machine.folder / name).relative_to(ROOT).as_posix()})"
        for machine in measured
        if machine.has_cpu
        for name, text in texts.items()
        if (machine.folder / name).exists()
    )
    return "\n".join(links) or "Not measured yet."


def gpus(measured: Iterable[Machine]) -> str:
    """Of each GPU its report and its targets, those that are not measured yet included."""
    from .gpu import report  # which says of a GPU what this module says of all

    parts = []
    for machine in measured:
        if not machine.has_cpu:
            link = f"[{machine.rows[0]['device']}]({(machine.folder / 'report.md').relative_to(ROOT).as_posix()})"
            table = markdown(("target", "wanted", "measured", "met"), report.targets(machine.rows))
            parts.append(f"{link}, torch {machine.rows[0]['torch']}, {machine.rows[0]['date']}:\n\n{table}")
    return "\n\n".join(parts) or "**No GPU figure has been measured yet.**"


# What stands in a line.


SHOWN = 100_000  # pairs of the main case, in the README
MATCHED = 8_400 * 4_967  # boxes by ground truth of an image, likewise


def processor(machine: Machine) -> str:
    first = next(row for row in machine.rows if row["implementation"] == "cpu")
    return f"{first['instruction_set']}, {threads_of(machine.threads)}"


def on_each_processor(case: str, pairs: int, cell: Callable[[Line], str]) -> Callable[[Sequence[Machine]], str]:
    """Of a case in one size, where its peers were measured too."""

    def block(measured: Sequence[Machine]) -> str:
        parts = []
        for machine in measured:
            shapes = {row["shape"] for row in machine.rows if row["case"] == case and int(row["pairs"]) == pairs}
            for line in lines(machine):
                if line.case == case and line.shape in shapes and line.eager and line.compiled:
                    parts.append(f"{cell(line)} ({processor(machine)})")
        return "; ".join(parts) or "not measured yet"

    return block


def speed(line: Line) -> str:
    eager, compiled = ("" if peer is None else f"{peer.time / line.ours:.1f}" for peer in (line.eager, line.compiled))
    return f"**{eager} times as fast as eager code**, {compiled} times as fast as `torch.compile`"


def peaks(line: Line) -> str:
    ours, eager, compiled = (
        "unknown" if each is None or each.peak is None else size_of(each.peak)
        for each in (line, line.eager, line.compiled)
    )
    return f"**{ours} instead of {eager}** of eager code; `torch.compile` {compiled}"


def gpu_names(measured: Iterable[Machine]) -> str:
    found = [machine.rows[0]["device"] for machine in measured if not machine.has_cpu]
    return f"measured on {', '.join(found)}" if found else "**no figure has been measured on a GPU yet**"


BLOCKS: dict[str, Callable[[Sequence[Machine]], str]] = {
    "main": on_each_cpu(main_table),
    "operators": on_each_cpu(operators),
    "training": on_each_cpu(training_steps),
    "targets": on_each_cpu(targets),
    "little": on_each_cpu(little),
    "memory": on_each_cpu(memory),
    "floor": on_each_cpu(floor),
    "threads": on_each_cpu(threads),
    "figures": figures,
    "gpus": gpus,
    "speed": on_each_processor(aligned.MAIN, SHOWN, speed),
    "peaks": on_each_processor("row maximum", MATCHED, peaks),
    "gpu_names": gpu_names,
}
