"""Instructions over floats, halves and doubles; comparisons, those of integers too."""

from collections.abc import Callable

import numpy as np

from .arithmetic import (
    COMBINATIONS,
    CONDITIONS,
    F32,
    F64,
    S32,
    U32,
    U64,
    Array,
    compared,
    flushed,
    fused,
    narrow,
    real_number,
    signed,
    smaller_or_larger,
    wide,
)
from .listing import Instruction, Operand
from .machine import Machine, Scope
from .operations import operation, rounding_of

FLOAT = "FTZ SAT RN RZ RM RP"


@operation("FADD FMUL FFMA", FLOAT)
def _(m: Machine, each: Instruction, s: Scope) -> None:
    result, *operands = each.operands
    values = [m.float(op, s) for op in operands]
    if "FTZ" in each.modifiers:
        values = [flushed(value) for value in values]
    rounding = rounding_of(each)
    if each.name == "FFMA":
        value = fused(*values, rounding)
    elif rounding == "RN":
        value = (np.add if each.name == "FADD" else np.multiply)(*values)
    elif each.name == "FADD":
        value = fused(values[0], F32(1), values[1], rounding)
    else:
        value = narrow(np.multiply(*(np.asarray(value, F64) for value in values)), rounding)
    if "SAT" in each.modifiers:
        value = np.where(np.isnan(value), F32(0), np.clip(value, F32(0), F32(1)))
    m.put(result, s, flushed(value) if "FTZ" in each.modifiers else value)


@operation("FMNMX", "FTZ NAN")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    result, a, b, smaller = each.operands
    m.put(result, s, smaller_or_larger(m.float(a, s), m.float(b, s), m.truth(smaller, s), "NAN" in each.modifiers))


@operation("FSEL", "FTZ")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    result, a, b, which = each.operands
    m.put(result, s, np.where(m.truth(which, s), m.float(a, s).view(U32), m.float(b, s).view(U32)))


def comparison(m: Machine, each: Instruction, s: Scope, a: Operand, b: Operand, flags: list[Operand]) -> Array:
    """The comparison and the combination with a predicate, and the predicate."""
    condition = next(name for name in each.modifiers if name in CONDITIONS)
    if each.name[0] in "FD":
        read = m.float if each.name[0] == "F" else m.double
        left, right = read(a, s), read(b, s)
        if "FTZ" in each.modifiers:
            left, right = flushed(left), flushed(right)
        found = compared(condition, left, right, True)
    else:
        left, right = m.unsigned(a, s), m.unsigned(b, s)
        if "U32" not in each.modifiers:
            left, right = signed(left), signed(right)
        found = compared(condition, left, right, False)
        if "EX" in each.modifiers:  # of the high words, after the low ones
            below = m.truth(flags[1], s)
            is_strict = (
                compared(condition.replace("E", "T"), left, right, False) if condition in ("LE", "GE") else found
            )
            found = (found & below) if condition == "EQ" else is_strict | (np.equal(left, right) & below)
    return found


COMPARE = " ".join([*CONDITIONS, "AND OR XOR"])


@operation("FSETP DSETP ISETP", f"{COMPARE} FTZ U32 EX MAX MIN")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    first, second, a, b, *flags = each.operands
    if "MAX" in each.modifiers or "MIN" in each.modifiers:
        # Which of the two is the larger, and whether that is NaN.
        left, right = m.double(a, s), m.double(b, s)
        found = (left > right if "MAX" in each.modifiers else left < right) | np.isnan(right)
        m.put_truth(second, s, np.isnan(left) & np.isnan(right))
        m.put_truth(first, s, found)
        return
    combine = COMBINATIONS[next(name for name in each.modifiers if name in COMBINATIONS)]
    found, other = comparison(m, each, s, a, b, flags), m.truth(flags[0], s)
    m.put_truth(first, s, combine(found, other))
    m.put_truth(second, s, combine(~found, other))


@operation("FSET ISET", f"{COMPARE} FTZ U32 BF BM")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    result, a, b, *flags = each.operands
    combine = COMBINATIONS[next(name for name in each.modifiers if name in COMBINATIONS)]
    found = combine(comparison(m, each, s, a, b, flags), m.truth(flags[0], s))
    m.put(result, s, np.where(found, U32(0x3F80_0000 if "BF" in each.modifiers else 0xFFFF_FFFF), U32(0)))


FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "RCP": lambda x: 1 / x,
    "RSQ": lambda x: 1 / np.sqrt(x),
    "SQRT": np.sqrt,
    "EX2": np.exp2,
    "LG2": np.log2,
    "TANH": np.tanh,
    "SIN": np.sin,
    "COS": np.cos,
}


@operation("MUFU", " ".join([*FUNCTIONS, "RCP64H", "RSQ64H"]))
def _(m: Machine, each: Instruction, s: Scope) -> None:
    result, source = each.operands
    (name,) = each.modifiers
    if name.endswith("64H"):  # of the high word of a double, to the high word of one
        high = m.float(source, s).view(U32)
        value = FUNCTIONS[name.removesuffix("64H")](wide(U32(0), high).view(F64))
        m.put(result, s, np.asarray(value).view(U64) >> U64(32))
    else:
        m.put(result, s, FUNCTIONS[name](np.asarray(m.float(source, s), F64)).astype(F32))


@operation("FCHK", "DIVIDE")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    """Whether a division needs more than a reciprocal: where a number of it may leave the range of floats."""
    result, a, b = each.operands
    left, right = ((m.float(op, s).view(U32) >> U32(23) & U32(255)).astype(S32) for op in (a, b))
    is_far = (np.abs(left - right) > 124) | (left < 26) & (m.float(a, s) != 0)
    m.put_truth(result, s, is_far | (left == 255) | (right < 2) | (right > 252))


@operation("DADD DMUL DFMA", "RN RM RP RZ")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    result, *operands = each.operands
    a, b, *c = (np.asarray(m.double(op, s), np.longdouble) for op in operands)
    value = a + b if each.name == "DADD" else a * b if each.name == "DMUL" else a * b + c[0]
    m.put_long(result, s, narrow(value, rounding_of(each), F64))


def halves(m: Machine, each: Instruction, s: Scope, op: Operand) -> list[Array]:
    """Low and high half of an operand, as floats."""
    if "H0_H0" in op.suffixes or "H1_H1" in op.suffixes:
        return [m.half(op, s)] * 2
    plain = op._replace(suffixes=())
    return [m.half(plain, s), m.half(plain._replace(suffixes=("H1_H1",)), s)]


@operation("HADD2 HMUL2 HFMA2", "F32 MMA FTZ")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    result, *operands = each.operands
    values: list[list[Array]] = []
    for i, op in enumerate(operands):
        if op.kind != "number":
            values.append(halves(m, each, s, op))
        elif i and operands[i - 1].kind == "number":
            values[-1] = [real_number(op.text), values[-1][1]]  # the two halves of one operand, the high one first
        else:
            values.append([real_number(op.text)] * 2)
    found = [of_halves(each.name, both) for both in zip(*values, strict=True)]
    if "F32" in each.modifiers:
        m.put(result, s, np.asarray(found[0], F32))
        return
    low, high = (np.asarray(value).astype(np.float16).view(np.uint16).astype(U32) for value in found)
    m.put(result, s, low | high << U32(16))


def of_halves(name: str, values: tuple[Array, ...]) -> Array:
    a, b, *c = (np.asarray(value, F32) for value in values)
    return a + b if name == "HADD2" else a * b if name == "HMUL2" else fused(a, b, c[0])
