"""The parts of a run. Each runs a program of its own, so that a crash is that part's alone, and says how it ended."""

import concurrent.futures
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from benchmarks import results
from benchmarks.results import ROOT, Outcome

from . import sanitizer_driver

# Seconds for each part, which together with the build stay below eight minutes.
LIMITS = {"test": 200.0, "sanitize": 100.0, "bench": 120.0}
WORKERS = 12
DETAILS = 40

# What builds for all of its tests, looks at clocks or counts on a GPU of its own runs before the rest, in one process.
ALONE = tuple(f"tests/test_{name}.py" for name in ("gpu", "import", "packaging", "cuda_build", "triton_ahead_of_time"))

TOOLS = {
    # API errors are torch's own probing of the driver; those of launches are raised.
    "memcheck": ("--report-api-errors", "no", "--padding", "256"),
    "racecheck": ("--racecheck-report", "all"),
    "initcheck": (),
    "synccheck": (),
}
CLEAN = {tool: "ERROR SUMMARY: 0 errors" for tool in TOOLS} | {"racecheck": "RACECHECK SUMMARY: 0 hazards"}


def run(command: list[str], limit: float, **options) -> int | None:
    """The exit status of a command, or None where it had to be interrupted."""
    process = subprocess.Popen(command, cwd=ROOT, **options)
    try:
        return process.wait(max(limit, 1))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return None


# Tests


def test(folder: Path, limit: float) -> Outcome:
    """The whole test suite, on several processes where pytest-xdist is installed."""
    if importlib.util.find_spec("pytest") is None:
        return Outcome(False, f"pytest is not installed for {sys.executable}")
    began = time.monotonic()
    # Triton compiles a kernel for each combination of options: hours for all of them. CI interprets them; here its
    # own tests and those of the GPU have to do; `python -m icr_kernels check` looks at a selection.
    rest = [*(f"--ignore={path}" for path in ALONE), "-k", "not triton or test_triton"]
    runs = [list(ALONE), rest]
    environment = dict(os.environ)
    if importlib.util.find_spec("xdist") is not None:
        workers = min(WORKERS, os.cpu_count() or 1)
        rest += ["-n", str(workers)]
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
    outcomes = []
    with tempfile.TemporaryDirectory() as temporary:
        for arguments in runs:
            report = Path(temporary) / "report.xml"
            report.unlink(missing_ok=True)
            command = [sys.executable, "-m", "pytest", "-q", "--tb=short", f"--junitxml={report}", *arguments]
            status = run(command, limit - (time.monotonic() - began), env=environment)
            outcomes.append(judged(report, status, "GPU, import, builds" if arguments is runs[0] else "the rest"))
    details = [line for outcome in outcomes for line in outcome.details]
    return Outcome(
        all(outcome.ok for outcome in outcomes), "; ".join(outcome.summary for outcome in outcomes), details[:DETAILS]
    )


def judged(report: Path, status: int | None, name: str) -> Outcome:
    """What pytest's JUnit report says, and its exit status (None: it was interrupted)."""
    if not report.exists():
        return Outcome(False, f"{name}: pytest ended with status {status} and left no report")
    cases = list(ElementTree.parse(report).iter("testcase"))
    bad = [(case, mark) for case in cases for mark in case if mark.tag in ("failure", "error")]
    skipped = sum(case.find("skipped") is not None for case in cases)
    failed = len({id(case) for case, _ in bad})
    counts = f"{len(cases) - skipped - failed} passed, {failed} failed, {skipped} skipped"
    ending = {0: "", None: ", interrupted at the time limit"}.get(status, f", pytest's exit status {status}")
    details = [f"{case.get('classname')}::{case.get('name')}: {_last_line(mark)}" for case, mark in bad]
    return Outcome(status == 0 and not bad, f"{name}: {counts}{ending}", details)


def _last_line(mark: ElementTree.Element) -> str:
    lines = [line for line in (mark.get("message") or mark.text or "").splitlines() if line.strip()]
    return lines[0][:300] if lines else "no message"


# Sanitizers


def sanitizer() -> str | None:
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)] + ["/usr/local/cuda"]
    found = (shutil.which(path) for path in ("compute-sanitizer", *(f"{home}/bin/compute-sanitizer" for home in homes)))
    return next((path for path in found if path), None)


def sanitize(folder: Path, limit: float) -> Outcome:
    """compute-sanitizer's four tools over the driver, side by side: most of their time is the host's."""
    tool = sanitizer()
    if tool is None:
        return Outcome(False, "compute-sanitizer is not on the path, in CUDA_HOME or in /usr/local/cuda")

    def checked(name: str) -> Outcome:
        began = time.monotonic()
        with tempfile.NamedTemporaryFile("w+") as log:
            command = [tool, "--tool", name, "--target-processes", "application-only", "--error-exitcode", "9"]
            command += [*TOOLS[name], sys.executable, "-m", sanitizer_driver.__name__]
            environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            status = run(command, limit - 25, stdout=log, stderr=subprocess.STDOUT, env=environment)
            outcome = clean(name, status, Path(log.name).read_text(errors="replace"))
        print(f"{outcome.summary} ({time.monotonic() - began:.0f} s)", flush=True)
        return outcome

    with concurrent.futures.ThreadPoolExecutor(len(TOOLS)) as pool:
        outcomes = list(pool.map(checked, TOOLS))
    details = [line for outcome in outcomes for line in outcome.details]
    return Outcome(all(each.ok for each in outcomes), "; ".join(each.summary for each in outcomes), details)


def clean(tool: str, status: int | None, log: str) -> Outcome:
    """Clean is: the driver went through to its end, and the tool ended well and counted nothing."""
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", log)
    finished = re.search(rf"{sanitizer_driver.FINISHED}: (.*)", log)
    if status == 0 and finished and summary and all(line.startswith(CLEAN[tool]) for line in summary):
        return Outcome(True, f"{tool}: clean, {finished[1]}")
    said = summary[-1] if summary else "no summary"
    ending = "interrupted at the time limit" if status is None else f"exit status {status}"
    went = "the driver finished" if finished else "the driver did not finish"
    tail = [*log.splitlines()[:12], "...", *log.splitlines()[12:][-20:]]
    return Outcome(False, f"{tool}: {said}, {ending}, {went}", [f"{tool}: {line}" for line in tail])


# Benchmarks


def bench(folder: Path, limit: float) -> Outcome:
    """The measurements; those that are done are in the CSV, whatever becomes of the rest."""
    command = [sys.executable, "-m", "benchmarks.gpu.measure", "--output", str(folder), "--limit", str(limit - 20)]
    status = run(command, limit)
    rows = results.read(folder)
    notes = [
        f"{row['figure']}: {row['case']}, {row['shape']}: {row['implementation']}, {row['quantity']}: {row['note']}"
        for row in rows
        if row["note"]
    ]
    ending = {
        0: "complete",
        1: "incomplete, or without a result of this package in some rows",
        None: "interrupted at the time limit",
    }.get(status, f"ended with status {status}")
    return Outcome(status == 0, f"{len(rows)} rows, {ending}", notes[:DETAILS])


PARTS = {"test": test, "sanitize": sanitize, "bench": bench}
