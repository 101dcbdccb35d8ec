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
from .pair import Boxes, box_loss, gradient, numbers_of, penalty_of
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
    """Of each program: beside terms the scores, and how many points have an anchor object."""

    box: Any
    distribution: Any
    penalty: Any
    score: Any
    pairs: Any
    classification: Any


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
    """log(1 + e) = 2 artanh(e / (2 + e)) for e in [0, 1], by a series that keeps all the digits of a small e."""
    TERMS: tl.constexpr = 16 if e.dtype == tl.float64 else 7
    t = e / (2.0 + e)
    z = t * t
    q = tl.zeros_like(e)
    for i in tl.static_range(TERMS):
        q = q * z + 1.0 / (2 * (TERMS - i) - 1)
    return 2.0 * t * q


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
    """Of channels of points, whose dimensions are there already. Where points lie side by side, without a stride, each
    lane has its own: that they are aligned, for which Triton would give eight of them to one, it is not told."""
    first = image * values.batch_stride
    if values.row_stride is None:
        return values.data + tl.multiple_of(first, 1) + point + channel * values.column_stride
    else:
        return values.data + first + point * values.row_stride + channel * values.column_stride


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
def kept_slope(logits, keep, slope):
    """Of logits within the limit; exactly 0 where nothing is kept, whatever lies there. NaN stays NaN."""
    return tl.where(keep, tl.where(tl.abs(logits) >= limit_of(logits), 0.0, slope), 0.0)


@triton.jit
def factor_of(upstream, gain, divisor, DTYPE: tl.constexpr):
    """What the derivative of a sum is multiplied by."""
    if upstream is None:
        return tl.full((), 0.0, DTYPE)
    else:
        return (tl.full((), gain, tl.float64) * tl.load(upstream) / tl.load(divisor)).to(DTYPE)


# The kernels. Those of sums leave the sum of each program.


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
    tl.store(at, rounded(kept_slope(logit, there, slope), out.data.dtype.element_ty), there)


@triton.jit(do_not_specialize=["points", "rows"])
def boxes_kernel(
    logits,
    grid,
    points: tl.int64,
    truth,
    rows: tl.int64,
    assigned,
    wise_mean,
    sums,
    upstream,
    divisors,
    out,
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
    box_gain: tl.float64,
    distribution_gain: tl.float64,
    height: tl.float64,
    width: tl.float64,
    LOSS: tl.constexpr,
    PARAMETERS: tl.constexpr,
    MODIFIERS: tl.constexpr,
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
    parameters, modifiers = (p0, p1, p2, p3), (inner, focaler_low, focaler_high, wise_a, wise_b)
    numbers = numbers_of(penalty_weight, eps, clamp, parameters, modifiers, wise_mean, PARAMETERS, DTYPE)
    image, point = block_of(tl.program_id(0), points, POINTS)
    inside = point < points
    row, has_target, score = load_target(assigned, rows, image, point, inside, DTYPE)
    loss_sum = tl.zeros((), DTYPE)
    distance_sum, excess_sum, pairs = loss_sum, loss_sum, loss_sum
    slope = tl.zeros((POINTS, 4, WIDTH), DTYPE)
    if tl.max(has_target.to(tl.int32), 0) > 0:
        x, y, stride = load_point(grid, point, has_target, DTYPE)
        logit = load_sides(logits, image, point, has_target, BINS, WIDTH, DTYPE)
        sides = sides_of(logit, BINS)
        c = around(x, y, columns_of_tile(sides.distance * stride[:, None]))
        g = corners(load_rows(truth.boxes, row, has_target, DTYPE), FORMAT)
        wanted = tile_of(distances(x, y, g))
        p, g = variables(corners(c, "xyxy"), 0, COUNT), variables(g, COUNT, COUNT)
        loss = box_loss(p, g, numbers, LOSS, MODIFIERS)
        if PENALTY is not None:
            row, has_anchor = rows_of_table(truth.anchor_index, rows, row, has_target)
            a = variables(corners(load_rows(truth.boxes, row, has_anchor, DTYPE), FORMAT), COUNT, COUNT)
            excess = penalty_of(Boxes(p, g, a), has_anchor, numbers, PENALTY, RELATIVE)
            weight = numbers.penalty_weight if UNIFORM else numbers.penalty_weight * score
        size = tl.where(tl.arange(0, 4) % 2 == 0, tl.full((), width, DTYPE), tl.full((), height, DTYPE))[None, :]
        size = tl.where(size > 0.0, size, stride[:, None])
        of_sides, slope = distance_loss(sides, wanted, stride[:, None], size, BINS)
        if sums is None:
            total = scale(loss, factor_of(upstream.box, box_gain, divisors, DTYPE) * score)
            if PENALTY is not None:
                of_excess = factor_of(upstream.penalty, box_gain, divisors + 1 if UNIFORM else divisors, DTYPE)
                total = add(total, scale(excess, of_excess * weight))
            of_corners = pull_back(c, gradient(total, 0), "xyxy")
            of_distance = tile_of(distances(0.0, 0.0, of_corners)) * stride[:, None]
            of_sides = factor_of(upstream.distribution, distribution_gain, divisors, DTYPE) * 0.25 * score
            slope = of_sides[:, None, None] * slope + slope_of_distance(sides, of_distance, BINS)
            slope = kept_slope(logit, has_target[:, None, None], slope)
        else:
            loss_sum = tl.sum(tl.where(has_target, loss.value * score, 0.0), 0)
            distance_sum = tl.sum(tl.where(has_target, tl.sum(of_sides, 1) * 0.25 * score, 0.0), 0)
            if PENALTY is not None:
                excess_sum = tl.sum(tl.where(has_anchor, excess.value * weight, 0.0), 0)
                pairs = tl.sum(has_anchor.to(DTYPE), 0)
    if sums is None:
        at, there = places_of_sides(out, image, point, inside, BINS, WIDTH)
        tl.store(at, rounded(slope, out.data.dtype.element_ty), there)
    else:
        program = tl.program_id(0)
        tl.store(sums.box + program, loss_sum)
        tl.store(sums.distribution + program, distance_sum)
        tl.store(sums.penalty + program, excess_sum)
        tl.store(sums.score + program, tl.sum(score, 0))
        tl.store(sums.pairs + program, pairs)


@triton.jit(do_not_specialize=["points", "classes", "rows"])
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
    gain: tl.float64,
    DTYPE: tl.constexpr,
    POINTS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """The sum of the cross-entropies; or, where it is None, the gradient of the logits."""
    image, point = block_of(tl.program_id(0), points, POINTS)
    inside = point < points
    row, has_target, score = load_target(assigned, rows, image, point, inside, DTYPE)
    label = load_value(labels, row, has_target)
    label = tl.where(has_target & (label >= 0) & (label < classes), label, -1).to(tl.int32)
    factor = factor_of(upstream, gain, divisors, DTYPE)
    total = tl.zeros((POINTS, CLASSES), DTYPE)
    first = tl.zeros((), tl.int32)
    while first < classes:
        number = first + tl.arange(0, CLASSES)
        there = inside[:, None] & (number < classes)[None, :]
        channel = number[None, :].to(tl.int64)
        logit = tl.load(places(logits, image, point[:, None], channel), there, 0.0).to(DTYPE)
        t = tl.where(label[:, None] == number[None, :], score[:, None], 0.0)
        loss, slope = cross_entropy(within_limit(logit), t)
        if class_weight.data is not None:
            weight = load_value(class_weight, number, number < classes).to(DTYPE)[None, :]
            loss, slope = loss * weight, slope * weight
        if sums is None:
            slope = kept_slope(logit, there, slope * factor)
            tl.store(places(out, image, point[:, None], channel), rounded(slope, out.data.dtype.element_ty), there)
        else:
            total += tl.where(there, loss, 0.0)
        first += CLASSES
    if sums is not None:
        tl.store(sums + tl.program_id(0), tl.sum(tl.sum(total, 1), 0))


@triton.jit
def load_sum(parts, count, BLOCK: tl.constexpr):
    """Of all programs, in an order that is always the same."""
    total = tl.zeros((BLOCK,), tl.float64)
    first = tl.zeros((), tl.int32)
    while first < count:
        at = first + tl.arange(0, BLOCK)
        total += tl.load(parts + at, at < count, 0.0).to(tl.float64)
        first += BLOCK
    return tl.sum(total, 0)


@triton.jit
def store_term(to, total, gain, divisor):
    tl.store(to, (total * tl.full((), gain, tl.float64) / divisor).to(to.dtype.element_ty))


@triton.jit(do_not_specialize=["of_boxes", "of_classes"])
def divided_kernel(
    sums,
    of_boxes,
    of_classes,
    normalizer,
    terms,
    divisors,
    eps: tl.float64,
    box_gain: tl.float64,
    class_gain: tl.float64,
    distribution_gain: tl.float64,
    number: tl.float64,
    UNIFORM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The terms, from the sums of as many programs, and what they are divided by."""
    if normalizer is None:
        divisor = greater(load_sum(sums.score, of_boxes, BLOCK), 1.0)
    else:
        divisor = greater(tl.load(normalizer).to(tl.float64), tl.full((), eps, tl.float64))
    number = tl.full((), number, tl.float64)
    divisor = tl.where(number > 0.0, number, divisor)
    pairs = greater(load_sum(sums.pairs, of_boxes, BLOCK), 1.0)
    store_term(terms.box, load_sum(sums.box, of_boxes, BLOCK), box_gain, divisor)
    store_term(terms.classification, load_sum(sums.classification, of_classes, BLOCK), class_gain, divisor)
    store_term(terms.distribution, load_sum(sums.distribution, of_boxes, BLOCK), distribution_gain, divisor)
    store_term(terms.penalty, load_sum(sums.penalty, of_boxes, BLOCK), box_gain, pairs if UNIFORM else divisor)
    store_term(divisors, divisor, 1.0, 1.0)
    store_term(divisors + 1, pairs, 1.0, 1.0)
