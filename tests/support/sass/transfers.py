"""Instructions that read and write memory."""

from collections.abc import Callable

import numpy as np

from .arithmetic import S64, U32, Array
from .listing import Instruction, Operand
from .machine import Machine, Scope
from .memory import Memory
from .operations import operation

WIDTHS = {"U8": np.uint8, "S8": np.int8, "U16": np.uint16, "S16": np.int16}
CACHES = "E 64 128 CONSTANT EL EF EU LU NA SYS GPU CTA STRONG WEAK LTC64B LTC128B LTC256B"
LOAD = f"{' '.join(WIDTHS)} {CACHES}"


def words_of(each: Instruction) -> int:
    return 4 if "128" in each.modifiers else 2 if "64" in each.modifiers else 1


@operation("LDC", LOAD)
def _(m: Machine, each: Instruction, s: Scope) -> None:
    result, source = each.operands
    narrow_type = next((WIDTHS[name] for name in each.modifiers if name in WIDTHS), None)
    if narrow_type is not None:
        m.put(result, s, np.asarray(m.constant(source, s, narrow_type)).astype(S64).astype(U32))
        return
    values = [m.constant(source, s, U32, 4 * word) for word in range(words_of(each))]
    for word, value in enumerate(values):
        m.put(result, s, value, word)


@operation("LDG LDS LD", LOAD)
def _(m: Machine, each: Instruction, s: Scope) -> None:
    result, source = each.operands
    memory, address = place_of(m, each, s, source)
    narrow_type = next((WIDTHS[name] for name in each.modifiers if name in WIDTHS), None)
    if narrow_type is not None:
        m.put(result, s, memory.load(address, narrow_type).astype(S64).astype(U32))
        return
    values = memory.load_words(address, words_of(each))
    for word in range(words_of(each)):
        m.put(result, s, values[..., word], word)


@operation("STG STS ST", LOAD)
def _(m: Machine, each: Instruction, s: Scope) -> None:
    target, source = each.operands
    memory, address = place_of(m, each, s, target)
    address = np.broadcast_to(address, s.warps.shape)
    narrow_type = next((WIDTHS[name] for name in each.modifiers if name in WIDTHS), None)
    if narrow_type is not None:
        memory.store(address, np.broadcast_to(np.asarray(m.word(source, s)).astype(narrow_type), address.shape))
        return
    words = [np.broadcast_to(m.word(source, s, word), address.shape) for word in range(words_of(each))]
    memory.store_words(address, np.stack(words, -1))


def place_of(m: Machine, each: Instruction, s: Scope, op: Operand) -> tuple[Memory, Array]:
    is_shared = each.name.endswith("DS") or each.name == "STS"
    return (m.shared if is_shared else m.memory), m.address_of(op, s, is_shared)


ATOMIC: dict[str, Callable[[int, int], int]] = {
    "INC": lambda old, new: 0 if old >= new else old + 1,
    "ADD": lambda old, new: old + new & 0xFFFF_FFFF,
    "MIN": min,
    "MAX": max,
    "OR": lambda old, new: old | new,
    "AND": lambda old, new: old & new,
    "EXCH": lambda old, new: new,
}


@operation("ATOMG ATOMS ATOM RED REDG", f"{' '.join(ATOMIC)} E STRONG GPU SYS CTA")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    is_shared = each.name == "ATOMS"
    memory = m.shared if is_shared else m.memory
    results = [op for op in each.operands[:-2] if op.kind == "R"]
    change = ATOMIC[next(name for name in each.modifiers if name in ATOMIC)]
    address = np.broadcast_to(m.address_of(each.operands[-2], s, is_shared), s.warps.shape)
    before = np.zeros(len(address), U32)
    for i, value in enumerate(np.broadcast_to(m.unsigned(each.operands[-1], s), address.shape)):
        before[i] = memory.load(address[i], U32)
        memory.store(address[i], np.asarray(change(int(before[i]), int(value)), U32))
    for result in results:
        m.put(result, s, before)


@operation("MEMBAR ERRBAR CCTL CGAERRBAR NOP DEPBAR YIELD NANOSLEEP ACQBULK PREEXIT", "SC GPU SYS CTA IVALL ALL LE")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    """Order in memory and among launches: here everything has it."""
