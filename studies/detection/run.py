"""Trains the runs of a profile."""

import importlib.metadata
import itertools
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch

from icr_kernels.info import cpu_name
from studies.scenes.viewer import Detections

from . import data, detectors, results
from .detectors import Training
from .protocol import PHOTOGRAPHS, PICTURED_SEED, PROFILES, Run
from .results import CURVES, RESULTS, run_of


class Setting(NamedTuple):
    """Where a run takes place."""

    output: Path
    device: str
    threads: int | None
    validation: int
    photographs: Path | None  # the folder


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
    chosen = PROFILES[profile]
    rows = results.read(output / RESULTS)
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
        results.append(output / CURVES, curve)
        results.append(output / RESULTS, [row])
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


def trained(run: Run, setting: Setting) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Trains one run: its row of results.csv and those of curves.csv."""
    from .evaluation import evaluated  # needs pycocotools, which `check_packages` has asked for by now

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
        results.keep(setting.output, run, result.detections)
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
