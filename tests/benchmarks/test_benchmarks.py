"""The benchmarks' runner, results, tables and plots, on made-up cases and numbers."""

import dataclasses
import itertools
import json
import subprocess
import sys

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import aligned, catalogue, memory, plots, readme, report, results, run, tables, training
from benchmarks.case import BOTH, COPY, Case, LeftOut, loaded, step
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


SMALL = [case for case in catalogue.CASES if case.pairs <= 6_000]


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


# Results


def row(name="cpu", p50=10.0, pairs=1_000, case=aligned.MAIN, quantity=BOTH, figure="end to end", **rest) -> dict:
    found = dict.fromkeys(results.COLUMNS, "") | {
        **{
            "device": DEVICE,
            "threads": 2,
            "dtype": "float32",
            "unit": "us",
            "commit": "abc",
            "instruction_set": "avx9",
        },
        **{"implementation": name, "case": case, "quantity": quantity, "figure": figure, "shape": f"{pairs:,}"},
        **{"pairs": pairs, "p20": p50 * 0.9, "p50": p50, "p80": p50 * 1.1, "ns_per_pair": p50 * 1e3 / pairs},
    }
    return found | rest


def rows_of_everything() -> list[dict]:
    peers = {"cpu": 1, "eager, clamp form": 30, "torch.compile, clamp form, dynamic": 5, COPY: 0.5}
    found = [
        row(name, factor * pairs / 100, pairs, threads=threads, fraction_of_copy=0.5 / factor, bytes_per_pair=96)
        for threads in (1, 2)
        for pairs in (1_000, 100_000)
        for name, factor in peers.items()
    ]
    for pairs in (840_000, 8_400_000):
        for name, factor in (("cpu", 1), ("eager, torchvision", 60), ("torch.compile, torchvision, dynamic", 2)):
            shape = {"shape": f"8400 x {pairs // 8400}", "case": "row maximum", "quantity": "forward"}
            found += [
                row(name, factor * 100.0, pairs, **shape),
                row(name, factor * 1e6, pairs, figure="counts", **(shape | {"unit": "peak bytes"})),
            ]
    sparse, alone = (training.shape(training.OBJECTS[0], what) for what in (training.WHOLE, training.ALONE))
    for name, whole, loss, peak in (("stock loss", 1000.0, 200.0, 2**21), ("cpu", 900.0, 90.0, 2**20)):
        found += [
            row(name, p50, case=training.NAME, shape=shape, quantity=quantity, unit=unit)
            for p50, shape, quantity, unit in (
                (whole, sparse, training.STEP, "us"),
                (loss, sparse, training.LOSS, "us"),
                (8.0 * peak, sparse, training.STEP, "peak bytes"),
                (float(peak), alone, training.LOSS, "peak bytes"),
            )
        ]
    return [*found, row("mmdet", note="absent: no such package") | {"p50": ""}]


def test_rerunning_replaces_its_own_rows(tmp_path):
    results.merge(tmp_path, [row(), row("eager", 20.0), row(threads=1)])
    results.merge(tmp_path, [row(p50=11.0, commit="def"), row(unit="peak bytes", figure="counts")])
    rows = results.read(tmp_path)
    assert [(each["implementation"], each["p50"], each["commit"]) for each in rows] == [
        ("cpu", "11.0", "def"),
        ("eager", "20.0", "abc"),
        ("cpu", "10.0", "abc"),
        ("cpu", "10.0", "abc"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == [results.CSV]


def test_quantiles():
    assert results.quantiles(list(range(101))) == {"p20": 20, "p50": 50, "p80": 80}
    assert results.quantiles([3.0]) == {"p20": 3, "p50": 3, "p80": 3}


def test_numbers_as_they_are_read():
    assert [report.time_of(us) for us in (0.98, 9.994, 64.2, 999.4, 999.6, 16_400, 3.27e6)] == [
        "0.98 µs",
        "9.99 µs",
        "64.2 µs",
        "999 µs",
        "1.00 ms",
        "16.4 ms",
        "3.27 s",
    ]
    assert [report.size_of(count) for count in (2**20, 3 * 2**30)] == ["1.0 MiB", "3.00 GiB"]


def test_table_of_a_case_in_the_terminal():
    without = {name: value for name, value in row("mmdet").items() if name not in ("p20", "p50", "p80")}
    text = report.shown([row(), row("eager", 25.0), without | {"note": "absent: no"}])
    assert "2.50" in text and "absent: no" in text


def test_two_runs_are_compared():
    """Times of both within the printed quantiles, 9 to 11 here; not what a busy machine measured, not memory."""
    one = [row(), row("eager", 10.0), row(threads=1), row(pairs=7, waited="0.3"), row(unit="peak bytes")]
    other = [row(p50=12.2), row("eager", 12.3), row(threads=1), row(pairs=7), row(unit="peak bytes"), row("mmdet")]
    text = report.agreement(one, other)
    assert text.startswith("2 of 3 times of quiet minutes agree") and text.count("\n") <= 4
    assert "eager" in text and "10.0 µs" in text and "12.3 µs" in text and "1.23" in text
    # The machine was slower by as much for both.
    assert "\n1 of 1 ratios" in text and "\n0 of 1 ratios" in report.agreement(one, [row(), row("eager", 16.0)])
    assert report.agreement(one, one).startswith("3 of 3 times of quiet minutes agree within 20 to 80 %\n1 of 1 ratios")


def test_targets():
    rows = rows_of_everything()
    found = {what: (value, met) for what, _, value, met in report.cpu_targets(rows, 2)}
    assert found["row maximum of 8400 x 1000 against torchvision's box_iou and max"] == ("60.0 x", "yes")
    assert found[f"{aligned.MAIN}, forward + backward, 1,000 pairs, against eager code in the clamp form"][1] == "yes"
    assert found["IoU matrix of 8400 x 100 against torchvision's box_iou"] == ("not measured", "not measured")
    busy = [{**each, "waited": "0.3"} for each in rows]
    assert {met for what, _, _, met in report.cpu_targets(busy, 2) if "memory" not in what} == {
        "not measured",
        "undecided: busy machine",
    }
    slower = [{**each, "p50": 90.0} if each["implementation"] == "eager, torchvision" else each for each in rows]
    assert dict((what, met) for what, *_, met in report.cpu_targets(slower, 2))[
        "row maximum of 8400 x 1000 against torchvision's box_iou and max"
    ] == ("no")


def test_blocks_of_the_documents(tmp_path):
    results.merge(tmp_path / "imaginary", rows_of_everything())
    measured = tables.machines(tmp_path)
    text = "before\n<!-- measured: main -->\nold\n<!-- end of measured -->\nafter\n"
    filled = readme.filled(text, measured)
    assert filled.startswith("before\n<!-- measured: main -->\nImaginary CPU, 2 threads, avx9")
    assert "| eager, clamp form | 300 µs (30.0x) | 30.0 ms (30.0x) |" in filled
    assert "mmdet absent: no such package." in filled and "old" not in filled and filled.endswith("after\n")
    assert readme.filled(filled, measured) == filled
    blocks = {name: block(measured) for name, block in readme.BLOCKS.items() if name != "figures"}
    assert "6.00 ms (60.0x), torchvision" in blocks["operators"] and aligned.MAIN not in blocks["operators"]
    assert "row maximum, 8400 x 1000" in blocks["little"] and aligned.MAIN not in blocks["little"]
    assert "| row maximum, 8400 x 100 | 1.0 MiB | 57.2 MiB | 1.9 MiB |" in blocks["memory"]
    assert "| 1,000 | 9.00 µs to 11.0 µs | 10.00 | 5.0 | 50% |" in blocks["floor"]
    assert "| 1 thread | 2 threads |" in blocks["threads"]
    assert blocks["training"].endswith(
        "| 4 images of 6 objects, stock loss | 1.00 ms | 200 µs | 20.0% | 16.0 MiB | 2.0 MiB |\n"
        "| 4 images of 6 objects, icr_kernels | 900 µs | 90.0 µs | 10.0% | 8.0 MiB | 1.0 MiB |"
    )
    assert "No GPU figure has been measured yet" in blocks["gpus"]
    assert blocks["speed"] == (
        "**30.0 times as fast as eager code**, 5.0 times as fast as `torch.compile` (avx9, 2 threads)"
    )
    assert blocks["peaks"] == "not measured yet"
    assert blocks["gpu_names"] == "**no figure has been measured on a GPU yet, neither time nor memory**"
    assert readme.filled(text, []) == text.replace("old", "Not measured yet.")
    in_a_line = "| a | <!-- measured: speed -->old<!-- end of measured --> | b |"
    assert readme.filled(in_a_line, measured) == in_a_line.replace("old", blocks["speed"])
    pictures = readme.filled(
        "<!-- measured: figures -->\n<!-- end of measured -->", tables.machines(), results.ROOT / "docs"
    )
    assert pictures.count("](../benchmarks/results/") == pictures.count("![") >= 4

    results.merge(tmp_path / "other", [{**each, "device": "Other CPU"} for each in rows_of_everything()])
    of_one = text.replace("main", "main of other")
    assert readme.filled(text, tables.machines(tmp_path)).count(" CPU, 2 threads") == 2
    filled = readme.filled(of_one, tables.machines(tmp_path))
    assert filled.startswith("before\n<!-- measured: main of other -->\nOther CPU, 2 threads")
    assert "Imaginary" not in filled
    with pytest.raises(ValueError, match=r"main of other.*no such folder"):
        readme.filled(of_one, measured)


def test_plots_carry_the_digest_of_their_rows(tmp_path):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    rows = rows_of_everything()
    results.merge(tmp_path, rows)
    made = plots.draw(tmp_path, results.read(tmp_path))
    assert [path.name for path, _ in made] == ["time.png", "copy.png", "host.png", "memory.png", "threads.png"]
    for path, _ in made:
        assert path.stat().st_size > 10_000
        assert image.open(path).text[plots.DIGEST] == plots.digest(results.read(tmp_path))
    assert plots.digest([{**rows[0], "p50": 10.1}, *rows[1:]]) != plots.digest(rows)
    assert plots.draw(tmp_path, []) == []
    assert plots.overview(rows, 2) is None  # it has three panels or none
    assert all(plots.overview(machine.rows, machine.threads) for machine in tables.machines())


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
