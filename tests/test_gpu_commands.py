"""The GPU commands, as far as they run without a GPU: what they conclude, keep and say. All numbers are made up."""

import dataclasses
import sys

import pytest
import torch

from benchmarks import aligned, results
from benchmarks.case import BOTH
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import measure, parts, report, sanitizer_driver
from benchmarks.results import Outcome

MACHINE = {"device": "Imaginary GPU 1", "commit": "abc", "date": "2000-01-01"}


def row(figure="device", name="cuda", quantity="forward + backward", pairs=1000, unit="us", **rest):
    shape = {"case": aligned.MAIN, "shape": f"{pairs:,}", "pairs": pairs, "dtype": "float32", "threads": 16}
    key = {"figure": figure, "implementation": name, "quantity": quantity, "unit": unit}
    return {"device": MACHINE["device"], **shape, "p20": 9, "p50": 10, "p80": 11, **key, **rest}


def ran(monkeypatch, tmp_path, **fakes) -> int:
    """A run of all parts on an imaginary GPU, with ``fakes`` for the parts."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(results, "machine", lambda: MACHINE)
    monkeypatch.setattr(parts, "PARTS", fakes)
    return command.main(["--output", str(tmp_path)])


def test_without_a_gpu_it_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments in ([], ["test"], ["bench", "--output", str(tmp_path)]):
        assert command.main(arguments) == 2
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith("No NVIDIA GPU: ")
    assert not list(tmp_path.iterdir())


def test_unknown_part():
    with pytest.raises(SystemExit) as ending:
        command.main(["tests"])
    assert ending.value.code == 2


def test_part_that_fails_stops_no_other(monkeypatch, capsys, tmp_path):
    def broken(folder, limit):
        raise OSError("no such thing")

    def fine(folder, limit):
        results.merge(folder, [row()])
        return Outcome(True, "all is well")

    assert ran(monkeypatch, tmp_path, test=fine, sanitize=broken, bench=fine) == 1
    assert {part: outcome.ok for part, outcome in results.outcomes(tmp_path).items()} == {
        "test": True,
        "sanitize": False,
        "bench": True,
    }
    said = capsys.readouterr().out
    assert "FAILED sanitize" in said and "OSError: no such thing" in said
    text = (tmp_path / "report.md").read_text()
    assert "sanitize: **FAILED**" in text and "no such thing" in text
    assert ran(monkeypatch, tmp_path, test=fine, sanitize=fine, bench=fine) == 0
    assert "FAILED" not in (tmp_path / "report.md").read_text()


def test_report_of_the_parts_that_there_are(tmp_path, capsys):
    assert command.main(["report", "--output", str(tmp_path)]) == 2
    Outcome(False, "2 passed, 1 failed", ["tests.test_x::test_y: wrong"], 3.0, MACHINE).save(tmp_path, "test")
    assert command.main(["report", "--output", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# Imaginary GPU 1\n")
    for line in ("2 passed, 1 failed", "- sanitize: not run", "- bench: not run", "tests.test_x::test_y: wrong"):
        assert line in text
    assert "Speed targets" not in text


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
    unmeasured = report.targets(results.Table([row(p50="", note="out of order")], aligned.MAIN))
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
    ]
    table = results.Table(rows, aligned.MAIN)
    measured = [(value, met) for _, _, value, met in report.targets(table) if met != "not measured"]
    assert measured == [
        ("93.0%", "yes"),
        ("30.0 x", "yes"),
        ("24.0 x", "no"),
        ("1.10 x", "no"),  # against the faster of the two
        ("15.5 µs", "no"),
        ("1.40 x", "no"),
    ]
    assert len(report.targets(table)) == len(unmeasured)


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
    assert not parts.judged(file, 0, "tests").ok
    file.write_text(JUNIT)
    outcome = parts.judged(file, 1, "tests")
    assert not outcome.ok and outcome.summary.startswith("tests: 1 passed, 2 failed, 1 skipped")
    assert outcome.details[0] == "tests.test_a::test_bad: AssertionError: 1 is not 2"
    file.write_text('<testsuites><testcase classname="a" name="b"/></testsuites>')
    assert parts.judged(file, 0, "tests") == Outcome(True, "tests: 1 passed, 0 failed, 0 skipped")
    interrupted = parts.judged(file, None, "tests")
    assert not interrupted.ok and "interrupted" in interrupted.summary


def test_what_a_sanitizer_reports():
    finished = f"{sanitizer_driver.FINISHED}: 3 combinations, backends cuda\n"
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
    outcome = parts.test(tmp_path, 10)
    assert not outcome.ok and "pytest is not installed" in outcome.summary
    monkeypatch.setattr(parts, "sanitizer", lambda: None)
    outcome = parts.sanitize(tmp_path, 10)
    assert not outcome.ok and outcome.summary.startswith("compute-sanitizer is not on the path")


def test_command_beyond_its_time_is_interrupted():
    assert parts.run([sys.executable, "-c", "raise SystemExit(3)"], 60) == 3
    assert parts.run([sys.executable, "-c", "import time; time.sleep(100)"], 1, stderr=-3) is None


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
    """The targets' rows come first, the other cases last, and nothing is measured twice."""
    jobs = list(measure.jobs())
    keys = [(figure, str(case), name, quantity) for figure, _, case, name, quantity in jobs]
    assert len(set(keys)) == len(keys)
    assert jobs[0][2].name == aligned.MAIN and jobs[-1][2].name == "DETR matching cost"
    assert {name for _, _, name, _ in keys} >= {"cuda", "triton", "eager, torchvision", "mmdet", "torch-fast-box-ops"}


def test_driver_of_the_sanitizers_runs(monkeypatch, on_the_cpu):
    """Its combinations are in order: on the CPU, those of few pairs."""
    monkeypatch.setattr(sanitizer_driver.icr, "available_backends", lambda: ["triton"])
    chosen = [each for each in sanitizer_driver.calls() if each[2] <= 257]
    assert {each[0] for each in chosen} == {"cuda", "triton"} and len(chosen) > 300
    for _, *rest in chosen[::3]:
        sanitizer_driver.call("cpu", *rest)
