"""The command line: ``python -m icr_kernels info | check``."""

import argparse
import sys


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
        "--backend", type=available_backend, metavar="NAME", help="check this backend only (default: all that can run)"
    )
    check.set_defaults(run=_check)

    return parser


def available_backend(name: str) -> str:
    """The type of an argument that names a backend."""
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
    from . import selfcheck

    rows = selfcheck.run(options.backend)
    print(selfcheck.report(rows))
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
