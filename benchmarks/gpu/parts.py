"""The parts of a run. Each runs programs of its own, so that a crash is that part's alone, ends by itself within its
limit, and says how it ended.

Nothing here imports torch or this package: whether they can be imported is what the first part finds out.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
DETAILS = 40
GRACE = 5.0  # seconds before its limit at which a program is asked to end


@dataclasses.dataclass
class Outcome:
    """How a part ended: in one sentence, with the lines that say more where it failed."""

    ok: bool
    summary: str
    details: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    machine: dict[str, str] = dataclasses.field(default_factory=dict)

    def save(self, folder: Path, part: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{part}.json").write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")


def outcomes(folder: Path) -> dict[str, Outcome]:
    """Those of the parts that have run."""
    files = {part: folder / f"{part}.json" for part in PARTS}
    return {part: Outcome(**json.loads(file.read_text())) for part, file in files.items() if file.exists()}


def together(outcomes: list[Outcome]) -> Outcome:
    details = [line for outcome in outcomes for line in outcome.details]
    return Outcome(all(each.ok for each in outcomes), "; ".join(each.summary for each in outcomes), details[:DETAILS])


@dataclasses.dataclass
class Run:
    """Where results go, what programs are run with, and whether it is only a rehearsal, of everything but the GPU."""

    folder: Path
    rehearses: bool = False
    environment: dict[str, str] = dataclasses.field(default_factory=lambda: dict(os.environ))
    imports_from: Path | None = None  # None: what is installed

    @property
    def site(self) -> Path:
        """Where a wheel is unpacked."""
        return self.folder / "site"

    def machine(self) -> dict[str, str]:
        file = self.folder / "machine.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def log(self, name: str) -> Path:
        path = self.folder / "logs" / f"{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def program(self, name: str, command: list[str], limit: float, **environment: str) -> tuple[int | None, str]:
        """The exit status of a program, None where it had to be ended, and its output, which is shown and logged."""
        log = self.log(name)
        return ended_in_time(command, limit, log, {**self.environment, **environment})

    def import_from(self, site: Path) -> None:
        """The package that lies there comes before the source tree."""
        self.imports_from = site
        self.environment |= {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "PYTHONSAFEPATH": "1"}


# A group can be ended as a whole. In the session of this program, so that what ends the session ends it too.
GROUP: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}


def ended_in_time(
    command: list[str], limit: float, log: Path, environment: dict[str, str] | None = None
) -> tuple[int | None, str]:
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **GROUP
    )
    output, said = process.stdout, []
    assert output is not None

    def show() -> None:
        with log.open("ab") as file:
            for line in output:
                file.write(line)
                file.flush()
                said.append(line.decode(errors="replace"))
                print(said[-1], end="", flush=True)

    reader = threading.Thread(target=show, daemon=True)
    reader.start()
    status: int | None = None
    try:
        status = process.wait(max(limit - GRACE, 1))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # whatever it has started too
        process.wait()
        reader.join(2)  # what has left the group may hold the other end
    return status, "".join(said)


# Installation

# A torch without CUDA, in a rehearsal, has no use for the second.
EXTENSIONS = """
import sys, torch
from icr_kernels import builds
print(builds.__file__)
sys.exit(builds.CPU_ERROR or (torch.version.cuda and builds.CUDA_ERROR) or builds.TRITON_ERROR)
"""
MACHINE = "import json; from benchmarks import results; print(json.dumps(results.machine()))"


def wheels() -> list[Path]:
    """Those in dist/ that are for this Python, the newest first."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return sorted((ROOT / "dist").glob(f"icr_kernels-*-{tag}-*.whl"), key=lambda path: -path.stat().st_mtime)


def sources() -> list[Path]:
    files = [path for folder in ("csrc", "icr_kernels", "triton_kernels") for path in (ROOT / folder).rglob("*.*")]
    return [ROOT / "setup.py", *(path for path in files if path.suffix in (".py", ".h", ".cpp", ".cu"))]


def wheel_to_bring_along() -> tuple[bool, str]:
    """Whether nothing is wrong with it, and what is to be known of it. On a copy all files are of the same age."""
    for wheel in wheels()[:1]:
        newest = max(sources(), key=lambda path: path.stat().st_mtime)
        if newest.stat().st_mtime > wheel.stat().st_mtime:
            return False, f"dist/{wheel.name} is older than {newest.relative_to(ROOT)}: make wheel"
        return True, f"dist/{wheel.name} is to be brought along"
    return True, f"dist has no wheel for Python {sys.version_info.major}.{sys.version_info.minor}: make wheel"


def difference(site: Path) -> str | None:
    """A file of Python in which an unpacked wheel is not this source tree."""
    for file in sorted(site.glob("icr_kernels/**/*.py")):
        inside = file.relative_to(site)
        parts = inside.parts[1:] if inside.parts[1] == "triton_kernels" else inside.parts
        source = ROOT.joinpath(*parts)
        if not source.exists() or source.read_bytes() != file.read_bytes():
            return str(inside)
    return None


def ways_to_install(run: Run, end: float) -> Iterator[str]:
    """Each has been gone when its name is given: what is there already, a wheel that was brought along, a build."""
    yield "as installed"
    for wheel in wheels()[:1]:
        shutil.rmtree(run.site, ignore_errors=True)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(run.site)
        run.import_from(run.site)
        yield f"from {wheel.name}"
    if not run.rehearses:
        shutil.rmtree(run.site, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index"]
        command += ["--target", str(run.site), str(ROOT)]
        run.program("build", command, end - time.monotonic(), ICR_KERNELS_CUDA="1", TORCH_CUDA_ARCH_LIST="native")
        run.import_from(run.site)
        yield "built here"


def install(run: Run, limit: float) -> Outcome:
    """Both extensions and the Triton kernels can be imported."""
    end = time.monotonic() + limit
    said: list[str] = []
    for way in ways_to_install(run, end - 30):
        status, output = run.program("import", [sys.executable, "-c", EXTENSIONS], end - time.monotonic())
        if status == 0:
            break
        said += [f"{way}: {line}" for line in output.splitlines()[-4:]]
    else:
        return Outcome(False, "the extensions cannot be imported", said)
    status, _ = run.program("info", [sys.executable, "-m", "icr_kernels", "info"], end - time.monotonic())
    if status != 0:
        return Outcome(False, f"{way}, but info ended with status {status}", said)
    summary = f"imported {way}"
    if run.rehearses:
        is_new, about_wheel = wheel_to_bring_along()
        return Outcome(is_new or way == "as installed", f"{summary}; {about_wheel}")
    status, output = run.program("machine", [sys.executable, "-c", MACHINE], end - time.monotonic())
    machine = [line for line in output.splitlines() if line.startswith("{")]  # among what others may print
    if status != 0 or not machine:
        return Outcome(False, f"{summary}, but torch does not say what machine this is", output.splitlines()[-4:])
    (run.folder / "machine.json").write_text(machine[-1] + "\n")
    differs = difference(run.site) if way.startswith("from") else None
    return Outcome(
        differs is None, summary + (f", whose {differs} is not that of the source tree" if differs else ""), said
    )


# Measurements

NO_RESULT = "no result"
LOST = "lost the device"


def measure(name: str, *arguments: str) -> Callable[[Run, float], Outcome]:
    """Measurements; those that are done are in the CSV, whatever becomes of the rest. A kernel that faults takes the
    device from its process, and no other measurement with it: another process goes on. An implementation that has done
    so twice is left out."""

    def part(run: Run, limit: float) -> Outcome:
        end, done, lines = time.monotonic() + limit, 0, ["no output"]
        faults: list[str] = []
        while True:
            left = end - time.monotonic()
            command = [sys.executable, "-m", "benchmarks.gpu.measure", "--output", str(run.folder), *arguments]
            command += ["--limit", f"{left - 3 * GRACE:.0f}", "--skip", str(done), *["--dry-run"] * run.rehearses]
            if out := [name for name in dict.fromkeys(faults) if faults.count(name) > 1]:
                command += ["--without", *out]
            status, output = run.program(name, command, left)
            lines += output.splitlines()
            # Not always in the last line: a process that has lost its device may end with complaints.
            lost = re.search(rf"^{LOST} after (\d+) .*, in (.*)$", output, re.MULTILINE)
            if lost is None:
                break
            done = int(lost[1])
            faults.append(lost[2])
        ending = {0: "complete", 1: "incomplete, or without a result in some rows", None: "ended at the time limit"}
        summary = f"{lines[-1]}; {ending.get(status, f'ended with status {status}')}"
        bad = [line for line in lines if NO_RESULT in line or line.startswith(LOST)]
        return Outcome(status == 0 and done == 0, summary, bad[:DETAILS] or lines[-4:])

    return part


# Tests


HANGS = 60  # seconds after which a test of a part has hung


def tests(name: str, *arguments: str, processes: int) -> Callable[[Run, float], Outcome]:
    """Tests of one backend, on several processes where pytest-xdist is installed: a kernel that faults takes the device
    from its process, and another one goes on. So it does after a test that hangs, where pytest-timeout is installed."""

    def part(run: Run, limit: float) -> Outcome:
        if importlib.util.find_spec("pytest") is None:
            return Outcome(False, f"pytest is not installed for {sys.executable}")
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "--continue-on-collection-errors", *arguments]
        # The source tree is not on the path: its package, which has no extensions, would come before an unpacked one.
        command += ["-p", "benchmarks.gpu.pytest_plugin", "-o", "pythonpath=tests/support"]
        if run.imports_from is not None:
            command.append(f"--expect-package-in={run.imports_from}")
        if importlib.util.find_spec("pytest_timeout") is not None:
            command += [f"--timeout={HANGS}", "--timeout-method=thread"]
        environment = {}
        if run.rehearses:
            status, output = run.program(name, [*command, "--collect-only", "--as-if-there-were-a-gpu"], limit)
            return Outcome(status == 0, (output.splitlines() or ["no output"])[-1], output.splitlines()[-DETAILS:])
        cores = os.cpu_count() or 1
        if importlib.util.find_spec("xdist") is not None:
            workers = min(processes, cores)
            # Few at a time, or one process would have all tests that compile.
            command += ["-n", str(workers), "--maxschedchunk=4"]
            environment["OMP_NUM_THREADS"] = str(max(1, cores // workers))
        record = run.log(name).with_suffix(".jsonl")
        record.unlink(missing_ok=True)
        status, output = run.program(name, [*command, f"--record={record}"], limit, **environment)
        return judged(record, status, output)

    return part


def judged(record: Path, status: int | None, output: str) -> Outcome:
    """What the plugin has written of each test, and pytest's exit status (None: it was interrupted)."""
    ended: dict[str, str] = {}
    details = []
    for line in record.read_text().splitlines() if record.exists() else ():
        test = json.loads(line)
        if ended.get(test["name"]) != "failed":
            ended[test["name"]] = test["outcome"]
        if test["outcome"] == "failed":
            details.append(f"{test['name']}: {test['message']}")
    counts = ", ".join(f"{list(ended.values()).count(each)} {each}" for each in ("passed", "failed", "skipped"))
    ending = {0: "", None: ", interrupted at the time limit"}.get(status, f", pytest's exit status {status}")
    bad = status != 0 or "failed" in ended.values() or not ended
    return Outcome(not bad, counts + ending, (details or output.splitlines()[-12:] if bad else [])[:DETAILS])


# Sanitizers

DRIVER = "benchmarks.gpu.sanitizer_driver"
FINISHED, STOPPED = "driver finished", "driver stopped after"
TOOLS = {
    # API errors are torch's own probing of the driver; those of launches are raised.
    "memcheck": ("--report-api-errors", "no", "--padding", "256"),
    "racecheck": ("--racecheck-report", "all"),
    "initcheck": (),
    "synccheck": (),
}
CLEAN = {tool: "ERROR SUMMARY: 0 errors" for tool in TOOLS} | {"racecheck": "RACECHECK SUMMARY: 0 hazards"}


def sanitizer() -> str | None:
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)] + ["/usr/local/cuda"]
    found = (shutil.which(path) for path in ("compute-sanitizer", *(f"{home}/bin/compute-sanitizer" for home in homes)))
    return next((path for path in found if path), None)


def sanitize(run: Run, limit: float) -> Outcome:
    """compute-sanitizer's four tools over the driver, one after another, each in its share of the time that is left."""
    driver = [sys.executable, "-m", DRIVER]
    if run.rehearses:
        status, output = run.program("sanitizers", [*driver, "--dry-run"], limit)
        there = "" if sanitizer() else "; compute-sanitizer is not here"
        return Outcome(status == 0, (output.splitlines() or ["no output"])[-1] + there, output.splitlines()[-DETAILS:])
    tool = sanitizer()
    if tool is None:
        return Outcome(False, "compute-sanitizer is not on the path, in CUDA_HOME or in /usr/local/cuda")
    end, found = time.monotonic() + limit, []
    for place, name in enumerate(TOOLS):
        share = (end - time.monotonic()) / (len(TOOLS) - place)
        command = [tool, "--tool", name, "--target-processes", "application-only", "--error-exitcode", "9"]
        # The driver stops in time for the tool to say what it has found.
        stop = ["--until", f"{time.time() + share - 2 * GRACE:.0f}"]
        status, output = run.program(
            name, [*command, *TOOLS[name], *driver, *stop], share, PYTORCH_NO_CUDA_MEMORY_CACHING="1"
        )
        found.append(clean(name, status, output))
    return together(found)


def clean(tool: str, status: int | None, log: str) -> Outcome:
    """Clean is: the driver went through to its end, and the tool ended well and counted nothing. A driver that had to
    stop says how far it came."""
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", log)
    finished = re.search(rf"{FINISHED}: (.*)", log)
    if status == 0 and finished and summary and all(line.startswith(CLEAN[tool]) for line in summary):
        return Outcome(True, f"{tool}: clean, {finished[1]}")
    said = summary[-1] if summary else "no summary"
    ending = "interrupted at the time limit" if status is None else f"exit status {status}"
    stopped = re.search(rf"{STOPPED} .*", log)
    went = "the driver finished" if finished else stopped[0] if stopped else "the driver did not finish"
    tail = [*log.splitlines()[:12], "...", *log.splitlines()[12:][-20:]]
    return Outcome(False, f"{tool}: {said}, {ending}, {went}", [f"{tool}: {line}" for line in tail])


class Part(NamedTuple):
    """``expected`` and ``limit`` are seconds, on an H100 with 16 processor cores."""

    what: str
    run: Callable[[Run, float], Outcome]
    expected: float
    limit: float


# In the order of what they are worth to somebody who has a GPU for a quarter of an hour.
PARTS = {
    "install": Part("both extensions and the Triton kernels can be imported", install, 20, 150),
    "times": Part(
        "time on the device and of the host: cuda, triton and a copy",
        measure("times", "--figures", "device", "host", "--only", "^(cuda|triton)$"),
        50,
        80,
    ),
    "gpu-tests": Part(
        "what only a GPU can show, on cuda",
        tests("gpu-tests", "tests/operators/test_gpu.py", "-k", "not triton", processes=2),
        60,
        90,
    ),
    "tests": Part(
        "all other tests that use cuda",
        tests(
            "tests",
            *("tests/formulas", "tests/matching", "tests/operators", "--ignore=tests/operators/test_gpu.py"),
            *("--only-backend", "cuda"),
            processes=12,
        ),
        70,
        130,
    ),
    "peers": Part(
        "cuda beside other people's code, eager first, then compiled",
        measure("peers", "--only", "^(?!triton$)"),
        130,
        170,
    ),
    "triton-tests": Part(
        "what only a GPU can show, on triton",
        tests("triton-tests", "tests/operators/test_gpu.py", "--only-backend", "triton", processes=12),
        80,
        110,
    ),
    "sanitizers": Part("compute-sanitizer's four tools", sanitize, 100, 160),
    "triton-formulas": Part(
        "every loss and penalty on triton",
        tests("triton-formulas", "tests/formulas/test_parity.py", "--only-backend", "triton", processes=12),
        60,
        100,
    ),
    "triton-times": Part(
        "triton end to end, its launches and its memory",
        measure("triton-times", "--figures", "end to end", "counts", "--only", "^triton$"),
        40,
        60,
    ),
}
RUNS = {
    "first": ("install", "times", "gpu-tests", "tests"),
    "second": ("install", "peers", "triton-tests", "sanitizers", "triton-formulas", "triton-times"),
}
