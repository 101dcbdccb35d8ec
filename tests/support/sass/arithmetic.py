"""Numbers as the units of a GPU compute them, over arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any  # a NumPy array over lanes or warps, or one number for all

U32, U64, S32, S64, F32, F64 = np.uint32, np.uint64, np.int32, np.int64, np.float32, np.float64
MASK = U64(0xFFFF_FFFF)


def narrow(exact: Array, rounding: str = "RN", dtype: Any = F32) -> Array:
    """To a narrower type. `exact` has the digits that decide, or is odd in its last bit where digits are missing."""
    exact = np.asarray(exact)
    near = exact.astype(dtype)
    if rounding == "RN":
        return near
    back = near.astype(exact.dtype)
    if rounding == "RM":
        return np.where(back > exact, np.nextafter(near, dtype(-np.inf)), near)
    if rounding == "RP":
        return np.where(back < exact, np.nextafter(near, dtype(np.inf)), near)
    return np.where(np.abs(back) > np.abs(exact), np.nextafter(near, dtype(0)), near)


def fused(a: Array, b: Array, c: Array, rounding: str = "RN") -> Array:
    """a * b + c of floats, rounded once: the sum in double, made odd where it is not exact."""
    product, c = np.asarray(a, F64) * np.asarray(b, F64), np.asarray(c, F64)
    total = np.asarray(product + c)
    share = total - product
    missing = (product - (total - share)) + (c - share)
    bits = total.view(S64)
    is_even = np.isfinite(missing) & (missing != 0) & (bits & 1 == 0)
    bits = np.where(is_even, bits + np.where((missing > 0) == (total > 0), 1, -1), bits)
    return narrow(bits.view(F64), rounding)


def flushed(x: Array) -> Array:
    return np.where(np.abs(x) < np.finfo(F32).tiny, np.copysign(F32(0), x), x).astype(F32)


COMPARISONS: dict[str, Callable[[Array, Array], Array]] = {
    "LT": np.less,
    "EQ": np.equal,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
}


def compared(condition: str, a: Array, b: Array, is_float: bool) -> Array:
    unordered = np.isnan(a) | np.isnan(b) if is_float else np.False_
    if condition in ("NUM", "NAN"):
        return unordered if condition == "NAN" else ~unordered
    if condition in ("F", "T"):
        return np.full(np.broadcast(a, b).shape, condition == "T")
    if condition == "NE":
        return np.not_equal(a, b) & ~unordered
    if condition == "NEU":
        return np.not_equal(a, b) | unordered
    if condition in COMPARISONS:
        return COMPARISONS[condition](a, b)
    return COMPARISONS[condition.removesuffix("U")](a, b) | unordered


CONDITIONS = {"F", "T", "NUM", "NAN", "NE", "NEU", *COMPARISONS, *(f"{name}U" for name in COMPARISONS)}
COMBINATIONS: dict[str, Callable[[Array, Array], Array]] = {
    "AND": np.logical_and,
    "OR": np.logical_or,
    "XOR": np.logical_xor,
}


def smaller_or_larger(a: Array, b: Array, smaller: Array, keeps_nan: bool) -> Array:
    """min or max of floats; of two zeros the negative one is the smaller."""
    a, b = np.broadcast_arrays(a, b)
    zeros = (a == 0) & (b == 0)
    least = np.where(zeros, np.where(np.signbit(a), a, b), np.fmin(a, b))
    most = np.where(zeros, np.where(np.signbit(a), b, a), np.fmax(a, b))
    result = np.where(smaller, least, most)
    return np.where(np.isnan(a) | np.isnan(b), F32(np.nan), result) if keeps_nan else result


def table_lookup(table: int, a: Array, b: Array, c: Array) -> Array:
    """The bitwise function of three words whose value for bits (a, b, c) is bit 4a + 2b + c of the table."""
    result = np.zeros(np.broadcast(a, b, c).shape, U32)
    for index in range(8):
        if table >> index & 1:
            result |= (a if index & 4 else ~a) & (b if index & 2 else ~b) & (c if index & 1 else ~c)
    return result


def wide(low: Array, high: Array) -> Array:
    return np.asarray(low, U32).astype(U64) | np.asarray(high, U32).astype(U64) << U64(32)


def signed(x: Array) -> Array:
    """The words as numbers with a sign, with room for sums of them."""
    return np.asarray(x, U32).view(S32).astype(S64)


def real_number(text: str, dtype: Any = F32) -> Any:
    if "0x" in text:
        return U32(int(text, 16)).view(F32)
    return dtype(text.upper().replace("QNAN", "NAN").replace("SNAN", "NAN"))
