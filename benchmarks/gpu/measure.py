"""The measurements: ``python -m benchmarks.gpu.measure``, which the parts `times` and `peers` run.

Figures that are never mixed: time on the device at cold cache, time of the host per call, wall time end to end, and
memory with the counts of launches and synchronisations. An implementation whose result disagrees with the reference has
no row but one that says so.
"""

import argparse
import functools
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import aligned, assignment, catalogue, detection, results
from benchmarks.case import BOTH, COPY, FILL, FORWARD, Case, Function, Inputs, first_line, loaded
from benchmarks.results import Row, quantiles
from benchmarks.run import DISAGREES
from icr_kernels.backends import BY_NAME
from icr_kernels.calls import PRED, Formula, LossCall
from icr_kernels.variants import REDUCTION_IDS

from . import counting
from .parts import LOST, NO_RESULT

OURS = ("cuda", "triton")
FIGURES = ("device", "host", "counts", "end to end")
SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
HOST_SIZES = (1_000, 10_000)
COUNTED_SIZE = 100_000

# What each quantity has to read and write, in bytes per pair of float32 boxes with a gradient to the prediction.
BYTES = {FORWARD: 48, "forward with gradient": 64, "backward scaling": 32, BOTH: 64}

# All pairs, whose time on the device is measured too.
MATRICES = ("pairwise iou",)
SELECTIONS = ("row maximum", "row maximum of 128 images")
# The assignment, in these shapes.
ASSIGNMENTS = (assignment.shape(16, 100, 640), assignment.CROWDED)
# The whole criterion of a dense head, of these.
CRITERIA = (
    detection.USUAL,
    detection.USUAL._replace(dtype=torch.bfloat16),
    detection.Head(16, 300, 365),
)

# Cycles that the device is kept busy for while the host gets ahead of it: about half a millisecond.
HEAD_START = 1_000_000

main_case = functools.cache(aligned.main_case)


@functools.cache
def names(case: Case) -> list[str]:
    """This package's backends and the peers."""
    return list(case.loaders("cuda"))


@functools.lru_cache(maxsize=64)
def found(case: Case, name: str) -> Function | str:
    return loaded(case.loaders("cuda")[name])


def function_of(case: Case, name: str) -> Function:
    """The implementation, or an error that says why there is none."""
    function = found(case, name)
    if isinstance(function, str):
        raise RuntimeError(function)
    return function


@functools.lru_cache(maxsize=1)
def _inputs(case: Case) -> Inputs:
    return case.inputs_on("cuda")


def inputs(case: Case) -> Inputs:
    """The leaf, if there is one, is the caller's own: gradients of others do not add up in it."""
    return tuple(each.detach().requires_grad_(each.requires_grad) for each in _inputs(case))


@functools.lru_cache(maxsize=1)
def truth(case: Case) -> Any:
    return case.truth(inputs(case))


@functools.lru_cache(maxsize=64)
def agrees(case: Case, name: str) -> bool:
    return case.agrees(function_of(case, name), inputs(case), truth(case))


# Calls


def forward(case: Case, name: str, given: Inputs) -> Tensor:
    with torch.no_grad():
        return function_of(case, name)(*given)


def forward_with_gradient(case: Case, name: str, given: Inputs) -> Tensor:
    return function_of(case, name)(*given)


def forward_and_backward(case: Case, name: str, given: Inputs) -> tuple[Tensor, ...]:
    """The gradient from above is given: making a 1 would be another launch, everybody's."""
    leaves = [each for each in given if each.requires_grad]
    return torch.autograd.grad(function_of(case, name)(*given), leaves, one())


def backward_scaling(case: Case, name: str, given: Inputs) -> Tensor:
    """The launch of a backward pass alone; the targets stand for the gradient."""
    operators = BY_NAME[name].operators
    assert operators is not None
    return operators.scaled(given[1], one(), None, torch.float32, None, None)


def operator_call(name: str, given: Inputs) -> Callable[[], Any]:
    """The operator of a forward with gradient, without the checks and the autograd around it."""
    operators = BY_NAME[name].operators
    assert operators is not None
    pred, target, anchor_objects = (rows.detach() for rows in given)
    formula = Formula("ciou", "containment")
    call = LossCall(
        pred,
        target,
        anchor_objects,
        target_index=None,
        anchor_index=None,
        weight=None,
        mask=None,
        pixels=None,
        wise_mean=None,
        normalizer=None,
        scale=1.0,
        reduction=REDUCTION_IDS["mean"],
        numbers=formula.packed(),
        wanted=PRED,
        in_box_dtype=False,
    )
    return lambda: operators.loss(*call)


CALLS: dict[str, Callable[[Case, str, Inputs], Any]] = {
    FORWARD: forward,
    "forward with gradient": forward_with_gradient,
    "backward scaling": backward_scaling,
    BOTH: forward_and_backward,
}


@functools.cache
def one() -> Tensor:
    return torch.ones((), device="cuda")


# Times, in microseconds


@functools.cache
def _flush() -> tuple[Tensor, Tensor]:
    return torch.zeros(torch.cuda.get_device_properties(0).L2_cache_size, device="cuda"), torch.empty((), device="cuda")


def flush_cache() -> None:
    """Reads four times what the cache holds. Written lines would have to be written back in the time of others."""
    rows, total = _flush()
    torch.sum(rows, dim=0, out=total)


def device_times(call: Callable[[Any], Any], given: list[Any], repeats: int = 40) -> list[float]:
    """Time of one call on the device, launches by the host not counted: a graph of one call for each of the ``given``,
    replayed from a flushed cache. Every call has inputs and outputs of its own, so none finds them in the cache."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            expected = call(given[0])
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = [call(each) for each in given]
    graph.replay()
    events = []
    for _ in range(repeats):
        flush_cache()
        torch.cuda._sleep(HEAD_START)
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        events.append((begin, end))
    torch.cuda.synchronize()
    if not all(
        torch.allclose(one, other, rtol=1e-4, atol=1e-7)
        for one, other in zip(*map(flat, (outputs[0], expected)), strict=True)
    ):
        raise RuntimeError("a replayed graph gives another result than the call")
    times = [begin.elapsed_time(end) * 1e3 / len(given) for begin, end in events]
    del graph, outputs, expected
    torch.cuda.empty_cache()
    return times


def flat(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def wall_times(call: Callable[[], Any], calls: int, batches: int, wait: bool) -> list[float]:
    """Time of one call by the host's clock, in batches; ``wait`` for the device at the end of each or only before."""
    for _ in range(3):
        call()
    times = []
    for _ in range(batches):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        if wait:
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e6 / calls)
    torch.cuda.synchronize()
    return times


def copies_of(case: Case, count: int) -> list[Inputs]:
    """Inputs in memory of their own."""
    first = inputs(case)
    return [
        tuple(each.detach().clone().requires_grad_(each.requires_grad) for each in first) if copy else first
        for copy in range(count)
    ]


def calls_in_graph(name: str, count_of_bytes: float) -> int:
    """Enough for what is around a graph not to count; eager code makes hundreds of nodes per call."""
    return 2 if name.startswith("eager") else max(2, min(20, int(2**28 // count_of_bytes)))


# Rows


def row(figure: str, case: Case, quantity: str, name: str, unit: str, **rest: Any) -> Row:
    return results.row(torch.cuda.get_device_name(), figure, case, quantity, name, unit, **rest)


@functools.cache
def floor_time(floor: str, count_of_bytes: int, count: int) -> dict[str, float]:
    """What a copy takes that reads and writes as many bytes, the faster of two ways to copy; or a fill that writes as
    many."""
    if floor == FILL:
        memories = [torch.empty(count_of_bytes // 4, device="cuda") for _ in range(count)]
        return quantiles(device_times(lambda memory: memory.fill_(1.0), memories))
    elements = count_of_bytes // 2 // 4
    given = [(torch.rand(elements, device="cuda"), torch.empty(elements, device="cuda")) for _ in range(count)]
    ways = [
        device_times(lambda each: each[1].copy_(each[0]), given),
        device_times(lambda each: torch.mul(each[0], 1.0, out=each[1]), given),
    ]
    return min(map(quantiles, ways), key=lambda way: way["p50"])


def floor_of(case: Case, quantity: str) -> tuple[str, float]:
    """Which, and of how many bytes a pair."""
    if case.name in MATRICES:
        return FILL, 4
    if case.name == detection.NAME:
        assert case.bytes_per_pair is not None
        return COPY, case.bytes_per_pair
    return COPY, BYTES[quantity]


def device_row(case: Case, name: str, quantity: str) -> list[Row]:
    """Beside the floor: a copy, of a matrix a fill, of a selection nothing."""
    if name == "eager, torchvision":
        note = "not measured: it waits for the device, so no graph can hold it"
        return [row("device", case, quantity, name, "us", note=note)]
    call = functools.partial(CALLS[quantity], case, name)
    if case.name in (*SELECTIONS, assignment.NAME):
        return [row("device", case, quantity, name, "us", **quantiles(device_times(call, copies_of(case, 2))))]
    floor, of_a_pair = floor_of(case, quantity)
    count = calls_in_graph(name, of_a_pair * case.pairs)
    times = quantiles(device_times(call, copies_of(case, count)))
    least = floor_time(floor, round(of_a_pair * case.pairs), count)
    return [
        row(
            "device",
            case,
            quantity,
            which,
            "us",
            bytes_per_pair=of_a_pair,
            fraction_of_copy=round(least["p50"] / figures["p50"], 4),
            **figures,
        )
        for which, figures in ((name, times), (floor, least))
        # The peers' graphs are shorter, and so would be the floor's.
        if which == name or name in OURS
    ]


def host_row(case: Case, name: str, quantity: str) -> list[Row]:
    given = inputs(case)
    function = function_of(case, name)
    call: Callable[[], Any]
    if quantity == "operator":
        call = operator_call(name, given)
    elif quantity == "forward with gradient":
        call = functools.partial(function, *given)
    else:
        call = case.quantities[quantity](function, given)
    # The queue of launches must not fill up.
    times = wall_times(call, 4 if name.startswith("eager") else 100, 50, wait=False)
    return [row("host", case, quantity, name, "us", **quantiles(times))]


def wall_row(case: Case, name: str, quantity: str) -> list[Row]:
    """End to end; and, where that is asked for, the peak of memory, which gradients are part of."""

    def call_of_its_own() -> Callable[[], Any]:
        return case.quantities[quantity](function_of(case, name), inputs(case))

    call = call_of_its_own()
    calls = 20 if case.pairs <= 1_000_000 else 5 if case.pairs <= 100_000_000 else 1
    times = wall_times(call, calls, 15, wait=True)
    rows = [row("end to end", case, quantity, name, "us", **quantiles(times))]
    if case.memory:
        peak = counting.memory(call_of_its_own())["peak bytes"]
        rows.append(row("counts", case, quantity, name, "peak bytes", p50=peak))
    return rows


def call_count_rows(case: Case, name: str, quantity: str) -> list[Row]:
    """Memory is counted beside the wall time."""
    call = case.quantities[quantity](function_of(case, name), inputs(case))
    call()
    counts = counting.launches(call) | counting.synchronisations(call)
    return [row("counts", case, quantity, name, unit, p50=number) for unit, number in counts.items()]


def count_rows(case: Case, name: str, quantity: str) -> list[Row]:
    """Of a forward with gradient and of its backward, each alone."""
    given = inputs(case)
    loss = function_of(case, name)

    def go_forward() -> Tensor:
        return loss(*given)

    def go_back(value: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(value, given[0], one())

    go_back(go_forward())
    rows = []
    for which in ("forward with gradient", "backward"):
        counts: dict[str, int] = {}
        for count in (counting.memory, counting.launches, counting.synchronisations):
            # Made anew for each count: compiled code has no second backward pass.
            call = go_forward if which != "backward" else functools.partial(go_back, go_forward())
            counts |= count(call)
        rows += [row("counts", case, which, name, unit, p50=number) for unit, number in counts.items()]

    both = case.quantities[BOTH](loss, given)
    rows.append(row("counts", case, BOTH, name, "peak bytes", p50=counting.memory(both)["peak bytes"]))
    return rows


Job = tuple[str, Callable[[Case, str, str], list[Row]], Case, str, str]


def stage(name: str) -> int:
    """This package comes first, and of it what need not be compiled; then eager code, then what torch compiles, and
    last of all what it compiles for each shape."""
    others = name not in OURS
    return (name == "triton") + 2 * others + name.startswith("torch.compile") + name.endswith(", static")


def is_target(figure: str, case: Case, quantity: str) -> bool:
    """Whether a target of the report hangs on it."""
    if figure == "device":
        return case.pairs == SIZES[-1] or str(case).startswith(("pairwise iou, 8400 x 1000", "row maximum, 1000000 x"))
    return case.name == aligned.MAIN and (figure, quantity) in (("host", "forward with gradient"), ("end to end", BOTH))


def jobs() -> list[Job]:
    """Figure, how it is measured, and what of. By stages, and in each the targets' own figures first."""
    # What is compiled for one shape is compiled for each: at one size only, of a run that has two minutes.
    everybody = names(main_case(HOST_SIZES[-1]))
    any_shape = [name for name in everybody if not name.endswith(", static")]
    todo: list[Job] = []
    for pairs in SIZES:
        for name in any_shape:
            for quantity in BYTES if name in OURS else (BOTH,):
                todo.append(("device", device_row, main_case(pairs), name, quantity))
    for case in catalogue.chosen(full=True):
        if case.name in MATRICES + SELECTIONS:
            todo += [("device", device_row, case, name, FORWARD) for name in OURS]
    assigned = [case for case in catalogue.chosen([assignment.NAME], full=True) if case.shape in ASSIGNMENTS]
    criteria = [detection.case(head) for head in CRITERIA]
    whole = [*assigned, *criteria]
    for case in whole:
        todo += [("device", device_row, case, name, case.quantity) for name in OURS]
    for pairs in HOST_SIZES:
        for name in everybody if pairs == HOST_SIZES[-1] else any_shape:
            for quantity in ("operator",) * (name in OURS) + ("forward with gradient", BOTH):
                todo.append(("host", host_row, main_case(pairs), name, quantity))
    todo += [("counts", count_rows, main_case(COUNTED_SIZE), name, BOTH) for name in any_shape]
    for pairs in SIZES:
        for name in everybody if pairs == HOST_SIZES[-1] else any_shape:
            todo.append(("end to end", wall_row, main_case(pairs), name, BOTH))
    for case in whole:
        for name in names(case):
            if name == assignment.REFERENCE:  # the truth is its own
                continue
            todo.append(("end to end", wall_row, case, name, case.quantity))
            todo.append(("counts", call_count_rows, case, name, case.quantity))
    for case in catalogue.chosen():
        if case.name not in (aligned.MAIN, assignment.NAME, detection.NAME):
            for name in names(case):
                if not name.endswith(", static"):
                    todo.append(("end to end", wall_row, case, name, case.quantity))
    return sorted(todo, key=lambda job: (stage(job[3]), not is_target(job[0], job[2], job[4])))


def measured(job: Job) -> list[Row]:
    """The rows of a job; where it has no result, one that says why."""
    figure, how, case, name, quantity = job
    unit = "kernels" if figure == "counts" else "us"
    try:
        if not agrees(case, name):
            return [row(figure, case, quantity, name, unit, note=DISAGREES)]
        return how(case, name, quantity)
    except Exception as error:
        return [row(figure, case, quantity, name, unit, note=f"{type(error).__name__}: {first_line(error)}")]


def is_lost() -> bool:
    """Whether an error has taken the device from this process for good."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def shown(rows: list[Row]) -> str:
    """In one line; `parts` looks for what has no result."""
    return "; ".join(
        f"{row['implementation']}, {row['quantity']}, "
        + (f"{NO_RESULT}: {row['note']}" if row.get("note") else f"{row['p50']:,g} {row['unit']}")
        for row in rows
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.measure", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="the folder of the CSV")
    parser.add_argument("--limit", type=float, required=True, help="seconds after which no measurement is begun")
    parser.add_argument("--figures", nargs="+", choices=FIGURES, default=FIGURES, help="default: all")
    parser.add_argument(
        "--only", metavar="PATTERN", default="", help="implementations whose name matches (default: all)"
    )
    parser.add_argument("--skip", type=int, default=0, help="so many measurements, which have been made")
    parser.add_argument("--without", metavar="NAME", nargs="+", default=(), help="implementations to leave out")
    parser.add_argument("--dry-run", action="store_true", help="names what would be measured")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    todo = [job for job in jobs() if job[0] in options.figures and re.search(options.only, job[3])]
    if options.dry_run:
        for figure, _, case, name, quantity in todo:
            print(f"{figure}: {case}: {name}, {quantity}")
        print(f"{len(todo)} measurements")
        return 0 if todo else 1
    done, wrong = options.skip, 0
    for job in todo[done:]:
        if job[3] in options.without:
            done += 1
            continue
        seconds = time.monotonic() - began
        if seconds > options.limit:
            print(f"stopped after {options.limit:.0f} s with {len(todo) - done} of {len(todo)} measurements left")
            return 1
        rows = measured(job)
        results.merge(options.output, rows)
        done += 1
        print(f"{seconds:5.1f} s, {done} of {len(todo)}, {job[0]}, {job[2]}: {shown(rows)}", flush=True)
        failed = [each for each in rows if each.get("note")]
        wrong += sum(each["implementation"] in OURS for each in failed)
        if failed and is_lost():
            print(f"{LOST} after {done} of {len(todo)} measurements, in {job[3]}")
            return 1
    print(f"{done} measurements, {wrong} of this package without a result")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
