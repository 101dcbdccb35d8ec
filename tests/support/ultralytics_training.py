"""Trainings of Ultralytics on generated images, offline and on a CPU: in this process, or as a program, so that another
version of it can be imported: ``python ultralytics_training.py FOLDER DATA '{"NAME": {"family": "yolo11n"}, ...}'``."""

import csv
import importlib
import json
import os
import shutil
import sys
import traceback
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy
import pytest

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks.torchvision_without_extension import make_importable

NAMES = {0: "car", 1: "plate", 2: "truck"}
CAR, PLATE, TRUCK = NAMES
SIZE = 64


def environment(folder: Path) -> dict[str, str]:
    """What keeps it off the network and its files in a folder; its font is put there."""
    matplotlib = importlib.import_module("matplotlib")
    # It would ask for its font in the network otherwise.
    (folder / "Ultralytics").mkdir(parents=True)
    shutil.copy(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", folder / "Ultralytics/Arial.ttf")
    shutil.copy(folder / "Ultralytics/Arial.ttf", folder / "Arial.ttf")
    return {
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",
        "YOLO_CONFIG_DIR": str(folder),
        "YOLO_VERBOSE": "true",
    }


def data_set(folder: Path) -> Path:
    """Grey images with cars as rectangles and plates in them, and their labels."""
    cv2 = importlib.import_module("cv2")
    random = numpy.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            image = random.integers(90, 130, (SIZE, SIZE, 3), dtype=numpy.uint8)
            w, h = random.integers(32, 48, 2)
            x, y = random.integers(0, SIZE - w), random.integers(0, SIZE - h)
            lines = []
            for label, box, colour in (
                (CAR, (x, y, w, h), (200, 60, 40)),
                (PLATE, (x + w // 4, y + h // 2, w // 2, h // 3), (255, 255, 255)),
            ):
                left, top, width, height = map(int, box)
                cv2.rectangle(image, (left, top), (left + width, top + height), colour, -1)
                values = (left + width / 2, top + height / 2, width, height)
                lines.append(" ".join([str(label), *(f"{value / SIZE:.4f}" for value in values)]))
            cv2.imwrite(str(folder / "images" / split / f"{number}.png"), image)
            (folder / "labels" / split / f"{number}.txt").write_text("\n".join(lines))
    names = "\n".join(f"  {label}: {name}" for label, name in NAMES.items())
    (folder / "plates.yaml").write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames:\n{names}\n")
    return folder / "plates.yaml"


def train(model: Any, data: Path, folder: Path, **options: Any) -> Path:
    settings = {
        "data": str(data),
        "epochs": 2,
        "imgsz": SIZE,
        "batch": 4,
        "device": "cpu",
        "workers": 0,
        "amp": False,
        "plots": False,
        "deterministic": False,
        "pretrained": False,
        "project": str(folder),
        "name": "run",
        "exist_ok": True,
    }
    model.train(**(settings | options))
    return folder / "run"


def logged(run: Path) -> list[dict[str, str]]:
    """A row per epoch."""
    with open(run / "results.csv") as file:
        return [{name.strip(): value.strip() for name, value in row.items()} for row in csv.DictReader(file)]


def assert_same_losses(rows: list[dict[str, str]], expected: list[dict[str, str]]) -> None:
    """Of training and validation, in every epoch."""
    for row, other in zip(rows, expected, strict=True):
        of_losses = [name for name in row if name.endswith("_loss")]
        assert len(of_losses) == 6
        assert [float(row[name]) for name in of_losses] == pytest.approx(
            [float(other[name]) for name in of_losses], rel=1e-4
        )


def small_detr() -> dict:
    """RT-DETR with few queries and layers."""
    architecture = importlib.import_module("ultralytics.nn.tasks").yaml_model_load("yolov8n-rtdetr.yaml")
    architecture["head"][-1][-1] = ["nc", 64, 30, 4, 4, 2]
    return architecture


def make_older_versions_run() -> None:
    """With a NumPy and a torch that are newer than they are; and without a process that is asked for the processor's
    name, and takes longer than a training."""
    if not hasattr(numpy, "trapz"):
        numpy.trapz = numpy.trapezoid
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    sys.modules["cpuinfo"] = types.SimpleNamespace(get_cpu_info=dict)
    make_importable()


def globals_of(file: Any) -> str:
    """All that is said about classes in a checkpoint."""
    with zipfile.ZipFile(file) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith("data.pkl")]
        return archive.read(name).decode("latin-1")


def own_train(base: Any, data: Path, folder: Path) -> Any:
    """Of a class of the user's, and an attribute of the model around it; both are there again at the end."""
    from icr_kernels.integrations.ultralytics import enable_icr

    class Own(base):
        def train(self, data: Path, epochs: int) -> None:
            print("OWN TRAIN", epochs)
            options = {"imgsz": SIZE, "batch": 4, "device": "cpu", "workers": 0, "amp": False, "plots": False}
            super().train(data=str(data), epochs=epochs, project=str(folder), name="run", **options)

    model = Own("yolov8n.yaml")

    def before(*arguments: Any) -> None:
        print("BEFORE")
        Own.train(model, *arguments)

    model.train = before
    icr = enable_icr(model, {"plate": "car"})
    model.train(data, 1)
    icr.disable()
    assert model.train is before and "_smart_load" not in vars(model)
    return icr


def train_as(task: dict[str, Any], folder: Path, data: Path) -> Any:
    """The handle of its term, if it has one, or of its box loss."""
    import ultralytics

    from icr_kernels.integrations.ultralytics import (
        accelerate,
        enable_box_loss,
        enable_icr,
        enable_small_object_term,
    )

    if task.get("own_train"):
        return own_train(ultralytics.YOLO, data, folder)
    family = task["family"]
    checkpoint = "resumes" in task and str(folder.parent / task["resumes"] / "first.pt")
    if "rtdetr" in family:
        architecture = folder / f"{family}.yaml"
        architecture.write_text(json.dumps(small_detr()))
        model = ultralytics.RTDETR(checkpoint or str(architecture))
    else:
        model = ultralytics.YOLO(checkpoint or f"{family}.yaml")
    icr = enable_box_loss(model, task["box_loss"]) if "box_loss" in task else None
    if task.get("enable"):
        icr = enable_icr(model, **task["enable"])
    if "accelerate" in task:
        accelerate(model, **task["accelerate"])
    if task.get("own_loss"):
        icr = enable_small_object_term(model, loss=lambda pred, target: (pred - target).abs().sum(-1))

    def keep_first(trainer: Any) -> None:
        if trainer.epoch == 0:
            shutil.copy(trainer.last, folder / "first.pt")

    model.add_callback("on_model_save", keep_first)
    options = {}
    if task.get("on_two_cpus"):
        options = {"trainer": importlib.import_module("two_cpus").TwoCpus, "device": "0,1"}
    if checkpoint:
        model.train(resume=True)
    else:
        train(model, data, folder, **options, **task.get("train", {}))
    return icr


def main(folder: Path, data: Path, tasks: dict[str, dict[str, Any]]) -> None:
    """One after the other; what one of them raises is printed, and the next goes on."""
    make_older_versions_run()
    for name, task in tasks.items():
        print("BEGIN", name)
        (folder / name).mkdir()
        try:
            icr = train_as(task, folder / name, data)
            losses = logged(folder / task.get("resumes", name) / "run")
        except Exception:
            traceback.print_exc()
        else:
            print("DONE", json.dumps({"statistics": icr and icr.statistics._asdict(), "losses": losses}))


if __name__ == "__main__":
    # Before what is installed; the processes that it starts are not told.
    sys.path.insert(0, os.environ["ULTRALYTICS_PLACE"])
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
