"""The measurements on a CPU. A case is measured whole, its implementations taking turns, so that what is compared was
measured in the same minutes; a result that disagrees with the reference has no time."""

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from icr_kernels.info import cpu_name
from icr_kernels.terminal import progress

from . import memory, results
from .case import COPY, DROP_IN, Call, Case, LeftOut, copy, first_line, loaded
from .results import Row

DISAGREES = "disagrees with the reference"
TURNS = 5
MOST_CALLS = 1_000  # that are timed in a turn
PATIENCE = 10.0  # seconds after which, and after its budget, an implementation has no more turns


def seconds_of(calls: Sequence[Call], budget: float) -> list[list[float]]:
    """Times of single calls, in turns. A turn begins with a call that does not count, unless that takes all of it."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(1, TURNS + 1):
        for call, own in zip(calls, times, strict=True):
            if sum(own) > max(budget, PATIENCE):
                continue
            begin = time.perf_counter()
            call()
            now = time.perf_counter()
            end = begin + budget / TURNS
            if now > end:
                own.append(now - begin)
            while now < end and len(own) < turn * MOST_CALLS:
                begin = now
                call()
                now = time.perf_counter()
                own.append(now - begin)
    return times


def queued() -> float | None:
    """Seconds that threads of this process could have run and had no processor, all together; None: not known here."""
    try:
        files = [path.read_text().split() for path in Path("/proc/self/task").glob("*/schedstat")]
    except OSError:
        return None
    return sum(int(fields[1]) for fields in files) / 1e9 if files else None


@dataclasses.dataclass
class Rounds:
    """What the rounds of a case have found: of each implementation and quantity the times of single calls, and the
    largest share of a round that was spent in a queue. Between two rounds all other cases are measured, so that the
    quantiles of all times know how much the minutes differ."""

    count: int = 0
    seconds: dict[tuple[str, str], list[float]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    waited: float | None = None


def measure(
    case: Case,
    budget: float,
    leave_out: Callable[[str], bool],
    with_memory: bool,
    device: str | None = None,
    earlier: Rounds | None = None,
) -> list[Row]:
    """The rows of a case with torch's present number of threads, together with its earlier rounds, to which this one is
    added; ``budget`` seconds for each implementation."""
    rounds = earlier or Rounds()
    device = device or cpu_name()
    torch.compiler.reset()  # each case is compiled as in a program of its own
    inputs = case.inputs()
    truth = case.truth(inputs)
    notes: dict[str, str] = {}
    calls: dict[tuple[str, str], Call] = {}
    for name, load in case.loaders("cpu").items():
        if leave_out(name):
            continue
        found = loaded(load)
        try:
            if isinstance(found, str):
                notes[name] = found
            elif case.agrees(found, inputs, truth):
                calls |= {(name, what): make(found, inputs) for what, make in case.quantities.items()}
            else:
                notes[name] = DISAGREES
        except LeftOut as reason:  # only a call knows on which processor it is
            notes[name] = f"left out: {reason}"
        except Exception as error:
            notes[name] = f"{type(error).__name__}: {first_line(error)}"
    quantity = case.quantity
    floor: dict[str, float] = {}
    if case.bytes_per_pair is not None:
        calls[COPY, quantity] = copy(case.bytes_per_pair * case.pairs)
    before, began = queued(), time.perf_counter()
    for key, seconds in zip(calls, seconds_of(list(calls.values()), budget), strict=True):
        rounds.seconds[key] += seconds
    after, took = queued(), time.perf_counter() - began
    rounds.count += 1
    if before is not None and after is not None:
        rounds.waited = max(rounds.waited or 0, round((after - before) / took, 4))
    if case.bytes_per_pair is not None:
        floor = results.quantiles([each * 1e6 for each in rounds.seconds[COPY, quantity]])

    rows = []
    for (name, what), seconds in rounds.seconds.items():
        numbers = results.quantiles([each * 1e6 for each in seconds])
        extra: dict[str, Any] = {"waited": "" if rounds.waited is None else rounds.waited, "rounds": rounds.count}
        if floor and what == quantity:
            extra["bytes_per_pair"] = case.bytes_per_pair
            extra["fraction_of_copy"] = round(floor["p50"] / numbers["p50"], 4)
        rows.append(results.row(device, "end to end", case, what, name, "us", **numbers, **extra))
    rows += [results.row(device, "end to end", case, quantity, name, "us", note=note) for name, note in notes.items()]
    if with_memory and case.memory:
        for name in dict.fromkeys(name for name, _ in calls if name != COPY):
            rows += memory_rows(case, quantity, name, device)
    return rows


def memory_rows(case: Case, quantity: str, name: str, device: str) -> list[Row]:
    try:
        peaks = memory.measured(str(case), name)
    except RuntimeError as error:
        return [results.row(device, "counts", case, quantity, name, "peak bytes", note=str(error))]
    return [results.row(device, "counts", case, quantity, name, unit, p50=peak) for unit, peak in peaks.items()]


class Profile(NamedTuple):
    rounds: int
    budget: float
    """Seconds for each implementation of a case, all rounds together."""
    without: str | None = None
    """A pattern of implementations that it leaves out."""


# Compiling takes most of the quick profile's time.
QUICK, FULL = Profile(1, 0.4, without="dynamic"), Profile(3, 2.0)
# What it takes to compile a function or to start a process for its memory, and what a case takes beside in each round:
# to say how long it will be.
COMPILING, STARTING, PREPARING = 4.0, 3.0, 2.0


def jobs(cases: Sequence[Case], threads: Sequence[int] | None, full: bool) -> list[tuple[Case, int]]:
    """Each case on torch's own threads; those that scale on fewer too, or all on those that were asked for."""
    own = torch.get_num_threads()
    fewer = [1 << power for power in range(own.bit_length()) if 1 << power < own] if full else []
    return [(case, count) for case in cases for count in threads or [*(fewer if case.scales else []), own]]


def duration(
    jobs: Sequence[tuple[Case, int]], profile: Profile, leave_out: Callable[[str], bool], with_memory: bool
) -> float:
    """About how many seconds, said before it begins."""
    total = 0.0
    for case, _ in jobs:
        names = [name for name in case.loaders("cpu") if not leave_out(name)]
        compiled = sum(name.startswith("torch.compile") for name in names)
        total += profile.rounds * (PREPARING + COMPILING * compiled) + profile.budget * len(names)
        total += STARTING * len(names) * (with_memory and case.memory)
    return total


def is_done(case: Case, threads: int, rounds: int, rows: Sequence[Row]) -> bool:
    """Whether rows of this case, of this build and torch, are already there with all rounds, and not those of a busy
    machine."""
    now = {"device": cpu_name(), "threads": str(threads), "case": case.name, "shape": case.shape, "dtype": case.dtype}
    now |= {name: text for name, text in results.versions().items() if name != "date"}
    found = [row for row in rows if all(str(row[name]) == text for name, text in now.items())]
    counts = [int(row.get("rounds") or 1) for row in found if row["unit"] == "us" and row["p50"] != ""]
    return bool(counts) and min(counts) >= rounds and not results.is_busy(found)


def run(
    todo: Sequence[tuple[Case, int]],
    folder: Path,
    profile: Profile,
    leave_out: Callable[[str], bool] = lambda name: False,
    with_memory: bool = True,
) -> Iterator[list[Row]]:
    """The rows of each job at the end of its last round; those of all rounds so far are in the folder's CSV."""
    own = torch.get_num_threads()
    found = [Rounds() for _ in todo]
    try:
        for job in progress([*range(len(todo))] * profile.rounds, "measuring"):
            case, threads = todo[job]
            torch.set_num_threads(threads)
            is_first = found[job].count == 0
            rows = measure(
                case, profile.budget / profile.rounds, leave_out, with_memory and is_first, earlier=found[job]
            )
            results.merge(folder, rows)
            if found[job].count == profile.rounds:
                yield rows
    finally:
        torch.set_num_threads(own)


def is_wrong(rows: Sequence[Row]) -> bool:
    """Whether this package itself disagrees somewhere."""
    ours = ("cpu", "cuda", "triton", DROP_IN)
    return any(row["implementation"] in ours and row.get("note") == DISAGREES for row in rows)
