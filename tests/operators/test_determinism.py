"""Same input, same bits: run after run, and whatever the number of threads."""

import concurrent.futures
import platform

import pytest
import torch

import emulated
import icr_kernels as icr
from inputs import (
    device_of,
    dtype_id,
    every_quick_backend,
    every_quick_compiled_backend,
    every_reduction,
    pairs,
    pairs_of_a_table,
    some_losses,
)
from oracle import evaluate
from poisoned import POISON
from tolerances import same_bits

# Small, around powers of two where work is cut into chunks, and primes that no chunk divides.
SIZES = (1, 37, 1023, 1024, 1025, 2047, 2048, 2049, 4095, 4096, 4097, 8191, 8192, 8193, 16384, 32769, 65537, 100_003)


def results(function, *boxes, **options) -> list[torch.Tensor]:
    return [tensor for tensor in evaluate(function, *boxes, **options) if tensor is not None]


def same(one, other) -> bool:
    return len(one) == len(other) and all(same_bits(a, b) for a, b in zip(one, other, strict=True))


@every_quick_backend
@every_reduction
@some_losses
def test_repeated_calls(loss, reduction, backend):
    pred, target, table, index = pairs_of_a_table(5003, 29, device=device_of(backend))
    options = {"anchor_index": index, "loss": loss, "reduction": reduction, "backend": backend}
    first = results(icr.icr_loss, pred, target, table, **options)
    for _ in range(5):
        assert same(first, results(icr.icr_loss, pred, target, table, **options))


@every_quick_compiled_backend
@pytest.mark.parametrize("n", SIZES)
def test_number_of_threads(n, backend, restored_threads):
    """Sums add in a fixed order: that of the pairs, not that of the threads."""
    boxes = pairs(n, device=device_of(backend), seed=n)
    mask = torch.arange(n, device=boxes[0].device) % 7 != 3
    for reduction in ("none", "sum", "mean"):
        options = {"mask": mask, "reduction": reduction, "backend": backend}
        runs = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(results(icr.icr_loss, *boxes, **options))
            runs[-1] += icr.icr_loss_and_grad(*boxes, **options)
        assert same(runs[0], runs[1]) and same(runs[0], runs[2]), reduction


@every_quick_compiled_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("m", [1, 5, 700, 20_000], ids="table_of_{}".format)
def test_gradient_of_a_table_of_anchor_objects(m, dtype, backend, restored_threads):
    """Many pairs add to one row, from several threads; the order is fixed."""
    n = 20_011
    if backend == emulated.NAME:  # slow there
        n, m = 2_011, min(m, 2_000)
    pred, target, table, index = pairs_of_a_table(n, m, dtype=dtype, device=device_of(backend))
    for reduction in ("none", "mean"):
        runs = []
        for threads in (1, 2, 2, 3):
            torch.set_num_threads(threads)
            options = {"anchor_index": index, "reduction": reduction, "backend": backend}
            runs.append(results(icr.icr_loss, pred, target, table, **options))
        assert all(same(runs[0], run) for run in runs)


@every_quick_compiled_backend
def test_a_long_sum_keeps_its_digits(backend):
    """A million terms of about 1: added one after the other in float32 they would be off in the fourth digit."""
    pred, target, _ = pairs(1009, device=device_of(backend))
    pred, target = pred.repeat(1000, 1), target.repeat(1000, 1)
    rows = icr.box_iou_loss(pred, target, reduction="none", backend=backend)
    exact = rows.double().sum().item()
    assert icr.box_iou_loss(pred, target, reduction="sum", backend=backend).item() == pytest.approx(exact, rel=1e-6)
    assert icr.box_iou_loss(pred, target, backend=backend).item() == pytest.approx(exact / len(pred), rel=1e-6)


@every_quick_compiled_backend
def test_calls_from_several_python_threads(backend):
    boxes = [pairs(3001, device=device_of(backend), seed=seed) for seed in range(4)]
    truth = [results(icr.icr_loss, *rows, backend=backend) for rows in boxes]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            runs = pool.map(lambda rows: results(icr.icr_loss, *rows, backend=backend), boxes)
            assert all(same(one, other) for one, other in zip(truth, runs, strict=True))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is poisoned through glibc only")
@pytest.mark.parametrize("size", [64, 1000, 2**12, 2**18, 2**22], ids="{}_bytes".format)
def test_memory_comes_poisoned(size):
    """What `poisoned.py` sets up: no test sees zeros, or an earlier result, where a kernel has not written."""
    values = torch.empty(size, dtype=torch.uint8)
    # The first bytes of a block are the allocator's own.
    assert (values[64:] == POISON).all() if size > 64 else values[-1] == POISON


def test_operators_take_their_memory_from_torch(extension):
    """And so their results lie in poisoned memory as well."""
    boxes = pairs(1000)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        terms = icr.icr_terms(*boxes, backend="cpu")
    taken = sum(event.self_cpu_memory_usage for event in profile.events() if event.name == "[memory]")
    taken += sum(event.self_cpu_memory_usage for event in profile.events() if event.name == "icr_kernels::terms")
    assert taken >= sum(4 * term.numel() for term in terms)
