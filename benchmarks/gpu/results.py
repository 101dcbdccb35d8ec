"""The folder of results of one kind of GPU: a JSON file for each part of a run, and the CSV of the measurements."""

import csv
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

import icr_kernels as icr
from icr_kernels.info import cpu_name

# Names that rows are looked up by.
COPY = "copy"
BOTH = "forward + backward"

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PARTS = ("test", "sanitize", "bench")
CSV = "bench.csv"

# A row is known by these: measured again, it is replaced.
KEY = ("device", "figure", "implementation", "quantity", "dtype", "pairs", "unit")
COLUMNS = (
    *KEY,
    "p20",
    "p50",
    "p80",
    "bytes_per_pair",
    "fraction_of_copy",
    "note",
    "torch",
    "triton",
    "cuda",
    "version",
    "commit",
    "date",
)
Row = dict[str, Any]


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


def versions() -> dict[str, str]:
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "none"
    return {
        "torch": torch.__version__,
        "triton": triton,
        "cuda": torch.version.cuda or "none",
        "version": icr.__version__,
        # A copy without its history may be told which commit it is.
        "commit": os.environ.get("ICR_KERNELS_COMMIT")
        or _output("git", "describe", "--always", "--dirty", "--exclude=*")
        or "unknown",
        "date": datetime.date.today().isoformat(),
    }


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    except OSError:
        return ""
    return done.stdout.strip().partition("\n")[0] if done.returncode == 0 else ""


@dataclasses.dataclass
class Outcome:
    """How a part ended: in one sentence, with the lines that say more where it failed."""

    ok: bool
    summary: str
    details: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    machine: dict[str, str] = dataclasses.field(default_factory=dict)

    def save(self, folder: Path, part: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{part}.json").write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")


def outcomes(folder: Path) -> dict[str, Outcome]:
    """Those of the parts that have run."""
    files = {part: folder / f"{part}.json" for part in PARTS}
    return {part: Outcome(**json.loads(file.read_text())) for part, file in files.items() if file.exists()}


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
    with (folder / CSV).open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(merged.values())


class Table:
    """The rows of the CSV, looked up by what they are of. A row without a number counts as absent."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = {self._key(row): row for row in rows if row["p50"] != ""}

    @staticmethod
    def _key(row: Row) -> tuple[str, str, str, int, str]:
        return row["figure"], row["implementation"], row["quantity"], int(row["pairs"]), row["unit"]

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
