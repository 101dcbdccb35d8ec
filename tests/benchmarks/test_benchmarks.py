"""The benchmarks' runner, memory, catalogue and commands, on made-up cases."""

import dataclasses
import itertools
import json
import subprocess
import sys

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import aligned, assignment, catalogue, detection, memory, report, results, run, tables, training, yolo
from benchmarks.case import COPY, Case, LeftOut, loaded, step
from icr_kernels import info
from icr_kernels.backends import BY_NAME

DEVICE = "Imaginary CPU"


class Clock:
    """A machine on which nothing takes long but what says so, however busy the real one is."""

    now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def perf_counter(self) -> float:
        self.sleep(1e-6)
        return self.now


clock = Clock()


@pytest.fixture(autouse=True)
def measured_by_the_clock(monkeypatch):
    monkeypatch.setattr(run, "time", clock)


def absent():
    raise ImportError("no such package\nand more")


def left_out():
    raise LeftOut("too large")


def sleeping(seconds: float):
    def function(rows):
        clock.sleep(seconds)
        return rows + 1

    return function


def made_up(**rest) -> Case:
    """Adding 1 to three numbers."""
    fields = {
        "name": "adding",
        "shape": "3",
        "pairs": 3,
        "inputs": lambda: (torch.zeros(3),),
        "ours": lambda backend: sleeping(0.002),
        "peers": {
            "slow": lambda: sleeping(0.01),
            "wrong": lambda: lambda rows: rows + 2,
            "broken": lambda: lambda rows: rows + torch.zeros(4),
            "absent": absent,
            "large": left_out,
        },
        "truth": lambda inputs: torch.ones(3),
        "agrees": lambda function, inputs, truth: torch.equal(function(*inputs), truth),
        "bytes_per_pair": 8.0,
    }
    return Case(**(fields | rest))


@pytest.fixture
def backend_is_there(monkeypatch):
    """Whether or not the extension was built; and nobody else uses the machine."""
    monkeypatch.setattr(run, "queued", lambda: 0.0)
    cpu = BY_NAME["cpu"]
    monkeypatch.setattr("benchmarks.case.BACKENDS", (dataclasses.replace(cpu, obstacle=lambda device: None),))


def measured(case: Case, budget=0.1, leave_out=lambda name: False) -> dict[tuple[str, str], dict]:
    rows = run.measure(case, budget, leave_out, with_memory=False, device=DEVICE)
    return {(row["implementation"], row["quantity"]): row for row in rows}


def test_a_case_is_measured_with_all_its_peers(backend_is_there):
    rows = {name: row for (name, _), row in measured(made_up()).items()}
    assert list(rows) == ["cpu", "slow", COPY, "wrong", "broken", "absent", "large"]
    assert 2_000 <= rows["cpu"]["p20"] <= rows["cpu"]["p50"] <= rows["cpu"]["p80"]
    assert rows["slow"]["p50"] > 3 * rows["cpu"]["p50"]
    assert rows["cpu"]["ns_per_pair"] == pytest.approx(rows["cpu"]["p50"] * 1e3 / 3, rel=1e-3)
    assert rows["cpu"]["bytes_per_pair"] == 8
    assert 0 < rows["cpu"]["fraction_of_copy"] < 0.5 and rows[COPY]["fraction_of_copy"] == 1
    assert {name: row["note"] for name, row in rows.items() if "p50" not in row} == {
        "wrong": "disagrees with the reference",
        "broken": rows["broken"]["note"],
        "absent": "absent: no such package",
        "large": "left out: too large",
    }
    assert rows["broken"]["note"].startswith("RuntimeError: The size of tensor")
    assert set(rows["cpu"]) | {"note"} == set(results.COLUMNS)


def test_what_is_left_out_is_not_even_loaded(backend_is_there):
    peers = {"eager": lambda: sleeping(0), "torch.compile, eager": lambda: pytest.fail("loaded")}
    rows = measured(made_up(peers=peers), leave_out=lambda name: "compile" in name)
    assert {name for name, _ in rows} == {"cpu", "eager", COPY}


def test_a_training_step_is_a_case(backend_is_there):
    """Two quantities, of which the share of the loss follows; the floor belongs to the first."""

    def part_of(seconds):
        return lambda function, inputs: lambda: clock.sleep(seconds)

    rows = measured(made_up(peers={}, quantities={"training step": part_of(0.01), "loss": part_of(0.002)}))
    whole, loss = rows["cpu", "training step"], rows["cpu", "loss"]
    assert 0.1 < loss["p50"] / whole["p50"] < 0.5
    assert "fraction_of_copy" in whole and "fraction_of_copy" not in loss


def test_implementations_take_turns():
    order = []
    run.seconds_of(
        [lambda: order.append("a") or clock.sleep(0.01), lambda: order.append("b") or clock.sleep(0.01)], 0.1
    )
    changes = sum(one != other for one, other in itertools.pairwise(order))
    assert changes == 2 * run.TURNS - 1


def test_the_first_call_of_a_turn_does_not_count():
    """It finds a cache that the others have filled; but a call that takes the whole turn does."""
    count = 0

    def call():
        nonlocal count
        count += 1
        clock.sleep(0.05 if count == 1 else 0.001)

    ((*times,),) = run.seconds_of([call], 0.5)
    assert max(times) < 0.05 and len(times) < count
    ((*slow,),) = run.seconds_of([lambda: clock.sleep(0.02)], 0.05)
    assert len(slow) == run.TURNS


def test_patience():
    """What takes minutes is not called five times; unless that is what was asked for."""
    for budget, turns in ((1, 1), (100, 5)):
        slow, quick = run.seconds_of([lambda: clock.sleep(20), lambda: clock.sleep(0.1)], budget)
        assert len(slow) == turns and len(quick) >= run.TURNS


@pytest.mark.parametrize(("waits", "busy"), [((1.0, 1.5), True), ((1.0, 1.0), False), ((None, None), False)])
def test_a_busy_machine_is_told(waits, busy, backend_is_there, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "queued", iter(waits).__next__)
    rows = run.measure(made_up(peers={}), 0.02, lambda name: False, with_memory=False, device=DEVICE)
    assert results.is_busy(rows) == ("BUSY" in report.shown(rows)) == busy
    results.merge(tmp_path / "imaginary", rows)
    (machine,) = tables.machines(tmp_path)
    assert ("others used" in machine.title()) == busy


def test_time_in_the_queue():
    seconds = run.queued()
    assert seconds is None or 0 <= seconds <= run.queued() + 1  # a thread that ended takes its own with it


def test_step_starts_from_no_gradient():
    leaf = torch.ones(2, requires_grad=True)
    call = step(lambda rows: (3 * rows).sum(), (leaf,))
    call(), call()
    assert torch.equal(leaf.grad, torch.full((2,), 3.0))


def test_resumed_after_an_interruption(backend_is_there, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "cpu_name", lambda: DEVICE)
    first, second = made_up(peers={}), made_up(peers={}, name="other")
    runner = run.run([(first, 1), (second, 1)], tmp_path, run.Profile(1, 0.01), with_memory=False)
    next(runner)
    runner.close()
    rows = results.read(tmp_path)
    assert {row["case"] for row in rows} == {"adding"}
    quiet, busy = ([each | {"waited": waited} for each in rows] for waited in ("0.01", "0.2"))
    assert run.is_done(first, 1, 1, quiet) and not run.is_done(first, 1, 1, busy)
    assert not run.is_done(first, 1, 2, quiet)  # rounds
    assert not run.is_done(first, 2, 1, rows) and not run.is_done(second, 1, 1, rows)
    monkeypatch.setattr(results, "versions", lambda: {"commit": "another"})
    assert not run.is_done(first, 1, 1, quiet)


def test_rounds(backend_is_there, monkeypatch, tmp_path):
    """The machine gets slower from round to round: all of it is in the quantiles. Others are measured in between."""
    order = []

    def case(name):
        def slower(rows):
            clock.sleep(0.002 * order.count(name))
            return rows + 1

        def inputs():
            order.append(name)
            return (torch.zeros(3),)

        return made_up(name=name, inputs=inputs, ours=lambda backend: slower, peers={})

    found = list(run.run([(case("a"), 1), (case("b"), 1)], tmp_path, run.Profile(3, 0.3), with_memory=False))
    assert order == ["a", "b"] * 3 and [rows[0]["case"] for rows in found] == ["a", "b"]
    for rows in (found[0], results.read(tmp_path)):
        ours = next(row for row in rows if row["implementation"] == "cpu")
        assert int(ours["rounds"]) == 3
        assert 2_000 <= float(ours["p20"]) < 4_000 <= float(ours["p80"])


def test_threads_are_set_and_restored(backend_is_there, monkeypatch, tmp_path):
    own = torch.get_num_threads()
    (rows,) = run.run([(made_up(peers={}), own + 1)], tmp_path, run.Profile(1, 0.01), with_memory=False)
    assert {row["threads"] for row in rows} == {own + 1}
    assert torch.get_num_threads() == own
    scaling, other = made_up(scales=True), made_up()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert [count for _, count in run.jobs([scaling, other], None, True)] == [1, 2, 4, 6, 6]
    assert [count for _, count in run.jobs([scaling, other], None, False)] == [6, 6]
    assert [count for _, count in run.jobs([other], [3, 5], True)] == [3, 5]


def test_the_catalogue():
    names = [str(case) for case in catalogue.CASES]
    assert len(set(names)) == len(names)
    quick, full = catalogue.chosen(), catalogue.chosen(full=True)
    assert 0 < len(quick) < len(full) == len(names)
    assert [case.pairs for case in full if case.name == aligned.MAIN] == list(aligned.SIZES)
    assert catalogue.chosen(["ROW maximum, 8400 x 100,"]) == [case for case in quick if case.shape == "8400 x 100"][1:]
    assert catalogue.chosen(["no such case"]) == []
    for case in full:
        assert {"mmdet", "torch-fast-box-ops"} <= set(case.peers) or "eager, clamp form" not in case.peers


# A step of a YOLO's whole batch takes seconds; one of an image is tested below.
SMALL = [case for case in catalogue.CASES if case.pairs <= 6_000 and case.name != training.YOLO]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_everybody_agrees_and_a_wrong_one_does_not(case):
    inputs = case.inputs()
    truth = case.truth(inputs)
    loaders = {"reference": lambda: case.ours("reference"), **case.peers}
    for name, load in loaders.items():
        function = None if name.startswith("torch.compile") else loaded(load)
        if function is None or isinstance(function, str):
            continue
        assert case.agrees(function, inputs, truth), name

        def wrong(*inputs, function=function):
            found = function(*inputs)
            return tuple(each * 1.01 for each in found) if isinstance(found, tuple) else found * 1.01

        if not truth_is_exact(case):
            assert not case.agrees(wrong, inputs, truth), name


def small_assignment() -> Case:
    image = torch.tensor([0, 0, 0, 1, 2, 2])
    return assignment.case("small", image, 3, 64, 4, is_tiny=False)


def test_everybody_assigns_the_same_and_a_wrong_one_does_not():
    case = small_assignment()
    inputs = case.inputs()
    assert inputs[7].shape == (3, 3, 4) and inputs[8].flatten().tolist() == [1, 1, 1, 1, 0, 0, 1, 1, 0]
    assert torch.equal(inputs[7][inputs[8][..., 0] > 0], inputs[3])
    truth = case.truth(inputs)
    assert (truth[0] >= 0).any()
    for name, load in {"reference": lambda: case.ours("reference"), **case.peers}.items():
        function = loaded(load)
        if isinstance(function, str):
            continue
        assert case.agrees(function, inputs, truth), name
        # Index and score of a point; of those like Ultralytics', scores of all classes and the number in the image.
        for place in (0, 1) if len(function(*inputs)) == 2 else (2, 4):

            def wrong(*inputs, function=function, place=place):
                found = list(function(*inputs))
                found[place] = found[place] + 1
                return found

            assert not case.agrees(wrong, inputs, truth), (name, place)


HEADS = [
    detection.Head(2, 6, 3, bins, dtype)
    for bins, dtype in ((16, torch.float32), (16, torch.bfloat16), (1, torch.float32))
]


@pytest.fixture
def small_images(monkeypatch):
    monkeypatch.setattr(detection, "SIDE", 64)
    monkeypatch.setattr(detection, "POINTS", 84)


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_everybody_has_the_same_criterion_and_a_wrong_one_has_not(head, small_images):
    case = detection.case(head)
    inputs = case.inputs()
    boxes, classes, points, strides, truth, labels, image = inputs[:7]
    assert boxes.shape == (2, 4 * head.bins, 84) and classes.shape == (2, 3, 84)
    assert {boxes.dtype, classes.dtype} == {head.dtype} and boxes.requires_grad and classes.requires_grad
    assert sum(each.numel() for each in inputs[:2]) + 6 * 2 * 84 == head.numbers == case.pairs
    assert len(points) == len(strides) == 84 and image.tolist() == [0] * 6 + [1] * 6
    assert (truth[:, 2:] > truth[:, :2]).all() and truth.min() >= 0 and truth.max() <= 64 and labels.max() < 3
    right = case.truth(inputs)
    assert right[0] > 0 and right[1].shape == boxes.shape[1:] and all(each.norm() > 0 for each in right[1:])
    for name, load in {"reference": lambda: case.ours("reference"), **case.peers}.items():
        function = loaded(load)
        if isinstance(function, str):
            continue
        assert case.agrees(function, inputs, right), name
        assert not case.agrees(lambda *given, function=function: function(*given) * 1.02, inputs, right), name
        assert not case.agrees(lambda *given, function=function: function(*given) + given[1].sum(), inputs, right), name


def test_what_decodes_to_half_a_pixel_is_compared_by_its_classes(small_images):
    """In half precision alone."""

    def of_boxes(*given):
        return given[0].sum() - given[0].sum().detach()

    for head in HEADS[:2]:
        case, function = detection.case(head), detection.ours(head, "reference")
        inputs = case.inputs()
        right = case.truth(inputs)
        is_half = head.dtype == torch.bfloat16
        assert case.agrees(lambda *given, f=function: f(*given) + of_boxes(*given), inputs, right) == is_half


def test_a_criterion_moves_its_logits_and_gradients():
    head = detection.Head(1, 20, 80)
    logits = 8_400 * 4 * torch.tensor([64, 80])
    assert head.gradient_bytes == logits.sum()
    assert head.moved_bytes == logits @ torch.tensor([2, 3]) + 8_400 * (2 * 16 + 3 * (8 + 4))
    assert detection.case(head).bytes_per_pair * head.numbers == pytest.approx(head.moved_bytes)


def test_a_yolo_trains_alike_with_both_criteria():
    inputs = tuple(yolo.batch(1, 160, 4).values())
    models = loaded(lambda: [load(training.YOLO) for load in (training.stock, training.adapted)])
    if isinstance(models, str):
        pytest.skip(models)
    stock, ours = models
    right = stock(*inputs).item()
    assert training.agrees(ours, inputs, right) and not training.agrees(
        lambda *given: 1.01 * stock(*given), inputs, right
    )
    for model in models:
        model.step(*inputs)()
        assert all(each.grad.norm() > 0 for each in list(model.model.parameters())[:1])
        model.loss_alone(*inputs)()


def test_the_crowded_batch():
    (case,) = (case for case in catalogue.CASES if case.shape == assignment.CROWDED)
    counts = torch.bincount(assignment.crowded_images())
    assert (len(counts), counts.max(), counts.sum()) == (128, 4_967, 75_357) and counts.min() > 0
    assert case.pairs == 75_357 * 8_400


def test_what_does_not_fit_is_not_assigned(backend_is_there, monkeypatch):
    """On a CPU, whose process would be ended; a GPU says so itself."""
    cpu = torch.device("cpu")
    memory_of_machine = {"SC_PAGE_SIZE": 2**12, "SC_PHYS_PAGES": 2**18}
    monkeypatch.setattr(assignment.os, "sysconf", memory_of_machine.get)
    assignment.fits(2**30, 14, torch.device("cuda"))
    with pytest.raises(LeftOut, match="would need 15 GB"):
        assignment.fits(2**30, 14, cpu)
    with pytest.raises(LeftOut, match="minutes"):
        assignment.fits(2**30, 1, cpu)
    assignment.fits(2**20, 14, cpu)
    memory_of_machine["SC_PHYS_PAGES"] = 0
    case = dataclasses.replace(small_assignment(), ours=lambda backend: assignment.ours("reference"))
    notes = {name: row.get("note", "") for (name, _), row in measured(case, 0.01).items()}
    assert notes[assignment.REFERENCE].startswith("left out: would need") and not notes["cpu"]


def truth_is_exact(case: Case) -> bool:
    return case.name == "anchor objects"  # indices: a product with 1.01 is no index


def test_memory_counts_what_a_call_holds(monkeypatch):
    if not memory.CLEAR.exists():
        pytest.skip("peak memory is measured on Linux only")

    def holding(rows):
        torch.ones(2**24)  # 64 MiB, which are free again before it returns
        return rows

    peaks = memory.peaks(made_up(), holding)
    assert 60 * 2**20 < peaks["peak bytes"] < 80 * 2**20
    assert peaks["process peak bytes"] > peaks["peak bytes"] + 2**25
    assert memory.peaks(made_up(), lambda rows: rows)["peak bytes"] < 2**22


def test_operators_are_counted_where_a_case_asks_for_it():
    if not memory.CLEAR.exists():
        pytest.skip("peak memory is measured on Linux only")

    def two(rows):
        return rows + 1 - 2

    assert memory.peaks(made_up(operators=True), two)["operators"] == 2
    assert "operators" not in memory.peaks(made_up(), two)


def test_operators_that_are_views_or_wait():
    def counted(function):
        with memory.Counting() as counting:
            function(torch.arange(4.0))
        return [counting.counts[name] for name in report.CALLS]

    assert counted(lambda rows: rows + rows[1:2])[1:] == [1, 0]
    for waiting in (
        lambda rows: rows.sum().item(),
        torch.nonzero,
        torch.unique,
        lambda rows: rows[rows > 1],
        lambda rows: rows.masked_select(rows > 1),
        lambda rows: rows.index_put_((rows > 1,), rows[:2].clone()),
    ):
        assert counted(waiting)[2] == 1
    assert counted(lambda rows: rows[torch.tensor([1, 2])] + torch.where(rows > 1, rows, 0)[:2])[2] == 0


def test_gradients_are_part_of_a_call():
    """Those of the call before are gone when its memory begins to count."""
    if not memory.CLEAR.exists():
        pytest.skip("peak memory is measured on Linux only")
    case = made_up(inputs=lambda: (torch.zeros(2**24, requires_grad=True),), quantities={"both": step})
    assert 60 * 2**20 < memory.peaks(case, torch.sum)["peak bytes"] < 80 * 2**20


def test_memory_of_a_process_of_its_own(monkeypatch):
    if not memory.CLEAR.exists():
        pytest.skip("peak memory is measured on Linux only")

    def ended(command, **options):
        return subprocess.CompletedProcess(command, *ending)

    monkeypatch.setattr(memory.subprocess, "run", ended)
    ending = (0, 'something\n{"peak bytes": 7}\n', "")
    assert memory.measured("case", "cpu") == {"peak bytes": 7}
    ending = (1, "", "Traceback\n  line\nMemoryError: no more\n")
    with pytest.raises(RuntimeError, match="MemoryError: no more"):
        memory.measured("case", "cpu")


# Commands


def test_the_duration_is_said_first(capsys):
    assert command.main(["run", "--full", "--list"]) == 0
    said = capsys.readouterr().out
    assert "measurements on" in said.partition("\n")[0] and "minutes" in said.partition("\n")[0]
    assert command.main(["run", "no such case"]) == 2


def test_plot_without_rows(tmp_path, capsys):
    assert command.main(["plot", str(tmp_path)]) == 2
    assert "No measurements" in capsys.readouterr().out


def test_run_and_its_exit_status(backend_is_there, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(command, "chosen", lambda patterns, full: [made_up(name=patterns[0], peers={})])
    monkeypatch.setattr(command.runner, "QUICK", run.Profile(1, 0.01))
    assert command.main(["run", "x", "--output", str(tmp_path)]) == 0
    assert "written" in capsys.readouterr().out
    assert command.main(["run", "x", "--resume", "--output", str(tmp_path)]) == 0
    assert "0 measurements" in capsys.readouterr().out
    wrong = made_up(ours=lambda backend: lambda rows: rows, peers={})
    monkeypatch.setattr(command, "chosen", lambda patterns, full: [wrong])
    assert command.main(["run", "--output", str(tmp_path)]) == 1
    assert "disagrees with the reference" in capsys.readouterr().out


def test_the_quick_profile_compiles_for_static_shapes_only(backend_is_there, monkeypatch, tmp_path):
    names = {f"torch.compile, {which}" for which in ("static", "dynamic")}
    case = made_up(peers={name: lambda: sleeping(0.001) for name in names})
    monkeypatch.setattr(command, "chosen", lambda patterns, full: [case])
    for name in ("QUICK", "FULL"):
        monkeypatch.setattr(command.runner, name, getattr(run, name)._replace(rounds=1, budget=0.01))

    def measured(*options: str) -> set[str]:
        assert command.main(["run", *options, "--output", str(tmp_path / "".join(options))]) == 0
        return names & {row["implementation"] for row in results.read(tmp_path / "".join(options))}

    assert measured() == {"torch.compile, static"}
    assert measured("--full") == names
    assert measured("--full", "--without", "static") == {"torch.compile, dynamic"}


def test_one_case_in_another_process():
    """The real thing: peak memory of a small case."""
    if not memory.CLEAR.exists():
        pytest.skip("peak memory is measured on Linux only")
    case = next(case for case in catalogue.CASES if case.name == "pairwise iou")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", str(case), "eager, clamp form", "1"],
        cwd=results.ROOT,
        capture_output=True,
        text=True,
    )
    assert set(json.loads(done.stdout)) == {"peak bytes", "process peak bytes"}, done.stderr


@pytest.mark.parametrize(
    "model_name, expected",
    [
        ("AMD EPYC", "AMD EPYC (family 23, model 1)"),
        ("AMD EPYC 7551 32-Core Processor", "AMD EPYC 7551 32-Core Processor"),
    ],
)
def test_results_of_generations_that_a_virtual_machine_hides_are_kept_apart(
    model_name, expected, tmp_path, monkeypatch
):
    processor = f"cpu family\t: 23\nmodel\t\t: 1\nmodel name\t: {model_name}\nstepping\t: 2\n"
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{processor}\nprocessor\t: 1\n{processor}\n")
    monkeypatch.setattr(info, "Path", lambda _: tmp_path / "cpuinfo")
    assert info.cpu_name() == expected
