"""Instructions that know which lane executes them, and those of several lanes of a warp."""

from collections.abc import Iterator

import numpy as np

from .arithmetic import S64, U32, signed
from .listing import Instruction
from .machine import WARP, Machine, Scope
from .operations import operation, split, unknown


@operation("S2R CS2R", "32 64")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    result, source = each.operands
    lanes = s.lanes if not isinstance(s.lanes, slice) else np.arange(m.threads)
    values = {
        "SR_TID.X": lanes,
        "SR_LANEID": lanes % WARP,
        "SR_CTAID.X": m.block,
        **dict.fromkeys(("SR_TID.Y", "SR_TID.Z", "SR_CTAID.Y", "SR_CTAID.Z", "SR_CgaCtaId", "SRZ"), 0),
    }
    if source.text not in values or (s.is_uniform and source.text in ("SR_TID.X", "SR_LANEID")):
        unknown(m, each, s)
    m.put(result, s, values[source.text])
    if each.name == "CS2R" and "32" not in each.modifiers:
        m.put(result, s, 0, 1)


@operation("R2UR")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    """Of the first lane."""
    (result,), flags, (source,) = split(each)
    if flags:
        unknown(m, each, s)
    first = np.unique(s.warps, return_index=True)[1]
    values = np.broadcast_to(m.unsigned(source, s), s.warps.shape)
    m.put(result, Scope(None, s.warps[first], True), values[first])


def by_warp(m: Machine, s: Scope) -> Iterator[tuple[int, np.ndarray]]:
    """The warps, and the places that their lanes have in arrays of this scope."""
    for warp in np.unique(s.warps):
        yield int(warp), np.flatnonzero(s.warps == warp)


@operation("SHFL", "IDX UP DOWN BFLY")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    flag, result, value, at, bounds = each.operands
    lanes = np.arange(m.threads)[s.lanes]
    lane = lanes % WARP
    by, bound = signed(m.unsigned(at, s)), signed(m.unsigned(bounds, s))
    clamp, segment = bound & 31, bound >> 8 & 31
    first, last = lane & segment, (lane & segment) | (clamp & ~segment)
    kind = each.modifiers[0]
    source = {"IDX": first | (by & 31 & ~segment), "UP": lane - by, "DOWN": lane + by, "BFLY": lane ^ by}[kind]
    is_inside = source >= last if kind == "UP" else source <= last
    source = np.where(is_inside, source, lane)
    m.put(result, s, np.broadcast_to(m.registers[value.index], m.threads)[lanes - lane + source])
    m.put_truth(flag, s, is_inside)


@operation("VOTE VOTEU", "ANY ALL EQ")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    """Executed by lanes; VOTEU has results of the warp."""
    result, flag, *sources = each.operands if each.operands[0].kind in ("R", "UR") else (None, *each.operands)
    if s.is_uniform or "EQ" in each.modifiers:
        unknown(m, each, s)
    said = np.broadcast_to(m.truth(sources[0], s), s.warps.shape)
    lanes = np.arange(m.threads)[s.lanes]
    yes, everyone = m.masks(lanes[said])[s.warps], m.masks(lanes)[s.warps]
    value, truth = (yes, yes != 0) if "ANY" in each.modifiers else (yes, yes == everyone)
    if result is not None:
        m.put(result, s, value)
    m.put_truth(flag, s, truth)


@operation("REDUX", "MIN MAX SUM OR AND XOR S32 U32")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    result, source = each.operands
    functions = {"MIN": np.minimum, "MAX": np.maximum, "SUM": np.add, "OR": np.bitwise_or, "AND": np.bitwise_and}
    function = next((functions[name] for name in each.modifiers if name in functions), np.bitwise_or)
    bits = np.broadcast_to(m.unsigned(source, s), s.warps.shape)
    values = signed(bits) if "S32" in each.modifiers else bits.astype(S64)
    for warp, places in by_warp(m, s):
        m.put(result, Scope(None, np.array([warp]), True), (function.reduce(values[places]) & 0xFFFF_FFFF))


@operation("P2R R2P")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    if each.name == "P2R":
        result, _, source, mask = each.operands
        bits = np.zeros(s.warps.shape, U32)
        for i in range(7):
            bits |= np.where(m.predicates[i, s.lanes], U32(1 << i), U32(0))
        chosen = m.unsigned(mask, s)
        m.put(result, s, bits & chosen | m.unsigned(source, s) & ~chosen)
    else:
        _, source, mask = each.operands
        for i in range(7):
            if int(mask.text, 0) >> i & 1:
                m.predicates[i, s.lanes] = np.asarray(m.unsigned(source, s)) >> U32(i) & U32(1) != 0
