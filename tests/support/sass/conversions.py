"""Instructions that turn numbers of one type into those of another."""

import numpy as np

from .arithmetic import F32, F64, S32, S64, U32, U64, Array, narrow
from .listing import Instruction, Operand
from .machine import Machine, Scope
from .operations import operation, rounding_of

TYPES = {"F32": F32, "F64": F64, "F16": np.float16, "S32": S32, "U32": U32, "S64": S64, "U64": U64}
TYPES |= {"S16": np.int16, "U16": np.uint16, "S8": np.int8, "U8": np.uint8}
CONVERT = " ".join([*TYPES, "TRUNC FLOOR CEIL FTZ NTZ RN RZ RM RP"])
TO_WHOLE = {"TRUNC": np.trunc, "FLOOR": np.floor, "CEIL": np.ceil}


def read_as(m: Machine, op: Operand, s: Scope, name: str) -> Array:
    if name in ("F32", "F64"):
        return m.float(op, s) if name == "F32" else m.double(op, s)
    if name == "F16":
        return m.half(op, s)
    if name in ("S64", "U64"):
        return np.asarray(m.long(op, s)).view(TYPES[name])
    bits = np.asarray(m.unsigned(op, s), U32)
    return bits.view(S32) if name == "S32" else bits.astype(TYPES[name])


def put_as(m: Machine, op: Operand, s: Scope, name: str, value: Array) -> None:
    if TYPES[name]().itemsize == 8:
        m.put_long(op, s, np.asarray(value).astype(TYPES[name]))
    elif name == "F16":
        m.put(op, s, np.asarray(value).astype(np.float16).view(np.uint16))
    else:
        m.put(op, s, value)


@operation("I2F I2FP", CONVERT)
def _(m: Machine, each: Instruction, s: Scope) -> None:
    result, source = each.operands
    named = [name for name in each.modifiers if name in TYPES]
    to = next((name for name in named if name[0] == "F"), "F32")
    number = read_as(m, source, s, next((name for name in named if name[0] != "F"), "S32"))
    if to != "F32" or rounding_of(each) == "RN":
        put_as(m, result, s, to, np.asarray(number).astype(TYPES[to]))
        return
    near = np.asarray(number).astype(F32)
    exact, back = np.asarray(number).astype(np.longdouble), near.astype(np.longdouble)
    up, down = np.nextafter(near, F32(np.inf)), np.nextafter(near, F32(-np.inf))
    toward = {"RP": (back < exact, up), "RM": (back > exact, down), "RZ": (np.abs(back) > np.abs(exact), down)}
    m.put(result, s, np.where(*toward[rounding_of(each)], near))


@operation("F2I", CONVERT)
def _(m: Machine, each: Instruction, s: Scope) -> None:
    result, source = each.operands
    named = [name for name in each.modifiers if name in TYPES]
    to = next((name for name in named if name[0] != "F"), "S32")
    value = np.asarray(read_as(m, source, s, next((name for name in named if name[0] == "F"), "F32")), np.longdouble)
    whole = TO_WHOLE.get(next((name for name in each.modifiers if name in TO_WHOLE), ""), np.rint)(value)
    info = np.iinfo(TYPES[to])
    whole = np.where(np.isnan(whole), 0, np.clip(whole, np.longdouble(info.min), np.longdouble(info.max)))
    put_as(m, result, s, to, whole.astype(TYPES[to]))


@operation("F2F FRND", CONVERT)
def _(m: Machine, each: Instruction, s: Scope) -> None:
    result, source = each.operands
    named = [name for name in each.modifiers if name in TYPES] or ["F32"]
    value = read_as(m, source, s, named[-1])
    if each.name == "FRND":
        name = next((name for name in each.modifiers if name in TO_WHOLE), "")
        put_as(m, result, s, named[0], TO_WHOLE.get(name, np.rint)(value))
    elif named[0] == "F32" and named[-1] == "F64":
        m.put(result, s, narrow(value, rounding_of(each)))
    else:
        put_as(m, result, s, named[0], np.asarray(value).astype(TYPES[named[0]]))


@operation("F2FP", "F16 BF16 F32 PACK_AB")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    result, high, low = each.operands
    words = []
    for op in (low, high):
        value = np.asarray(m.float(op, s))
        if "BF16" in each.modifiers:
            bits = value.view(U32)
            nearest = (bits + U32(0x7FFF) + (bits >> U32(16) & U32(1))) >> U32(16)
            words.append(np.where(np.isnan(value), U32(0x7FFF), nearest))
        else:
            words.append(value.astype(np.float16).view(np.uint16).astype(U32))
    m.put(result, s, words[0] | words[1] << U32(16))
