"""The speed table. A result that disagrees with the reference has no time; a peer that is not installed is named."""

import argparse
import csv
import datetime
import platform
import statistics
import sys
import time
from collections.abc import Callable
from itertools import groupby, product
from pathlib import Path

import torch

import icr_kernels as icr
from icr_kernels import operators
from icr_kernels.terminal import progress, table

from . import aligned

COPY = "copy of 68 bytes a pair"
OURS = "icr_kernels"


def seconds(function: Callable[[], object], budget: float) -> list[float]:
    """Times of single calls, warmed: at least five, then up to a thousand as the budget allows."""
    for _ in range(3):
        function()
    times: list[float] = []
    while len(times) < 5 or (len(times) < 1000 and sum(times) < budget):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return times


def row(name: str, loss: aligned.Loss | str | None, pairs: int, threads: int, budget: float) -> dict[str, object]:
    """One line of the CSV; ``loss`` is None for the copy, and the reason where there is none to measure."""
    result: dict[str, object] = {
        "case": "ciou + containment, forward + backward, mean",
        "implementation": name,
        "pairs": pairs,
        "threads": threads,
        "p20_us": "",
        "p50_us": "",
        "p80_us": "",
        "note": loss if isinstance(loss, str) else "",
        "processor": platform.machine(),
        "instruction_set": operators.cpu_build.instruction_set() if operators.cpu_build else "",
        "torch": torch.__version__,
        "version": icr.__version__,
        "date": datetime.date.today().isoformat(),
    }
    if isinstance(loss, str):
        return result
    torch.set_num_threads(threads)
    if loss is not None and not aligned.agrees(loss, *aligned.boxes(min(pairs, 10_000))):
        return result | {"note": "disagrees with the reference"}
    function = aligned.copy(pairs) if loss is None else aligned.step(loss, *aligned.boxes(pairs))
    times = statistics.quantiles(seconds(function, budget), n=10)
    return result | {f"p{p}_us": round(times[p // 10 - 1] * 1e6, 1) for p in (20, 50, 80)}


def show(rows: list[dict]) -> str:
    """The rows of one size and number of threads, with ratios of medians within this run."""
    medians = {each["implementation"]: each["p50_us"] for each in rows}
    lines = []
    for each in rows:
        if each["note"]:
            lines.append((each["implementation"], each["note"], "", "", "", "", ""))
            continue
        p20, p50, p80 = (each[f"p{p}_us"] for p in (20, 50, 80))
        lines.append(
            (
                each["implementation"],
                f"{p50:,.1f}",
                f"{p20:,.1f}",
                f"{p80:,.1f}",
                f"{p50 * 1e3 / each['pairs']:,.2f}",
                f"{p50 / medians[OURS]:.2f}",
                f"{p50 / medians[COPY]:.2f}",
            )
        )
    head = ("", "median us", "20 %", "80 %", "ns a pair", "x ours", "x copy")
    title = f"{rows[0]['pairs']:,} pairs, {rows[0]['threads']} threads: {rows[0]['case']}"
    return f"\n{title}\n{table(head, lines, 'lrrrrrr')}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two sizes, half a second a row, torch's own threads")
    parser.add_argument("--threads", type=int, nargs="+", help="numbers of threads (default: 1 and torch's own)")
    parser.add_argument("--output", type=Path, help="write the rows to this CSV file")
    options = parser.parse_args()

    own = torch.get_num_threads()
    sizes, budget = ((1_000, 100_000), 0.5) if options.quick else ((1_000, 10_000, 100_000, 1_000_000), 2.0)
    threads = options.threads or ([own] if options.quick else sorted({1, own}))
    measured: list[tuple[str, aligned.Loss | str | None]] = [*aligned.implementations().items(), (COPY, None)]
    jobs = list(product(threads, sizes, measured))
    rows = [row(name, loss, pairs, count, budget) for count, pairs, (name, loss) in progress(jobs, "measuring")]
    for _, group in groupby(rows, key=lambda each: (each["threads"], each["pairs"])):
        print(show(list(group)))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        with options.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        print(f"\nwritten: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
