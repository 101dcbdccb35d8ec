"""The kernels: blocks of pairs from rows in memory to losses, sums and gradient rows.

An optional tensor that is not there is None. Offsets are 64-bit.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .box import Box, corners, pull_back, variables
from .number import add, greater, scale
from .pair import Boxes, gradient, in_boxes_unit, numbers_of, pair_loss, pair_terms


class Rows(NamedTuple):
    """Rows of four coordinates. Without strides they lie one after the other, and a row is one access of 16 bytes (8 in
    half precision). A kernel is compiled per kind of stride: 1, a multiple of 16, any other."""

    data: Any = None
    row_stride: Any = None
    column_stride: Any = None


class Column(NamedTuple):
    """One value per pair."""

    data: Any = None
    stride: Any = None


@triton.jit
def columns_of_tile(tile):
    """The four columns of rows."""
    even, odd = tile.reshape(tile.shape[0], 2, 2).split()
    c0, c2 = even.split()
    c1, c3 = odd.split()
    return Box(c0, c1, c2, c3)


@triton.jit
def tile_of(b):
    """The rows of four columns."""
    return tl.join(tl.join(b.x1, b.x2), tl.join(b.y1, b.y2)).reshape(b.x1.shape[0], 4)


@triton.jit
def load_tile(data, rows, keep):
    """Four columns of rows that lie one after the other."""
    return columns_of_tile(tl.load(data + (4 * rows[:, None] + tl.arange(0, 4)[None, :]), keep[:, None], 0.0))


@triton.jit
def load_columns(boxes, rows, keep):
    x1 = boxes.data + rows * boxes.row_stride
    y1 = x1 + boxes.column_stride
    x2 = y1 + boxes.column_stride
    y2 = x2 + boxes.column_stride
    return Box(tl.load(x1, keep, 0.0), tl.load(y1, keep, 0.0), tl.load(x2, keep, 0.0), tl.load(y2, keep, 0.0))


@triton.jit
def load_rows(boxes, rows, keep, DTYPE: tl.constexpr):
    """The coordinates of rows, one column each; zeros where they are not kept."""
    c = load_tile(boxes.data, rows, keep) if boxes.row_stride is None else load_columns(boxes, rows, keep)
    return Box(c.x1.to(DTYPE), c.y1.to(DTYPE), c.x2.to(DTYPE), c.y2.to(DTYPE))


@triton.jit
def load_value(column, rows, keep):
    return tl.load(column.data + rows * column.stride, keep, 0)


@triton.jit
def load_pixels(pixels, rows, inside):
    """What can be divided by."""
    return tl.load(pixels.data + rows * pixels.stride, inside, 1.0)


@triton.jit
def rows_of_table(index, table_rows, rows, keep):
    """The rows that belong to pairs, and which pairs have one: those whose index lies in the table."""
    if index.data is None:
        return rows, keep
    else:
        found = load_value(index, rows, keep).to(tl.int64)
        return found, keep & (found >= 0) & (found < table_rows)


@triton.jit
def kept(mask, rows, inside):
    """Which pairs count."""
    return inside if mask.data is None else inside & load_value(mask, rows, inside)


@triton.jit
def load_pairs(
    pred,
    target,
    anchor_objects,
    target_index,
    target_rows,
    anchor_index,
    anchor_rows,
    rows,
    inside,
    HAS_ANCHORS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The coordinates of the boxes, which pairs have a target, and which have an anchor object."""
    p = load_rows(pred, rows, inside, DTYPE)
    row, has_target = rows_of_table(target_index, target_rows, rows, inside)
    g = load_rows(target, row, has_target, DTYPE)
    if HAS_ANCHORS:
        row, has_anchor = rows_of_table(anchor_index, anchor_rows, rows, inside)
        return Boxes(p, g, load_rows(anchor_objects, row, has_anchor, DTYPE)), has_target, has_anchor
    else:
        return Boxes(p, g, p), has_target, inside


@triton.jit
def variables_of(boxes, gradients, COUNT: tl.constexpr, FORMAT: tl.constexpr):
    """The boxes as functions of those whose gradient is wanted."""
    return Boxes(
        variables(corners(boxes.pred, FORMAT), COUNT if gradients.pred is None else 0, COUNT),
        variables(corners(boxes.target, FORMAT), COUNT if gradients.target is None else 4, COUNT),
        variables(corners(boxes.anchor_objects, FORMAT), COUNT if gradients.anchor_objects is None else 8, COUNT),
    )


@triton.jit
def rounded(x, TYPE: tl.constexpr):
    """x rounded to a type, in half precision through float32: beyond its range, infinity."""
    if TYPE.primitive_bitwidth == 16:
        x = x.to(tl.float32)
    return x.to(TYPE)


@triton.jit
def store_rows(data, rows, inside, b):
    TYPE: tl.constexpr = data.dtype.element_ty
    tile = tile_of(Box(rounded(b.x1, TYPE), rounded(b.y1, TYPE), rounded(b.x2, TYPE), rounded(b.y2, TYPE)))
    tl.store(data + (4 * rows[:, None] + tl.arange(0, 4)[None, :]), tile, inside[:, None])


@triton.jit
def store_gradient(data, rows, inside, keep, y, FIRST: tl.constexpr, factor, coordinates, FORMAT: tl.constexpr):
    """The derivative of y with respect to one box; exactly 0 for a pair that does not count, whatever it holds."""
    if data is not None:
        g = gradient(y, FIRST)
        g = Box(
            tl.where(keep, g.x1 * factor, 0.0),
            tl.where(keep, g.y1 * factor, 0.0),
            tl.where(keep, g.x2 * factor, 0.0),
            tl.where(keep, g.y2 * factor, 0.0),
        )
        store_rows(data, rows, inside, pull_back(coordinates, g, FORMAT))


@triton.jit
def store_result(value, pending, total, count, factor):
    """The reduced loss. The mean over the pairs that a mask leaves divides by their number, known only now; the
    gradients are ``pending`` that factor."""
    if pending is not None:
        divisor = tl.maximum(count, 1.0)
        tl.store(pending, (1.0 / divisor).to(pending.dtype.element_ty))
        factor = factor / divisor
    tl.store(value, (total * factor).to(value.dtype.element_ty))


@triton.jit
def reduce_programs(value, pending, ticket, total, count, factor, BLOCK: tl.constexpr):
    """The sum over all programs, added up in their order by the one that comes last. Each one's part lies behind the
    value."""
    programs = tl.num_programs(0)
    totals = (value + 2).to(tl.pointer_type(tl.float64))
    counts = totals + programs
    tl.store(totals + tl.program_id(0), total)
    if pending is not None:
        tl.store(counts + tl.program_id(0), count)
    tl.debug_barrier()
    if tl.atomic_add(ticket, 1, sem="acq_rel") == programs - 1:
        part = tl.arange(0, BLOCK)
        sums = tl.zeros((BLOCK,), tl.float64)
        numbers = tl.zeros((BLOCK,), tl.float64)
        first = tl.zeros((), tl.int32)
        # What other processors wrote is not looked for in this one's own cache.
        while first < programs:
            there = first + part < programs
            sums += tl.load(totals + first + part, there, 0.0, cache_modifier=".cg")
            if pending is not None:
                numbers += tl.load(counts + first + part, there, 0.0, cache_modifier=".cg")
            first += BLOCK
        store_result(value, pending, tl.sum(sums, 0), tl.sum(numbers, 0), factor)
        tl.store(ticket, 0)


@triton.jit(do_not_specialize=["target_rows", "anchor_rows", "pairs"])
def loss_kernel(
    pred,
    target,
    anchor_objects,
    target_index,
    target_rows,
    anchor_index,
    anchor_rows,
    weight,
    mask,
    pixels,
    wise_mean,
    normalizer,
    value,
    pending,
    ticket,
    gradients,
    pairs: tl.int64,
    scale: tl.float64,
    penalty_weight: tl.float64,
    eps: tl.float64,
    clamp: tl.float64,
    p0: tl.float64,
    p1: tl.float64,
    p2: tl.float64,
    p3: tl.float64,
    inner: tl.float64,
    focaler_low: tl.float64,
    focaler_high: tl.float64,
    wise_a: tl.float64,
    wise_b: tl.float64,
    LOSS: tl.constexpr,
    PARAMETERS: tl.constexpr,
    POWERS: tl.constexpr,
    MODIFIERS: tl.constexpr,
    PENALTY: tl.constexpr,
    RELATIVE: tl.constexpr,
    FORMAT: tl.constexpr,
    COUNT: tl.constexpr,
    REDUCED: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    factor = tl.full((), scale, tl.float64)
    if normalizer is not None:
        factor = factor / greater(tl.load(normalizer).to(tl.float64), tl.full((), eps, tl.float64))
    parameters, modifiers = (p0, p1, p2, p3), (inner, focaler_low, focaler_high, wise_a, wise_b)
    numbers = numbers_of(penalty_weight, eps, clamp, parameters, modifiers, wise_mean, PARAMETERS, DTYPE)
    sums = tl.zeros((BLOCK,), tl.float64)
    counts = tl.zeros((BLOCK,), tl.int64)
    # Each program takes every programs-th block: the order of a sum depends on nothing but their number.
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    first = tl.program_id(0).to(tl.int64) * BLOCK
    while first < pairs:
        rows = first + tl.arange(0, BLOCK)
        inside = rows < pairs
        boxes, has_target, has_anchor = load_pairs(
            pred,
            target,
            anchor_objects,
            target_index,
            target_rows,
            anchor_index,
            anchor_rows,
            rows,
            inside,
            PENALTY is not None,
            DTYPE,
        )
        keep = kept(mask, rows, has_target)
        variable = variables_of(boxes, gradients, COUNT, FORMAT)
        if pixels is None:
            y = pair_loss(variable, has_anchor, numbers, LOSS, MODIFIERS, PENALTY, RELATIVE)
        else:
            of_pairs = in_boxes_unit(numbers, load_pixels(pixels, rows, inside).to(DTYPE), POWERS)
            y = pair_loss(variable, has_anchor, of_pairs, LOSS, MODIFIERS, PENALTY, RELATIVE)
        loss, slope = y.value, factor.to(DTYPE)
        if weight.data is not None:
            pair_weight = load_value(weight, rows, inside).to(DTYPE)
            loss, slope = loss * pair_weight, slope * pair_weight
        loss = tl.where(keep, loss, 0.0)
        if REDUCED:
            sums += loss.to(tl.float64)
            counts += keep.to(tl.int64)
        else:
            tl.store(value + rows, loss * factor.to(DTYPE), inside)
        store_gradient(gradients.pred, rows, inside, keep, y, 0, slope, boxes.pred, FORMAT)
        store_gradient(gradients.target, rows, inside, keep, y, 4, slope, boxes.target, FORMAT)
        store_gradient(gradients.anchor_objects, rows, inside, keep, y, 8, slope, boxes.anchor_objects, FORMAT)
        first += step
    if REDUCED:
        total = tl.sum(sums, 0)
        count = tl.sum(counts, 0).to(tl.float64)
        if ticket is None:
            store_result(value, pending, total, count, factor)
        else:
            reduce_programs(value, pending, ticket, total, count, factor, BLOCK)


@triton.jit(do_not_specialize=["target_rows", "anchor_rows", "pairs"])
def terms_kernel(
    pred,
    target,
    anchor_objects,
    target_index,
    target_rows,
    anchor_index,
    anchor_rows,
    mask,
    pixels,
    wise_mean,
    terms,
    upstream,
    gradients,
    pairs: tl.int64,
    penalty_weight: tl.float64,
    eps: tl.float64,
    clamp: tl.float64,
    p0: tl.float64,
    p1: tl.float64,
    p2: tl.float64,
    p3: tl.float64,
    inner: tl.float64,
    focaler_low: tl.float64,
    focaler_high: tl.float64,
    wise_a: tl.float64,
    wise_b: tl.float64,
    LOSS: tl.constexpr,
    PARAMETERS: tl.constexpr,
    POWERS: tl.constexpr,
    MODIFIERS: tl.constexpr,
    PENALTY: tl.constexpr,
    RELATIVE: tl.constexpr,
    FORMAT: tl.constexpr,
    COUNT: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The terms; or, where they are None, the gradients of their sum, each times the gradient from above."""
    parameters, modifiers = (p0, p1, p2, p3), (inner, focaler_low, focaler_high, wise_a, wise_b)
    numbers = numbers_of(penalty_weight, eps, clamp, parameters, modifiers, wise_mean, PARAMETERS, DTYPE)
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < pairs
    boxes, has_target, has_anchor = load_pairs(
        pred,
        target,
        anchor_objects,
        target_index,
        target_rows,
        anchor_index,
        anchor_rows,
        rows,
        inside,
        PENALTY is not None,
        DTYPE,
    )
    keep = kept(mask, rows, has_target)
    variable = variables_of(boxes, gradients, COUNT, FORMAT)
    if pixels is not None:
        numbers = in_boxes_unit(numbers, load_pixels(pixels, rows, inside).to(DTYPE), POWERS)
    found = pair_terms(variable, has_anchor, numbers, LOSS, MODIFIERS, PENALTY, RELATIVE)
    if terms.loss is not None:
        tl.store(terms.loss + rows, tl.where(keep, found.loss.value, 0.0), inside)
        tl.store(terms.iou + rows, tl.where(keep, found.iou.value, 0.0), inside)
        tl.store(terms.containment + rows, tl.where(keep, found.containment.value, 0.0), inside)
        tl.store(terms.penalty + rows, tl.where(keep, found.penalty.value, 0.0), inside)
    else:
        y = scale(found.loss, load_value(upstream.loss, rows, inside).to(DTYPE))
        y = add(y, scale(found.iou, load_value(upstream.iou, rows, inside).to(DTYPE)))
        y = add(y, scale(found.containment, load_value(upstream.containment, rows, inside).to(DTYPE)))
        y = add(y, scale(found.penalty, load_value(upstream.penalty, rows, inside).to(DTYPE)))
        store_gradient(gradients.pred, rows, inside, keep, y, 0, 1.0, boxes.pred, FORMAT)
        store_gradient(gradients.target, rows, inside, keep, y, 4, 1.0, boxes.target, FORMAT)
        store_gradient(gradients.anchor_objects, rows, inside, keep, y, 8, 1.0, boxes.anchor_objects, FORMAT)


@triton.jit
def load_factor(factor, pending, rows, inside, DTYPE: tl.constexpr):
    """What a gradient is multiplied by."""
    k = tl.full((), 1.0, DTYPE)
    if factor.data is not None:
        k = load_value(factor, rows, inside).to(DTYPE)
    if pending is not None:
        k = k * tl.load(pending)
    return k


@triton.jit
def times_upstream(x, factor):
    """A gradient that is 0 (that of a masked pair) stays as it is, whatever the factor."""
    return tl.where(x == 0.0, x, x * factor)


@triton.jit
def load_scaled(gradient, k, rows, inside, DTYPE: tl.constexpr):
    """Gradient rows times their factors."""
    g = load_rows(gradient, rows, inside, DTYPE)
    return Box(times_upstream(g.x1, k), times_upstream(g.y1, k), times_upstream(g.x2, k), times_upstream(g.y2, k))


@triton.jit(do_not_specialize=["pairs"])
def scaled_kernel(
    gradient_rows,
    factor,
    pending,
    out,
    pairs: tl.int64,
    IN_PLACE: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < pairs
    k = load_factor(factor, pending, rows, inside, DTYPE)
    if IN_PLACE:
        inside = inside & (k != 1.0)  # what would not change is neither read nor written
    g = load_scaled(gradient_rows, k, rows, inside, DTYPE)
    store_rows(out, rows, inside, g)


@triton.jit(do_not_specialize=["pairs", "table_rows"])
def table_kernel(
    gradient_rows,
    factor,
    pending,
    index,
    out,
    pairs: tl.int64,
    table_rows: tl.int64,
    DTYPE: tl.constexpr,
    TABLE_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradient of a table: of each row the sum over its pairs, in an order that is always the same. Every program
    looks for its rows in all pairs, so that no two add to one."""
    mine = tl.program_id(0).to(tl.int64) * TABLE_BLOCK + tl.arange(0, TABLE_BLOCK)
    x1 = tl.zeros((TABLE_BLOCK, BLOCK), DTYPE)
    y1, x2, y2 = x1, x1, x1
    first = tl.zeros((), tl.int64)
    while first < pairs:
        rows = first + tl.arange(0, BLOCK)
        inside = rows < pairs
        found = load_value(index, rows, inside).to(tl.int64)
        match = (mine[:, None] == found[None, :]) & inside[None, :]
        k = load_factor(factor, pending, rows, inside, DTYPE)
        g = load_scaled(gradient_rows, k, rows, inside, DTYPE)
        x1 += tl.where(match, g.x1[None, :], 0.0)
        y1 += tl.where(match, g.y1[None, :], 0.0)
        x2 += tl.where(match, g.x2[None, :], 0.0)
        y2 += tl.where(match, g.y2[None, :], 0.0)
        first += BLOCK
    sums = Box(tl.sum(x1, 1), tl.sum(y1, 1), tl.sum(x2, 1), tl.sum(y2, 1))
    store_rows(out, mine, mine < table_rows, sums)
