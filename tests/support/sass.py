"""Runs the machine code of a CUDA kernel (SASS, as cuobjdump prints that of sm_90) by NumPy, and counts what it executes.

What a warp issues is a measure of speed without noise and without a GPU. Results are computed along with it, so a count
is of code that has been seen to do its work. All threads of a block that are at the same instruction execute it as one
array operation; lanes of a warp part at a branch and come together again where the code says so, as on the hardware
(convergence barriers, BSSY and BSYNC), and an instruction counts once for each warp and each of its parts.

Not modelled: time, caches and bank conflicts. MUFU's approximations are rounded correctly, and fused multiply-adds of
doubles are those of long double.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

WARP = 32
STEP = 16  # bytes of an instruction
ZERO_REGISTER, ZERO_UNIFORM, TRUE = 255, 63, 7
# Where global memory begins; far from what a wrong offset would give.
GLOBAL = 0x7F00_0000_0000
# The first kilobyte of shared memory is the system's on sm_90; kernels address theirs behind it.
PARAMETERS = 0x210

Array = Any  # a NumPy array over lanes or warps, or one number for all


class UnknownInstruction(Exception):
    """The machine code has an instruction, or a form of one, that nobody has written down here."""


class Fault(Exception):
    """The kernel did what a GPU would stop it for."""


# Reading the disassembly


class Operand(NamedTuple):
    kind: str  # R, UR, P, UP, B: registers; c: constant bank; memory; number; name
    index: int = 0
    text: str = ""
    negative: bool = False
    absolute: bool = False
    inverted: bool = False  # ~ of a register, ! of a predicate
    suffixes: tuple[str, ...] = ()
    terms: tuple["Operand", ...] = ()  # of an address, which is their sum


class Instruction(NamedTuple):
    address: int
    guard: Operand | None
    name: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    text: str


REGISTER = re.compile(r"(UR|R|UP|P|B)(\d+|Z|T)((?:\.\w+)*)$")
NUMBER = re.compile(r"[+-]?(?:0x[0-9a-f]+|[\d.]+(?:e[+-]?\d+)?|INF|QNAN|SNAN)$", re.IGNORECASE)


def operand(text: str) -> Operand:
    text = text.strip().replace(".reuse", "")
    if NUMBER.match(text):
        return Operand("number", text=text)
    negative = absolute = inverted = False
    while text[0] in "-~!|":
        negative |= text[0] == "-"
        inverted |= text[0] in "~!"
        absolute |= text[0] == "|"
        text = text[1:].rstrip("|") if text[0] == "|" else text[1:]
    signs = {"negative": negative, "absolute": absolute, "inverted": inverted}
    if match := REGISTER.match(text):
        kind, number, suffixes = match.groups()
        index = {"Z": ZERO_UNIFORM if kind == "UR" else ZERO_REGISTER, "T": TRUE}.get(number) or int(number)
        return Operand(kind, index, text, suffixes=tuple(suffixes.split(".")[1:]), **signs)
    if match := re.fullmatch(r"c\[(0x[0-9a-f]+)\]\[(.*)\]((?:\.\w+)*)", text):
        bank, address, suffixes = match.groups()
        return Operand(
            "c", int(bank, 16), text, suffixes=tuple(suffixes.split(".")[1:]), terms=sum_of(address), **signs
        )
    if match := re.fullmatch(r"(?:desc\[\w+\])?\[(.*)\]", text):
        return Operand("memory", text=text, terms=sum_of(match[1]))
    return Operand("name", text=text, **signs)


def sum_of(address: str) -> tuple[Operand, ...]:
    return tuple(operand(term) for term in re.sub(r"(?<=[\w\]])-", "+-", address).split("+"))


def instruction(address: int, text: str) -> Instruction:
    match = re.match(r"(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*)$", text)
    if match is None:
        raise UnknownInstruction(text)
    guard, opcode, rest = match.groups()
    name, *modifiers = opcode.split(".")
    operands = [operand(part) for part in re.split(r",\s*(?![^\[]*\])", rest.strip()) if part.strip()]
    if name in ("BRX", "BRXU"):  # its operands stand side by side
        operands = [operand(part) for part in rest.split()]
    return Instruction(address, guard and operand(guard), name, tuple(modifiers), tuple(operands), text)


def kernels(listing: str) -> dict[str, list[Instruction]]:
    """The instructions of every function in what `cuobjdump -sass` prints, by its mangled name."""
    found: dict[str, list[Instruction]] = {}
    for line in listing.splitlines():
        if match := re.match(r"\s+Function : (\S+)", line):
            code = found.setdefault(match[1], [])
        elif match := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", line):
            code.append(instruction(int(match[1], 16), match[2]))
    return found


# Memory


class Memory:
    """Bytes at addresses, with gaps between what belongs to nobody: whoever reads there is told."""

    def __init__(self, base: int, size: int):
        self.base, self.used = base, 0
        self.bytes = np.zeros(size, np.uint8)
        self.is_there = np.zeros(size, bool)

    def reserve(self, size: int) -> int:
        """The address of so many new bytes."""
        at = self.used
        self.used += -(-size // 256) * 256 + 256
        if self.used > len(self.bytes):
            raise MemoryError(f"{size} bytes more than there are")
        self.is_there[at : at + size] = True
        return self.base + at

    def put(self, values: np.ndarray) -> int:
        """The address of a copy of them."""
        address = self.reserve(values.nbytes)
        self.view(address, values.nbytes)[:] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        return address

    def view(self, address: int, size: int) -> np.ndarray:
        return self.bytes[address - self.base : address - self.base + size]

    def places(self, address: Array, size: int) -> np.ndarray:
        at = np.asarray(address, np.uint64).astype(np.int64) - self.base
        if (at % size).any():
            raise Fault(f"an address of {size} bytes is not their multiple")
        is_inside = (at >= 0).all() and (at + size <= len(self.bytes)).all()
        if not is_inside or not (self.is_there[at] & self.is_there[at + size - 1]).all():
            raise Fault(f"{size} bytes at {hex(int(np.min(at)) + self.base)} or beyond belong to nobody")
        return at // size

    def load(self, address: Array, dtype: Any) -> np.ndarray:
        return self.bytes.view(dtype)[self.places(address, np.dtype(dtype).itemsize)]

    def store(self, address: Array, values: np.ndarray) -> None:
        self.bytes.view(values.dtype)[self.places(address, values.itemsize)] = values

    def load_words(self, address: Array, words: int) -> np.ndarray:
        return self.bytes.view(np.uint32).reshape(-1, words)[self.places(address, 4 * words)]

    def store_words(self, address: Array, values: np.ndarray) -> None:
        words = values.shape[-1]
        self.bytes.view(np.uint32).reshape(-1, words)[self.places(address, 4 * words)] = values


# Arithmetic

U32, U64, S32, S64, F32, F64 = np.uint32, np.uint64, np.int32, np.int64, np.float32, np.float64
MASK = U64(0xFFFF_FFFF)


def narrow(exact: Array, rounding: str = "RN") -> Array:
    """To float32. `exact` has the digits that decide, or is odd in its last bit where digits are missing."""
    near = np.asarray(exact, F64).astype(F32)
    if rounding == "RN":
        return near
    back = near.astype(F64)
    if rounding == "RM":
        return np.where(back > exact, np.nextafter(near, F32(-np.inf)), near)
    if rounding == "RP":
        return np.where(back < exact, np.nextafter(near, F32(np.inf)), near)
    return np.where(np.abs(back) > np.abs(exact), np.nextafter(near, F32(0)), near)


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


# The machine


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
    needed: Any  # the barrier register, or the mask of each warp


class Machine:
    """A grid of one dimension over a memory, for one kernel."""

    def __init__(self, code: list[Instruction], memory: Memory, banks: dict[int, bytes], shared_bytes: int):
        self.code = [(each, decoded(each)) for each in code]
        self.memory, self.shared_bytes = memory, shared_bytes
        self.banks = {number: np.frombuffer(bank + bytes(-len(bank) % 8), np.uint8) for number, bank in banks.items()}
        self.executed = np.zeros(len(code), np.int64)  # times that a warp issued each instruction

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
        self.barriers = np.zeros((16, self.warps), U32)
        self.shared = Memory(0, -(-self.shared_bytes // 16) * 16)
        self.shared.is_there[1024 : self.shared_bytes] = True
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
            each, (run, is_uniform, is_control) = self.code[address // STEP]
            self.executed[address // STEP] += len(warps)
            scope = together if is_uniform else everyone
            if is_control:
                active = lanes
                if each.guard is not None:
                    active = lanes[np.broadcast_to(self.truth(each.guard, everyone), len(lanes))]
                if len(active):
                    moved = run(self, each, active)
                    if moved is not None:
                        others = np.setdiff1d(lanes, active, assume_unique=True)
                        address = self.spread([*moved, (address + STEP, others)], lanes)
                        if address is None or address >= limit:
                            if address is not None:
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
            address += STEP
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
                released.append((address + STEP, np.sort(lanes)))
            self.waits = [wait for wait in self.waits if wait.kind != "BAR"]
        for kind, address in dict.fromkeys((wait.kind, wait.address) for wait in self.waits if wait.kind != "BAR"):
            waits = [wait for wait in self.waits if (wait.kind, wait.address) == (kind, address)]
            lanes = np.concatenate([wait.lanes for wait in waits])
            needed = waits[0].needed
            needed = (self.barriers[needed] if kind == "BSYNC" else needed) & everyone
            arrived = self.masks(lanes)
            is_free = ((needed & ~arrived) == 0)[lanes // WARP]
            if is_free.any():
                released.append((address + STEP, np.sort(lanes[is_free])))
            if not is_free.all():
                kept.append(waits[0]._replace(lanes=lanes[~is_free]))
        self.waits = [wait for wait in self.waits if wait.kind == "BAR"] + kept
        return released

    def wait(self, kind: str, address: int, lanes: np.ndarray, needed: Any = None) -> list[tuple[int, np.ndarray]]:
        self.waits.append(Wait(kind, address, lanes, needed))
        return self.release()


def real_number(text: str, dtype: Any = F32) -> Any:
    if "0x" in text:
        return U32(int(text, 16)).view(F32)
    return dtype(text.upper().replace("QNAN", "NAN").replace("SNAN", "NAN"))


# Instructions

Run = Callable[..., Any]
OPERATIONS: dict[str, tuple[Run, frozenset[str] | None]] = {}
CONTROL: set[str] = set()


def operation(names: str, modifiers: str = "", control: bool = False) -> Callable[[Run], Run]:
    """Registers what the instructions of these names do, and which modifiers it knows; any others are not understood."""

    def register(run: Run) -> Run:
        for name in names.split():
            OPERATIONS[name] = (run, frozenset(modifiers.split()))
            if control:
                CONTROL.add(name)
        return run

    return register


# Instructions of the uniform datapath are those of lanes with a U before; these names begin with one of their own.
UNIFORM_RESULT = {"S2UR": "S2R"}


def decoded(each: Instruction) -> tuple[Run, bool, bool]:
    """What it does; whether once per warp; whether it decides who goes on where."""
    name = UNIFORM_RESULT.get(each.name, each.name)
    is_uniform = name != each.name
    if name not in OPERATIONS and name.startswith("U") and name[1:] in OPERATIONS:
        name, is_uniform = name[1:], True
    run, known = OPERATIONS.get(name, (unknown, None))
    if known is not None and not known.issuperset(each.modifiers):
        run = unknown
    return run, is_uniform, name in CONTROL and run is not unknown


def unknown(machine: Machine, each: Instruction, scope: Scope) -> None:
    raise UnknownInstruction(f"at {each.address:#x}: {each.text}")


def split(each: Instruction, results: int = 1) -> tuple[list[Operand], list[Operand], list[Operand]]:
    """Result registers, the predicates that are results beside them, and the sources."""
    heads, rest = list(each.operands[:results]), list(each.operands[results:])
    count = next((i for i, op in enumerate(rest) if op.kind not in ("P", "UP")), len(rest))
    return heads, rest[:count], rest[count:]


def rounding_of(each: Instruction) -> str:
    return next((name for name in ("RM", "RP", "RZ") if name in each.modifiers), "RN")


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


@operation("SEL")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    result, a, b, which = each.operands
    m.put(result, s, np.where(m.truth(which, s), m.unsigned(a, s), m.unsigned(b, s)))


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


@operation("DADD DMUL DFMA")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    result, *operands = each.operands
    a, b, *c = (np.asarray(m.double(op, s), np.longdouble) for op in operands)
    value = a + b if each.name == "DADD" else a * b if each.name == "DMUL" else a * b + c[0]
    m.put_long(result, s, value.astype(F64))


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


# Integers


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


# Conversions

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


# Memory

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
    memory, address = where(m, each, s, source)
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
    memory, address = where(m, each, s, target)
    address = np.broadcast_to(address, s.warps.shape)
    narrow_type = next((WIDTHS[name] for name in each.modifiers if name in WIDTHS), None)
    if narrow_type is not None:
        memory.store(address, np.broadcast_to(np.asarray(m.word(source, s)).astype(narrow_type), address.shape))
        return
    words = [np.broadcast_to(m.word(source, s, word), address.shape) for word in range(words_of(each))]
    memory.store_words(address, np.stack(words, -1))


def where(m: Machine, each: Instruction, s: Scope, op: Operand) -> tuple[Memory, Array]:
    is_shared = "S" in each.name[2:] and each.name != "ST"
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


@operation("MEMBAR ERRBAR CCTL CGAERRBAR NOP DEPBAR YIELD NANOSLEEP", "SC GPU SYS CTA IVALL ALL LE")
def _(m: Machine, each: Instruction, s: Scope) -> None:
    """Order in memory: here everything has it."""


# Lanes and their neighbours


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


# Who goes on where: these get the lanes that execute them, and give where they go on, or None for the next instruction.

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
    return [*moved, (each.address + STEP, rest)]


def jump(targets: np.ndarray, lanes: np.ndarray) -> Moved:
    return [(int(target), lanes[targets == target]) for target in np.unique(targets)]


@operation("BRX RET", "REL NODEC ABS", control=True)
def _(m: Machine, each: Instruction, lanes: np.ndarray) -> Moved:
    register, offset = each.operands[:2]
    base = each.address + STEP if each.name == "BRX" else 0
    targets = np.asarray(m.long(register, scope_of(lanes))).view(S64) + base + int(offset.text, 0)
    return jump(np.broadcast_to(targets, lanes.shape), lanes)


@operation("CALL", "REL NOINC", control=True)
def _(m: Machine, each: Instruction, lanes: np.ndarray) -> Moved:
    return [(int(each.operands[-1].text, 16), lanes)]


@operation("EXIT", control=True)
def _(m: Machine, each: Instruction, lanes: np.ndarray) -> Moved:
    m.is_live[lanes] = False
    return m.release()


@operation("BSSY", "RECONVERGENT RELIABLE", control=True)
def _(m: Machine, each: Instruction, lanes: np.ndarray) -> Moved:
    warps = np.unique(lanes // WARP)
    m.barriers[each.operands[0].index, warps] = m.masks(lanes)[warps]
    return None


@operation("BSYNC", "RECONVERGENT RELIABLE", control=True)
def _(m: Machine, each: Instruction, lanes: np.ndarray) -> Moved:
    warps = np.unique(lanes // WARP)
    needed = m.barriers[each.operands[0].index, warps] & m.masks(np.flatnonzero(m.is_live))[warps]
    if not (needed & ~m.masks(lanes)[warps]).any():
        return None
    return m.wait("BSYNC", each.address, lanes, each.operands[0].index)


@operation("BREAK", "RECONVERGENT RELIABLE", control=True)
def _(m: Machine, each: Instruction, lanes: np.ndarray) -> Moved:
    warps = np.unique(lanes // WARP)
    m.barriers[each.operands[-1].index, warps] &= ~m.masks(lanes)[warps]
    released = m.release()
    return [*released, (each.address + STEP, lanes)] if released else None


@operation("BMOV", "32 CLEAR", control=True)
def _(m: Machine, each: Instruction, lanes: np.ndarray) -> Moved:
    result, source = each.operands
    warps, first = np.unique(lanes // WARP, return_index=True)
    if result.kind == "B":
        m.barriers[result.index, warps] = np.broadcast_to(m.word(source, scope_of(lanes)), lanes.shape)[first]
    else:
        m.put(result, scope_of(lanes), m.barriers[source.index, lanes // WARP])
        if "CLEAR" in each.modifiers:
            m.barriers[source.index, warps] = 0
    return None


@operation("WARPSYNC", "ALL EXCLUSIVE", control=True)
def _(m: Machine, each: Instruction, lanes: np.ndarray) -> Moved:
    needed = np.full(m.warps, 0xFFFF_FFFF, U32)
    if each.operands:
        needed[lanes // WARP] = m.word(each.operands[0], scope_of(lanes))
    return m.wait("WARPSYNC", each.address, lanes, needed)


@operation("BAR", "SYNC DEFER_BLOCKING", control=True)
def _(m: Machine, each: Instruction, lanes: np.ndarray) -> Moved:
    if len(each.operands) != 1:
        raise UnknownInstruction(each.text)
    return m.wait("BAR", each.address, lanes)


# Counting

# Lanes per clock of a multiprocessor of compute capability 9.0, of the 128 that it issues for: the table "Throughput of
# Native Arithmetic Instructions" of the CUDA C++ Programming Guide. Its row of compare, minimum, maximum stands for FSEL,
# SEL and FSET too, which the same units execute (the ALU pipe, in Nsight Compute's words).
HALF = "FMNMX FSEL FSETP FSET SEL ISETP ISET IADD3 IADD VIADD IMAD LEA SHF LOP3 PRMT MOV IABS VIMNMX VIMNMX3 VIADDMNMX "
HALF += "IMNMX PLOP3 P2R R2P SGXT BMSK F2FP I2FP VOTE DADD DMUL DFMA DSETP FCHK"
EIGHTH = "MUFU F2F F2I I2F FRND POPC FLO BREV REDUX"
EIGHTH_RATE, HALF_RATE = frozenset(EIGHTH.split()), frozenset(HALF.split())


class Count(NamedTuple):
    """What warps issued: all of it, and of that what takes two slots of a multiprocessor, or eight."""

    instructions: float
    half_rate: float
    eighth_rate: float

    def __sub__(self, other: "Count") -> "Count":
        return Count(*(a - b for a, b in zip(self, other, strict=True)))

    def per(self, number: float) -> "Count":
        return Count(*(value / number for value in self))


def count(machine: Machine) -> Count:
    names = np.array([each.name for each, _ in machine.code])
    by_rate = (np.isin(names, list(rate)) for rate in (HALF_RATE, EIGHTH_RATE))
    return Count(*(float(machine.executed[which].sum()) for which in (slice(None), *by_rate)))
