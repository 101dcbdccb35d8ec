"""The benchmarks' results, tables, plots and blocks of documents, on made-up numbers."""

import pytest

from benchmarks import aligned, assignment, detection, plots, readme, report, results, tables, training
from benchmarks.case import BOTH, COPY, DROP_IN, FORWARD

DEVICE = "Imaginary CPU"


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
    sparse, alone = (training.SPARSE.shape(what) for what in (training.WHOLE, training.ALONE))
    for name, whole, loss, peak in (("stock loss", 1000.0, 200.0, 2**21), ("cpu", 900.0, 90.0, 2**20)):
        found += [
            row(name, p50, case=training.RT_DETR, shape=shape, quantity=quantity, unit=unit)
            for p50, shape, quantity, unit in (
                (whole, sparse, training.STEP, "us"),
                (loss, sparse, training.LOSS, "us"),
                (8.0 * peak, sparse, training.STEP, "peak bytes"),
                (float(peak), alone, training.LOSS, "peak bytes"),
            )
        ]
    for boxes in (100, 300):
        for name, factor in (("cpu", 1), (DROP_IN, 3), (assignment.STOCK, 100), (assignment.BY_IMAGE, 90)):
            of = {
                "case": assignment.NAME,
                "shape": assignment.shape(16, boxes, 640),
                "pairs": assignment.pairs(16, boxes, 640),
                "quantity": FORWARD,
            }
            found += [
                row(name, 100.0 * factor * boxes, **of),
                row(name, 2.0**20 * factor, figure="counts", unit="peak bytes", **of),
                row(name, 10.0 * factor, figure="counts", unit="operators", **of),
            ]
    crowded = {"case": assignment.NAME, "shape": assignment.CROWDED, "quantity": FORWARD}
    found += [row(**crowded), row(assignment.STOCK, note="left out: would need 86 GB", **crowded) | {"p50": ""}]
    for classes in detection.CLASSES:
        head = detection.USUAL._replace(classes=classes)
        for name, factor in (("cpu", 1), (DROP_IN, 2), (assignment.STOCK, 20), (COPY, 0.5)):
            of = {"case": detection.NAME, "shape": str(head), "pairs": head.numbers, "quantity": BOTH}
            found.append(row(name, 1e3 * factor * classes, **of))
            for unit, p50 in (("peak bytes", 2.0**20), ("operators", 30), ("views", 10), ("synchronisations", 2)):
                if name != COPY:
                    found.append(row(name, p50 * factor, figure="counts", unit=unit, **of))
            found.append(row(name, 10.0, **(of | {"dtype": "bfloat16"})))
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
        "| RT-DETR, 4 images of 6 objects, stock loss | 1.00 ms | 200 µs | 20.0% | 16.0 MiB | 2.0 MiB |\n"
        "| RT-DETR, 4 images of 6 objects, icr_kernels | 900 µs | 90.0 µs | 10.0% | 8.0 MiB | 1.0 MiB |"
    )
    assert blocks["assignments"].endswith(
        "| 16 images of 300 boxes, 640 px | 30.0 ms, 1.0 MiB, 10 | 90.0 ms (3.0x), 3.0 MiB, 30 "
        "| 3.00 s (100.0x), 100.0 MiB, 1,000 | 2.70 s (90.0x), 90.0 MiB, 900 |  |\n"
        f"| {assignment.CROWDED} | 10.0 µs |  | would need 86 GB |  |  |"
    )
    assert (
        "| 16 images of 20 boxes, 80 classes | 80.0 ms, 1.0 MiB, 20, 2 | 160 ms (2.0x), 2.0 MiB, 40, 4 "
        "| 1.60 s (20.0x), 20.0 MiB, 400, 40 |  | 40.0 ms (0.50x) |\n"
        "| 16 images of 20 boxes, 80 classes, bfloat16 | 10.0 µs | 10.0 µs | 10.0 µs |  | 10.0 µs |\n"
    ) in blocks["criteria"]
    assert not any(name in blocks["operators"] for name in (assignment.NAME, detection.NAME))
    assert "No GPU figure has been measured yet" in blocks["gpus"]
    assert blocks["speed"] == (
        "**30.0 times as fast as eager code**, 5.0 times as fast as `torch.compile` (avx9, 2 threads)"
    )
    assert blocks["peaks"] == "not measured yet"
    assert blocks["assigned"] == (
        "**30.0 ms and 1.0 MiB instead of 2.70 s and 90.0 MiB**, 90 times as fast as Ultralytics, image by image "
        "(avx9, 2 threads)"
    )
    assert blocks["criterion"] == (
        "**80.0 ms and 1.0 MiB instead of 1.60 s and 20.0 MiB**, 20 times as fast as Ultralytics (avx9, 2 threads)"
    )
    busy = [machine._replace(rows=[{**each, "waited": "0.3"} for each in machine.rows]) for machine in measured]
    assert readme.BLOCKS["speed"](busy) == readme.BLOCKS["assigned"](busy) == "not measured yet"
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
    assert [path.name for path, _ in made] == [
        "time.png",
        "copy.png",
        "host.png",
        "memory.png",
        "assignment.png",
        "criterion.png",
        "threads.png",
    ]
    for path, _ in made:
        assert path.stat().st_size > 10_000
        assert image.open(path).text[plots.DIGEST] == plots.digest(results.read(tmp_path))
    assert plots.digest([{**rows[0], "p50": 10.1}, *rows[1:]]) != plots.digest(rows)
    assert plots.draw(tmp_path, []) == []
    assert plots.overview(rows, 2) is None  # it has three panels or none
    shown = [machine for machine in tables.machines() if (machine.folder / "overview.png").exists()]
    assert shown and all(plots.overview(machine.rows, machine.threads) for machine in shown)
