"""The adapter for Ultralytics with the versions that forks are made of, and with two processes as of two GPUs.

The trainings of a version are a program of their own, which imports it from its place, as it would a checkout of a
fork: another version is installed beside it.
"""

import functools
import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from frameworks import ALL, need
from icr_kernels.integrations.ultralytics import ranks
from icr_kernels.integrations.ultralytics.start import EVENT, Start
from ultralytics_training import data_set, environment, globals_of

need("ultralytics")
ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"
# UAV-DETR is made of the first, YOLOv12 and YOLOv13 of the second. `make test` puts them there.
PLACES = {version: Path(sys.prefix) / "ultralytics" / version for version in ("8.0.201", "8.3.63")}
INSTALLED = "installed"
PAIRS = {"plate": "car"}
WEIGHT_0 = {"pairs": PAIRS, "weight": 0.0}
# An untrained RT-DETR has small boxes: next to none is punished, but each has a loss of its own.
STRONG = {"pairs": PAIRS, "weight": 3.0, "box_term": 1.0}
# Of 8.0.201 an RT-DETR is trained, of 8.3.63 a YOLO: the stock losses of their boxes.
OF_STOCK = {"yolov8n-rtdetr": "giou", "yolov8n": "ciou"}
ACCELERATED = {
    "yolov8n": {"family": "yolov8n"},
    "assigner": {"family": "yolov8n", "accelerate": {}},
    "loss-and-term": {"family": "yolov8n", "accelerate": {"criterion": True}, "enable": WEIGHT_0},
}
TWO = {"family": "yolov8n", "enable": {"pairs": PAIRS}, "box_loss": "siou", "on_two_cpus": True, "train": {"epochs": 1}}
RANKS = {"ranks": {**TWO, "accelerate": {"criterion": True}}}


def with_term(family: str) -> dict[str, dict]:
    return {
        family: {"family": family},
        "weight-0": {"family": family, "enable": WEIGHT_0},
        "weight-3": {"family": family, "enable": STRONG},
        "resumed": {"family": family, "enable": STRONG, "resumes": "weight-3"},
        "stock-box-loss": {"family": family, "box_loss": OF_STOCK[family]},
        "box-loss": {"family": family, "box_loss": "nwd"},
        "box-loss-resumed": {"family": family, "box_loss": "nwd", "resumes": "box-loss"},
    }


TASKS = {
    "8.0.201": with_term("yolov8n-rtdetr") | ACCELERATED,
    "8.3.63": {
        **with_term("yolov8n"),
        **ACCELERATED,
        "own-train": {"own_train": True},
        # Two processes change what a module of Ultralytics has, and come last.
        "wrong": {**TWO, "enable": {"pairs": {"licence": "car"}}},
        "own-loss": {**TWO, "enable": None, "own_loss": True},
        **RANKS,
    },
    INSTALLED: RANKS,
}


class Run(NamedTuple):
    version: str
    folder: Path
    output: str

    @property
    def done(self) -> dict:
        lines = [each for each in self.output.splitlines() if each.startswith("DONE ")]
        assert len(lines) == 1, self.output[-4000:]
        return json.loads(lines[0].removeprefix("DONE "))

    @property
    def statistics(self) -> dict:
        return self.done["statistics"]

    @property
    def losses(self) -> list[dict[str, float]]:
        of_losses = ("train/", "val/")
        return [{k: float(v) for k, v in row.items() if k.startswith(of_losses)} for row in self.done["losses"]]

    @property
    def ranks(self) -> list[dict]:
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("run/rank*.json"))]


def trained(version: str, folder: Path) -> dict[str, Run]:
    """The trainings of a version; with settings and data of its own, because label caches differ."""
    place = PLACES.get(version, folder)
    if version != INSTALLED and not place.exists():
        reason = f"{place} is missing; `make test` installs it"
        if ALL:
            raise ModuleNotFoundError(reason)
        pytest.skip(reason)
    (folder / "site").mkdir()
    # In the processes of the ranks too, before anything is imported.
    (folder / "site/sitecustomize.py").write_text("import ultralytics_training as of\nof.make_older_versions_run()\n")
    tasks = json.dumps(TASKS[version])
    done = subprocess.run(
        [sys.executable, SUPPORT / "ultralytics_training.py", folder, data_set(folder / "data"), tasks],
        env={
            **os.environ,
            **environment(folder / "settings"),
            "PYTHONPATH": os.pathsep.join(map(str, (folder / "site", SUPPORT, ROOT))),
            "PYTHONUNBUFFERED": "1",
            "ULTRALYTICS_PLACE": str(place),
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    _, *outputs = re.split(r"^BEGIN .*\n", done.stdout, flags=re.MULTILINE)
    return {name: Run(version, folder / name, each) for name, each in zip(TASKS[version], outputs, strict=True)}


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory) -> Callable[[str], dict[str, Run]]:
    return functools.cache(lambda version: trained(version, tmp_path_factory.mktemp("version")))


@pytest.fixture
def runs(request, trained_once) -> dict[str, Run]:
    return trained_once(request.param)


def versions(*names: str):
    return pytest.mark.parametrize("runs", names, indirect=True)


@pytest.mark.parametrize(("runs", "family"), [("8.0.201", "yolov8n-rtdetr"), ("8.3.63", "yolov8n")], indirect=["runs"])
def test_older_versions(runs, family):
    """Of weight 0 every loss that is printed is the stock one; the terms are in one column, in training and validation;
    a checkpoint is stock, and a run is resumed from it."""
    stock, run, resumed = (runs[name] for name in (family, "weight-3", "resumed"))
    column = "giou_loss" if "rtdetr" in family else "box_loss"
    assert runs["weight-0"].losses == stock.losses
    assert f"ICR penalty: plate in car, weight 3 (uniform), in {column}" in run.output
    assert run.statistics["steps"] == 4 and run.statistics["paired"] > 0
    for row, of_stock in zip(run.losses, stock.losses, strict=True):
        for part in ("train", "val"):
            assert row[f"{part}/{column}"] > of_stock[f"{part}/{column}"] + 0.1
    # The rate of learning is next to nothing in the first epoch: the terms move no other loss yet.
    others = {name: value for name, value in stock.losses[0].items() if not name.endswith(column)}
    assert {name: run.losses[0][name] for name in others} == pytest.approx(others, rel=0.02)
    assert "icr_kernels" not in globals_of(run.folder / "first.pt")
    assert resumed.statistics["steps"] == 2 and resumed.statistics["paired"] > 0


@pytest.mark.parametrize(("runs", "family"), [("8.0.201", "yolov8n-rtdetr"), ("8.3.63", "yolov8n")], indirect=["runs"])
def test_a_box_loss_of_older_versions(runs, family):
    """The one that is stock anyway leaves every loss as it is but for rounding; another is in its column, in training
    and validation; a checkpoint is stock, and a run is resumed from it."""
    stock, same, other, resumed = (runs[name] for name in (family, "stock-box-loss", "box-loss", "box-loss-resumed"))
    column = "giou_loss" if "rtdetr" in family else "box_loss"
    for row, of_stock in zip(same.losses, stock.losses, strict=True):
        assert row == pytest.approx(of_stock, rel=1e-3)
    assert f"Loss of boxes: {OF_STOCK[family]}, in {column}\n" in same.output and "ICR penalty" not in same.output
    assert other.losses[0].keys() == stock.losses[0].keys()
    for part in ("train", "val"):
        assert abs(other.losses[0][f"{part}/{column}"] / stock.losses[0][f"{part}/{column}"] - 1) > 0.01
    assert "icr_kernels" not in globals_of(other.folder / "first.pt")
    assert (other.statistics["steps"], resumed.statistics["steps"]) == (4, 2)
    assert resumed.statistics["positives"] > 0 and f"Loss of boxes: nwd, in {column}\n" in resumed.output


@versions("8.0.201", "8.3.63")
def test_an_accelerated_training_of_older_versions(runs):
    """Every loss that is printed is the stock one, with the assigner alone, and with the whole loss and a term of
    weight 0."""
    stock, *accelerated = (runs[name] for name in ACCELERATED)
    for run in accelerated:
        assert "Task-aligned assignment of icr_kernels: topk 10" in run.output and "stays the" not in run.output
        assert ("Detection loss of icr_kernels: reg_max 16" in run.output) == (run is runs["loss-and-term"])
        for row, of_stock in zip(run.losses, stock.losses, strict=True):
            assert row == pytest.approx(of_stock, rel=1e-4)


@versions("8.3.63", INSTALLED)
def test_every_rank_trains_with_the_term(runs):
    """And with the losses: two processes with gloo, started by Ultralytics' own launcher, with a trainer of the
    user's."""
    run = runs["ranks"]
    column = "box_loss" if run.version == "8.3.63" else "icr_loss"
    assert f"ICR penalty: plate in car, weight 0.5 (uniform), in {column}" in run.output
    assert len(run.ranks) == 2
    assert all(rank["criterion"] == "YoloCriterion" and rank["paired"] > 0 for rank in run.ranks)
    assert all(rank["is_accelerated"] and rank["box_loss"] == "siou" for rank in run.ranks)
    assert run.statistics["steps"] == 0  # they stay in the ranks


@versions("8.3.63")
def test_classes_that_ranks_would_not_find(runs):
    """Said before they are started."""
    output = runs["wrong"].output
    assert output.splitlines()[-1] == "ValueError: pairs: expected classes among car, plate, truck, got 'licence'"
    assert "torch.distributed.run" not in output


@versions("8.3.63")
def test_what_ranks_cannot_import(runs):
    """Said before they are started."""
    output = runs["own-loss"].output
    assert output.splitlines()[-1] == (
        "ValueError: device: expected one, because the processes of several are handed the class of the trainer and "
        "the loss of the uniform term, and one of these cannot be pickled, got 0,1; put it into a module"
    )
    assert "torch.distributed.run" not in output


@versions("8.3.63")
def test_a_train_of_the_users(runs):
    """A subclass whose ``train`` has arguments of its own, and one that was put on the model before."""
    run = runs["own-train"]
    assert "OWN TRAIN 1\n" in run.output and "BEFORE\n" in run.output and run.statistics["paired"] > 0


def test_ranks_that_the_user_starts(monkeypatch):
    """With torchrun, say: the callback is in each of them, and nobody has to be told."""

    class Trainer:
        def __init__(self):
            self.callbacks = {EVENT: [Start("enable_icr")]}
            self.args = types.SimpleNamespace(device="0,1")

        def train(self):
            return os.environ.get(ranks.VARIABLE)

    class Model:
        def _smart_load(self, key):
            return Trainer

        def train(self, trainer=None):
            return (trainer or self._smart_load("trainer"))().train()

    for arguments in ((), (Trainer,)):
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        with pytest.raises(ValueError, match=r"device: expected one, .*cannot be pickled, got 0,1"):
            ranks.Launch(Model())(*arguments)
        monkeypatch.setenv("LOCAL_RANK", "0")
        assert ranks.Launch(Model())(*arguments) is None
