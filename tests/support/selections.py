"""What is best in the rows and columns of a matrix of all pairs, by sorting: what a selection is held against."""

import math

import torch
from torch import Tensor

import icr_kernels as icr

SIZES = [(0, 5), (5, 0), (0, 0), (1, 1), (1, 300), (300, 1), (17, 257), (255, 16), (65, 513), (9, 1100), (1100, 9)]


# The best of a row or column


def ranked(matrix: Tensor, group1: Tensor | None = None, group2: Tensor | None = None) -> list[list[tuple]]:
    """For each row its (value, index), best first: the largest, of equals the first; no NaN, no other group."""
    one, other = (
        [0] * count if group is None else group.tolist()
        for count, group in zip(matrix.shape, (group1, group2), strict=True)
    )
    rows = []
    for i, row in enumerate(matrix.tolist()):
        counted = [
            (value, j)
            for j, value in enumerate(row)
            if not math.isnan(value) and one[i] == other[j] and 0 <= one[i] < 2**31
        ]
        rows.append(sorted(counted, key=lambda each: (-each[0], each[1])))
    return rows


def assert_selects(found: icr.Selection, rows: list[list[tuple]], k: int) -> None:
    missing = (-math.inf, -1)
    expected = [(row + [missing] * k)[: max(k, 1)] for row in (row or [missing] for row in rows)]
    values, indices = (part.cpu() if k else part.cpu().unsqueeze(-1) for part in found)
    assert indices.dtype == torch.int64
    assert indices.tolist() == [[index for _, index in row] for row in expected]
    assert values.tolist() == [[value for value, _ in row] for row in expected]


def assert_is_max_of_matrix(
    boxes1: Tensor, boxes2: Tensor, backend: str, dim: int, group1=None, group2=None, **options
):
    matrix = icr.pairwise_iou(boxes1, boxes2, backend=backend, **options).cpu()
    rows = ranked(matrix, group1, group2) if dim == -1 else ranked(matrix.t(), group2, group1)
    options |= {"dim": dim, "backend": backend, "group1": group1, "group2": group2}
    options |= {
        name: None if options[name] is None else options[name].to(boxes1.device) for name in ("group1", "group2")
    }
    assert_selects(icr.pairwise_max(boxes1, boxes2, **options), rows, 0)
    for k in (1, 10, 16):
        assert_selects(icr.pairwise_topk(boxes1, boxes2, k, **options), rows, k)
