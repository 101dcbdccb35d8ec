"""The best of a row or column of all pairs against the matrix, whatever the groups, ties and gaps; and its memory."""

import math
import resource
import subprocess
import sys

import pytest
import torch
from torch import Tensor

import icr_kernels as icr
from inputs import (
    crowd,
    device_of,
    every_backend,
    every_quick_backend,
    full_precision,
    grid_boxes,
    some_kinds,
)
from selections import SIZES, assert_is_max_of_matrix
from tolerances import same_bits

both_dimensions = pytest.mark.parametrize("dim", [-1, -2])


@every_backend
@full_precision
@both_dimensions
@some_kinds
def test_max_is_that_of_the_matrix(kind, dim, dtype, backend):
    device = device_of(backend)
    assert_is_max_of_matrix(crowd(40, 0, dtype, device), crowd(71, 1, dtype, device), backend, dim, kind=kind)


@every_backend
@both_dimensions
@pytest.mark.parametrize("kind", ["iou", "containment", "giou"])
def test_of_equals_the_first_is_best(kind, dim, backend):
    """Boxes of small integers are full of ties."""
    device = device_of(backend)
    boxes = grid_boxes(90, 3, 0, torch.float32).to(device), grid_boxes(1100, 3, 1, torch.float32).to(device)
    assert_is_max_of_matrix(*boxes, backend, dim, kind=kind)


@every_backend
@both_dimensions
@pytest.mark.parametrize(("n", "m"), SIZES)
def test_max_of_sizes(n, m, dim, backend):
    device = device_of(backend)
    assert_is_max_of_matrix(crowd(n, 0, device=device), crowd(m, 1, device=device), backend, dim)


@every_backend
@both_dimensions
@some_kinds
def test_groups_that_hold_all_boxes_change_no_bit(kind, dim, backend):
    """The maximum alone may have a kernel of its own."""
    device = device_of(backend)
    boxes = crowd(70, 0, device=device), crowd(1050, 1, device=device)
    boxes[0][5, 1] = boxes[1][9, 2] = math.nan
    groups = {f"group{i}": torch.zeros(len(each), dtype=torch.long, device=device) for i, each in enumerate(boxes, 1)}
    alone = icr.pairwise_max(*boxes, kind=kind, dim=dim, backend=backend)
    grouped = icr.pairwise_max(*boxes, kind=kind, dim=dim, **groups, backend=backend)
    assert all(map(same_bits, alone, grouped))


@every_backend
@both_dimensions
def test_nan_is_never_chosen(dim, backend):
    boxes1, boxes2 = crowd(20, 0), crowd(300, 1)
    boxes1[3], boxes2[::3], boxes2[7, 2] = math.nan, math.nan, math.nan
    device = device_of(backend)
    assert_is_max_of_matrix(boxes1.to(device), boxes2.to(device), backend, dim)
    found = icr.pairwise_max(boxes1.to(device), boxes2.to(device), backend=backend)
    assert (found.values[3].item(), found.indices[3].item()) == (-math.inf, -1)


def groups_of(order: str, n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randint(0, 6, (n,), generator=generator)
    groups[groups == 2 + seed] = 4  # 2 or 3 is empty on one side
    if order == "some invalid":
        groups[::5], groups[1::7] = -1, -3
        groups[2::11], groups[3::13] = 2**31, 2**40
        return groups
    if order == "int32":
        return groups.sort().values.int()
    return (
        groups if order == "unsorted" else groups.sort().values if order == "sorted" else 10**9 + groups.sort().values
    )


@every_backend
@both_dimensions
@pytest.mark.parametrize("order", ["sorted", "unsorted", "some invalid", "int32", "large"])
def test_groups(order, dim, backend):
    device = device_of(backend)
    boxes = crowd(170, 0, device=device), crowd(700, 1, device=device)
    groups = groups_of(order, 170, 0), groups_of(order, 700, 1)
    assert_is_max_of_matrix(*boxes, backend, dim, *groups, kind="containment")


@every_backend
def test_groups_of_batches_and_strides(backend):
    device = device_of(backend)
    boxes1, boxes2 = crowd(3 * 20, 0, device=device).view(3, 20, 4), crowd(33, 1, device=device)
    group1 = (torch.arange(3 * 20 * 2).view(3, 40) % 4)[:, ::2].to(device)
    group2 = torch.arange(33, device=device) % 4
    found = icr.pairwise_max(boxes1, boxes2, group1=group1, group2=group2, backend=backend)
    for batch in range(3):
        alone = icr.pairwise_max(boxes1[batch], boxes2, group1=group1[batch], group2=group2, backend=backend)
        assert same_bits(found.values[batch], alone.values) and same_bits(found.indices[batch], alone.indices)
    found = icr.pairwise_topk(boxes1, boxes2, 3, dim=1, group1=group1, group2=group2, backend=backend)
    for batch in range(3):
        groups = {"group1": group1[batch], "group2": group2}
        alone = icr.pairwise_topk(boxes1[batch], boxes2, 3, dim=0, **groups, backend=backend)
        assert same_bits(found.values[batch], alone.values) and same_bits(found.indices[batch], alone.indices)


@every_backend
def test_groups_are_a_batch_without_padding(backend):
    """The images of a batch in one call, and one by one."""
    device = device_of(backend)
    counts1, counts2 = (5, 0, 40, 1), (30, 12, 0, 3)
    boxes1, boxes2 = crowd(sum(counts1), 0, device=device), crowd(sum(counts2), 1, device=device)
    group1, group2 = (
        torch.arange(4).repeat_interleave(torch.tensor(counts)).to(device) for counts in (counts1, counts2)
    )
    found = icr.pairwise_max(boxes1, boxes2, group1=group1, group2=group2, backend=backend)
    start = 0
    for first, second in zip(boxes1.split(counts1), boxes2.split(counts2), strict=True):
        alone = icr.pairwise_max(first, second, backend=backend)
        rows = found.indices[: len(first)]
        found = icr.Selection(found.values[len(first) :], found.indices[len(first) :])
        assert torch.equal(torch.where(alone.indices < 0, -1, alone.indices + start), rows)
        start += len(second)


@every_quick_backend
def test_a_million_boxes_against_thousands(backend):
    """Against a matrix of a sample of the rows. The kernels of a GPU, emulated, take a hundredth."""
    n, m = (1_000_000, 2_000) if backend in ("cpu", "cuda") else (10_000, 200)
    device = device_of(backend)
    boxes1, boxes2 = crowd(n, 0, device=device), crowd(m, 1, device=device)
    found = icr.pairwise_max(boxes1, boxes2, backend=backend)
    sample = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:2_000].to(device)
    matrix = icr.pairwise_iou(boxes1[sample], boxes2, backend=backend)
    assert same_bits(found.values[sample], matrix.amax(1))
    assert torch.equal(found.indices[sample], matrix.argmax(1))


@every_backend
def test_no_gradient_flows_through_a_selection(backend):
    boxes = crowd(4, 0, device=device_of(backend)).requires_grad_()
    assert not icr.pairwise_max(boxes, boxes, backend=backend).values.requires_grad
    assert not icr.pairwise_topk(boxes, boxes, 2, backend=backend).values.requires_grad


# Memory

PEAK = """
import resource, sys, torch, icr_kernels as icr
n, m, groups = map(int, sys.argv[1:])
boxes1, boxes2 = torch.rand(n, 4), torch.rand(m, 4)
boxes1[:, 2:] += boxes1[:, :2]
boxes2[:, 2:] += boxes2[:, :2]
group1, group2 = (torch.arange(count) * groups // count for count in (n, m))
icr.pairwise_max(boxes1[:1000], boxes2[:1000])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
icr.pairwise_max(boxes1, boxes2, **({"group1": group1, "group2": group2} if groups else {}))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def added_memory(n: int, m: int, groups: int = 0) -> int:
    """The bytes by which the peak of a process grows in a call on the CPU."""
    command = [sys.executable, "-c", PEAK, str(n), str(m), str(groups)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not hasattr(resource, "RUSAGE_SELF") or sys.platform != "linux", reason="measured as Linux does")
@pytest.mark.parametrize(("n", "m", "groups"), [(1_000_000, 2_000, 0), (1_000_000, 200_000, 128)])
def test_memory_of_the_maximum(n, m, groups, extension):
    """A matrix would take 8 and 800 GB. The results are 12 bytes per row."""
    assert added_memory(n, m, groups) <= 12 * n + (64 << 20)
