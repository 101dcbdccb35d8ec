"""The command line: ``python -m studies.losses``."""

import argparse
import sys

from . import write


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m studies.losses",
        description="Write docs/losses.md and the lists of the README from the registry of losses; draw figures.",
    )
    parser.add_argument(
        "--no-figures", action="store_true", help="texts alone; without figures matplotlib is not needed"
    )
    options = parser.parse_args(arguments)
    write(figures=not options.no_figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
