"""The command line: ``python -m icr_kernels info | check | study``."""

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status: 0 if all is well, 1 if a check failed, 2 for wrong arguments."""
    options = _parser().parse_args(arguments)
    return options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m icr_kernels",
        description="Fused box-regression losses with the inter-class relational (ICR) penalty.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    info = commands.add_parser(
        "info", help="show versions, backends and what keeps them from running", description="Show what is installed."
    )
    info.set_defaults(run=_info)

    check = commands.add_parser(
        "check",
        help="check every kernel on this machine against the reference",
        description="Check the value and the gradients of every loss and penalty on every backend of this machine "
        "against the reference, and its gradients against finite differences. Exit status 1 if one is wrong.",
    )
    check.add_argument(
        "--backend", type=_backend, metavar="NAME", help="check this backend only (default: all that can run)"
    )
    check.set_defaults(run=_check)

    study = commands.add_parser(
        "study",
        help="regress boxes with every loss and penalty, without a network",
        description="Regress the cases of the DIoU paper's simulation with every loss, and plates of cars with every "
        "penalty; write CSV files and figures and print a summary.",
    )
    study.add_argument(
        "--output", type=Path, metavar="DIRECTORY", default=Path("study"), help="where to write (default: %(default)s)"
    )
    size = study.add_mutually_exclusive_group()
    size.add_argument(
        "--cases",
        type=_positive,
        metavar="N",
        help="regression cases, rounded up to a multiple of 343 (default: 1715000)",
    )
    size.add_argument("--quick", action="store_true", help="a fiftieth of the cases")
    study.add_argument(
        "--iterations",
        type=_positive,
        metavar="N",
        default=200,
        help="steps of gradient descent (default: %(default)s)",
    )
    study.add_argument(
        "--backend", type=_backend, metavar="NAME", help="backend to run on (default: the first that can run)"
    )
    study.add_argument(
        "--no-figures", action="store_true", help="write no figures; without them matplotlib is not needed"
    )
    study.add_argument(
        "--seed", type=int, metavar="N", default=0, help="draws the anchor points and the plates (default: %(default)s)"
    )
    study.set_defaults(run=_study)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def _backend(name: str) -> str:
    from .backends import available_backends

    available = available_backends()
    if name not in available:
        raise argparse.ArgumentTypeError(
            f"expected one of {', '.join(available)}, got {name!r}; `python -m icr_kernels info` says what keeps others"
        )
    return name


def _info(options: argparse.Namespace) -> int:
    from . import info

    print(info.report())
    return 0


def _check(options: argparse.Namespace) -> int:
    from . import check

    rows = check.run(options.backend)
    print(check.report(rows))
    return 0 if all(row.ok for row in rows) else 1


def _study(options: argparse.Namespace) -> int:
    from . import study

    study.run(
        options.output,
        cases=study.QUICK_CASES if options.quick else options.cases or study.CASES,
        iterations=options.iterations,
        backend=options.backend,
        figures=not options.no_figures,
        seed=options.seed,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
