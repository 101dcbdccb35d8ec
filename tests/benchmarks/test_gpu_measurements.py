"""What the GPU command measures, in which order, what counts as measured, and what the report says of it."""

import dataclasses
import random
import re

import pytest
import torch

from benchmarks import aligned, assignment, catalogue, detection, results
from benchmarks.case import BOTH
from benchmarks.gpu import measure, parts, report, sanitizer_driver
from imaginary_gpu import MACHINE, row


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
        row(quantity="forward with gradient", pairs=ten_million, fraction_of_copy="0.96", p50=98),
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
        ("96.0%", "yes"),
        ("1.02 x", "yes"),
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


def test_report_of_the_assignment():
    shape, name = measure.ASSIGNMENTS[1], assignment.NAME
    of = {"case": name, "shape": shape, "quantity": "forward", "pairs": 7}
    rows = [row(p50=2500, **of), row("counts", unit="peak bytes", p50=2**20, **of)]
    text = "\n".join(report.whole_calls(rows, name, report.PREDICTED_ASSIGNMENTS))
    assert f"| {shape}, CUDA, **predicted** for an H100 | 2 ms |  | 20.5 MiB | 4 | 0 |" in text
    assert f"| {shape}, icr_kernels, CUDA | 2.50 ms |  | 1.0 MiB |  |  |" in text
    assert report.whole_calls([row()], name, report.PREDICTED_ASSIGNMENTS) == []


def test_report_of_the_criterion():
    """Peaks of half precision are those of its own shape."""
    head, name = detection.USUAL, detection.NAME
    of = {"case": name, "shape": str(head), "quantity": BOTH, "pairs": head.numbers, "dtype": "bfloat16"}
    rows = [row("end to end", p50=2500, **of), row("counts", unit="kernels", p50=15, **of)]
    text = "\n".join(report.whole_calls(rows, name, report.PREDICTED_CRITERIA))
    points = 16 * 8_400
    for dtype, size in (("", 4), (", bfloat16", 2)):
        peak = points * (size * (80 + 64) + 12) / 2**20
        assert re.search(rf"{re.escape(str(head))}{dtype}, CUDA, \*\*predicted.*\| {peak:.1f} MiB \| 15 \| 0 \|", text)
    assert f"| {head}, bfloat16, icr_kernels, CUDA |  | 2.50 ms |  | 15 |  |" in text


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

    def wrong(pred, target, anchor_objects):
        return right(pred, target, anchor_objects) * 1.001

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
    first_triton = names.index("triton")
    assert set(names[:first_triton]) == {"cuda"}
    assert set(names[first_triton : names.index("eager, clamp form")]) == {"triton"}
    first_compiled = next(place for place, name in enumerate(names) if name.startswith("torch.compile"))
    assert all(name.startswith("torch.compile") for name in names[first_compiled:])
    for shape in measure.ASSIGNMENTS:
        of_shape = {key[0::2] for key in keys if key[1] == f"{assignment.NAME}, {shape}, float32"}
        assert of_shape >= {("device", "cuda"), ("end to end", assignment.STOCK), ("counts", assignment.BY_IMAGE)}
    for head in measure.CRITERIA:
        of_head = {key[0::2] for key in keys if key[1] == str(detection.case(head))}
        assert of_head >= {("device", "cuda"), ("end to end", assignment.STOCK), ("counts", "triton")}
    of_cuda = [key[:2] for key in keys if key[2] == "cuda"]
    first_others = next(place for place, job in enumerate(jobs) if not measure.is_target(job[0], job[2], job[4]))
    assert first_others < names.index("triton")
    for figure, case in (
        ("device", f"{aligned.MAIN}, 10,000,000, float32"),
        ("device", "pairwise iou, 8400 x 1000, float32"),
        ("device", "row maximum, 1000000 x 2000, float32"),
        ("host", f"{aligned.MAIN}, 1,000, float32"),
    ):
        assert of_cuda.index((figure, case)) < first_others
    on_device = {(case, name) for figure, case, name, _ in keys if figure == "device"}
    for case in ("pairwise iou, 8400 x 1000, float32", "row maximum, 1000000 x 2000, float32"):
        assert {(case, "cuda"), (case, "triton")} <= on_device


def test_copies_of_inputs_are_the_same_in_other_memory(monkeypatch, on_the_cpu):
    """The images of boxes stay in their order: it is part of the case."""
    case = next(case for case in catalogue.CASES if case.name == "anchor objects")
    monkeypatch.setattr(aligned.Case, "inputs_on", lambda self, device: self.inputs())
    first, second, third = measure.copies_of(case, 3)
    for one, other in zip(first * 2, second + third, strict=True):
        assert torch.equal(one, other) and one.data_ptr() != other.data_ptr()


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
    for number, rows, columns, dtype, layout in [each for each in of_sets if max(each[1:3]) <= 257]:
        truth = sanitizer_driver.place(aligned.boxes(rows)[1].to(dtype), layout)
        found = sanitizer_driver.detection_results("cpu", random.Random(number), truth, 2, columns, layout)
        assert all(each.isfinite().all() for each in found)
    assert len({each[3:] for each in of_sets}) == len(sanitizer_driver.DTYPES) * len(sanitizer_driver.LAYOUTS)
    assert 140 <= len(chosen) + len(of_sets) <= 170


def test_measurements_behind_a_loss(monkeypatch, on_the_cpu, capsys, tmp_path):
    """The program ends where the device is lost, and leaves out what it is told to."""
    made = []

    def measured(job):
        made.append(job[3])
        return [
            measure.row(job[0], job[2], job[4], job[3], "us", **({"note": "bad"} if len(made) == 2 else {"p50": 1}))
        ]

    monkeypatch.setattr(measure, "measured", measured)
    monkeypatch.setattr(measure, "is_lost", lambda: True)
    arguments = ["--output", str(tmp_path), "--limit", "86400", "--figures", "host", "--only", "^(cuda|triton)$"]
    assert measure.main(arguments) == 1
    *_, last = capsys.readouterr().out.splitlines()
    assert last == f"{parts.LOST} after 2 of 12 measurements, in {made[1]}"
    assert measure.main([*arguments, "--skip", "2", "--without", "cuda"]) == 0
    assert set(made[2:]) == {"triton"} and len(results.read(tmp_path)) == 2 + len(made[2:])
