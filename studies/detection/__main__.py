"""The command line: ``python -m studies.detection run | report``."""

import argparse
import sys
from pathlib import Path

from .protocol import PROFILES
from .run import study

DEFAULT = Path("build") / "training"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m studies.detection",
        description="Train detectors on scenes and photographs with everything equal but terms of the box loss.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="train what is not in results.csv yet")
    run.add_argument("--profile", choices=PROFILES, default="cpu", help="what is trained (default: %(default)s)")
    run.add_argument("--seeds", type=_positive, help="how many seeds (default: the profile's)")
    run.add_argument("--device", type=_device, default="cpu", help="of torch (default: %(default)s)")
    run.add_argument("--workers", type=_positive, default=1, help="runs at a time (default: %(default)s)")
    run.add_argument("--threads", type=_positive, help="of each run (default: torch's own)")
    run.add_argument("--data", type=Path, help="folder of photographs, for the runs on them (default: without these)")
    run.add_argument("--output", type=Path, default=DEFAULT, help="folder (default: %(default)s)")
    run.set_defaults(command="run")
    show = commands.add_parser("report", help="tables, intervals, plots and pictures of what has been trained")
    show.add_argument("folder", type=Path, nargs="?", default=DEFAULT, help="default: %(default)s")
    show.add_argument(
        "--document",
        type=Path,
        nargs="+",
        default=[],
        help="Markdown files whose blocks have the answers and the tables, instead of report.md",
    )
    show.set_defaults(command="report")
    options = parser.parse_args(arguments)
    try:
        if options.command == "report":
            from . import report

            return report.main(options.folder, options.document)
        study(
            options.profile,
            options.output,
            seeds=options.seeds,
            device=options.device,
            workers=options.workers,
            threads=options.threads,
            photographs=options.data,
        )
    except KeyboardInterrupt:
        print(f"Interrupted. What has finished is in {options.output}; the same command goes on.")
        return 130
    except (ImportError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {number}")
    return number


def _device(text: str) -> str:
    import torch

    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"expected a device that is there, got {text!r}: {error}") from None
    return text


if __name__ == "__main__":
    sys.exit(main())
