"""The tables and numbers in the documents, from the CSVs in benchmarks/results: each stands between two comments that
name it, and the folder if it is to be of one machine only. A table has lines of its own; a number stands in a line."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from . import aligned, assignment, detection, tables
from .gpu.report import targets
from .report import markdown, size_of, threads_of, time_of
from .results import ROOT, is_busy
from .tables import Line, Machine, machines

DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "performance.md", ROOT / "docs" / "gpu.md")
BLOCK = re.compile(r"(<!-- measured: (\w+)(?: of ([\w-]+))? -->(\n?)).*?(<!-- end of measured -->)", re.DOTALL)


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
        found = [(machine, table(machine)) for machine in measured if machine.has_cpu]
        head = 2  # lines
        parts = [f"{machine.title()}:\n\n{text}" for machine, text in found if len(text.splitlines()) > head]
        return "\n\n".join(parts) or "Not measured yet."

    return block


def figures(measured: Sequence[Machine]) -> str:
    """Links to the plots that lie beside the CSVs."""
    texts = {
        "time.png": "Time of forward and backward against the number of pairs",
        "memory.png": "Peak memory of a row maximum against N x M",
        "assignment.png": "Memory and time of task-aligned assignment against the boxes of an image",
        "criterion.png": "Memory and time of the whole criterion of a dense head against its classes",
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
    parts = []
    for machine in measured:
        if not machine.has_cpu:
            link = f"[{machine.rows[0]['device']}]({(machine.folder / 'report.md').relative_to(ROOT).as_posix()})"
            table = markdown(("target", "wanted", "measured", "met"), targets(machine.rows))
            parts.append(f"{link}, torch {machine.rows[0]['torch']}, {machine.rows[0]['date']}:\n\n{table}")
    return "\n\n".join(parts) or "**No GPU figure has been measured yet.**"


# What stands in a line.


SHOWN = 100_000  # pairs of the main case, in the README
MATCHED = 8_400 * 4_967  # boxes by ground truth of an image, likewise
ASSIGNED = assignment.pairs(16, 300, 640)


def processor(machine: Machine) -> str:
    first = next(row for row in machine.rows if row["implementation"] == "cpu")
    return f"{first['instruction_set']}, {threads_of(machine.threads)}"


def on_each_processor(case: str, pairs: int, cell: Callable[[Line], str]) -> Callable[[Sequence[Machine]], str]:
    """Of a case in one size, where its peers were measured too and nobody else used the machine; of two alike the one
    that was measured last."""

    def block(measured: Sequence[Machine]) -> str:
        parts: dict[str, str] = {}
        for machine in sorted(measured, key=lambda machine: max(row["date"] for row in machine.rows)):
            rows = [row for row in machine.rows if row["case"] == case and int(row["pairs"]) == pairs]
            shapes = set() if is_busy(rows) else {row["shape"] for row in rows}
            for line in tables.lines(machine):
                if line.case == case and line.shape in shapes and line.eager:
                    parts[processor(machine)] = f"{cell(line)} ({processor(machine)})"
        return "; ".join(parts.values()) or "not measured yet"

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


def assigned(line: Line) -> str:
    if line.peak is None or line.eager is None or line.eager.peak is None:
        return "not measured yet"
    return (
        f"**{time_of(line.ours)} and {size_of(line.peak)} instead of {time_of(line.eager.time)} and "
        f"{size_of(line.eager.peak)}**, {line.eager.time / line.ours:.0f} times as fast as "
        f"{line.eager.name.removeprefix('eager, ')}"
    )


def gpu_names(measured: Iterable[Machine]) -> str:
    found = [machine.rows[0]["device"] for machine in measured if not machine.has_cpu]
    return (
        f"measured on {', '.join(found)}"
        if found
        else "**no figure has been measured on a GPU yet, neither time nor memory**"
    )


BLOCKS: dict[str, Callable[[Sequence[Machine]], str]] = {
    "main": on_each_cpu(tables.main_table),
    "operators": on_each_cpu(tables.operators),
    "assignments": on_each_cpu(tables.assignments),
    "criteria": on_each_cpu(tables.criteria),
    "training": on_each_cpu(tables.training_steps),
    "targets": on_each_cpu(tables.targets),
    "little": on_each_cpu(tables.little),
    "memory": on_each_cpu(tables.memory),
    "floor": on_each_cpu(tables.floor),
    "threads": on_each_cpu(tables.threads),
    "figures": figures,
    "gpus": gpus,
    "speed": on_each_processor(aligned.MAIN, SHOWN, speed),
    "peaks": on_each_processor("row maximum", MATCHED, peaks),
    "assigned": on_each_processor(assignment.NAME, ASSIGNED, assigned),
    "criterion": on_each_processor(detection.NAME, detection.USUAL.numbers, assigned),
    "gpu_names": gpu_names,
}
