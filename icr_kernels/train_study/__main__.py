"""The command line: ``python -m icr_kernels.train_study run | report``."""

import argparse
import sys
from pathlib import Path

DEFAULT = Path("study") / "training"


def main(arguments: list[str] | None = None) -> int:
    from . import PROFILES, study

    parser = argparse.ArgumentParser(
        prog="python -m icr_kernels.train_study",
        description="Train detectors on generated scenes with everything equal but the penalty.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="train what is not in results.csv yet")
    run.add_argument("--profile", choices=PROFILES, default="cpu", help="what is trained (default: %(default)s)")
    run.add_argument("--seeds", type=int, help="how many seeds (default: the profile's)")
    run.add_argument("--device", default="cpu", help="of torch (default: %(default)s)")
    run.add_argument("--workers", type=int, default=1, help="runs at a time (default: %(default)s)")
    run.add_argument("--threads", type=int, help="of each run (default: torch's own)")
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
    if options.command == "report":
        from . import report

        return report.main(options.folder, options.document)
    try:
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
