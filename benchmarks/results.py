"""A folder of results of one processor or GPU: the CSV of its measurements."""

import csv
import datetime
import functools
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

import icr_kernels as icr
from icr_kernels import builds
from icr_kernels.info import cpu_name

from .case import COPY, Case

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CSV = "bench.csv"

# A row is known by these: measured again, it is replaced. What "p50" is of: "us", "peak bytes", "kernels" and so on.
KEY = ("device", "threads", "figure", "case", "shape", "dtype", "quantity", "implementation", "unit")
COLUMNS = (
    *KEY,
    "pairs",
    "p20",
    "p50",
    "p80",
    "ns_per_pair",
    "bytes_per_pair",
    "fraction_of_copy",
    "waited",
    "rounds",
    "note",
    "instruction_set",
    "torch",
    "torchvision",
    "triton",
    "cuda",
    "version",
    "commit",
    "date",
)
Row = dict[str, Any]

# "waited" is for how much of its time a case stood in line for a processor, on a CPU. Above this its times are others'.
BUSY = 0.05


def slug(device: str) -> str:
    """The name of a device as a folder's: "NVIDIA H200" is nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def machine() -> dict[str, str]:
    """What a result depends on, of this machine and its GPU."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "multiprocessors": str(properties.multi_processor_count),
        "level 2 cache": f"{properties.L2_cache_size / 2**20:.0f} MiB",
        "memory": f"{properties.total_memory / 2**30:.0f} GiB",
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "unknown",
        "host": cpu_name(),
        "python": platform.python_version(),
        **versions(),
    }


@functools.cache
def versions() -> dict[str, str]:
    return {
        "instruction_set": builds.cpu_build.instruction_set() if builds.cpu_build else "none",
        "torch": torch.__version__,
        "torchvision": _installed("torchvision"),
        "triton": _installed("triton"),
        "cuda": torch.version.cuda or "none",
        "version": icr.__version__,
        # A copy without its history may be told which commit it is.
        "commit": os.environ.get("ICR_KERNELS_COMMIT")
        or _output("git", "describe", "--always", "--dirty", "--exclude=*")
        or "unknown",
        "date": datetime.date.today().isoformat(),
    }


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    except OSError:
        return ""
    return done.stdout.strip().partition("\n")[0] if done.returncode == 0 else ""


def read(folder: Path) -> list[Row]:
    if not (folder / CSV).exists():
        return []
    with (folder / CSV).open(newline="") as file:
        return list(csv.DictReader(file))


def merge(folder: Path, rows: Iterable[Row]) -> None:
    """Puts rows into the CSV; each takes the place of its predecessor."""

    def key(row: Row) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in KEY)

    merged = {key(row): row for row in (*read(folder), *rows)}
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{CSV}.part"
    with unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(merged.values())
    unfinished.replace(folder / CSV)  # an interruption leaves the old file or the new one


def quantiles(times: Sequence[float]) -> dict[str, float]:
    tenths = statistics.quantiles(times, n=10, method="inclusive") if len(times) > 1 else [times[0]] * 9
    return {"p20": round(tenths[1], 3), "p50": round(tenths[4], 3), "p80": round(tenths[7], 3)}


def row(device: str, figure: str, case: Case, quantity: str, name: str, unit: str, **rest: Any) -> Row:
    """One line of the CSV: what was measured, under which circumstances, and in ``rest`` what came of it."""
    if unit == "us" and "p50" in rest:
        rest["ns_per_pair"] = round(rest["p50"] * 1e3 / case.pairs, 4)
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "figure": figure,
        "case": case.name,
        "shape": case.shape,
        "dtype": case.dtype,
        "quantity": quantity,
        "implementation": name,
        "unit": unit,
        "pairs": case.pairs,
        **versions(),
        **rest,
    }


def is_busy(rows: Iterable[Row]) -> bool:
    """Whether others used the machine in the meantime, so that the times are not those of the code."""
    return any(float(row.get("waited") or 0) > BUSY for row in rows)


class Table:
    """The rows of one case in all its shapes, looked up by what they are of. Rows without a number count as absent."""

    def __init__(self, rows: Iterable[Row], case: str, dtype: str = "float32", threads: int | None = None) -> None:
        self.rows = {
            (row["figure"], row["implementation"], row["quantity"], int(row["pairs"]), row["unit"]): row
            for row in rows
            if row["p50"] != ""
            and (row["case"], row["dtype"]) == (case, dtype)
            and (threads is None or int(row["threads"]) == threads)
        }

    def row(self, figure: str, name: str, quantity: str, pairs: int, unit: str = "us") -> Row | None:
        return self.rows.get((figure, name, quantity, pairs, unit))

    def median(self, figure: str, name: str, quantity: str, pairs: int, unit: str = "us") -> float | None:
        found = self.row(figure, name, quantity, pairs, unit)
        return None if found is None else float(found["p50"])

    def ratio(self, figure: str, quantity: str, pairs: int, names: Sequence[str], ours: str = "cuda") -> float | None:
        """How many times the fastest of ``names`` takes what ``ours`` takes."""
        times = [time for name in names if (time := self.median(figure, name, quantity, pairs)) is not None]
        mine = self.median(figure, ours, quantity, pairs)
        return min(times) / mine if times and mine else None

    def names(self, figure: str) -> list[str]:
        """Implementations in the order of the file, the copy last."""
        return sorted(dict.fromkeys(key[1] for key in self.rows if key[0] == figure), key=lambda name: name == COPY)

    def sizes(self, figure: str) -> list[int]:
        return sorted({key[3] for key in self.rows if key[0] == figure})

    def quantities(self, figure: str) -> list[str]:
        return list(dict.fromkeys(key[2] for key in self.rows if key[0] == figure))
