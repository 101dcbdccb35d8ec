"""The GPU commands, as far as they run without a GPU: what they conclude, keep and say. All numbers are made up."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from benchmarks import aligned, readme, results
from benchmarks.case import BOTH
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import measure, parts, report, sanitizer_driver
from benchmarks.gpu.parts import Outcome

MACHINE = {"device": "Imaginary GPU 1", "commit": "abc", "date": "2000-01-01"}


def row(figure="device", name="cuda", quantity="forward + backward", pairs=1000, unit="us", **rest):
    shape = {"case": aligned.MAIN, "shape": f"{pairs:,}", "pairs": pairs, "dtype": "float32", "threads": 16}
    key = {"figure": figure, "implementation": name, "quantity": quantity, "unit": unit}
    return {"device": MACHINE["device"], **shape, "p20": 9, "p50": 10, "p80": 11, **key, **rest}


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """An imaginary one: a run on it, with ``fakes`` for the parts; it returns the exit status."""

    def run(*arguments: str, **fakes) -> int:
        monkeypatch.setattr(command, "GPU", "")
        for name, fake in fakes.items():
            monkeypatch.setitem(parts.PARTS, name, parts.Part("", fake, 1, 10))
        return command.main([*fakes, "--output", str(tmp_path / "run"), *arguments])

    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(command, "BUILD", tmp_path / "build")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(command, "ROOT", tmp_path)
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
    for arguments in ([], ["first"], ["peers", "--archive", str(tmp_path / "archive.tar.gz")]):
        assert command.main([*arguments, "--output", str(tmp_path)]) == 2
        assert f"No NVIDIA GPU: torch ({torch.__version__}" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_unknown_part():
    with pytest.raises(SystemExit) as ending:
        command.main(["times", "tests", "bench"])
    assert ending.value.code == 2


def test_two_short_runs_are_all_parts_and_take_eleven_minutes_at_most():
    assert list(parts.PARTS) == [*parts.RUNS["first"], *parts.RUNS["second"][1:]]
    expected = {run: sum(parts.PARTS[part].expected for part in names) for run, names in parts.RUNS.items()}
    limits = {run: sum(parts.PARTS[part].limit for part in names) for run, names in parts.RUNS.items()}
    assert sum(expected.values()) <= 11 * 60
    assert max(limits.values()) <= 10 * 60, "the limit of one call"


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


def test_nothing_to_collect(gpu, capsys, tmp_path):
    assert command.main(["collect", str(tmp_path / "nowhere")]) == 2
    assert "found nothing at" in capsys.readouterr().out
    assert command.main(["collect", str(tmp_path)]) == 2
    assert "has no results of a GPU" in capsys.readouterr().out


def test_rehearsal(tmp_path):
    """Every program, file, option and import of every part, but for what takes a GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command_line = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--output", str(tmp_path)]
    rehearsed = subprocess.run(command_line, cwd=parts.ROOT, env=environment, capture_output=True, text=True)
    assert rehearsed.returncode == 0, rehearsed.stdout[-6000:] + rehearsed.stderr
    endings = dict(re.findall(r"^ok +(\S+) \(\d+ s\): (.*)$", rehearsed.stdout, re.MULTILINE))
    assert list(endings) == list(parts.PARTS)
    for part, least in {"times": 60, "gpu-tests": 40, "tests": 2000, "sanitizers": 140, "triton-tests": 40}.items():
        assert int(re.match(r"\d+", endings[part])[0]) >= least, endings[part]
    assert 140 <= int(re.match(r"\d+", endings["sanitizers"])[0]) <= 170


def test_build_is_a_last_resort(monkeypatch, tmp_path):
    """What is installed comes first, then the newest wheel of this Python, then a build; what each said is kept."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    (tmp_path / "dist").mkdir()
    for name in (f"icr_kernels-0.1.0-{tag}-{tag}-linux.whl", "icr_kernels-0.1.0-cp39-cp39-linux.whl"):
        with zipfile.ZipFile(tmp_path / "dist" / name, "w") as wheel:
            wheel.writestr("icr_kernels/where.txt", name)
    monkeypatch.setattr(parts, "ROOT", tmp_path)
    programs = []

    def program(self, name, arguments, limit, **environment):
        programs.append((name, self.environment.get("PYTHONPATH", "").partition(os.pathsep)[0]))
        return (1, "not here") if name == "import" else (0, json.dumps(MACHINE))

    monkeypatch.setattr(parts.Run, "program", program)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    run = parts.Run(tmp_path / "run")
    outcome = parts.install(run, 100)
    site = str(tmp_path / "run" / "site")
    assert programs == [("import", ""), ("import", site), ("build", site), ("import", site)]
    assert not outcome.ok and [line.partition(":")[0] for line in outcome.details] == [
        "as installed",
        f"from icr_kernels-0.1.0-{tag}-{tag}-linux.whl",
        "built here",
    ]
    assert not (tmp_path / "run" / "site").exists(), "what could not be imported is out of the way of what is built"


def test_rehearsal_knows_a_wheel_that_is_out_of_date(monkeypatch, tmp_path):
    """Or the kernels of yesterday would be measured as those of today."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    (tmp_path / "dist").mkdir()
    wheel = tmp_path / "dist" / f"icr_kernels-0.1.0-{tag}-{tag}-linux.whl"
    zipfile.ZipFile(wheel, "w").close()
    os.utime(wheel, (1e9, 1e9))
    (tmp_path / "setup.py").write_text("")
    monkeypatch.setattr(parts, "ROOT", tmp_path)
    monkeypatch.setattr(
        parts.Run, "program", lambda self, *rest, **more: (int(self.environment["PYTHONPATH"] == ""), "")
    )
    monkeypatch.setenv("PYTHONPATH", "")
    with pytest.raises(RuntimeError, match=rf"dist/{wheel.name} is older than setup.py: make wheel"):
        parts.install(parts.Run(tmp_path / "run", rehearses=True), 100)
    os.utime(wheel)
    os.utime(tmp_path / "setup.py", (1e9, 1e9))
    assert parts.install(parts.Run(tmp_path / "run", rehearses=True), 100).ok


def test_slug():
    assert results.slug("NVIDIA H200") == "nvidia-h200"
    assert results.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


def test_measured_again_a_row_takes_the_place_of_its_predecessor(tmp_path):
    results.merge(tmp_path, [row(p50=1), row(pairs=10_000, p50=2), row(name="triton", p50=3)])
    results.merge(tmp_path, [row(pairs=10_000, p50="", note="disagrees with the reference"), row(figure="host", p50=4)])
    rows = results.read(tmp_path)
    assert [each["p50"] for each in rows] == ["1", "", "3", "4"]
    assert rows[1]["note"] == "disagrees with the reference"
    assert tuple(rows[0]) == results.COLUMNS


def test_targets():
    """Each is a row, measured or not; a row without a number has not been measured."""
    unmeasured = report.targets([row(p50="", note="out of order")])
    assert {met for *_, met in unmeasured} == {"not measured"}
    ten_million = 10_000_000
    rows = [
        row(quantity="forward with gradient", pairs=ten_million, fraction_of_copy="0.93"),
        row(pairs=ten_million, p50=100),
        row(name="triton", pairs=ten_million, p50=140),
        row(name="torch.compile, clamp form, dynamic", pairs=ten_million, p50=130),
        row(name="torch.compile, reference, dynamic", pairs=ten_million, p50=110),
        row("end to end", p50=20),
        row("end to end", name="eager, clamp form", p50=600),
        row("end to end", name="eager, torchvision", p50=480),
        row("host", quantity="forward with gradient", p50=15.5),
        row(quantity="forward", pairs=8_400_000, case="pairwise iou", fraction_of_copy="0.84"),
        row(quantity="forward", pairs=2_000_000_000, case="row maximum", p50=1900),
    ]
    measured = [(value, met) for _, _, value, met in report.targets(rows) if met != "not measured"]
    assert measured == [
        ("93.0%", "yes"),
        ("30.0 x", "yes"),
        ("24.0 x", "no"),
        ("1.10 x", "no"),  # against the faster of the two
        ("15.5 µs", "no"),
        ("1.40 x", "no"),
        ("84.0%", "no"),
        ("1.05e+12", "yes"),
    ]
    assert len(report.targets(rows)) == len(unmeasured)


def test_report_and_plots_of_measurements(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [
        row(figure, name, "forward + backward", pairs, bytes_per_pair=96, fraction_of_copy=0.5)
        for figure in ("device", "host", "end to end")
        for name in ("cuda", "eager, clamp form", "copy")
        for pairs in (1000, 10_000)
    ]
    counts = [
        row("counts", "cuda", "backward", measure.COUNTED_SIZE, unit, p50=1) for unit in ("kernels", "peak bytes")
    ]
    results.merge(tmp_path, [*rows, *counts, row(name="eager, torchvision", p50="", note="it waits")])
    text = report.write(tmp_path).read_text()
    for line in ("| cuda | 10.0 µs (50%) |", "it waits", "| backward | kernels | peak bytes |"):
        assert line in text
    for plot in ("time.png", "copy.png", "host.png"):
        assert f"({plot})" in text and (tmp_path / plot).stat().st_size > 10_000


JUNIT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_good"/>
<testcase classname="tests.test_a" name="test_left_out"><skipped message="no"/></testcase>
<testcase classname="tests.test_a" name="test_bad"><failure message="AssertionError: 1 is not 2&#10;more"/></testcase>
<testcase classname="tests.test_a" name="test_torn"><failure message="x"/><error message="y"/></testcase>
</testsuite></testsuites>"""


def test_what_pytest_reports(tmp_path):
    file = tmp_path / "report.xml"
    assert not parts.judged(file, 0).ok
    file.write_text(JUNIT)
    outcome = parts.judged(file, 1)
    assert not outcome.ok and outcome.summary.startswith("1 passed, 2 failed, 1 skipped")
    assert outcome.details[0] == "tests.test_a::test_bad: AssertionError: 1 is not 2"
    file.write_text('<testsuites><testcase classname="a" name="b"/></testsuites>')
    assert parts.judged(file, 0) == Outcome(True, "1 passed, 0 failed, 0 skipped")
    interrupted = parts.judged(file, None)
    assert not interrupted.ok and "interrupted" in interrupted.summary


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


def test_program_beyond_its_time_is_ended_with_all_it_has_started(monkeypatch, tmp_path):
    monkeypatch.setattr(parts, "GRACE", 1.0)
    log = tmp_path / "log"
    assert parts.ended_in_time([sys.executable, "-c", "print('said'); raise SystemExit(3)"], 60, log) == 3
    assert log.read_text() == "said\n"
    deaf = "import signal, subprocess, time; signal.signal(signal.SIGINT, signal.SIG_IGN);"
    deaf += "print(subprocess.Popen(['sleep', '1000']).pid, flush=True); time.sleep(1000)"
    assert parts.ended_in_time([sys.executable, "-c", deaf], 4, log) is None
    child = Path(f"/proc/{log.read_text().split()[0]}/stat")
    assert not child.exists() or child.read_text().split()[2] == "Z"


@pytest.fixture
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: MACHINE["device"])
    caches = (measure.found, measure.agrees, measure.truth, measure._inputs, measure.names)
    yield
    for cache in caches:
        cache.cache_clear()


def test_implementation_that_is_wrong_or_absent_has_no_time(monkeypatch, on_the_cpu):
    right = aligned.Mean.by_hand(aligned.clamp_form("ciou"))

    def wrong(pred, target, anchors):
        return right(pred, target, anchors) * 1.001

    def absent():
        raise ImportError("not installed")

    peers = {"right": lambda: right, "wrong": lambda: wrong, "missing": absent}
    case = dataclasses.replace(aligned.main_case(1_000), peers=peers)
    monkeypatch.setattr(aligned.Case, "inputs_on", lambda self, device: self.inputs())
    for name, note in (
        ("right", None),
        ("wrong", "disagrees with the reference"),
        ("missing", "RuntimeError: absent: not installed"),
    ):
        job = ("host", lambda *what: [measure.row("host", what[0], what[2], what[1], "us", p50=1)], case, name, BOTH)
        (found,) = measure.measured(job)
        assert found.get("note") == note
        assert ("p50" in found) == (note is None)


def test_all_jobs_are_named(on_the_cpu):
    """This package's come first, what has to be compiled last, and nothing is measured twice."""
    jobs = measure.jobs()
    keys = [(figure, str(case), name, quantity) for figure, _, case, name, quantity in jobs]
    assert len(set(keys)) == len(keys)
    names = [name for _, _, name, _ in keys]
    assert set(names) >= {"cuda", "triton", "eager, torchvision", "mmdet", "torch-fast-box-ops"}
    assert set(names[: names.index("eager, clamp form")]) == {"cuda", "triton"}
    first_compiled = next(place for place, name in enumerate(names) if name.startswith("torch.compile"))
    assert all(name.startswith("torch.compile") for name in names[first_compiled:])
    on_device = {(case, name) for figure, case, name, _ in keys if figure == "device"}
    for case in ("pairwise iou, 8400 x 1000, float32", "row maximum, 1000000 x 2000, float32"):
        assert {(case, "cuda"), (case, "triton")} <= on_device


def test_chosen_jobs(on_the_cpu, capsys, tmp_path):
    arguments = ["--output", str(tmp_path), "--limit", "1", "--dry-run"]
    assert measure.main([*arguments, "--figures", "device", "host", "--only", "^(cuda|triton)$"]) == 0
    *jobs, total = capsys.readouterr().out.splitlines()
    assert total == f"{len(jobs)} measurements" and len(jobs) > 60
    assert {re.match(r"(\w+): .*: (\w+), ", job).groups() for job in jobs} == {
        (figure, name) for figure in ("device", "host") for name in ("cuda", "triton")
    }
    assert measure.main([*arguments, "--only", "nobody"]) == 1


def test_driver_of_the_sanitizers_runs(on_the_cpu):
    """Its combinations are in order: on the CPU, those of few pairs."""
    chosen = list(sanitizer_driver.calls())
    assert {each[1] for each in chosen} == set(sanitizer_driver.SIZES)
    for combination in [each for each in chosen if each[1] <= 257][::3]:
        sanitizer_driver.call("cpu", *combination)
    of_sets = list(sanitizer_driver.calls_over_sets())
    assert len({each[3:] for each in of_sets}) == len(sanitizer_driver.DTYPES) * len(sanitizer_driver.LAYOUTS)
    assert 140 <= len(chosen) + len(of_sets) <= 170
