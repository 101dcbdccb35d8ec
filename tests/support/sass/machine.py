"""Blocks, warps and lanes: registers, the lanes that part and meet again, and how often an instruction is issued."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .arithmetic import F32, F64, MASK, S64, U32, U64, Array, real_number, signed, wide
from .listing import BYTES, TRUE, ZERO_REGISTER, ZERO_UNIFORM, Instruction, Operand, UnknownInstruction
from .memory import Fault, Memory

WARP = 32
# Shared memory begins with bytes of the system's on sm_90.
SYSTEM_SHARED = 1024


class Scope(NamedTuple):
    """Who executes an instruction: lanes, or for a uniform instruction warps."""

    lanes: Any  # indices, or all of them
    warps: np.ndarray  # of each lane
    is_uniform: bool = False


class Group(NamedTuple):
    """Lanes at the same instruction, of a warp no two groups' worth."""

    address: int
    lanes: np.ndarray


# What holds lanes up, and where.
class Wait(NamedTuple):
    kind: str
    address: int
    lanes: np.ndarray
    needed: Any  # the barrier register, or the mask that each lane waits for


class Step(NamedTuple):
    """An instruction, what it does, whether once per warp, and whether it decides who goes on where."""

    instruction: Instruction
    run: Callable[..., Any]
    is_uniform: bool
    is_control: bool


class Machine:
    """A grid of one dimension over a memory, for one kernel."""

    def __init__(self, program: list[Step], memory: Memory, banks: dict[int, bytes], shared_bytes: int):
        self.program = program
        self.memory, self.shared_bytes = memory, shared_bytes
        self.banks = {number: np.frombuffer(bank + bytes(-len(bank) % 8), np.uint8) for number, bank in banks.items()}
        self.executed = np.zeros(len(program), np.int64)  # times that a warp issued each instruction

    def launch(self, blocks: int, threads: int) -> None:
        sizes = self.banks[0].copy()
        sizes[:24] = np.array([threads, 1, 1, blocks, 1, 1], U32).view(np.uint8)
        self.banks[0] = sizes
        with np.errstate(all="ignore"):
            for block in range(blocks):
                self.run_block(block, threads)

    def run_block(self, block: int, threads: int) -> None:
        self.block, self.threads, self.warps = block, threads, -(-threads // WARP)
        self.registers = np.zeros((256, threads), U32)
        self.uniform = np.zeros((64, self.warps), U32)
        self.predicates = np.zeros((8, threads), bool)
        self.uniform_predicates = np.zeros((8, self.warps), bool)
        self.predicates[TRUE] = self.uniform_predicates[TRUE] = True
        self.barriers = np.zeros((16, threads), U32)  # each lane's own: which lanes of its warp it meets
        self.shared = Memory(0, -(-self.shared_bytes // 16) * 16)
        self.shared.is_there[SYSTEM_SHARED : self.shared_bytes] = True
        self.is_live = np.ones(threads, bool)
        self.groups = [Group(0, np.arange(threads))]
        self.waits: list[Wait] = []
        while self.groups or self.waits:
            if not self.groups:
                raise Fault(
                    f"all that is left waits: {sorted({(wait.kind, hex(wait.address)) for wait in self.waits})}"
                )
            self.advance(*self.next_group())

    def next_group(self) -> tuple[Group, int]:
        """The lanes that are furthest behind, and the address at which others are reached. Warps that happen to be at
        the same address go on together; parts of one warp that do so stay apart until a barrier joins them."""
        address = min(group.address for group in self.groups)
        chosen, rest, taken = [], [], np.zeros(self.warps, bool)
        for group in self.groups:
            warps = group.lanes // WARP
            if group.address == address and not taken[warps].any():
                taken[warps] = True
                chosen.append(group.lanes)
            else:
                rest.append(group)
        self.groups = rest
        lanes = chosen[0] if len(chosen) == 1 else np.sort(np.concatenate(chosen))
        return Group(address, lanes), min((group.address for group in rest), default=1 << 62)

    def advance(self, group: Group, limit: int) -> None:
        address, lanes = group
        warps_of_lanes = lanes // WARP
        warps = np.unique(warps_of_lanes)
        everyone = Scope(slice(None) if len(lanes) == self.threads else lanes, warps_of_lanes)
        together = Scope(warps, warps, True)
        while True:
            each, run, is_uniform, is_control = self.program[address // BYTES]
            self.executed[address // BYTES] += len(warps)
            scope = together if is_uniform else everyone
            if is_control:
                is_active = np.ones(len(lanes), bool)
                if each.guard is not None:
                    is_active = np.broadcast_to(self.truth(each.guard, everyone), len(lanes))
                moved = run(self, each, lanes[is_active]) if is_active.any() else None
                if moved is not None:
                    address = self.spread([*moved, (address + BYTES, lanes[~is_active])], lanes)
                    if address is None:
                        return
                    if address >= limit:
                        self.groups.append(Group(address, lanes))
                        return
                    continue
            elif each.guard is None:
                run(self, each, scope)
            else:
                is_active = np.broadcast_to(self.truth(each.guard, scope), len(scope.warps))
                if is_active.all():
                    run(self, each, scope)
                elif is_active.any():
                    some = (warps if is_uniform else lanes)[is_active]
                    run(self, each, Scope(some, some if is_uniform else some // WARP, is_uniform))
            address += BYTES
            if address >= limit:
                self.groups.append(Group(address, lanes))
                return

    def spread(self, moved: list[tuple[int, np.ndarray]], lanes: np.ndarray) -> int | None:
        """Makes groups of lanes that have moved; or the address, where it is the same for all of this group alone."""
        at: dict[int, list[np.ndarray]] = {}
        for to, those in moved:
            if len(those):
                at.setdefault(to, []).append(those)
        if len(at) == 1:
            ((to, those),) = at.items()
            if len(those) == 1 and len(those[0]) == len(lanes) and (those[0] == lanes).all():
                return to
        for to, those in at.items():
            self.groups.append(Group(to, np.sort(np.concatenate(those))))
        return None

    # Reading and writing operands

    def word(self, op: Operand, scope: Scope, offset: int = 0) -> Array:
        """The bits of a 32-bit operand, or the word `offset` of a longer one, as they are stored."""
        if op.kind == "R":
            return U32(0) if op.index == ZERO_REGISTER else self.registers[op.index + offset, scope.lanes]
        if op.kind == "UR":
            return U32(0) if op.index == ZERO_UNIFORM else self.uniform[op.index + offset, scope.warps]
        if op.kind == "number":
            return U32(int(op.text, 0) & 0xFFFF_FFFF)
        if op.kind == "c":
            return self.constant(op, scope, U32, 4 * offset)
        raise UnknownInstruction(f"operand {op.text}")

    def constant(self, op: Operand, scope: Scope, dtype: Any, offset: int = 0) -> Array:
        size = np.dtype(dtype).itemsize
        at = sum((signed(self.word(term, scope)) for term in op.terms), start=S64(offset))
        if op.index not in self.banks or np.any(at % size) or np.any(at + size > len(self.banks[op.index])):
            raise Fault(f"{op.text} is beyond the constants")
        return self.banks[op.index].view(dtype)[at // size]

    def truth(self, op: Operand, scope: Scope) -> Array:
        if op.kind == "P":
            value = np.True_ if op.index == TRUE else self.predicates[op.index, scope.lanes]
        elif op.kind == "UP":
            value = self.uniform_predicates[op.index, scope.warps]
        else:
            raise UnknownInstruction(f"predicate {op.text}")
        return ~value if op.inverted else value

    def unsigned(self, op: Operand, scope: Scope) -> Array:
        bits = self.word(op, scope)
        if op.absolute:
            bits = np.abs(signed(bits)).astype(U32)
        if op.inverted:
            bits = ~bits
        return (U64(1 << 32) - np.asarray(bits, U64) & MASK).astype(U32) if op.negative else bits

    def float(self, op: Operand, scope: Scope) -> Array:
        bits = np.asarray(real_number(op.text).view(U32) if op.kind == "number" else self.word(op, scope), U32)
        if op.absolute:
            bits = bits & U32(0x7FFF_FFFF)
        return (bits ^ U32(0x8000_0000) if op.negative else bits).view(F32)

    def long(self, op: Operand, scope: Scope) -> Array:
        if op.kind == "number":
            return U64(int(op.text, 0) & 0xFFFF_FFFF_FFFF_FFFF)
        bits = wide(self.word(op, scope), self.word(op, scope, 1))
        return U64(0) - bits if op.negative else bits

    def double(self, op: Operand, scope: Scope) -> Array:
        if op.kind == "number":
            return F64(real_number(op.text, F64))
        bits = wide(self.word(op, scope), self.word(op, scope, 1))
        if op.absolute:
            bits = bits & U64((1 << 63) - 1)
        return np.asarray(bits ^ U64(1 << 63) if op.negative else bits).view(F64)

    def half(self, op: Operand, scope: Scope) -> Array:
        """One half of a register, as a float; which one its suffix says."""
        bits = np.asarray(self.word(op, scope), U32)
        chosen = (bits >> U32(16) if "H1_H1" in op.suffixes else bits).astype(np.uint16).view(np.float16).astype(F32)
        chosen = np.abs(chosen) if op.absolute else chosen
        return -chosen if op.negative else chosen

    def put(self, op: Operand, scope: Scope, value: Array, offset: int = 0) -> None:
        value = np.asarray(value)
        if value.dtype == F32:
            value = value.view(U32)
        elif value.dtype != U32:
            value = value.astype(U32)
        if op.kind == "R":
            if op.index != ZERO_REGISTER:
                self.registers[op.index + offset, scope.lanes] = value
        elif op.kind == "UR":
            if not scope.is_uniform:  # a value of all lanes, written by an instruction of lanes
                value = np.broadcast_to(value, scope.warps.shape)
            if op.index != ZERO_UNIFORM:
                self.uniform[op.index + offset, scope.warps] = value
        else:
            raise UnknownInstruction(f"result {op.text}")

    def put_long(self, op: Operand, scope: Scope, value: Array) -> None:
        bits = np.asarray(value)
        bits = bits.view(U64) if bits.dtype in (F64, S64) else bits.astype(U64)
        self.put(op, scope, (bits & MASK).astype(U32))
        self.put(op, scope, (bits >> U64(32)).astype(U32), 1)

    def put_truth(self, op: Operand, scope: Scope, value: Array) -> None:
        if op.index == TRUE:
            return
        if op.kind == "P":
            self.predicates[op.index, scope.lanes] = value
        elif op.kind == "UP":
            self.uniform_predicates[op.index, scope.warps] = value
        else:
            raise UnknownInstruction(f"result {op.text}")

    def address_of(self, op: Operand, scope: Scope, is_shared: bool) -> Array:
        total: Array = U64(0)
        for term in op.terms:
            if term.kind == "number":
                total = total + U64(int(term.text, 0) & 0xFFFF_FFFF_FFFF_FFFF)
            elif not is_shared and ("64" in term.suffixes or term.kind == "UR"):
                total = total + wide(self.word(term, scope), self.word(term, scope, 1))
            else:
                scale = next((int(suffix[1:]) for suffix in term.suffixes if suffix[0] == "X"), 1)
                total = total + np.asarray(self.word(term, scope)).astype(U64) * U64(scale)
        return total & MASK if is_shared else total

    # Lanes that part and meet

    def masks(self, lanes: np.ndarray) -> np.ndarray:
        """Of each warp, which of its lanes are among them."""
        found = np.zeros(self.warps * WARP, bool)
        found[lanes] = True
        return np.packbits(found.reshape(-1, WARP), axis=1, bitorder="little").view(U32)[:, 0]

    def release(self) -> list[tuple[int, np.ndarray]]:
        """Those that need not wait any longer, and where they go on."""
        released, kept = [], []
        everyone = self.masks(np.flatnonzero(self.is_live))
        at_bar = [wait for wait in self.waits if wait.kind == "BAR"]
        if at_bar and sum(len(wait.lanes) for wait in at_bar) == self.is_live.sum():
            # Lanes of a warp that came one by one go on as one.
            for address in {wait.address for wait in at_bar}:
                lanes = np.concatenate([wait.lanes for wait in at_bar if wait.address == address])
                released.append((address + BYTES, np.sort(lanes)))
            self.waits = [wait for wait in self.waits if wait.kind != "BAR"]
        for kind, address in dict.fromkeys((wait.kind, wait.address) for wait in self.waits if wait.kind != "BAR"):
            waits = [wait for wait in self.waits if (wait.kind, wait.address) == (kind, address)]
            lanes = np.concatenate([wait.lanes for wait in waits])
            needed = [self.barriers[wait.needed, wait.lanes] if kind == "BSYNC" else wait.needed for wait in waits]
            missing = np.concatenate(needed) & (everyone & ~self.masks(lanes))[lanes // WARP]
            is_free = missing == 0
            # Those of a warp that meet in two sets go on in two.
            for mask in np.unique(np.concatenate(needed)[is_free]):
                released.append((address + BYTES, np.sort(lanes[is_free & (np.concatenate(needed) == mask)])))
            for wait in waits:
                is_held = ~np.isin(wait.lanes, lanes[is_free])
                if is_held.any():
                    still = wait.needed if kind == "BSYNC" else wait.needed[is_held]
                    kept.append(wait._replace(lanes=wait.lanes[is_held], needed=still))
        self.waits = [wait for wait in self.waits if wait.kind == "BAR"] + kept
        return released

    def wait(self, kind: str, address: int, lanes: np.ndarray, needed: Any = None) -> list[tuple[int, np.ndarray]]:
        self.waits.append(Wait(kind, address, lanes, needed))
        return self.release()
