"""Does the penalty help? Detectors trained with everything equal but the penalty, over several seeds.

``python -m icr_kernels.train_study run`` trains on generated scenes (`icr_kernels.scenes`) and writes a row a run;
``report`` makes tables, intervals, plots and pictures of them. Needs ``pip install icr-kernels[train]`` and the
detectors' packages, ultralytics and transformers.
"""

import csv
import importlib.metadata
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import scenes
from ..info import cpu_name
from ..scenes import LabelNoise
from ..scenes.viewer import Detections

RESULTS, CURVES = "results.csv", "curves.csv"

# To each arm the penalty and whether it is relative; "off" trains with weight 0.
ARMS = {
    "off": ("containment", False),
    "containment": ("containment", False),
    "containment+pull": ("containment+pull", False),
    "relative": ("containment", True),
}
NOISE = {"clean": None, "noisy": LabelNoise(jitter=0.1, misses=0.1, beyond=0.1)}
# The labels that are learnt from may be noisy; those that are measured against never are.
VALIDATION_SEED = 1_000_000
CHECKS = 8  # on the way of a run, for its learning curve
PICTURES = 4  # validation images of which the detections are kept


class Run(NamedTuple):
    """What is trained: a row of results.csv begins with it and is known by it. The seed draws the training images, the
    weights and their order, so arms of one seed are pairs."""

    detector: str
    arm: str
    weight: float
    labels: str
    images: int
    seed: int
    epochs: int
    size: int
    zoom: float
    batch: int

    def __str__(self) -> str:
        return "-".join(map(str, self)).replace("+", "_")


class Plan(NamedTuple):
    """Runs that are compared: the product of arms, weights and seeds."""

    detector: str
    arms: Sequence[str] = tuple(ARMS)
    weights: Sequence[float] = (0.5,)
    labels: str = "clean"
    images: int = 400
    epochs: int = 40
    size: int = 160
    zoom: float = 2.0
    batch: int = 8
    seeds: int | None = None

    def runs(self, seed: int) -> Iterator[Run]:
        if self.seeds is not None and seed >= self.seeds:
            return
        for arm in self.arms:
            for weight in (0.0,) if arm == "off" else self.weights:
                values = self._asdict() | {"arm": arm, "weight": weight, "seed": seed}
                yield Run(*(values[name] for name in Run._fields))


class Profile(NamedTuple):
    plans: Sequence[Plan]
    seeds: int
    validation: int
    """Images that are measured on."""

    def runs(self, seeds: int | None = None) -> list[Run]:
        """Seed by seed, so that what an interruption leaves can be compared."""
        count = self.seeds if seeds is None else seeds
        return list(dict.fromkeys(run for seed in range(count) for plan in self.plans for run in plan.runs(seed)))


PROFILES = {
    "quick": Profile(
        [
            Plan("yolo11n", images=32, epochs=2, size=128),
            Plan("rtdetr", ("off", "containment"), images=32, epochs=2, size=128),
        ],
        seeds=1,
        validation=16,
    ),
    "cpu": Profile(
        [
            Plan("yolo11n"),
            Plan("yolo11n", labels="noisy"),
        ],
        seeds=5,
        validation=200,
    ),
    "gpu": Profile(
        [
            Plan("yolo12n", images=4000, epochs=100, size=640, batch=64),
            Plan("yolo12n", labels="noisy", images=4000, epochs=100, size=640, batch=64),
            Plan("rtdetr", images=4000, epochs=100, size=640, batch=32),
        ],
        seeds=5,
        validation=1000,
    ),
}


class Setting(NamedTuple):
    """Where a run takes place."""

    output: Path
    device: str
    threads: int | None
    validation: int


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run_of(row: dict[str, str]) -> Run:
    kinds = (str, str, float, str, int, int, int, int, float, int)
    return Run(*(kind(row[name]) for kind, name in zip(kinds, Run._fields, strict=True)))


def study(profile: str, output: Path, *, seeds: int | None, device: str, workers: int, threads: int | None) -> None:
    """Trains the runs of a profile that results.csv does not have yet, ``workers`` at a time. What has finished is
    kept whatever interrupts the rest."""
    chosen = PROFILES[profile]
    done = {run_of(row) for row in read(output / RESULTS)}
    todo = [run for run in chosen.runs(seeds) if run not in done]
    print(f"{len(todo)} runs of {len(todo) + len(done)}, {workers} at a time on {device}", flush=True)
    setting = Setting(output, device, threads, chosen.validation)
    began = time.monotonic()
    for number, (row, curve) in enumerate(_finished(todo, setting, workers), start=1):
        _append(output / CURVES, curve)
        _append(output / RESULTS, [row])
        minutes = (time.monotonic() - began) / 60
        left = minutes / number * (len(todo) - number)
        print(
            f"{number}/{len(todo)}  {run_of(row)}: plate AP50 {100 * float(row['plate_ap50']):.1f}, "
            f"AP {100 * float(row['ap']):.1f}, {row['seconds']} s; {left:.0f} minutes left",
            flush=True,
        )


def _finished(
    todo: Sequence[Run], setting: Setting, workers: int
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    if workers == 1:
        yield from (trained(run, setting) for run in todo)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            for future in as_completed([pool.submit(trained, run, setting) for run in todo]):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def trained(run: Run, setting: Setting) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Trains one run: its row of results.csv and those of curves.csv."""
    from . import detectors
    from .detectors import Penalty, Training
    from .evaluation import evaluated

    if setting.threads is not None:
        torch.set_num_threads(setting.threads)
    setting.output.mkdir(parents=True, exist_ok=True)
    curve: list[dict[str, Any]] = []
    kept: list[Detections] = []
    with tempfile.TemporaryDirectory(dir=setting.output) as place:
        folder = Path(place)
        camera = {"size": run.size, "zoom": run.zoom}
        validation = scenes.write(folder, "val", setting.validation, **camera, seed=VALIDATION_SEED)

        def check(epoch: int, found: list[Detections]) -> None:
            curve.append({**run._asdict(), "epoch": epoch, **_rounded(evaluated(validation, found))})
            kept[:] = found

        training = Training(
            detector=run.detector,
            penalty=Penalty(run.weight, *ARMS[run.arm]),
            seed=run.seed,
            epochs=run.epochs,
            size=run.size,
            batch=run.batch,
            device=setting.device,
            folder=folder,
            train=scenes.write(folder, "train", run.images, **camera, seed=run.seed, noise=NOISE[run.labels]),
            validation=validation,
            every=max(run.epochs // CHECKS, 1),
            checked=check,
        )
        began = time.monotonic()
        statistics = detectors.train(training)
        seconds = round(time.monotonic() - began)
    path = setting.output / "detections" / f"{run}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([[values.tolist() for values in each] for each in kept[:PICTURES]]))
    last = {name: value for name, value in curve[-1].items() if name != "epoch"}
    package = "transformers" if run.detector == "rtdetr" else "ultralytics"
    row = last | {
        "paired": statistics.paired,
        "mean_penalty": round(statistics.mean_penalty, 5),
        "seconds": seconds,
        "device": cpu_name() if setting.device == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "framework": f"{package} {importlib.metadata.version(package)}",
        "icr_kernels": importlib.metadata.version("icr-kernels"),
    }
    return row, curve


def _rounded(numbers: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in numbers.items()}
