"""Numbers that a loss is written over: a value with its partial derivatives, for blocks of pairs.

A formula written once over them gives its value and its gradient. Which derivatives vanish is known while a kernel is
compiled: they are not there, and cost nothing. Everything here runs in the interpreter too, on CPU tensors.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Number(NamedTuple):
    """A value and its partials with respect to each variable of the kernel. One that vanishes is marked by its type, a
    single bit. Triton 3.6, for one, compiles a function once for all arguments of the same types in the same order,
    however they are nested: it would take an empty tuple in that place for something else. For the same reason all
    numbers of a formula have equally many partials."""

    value: Any
    partials: Any


class Ordered(NamedTuple):
    low: Any
    high: Any


@triton.jit
def lesser(a, b):
    """NaN if either is."""
    return tl.minimum(a, b, tl.PropagateNan.ALL)


@triton.jit
def greater(a, b):
    """NaN if either is."""
    return tl.maximum(a, b, tl.PropagateNan.ALL)


@triton.jit
def variable(x, at: tl.constexpr, count: tl.constexpr):
    """The variable ``at`` of ``count``; at -1, a constant."""
    partials = ()
    for i in tl.static_range(count):
        partials += (tl.full((), 1.0, x.dtype) if i == at else tl.full((), 0, tl.int1),)
    return Number(x, partials)


@triton.jit
def literal(value, x):
    """A constant beside x."""
    return variable(tl.full((), value, x.value.dtype), -1, len(x.partials))


@triton.jit
def constant(x):
    """sg() in the papers."""
    return variable(x.value, -1, len(x.partials))


@triton.jit
def chain(value, fa, a, fb, b):
    """The chain rule: ``value`` with the derivative fa da + fb db."""
    partials = ()
    for i in tl.static_range(len(a.partials)):
        da, db = a.partials[i], b.partials[i]
        if da.dtype == tl.int1 and db.dtype == tl.int1:
            partials += (da,)
        elif da.dtype == tl.int1:
            partials += (fb * db,)
        elif db.dtype == tl.int1:
            partials += (fa * da,)
        else:
            partials += (fa * da + fb * db,)
    return Number(value, partials)


@triton.jit
def chain_one(value, fx, x):
    """``value`` with the derivative fx dx."""
    partials = ()
    for i in tl.static_range(len(x.partials)):
        dx = x.partials[i]
        partials += (dx if dx.dtype == tl.int1 else fx * dx,)
    return Number(value, partials)


@triton.jit
def add(a, b):
    return chain(a.value + b.value, 1.0, a, 1.0, b)


@triton.jit
def subtract(a, b):
    return chain(a.value - b.value, 1.0, a, -1.0, b)


@triton.jit
def multiply(a, b):
    return chain(a.value * b.value, b.value, a, a.value, b)


@triton.jit
def scale(x, factor):
    """x times a plain number."""
    return chain_one(x.value * factor, factor, x)


@triton.jit
def shift(x, by):
    """x plus a plain number."""
    return chain_one(x.value + by, 1.0, x)


@triton.jit
def one_minus(x):
    return chain_one(1.0 - x.value, -1.0, x)


@triton.jit
def square(x):
    return chain_one(x.value * x.value, x.value + x.value, x)


@triton.jit
def rounded_product(a, b):
    """a * b rounded before anything is added to it: the compiler may fuse a product with a sum, but not this. Two equal
    areas stay equal then, and identical boxes are at rest."""
    return tl.fma(a, b, tl.zeros_like(a))


@triton.jit
def ratio(a, b, least):
    """a / max(b, least). Its derivative is (da - q db) / b in just that form: where a == b and da == db, as for
    identical boxes, it is exactly 0. Where the guard holds the denominator is constant. NaN stays NaN."""
    least = tl.full((), least, b.value.dtype)
    denominator = greater(b.value, least)
    r = 1.0 / denominator
    # On a GPU 1 / b is exact to 2 ulp; corrected by the remainder the quotient is rounded, and exactly 1 for a == b.
    q = a.value * r
    q = tl.fma(tl.fma(-q, denominator, a.value), r, q)
    return chain_one(q, r, chain(q, 1.0, a, tl.where(b.value <= least, 0.0, -q), b))


@triton.jit
def area_of(a, b):
    """a * b of two sides, rounded."""
    return chain(rounded_product(a.value, b.value), b.value, a, a.value, b)


@triton.jit
def overlap_area(a, b):
    """relu(a) * relu(b), rounded. Nothing flows where either side is empty; NaN stays NaN."""
    empty = lesser(a.value, b.value) <= 0.0
    a_side = tl.where(empty, 0.0, a.value)
    b_side = tl.where(empty, 0.0, b.value)
    return chain(rounded_product(a_side, b_side), b_side, a, a_side, b)


@triton.jit
def relu(x):
    """max(x, 0) with the derivative 0 at 0."""
    return chain_one(greater(x.value, 0.0), tl.where(x.value > 0.0, 1.0, 0.0), x)


@triton.jit
def guard(x, least):
    """max(x, least). The derivative is 0 where the guard holds."""
    least = tl.full((), least, x.value.dtype)
    return chain_one(greater(x.value, least), tl.where(x.value <= least, 0.0, 1.0), x)


@triton.jit
def within(x, most):
    """x from -most to most. The derivative is 0 beyond; NaN stays NaN."""
    slope = tl.where(tl.abs(x.value) > most, 0.0, 1.0)
    return chain_one(lesser(greater(x.value, -most), most), slope, x)


@triton.jit
def magnitude(x):
    """|x| with the derivative 0 at 0."""
    sign = tl.where(x.value > 0.0, 1.0, tl.where(x.value < 0.0, -1.0, 0.0))
    return chain_one(tl.abs(x.value), sign, x)


@triton.jit
def exponential(x):
    e = tl.exp(x.value)
    return chain_one(e, e, x)


@triton.jit
def logarithm(x):
    return chain_one(tl.log(x.value), 1.0 / x.value, x)


@triton.jit
def sigmoid(x):
    s = 1.0 / (1.0 + tl.exp(-x.value))
    return chain_one(s, s * (1.0 - s), x)


@triton.jit
def is_zero(x):
    """Or so small that a GPU takes the logarithm and the root of 0 instead. NaN is not."""
    return x <= tl.full((), 2.3e-308 if x.dtype == tl.float64 else 1.2e-38, x.dtype)


@triton.jit
def power(x, exponent):
    """x^exponent of a number from 0 on, with the derivative 0 at 0."""
    zero = is_zero(x.value)
    base = tl.where(zero, 1.0, x.value)
    y = tl.where(zero, 0.0, tl.exp(exponent * tl.log(base)))
    return chain_one(y, exponent * y / base, x)


@triton.jit
def root(x):
    """The square root, with the derivative 0 at 0."""
    zero = is_zero(x.value)
    y = tl.sqrt(tl.where(zero, 1.0, x.value))
    return chain_one(tl.where(zero, 0.0, y), tl.where(zero, 0.0, 0.5 / y), x)


@triton.jit
def ordered(a, b):
    """The smaller and the larger of two numbers. A tie splits the derivative in halves."""
    a_is_low = tl.where(a.value < b.value, 1.0, tl.where(a.value == b.value, 0.5, 0.0))
    b_is_low = 1.0 - a_is_low
    return Ordered(
        chain(lesser(a.value, b.value), a_is_low, a, b_is_low, b),
        chain(greater(a.value, b.value), b_is_low, a, a_is_low, b),
    )


@triton.jit
def minimum(a, b):
    return ordered(a, b).low


@triton.jit
def maximum(a, b):
    return ordered(a, b).high


@triton.jit
def choose(condition, a, b):
    """The number chosen by a condition, with its derivative."""
    return chain(
        tl.where(condition, a.value, b.value), tl.where(condition, 1.0, 0.0), a, tl.where(condition, 0.0, 1.0), b
    )


@triton.jit
def half_angle(t):
    """tan(x / 2) for t = tan(x)."""
    return t / (1.0 + tl.sqrt(1.0 + t * t))


@triton.jit
def angle(y, x):
    """The angle of the point (x, y) of the first quadrant. Triton has no arctangent that its interpreter knows."""
    t = lesser(x, y) / greater(greater(x, y), 1.2e-38)
    if t.dtype == tl.float64:
        t = half_angle(half_angle(half_angle(t)))
        z = t * t
        # Taylor's series: an eighth of an angle is at most pi/32.
        q = 1 / 15 - z * (1 / 17)
        q = 1 / 13 - z * q
        q = 1 / 11 - z * q
        q = 1 / 9 - z * q
        q = 1 / 7 - z * q
        q = 1 / 5 - z * q
        q = 1 / 3 - z * q
        flat = 8.0 * (t - t * z * q)
    else:
        z = t * t
        q = 0.00262223976 * z - 0.0151325176
        q = q * z + 0.0411218293
        q = q * z - 0.0736670345
        q = q * z + 0.10573931
        q = q * z - 0.141859755
        q = q * z + 0.199903965
        q = q * z - 0.333329856
        flat = q * z * t + t
    return tl.where(y > x, 1.5707963267948966 - flat, flat)


@triton.jit
def arctangent(y, x, eps):
    """atan(y/x) in the first quadrant, with the denominator of its derivative guarded."""
    r = 1.0 / greater(x.value * x.value + y.value * y.value, eps)
    return chain(angle(y.value, x.value), x.value * r, y, -(y.value * r), x)
