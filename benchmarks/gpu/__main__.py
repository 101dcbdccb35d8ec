"""Tests, sanitizers and measurements on this machine's NVIDIA GPU, and the report on them.

``python -m benchmarks.gpu`` runs all parts, ``... first`` and ``... second`` those of two short runs on a machine that
is there for a quarter of an hour, ``... PART ...`` single ones. Each leaves its results in the output folder when it
ends, and a part that fails stops no other. ``... collect FOLDER-OR-ARCHIVE`` takes them into benchmarks/results and
writes the report and the documents' tables. Exit status: 0, 1 if a part failed, 2 without a GPU or without results.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from .parts import PARTS, ROOT, RUNS, Outcome, Run

BUILD = ROOT / "build"
GPU = "import sys, torch; print(torch.__version__, torch.version.cuda); sys.exit(not torch.cuda.is_available())"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    names = ", ".join((*RUNS, *PARTS))
    parser.add_argument("what", nargs="*", metavar="PART", help=f"{names} (default: all parts); or: collect PATH")
    parser.add_argument("--output", type=Path, default=BUILD / "gpu", help="folder of the results (default: build/gpu)")
    parser.add_argument("--limit", type=float, help="seconds for each part (default: the limits that are shown)")
    parser.add_argument("--archive", type=Path, help="also packs the folder into this .tar.gz, after every part")
    parser.add_argument("--dry-run", action="store_true", help="rehearses: everything but what takes a GPU")
    options = parser.parse_args(arguments)
    if options.what[:1] == ["collect"]:
        if len(options.what) != 2:
            parser.error("collect: expected one folder or archive")
        return collect(Path(options.what[1]))
    unknown = set(options.what) - {*PARTS, *RUNS}
    if unknown:
        parser.error(f"expected {names}, got {', '.join(sorted(unknown))}")
    # The others run what the first has found.
    asked = {"install", *(part for name in options.what or PARTS for part in RUNS.get(name, (name,)))}
    chosen = [part for part in PARTS if part in asked]
    print(f"{'':14}{'expected':>10}{'limit':>8}")
    for name in chosen:
        print(f"{name:14}{PARTS[name].expected:>8.0f} s{PARTS[name].limit:>6.0f} s  {PARTS[name].what}")
    print(f"{'':14}{sum(PARTS[p].expected for p in chosen):>8.0f} s{sum(PARTS[p].limit for p in chosen):>6.0f} s")

    if not options.dry_run:
        found = subprocess.run([sys.executable, "-c", GPU], capture_output=True, text=True)
        if found.returncode != 0:
            said = (found.stdout + found.stderr).strip().splitlines()
            print(
                f"No NVIDIA GPU: torch ({said[-1] if said else 'silent'}) finds none on this machine; nothing was run."
            )
            return 2
    return run(chosen, Run(options.output.absolute(), options.dry_run), options.archive, options.limit)


def run(chosen: list[str], this: Run, archive: Path | None, limit: float | None) -> int:
    outcomes = {}
    for name in chosen:
        print(f"== {name}", flush=True)
        began = time.monotonic()
        try:
            outcome = PARTS[name].run(this, limit or PARTS[name].limit)
        except Exception as error:
            outcome = Outcome(False, f"{type(error).__name__}: {error}")
        outcome.seconds = round(time.monotonic() - began, 1)
        machine = this.folder / "machine.json"
        outcome.machine = json.loads(machine.read_text()) if machine.exists() else {}
        outcomes[name] = outcome
        if not this.rehearses:
            outcome.save(this.folder, name)
        if archive is not None:
            pack(this.folder, archive)
    for name, outcome in outcomes.items():
        print(f"{'ok    ' if outcome.ok else 'FAILED'} {name} ({outcome.seconds:.0f} s): {outcome.summary}")
        for line in () if outcome.ok else outcome.details:
            print(f"         {line}")
    return int(not all(outcome.ok for outcome in outcomes.values()))


def pack(folder: Path, archive: Path) -> None:
    """The whole archive is there or the one of the part before."""
    unfinished = archive.with_name(archive.name + ".part")
    with tarfile.open(unfinished, "w:gz") as file:
        for path in sorted(folder.iterdir()):
            if path.name != "site":
                file.add(path, arcname=path.name)
    unfinished.replace(archive)


def collect(source: Path) -> int:
    """Out of an archive (unpacked into build/gpu-NAME) or the folder of a run."""
    if not source.exists():
        print(f"collect: expected the folder or the archive of a run, found nothing at {source}")
        return 2
    if source.is_file():
        folder = BUILD / f"gpu-{source.name.partition('.')[0]}"
        shutil.rmtree(folder, ignore_errors=True)
        with tarfile.open(source) as file:
            file.extractall(folder, filter="data")
        source = folder
    from benchmarks import readme, results

    from . import report

    folders = report.take(source)
    if not folders:
        print(f"{source} has no results of a GPU: run a part on a machine that has one.")
        return 2
    for folder in folders:
        print(f"written: {report.write(folder)}")
    readme.write()
    print(f"what the programs printed is in {source / 'logs'}; {results.RESULTS.relative_to(ROOT)} is to be committed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
