"""The measurements: ``python -m benchmarks.gpu.measure``, which `bench` runs as a process of its own.

Figures that are never mixed: time on the device at cold cache, time of the host a call, wall time end to end, and
memory with the counts of launches and synchronisations. An implementation whose result disagrees with the reference has
no row but one that says so.
"""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import icr_kernels as icr
from benchmarks import aligned
from icr_kernels import autograd, checks
from icr_kernels.backends import BY_NAME
from icr_kernels.operators import WANTED_PRED
from icr_kernels.terminal import progress
from icr_kernels.variants import REDUCTION_IDS

from . import counting, results
from .results import COPY, Row

OURS = ("cuda", "triton")
SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
HOST_SIZES = (1_000, 10_000)
COUNTED_SIZE = 100_000

# What each quantity has to read and write, in bytes a pair of float32 boxes with a gradient to the prediction.
BYTES = {"forward": 48, "forward with gradient": 64, "backward scaling": 32, "forward + backward": 96}

# Cycles that the device is kept busy for while the host gets ahead of it: about half a millisecond.
HEAD_START = 1_000_000

Boxes = tuple[Tensor, Tensor, Tensor]


@functools.cache
def implementations() -> dict[str, aligned.Loss | str]:
    """This package's backends and the peers; what cannot run here is the reason why."""
    ours: dict[str, aligned.Loss | str] = {}
    for name in OURS:
        obstacle = BY_NAME[name].obstacle("cuda")
        ours[name] = obstacle or functools.partial(icr.icr_loss, backend=name)
    return {**ours, **aligned.peers()}


def loss_of(name: str) -> aligned.Loss:
    """The implementation, or an error that says why there is none."""
    loss = implementations()[name]
    if isinstance(loss, str):
        raise RuntimeError(loss)
    return loss


@functools.lru_cache(maxsize=1)
def _boxes(pairs: int) -> list[Tensor]:
    return [rows.detach().cuda() for rows in aligned.boxes(pairs)]


def boxes(pairs: int) -> Boxes:
    pred, target, anchors = _boxes(pairs)
    return pred.detach().requires_grad_(), target, anchors


@functools.lru_cache(maxsize=64)
def agrees(name: str, pairs: int) -> bool:
    return aligned.agrees(loss_of(name), *boxes(pairs))


# Calls


def forward(name: str, given: Boxes) -> Tensor:
    with torch.no_grad():
        return loss_of(name)(*given)


def forward_with_gradient(name: str, given: Boxes) -> Tensor:
    return loss_of(name)(*given)


def forward_and_backward(name: str, given: Boxes) -> Tensor:
    """The gradient from above is given: making a 1 would be another launch, everybody's."""
    return torch.autograd.grad(loss_of(name)(*given), given[0], one())[0]


def backward_scaling(name: str, given: Boxes) -> Tensor:
    """The launch of a backward pass alone; the targets stand for the gradient."""
    operators = BY_NAME[name].operators
    assert operators is not None
    return operators.scaled(given[1], one(), None, torch.float32, None, None)


def operator_call(name: str, given: Boxes) -> Callable[[], Any]:
    """The operator of a forward with gradient, without the checks and the autograd around it."""
    operators = BY_NAME[name].operators
    assert operators is not None
    pred, target, anchors = (rows.detach() for rows in given)
    numbers = autograd.numbers(checks.formula("ciou", "containment", 1.0, False, 1e-7, "xyxy", anchors))
    options = (1.0, REDUCTION_IDS["mean"], *numbers, WANTED_PRED, False)
    return lambda: operators.loss(pred, target, anchors, None, None, None, None, *options)


CALLS: dict[str, Callable[[str, Boxes], Any]] = {
    "forward": forward,
    "forward with gradient": forward_with_gradient,
    "backward scaling": backward_scaling,
    "forward + backward": forward_and_backward,
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
    if not torch.allclose(outputs[0], expected, rtol=1e-4, atol=1e-7):
        raise RuntimeError("a replayed graph gives another result than the call")
    times = [begin.elapsed_time(end) * 1e3 / len(given) for begin, end in events]
    del graph, outputs, expected
    torch.cuda.empty_cache()
    return times


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


def copies_of(pairs: int, count: int) -> list[Boxes]:
    """Boxes in memory of their own."""
    first = boxes(pairs)
    turned = [[rows.detach().roll(turn, 0) for rows in first] for turn in range(1, count)]
    return [first, *((pred.requires_grad_(), target, anchors) for pred, target, anchors in turned)]


def calls_in_graph(name: str, pairs: int) -> int:
    """Enough for what is around a graph not to count; eager code makes hundreds of nodes a call."""
    return 2 if name.startswith("eager") else max(2, min(20, 2**28 // (64 * pairs)))


# Rows


def row(figure: str, name: str, quantity: str, pairs: int, unit: str, **rest: Any) -> Row:
    return {
        "device": torch.cuda.get_device_name(),
        "figure": figure,
        "implementation": name,
        "quantity": quantity,
        "dtype": "float32",
        "pairs": pairs,
        "unit": unit,
        **{key: value for key, value in _versions().items() if key in results.COLUMNS},
        **rest,
    }


_versions = functools.cache(results.versions)


def quantiles(times: list[float]) -> dict[str, float]:
    tenths = statistics.quantiles(times, n=10, method="inclusive")
    return {"p20": round(tenths[1], 3), "p50": round(tenths[4], 3), "p80": round(tenths[7], 3)}


@functools.cache
def copy_time(bytes_per_pair: int, pairs: int, count: int) -> dict[str, float]:
    """The floor: what a copy takes that reads and writes as many bytes; the faster of two ways to copy."""
    elements = pairs * bytes_per_pair // 2 // 4
    given = [(torch.rand(elements, device="cuda"), torch.empty(elements, device="cuda")) for _ in range(count)]
    ways = [
        device_times(lambda each: each[1].copy_(each[0]), given),
        device_times(lambda each: torch.mul(each[0], 1.0, out=each[1]), given),
    ]
    return min(map(quantiles, ways), key=lambda way: way["p50"])


def device_row(name: str, quantity: str, pairs: int) -> list[Row]:
    if name == "eager, torchvision":
        note = "not measured: it waits for the device, so no graph can hold it"
        return [row("device", name, quantity, pairs, "us", note=note)]
    count = calls_in_graph(name, pairs)
    times = quantiles(device_times(functools.partial(CALLS[quantity], name), copies_of(pairs, count)))
    floor = copy_time(BYTES[quantity], pairs, count)
    return [
        row(
            "device",
            which,
            quantity,
            pairs,
            "us",
            bytes_per_pair=BYTES[quantity],
            fraction_of_copy=round(floor["p50"] / figures["p50"], 4),
            **figures,
        )
        for which, figures in ((name, times), (COPY, floor))
        # The peers' graphs are shorter, and so would be the floor's.
        if which == name or name in OURS
    ]


def host_row(name: str, quantity: str, pairs: int) -> list[Row]:
    given = boxes(pairs)
    call: Callable[[], Any]
    if quantity == "operator":
        call = operator_call(name, given)
    elif quantity == "forward with gradient":
        call = functools.partial(loss_of(name), *given)
    else:
        call = aligned.step(loss_of(name), *given)
    # The queue of launches must not fill up.
    times = wall_times(call, 4 if name.startswith("eager") else 100, 50, wait=False)
    return [row("host", name, quantity, pairs, "us", **quantiles(times))]


def wall_row(name: str, quantity: str, pairs: int) -> list[Row]:
    times = wall_times(aligned.step(loss_of(name), *boxes(pairs)), 5 if pairs > 1_000_000 else 20, 15, wait=True)
    return [row("end to end", name, quantity, pairs, "us", **quantiles(times))]


def count_rows(name: str, quantity: str, pairs: int) -> list[Row]:
    """Of a forward with gradient and of its backward, each alone."""
    given = boxes(pairs)
    loss = loss_of(name)

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
        rows += [row("counts", name, which, pairs, unit, p50=number) for unit, number in counts.items()]

    def both() -> Tensor:
        return aligned.step(loss, *given)()

    rows.append(row("counts", name, "forward + backward", pairs, "peak bytes", p50=counting.memory(both)["peak bytes"]))
    return rows


def jobs() -> Iterator[tuple[str, Callable[[str, str, int], list[Row]], str, str, int]]:
    """Figure, how it is measured, and what of; the targets' own figures first."""
    everybody = tuple(implementations())
    for pairs in SIZES:
        for name in everybody:
            yield "end to end", wall_row, name, "forward + backward", pairs
    for pairs in HOST_SIZES:
        for name in everybody:
            for quantity in ("operator",) * (name in OURS) + ("forward with gradient", "forward + backward"):
                yield "host", host_row, name, quantity, pairs
    for name in everybody:
        yield "counts", count_rows, name, "forward + backward", COUNTED_SIZE
    for pairs in SIZES:
        for name in everybody:
            for quantity in BYTES if name in OURS else ("forward + backward",):
                yield "device", device_row, name, quantity, pairs


def measured(figure: str, how: Callable[[str, str, int], list[Row]], name: str, quantity: str, pairs: int) -> list[Row]:
    """The rows of a job; where it has no result, one that says why."""
    unit = "kernels" if figure == "counts" else "us"
    try:
        if not agrees(name, pairs):
            return [row(figure, name, quantity, pairs, unit, note="disagrees with the reference")]
        return how(name, quantity, pairs)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        return [row(figure, name, quantity, pairs, unit, note=reason)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.measure", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="the folder of the CSV")
    parser.add_argument("--limit", type=float, required=True, help="seconds after which no measurement is begun")
    options = parser.parse_args()
    began = time.monotonic()
    todo = list(jobs())
    done = wrong = 0
    figure = ""
    for job in progress(todo, "measuring"):
        if time.monotonic() - began > options.limit:
            print(f"stopped after {options.limit:.0f} s with {len(todo) - done} of {len(todo)} measurements left")
            return 1
        if job[0] != figure:
            figure = job[0]
            print(f"{figure} ({time.monotonic() - began:.0f} s)", flush=True)
        rows = measured(*job)
        results.merge(options.output, rows)
        done += 1
        for each in rows:
            if each.get("note"):
                print(f"{figure}: {each['implementation']}, {each['pairs']:,} pairs: {each['note']}", flush=True)
                wrong += each["implementation"] in OURS
    print(f"{done} measurements, {wrong} of this package without a result")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
