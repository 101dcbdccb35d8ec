"""Who goes on where. These get the lanes that execute them; None: all go on at the next instruction."""

import numpy as np

from .arithmetic import S64, U32
from .listing import BYTES, Instruction, UnknownInstruction
from .machine import WARP, Machine, Scope
from .operations import operation

Moved = list[tuple[int, np.ndarray]] | None


def scope_of(lanes: np.ndarray) -> Scope:
    return Scope(lanes, lanes // WARP)


@operation("BRA", "U DIV INC DEC", control=True)
def _(m: Machine, each: Instruction, lanes: np.ndarray) -> Moved:
    *conditions, target = each.operands
    scope, taken = scope_of(lanes), np.ones(len(lanes), bool)
    for op in conditions:
        if "DIV" in each.modifiers:  # the warp has come apart
            taken = taken & (m.masks(lanes)[scope.warps] != m.word(op, scope))
        else:
            taken = taken & m.truth(op, scope)
    return parted(each, [(int(target.text, 16), lanes[taken])], lanes[~taken])


def parted(each: Instruction, moved: list[tuple[int, np.ndarray]], rest: np.ndarray) -> Moved:
    return [*moved, (each.address + BYTES, rest)]


def jump(targets: np.ndarray, lanes: np.ndarray) -> Moved:
    return [(int(target), lanes[targets == target]) for target in np.unique(targets)]


@operation("BRX RET", "REL NODEC ABS", control=True)
def _(m: Machine, each: Instruction, lanes: np.ndarray) -> Moved:
    register, offset = each.operands[:2]
    base = each.address + BYTES if each.name == "BRX" else 0
    targets = np.asarray(m.long(register, scope_of(lanes))).view(S64) + base + int(offset.text, 0)
    return jump(np.broadcast_to(targets, lanes.shape), lanes)


@operation("CALL", "REL NOINC", control=True)
def _(m: Machine, each: Instruction, lanes: np.ndarray) -> Moved:
    return [(int(each.operands[-1].text, 16), lanes)]


@operation("EXIT", control=True)
def _(m: Machine, each: Instruction, lanes: np.ndarray) -> Moved:
    m.is_live[lanes] = False
    return m.release()


# A convergence barrier is a set of lanes, and each lane has its own: the parts of a warp may each make one in the same
# register at the same time.


@operation("BSSY", "RECONVERGENT RELIABLE", control=True)
def _(m: Machine, each: Instruction, lanes: np.ndarray) -> Moved:
    m.barriers[each.operands[0].index, lanes] = m.masks(lanes)[lanes // WARP]
    return None


@operation("BSYNC", "RECONVERGENT RELIABLE", control=True)
def _(m: Machine, each: Instruction, lanes: np.ndarray) -> Moved:
    register = each.operands[0].index
    absent = m.masks(np.flatnonzero(m.is_live)) & ~m.masks(lanes)
    if not (m.barriers[register, lanes] & absent[lanes // WARP]).any():
        return None
    return m.wait("BSYNC", each.address, lanes, register)


@operation("BREAK", "RECONVERGENT RELIABLE", control=True)
def _(m: Machine, each: Instruction, lanes: np.ndarray) -> Moved:
    (barrier,) = each.operands
    m.barriers[barrier.index] &= ~m.masks(lanes)[np.arange(m.threads) // WARP]
    return [*m.release(), (each.address + BYTES, lanes)]


@operation("BMOV", "32 CLEAR", control=True)
def _(m: Machine, each: Instruction, lanes: np.ndarray) -> Moved:
    result, source = each.operands
    if result.kind == "B":
        m.barriers[result.index, lanes] = m.word(source, scope_of(lanes))
        return None
    m.put(result, scope_of(lanes), m.barriers[source.index, lanes])
    if "CLEAR" in each.modifiers:
        m.barriers[source.index, lanes] = 0
    return None


@operation("WARPSYNC", "ALL EXCLUSIVE", control=True)
def _(m: Machine, each: Instruction, lanes: np.ndarray) -> Moved:
    mask = m.word(each.operands[0], scope_of(lanes)) if each.operands else U32(0xFFFF_FFFF)
    return m.wait("WARPSYNC", each.address, lanes, np.broadcast_to(mask, lanes.shape))


@operation("BAR", "SYNC DEFER_BLOCKING", control=True)
def _(m: Machine, each: Instruction, lanes: np.ndarray) -> Moved:
    if len(each.operands) != 1:
        raise UnknownInstruction(each.text)
    return m.wait("BAR", each.address, lanes)
