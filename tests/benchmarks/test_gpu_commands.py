"""The GPU command, as far as it runs without a GPU: its parts, what they conclude, and what comes back of them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
import torch

import emulated
from benchmarks import readme, results, tables
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import parts
from benchmarks.gpu.parts import ROOT, Outcome
from icr_kernels import builds
from imaginary_gpu import MACHINE, row

# Seconds. Where a limit is needed and is not what is tested: on no machine, however busy, does it decide.
A_DAY, AN_HOUR = 86_400, 3600


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """An imaginary one: a run on it, with ``fakes`` for the parts; it returns the exit status."""

    def run(*arguments: str, **fakes) -> int:
        monkeypatch.setattr(command, "GPU", "")
        for name, fake in fakes.items():
            monkeypatch.setitem(parts.PARTS, name, parts.Part("", fake, 1, 20))
        return command.main([*fakes, "--output", str(tmp_path / "run"), *arguments])

    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(command, "BUILD", tmp_path / "build")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    monkeypatch.setattr(readme, "DOCUMENTS", ())
    return run


def installs(run, limit):
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "machine.json").write_text(json.dumps(MACHINE))
    return Outcome(True, "installed")


def measures(p50):
    def part(run, limit):
        results.merge(run.folder, [row(p50=p50)])
        return Outcome(True, "all is well")

    return part


def broken(run, limit):
    raise OSError("no such thing")


def test_without_a_gpu_it_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for arguments in (["first"], ["peers", "--archive", str(tmp_path / "archive.tar.gz")]):
        assert command.main([*arguments, "--output", str(tmp_path)]) == 2
        assert f"No NVIDIA GPU: torch ({torch.__version__}" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_unknown_part():
    with pytest.raises(SystemExit) as ending:
        command.main(["times", "tests", "bench"])
    assert ending.value.code == 2


def test_machine_that_is_slow_to_say_what_it_has_may_have_a_gpu(monkeypatch):
    def is_slow(program, timeout, **_):
        raise subprocess.TimeoutExpired(program, timeout)

    monkeypatch.setattr(command.subprocess, "run", is_slow)
    assert command.no_gpu() is None


def test_two_short_runs_are_all_parts_and_fit_into_a_quarter_of_an_hour():
    """As CONTRIBUTING has them: with the start of two machines, and what is worth most within the time of each."""
    assert list(parts.PARTS) == [*parts.RUNS["first"], *parts.RUNS["second"][1:]]
    text = (ROOT / "CONTRIBUTING.md").read_text()
    total = {run: int(seconds) for run, seconds in re.findall(r"benchmarks.gpu (\w+) --total (\d+)", text)}
    assert sum(total.values()) + 2 * 90 + 2 * 30 <= 15 * 60
    most = {"first": parts.RUNS["first"], "second": ("install", "peers", "triton-tests", "sanitizers")}
    for run, names in most.items():
        assert sum(parts.PARTS[part].expected for part in names) <= total[run]


def test_contributing_has_the_times_of_the_parts():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for name, part in parts.PARTS.items():
        assert re.search(rf"\| `{name}` \| .* \| {part.expected:.0f} s \| {part.limit:.0f} s \|", text), name
    for times in ([part.expected for part in parts.PARTS.values()], [part.limit for part in parts.PARTS.values()]):
        assert f"{sum(times):,.0f} s" in re.search(r"\| together \|.*", text)[0]


def test_part_that_fails_stops_no_other(gpu, capsys, tmp_path):
    assert gpu(install=installs, times=measures(1), sanitizers=broken, peers=measures(2)) == 1
    found = {part: outcome.ok for part, outcome in parts.outcomes(tmp_path / "run").items()}
    assert found == {"install": True, "times": True, "sanitizers": False, "peers": True}
    said = capsys.readouterr().out
    assert "FAILED sanitizers" in said and "OSError: no such thing" in said
    assert command.main(["collect", str(tmp_path / "run")]) == 0
    report = tmp_path / "results" / "imaginary-gpu-1" / "report.md"
    assert "sanitizers: **FAILED**" in report.read_text() and "no such thing" in report.read_text()
    assert gpu(install=installs, sanitizers=measures(3)) == 0
    assert command.main(["collect", str(tmp_path / "run")]) == 0
    assert "FAILED" not in report.read_text()


def test_every_part_leaves_an_archive_that_can_be_taken_home(gpu, tmp_path):
    """A run that is cut short brings back what was done; a later one joins it, rows of their kind in their place."""
    archive = tmp_path / "archive.tar.gz"
    contents = []

    def looks(run, limit):
        with tarfile.open(archive) as file:
            contents.append(sorted(file.getnames()))
        run.log("looks").write_text("said")
        return measures(5)(run, limit)

    def second(run, limit):
        results.merge(run.folder, [row(p50=7), row(name="triton", p50=8)])
        return Outcome(True, "well again")

    (tmp_path / "run" / "site").mkdir(parents=True)
    assert gpu("--archive", str(archive), install=installs, times=looks) == 0
    assert contents == [["install.json", "machine.json"]]
    assert command.main(["collect", str(archive)]) == 0
    assert (tmp_path / "build" / "gpu-archive" / "logs" / "looks.log").read_text() == "said"
    assert gpu("--archive", str(archive), install=installs, peers=second) == 0
    assert command.main(["collect", str(archive)]) == 0
    folder = tmp_path / "results" / "imaginary-gpu-1"
    assert [(each["implementation"], each["p50"]) for each in results.read(folder)] == [("cuda", "7"), ("triton", "8")]
    text = (folder / "report.md").read_text()
    for line in ("# Imaginary GPU 1", "- times: ok", "- peers: ok", "- sanitizers: not run"):
        assert line in text
    block = readme.gpus(tables.machines(tmp_path / "results"))
    assert block.startswith("[Imaginary GPU 1](results/imaginary-gpu-1/report.md)") and "| >= 95 % |" in block


def test_results_of_two_gpus_are_kept_apart(gpu, tmp_path):
    """The second run may have been given another card."""
    other = {**MACHINE, "device": "Other GPU"}
    for device, part in ((MACHINE, "times"), (other, "peers")):
        Outcome(True, "well", machine=device).save(tmp_path / "run", part)
    results.merge(tmp_path / "run", [row(), {**row(), "device": "Other GPU"}])
    assert command.main(["collect", str(tmp_path / "run")]) == 0
    for device, part in (("imaginary-gpu-1", "times"), ("other-gpu", "peers")):
        folder = tmp_path / "results" / device
        assert list(parts.outcomes(folder)) == [part] and len(results.read(folder)) == 1


def test_archive_that_cannot_be_written_is_told_before_anything_runs(gpu, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        gpu("--archive", str(tmp_path / "file" / "archive.tar.gz"), install=broken)
    assert "--archive: expected a file that can be written" in capsys.readouterr().err
    (tmp_path / "broken.tar.gz").write_bytes(b"no archive")
    assert command.main(["collect", str(tmp_path / "broken.tar.gz")]) == 2
    assert "collect: expected the archive of a run" in capsys.readouterr().out


def test_parts_share_the_time_that_there_is(monkeypatch, gpu, tmp_path):
    now, limits = [0.0], []
    monkeypatch.setattr(command.time, "monotonic", lambda: now[0])

    def takes(run, limit):
        limits.append(limit)
        now[0] += 20
        return Outcome(True, "")

    assert gpu("--total", "50", "--limit", "25", install=takes, times=takes, peers=takes) == 1
    assert limits == [25, 25]
    assert "no time was left" in parts.outcomes(tmp_path / "run")["peers"].summary
    assert gpu("--total", "38", "--limit", "25", install=takes, times=takes) == 0
    assert limits[2:] == [25, 18]


def test_nothing_to_collect(gpu, capsys, tmp_path):
    assert command.main(["collect", str(tmp_path / "nowhere")]) == 2
    assert "found nothing at" in capsys.readouterr().out
    assert command.main(["collect", str(tmp_path)]) == 2
    assert "has no results of a GPU" in capsys.readouterr().out


@pytest.mark.skipif(
    torch.version.cuda is not None and builds.CUDA_ERROR is not None, reason=f"no run: {builds.CUDA_ERROR}"
)
def test_rehearsal(tmp_path):
    """Every program, file, option and import of every part, but for what takes a GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command_line = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--dry-run",
        "--limit",
        str(A_DAY),
        "--output",
        str(tmp_path),
    ]
    rehearsed = subprocess.run(command_line, cwd=parts.ROOT, env=environment, capture_output=True, text=True)
    assert rehearsed.returncode == 0, rehearsed.stdout[-6000:] + rehearsed.stderr
    endings = dict(re.findall(r"^ok +(\S+) \(\d+ s\): (.*)$", rehearsed.stdout, re.MULTILINE))
    assert list(endings) == list(parts.PARTS)
    least_of = {"times": 60, "gpu-tests": 40, "tests": 2000, "peers": 200, "sanitizers": 140}
    for part, least in (least_of | {"triton-tests": 40, "triton-formulas": 200, "triton-times": 10}).items():
        assert int(re.match(r"\d+", endings[part])[0]) >= least, endings[part]
    assert 140 <= int(re.match(r"\d+", endings["sanitizers"])[0]) <= 170


@pytest.mark.skipif(emulated.compiler() is None, reason="the emulation takes g++")
def test_tests_hand_no_tensors_of_the_cpu_to_a_gpu():
    """One of each function that the run has on the backend cuda."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests' / 'support'}{os.pathsep}{ROOT}"}
    command_line = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    command_line += ["-p", "imaginary_device", "--only-backend", "emulated"]
    command_line += ["tests/formulas", "tests/matching", "tests/operators"]
    finished = subprocess.run(command_line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout[-6000:] + finished.stderr
    assert int(re.search(r"(\d+) passed", finished.stdout)[1]) > 300


def test_tests_are_those_of_the_package_that_was_unpacked(tmp_path):
    """Where a wheel was brought along the package in the source tree has no extensions."""
    site = tmp_path / "site"
    shutil.copytree(ROOT / "icr_kernels", site / "icr_kernels")
    shutil.copytree(ROOT / "triton_kernels", site / "icr_kernels" / "triton_kernels")
    run = parts.Run(tmp_path / "run", rehearses=True)
    run.import_from(site)
    outcome = parts.PARTS["gpu-tests"].run(run, A_DAY)
    assert outcome.ok, outcome.details
    run.imports_from = tmp_path / "another"
    outcome = parts.PARTS["gpu-tests"].run(run, A_DAY)
    assert not outcome.ok and any("--expect-package-in: expected icr_kernels in" in line for line in outcome.details)


@pytest.fixture
def checkout(monkeypatch, tmp_path) -> Path:
    """A source tree with a wheel for this Python, one for another, and nothing installed: what each program was, and
    from where it would have imported."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    for folder in ("dist", "icr_kernels", "triton_kernels"):
        (tmp_path / folder).mkdir()
    for file in ("setup.py", "icr_kernels/a.py", "triton_kernels/b.py"):
        (tmp_path / file).write_text(file)
    for name in (f"icr_kernels-0.1.0-{tag}-{tag}-linux.whl", "icr_kernels-0.1.0-cp39-cp39-linux.whl"):
        with zipfile.ZipFile(tmp_path / "dist" / name, "w") as wheel:
            wheel.writestr("icr_kernels/a.py", "icr_kernels/a.py")
            wheel.writestr("icr_kernels/triton_kernels/b.py", "triton_kernels/b.py")
    monkeypatch.setattr(parts, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    return tmp_path


def imports(monkeypatch, works) -> list[tuple[str, str]]:
    programs = []

    def program(self, name, arguments, limit, **environment):
        site = self.environment["PYTHONPATH"].partition(os.pathsep)[0]
        programs.append((name, site))
        said = f"Warning: as it begins\n{json.dumps(MACHINE)}\nWarning: as it ends"
        return (0, said) if name != "import" or works(site) else (1, "not here")

    monkeypatch.setattr(parts.Run, "program", program)
    return programs


def test_build_is_a_last_resort(monkeypatch, checkout):
    """What is installed comes first, then the newest wheel of this Python, then a build; what each said is kept."""
    programs = imports(monkeypatch, lambda site: False)
    outcome = parts.install(parts.Run(checkout / "run"), 100)
    site = str(checkout / "run" / "site")
    assert programs == [("import", ""), ("import", site), ("build", site), ("import", site)]
    ways = [line.partition(":")[0] for line in outcome.details]
    assert not outcome.ok and ways == ["as installed", f"from {parts.wheels()[0].name}", "built here"]
    assert not (checkout / "run" / "site").exists(), "what could not be imported is out of the way of what is built"


def test_wheel_that_is_not_the_source_tree_is_told(monkeypatch, checkout):
    """Or the kernels of yesterday would be measured as those of today."""
    imports(monkeypatch, lambda site: site != "")
    (checkout / "run").mkdir()
    run = parts.Run(checkout / "run")
    assert parts.install(run, 100).ok and run.machine() == MACHINE
    (checkout / "triton_kernels" / "b.py").write_text("changed")
    outcome = parts.install(parts.Run(checkout / "run"), 100)
    assert not outcome.ok and outcome.summary.endswith("b.py is not that of the source tree")


def test_rehearsal_knows_a_wheel_that_is_out_of_date(monkeypatch, checkout):
    imports(monkeypatch, lambda site: site != "")
    run = parts.Run(checkout / "run", rehearses=True)
    (wheel,) = parts.wheels()
    os.utime(wheel, (1e9, 1e9))
    outcome = parts.install(run, 100)
    assert not outcome.ok and f"dist/{wheel.name} is older than" in outcome.summary
    os.utime(wheel, (4e9, 4e9))
    outcome = parts.install(run, 100)
    assert outcome.ok and "is to be brought along" in outcome.summary
    imports(monkeypatch, lambda site: True)
    wheel.unlink()
    outcome = parts.install(run, 100)
    assert outcome.ok and "dist has no wheel for Python" in outcome.summary


TESTS = """
import time
import pytest

@pytest.fixture
def torn():
    yield
    raise OSError("torn down")

def test_good(): pass
def test_bad(): assert 1 == 2
def test_left_out(): pytest.skip("no")
def test_torn(torn): pass
"""


@pytest.fixture
def suite(monkeypatch, tmp_path):
    """Runs a file of tests as a part does."""
    monkeypatch.setattr(parts, "ROOT", tmp_path)
    (tmp_path / "test_some.py").write_text(TESTS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""}

    def run(more: str = "") -> Outcome:
        (tmp_path / "test_more.py").write_text(more)
        part = parts.tests("some", str(tmp_path), "-p", "no:cacheprovider", processes=1)
        return part(parts.Run(tmp_path / "run", environment=environment), A_DAY)

    return run


def test_what_became_of_each_test(suite):
    outcome = suite()
    assert not outcome.ok and outcome.summary == "1 passed, 2 failed, 1 skipped, pytest's exit status 1"
    assert outcome.details == [
        "test_some.py::test_bad: assert 1 == 2",
        "test_some.py::test_torn: OSError: torn down",
    ]
    outcome = suite("import nothing_of_this_name")
    assert "1 passed, 3 failed, 1 skipped" in outcome.summary
    assert "test_more.py: ModuleNotFoundError: No module named 'nothing_of_this_name'" in outcome.details


FAULT = """
import pytest
import torch

def lost():
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

def test_fault():
    torch.cuda.is_initialized, torch.cuda.synchronize = (lambda: True), lost
    lost()

@pytest.mark.parametrize("k", range(9))
def test_of_another_process(k):
    assert torch.cuda.synchronize is not lost
"""


def test_kernel_that_faults_fails_no_other_test(suite):
    pytest.importorskip("xdist")
    outcome = suite(FAULT)
    assert outcome.summary.startswith("10 passed, 3 failed, 1 skipped")
    assert "test_more.py::test_fault: RuntimeError: CUDA error: an illegal memory access was encountered" in (
        outcome.details
    )


def test_tests_that_are_cut_short_are_not_lost(tmp_path):
    """With pytest-xdist too, whose processes end last of all."""
    pytest.importorskip("xdist")
    (tmp_path / "test_some.py").write_text(TESTS + "def test_slow(): time.sleep(1e6)")
    record = tmp_path / "record.jsonl"
    command = [sys.executable, "-m", "pytest", "-n", "2", "-p", "benchmarks.gpu.pytest_plugin", f"--record={record}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""}
    process = subprocess.Popen([*command, str(tmp_path)], cwd=tmp_path, env=environment, start_new_session=True)
    while process.poll() is None and not (record.exists() and record.read_text().count("\n") >= 5):
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    outcome = parts.judged(record, None, "")
    assert outcome.summary == "1 passed, 2 failed, 1 skipped, interrupted at the time limit"
    assert "test_some.py::test_bad: assert 1 == 2" in outcome.details


def test_no_tests_are_no_success(tmp_path):
    assert not parts.judged(tmp_path / "none", 0, "").ok


def test_measurements_go_on_after_a_kernel_that_faults(monkeypatch, tmp_path):
    """In another process, behind the measurement that lost the device; the second time without what did it."""
    commands = []
    losses = [f"{parts.LOST} after {done} of 9 measurements, in cuda" for done in (2, 7)]
    endings = iter([(1, f"bad\n{losses[0]}\nWarning: ...\n"), (-6, losses[1]), (0, "9 measurements, 0 of this ...")])

    def program(self, name, arguments, limit, **environment):
        commands.append(arguments[arguments.index("--skip") + 1 :])
        return next(endings)

    monkeypatch.setattr(parts.Run, "program", program)
    outcome = parts.PARTS["times"].run(parts.Run(tmp_path), 100)
    assert commands == [["0"], ["2"], ["7", "--without", "cuda"]]
    assert not outcome.ok and outcome.details == losses


def test_each_sanitizer_has_its_share_of_the_time(monkeypatch, tmp_path):
    """What one leaves is the others'; the driver stops in time for the tool to say what it has found."""
    shares, now = [], [0.0]

    def program(self, name, arguments, limit, **environment):
        shares.append((name, round(limit), round(float(arguments[-1]) - now[0])))
        now[0] += 20 if name == "memcheck" else limit
        summary = "RACECHECK SUMMARY: 0 hazards" if name == "racecheck" else "ERROR SUMMARY: 0 errors"
        if name == "synccheck":
            return 0, f"{parts.STOPPED} 90 of 160 combinations\n========= {summary}\n"
        return 0, f"{parts.FINISHED}: 160 combinations\n========= {summary}\n"

    monkeypatch.setattr(parts.Run, "program", program)
    monkeypatch.setattr(parts, "sanitizer", lambda: "compute-sanitizer")
    monkeypatch.setattr(parts.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(parts.time, "time", lambda: now[0])
    outcome = parts.sanitize(parts.Run(tmp_path), 140)
    assert shares == [("memcheck", 35, 25), ("racecheck", 40, 30), ("initcheck", 40, 30), ("synccheck", 40, 30)]
    assert not outcome.ok and outcome.summary.endswith(
        "synccheck: ERROR SUMMARY: 0 errors, exit status 0, driver stopped after 90 of 160 combinations"
    )
    assert "memcheck: clean, 160 combinations" in outcome.summary


def test_what_a_sanitizer_reports():
    finished = f"{parts.FINISHED}: 3 combinations, backends cuda\n"
    clean = finished + "========= ERROR SUMMARY: 0 errors\n"
    no_hazards = finished + "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
    assert parts.clean("memcheck", 0, clean).ok and parts.clean("racecheck", 0, no_hazards).ok
    for tool, status, log in (
        ("memcheck", 9, finished + "========= ERROR SUMMARY: 10 errors\n"),
        ("memcheck", 0, finished + "========= ERROR SUMMARY: 10 errors\n"),
        ("memcheck", 0, finished),
        ("memcheck", 0, "========= ERROR SUMMARY: 0 errors\n"),
        ("memcheck", 1, clean),
        ("memcheck", None, clean),
        ("racecheck", 0, finished + "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n"),
        ("racecheck", 0, clean),
    ):
        outcome = parts.clean(tool, status, log)
        assert not outcome.ok and outcome.summary.startswith(tool) and outcome.details


def test_missing_tools_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(parts.importlib.util, "find_spec", lambda name: None)
    outcome = parts.PARTS["tests"].run(parts.Run(tmp_path), 10)
    assert not outcome.ok and "pytest is not installed" in outcome.summary
    monkeypatch.setattr(parts, "sanitizer", lambda: None)
    outcome = parts.sanitize(parts.Run(tmp_path), 10)
    assert not outcome.ok and outcome.summary.startswith("compute-sanitizer is not on the path")


def ends(process: int) -> bool:
    """A signal takes a moment; a program that it does not reach would go on for days."""
    end = time.monotonic() + AN_HOUR
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{process}/stat").read_text().split()[2] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


def test_program_beyond_its_time_is_ended_with_all_it_has_started(monkeypatch, tmp_path):
    log = tmp_path / "log"
    ended = parts.ended_in_time([sys.executable, "-c", "print('said'); raise SystemExit(3)"], A_DAY, log)
    assert ended == (3, "said\n") and log.read_text() == "said\n"
    deaf = "import signal, subprocess, time; signal.signal(signal.SIGINT, signal.SIG_IGN);"
    deaf += "print(subprocess.Popen(['sleep', '1000000']).pid, flush=True); time.sleep(1e6)"
    log.unlink()
    wait = subprocess.Popen.wait

    def is_late(process, timeout=None):
        """As soon as the program is deaf."""
        while timeout is not None and not (log.exists() and log.read_text()):
            time.sleep(0.05)
        if timeout is not None:
            raise subprocess.TimeoutExpired(deaf, timeout)
        return wait(process)

    monkeypatch.setattr(subprocess.Popen, "wait", is_late)
    status, child = parts.ended_in_time([sys.executable, "-c", deaf], A_DAY, log)
    assert status is None
    assert ends(int(child))
