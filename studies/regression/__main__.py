"""The command line: ``python -m studies.regression``."""

import argparse
import sys
from pathlib import Path

from icr_kernels.__main__ import available_backend

from . import CASES, PARTS, QUICK_CASES, run


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m studies.regression",
        description="Regress the cases of the DIoU paper's simulation with the common losses, a share of them with "
        "every loss and modifier, and plates of cars with every penalty; write tables and figures and print a summary.",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIRECTORY",
        default=Path("build") / "study",
        help="where to write (default: %(default)s)",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is run (default: all of it)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--cases",
        type=_positive,
        metavar="N",
        help="regression cases, rounded up to a multiple of 343 (default: 1715000)",
    )
    size.add_argument("--quick", action="store_true", help="a fiftieth of the cases")
    parser.add_argument(
        "--iterations",
        type=_positive,
        metavar="N",
        default=200,
        help="steps of gradient descent (default: %(default)s)",
    )
    parser.add_argument(
        "--backend", type=available_backend, metavar="NAME", help="backend to run on (default: the first that can run)"
    )
    parser.add_argument(
        "--no-figures", action="store_true", help="write no figures; without them matplotlib is not needed"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", default=0, help="draws the anchor points and the plates (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    run(
        options.output,
        parts=options.parts,
        cases=QUICK_CASES if options.quick else options.cases or CASES,
        iterations=options.iterations,
        backend=options.backend,
        figures=not options.no_figures,
        seed=options.seed,
    )
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
