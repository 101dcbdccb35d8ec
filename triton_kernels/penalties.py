"""The inter-class relational penalties, over a prediction p and its anchor object a: 0 when p lies in a. The idea is
that of Ning and Han 2025 (arXiv 2508.14343), who describe it in words; each form is named after what it computes. All
are given the clamp, the least containment that counts in two of them."""

import triton
import triton.language as tl  # noqa: F401  Triton's interpreter looks for it in every module

from . import box
from .box import offset
from .number import (
    add,
    chain_one,
    choose,
    constant,
    guard,
    literal,
    logarithm,
    magnitude,
    maximum,
    one_minus,
    ratio,
    relu,
    scale,
    shift,
    subtract,
)


@triton.jit
def containment(p, a, eps, clamp):
    """1 - |P intersected with A| / |P|"""
    return one_minus(box.containment(p, a, eps))


@triton.jit
def inverse(p, a, eps, clamp):
    inside = box.containment(p, a, eps)
    return shift(ratio(literal(1.0, inside), inside, clamp), -1.0)


@triton.jit
def log(p, a, eps, clamp):
    return scale(logarithm(guard(box.containment(p, a, eps), clamp)), -1.0)


@triton.jit
def pull(p, a, eps, clamp):
    """T / (1 + T), T how far p reaches out of a in its own sides. It moves the box and does not resize it."""
    t = add(overhang(p.x1, p.x2, a.x1, a.x2, eps), overhang(p.y1, p.y2, a.y1, a.y2, eps))
    r = 1.0 / (1.0 + t.value)
    return chain_one(t.value * r, r * r, t)


@triton.jit
def overhang(p1, p2, a1, a2, eps):
    """relu(|c_P - c_A| + half_P - half_A) / side_P with half_P at most half_A, in edges: |u| + v = max(v + u, v - u).
    So it is exactly 0 for an interval that lies inside. The edges of p move with its centre, their distance is
    constant."""
    centre = scale(add(p1, p2), 0.5)
    off_edge = maximum(subtract(moved_by(centre, p2), a2), subtract(a1, moved_by(centre, p1)))
    off_centre = magnitude(offset(p1, p2, a1, a2))
    length = subtract(constant(p2), constant(p1))
    fits = length.value <= a2.value - a1.value
    return ratio(relu(choose(fits, off_edge, off_centre)), length, eps)


@triton.jit
def moved_by(centre, edge):
    """The value of an edge with the derivative of the centre."""
    return chain_one(edge.value, 1.0, centre)


@triton.jit
def containment_pull(p, a, eps, clamp):
    return add(containment(p, a, eps, clamp), pull(p, a, eps, clamp))


PENALTIES = [containment, inverse, log, pull, containment_pull]
