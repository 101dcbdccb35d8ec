"""What a dense head is trained by: its formulas, as `icr_kernels.dense_detection_loss` has them, and its kernels.

A tile is points, their four sides and the bins of each; or points and classes. Which of them lie in the lanes follows
from how the logits lie in memory. Of background nothing but its classes is read.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from icr_kernels.dense_reference import LAST_BIN_MARGIN

from .box import Box, corners, limit_of, pull_back, variables, within_limit
from .kernels import Column, columns_of_tile, load_rows, load_value, rounded, rows_of_table, store_rows, tile_of
from .number import add, greater, lesser, scale
from .pair import Boxes, Numbers, gradient, penalty_of
from .pairwise import block_of, load_set


class Grid(NamedTuple):
    """The points of a head, rows of two, and the stride of each."""

    points: Any
    strides: Any


class Truth(NamedTuple):
    """Rows of boxes, and columns."""

    boxes: Any
    labels: Any
    anchor_index: Any


class Assigned(NamedTuple):
    """Columns of every image."""

    index: Any
    score: Any


class Sums(NamedTuple):
    """What programs add up; the last two are of scores, and of points whose target has an anchor object."""

    box: Any
    classification: Any
    distribution: Any
    penalty: Any
    score: Any
    pairs: Any


class Sides(NamedTuple):
    """Of each side the logarithms and the probabilities of its bins, and how many strides it is away."""

    log_probability: Any
    probability: Any
    distance: Any


# Distances and distributions.


@triton.jit
def bins_of(x):
    return tl.arange(0, x.shape[2])[None, None, :].to(x.dtype)


@triton.jit
def sides_of(logits, BINS: tl.constexpr):
    """With one bin the distance is what is predicted itself, else the mean of a distribution."""
    x = within_limit(logits)
    if BINS == 1:
        return Sides(x, x, tl.sum(x, 2))
    else:
        there = bins_of(x) < BINS
        x = x - tl.max(tl.where(there, x, -float("inf")), 2)[:, :, None]
        e = tl.where(there, tl.exp(x), 0.0)
        total = tl.sum(e, 2)[:, :, None]
        probability = e / total
        return Sides(x - tl.log(total), probability, tl.sum(probability * bins_of(x), 2))


@triton.jit
def slope_of_distance(sides, upstream, BINS: tl.constexpr):
    """The gradient of the logits from that of the distances."""
    if BINS == 1:
        return upstream[:, :, None]
    else:
        return upstream[:, :, None] * sides.probability * (bins_of(sides.probability) - sides.distance[:, :, None])


@triton.jit
def share_of(target, bins, BINS: tl.constexpr, margin: tl.constexpr = LAST_BIN_MARGIN):
    """Of each bin in the distribution to be learnt."""
    target = lesser(greater(target, 0.0), tl.full((), BINS - 1 - margin, target.dtype))
    return greater(1.0 - tl.abs(target[:, :, None] - bins), 0.0)


@triton.jit
def distance_loss(sides, wanted, stride, size, BINS: tl.constexpr):
    """Of each side the distribution focal loss (Li et al. 2020), or the absolute error over a size; and its derivative
    by the logits. The mean of the four is what counts."""
    if BINS == 1:
        error = sides.distance * stride - wanted
        sign = tl.where(error > 0.0, 1.0, tl.where(error < 0.0, -1.0, 0.0))
        return tl.abs(error) / size, (sign * stride / size)[:, :, None]
    else:
        share = share_of(wanted / stride, bins_of(sides.probability), BINS)
        return -tl.sum(share * sides.log_probability, 2), sides.probability - share


@triton.jit
def around(x, y, distance):
    return Box(x - distance.x1, y - distance.y1, x + distance.x2, y + distance.y2)


@triton.jit
def distances(x, y, b):
    """From a point to the sides of a box; from the origin also the transpose of `around`."""
    return Box(x - b.x1, y - b.y1, b.x2 - x, b.y2 - y)


# Classes.


@triton.jit
def log_of_one_plus(e):
    """log(1 + e) for e in [0, 1], with all the digits of a small e: what the sum has lost is added."""
    total = 1.0 + e
    return tl.log(total) + (e - (total - 1.0))


@triton.jit
def cross_entropy(x, t):
    """Of a logit, and its derivative."""
    e = tl.exp(-tl.abs(x))
    probability = tl.where(x > 0.0, 1.0, e) / (1.0 + e)
    return greater(x, 0.0) - x * t + log_of_one_plus(e), probability - t


# What lies in memory.


@triton.jit
def of_image(columns, image):
    return Column(columns.data + image * columns.batch_stride, columns.stride)


@triton.jit
def load_point(grid, point, inside, DTYPE: tl.constexpr):
    """x, y, and a stride that can be divided by."""
    first = grid.points.data + point * grid.points.row_stride
    x, y = tl.load(first, inside, 0.0), tl.load(first + grid.points.column_stride, inside, 0.0)
    stride = tl.load(grid.strides.data + point * grid.strides.stride, inside, 1.0)
    return x.to(DTYPE), y.to(DTYPE), stride.to(DTYPE)


@triton.jit
def load_target(assigned, rows, image, point, inside, DTYPE: tl.constexpr):
    """The row of the truth, whether there is one, and the score."""
    row, has_target = rows_of_table(of_image(assigned.index, image), rows, point, inside)
    return row, has_target, load_value(of_image(assigned.score, image), point, has_target).to(DTYPE)


@triton.jit
def places(values, image, point, channel):
    """Of channels of points, whose dimensions are there already."""
    return values.data + image * values.batch_stride + point * values.row_stride + channel * values.column_stride


@triton.jit
def places_of_sides(values, image, point, keep, BINS: tl.constexpr, WIDTH: tl.constexpr):
    """And which of them are there."""
    side, number = tl.arange(0, 4)[None, :, None], tl.arange(0, WIDTH)[None, None, :]
    at = places(values, image, point[:, None, None], (side * BINS + number).to(tl.int64))
    return at, keep[:, None, None] & (number < BINS)


@triton.jit
def load_sides(logits, image, point, keep, BINS: tl.constexpr, WIDTH: tl.constexpr, DTYPE: tl.constexpr):
    at, there = places_of_sides(logits, image, point, keep, BINS, WIDTH)
    return tl.load(at, there, 0.0).to(DTYPE)


@triton.jit
def store_slope(out, at, inside, keep, logits, slope):
    """Of logits within the limit; exactly 0 where nothing is kept, whatever lies there."""
    slope = tl.where(keep & (tl.abs(logits) < limit_of(logits)), slope, 0.0)
    tl.store(at, rounded(slope, out.data.dtype.element_ty), inside)


@triton.jit
def factor_of(upstream, gain, divisor, DTYPE: tl.constexpr):
    """What the derivative of a sum is multiplied by."""
    if upstream is None:
        return tl.full((), 0.0, DTYPE)
    else:
        return (tl.full((), gain, tl.float64) * tl.load(upstream) / tl.load(divisor)).to(DTYPE)


@triton.jit
def store_sum(parts, values):
    tl.store(parts + tl.program_id(0), tl.sum(values, 0))


# The kernels. Those of sums take blocks in turn, and leave the sums of each program.


@triton.jit(do_not_specialize=["points"])
def decoded_kernel(
    logits,
    grid,
    points: tl.int64,
    out,
    BINS: tl.constexpr,
    WIDTH: tl.constexpr,
    DTYPE: tl.constexpr,
    POINTS: tl.constexpr,
):
    image, point = block_of(tl.program_id(0), points, POINTS)
    inside = point < points
    x, y, stride = load_point(grid, point, inside, DTYPE)
    sides = sides_of(load_sides(logits, image, point, inside, BINS, WIDTH, DTYPE), BINS)
    b = around(x, y, columns_of_tile(sides.distance * stride[:, None]))
    store_rows(out, image * points + point, inside, b)


@triton.jit(do_not_specialize=["points"])
def decoded_backward_kernel(
    upstream,
    logits,
    grid,
    points: tl.int64,
    out,
    BINS: tl.constexpr,
    WIDTH: tl.constexpr,
    DTYPE: tl.constexpr,
    POINTS: tl.constexpr,
):
    image, point = block_of(tl.program_id(0), points, POINTS)
    inside = point < points
    logit = load_sides(logits, image, point, inside, BINS, WIDTH, DTYPE)
    g = distances(0.0, 0.0, load_set(upstream, points, image, point, inside, DTYPE))
    of_distance = tile_of(g) * load_value(grid.strides, point, inside).to(DTYPE)[:, None]
    slope = slope_of_distance(sides_of(logit, BINS), of_distance, BINS)
    at, there = places_of_sides(out, image, point, inside, BINS, WIDTH)
    store_slope(out, at, there, there, logit, slope)


@triton.jit(do_not_specialize=["points", "rows", "blocks"])
def boxes_kernel(
    logits,
    grid,
    points: tl.int64,
    truth,
    rows: tl.int64,
    assigned,
    sums,
    upstream,
    divisors,
    out,
    blocks,
    penalty_weight: tl.float64,
    eps: tl.float64,
    box_gain: tl.float64,
    distribution_gain: tl.float64,
    height: tl.float64,
    width: tl.float64,
    LOSS: tl.constexpr,
    PENALTY: tl.constexpr,
    RELATIVE: tl.constexpr,
    FORMAT: tl.constexpr,
    UNIFORM: tl.constexpr,
    BINS: tl.constexpr,
    WIDTH: tl.constexpr,
    DTYPE: tl.constexpr,
    POINTS: tl.constexpr,
):
    """The sums of boxes, distributions and penalties, of the scores, and how many points have an anchor object; or,
    where they are None, the gradient of the logits."""
    COUNT: tl.constexpr = 4 if sums is None else 0
    numbers = Numbers(tl.full((), penalty_weight, DTYPE), tl.full((), eps, DTYPE))
    height, width = tl.full((), height, DTYPE), tl.full((), width, DTYPE)
    if sums is None:
        of_loss = factor_of(upstream.box, box_gain, divisors, DTYPE)
        of_distances = 0.25 * factor_of(upstream.distribution, distribution_gain, divisors, DTYPE)
        of_excess = factor_of(upstream.penalty, box_gain, divisors + 1 if UNIFORM else divisors, DTYPE)
    else:
        loss_sum = tl.zeros((POINTS,), tl.float64)
        distance_sum, excess_sum, score_sum, pairs = loss_sum, loss_sum, loss_sum, loss_sum
    block = tl.program_id(0)
    while block < blocks:
        image, point = block_of(block, points, POINTS)
        inside = point < points
        row, has_target, score = load_target(assigned, rows, image, point, inside, DTYPE)
        logit = tl.zeros((POINTS, 4, WIDTH), DTYPE)
        slope = logit
        if tl.max(has_target.to(tl.int32), 0) > 0:
            x, y, stride = load_point(grid, point, has_target, DTYPE)
            logit = load_sides(logits, image, point, has_target, BINS, WIDTH, DTYPE)
            sides = sides_of(logit, BINS)
            c = around(x, y, columns_of_tile(sides.distance * stride[:, None]))
            g = corners(load_rows(truth.boxes, row, has_target, DTYPE), FORMAT)
            is_horizontal = tl.arange(0, 4)[None, :] % 2 == 0
            size = tl.where(width > 0.0, tl.where(is_horizontal, width, height), stride[:, None])
            of_sides, slope = distance_loss(sides, tile_of(distances(x, y, g)), stride[:, None], size, BINS)

            p, g = variables(corners(c, "xyxy"), 0, COUNT), variables(g, COUNT, COUNT)
            loss = LOSS(p, g, numbers.eps)
            if PENALTY is not None:
                row, has_anchor = rows_of_table(truth.anchor_index, rows, row, has_target)
                a = variables(corners(load_rows(truth.boxes, row, has_anchor, DTYPE), FORMAT), COUNT, COUNT)
                excess = penalty_of(Boxes(p, g, a), has_anchor, numbers, PENALTY, RELATIVE)
                weight = numbers.penalty_weight if UNIFORM else numbers.penalty_weight * score
            if sums is None:
                total = scale(loss, of_loss * score)
                if PENALTY is not None:
                    total = add(total, scale(excess, of_excess * weight))
                of_corners = pull_back(c, gradient(total, 0), "xyxy")
                of_distance = tile_of(distances(0.0, 0.0, of_corners)) * stride[:, None]
                slope = (of_distances * score)[:, None, None] * slope + slope_of_distance(sides, of_distance, BINS)
            else:
                loss_sum += tl.where(has_target, loss.value * score, 0.0).to(tl.float64)
                distance_sum += tl.where(has_target, 0.25 * tl.sum(of_sides, 1) * score, 0.0).to(tl.float64)
                score_sum += score.to(tl.float64)
                if PENALTY is not None:
                    excess_sum += tl.where(has_anchor, excess.value * weight, 0.0).to(tl.float64)
                    pairs += has_anchor.to(tl.float64)
        if sums is None:
            at, there = places_of_sides(out, image, point, inside, BINS, WIDTH)
            store_slope(out, at, there, has_target[:, None, None], logit, slope)
        block += tl.num_programs(0)
    if sums is not None:
        store_sum(sums.box, loss_sum)
        store_sum(sums.distribution, distance_sum)
        store_sum(sums.penalty, excess_sum)
        store_sum(sums.score, score_sum)
        store_sum(sums.pairs, pairs)


@triton.jit(do_not_specialize=["points", "classes", "rows", "blocks"])
def classes_kernel(
    logits,
    points: tl.int64,
    classes,
    labels,
    rows: tl.int64,
    assigned,
    class_weight,
    sums,
    upstream,
    divisors,
    out,
    blocks,
    gain: tl.float64,
    DTYPE: tl.constexpr,
    POINTS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """The sum of the cross-entropies; or, where it is None, the gradient of the logits."""
    if sums is None:
        factor = factor_of(upstream, gain, divisors, DTYPE)
    else:
        total = tl.zeros((POINTS,), tl.float64)
    block = tl.program_id(0)
    while block < blocks:
        image, point = block_of(block, points, POINTS)
        row, has_target, score = load_target(assigned, rows, image, point, point < points, DTYPE)
        label = load_value(labels, row, has_target)
        label = tl.where(has_target & (label >= 0) & (label < classes), label, -1).to(tl.int32)
        of_block = tl.zeros((POINTS, CLASSES), DTYPE)
        first = tl.zeros((), tl.int32)
        while first < classes:
            number = first + tl.arange(0, CLASSES)
            there = (point < points)[:, None] & (number < classes)[None, :]
            channel = number[None, :].to(tl.int64)
            logit = tl.load(places(logits, image, point[:, None], channel), there, 0.0).to(DTYPE)
            t = tl.where(label[:, None] == number[None, :], score[:, None], 0.0)
            loss, slope = cross_entropy(within_limit(logit), t)
            if class_weight.data is not None:
                weight = load_value(class_weight, number, number < classes).to(DTYPE)[None, :]
                loss, slope = loss * weight, slope * weight
            if sums is None:
                store_slope(out, places(out, image, point[:, None], channel), there, there, logit, slope * factor)
            else:
                of_block += tl.where(there, loss, 0.0)
            first += CLASSES
        if sums is not None:
            total += tl.sum(of_block, 1).to(tl.float64)
        block += tl.num_programs(0)
    if sums is not None:
        store_sum(sums, total)


@triton.jit
def load_sum(parts, programs, PROGRAMS: tl.constexpr):
    """Of all programs, in their order."""
    program = tl.arange(0, PROGRAMS)
    return tl.sum(tl.load(parts + program, program < programs, 0.0), 0)


@triton.jit
def store_term(to, total, gain, divisor):
    tl.store(to, (total * tl.full((), gain, tl.float64) / divisor).to(to.dtype.element_ty))


@triton.jit(do_not_specialize=["programs"])
def divided_kernel(
    sums,
    programs,
    normalizer,
    terms,
    divisors,
    eps: tl.float64,
    box_gain: tl.float64,
    class_gain: tl.float64,
    distribution_gain: tl.float64,
    number: tl.float64,
    UNIFORM: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    """The terms, and what they are divided by."""
    if normalizer is None:
        divisor = greater(load_sum(sums.score, programs, PROGRAMS), 1.0)
    else:
        divisor = greater(tl.load(normalizer).to(tl.float64), tl.full((), eps, tl.float64))
    number = tl.full((), number, tl.float64)
    divisor = tl.where(number > 0.0, number, divisor)
    pairs = greater(load_sum(sums.pairs, programs, PROGRAMS), 1.0)
    store_term(terms.box, load_sum(sums.box, programs, PROGRAMS), box_gain, divisor)
    store_term(terms.classification, load_sum(sums.classification, programs, PROGRAMS), class_gain, divisor)
    store_term(terms.distribution, load_sum(sums.distribution, programs, PROGRAMS), distribution_gain, divisor)
    store_term(terms.penalty, load_sum(sums.penalty, programs, PROGRAMS), box_gain, pairs if UNIFORM else divisor)
    store_term(divisors, divisor, 1.0, 1.0)
    store_term(divisors + 1, pairs, 1.0, 1.0)
