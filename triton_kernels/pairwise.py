"""The kernels over all pairs of two sets of boxes: tiles of their matrix, its gradients, and the best of its rows.

A set is batches of boxes. In a tile of pairs the boxes of one set lie along one axis and those of the other along the
other: what depends on one box alone is computed once for many pairs.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .box import Box, area, corners, pull_back, spread, variables
from .kernels import Rows, load_rows, store_rows
from .number import rounded_product
from .pair import gradient, parameters_of
from .pair_functions import of_pair

# Of 32 bits.
LARGEST = tl.constexpr(2147483647)


class Set(NamedTuple):
    """Batches of boxes. Without strides all rows lie one after the other; without those of rows and columns the rows of
    each batch do, and it begins at a whole one."""

    data: Any
    batch_stride: Any = None
    row_stride: Any = None
    column_stride: Any = None


class Columns(NamedTuple):
    """One value per box. Without a stride of batches all lie one after the other."""

    data: Any = None
    batch_stride: Any = None
    stride: Any = None


@triton.jit
def load_set(boxes, count, batch, rows, inside, DTYPE: tl.constexpr):
    """Boxes of a batch of ``count``."""
    first = 4 * (batch * count) if boxes.batch_stride is None else batch * boxes.batch_stride
    if boxes.row_stride is None:
        first = tl.multiple_of(first, 4)
    return load_rows(Rows(boxes.data + first, boxes.row_stride, boxes.column_stride), rows, inside, DTYPE)


@triton.jit
def load_of_batch(values, count, batch, rows, inside):
    """One value per box of a batch of ``count``."""
    first = batch * count if values.batch_stride is None else batch * values.batch_stride
    return tl.load(values.data + first + rows * values.stride, inside, 0)


@triton.jit
def block_of(number, count, BLOCK: tl.constexpr):
    """Of blocks that go batch by batch: the batch, and the rows in it."""
    blocks = tl.cdiv(count, BLOCK).to(tl.int32)
    return (number // blocks).to(tl.int64), (number % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)


COUNTS = ["count1", "count2"]


@triton.jit(do_not_specialize=COUNTS)
def pairwise_kernel(
    boxes1,
    count1: tl.int64,
    boxes2,
    count2: tl.int64,
    out,
    eps: tl.float64,
    p0: tl.float64,
    p1: tl.float64,
    p2: tl.float64,
    p3: tl.float64,
    PARAMETERS: tl.constexpr,
    FUNCTION: tl.constexpr,
    COMPLEMENT: tl.constexpr,
    FORMAT: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    eps, parameters = tl.full((), eps, DTYPE), parameters_of((p0, p1, p2, p3), PARAMETERS, DTYPE)
    # Neighbours in a row of tiles follow each other: what they write lies together.
    across = tl.cdiv(count2, COLUMNS).to(tl.int32)
    batch, row = block_of(tl.program_id(0) // across, count1, ROWS)
    column = (tl.program_id(0) % across).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    c1 = load_set(boxes1, count1, batch, row, row < count1, DTYPE)
    c2 = load_set(boxes2, count2, batch, column, column < count2, DTYPE)
    p = variables(spread(corners(c1, FORMAT), 1), 0, 0)
    q = variables(spread(corners(c2, FORMAT), 0), 0, 0)
    value = of_pair(p, q, eps, parameters, FUNCTION, COMPLEMENT).value
    at = (batch * count1 + row[:, None]) * count2 + column[None, :]
    tl.store(out + at, value, (row < count1)[:, None] & (column < count2)[None, :])


@triton.jit(do_not_specialize=[*COUNTS, "upstream_batch", "upstream_mine", "upstream_other"])
def pairwise_backward_kernel(
    boxes1,
    count1: tl.int64,
    boxes2,
    count2: tl.int64,
    upstream,
    upstream_batch,
    upstream_mine,
    upstream_other,
    out,
    eps: tl.float64,
    p0: tl.float64,
    p1: tl.float64,
    p2: tl.float64,
    p3: tl.float64,
    PARAMETERS: tl.constexpr,
    FUNCTION: tl.constexpr,
    COMPLEMENT: tl.constexpr,
    FORMAT: tl.constexpr,
    DTYPE: tl.constexpr,
    MINE: tl.constexpr,
    OTHERS: tl.constexpr,
    AXIS: tl.constexpr,
):
    """The gradient of boxes1. Every program adds up the pairs of its boxes with all of boxes2, in an order that is
    always the same. Those lie along ``AXIS`` of a tile: 1 if boxes1 are the first argument of the function, 0 if they
    are the second; so a tile lies as the matrix does."""
    eps, parameters = tl.full((), eps, DTYPE), parameters_of((p0, p1, p2, p3), PARAMETERS, DTYPE)
    batch, mine = block_of(tl.program_id(0), count1, MINE)
    inside = mine < count1
    coordinates = load_set(boxes1, count1, batch, mine, inside, DTYPE)
    p = variables(spread(corners(coordinates, FORMAT), AXIS), 0, 4)
    x1 = tl.zeros((MINE, OTHERS) if AXIS == 1 else (OTHERS, MINE), DTYPE)
    y1, x2, y2 = x1, x1, x1
    first = tl.zeros((), tl.int64)
    while first < count2:
        other = first + tl.arange(0, OTHERS)
        there = other < count2
        c = load_set(boxes2, count2, batch, other, there, DTYPE)
        q = variables(spread(corners(c, FORMAT), 1 - AXIS), 4, 4)
        y = (
            of_pair(p, q, eps, parameters, FUNCTION, COMPLEMENT)
            if AXIS == 1
            else of_pair(q, p, eps, parameters, FUNCTION, COMPLEMENT)
        )
        g = gradient(y, 0)
        keep = tl.expand_dims(inside, AXIS) & tl.expand_dims(there, 1 - AXIS)
        at = tl.expand_dims(mine * upstream_mine, AXIS) + tl.expand_dims(other * upstream_other, 1 - AXIS)
        factor = tl.load(upstream + batch * upstream_batch + at, keep, 0.0).to(DTYPE)
        x1 += tl.where(keep, g.x1 * factor, 0.0)
        y1 += tl.where(keep, g.y1 * factor, 0.0)
        x2 += tl.where(keep, g.x2 * factor, 0.0)
        y2 += tl.where(keep, g.y2 * factor, 0.0)
        first += OTHERS
    sums = Box(tl.sum(x1, AXIS), tl.sum(y1, AXIS), tl.sum(x2, AXIS), tl.sum(y2, AXIS))
    store_rows(out, batch * count1 + mine, inside, pull_back(coordinates, sums, FORMAT))


# Selection. Groups are of 32 bits here; what is of no group has a negative one.


@triton.jit
def load_group(group, count, batch, rows, inside, NONE: tl.constexpr):
    g = load_of_batch(group, count, batch, rows, inside)
    return tl.where(inside & (g >= 0) & (g <= LARGEST), g, NONE).to(tl.int32)


@triton.jit
def smallest_group(group, axis: tl.constexpr):
    """The largest number if there is none, as -1 is the largest group then: no group is between them."""
    return tl.min(tl.where(group < 0, LARGEST, group), axis)


@triton.jit(do_not_specialize=["count"])
def range_kernel(
    group,
    count: tl.int64,
    smallest,
    largest,
    CANDIDATES: tl.constexpr,
    TILES: tl.constexpr,
):
    """The smallest and the largest group of each tile of candidates."""
    tiles = tl.cdiv(count, CANDIDATES)
    batch, tile = block_of(tl.program_id(0), tiles, TILES)
    candidate = tile[:, None] * CANDIDATES + tl.arange(0, CANDIDATES)[None, :]
    g = load_group(group, count, batch, candidate, candidate < count, -1)
    tl.store(smallest + batch * tiles + tile, smallest_group(g, 1), tile < tiles)
    tl.store(largest + batch * tiles + tile, tl.max(g, 1), tile < tiles)


@triton.jit
def meets(smallest, largest, tile, there, low, high):
    """Whether a tile may have a group from low to high."""
    return (tl.load(smallest + tile, there, LARGEST) <= high) & (tl.load(largest + tile, there, -1) >= low)


@triton.jit
def tiles_that_meet(smallest, largest, tiles, low, high, SPAN: tl.constexpr):
    """The first and the last one; the last before the first if there is none."""
    first = tl.full((SPAN,), LARGEST, tl.int32)
    last = tl.full((SPAN,), -1, tl.int32)
    start = tl.zeros((), tl.int32)
    while start < tiles:
        tile = start + tl.arange(0, SPAN)
        found = meets(smallest, largest, tile, tile < tiles, low, high)
        first = tl.minimum(first, tl.where(found, tile, LARGEST))
        last = tl.maximum(last, tl.where(found, tile, -1))
        start += SPAN
    return tl.min(first, 0), tl.max(last, 0)


@triton.jit
def first_of(value, best, number, AXIS: tl.constexpr):
    """The smallest number among equals."""
    return tl.min(tl.where(value == tl.expand_dims(best, AXIS), number, LARGEST), AXIS)


@triton.jit
def with_best_of(values, numbers, score, candidate, AXIS: tl.constexpr):
    """What is kept of each query, after the scores of a tile: while its best beats the worst that is kept, it takes the
    place of that. Candidates come in order: of equals those that are kept already stay."""
    best, worst = tl.max(score, AXIS), tl.min(values, AXIS)
    while tl.max((best > worst).to(tl.int32), 0) > 0:
        taken = first_of(score, best, candidate, AXIS)
        dropped = tl.max(tl.where(values == tl.expand_dims(worst, AXIS), numbers, -LARGEST), AXIS)
        place = (numbers == tl.expand_dims(dropped, AXIS)) & tl.expand_dims(best > worst, AXIS)
        values = tl.where(place, tl.expand_dims(best, AXIS), values)
        numbers = tl.where(place, tl.expand_dims(taken, AXIS), numbers)
        score = tl.where(candidate == tl.expand_dims(taken, AXIS), -float("inf"), score)
        best, worst = tl.max(score, AXIS), tl.min(values, AXIS)
    return values, numbers


@triton.jit
def store_selected(values, indices, at, inside, best, number):
    tl.store(values + at, best, inside)
    tl.store(indices + at, tl.where(best == -float("inf"), -1, number).to(tl.int64), inside)


@triton.jit(do_not_specialize=[*COUNTS, "k"])
def selected_kernel(
    boxes1,
    count1: tl.int64,
    boxes2,
    count2: tl.int64,
    group1,
    group2,
    smallest,
    largest,
    offset,
    at_least,
    values,
    indices,
    k,
    eps: tl.float64,
    p0: tl.float64,
    p1: tl.float64,
    p2: tl.float64,
    p3: tl.float64,
    PARAMETERS: tl.constexpr,
    FUNCTION: tl.constexpr,
    COMPLEMENT: tl.constexpr,
    CANDIDATE_FIRST: tl.constexpr,
    LARGER: tl.constexpr,
    FORMAT: tl.constexpr,
    DTYPE: tl.constexpr,
    QUERIES: tl.constexpr,
    CANDIDATES: tl.constexpr,
    AXIS: tl.constexpr,
    KEPT: tl.constexpr,
    SPAN: tl.constexpr,
):
    """The best of boxes2, the candidates, for each of boxes1, the queries. Candidates lie along ``AXIS`` of a tile,
    threads along axis 1. ``KEPT`` candidates of a query, a power of two; 1: each place of a tile keeps its own best one
    until the end."""
    eps, parameters = tl.full((), eps, DTYPE), parameters_of((p0, p1, p2, p3), PARAMETERS, DTYPE)
    batch, query = block_of(tl.program_id(0), count1, QUERIES)
    inside = query < count1
    c1 = load_set(boxes1, count1, batch, query, inside, DTYPE)
    q = variables(spread(corners(c1, FORMAT), AXIS), 0, 0)
    if at_least.data is not None:
        least = load_of_batch(at_least, count1, batch, query, inside).to(DTYPE)
        least = tl.expand_dims(least, AXIS)
    tiles = tl.cdiv(count2, CANDIDATES).to(tl.int32)
    tile, last = tl.zeros((), tl.int32), tiles - 1
    if group1.data is not None:
        mine = load_group(group1, count1, batch, query, inside, -2)
        low, high = smallest_group(mine, 0), tl.max(mine, 0)
        mine = tl.expand_dims(mine, AXIS)
        smallest += batch * tiles
        largest += batch * tiles
        tile, last = tiles_that_meet(smallest, largest, tiles, low, high, SPAN)
    if KEPT == 1:
        best = tl.full((QUERIES, CANDIDATES) if AXIS == 1 else (CANDIDATES, QUERIES), -float("inf"), DTYPE)
        number = tl.full((QUERIES, CANDIDATES) if AXIS == 1 else (CANDIDATES, QUERIES), -1, tl.int32)
    else:
        # Numbers that no two places share.
        best = tl.full((QUERIES, KEPT) if AXIS == 1 else (KEPT, QUERIES), -float("inf"), DTYPE)
        number = tl.expand_dims(-1 - tl.arange(0, KEPT), 1 - AXIS) + tl.zeros_like(best).to(tl.int32)
    while tile <= last:
        if group1.data is None or meets(smallest, largest, tile, True, low, high):
            row = tile.to(tl.int64) * CANDIDATES + tl.arange(0, CANDIDATES)
            there = row < count2
            c2 = load_set(boxes2, count2, batch, row, there, DTYPE)
            g = variables(spread(corners(c2, FORMAT), 1 - AXIS), 0, 0)
            y = (
                of_pair(g, q, eps, parameters, FUNCTION, COMPLEMENT)
                if CANDIDATE_FIRST
                else of_pair(q, g, eps, parameters, FUNCTION, COMPLEMENT)
            )
            score = y.value
            if offset.data is not None:
                by = load_of_batch(offset, count2, batch, row, there).to(DTYPE)
                # Rounded first: two equal numbers differ by 0.
                score = rounded_product(score, tl.full((), 1.0, DTYPE)) - tl.expand_dims(by, 1 - AXIS)
            counts = score == score
            if group1.data is None:
                counts &= tl.expand_dims(there, 1 - AXIS)
            else:
                its = load_group(group2, count2, batch, row, there, -1)
                counts &= mine == tl.expand_dims(its, 1 - AXIS)
            if LARGER:
                counts &= area(g).value > area(q).value
            if at_least.data is not None:
                counts &= score >= least
                score = -area(g).value
            score = tl.where(counts, score, -float("inf"))
            candidate = tl.expand_dims(row.to(tl.int32), 1 - AXIS)
            if KEPT == 1:
                better = score > best
                best = tl.where(better, score, best)
                number = tl.where(better, candidate, number)
            else:
                best, number = with_best_of(best, number, score, candidate, AXIS)
        tile += 1
    at = batch * count1 + query
    if KEPT == 1:
        top = tl.max(best, AXIS)
        store_selected(values, indices, at, inside, top, first_of(best, top, number, AXIS))
    else:
        i = tl.zeros((), tl.int32)
        while i < k:
            top = tl.max(best, AXIS)
            first = first_of(best, top, number, AXIS)
            store_selected(values, indices, at * k + i, inside, top, first)
            best = tl.where(number == tl.expand_dims(first, AXIS), -float("inf"), best)
            i += 1
