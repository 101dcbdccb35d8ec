"""The tables in the documents, from the CSVs in benchmarks/results: each stands between two comments that name it, and
the folder if it is to be of one machine only."""

import re
from collections.abc import Callable, Iterable, Sequence

from . import tables
from .gpu.report import targets
from .report import markdown
from .results import ROOT
from .tables import Machine, machines

DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "performance.md")
BLOCK = re.compile(r"(<!-- measured: (\w+)(?: of ([\w-]+))? -->\n).*?(<!-- end of measured -->)", re.DOTALL)


def filled(text: str, measured: Sequence[Machine]) -> str:
    """The document with its blocks written anew."""

    def block(match: re.Match[str]) -> str:
        head, name, only, end = match.groups()
        chosen = [machine for machine in measured if only in (None, machine.folder.name)]
        if only and not chosen:
            raise ValueError(f"{head.strip()}: there is no such folder of results")
        return f"{head}{BLOCKS[name](chosen)}\n{end}"

    return BLOCK.sub(block, text)


def write() -> None:
    for path in DOCUMENTS:
        path.write_text(filled(path.read_text(), machines()))
        print(f"written: {path.relative_to(ROOT)}")


def on_each_cpu(table: Callable[[Machine], str]) -> Callable[[Sequence[Machine]], str]:
    def block(measured: Sequence[Machine]) -> str:
        parts = [f"{machine.title()}:\n\n{table(machine)}" for machine in measured if machine.has_cpu]
        return "\n\n".join(parts) or "Not measured yet."

    return block


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
    parts = []
    for machine in measured:
        if not machine.has_cpu:
            link = f"[{machine.rows[0]['device']}]({(machine.folder / 'report.md').relative_to(ROOT).as_posix()})"
            table = markdown(("target", "wanted", "measured", "met"), targets(machine.rows))
            parts.append(f"{link}, torch {machine.rows[0]['torch']}, {machine.rows[0]['date']}:\n\n{table}")
    return "\n\n".join(parts) or "**No GPU figure has been measured yet.**"


BLOCKS: dict[str, Callable[[Sequence[Machine]], str]] = {
    "main": on_each_cpu(tables.main_table),
    "operators": on_each_cpu(tables.operators),
    "training": on_each_cpu(tables.training_steps),
    "targets": on_each_cpu(tables.targets),
    "little": on_each_cpu(tables.little),
    "memory": on_each_cpu(tables.memory),
    "floor": on_each_cpu(tables.floor),
    "threads": on_each_cpu(tables.threads),
    "figures": figures,
    "gpus": gpus,
}
