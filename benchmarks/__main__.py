"""Speed and memory beside the code that users run today: ``python -m benchmarks run | plot | compare | readme``."""

import argparse
import re
import sys
from pathlib import Path

import torch

from icr_kernels.info import cpu_name

from . import report, results
from . import run as runner
from .catalogue import chosen

DEFAULT = Path("build") / "benchmarks"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="measure cases on this CPU, print their tables and write them to a CSV")
    run.add_argument("patterns", nargs="*", metavar="PATTERN", help="cases whose name matches one (default: all)")
    run.add_argument("--full", action="store_true", help="the full profile: all cases, longer")
    run.add_argument("--without", metavar="PATTERN", help="leave out implementations whose name matches")
    run.add_argument("--threads", type=int, nargs="+", help="numbers of threads (default: torch's own)")
    run.add_argument("--no-memory", action="store_true", help="measure no memory, which starts many processes")
    run.add_argument(
        "--resume",
        action="store_true",
        help="leave out cases that the CSV has of this commit and torch, unless the machine was busy",
    )
    run.add_argument("--list", action="store_true", help="show the cases and how long they will take")
    run.add_argument("--output", type=Path, default=DEFAULT, help="folder of the CSV (default: %(default)s)")
    run.set_defaults(command=_run)

    plot = commands.add_parser("plot", help="draw the CSV of a folder")
    plot.add_argument("folder", type=Path, nargs="?", default=DEFAULT, help="default: %(default)s")
    plot.set_defaults(command=_plot)

    compare = commands.add_parser("compare", help="whether two runs agree within the quantiles that they print")
    compare.add_argument("folders", type=Path, nargs=2, metavar="FOLDER")
    compare.set_defaults(command=_compare)

    readme = commands.add_parser("readme", help="write the tables of benchmarks/results into the documents")
    readme.set_defaults(command=_readme)
    options = parser.parse_args(arguments)
    return options.command(options)


def _run(options: argparse.Namespace) -> int:
    cases = chosen(options.patterns, options.full)
    if not cases:
        print("No case matches; `python -m benchmarks run --full --list` names all.")
        return 2

    profile = runner.FULL if options.full else runner.QUICK
    without = [pattern for pattern in (options.without, profile.without) if pattern is not None]

    def leave_out(name: str) -> bool:
        return any(re.search(pattern, name, re.IGNORECASE) for pattern in without)

    todo = runner.jobs(cases, options.threads, options.full)
    if options.resume:
        before = results.read(options.output)
        todo = [job for job in todo if not runner.is_done(*job, profile.rounds, before)]
    with_memory = not options.no_memory
    minutes = runner.duration(todo, profile, leave_out, with_memory) / 60
    print(
        f"{len(todo)} measurements on {cpu_name()}, {torch.get_num_threads()} threads, "
        f"{profile.rounds} round{'s' * (profile.rounds > 1)}: about {minutes:.0f} minutes"
    )
    if options.list:
        for case, threads in todo:
            print(f"  {case}, {threads} threads")
        return 0
    wrong, busy = False, 0
    for rows in runner.run(todo, options.output, profile, leave_out, with_memory):
        print(report.shown(rows), flush=True)
        wrong |= runner.is_wrong(rows)
        busy += results.is_busy(rows)
    print(f"\nwritten: {options.output / results.CSV}")
    if busy:
        print(f"Others used the machine in {busy} of {len(todo)} measurements: these are to be measured again.")
    return 1 if wrong else 0


def _plot(options: argparse.Namespace) -> int:
    rows = results.read(options.folder)
    if not rows:
        print(f"No measurements in {options.folder}: `python -m benchmarks run --output {options.folder}`.")
        return 2
    from . import plots

    for path, _ in plots.draw(options.folder, rows):
        print(f"written: {path}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    one, other = map(results.read, options.folders)
    print(report.agreement(one, other))
    return 0


def _readme(options: argparse.Namespace) -> int:
    from . import readme

    readme.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
