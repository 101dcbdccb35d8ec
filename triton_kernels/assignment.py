"""Task-aligned assignment: its formulas, as `icr_kernels.task_aligned_assign` has them, and its four kernels.

What is best is decided by keys, numbers that no two points and no two boxes share: nothing depends on the order in
which programs come. An index holds the row of a point's box, ``NOBODY``, or between two launches ``CONFLICT``.
"""

import math
from typing import Any, NamedTuple

import triton
import triton.language as tl

from icr_kernels.dense_reference import OVERLAP_EPS

from .box import Box, plain_interval
from .kernels import Column, load_rows, load_value, rounded
from .number import angle, greater, lesser, rounded_product
from .pairwise import LARGEST, block_of, load_set

NOBODY, CONFLICT = tl.constexpr(-1), tl.constexpr(-2)
# The bits of NaN, as every NaN counts.
NAN_BITS = tl.constexpr(0x7FC00000)
LARGEST_KEY = tl.constexpr((1 << 63) - 1)
# Of the square of an angle, to count in right angles.
PER_RIGHT_ANGLE = tl.constexpr(4 / math.pi**2)


class Head(NamedTuple):
    """What a dense head predicts: sets of scores and of boxes, one per image; and rows of two, its points."""

    scores: Any
    boxes: Any
    points: Any


class Truth(NamedTuple):
    """Rows of boxes, and columns."""

    boxes: Any
    labels: Any
    image: Any


class Target(NamedTuple):
    """A box of the ground truth: its corners, those of the box in which its candidates lie, and the angle of its
    diagonal."""

    corners: Any
    reach: Any
    slant: Any


class Rule(NamedTuple):
    alpha: Any
    beta: Any
    smallest_side: Any
    eps: Any


@triton.jit
def rule_of(alpha, beta, smallest_side, eps):
    alpha, beta = tl.full((), alpha, tl.float32), tl.full((), beta, tl.float32)
    return Rule(alpha, beta, tl.full((), smallest_side, tl.float32), tl.full((), eps, tl.float32))


# The formulas. Operation by operation they are those of the reference, each rounded by itself.


@triton.jit
def plain_corners(c, FORMAT: tl.constexpr):
    """Corners as an assigner takes them: an inverted box stays one."""
    x1, x2 = plain_interval(c.x1, c.x2, FORMAT)
    y1, y2 = plain_interval(c.y1, c.y2, FORMAT)
    return Box(x1, y1, x2, y2)


@triton.jit
def enlarged_interval(begin, end, least):
    """At least that long, about its centre. Negative: as it is."""
    middle, length = 0.5 * (begin + end), end - begin
    half = 0.5 * tl.where(length < least, least, length)
    return tl.where(least < 0.0, begin, middle - half), tl.where(least < 0.0, end, middle + half)


@triton.jit
def enlarged(b, least):
    x1, x2 = enlarged_interval(b.x1, b.x2, least)
    y1, y2 = enlarged_interval(b.y1, b.y2, least)
    return Box(x1, y1, x2, y2)


@triton.jit
def width(b):
    return b.x2 - b.x1


@triton.jit
def height(b, eps: tl.constexpr = OVERLAP_EPS):
    return b.y2 - b.y1 + eps


@triton.jit
def slant(b):
    """The angle of the diagonal, rounded once; of an inverted box too."""
    tangent = tl.div_rn(width(b), height(b))
    turn = angle(tl.abs(tangent).to(tl.float64), tl.full((), 1.0, tl.float64)).to(tl.float32)
    return tl.where(tangent < 0.0, -turn, turn)


@triton.jit
def overlap(target, p, eps: tl.constexpr = OVERLAP_EPS):
    """max(CIoU, 0) as detectors compute it, with heights and denominators that eps is added to. NaN stays NaN."""
    g = target.corners
    shared_width = greater(lesser(g.x2, p.x2) - greater(g.x1, p.x1), 0.0)
    shared_height = greater(lesser(g.y2, p.y2) - greater(g.y1, p.y1), 0.0)
    i = rounded_product(shared_width, shared_height)
    iou = tl.div_rn(i, rounded_product(width(g), height(g)) + rounded_product(width(p), height(p)) - i + eps)
    c_width, c_height = greater(g.x2, p.x2) - lesser(g.x1, p.x1), greater(g.y2, p.y2) - lesser(g.y1, p.y1)
    c2 = rounded_product(c_width, c_width) + rounded_product(c_height, c_height) + eps
    x, y = p.x1 + p.x2 - g.x1 - g.x2, p.y1 + p.y2 - g.y1 - g.y2
    distance = tl.div_rn((rounded_product(x, x) + rounded_product(y, y)) * 0.25, c2)
    turn = slant(p) - target.slant
    v = rounded_product(rounded_product(turn, turn), PER_RIGHT_ANGLE)
    ciou = iou - (distance + rounded_product(v, tl.div_rn(v, 1.0 - iou + v + eps)))
    return tl.where(ciou <= 0.0, 0.0, ciou)


@triton.jit
def probability(score, FROM_LOGITS: tl.constexpr):
    """As PyTorch computes it: from a logit in its own precision, or in float32 if that is less, and rounded to it."""
    if FROM_LOGITS:
        e = tl.exp(-score.to(tl.float64))
        if score.dtype == tl.float64:
            score = 1.0 / (1.0 + e)
        else:
            score = rounded(tl.div_rn(1.0, 1.0 + e.to(tl.float32)), score.dtype)
    score = score.to(tl.float32)
    return tl.where(score <= 0.0, 0.0, score)


@triton.jit
def power(x, exponent, ROOT: tl.constexpr):
    """x^exponent by way of float64; the root, which nearly everyone takes, without a detour."""
    if ROOT:
        return tl.sqrt_rn(x)
    else:
        y = tl.exp(exponent.to(tl.float64) * tl.log(x.to(tl.float64)))
        return tl.where(exponent == 0.0, 1.0, y.to(tl.float32))


# What is best.


@triton.jit
def rank(x):
    """Whole numbers in the order of those that are not negative, NaN above all."""
    return tl.where(x == x, x.to(tl.int32, bitcast=True), NAN_BITS)


@triton.jit
def key_of(x, number):
    """The largest has the largest key, of equals the one with the lowest number."""
    return (rank(x).to(tl.int64) << 32) | (LARGEST - number)


@triton.jit
def number_of(key):
    return LARGEST - key.to(tl.int32)


# The k best points of a box are kept as their keys. While every metric is 0 these are the first k points, and so they
# are what is kept at first: only metrics above 0 are looked for. A point that has one takes its own place if it is kept
# as a zero, or else that of the least; so the zeros that are left are those of the lowest index.


@triton.jit
def kept_at_first(k, KEPT: tl.constexpr):
    number = tl.arange(0, KEPT)
    return tl.where(number < k, LARGEST - number.to(tl.int64), LARGEST_KEY)


@triton.jit
def next_best(kept, keys):
    """The largest key; what is kept, in the order in which it makes way for that; and the first in this order."""
    best = tl.max(keys, 0)
    order = tl.where(kept == (best & LARGEST), -1, kept)
    return best, order, tl.min(order, 0)


@triton.jit
def with_best(kept, metric, point):
    """What is kept after a block of points."""
    keys = tl.where(metric == 0.0, 0, key_of(metric, point))
    best, order, least = next_best(kept, keys)
    while best > least:
        kept = tl.where(order == least, best, kept)
        keys = tl.where(keys == best, 0, keys)
        best, order, least = next_best(kept, keys)
    return kept


# Boxes of the ground truth and points.


@triton.jit
def load_target(truth, row, there, rule, FORMAT: tl.constexpr):
    g = plain_corners(load_rows(truth.boxes, row, there, tl.float32), FORMAT)
    return Target(g, enlarged(g, rule.smallest_side), slant(g))


@triton.jit
def load_place(truth, row, images, points, classes):
    """Image and class of a row, and how many points it may take: none, where one of both does not exist."""
    image, label = load_value(truth.image, row, True).to(tl.int64), load_value(truth.labels, row, True).to(tl.int64)
    exists = (image >= 0) & (image < images) & (label >= 0) & (label < classes)
    return image, label, tl.where(exists, points, 0)


@triton.jit
def lies_in(reach, points, point, there, eps):
    first = points.data + point * points.row_stride
    x = tl.load(first, there, 0.0).to(tl.float32)
    y = tl.load(first + points.column_stride, there, 0.0).to(tl.float32)
    return there & (x - reach.x1 > eps) & (y - reach.y1 > eps) & (reach.x2 - x > eps) & (reach.y2 - y > eps)


@triton.jit
def suitability(
    head,
    points,
    image,
    label,
    point,
    candidate,
    target,
    rule,
    ROOT: tl.constexpr,
    FROM_LOGITS: tl.constexpr,
    FORMAT: tl.constexpr,
):
    """Similarity and metric. Of what is no candidate nothing is read, and both are 0."""
    p = plain_corners(load_set(head.boxes, points, image, point, candidate, tl.float32), FORMAT)
    similarity = tl.where(candidate, overlap(target, p), 0.0)
    first = head.scores.data + image * head.scores.batch_stride + label * head.scores.column_stride
    score = probability(load_value(Column(first, head.scores.row_stride), point, candidate), FROM_LOGITS)
    metric = power(score, rule.alpha, ROOT) * power(similarity, rule.beta, False)
    return similarity, tl.where(similarity == 0.0, 0.0, metric)


# The kernels, in their order.

COUNTS = ["images", "points", "classes"]


@triton.jit(do_not_specialize=["images", "points"])
def cleared_kernel(index, owner, first, images: tl.int64, points: tl.int64, BLOCK: tl.constexpr):
    """No point has a box yet, nor an image a first one."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < images * points
    tl.store(index + at, NOBODY, inside)
    tl.store(owner + at, 0, inside)
    tl.store(first + at, LARGEST, at < images)


@triton.jit(do_not_specialize=[*COUNTS, "k"])
def claimed_kernel(
    head,
    truth,
    images: tl.int64,
    points: tl.int64,
    classes: tl.int64,
    index,
    owner,
    first,
    k,
    alpha: tl.float64,
    beta: tl.float64,
    smallest_side: tl.float64,
    eps: tl.float64,
    ROOT: tl.constexpr,
    FROM_LOGITS: tl.constexpr,
    FORMAT: tl.constexpr,
    TRUTH_FORMAT: tl.constexpr,
    KEPT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program per box: it leaves its key with every point that is similar, and claims its k best. Most blocks of
    points have no candidate: of those nothing else is read."""
    rule = rule_of(alpha, beta, smallest_side, eps)
    row = tl.program_id(0).to(tl.int64)
    target = load_target(truth, row, True, rule, TRUTH_FORMAT)
    image, label, count = load_place(truth, row, images, points, classes)
    tl.atomic_min(first + image, row.to(tl.int32), count > 0, sem="relaxed")
    index += image * points
    owner += image * points

    k = tl.minimum(k, count)
    kept = kept_at_first(k, KEPT)
    begin = tl.zeros((), tl.int64)
    while begin < count:
        point = begin + tl.arange(0, BLOCK)
        candidate = lies_in(target.reach, head.points, point, point < count, rule.eps)
        if tl.max(candidate.to(tl.int32), 0) > 0:
            similarity, metric = suitability(
                head, points, image, label, point, candidate, target, rule, ROOT, FROM_LOGITS, FORMAT
            )
            # The key of the most similar box stays.
            tl.atomic_max(owner + point, key_of(similarity, row), similarity != 0.0, sem="relaxed")
            kept = with_best(kept, metric, point)
        begin += BLOCK

    best = number_of(kept)
    claims = lies_in(target.reach, head.points, best, tl.arange(0, KEPT) < k, rule.eps)
    before = tl.atomic_xchg(index + best, row, claims, sem="relaxed")
    # Whoever comes second says so after it came: what remains does not depend on the order.
    tl.atomic_xchg(index + best, tl.full((KEPT,), CONFLICT, tl.int64), claims & (before != NOBODY), sem="relaxed")


@triton.jit(do_not_specialize=["points"])
def decided_kernel(
    head,
    truth,
    points: tl.int64,
    index,
    owner,
    first,
    similarity,
    metric,
    alpha: tl.float64,
    beta: tl.float64,
    smallest_side: tl.float64,
    eps: tl.float64,
    ROOT: tl.constexpr,
    FROM_LOGITS: tl.constexpr,
    FORMAT: tl.constexpr,
    TRUTH_FORMAT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each point's box, and how they suit each other. What several claimed belongs to the most similar box of its
    image, whether or not that did; of equals, zeros too, to the first."""
    rule = rule_of(alpha, beta, smallest_side, eps)
    image, point = block_of(tl.program_id(0), points, BLOCK)
    inside = point < points
    at = image * points + point
    row = tl.load(index + at, inside, NOBODY)
    several = row == CONFLICT
    key = tl.load(owner + at, several, 0)
    row = tl.where(several, tl.where(key == 0, tl.load(first + image), number_of(key)).to(tl.int64), row)
    has_box = row != NOBODY
    target = load_target(truth, row, has_box, rule, TRUTH_FORMAT)
    label = load_value(truth.labels, row, has_box).to(tl.int64)
    candidate = lies_in(target.reach, head.points, point, has_box, rule.eps)
    of_point, suits = suitability(head, points, image, label, point, candidate, target, rule, ROOT, FROM_LOGITS, FORMAT)
    tl.store(index + at, row, inside)
    tl.store(similarity + at, of_point, inside)
    tl.store(metric + at, suits, inside)


@triton.jit
def load_own(index, metric, row, point, count):
    """Which points are of a row, and their metric."""
    own = tl.load(index + point, point < count, NOBODY) == row
    return own, tl.load(metric + point, own, 0.0)


@triton.jit
def least_kept(index, metric, row, count, k, KEPT: tl.constexpr, BLOCK: tl.constexpr):
    """The key of the k-th best point of a row."""
    kept = kept_at_first(tl.minimum(k, count), KEPT)
    begin = tl.zeros((), tl.int64)
    while begin < count:
        point = begin + tl.arange(0, BLOCK)
        _, suits = load_own(index, metric, row, point, count)
        kept = with_best(kept, suits, point)
        begin += BLOCK
    return tl.min(kept, 0)


@triton.jit(do_not_specialize=[*COUNTS, "k"])
def scored_kernel(
    truth,
    images: tl.int64,
    points: tl.int64,
    classes: tl.int64,
    index,
    similarity,
    score,
    k,
    eps: tl.float64,
    KEPT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program per box: of its points it keeps the k best, all if k is 0, and their metrics become scores."""
    row = tl.program_id(0).to(tl.int64)
    image, _, count = load_place(truth, row, images, points, classes)
    index += image * points
    similarity += image * points
    score += image * points
    least = tl.zeros((), tl.int64)
    if k > 0:
        least = least_kept(index, score, row, count, k, KEPT, BLOCK)

    largest_metric, largest_similarity = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32)
    begin = tl.zeros((), tl.int64)
    while begin < count:
        point = begin + tl.arange(0, BLOCK)
        own, metric = load_own(index, score, row, point, count)
        keeps = own & (key_of(metric, point) >= least)
        largest_metric = tl.maximum(largest_metric, tl.where(keeps, rank(metric), 0))
        largest_similarity = tl.maximum(largest_similarity, rank(tl.load(similarity + point, keeps, 0.0)))
        begin += BLOCK
    best_metric = tl.max(largest_metric, 0).to(tl.float32, bitcast=True)
    best_similarity = tl.max(largest_similarity, 0).to(tl.float32, bitcast=True)
    denominator = best_metric + tl.full((), eps, tl.float32)

    begin = tl.zeros((), tl.int64)
    while begin < count:
        point = begin + tl.arange(0, BLOCK)
        own, metric = load_own(index, score, row, point, count)
        keeps = own & (key_of(metric, point) >= least)
        tl.store(score + point, tl.where(keeps, tl.div_rn(metric * best_similarity, denominator), 0.0), own)
        tl.store(index + point, NOBODY, own & (keeps == 0))
        begin += BLOCK
