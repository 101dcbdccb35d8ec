"""Tests, sanitizers and measurements on this machine's NVIDIA GPU, and the report on them.

Each part leaves its results in the folder of its kind of GPU, and the report is made from what lies there: parts can be
run one by one, and again. A part that fails stops no other. Exit status: 0, 1 if a part failed, 2 without a GPU.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks import results

from . import parts, report


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="test|sanitize|bench|report", help="default: all of them")
    parser.add_argument("--output", type=Path, help="folder of the results (default: benchmarks/results/<GPU>)")
    parser.add_argument("--limit", type=float, help=f"seconds for each part (default: {parts.LIMITS})")
    options = parser.parse_args(arguments)
    unknown = set(options.parts) - {*parts.PARTS, "report"}
    if unknown:
        parser.error(f"expected test, sanitize, bench or report, got {', '.join(sorted(unknown))}")
    chosen = [part for part in parts.PARTS if part in options.parts or not options.parts]

    if not chosen:
        return write_reports([options.output] if options.output else sorted(results.RESULTS.glob("*/")))
    if not torch.cuda.is_available():
        built = "built without CUDA" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        print(f"No NVIDIA GPU: torch {torch.__version__}, {built}, finds none on this machine; nothing was run.")
        return 2

    machine = results.machine()
    folder = options.output or results.RESULTS / results.slug(machine["device"])
    outcomes = {}
    for part in chosen:
        print(f"== {part} on {machine['device']}", flush=True)
        began = time.monotonic()
        try:
            outcome = parts.PARTS[part](folder, options.limit or parts.LIMITS[part])
        except Exception as error:
            outcome = results.Outcome(False, f"{type(error).__name__}: {error}")
        outcome.seconds, outcome.machine = round(time.monotonic() - began, 1), machine
        outcome.save(folder, part)
        outcomes[part] = outcome
    status = write_reports([folder])
    for part, outcome in outcomes.items():
        print(f"{'ok    ' if outcome.ok else 'FAILED'} {part} ({outcome.seconds:.0f} s): {outcome.summary}")
    return max(status, int(not all(outcome.ok for outcome in outcomes.values())))


def write_reports(folders: list[Path]) -> int:
    folders = [folder for folder in folders if results.outcomes(folder) or results.read(folder)]
    if not folders:
        print("No results of a GPU to report on: run a part on a machine that has one.")
        return 2
    for folder in folders:
        print(f"written: {report.write(folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
