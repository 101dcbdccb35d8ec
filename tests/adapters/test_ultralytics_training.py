"""Training with Ultralytics' own trainer on a set of generated images, with validation, checkpoints and logs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from frameworks import need
from icr_kernels.integrations.ultralytics import enable_box_loss, enable_icr, enable_small_object_term
from ultralytics_steps import batch, is_dict, network
from ultralytics_training import (
    NAMES,
    assert_same_losses,
    globals_of,
    logged,
    small_detr,
    train,
)

need("ultralytics")
pytestmark = pytest.mark.usefixtures("ultralytics")


def test_training(ultralytics, data, tmp_path):
    """Two epochs with validation: the log, the statistics, and checkpoints for those who lack this package."""
    model = ultralytics.YOLO("yolo11n.yaml")
    icr_handle = enable_icr(model, {"plate": "car"}, weight=0.5)
    stored = []
    model.add_callback("on_model_save", lambda trainer: stored.append(globals_of(trainer.last)))
    run = train(model, data, tmp_path)
    statistics = icr_handle.statistics
    assert statistics.steps == 4 and 0 < statistics.paired <= statistics.parts < statistics.positives
    assert 0 < statistics.mean_penalty <= 1
    rows = logged(run)
    assert len(rows) == len(stored) == 2
    if is_dict(network("yolo11n"), batch()):
        assert all(float(row[f"{part}/icr_loss"]) > 0 for row in rows for part in ("train", "val"))
    assert all("icr_kernels" not in each for each in stored)
    script = (
        f"import sys; sys.modules['icr_kernels'] = None; sys.path.append({str(Path(__file__).parents[2])!r})\n"
        "from benchmarks.torchvision_without_extension import make_importable\n"
        "make_importable()\n"
        "import ultralytics\n"
        f"for name in ('best', 'last'): print(ultralytics.YOLO({str(run)!r} + f'/weights/{{name}}.pt').names)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-2:] == [str(NAMES)] * 2
    # The same object once more, and then without the penalty.
    train(model, data, tmp_path, epochs=1)
    assert icr_handle.statistics.steps == 6
    icr_handle.disable()
    train(model, data, tmp_path, epochs=1)
    assert icr_handle.statistics.steps == 6


def test_training_with_a_small_object_term(ultralytics, data, tmp_path):
    """A column of its own in training and in validation; one class is enough."""
    model = ultralytics.YOLO("yolo11n.yaml")
    term = enable_small_object_term(model)
    run = train(model, data, tmp_path, single_cls=True)
    assert term.statistics.steps == 4 and 0 < term.statistics.chosen < term.statistics.positives
    assert 0 < term.statistics.mean_loss <= 1
    rows = logged(run)
    if is_dict(network("yolo11n"), batch()):
        assert all(float(row[f"{part}/uniform_loss"]) > 0 for row in rows for part in ("train", "val"))
        assert not any("icr_loss" in name for name in rows[0])
    assert "icr_kernels" not in globals_of(run / "weights/last.pt")


def test_training_with_a_box_loss(ultralytics, data, tmp_path):
    """That of the stock criterion by its name: every loss that is logged is the stock one, in columns of that name."""
    stock = logged(train(ultralytics.YOLO("yolo11n.yaml"), data, tmp_path / "stock"))
    model = ultralytics.YOLO("yolo11n.yaml")
    other = enable_box_loss(model, "ciou")
    run = train(model, data, tmp_path / "ours")
    assert other.statistics.steps == 4 and other.statistics.positives > 0
    rows = logged(run)
    assert [list(row) for row in rows] == [list(row) for row in stock]
    assert_same_losses(rows, stock)
    assert "icr_kernels" not in globals_of(run / "weights/last.pt")


def test_disabling_during_training(ultralytics, data, tmp_path):
    """The run goes on with the stock loss."""
    model = ultralytics.YOLO("yolo11n.yaml")
    icr_handle = enable_icr(model, {"plate": "car"})
    model.add_callback("on_fit_epoch_end", lambda trainer: icr_handle.disable())
    train(model, data, tmp_path)
    assert icr_handle.statistics.steps == 2


def test_resuming(ultralytics, data, tmp_path):
    """A checkpoint in the middle of a run is one of Ultralytics; the penalty is switched on again, and goes on."""
    family = "yolo26n" if (Path(ultralytics.__file__).parent / "cfg/models/26").exists() else "yolov10n"
    model = ultralytics.YOLO(f"{family}.yaml")
    enable_icr(model, {"plate": "car"})
    middle, stored = tmp_path / "middle.pt", []

    def save(trainer):
        if not stored:
            shutil.copy(trainer.last, middle)
        stored.append(globals_of(trainer.last))

    model.add_callback("on_model_save", save)
    train(model, data, tmp_path)
    assert len(stored) == 2 and all("icr_kernels" not in each for each in stored)
    resumed = ultralytics.YOLO(middle)
    icr_handle = enable_icr(resumed, {"plate": "car"})
    updates = []

    def note(trainer):
        updates.append(getattr(trainer.model.criterion, "updates", None))

    resumed.add_callback("on_train_start", note)
    resumed.train(resume=True)
    assert icr_handle.statistics.steps == 2 and icr_handle.statistics.paired > 0
    if family == "yolo26n" and is_dict(network("yolo11n"), batch()):
        assert updates == [1]


def test_training_a_detr(ultralytics, data, tmp_path):
    (tmp_path / "yolov8n-rtdetr.yaml").write_text(json.dumps(small_detr()))
    model = ultralytics.RTDETR(str(tmp_path / "yolov8n-rtdetr.yaml"))
    icr_handle = enable_icr(model, {"plate": "car"})
    run = train(model, data, tmp_path, epochs=1)
    statistics = icr_handle.statistics
    assert statistics.steps == 2 and 0 < statistics.paired <= statistics.parts < statistics.positives
    for name in ("best", "last"):
        assert "icr_kernels" not in globals_of(run / "weights" / f"{name}.pt")


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        ({"licence": "car"}, {}, "pairs: expected classes among car, plate, truck, got 'licence'"),
        ({"plate": "car"}, {"single_cls": True}, "single_cls: expected False"),
    ],
)
def test_errors_of_the_data(ultralytics, data, tmp_path, pairs, options, message):
    """Known when training begins, and said before the first step."""
    model = ultralytics.YOLO("yolo11n.yaml")
    icr_handle = enable_icr(model, pairs)
    with pytest.raises(ValueError, match=message):
        train(model, data, tmp_path, epochs=1, **options)
    assert icr_handle.statistics.steps == 0


def test_small_object_term_of_unknown_classes(ultralytics, data, tmp_path):
    model = ultralytics.YOLO("yolo11n.yaml")
    enable_small_object_term(model, names=["licence"])
    with pytest.raises(ValueError, match="names: expected classes among car, plate, truck, got 'licence'"):
        train(model, data, tmp_path, epochs=1)
    enable_small_object_term(model, names=["plate"])
    with pytest.raises(ValueError, match="single_cls: expected False"):
        train(model, data, tmp_path, epochs=1, single_cls=True)
