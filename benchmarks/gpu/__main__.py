"""Tests, sanitizers and measurements on this machine's NVIDIA GPU, and the report on them.

``python -m benchmarks.gpu`` runs all parts, ``... first`` and ``... second`` those of two short runs on a machine that
is there for a quarter of an hour, ``... PART ...`` single ones. Each leaves its results in the output folder when it
ends, and a part that fails stops no other. ``... collect FOLDER-OR-ARCHIVE`` takes them into benchmarks/results and
writes the report and the documents' tables. Exit status: 0, 1 if a part failed, 2 without a GPU or without results.
"""

import argparse
import contextlib
import math
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from .parts import PARTS, ROOT, RUNS, Outcome, Run

BUILD = ROOT / "build"
GPU = "import sys, torch; print(torch.__version__, torch.version.cuda); sys.exit(not torch.cuda.is_available())"
SHORTEST = 15.0  # seconds; a part that has less is not begun
PACKING = threading.Lock()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    names = ", ".join((*RUNS, *PARTS))
    parser.add_argument("what", nargs="*", metavar="PART", help=f"{names} (default: all parts); or: collect PATH")
    parser.add_argument("--output", type=Path, default=BUILD / "gpu", help="folder of the results (default: build/gpu)")
    parser.add_argument("--limit", type=float, help="seconds for each part (default: the limits that are shown)")
    parser.add_argument("--total", type=float, default=math.inf, help="seconds for all parts together")
    parser.add_argument("--archive", type=Path, help="also packs the folder into this .tar.gz, again and again")
    parser.add_argument("--dry-run", action="store_true", help="rehearses: everything but what takes a GPU")
    options = parser.parse_args(arguments)
    end = time.monotonic() + options.total
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

    if not options.dry_run and (reason := no_gpu()) is not None:
        print(f"No NVIDIA GPU: {reason}; nothing was run.")
        return 2
    this = Run(options.output.absolute(), options.dry_run)
    shutil.rmtree(this.folder / "logs", ignore_errors=True)
    this.folder.mkdir(parents=True, exist_ok=True)
    if options.archive is not None:
        try:
            options.archive.parent.mkdir(parents=True, exist_ok=True)
            pack(this.folder, options.archive)
        except OSError as error:
            parser.error(f"--archive: expected a file that can be written, got {options.archive} ({error.strerror})")
    with packed_now_and_then(this.folder, options.archive):
        return run(chosen, this, options.archive, end, options.limit)


def no_gpu() -> str | None:
    try:
        found = subprocess.run([sys.executable, "-c", GPU], capture_output=True, text=True, timeout=180)
    except subprocess.TimeoutExpired:
        return None  # a machine that is slow at first may have one
    said = (found.stdout + found.stderr).strip().splitlines()
    return f"torch ({said[-1] if said else 'silent'}) finds none on this machine" if found.returncode != 0 else None


def run(chosen: list[str], this: Run, archive: Path | None, end: float, limit: float | None) -> int:
    outcomes = {}
    for name in chosen:
        print(f"== {name}", flush=True)
        began = time.monotonic()
        seconds = min(limit or PARTS[name].limit, end - began)
        try:
            if seconds < SHORTEST:
                outcome = Outcome(False, "not begun: no time was left")
            else:
                outcome = PARTS[name].run(this, seconds)
        except Exception as error:
            outcome = Outcome(False, f"{type(error).__name__}: {error}")
        outcome.seconds = round(time.monotonic() - began, 1)
        outcome.machine = this.machine()
        outcomes[name] = outcome
        if not this.rehearses:
            outcome.save(this.folder, name)
        try_to_pack(this.folder, archive)
    for name, outcome in outcomes.items():
        print(f"{'ok    ' if outcome.ok else 'FAILED'} {name} ({outcome.seconds:.0f} s): {outcome.summary}")
        for line in () if outcome.ok else outcome.details:
            print(f"         {line}")
    return int(not all(outcome.ok for outcome in outcomes.values()))


def pack(folder: Path, archive: Path) -> None:
    """The whole archive is there or the one before."""
    unfinished = archive.with_name(archive.name + ".part")
    with tarfile.open(unfinished, "w:gz") as file:
        for path in sorted(folder.iterdir()):
            if path.name != "site" and path.suffix != ".part":
                file.add(path, arcname=path.name)
    unfinished.replace(archive)


def try_to_pack(folder: Path, archive: Path | None) -> None:
    """A disk that is full, or a file that goes while it is being read, costs this archive and not the run."""
    if archive is not None:
        try:
            with PACKING:
                pack(folder, archive)
        except OSError as error:
            print(f"not packed: {error}", flush=True)


@contextlib.contextmanager
def packed_now_and_then(folder: Path, archive: Path | None) -> Iterator[None]:
    """Within parts too, so that little is lost of one that is cut short."""
    over = threading.Event()

    def loop() -> None:
        while not over.wait(15):
            try_to_pack(folder, archive)

    threading.Thread(target=loop, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def collect(source: Path) -> int:
    """Out of an archive (unpacked into build/gpu-NAME) or the folder of a run."""
    if not source.exists():
        print(f"collect: expected the folder or the archive of a run, found nothing at {source}")
        return 2
    if source.is_file():
        folder = BUILD / f"gpu-{source.name.partition('.')[0]}"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            with tarfile.open(source) as file:
                file.extractall(folder, filter="data")
        except (tarfile.TarError, EOFError, OSError) as error:
            print(f"collect: expected the archive of a run, got {source}, which cannot be unpacked ({error})")
            return 2
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and what has been started is ended too
    sys.exit(main())
