"""The adapter for Ultralytics with the versions that forks are made of, and with two processes as of two GPUs.

Each training is a program of its own, which imports the version from its place, as it would a checkout of a fork:
another version is installed beside it.
"""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from frameworks import ALL, need
from icr_kernels.integrations.ultralytics import ranks
from icr_kernels.integrations.ultralytics.start import EVENT, TermsStart
from ultralytics_training import data_set, environment, globals_of, logged

need("ultralytics")
ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"
# UAV-DETR is made of the first, YOLOv12 and YOLOv13 of the second. `make test` puts them there.
PLACES = {version: Path(sys.prefix) / "ultralytics" / version for version in ("8.0.201", "8.3.63")}
INSTALLED = "installed"
PAIRS = {"plate": "car"}


class Program:
    """Trainings with one version: its settings, and its data, because label caches differ."""

    def __init__(self, folder: Path, version: str) -> None:
        place = PLACES.get(version, folder)
        if version != INSTALLED and not place.exists():
            reason = f"{place} is missing; `make test` installs it"
            if ALL:
                raise ModuleNotFoundError(reason)
            pytest.skip(reason)
        (folder / "site").mkdir()
        # In the processes of the ranks too, before anything is imported.
        (folder / "site/sitecustomize.py").write_text(
            "import ultralytics_training as of\nof.make_older_versions_run()\n"
        )
        self.version = version
        self.folder = folder
        self.data = data_set(folder / "data")
        self.environment = {
            **os.environ,
            **environment(folder / "settings"),
            "PYTHONPATH": os.pathsep.join(map(str, (folder / "site", SUPPORT, ROOT))),
            "ULTRALYTICS_PLACE": str(place),
            "OMP_NUM_THREADS": "1",
        }

    def train(self, name: str, family: str, fails: bool = False, **task) -> "Run":
        folder = self.folder / name
        folder.mkdir()
        done = subprocess.run(
            [
                sys.executable,
                SUPPORT / "ultralytics_training.py",
                folder,
                self.data,
                json.dumps({"family": family, **task}),
            ],
            env=self.environment,
            capture_output=True,
            text=True,
        )
        output = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, output[-4000:]
        return Run(folder / "run", output)


class Run:
    def __init__(self, folder: Path, output: str) -> None:
        self.folder = folder
        self.output = output

    @property
    def statistics(self) -> dict:
        (line,) = [each for each in self.output.splitlines() if each.startswith("DONE ")]
        return json.loads(line.removeprefix("DONE "))["statistics"]

    @property
    def losses(self) -> list[dict[str, float]]:
        of_losses = ("train/", "val/")
        return [{k: float(v) for k, v in row.items() if k.startswith(of_losses)} for row in logged(self.folder)]

    @property
    def ranks(self) -> list[dict]:
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("rank*.json"))]


@pytest.fixture(scope="module")
def program(request, tmp_path_factory) -> Program:
    return Program(tmp_path_factory.mktemp("version"), request.param)


def versions(*names: str):
    return pytest.mark.parametrize("program", names, indirect=True)


@pytest.mark.parametrize(
    ("program", "family"), [("8.0.201", "yolov8n-rtdetr"), ("8.3.63", "yolov8n")], indirect=["program"]
)
def test_older_versions(program, family):
    """Of weight 0 every loss that is printed is the stock one; the terms are in one column, in training and validation;
    a checkpoint is stock, and a run is resumed from it."""
    # An untrained RT-DETR has small boxes: next to none is punished, but each has a loss of its own.
    strong = {"pairs": PAIRS, "weight": 3.0, "box_term": 1.0}
    column = "giou_loss" if "rtdetr" in family else "box_loss"
    stock = program.train("stock", family)
    assert program.train("weight-0", family, enable={"pairs": PAIRS, "weight": 0.0}).losses == stock.losses
    run = program.train("weight-3", family, enable=strong)
    assert f"ICR penalty: plate in car, weight 3 (uniform), in {column}" in run.output
    assert run.statistics["steps"] == 4 and run.statistics["paired"] > 0
    for row, of_stock in zip(run.losses, stock.losses, strict=True):
        for part in ("train", "val"):
            assert row[f"{part}/{column}"] > of_stock[f"{part}/{column}"] + 0.1
    # The rate of learning is next to nothing in the first epoch: the terms move no other loss yet.
    others = {name: value for name, value in stock.losses[0].items() if not name.endswith(column)}
    assert {name: run.losses[0][name] for name in others} == pytest.approx(others, rel=0.02)
    first = run.folder.parent / "first.pt"
    assert "icr_kernels" not in globals_of(first)
    resumed = program.train("resumed", family, enable=strong, resume=str(first))
    assert resumed.statistics["steps"] == 2 and resumed.statistics["paired"] > 0


@versions("8.0.201", "8.3.63")
def test_an_accelerated_training_of_older_versions(program):
    """Every loss that is printed is the stock one, with the assigner alone, and with the whole loss and a term of
    weight 0."""
    stock = program.train("not-accelerated", "yolov8n")
    for name, task in {
        "assigner": {"accelerate": {}},
        "loss-and-term": {"accelerate": {"criterion": True}, "enable": {"pairs": PAIRS, "weight": 0.0}},
    }.items():
        run = program.train(name, "yolov8n", **task)
        assert "Task-aligned assignment of icr_kernels: topk 10" in run.output and "stays the" not in run.output
        assert ("Detection loss of icr_kernels: reg_max 16" in run.output) == (name != "assigner")
        for row, of_stock in zip(run.losses, stock.losses, strict=True):
            assert row == pytest.approx(of_stock, rel=1e-4)


TWO = {"family": "yolov8n", "enable": {"pairs": PAIRS}, "on_two_cpus": True, "train": {"epochs": 1}}


@versions("8.3.63", INSTALLED)
def test_every_rank_trains_with_the_term(program):
    """And with the loss: two processes with gloo, started by Ultralytics' own launcher, with a trainer of the
    user's."""
    run = program.train("ranks", **TWO, accelerate={"criterion": True})
    column = "box_loss" if program.version == "8.3.63" else "icr_loss"
    assert f"ICR penalty: plate in car, weight 0.5 (uniform), in {column}" in run.output
    assert len(run.ranks) == 2
    assert all(rank["criterion"] == "YoloCriterion" and rank["paired"] > 0 for rank in run.ranks)
    assert all(rank["is_accelerated"] for rank in run.ranks)
    assert run.statistics["steps"] == 0  # they stay in the ranks


@versions("8.3.63")
def test_classes_that_ranks_would_not_find(program):
    """Said before they are started."""
    run = program.train("wrong", **{**TWO, "enable": {"pairs": {"licence": "car"}}}, fails=True)
    assert run.output.splitlines()[-1] == "ValueError: pairs: expected classes among car, plate, truck, got 'licence'"
    assert "torch.distributed.run" not in run.output


@versions("8.3.63")
def test_what_ranks_cannot_import(program):
    """Said before they are started."""
    run = program.train("own-loss", **{**TWO, "enable": None}, own_loss=True, fails=True)
    assert run.output.splitlines()[-1] == (
        "ValueError: device: expected one, because the processes of several are handed the class of the trainer and "
        "the loss of the uniform term, and one of these cannot be pickled, got 0,1; put it into a module"
    )
    assert "torch.distributed.run" not in run.output


@versions("8.3.63")
def test_a_train_of_the_users(program):
    """A subclass whose ``train`` has arguments of its own, and one that was put on the model before."""
    run = program.train("own-train", family="yolov8n", own_train=True)
    assert "OWN TRAIN 1\n" in run.output and "BEFORE\n" in run.output and run.statistics["paired"] > 0


def test_ranks_that_the_user_starts(monkeypatch):
    """With torchrun, say: the callback is in each of them, and nobody has to be told."""

    class Trainer:
        def __init__(self):
            self.callbacks = {EVENT: [TermsStart(None)]}
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
