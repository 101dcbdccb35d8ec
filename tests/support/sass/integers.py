"""Instructions over integers, bits and predicates."""

import numpy as np

from .arithmetic import COMBINATIONS, F64, MASK, S64, U32, U64, Array, signed, table_lookup, wide
from .listing import Instruction, Operand
from .machine import Machine, Scope
from .operations import operation, split, unknown


@operation("SEL")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    result, a, b, which = each.operands
    m.put(result, s, np.where(m.truth(which, s), m.unsigned(a, s), m.unsigned(b, s)))


def with_carry(m: Machine, s: Scope, results: list[Operand], total: Array, out: Operand, bits: int = 32) -> None:
    m.put(out, s, (total & MASK).astype(U32))
    for i, carry in enumerate(results):
        m.put_truth(carry, s, total >> U64(bits) > U64(i))


@operation("IADD3 IADD VIADD", "X")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    (result,), carries, sources = split(each)
    numbers = [op for op in sources if op.kind not in ("P", "UP")]
    total: Array = U64(0)
    for op in numbers:
        bits = np.asarray(m.unsigned(op._replace(negative=False), s)).astype(U64)
        total = total + (U64(0xFFFF_FFFF) - bits + U64(1) if op.negative else bits)
    for flag in sources[len(numbers) :]:
        total = total + np.asarray(m.truth(flag, s)).astype(U64)
    with_carry(m, s, carries, total, result)


@operation("IMAD", "MOV U32 S32 SHL IADD X WIDE HI")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    (result,), carries, sources = split(each)
    a, b, c, *flags = sources
    is_long = "WIDE" in each.modifiers or "HI" in each.modifiers
    if not is_long:
        total = np.asarray(m.unsigned(a, s)).astype(U64) * np.asarray(m.unsigned(b, s)).astype(U64)
        total = (total & MASK) + np.asarray(m.unsigned(c, s)).astype(U64)
        for flag in flags:
            total = total + np.asarray(m.truth(flag, s)).astype(U64)
        with_carry(m, s, carries, total, result)
        return
    if "U32" in each.modifiers:
        product = np.asarray(m.unsigned(a, s)).astype(U64) * np.asarray(m.unsigned(b, s)).astype(U64)
    else:
        product = (signed(m.unsigned(a, s)) * signed(m.unsigned(b, s))).view(U64)
    addend = m.long(c, s)
    total = product + addend
    carry = total < product
    for flag in flags:
        more = np.asarray(m.truth(flag, s)).astype(U64)
        carry = carry | (total + more < total)
        total = total + more
    if "HI" in each.modifiers:
        m.put(result, s, total >> U64(32))
    else:
        m.put_long(result, s, total)
    for flag in carries:
        m.put_truth(flag, s, carry)


@operation("LEA", "HI X SX32")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    (result,), carries, sources = split(each)
    flags = [op for op in sources if op.kind in ("P", "UP")]
    a, b, *rest = [op for op in sources if op.kind not in ("P", "UP")]
    shift = U64(int(rest[-1].text, 0))
    low = np.asarray(m.unsigned(a._replace(negative=False), s))
    if "SX32" in each.modifiers:
        whole = signed(low).view(U64)
    else:
        whole = wide(low, m.word(rest[0], s) if "HI" in each.modifiers else U32(0))
    if a.negative:
        whole = U64(0) - whole
    part = (whole << shift) >> U64(32) if "HI" in each.modifiers else (whole << shift) & MASK
    total = (part & MASK) + np.asarray(m.unsigned(b, s)).astype(U64)
    for flag in flags:
        total = total + np.asarray(m.truth(flag, s)).astype(U64)
    with_carry(m, s, carries, total, result)


@operation("SHF", "L R U32 S32 U64 S64 HI W")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    result, low, amount, high = each.operands
    is_long, is_signed = bool({"U64", "S64"} & {*each.modifiers}), bool({"S32", "S64"} & {*each.modifiers})
    most = 63 if is_long else 32
    by = np.asarray(m.unsigned(amount, s)).astype(U64)
    by = by & U64(63 if is_long else 31) if "W" in each.modifiers else np.minimum(by, U64(most))
    whole = wide(m.unsigned(low, s), m.unsigned(high, s))
    if "L" in each.modifiers:
        moved = whole << by
    else:
        moved = (whole.view(S64) >> by.astype(S64)).view(U64) if is_signed else whole >> by
    m.put(result, s, moved >> U64(32) if "HI" in each.modifiers else moved & MASK)


@operation("LOP3", "LUT PAND")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    leading = [op for op in each.operands[:1] if op.kind in ("P", "UP")]
    result, a, b, c, table, *flags = each.operands[len(leading) :]
    value = table_lookup(int(table.text, 0), *(np.asarray(m.unsigned(op, s)) for op in (a, b, c)))
    m.put(result, s, value)
    for flag in leading:
        combine = COMBINATIONS["AND" if "PAND" in each.modifiers else "OR"]
        m.put_truth(flag, s, combine(value != 0, m.truth(flags[0], s)))


@operation("PLOP3", "LUT")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    first, second, a, b, c, *tables = each.operands
    words = [np.where(m.truth(op, s), U32(1), U32(0)) for op in (a, b, c)]
    values = [table_lookup(int(table.text, 0), *words) & U32(1) for table in tables]
    for result, value in zip((first, second), values, strict=True):
        m.put_truth(result, s, value != 0)


@operation("PRMT")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    result, a, selector, b = each.operands
    whole, chosen = wide(m.unsigned(a, s), m.unsigned(b, s)), np.asarray(m.unsigned(selector, s)).astype(U64)
    total: Array = U64(0)
    for place in range(4):
        pick = chosen >> U64(4 * place) & U64(15)
        byte = whole >> (pick & U64(7)) * U64(8) & U64(255)
        sign = np.where(byte >> U64(7) != 0, U64(255), U64(0))
        total = total | np.where(pick > U64(7), sign, byte) << U64(8 * place)
    m.put(result, s, total)


@operation("MOV")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    if len(each.operands) > 2 and int(each.operands[2].text, 0) != 15:
        unknown(m, each, s)
    m.put(each.operands[0], s, m.unsigned(each.operands[1], s))


@operation("IABS")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    m.put(each.operands[0], s, np.abs(signed(m.unsigned(each.operands[1], s))))


@operation("VIMNMX IMNMX VIMNMX3 VIADDMNMX", "U32 S32 RELU")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    result, *sources, smaller = each.operands
    numbers = [np.asarray(m.unsigned(op, s)) for op in sources]
    if each.name == "VIADDMNMX":
        numbers = [(numbers[0].astype(U64) + numbers[1] & MASK).astype(U32), numbers[2]]
    values = [number.astype(S64) if "U32" in each.modifiers else signed(number) for number in numbers]
    least = most = values[0]
    for value in values[1:]:
        least, most = np.minimum(least, value), np.maximum(most, value)
    value = np.where(m.truth(smaller, s), least, most)
    m.put(result, s, np.maximum(value, 0) if "RELU" in each.modifiers else value)


@operation("FLO", "U32 SH")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    (result,), flags, (source,) = split(each)
    if flags or "U32" not in each.modifiers:
        unknown(m, each, s)
    bits = np.asarray(m.unsigned(source, s)).astype(S64)
    place = np.where(bits == 0, -1, np.frexp(bits.astype(F64))[1] - 1)
    m.put(result, s, np.where((bits != 0) & ("SH" in each.modifiers), 31 - place, place))


@operation("POPC BREV")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    result, source = each.operands
    bits = np.ascontiguousarray(m.unsigned(source, s), U32)
    single = np.unpackbits(bits.reshape(-1, 1).view(np.uint8), axis=1, bitorder="little")
    if each.name.endswith("POPC"):
        value = single.sum(1)
    else:
        value = np.packbits(single[:, ::-1], axis=1, bitorder="little").view(U32)[:, 0]
    m.put(result, s, value.reshape(bits.shape))


@operation("SGXT", "U32 W")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    result, source, width = each.operands
    empty = S64(32) - signed(m.unsigned(width, s))
    bits = (signed(m.unsigned(source, s)) << empty & S64(0xFFFF_FFFF)).astype(U32)
    m.put(result, s, bits.astype(S64) >> empty if "U32" in each.modifiers else signed(bits) >> empty)


@operation("BMSK", "W C")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    result, place, width = (op for op in each.operands)
    ones = (U64(1) << np.asarray(m.unsigned(width, s)).astype(U64)) - U64(1)
    m.put(result, s, ones << np.asarray(m.unsigned(place, s)).astype(U64) & MASK)
