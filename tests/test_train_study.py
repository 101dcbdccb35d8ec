"""The training study: its numbers by hand, its statistics against SciPy's, and its short form from the command line."""

import os
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

from icr_kernels import train_study  # noqa: E402
from icr_kernels.paired_data import PairedData, PairedImage  # noqa: E402
from icr_kernels.scenes import CAR, NAMES, PLATE  # noqa: E402
from icr_kernels.scenes.viewer import Detections  # noqa: E402
from icr_kernels.train_study import report  # noqa: E402
from icr_kernels.train_study.__main__ import main  # noqa: E402
from icr_kernels.train_study.evaluation import evaluated  # noqa: E402

ROOT = Path(__file__).parents[1]
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
        [found((CAR_BOX, 0.9, CAR), (PLATE_BOX, 0.8, PLATE)), found((CAR_BOX, 0.9, CAR), (guess, 0.5, PLATE))],
    )
    # Recall 0.5 at precision 1: 51 of COCO's 101 points of recall.
    assert numbers["plate_ap50"] == numbers["plate_ap"] == pytest.approx(51 / 101)
    assert numbers["car_ap"] == pytest.approx(1) and np.isnan(numbers["truck_ap"])
    assert numbers["ap"] == pytest.approx((1 + 51 / 101) / 2)
    assert numbers["ap_small"] == numbers["ap_tiny"] == pytest.approx(51 / 101)  # the cars are large
    assert numbers["ar_small"] == pytest.approx(0.5)
    assert numbers["plates_detected"] == 2
    assert numbers["plates_outside"] == 0 and numbers["plates_inside_mean"] == pytest.approx(0.75)


def test_overlap_counts_at_its_thresholds():
    """An overlap of 0.8 is a hit at seven of the ten thresholds."""
    wide = [*PLATE_BOX[:2], PLATE_BOX[0] + 25.0, PLATE_BOX[3]]
    numbers = evaluated(PairedData(NAMES, [image(CAR_BOX, PLATE_BOX)]), [found((wide, 0.9, PLATE))])
    assert numbers["plate_ap50"] == pytest.approx(1) and numbers["plate_ap"] == pytest.approx(0.7)


def test_plates_outside():
    """Labelled vehicles count, not detected ones; weak detections and other classes do not."""
    away = [0.0, 80.0, 20.0, 90.0]
    detections = found((PLATE_BOX, 0.9, PLATE), (away, 0.9, PLATE), (away, 0.2, PLATE), (away, 0.9, CAR))
    numbers = evaluated(PairedData(NAMES, [image(CAR_BOX, PLATE_BOX)]), [detections])
    assert numbers["plates_detected"] == 2 and numbers["plates_outside"] == 0.5


def test_nothing_detected():
    numbers = evaluated(PairedData(NAMES, [image(CAR_BOX, PLATE_BOX)]), [found()])
    assert numbers["ap"] == numbers["plate_ap50"] == 0 and np.isnan(numbers["plates_outside"])


def test_bootstrap_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    differences = [0.031, -0.014, 0.022, 0.0505, 0.0117, 0.0409, -0.0203]
    theirs = stats.bootstrap(
        (differences,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert report.paired_bootstrap(differences) == pytest.approx(tuple(theirs), abs=0.0015)
    assert report.paired_bootstrap([0.5] * 5) == (0.5, 0.5)


def row(arm: str, seed: int, value: float) -> dict[str, str]:
    run = train_study.Run("yolo11n", arm, 0.0 if arm == "off" else 0.5, "clean", 10, seed, 1, 96, 1.0, 8)
    return {name: str(each) for name, each in run._asdict().items()} | dict.fromkeys(report.METRICS, str(value))


def test_differences_are_of_the_same_seed():
    rows = [row("off", 0, 0.10), row("containment", 1, 0.30), row("containment", 0, 0.15), row("off", 1, 0.20)]
    rows.append(row("containment", 2, 0.9))  # without its pair
    ((_, values),) = report.comparisons(rows).items()
    change = report.difference(values, ("containment", 0.5), "plate_ap50")
    assert change.mean == pytest.approx(0.075) and (change.better, change.seeds) == (2, 2)
    assert report.difference(values, ("containment", 0.5), "plates_outside").better == 0  # there less is better
    text = report.tables(rows)
    assert "2 to 3 seeds" in text and "| off | 15.0 ± 7.1 |" in text
    assert "| containment, weight 0.5 | +7.5 [+5.0, +10.0] 2/2 |" in text
    text = report.tables([rows[0], rows[2]])
    assert "1 seed," in text and "| containment, weight 0.5 | +5.0 1/1 |" in text  # no interval of one


def test_the_document_is_its_csv():
    document = (ROOT / "docs/evidence.md").read_text()
    rows = train_study.read(ROOT / "docs/evidence" / train_study.RESULTS)
    assert rows and document == report.filled(document, rows), "run `python -m icr_kernels.train_study report`"


def test_profiles_pair_every_arm():
    """No arm is left out, and every one has the baseline of its seeds."""
    for name, profile in train_study.PROFILES.items():
        runs = profile.runs()
        assert {run.seed for run in runs} == set(range(profile.seeds)), name
        for run in runs:
            assert run._replace(arm="off", weight=0.0) in runs
    assert len({run.seed for run in train_study.PROFILES["cpu"].runs()}) >= 5
    assert {run.arm for run in train_study.PROFILES["cpu"].runs()} == set(train_study.ARMS)


def command(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.torchvision_without_extension", "icr_kernels.train_study", *arguments],
        cwd=ROOT,
        env=os.environ | {"YOLO_OFFLINE": "true"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_short_form(tmp_path):
    """Both detectors and every arm; a run that is lost is trained again, to the same numbers, and no other."""
    begin = ("run", "--profile", "quick", "--output", str(tmp_path), "--threads", "1")
    assert "6 runs of 6" in command(*begin, "--workers", "2")
    file = tmp_path / train_study.RESULTS
    head, *lines = file.read_text().splitlines()
    assert len(lines) == 6
    rows = train_study.read(file)
    assert all(int(each["paired"]) > 0 and float(each["mean_penalty"]) > 0 for each in rows)
    assert len({each["mean_penalty"] for each in rows}) == 6
    file.write_text("\n".join([head, *lines[1:]]) + "\n")
    assert "1 runs of 6" in command(*begin)
    again = train_study.read(file)[-1]
    assert {name: value for name, value in again.items() if name != "seconds"} == {
        name: value for name, value in rows[0].items() if name != "seconds"
    }
    document = tmp_path / "evidence.md"
    document.write_text("before\n<!-- training study -->\nold\n<!-- end of training study -->\nafter\n")
    assert main(["report", str(tmp_path), "--document", str(document)]) == 0
    text = document.read_text()
    assert "old" not in text and text.startswith("before") and text.endswith("after\n") and "containment+pull" in text
    for name in ("differences.png", "curves.png", "detections-1.jpg", "detections-2.jpg"):
        assert (tmp_path / name).stat().st_size > 200
