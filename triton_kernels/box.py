"""Boxes: the formats they come in, their corners, and the geometry that losses and penalties are made of."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from icr_kernels.variants import COORDINATE_LIMIT

from .number import (
    add,
    area_of,
    chain,
    greater,
    lesser,
    literal,
    maximum,
    minimum,
    overlap_area,
    ratio,
    scale,
    subtract,
    variable,
)


class Box(NamedTuple):
    """Corners with x1 <= x2 and y1 <= y2; coordinates of any format; or the gradient with respect to either."""

    x1: Any
    y1: Any
    x2: Any
    y2: Any


@triton.jit
def limit_of(x, limit: tl.constexpr = COORDINATE_LIMIT):
    return tl.full((), limit, x.dtype)


@triton.jit
def within_limit(x):
    return lesser(greater(x, -limit_of(x)), limit_of(x))


@triton.jit
def plain_interval(first, second, box_format: tl.constexpr):
    """The ends of an interval of a format, inverted or not."""
    if box_format == "xyxy":
        return first, second
    elif box_format == "cxcywh":
        return first - 0.5 * second, first + 0.5 * second
    else:
        return first, first + second


@triton.jit
def interval(first, second, box_format: tl.constexpr):
    """The ends of an interval. An inverted one has length 0 and begins where it did. NaN stays NaN."""
    begin, end = plain_interval(within_limit(first), within_limit(second), box_format)
    return begin, greater(begin, end)


@triton.jit
def corners(c, box_format: tl.constexpr):
    """The corners of four coordinates in a format."""
    x1, x2 = interval(c.x1, c.x2, box_format)
    y1, y2 = interval(c.y1, c.y2, box_format)
    return Box(x1, y1, x2, y2)


@triton.jit
def pull_back_interval(first, second, g_begin, g_end, box_format: tl.constexpr):
    """The transpose of the derivative of `interval`. A side of exactly 0 is not inverted: it can grow."""
    inverted = second < first if box_format == "xyxy" else second < 0.0
    g_begin = tl.where(inverted, g_begin + g_end, g_begin)
    g_end = tl.where(inverted, 0.0, g_end)
    if box_format == "xyxy":
        g_first, g_second = g_begin, g_end
    elif box_format == "cxcywh":
        g_first, g_second = g_begin + g_end, 0.5 * (g_end - g_begin)
    else:
        g_first, g_second = g_begin + g_end, g_end
    g_first = tl.where(tl.abs(first) >= limit_of(first), 0.0, g_first)
    return g_first, tl.where(tl.abs(second) >= limit_of(second), 0.0, g_second)


@triton.jit
def pull_back(c, gradient, box_format: tl.constexpr):
    """The gradient with respect to corners() as one with respect to its coordinates."""
    x1, x2 = pull_back_interval(c.x1, c.x2, gradient.x1, gradient.x2, box_format)
    y1, y2 = pull_back_interval(c.y1, c.y2, gradient.y1, gradient.y2, box_format)
    return Box(x1, y1, x2, y2)


@triton.jit
def spread(b, axis: tl.constexpr):
    """Boxes in a row (axis 0) or in a column (axis 1)."""
    return Box(
        tl.expand_dims(b.x1, axis), tl.expand_dims(b.y1, axis), tl.expand_dims(b.x2, axis), tl.expand_dims(b.y2, axis)
    )


@triton.jit
def variables(box, first: tl.constexpr, count: tl.constexpr):
    """The box as the variables from ``first`` on, of ``count``; beyond them, as constants."""
    return Box(
        variable(box.x1, first, count),
        variable(box.y1, first + 1, count),
        variable(box.x2, first + 2, count),
        variable(box.y2, first + 3, count),
    )


@triton.jit
def values_of(box):
    return Box(box.x1.value, box.y1.value, box.x2.value, box.y2.value)


@triton.jit
def width(box):
    return subtract(box.x2, box.x1)


@triton.jit
def height(box):
    return subtract(box.y2, box.y1)


@triton.jit
def area(box):
    return area_of(width(box), height(box))


@triton.jit
def offset(a1, a2, b1, b2):
    """Between the centres of two intervals."""
    return scale(add(subtract(a1, b1), subtract(a2, b2)), 0.5)


# What two boxes share and what encloses both. What a formula computes twice the compiler computes once.


@triton.jit
def intersection(p, q):
    return overlap_area(
        subtract(minimum(p.x2, q.x2), maximum(p.x1, q.x1)), subtract(minimum(p.y2, q.y2), maximum(p.y1, q.y1))
    )


@triton.jit
def union(p, q):
    return subtract(add(area(p), area(q)), intersection(p, q))


@triton.jit
def enclosing_width(p, q):
    return subtract(maximum(p.x2, q.x2), minimum(p.x1, q.x1))


@triton.jit
def enclosing_height(p, q):
    return subtract(maximum(p.y2, q.y2), minimum(p.y1, q.y1))


@triton.jit
def centre_dx(p, q):
    return offset(p.x1, p.x2, q.x1, q.x2)


@triton.jit
def centre_dy(p, q):
    return offset(p.y1, p.y2, q.y1, q.y2)


@triton.jit
def similarity(p, q, eps):
    """IoU."""
    return ratio(intersection(p, q), union(p, q), eps)


@triton.jit
def displaced_similarity(by, q, eps):
    """IoU of q and a box whose edges lie ``by`` beyond its own. Which edge is inside is the sign of a difference: edges
    next to each other stay two. It is differentiated with respect to these differences and the sides first: of equal
    boxes that is exactly 0, and so is what it is multiplied by."""
    apart = variables(values_of(by), 0, 6)
    w, h = variable(width(q).value, 4, 6), variable(height(q).value, 5, 6)
    zero = literal(0.0, w)
    shared = overlap_area(
        add(w, subtract(minimum(apart.x2, zero), maximum(apart.x1, zero))),
        add(h, subtract(minimum(apart.y2, zero), maximum(apart.y1, zero))),
    )
    other = area_of(add(w, width(apart)), add(h, height(apart)))
    iou = ratio(shared, subtract(add(area_of(w, h), other), shared), eps)
    along_x = chain(iou.value, iou.partials[0], by.x1, iou.partials[2], by.x2)
    along_y = chain(0.0, iou.partials[1], by.y1, iou.partials[3], by.y2)
    along_sides = chain(0.0, iou.partials[4], width(q), iou.partials[5], height(q))
    return add(along_x, add(along_y, along_sides))


@triton.jit
def containment(p, q, eps):
    """|P intersected with Q| / |P|"""
    return ratio(intersection(p, q), area(p), eps)
