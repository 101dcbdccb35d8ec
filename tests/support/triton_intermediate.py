"""Runs what Triton compiles kernels from: its first intermediate form, some fifty operations over arrays, by NumPy.

Triton's interpreter runs the Python source. What is compiled is made by another program, from the same source but by
rules of its own (it once took two functions of differently nested arguments for one): so the code that it makes is run
as well.
"""

import re
from typing import Any, NamedTuple

import numpy as np
import torch

NUMPY = {"f16": np.float16, "f32": np.float32, "f64": np.float64, "i1": np.bool_, "i8": np.int8}
NUMPY |= {"i32": np.int32, "i64": np.int64}


class Pointers(NamedTuple):
    memory: np.ndarray
    at: Any


def type_of(text: str) -> tuple[list[int], Any]:
    """Shape and element type of "tensor<128x4xf32>" or "f32"."""
    inner = re.fullmatch(r"tensor<(.*)>", text.strip())
    *shape, element = inner.group(1).split("x") if inner else [text.strip()]
    return [int(size) for size in shape], NUMPY.get(element)


def fused(a, b, c):
    return (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(a.dtype)


COMPARE = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater}
COMPARE["ge"] = np.greater_equal
OPERATIONS = {
    "arith.addf": np.add,
    "arith.addi": np.add,
    "arith.subf": np.subtract,
    "arith.subi": np.subtract,
    "arith.mulf": np.multiply,
    "arith.muli": np.multiply,
    "arith.divf": np.divide,
    "arith.divsi": np.floor_divide,  # of what is not negative
    "arith.remsi": np.remainder,
    "arith.negf": np.negative,
    "arith.andi": np.bitwise_and,
    "arith.ori": np.bitwise_or,
    "arith.shli": np.left_shift,
    "arith.maximumf": np.maximum,
    "arith.minimumf": np.minimum,
    "arith.maxnumf": np.fmax,
    "arith.minnumf": np.fmin,
    "arith.maxsi": np.maximum,
    "arith.minsi": np.minimum,
    "arith.select": np.where,
    "math.fma": fused,
    "math.exp": np.exp,
    "math.log": np.log,
    "math.absf": np.abs,
    "math.sqrt": np.sqrt,
    "tt.precise_divf": np.divide,
    "tt.precise_sqrt": np.sqrt,
}
REDUCTIONS = {"arith.add": np.add, "arith.max": np.maximum, "arith.min": np.minimum}
ATOMICS = {"add": np.add, "max": np.maximum, "min": np.minimum, "exch": lambda before, by: by}
CASTS = ("arith.extsi", "arith.extui", "arith.extf", "arith.truncf", "arith.trunci", "arith.uitofp", "arith.sitofp")


class Program:
    """One program of a launch, run over the memory of its arguments."""

    def __init__(self, ttir: str, arguments: list[Any], programs: int):
        text = re.sub(r" loc\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)", "", ttir)
        self.lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        start = next(i for i, line in enumerate(self.lines) if "tt.func" in line)
        self.body, names = start + 1, re.findall(r"(%[\w.]+): ", self.lines[start])
        self.arguments, self.programs = dict(zip(names, arguments, strict=True)), programs

    def run(self, number: int) -> None:
        self.number = number
        self.env = dict(self.arguments)
        with np.errstate(all="ignore"):
            self.block(self.body)

    def block(self, at: int) -> tuple[int, list[Any]]:
        """Runs to the end of a block; where it ended, and what it yielded."""
        while True:
            line = self.lines[at]
            if line.startswith(("tt.return", "}")):
                return at, []
            if line.startswith("scf.condition"):
                condition, values = re.match(r"scf\.condition\((%\S+)\)(?: (.*) : .*)?", line).groups()
                return at + 1, [self.env[condition], *self.values(values or "")]
            if line.startswith("scf.yield"):
                return at + 1, self.values(line.removeprefix("scf.yield").split(" : ")[0])
            at = self.statement(at, line)

    def values(self, text: str) -> list[Any]:
        return [self.env[name] for name in re.findall(r"%[\w.#-]+", text)]

    def assign(self, names: str, values: list[Any]) -> None:
        if not names:
            return
        name, _, count = names.partition(":")
        if count:
            self.env.update({f"{name}#{i}": value for i, value in enumerate(values)})
        else:
            self.env.update(zip(names.split(", "), values, strict=True))

    def end_of(self, at: int) -> int:
        """The line that closes the block which begins after this one."""
        depth = 1
        while True:
            at += 1
            depth -= self.lines[at].startswith("}")
            if not depth:
                return at
            depth += self.lines[at].endswith("{")

    def statement(self, at: int, line: str) -> int:
        names, _, code = line.rpartition(" = ") if re.match(r"%[\w:, %-]+ = ", line) is None else line.partition(" = ")
        if code.startswith("scf.while"):
            return self.loop(at, names, code)
        if code.startswith("scf.if"):
            end = otherwise = self.end_of(at)
            if "else" in self.lines[end]:
                end = self.end_of(otherwise)
            if self.env[re.search(r"%[\w.#-]+", code).group()]:
                self.assign(names, self.block(at + 1)[1])
            elif otherwise < end:
                self.assign(names, self.block(otherwise + 1)[1])
            return end + 1
        if code.startswith('"tt.reduce"'):
            operand = self.env[re.search(r"%[\w.#-]+", code).group()]
            axis = int(re.search(r"axis = (\d+)", code).group(1))
            end = next(i for i in range(at, len(self.lines)) if self.lines[i].startswith("})"))
            (combine,) = (of for of in REDUCTIONS if any(of in inner for inner in self.lines[at:end]))
            self.assign(names, [REDUCTIONS[combine].reduce(operand, axis, operand.dtype)])
            return end + 1
        result = self.operation(code)
        if names:
            self.assign(names, list(result) if isinstance(result, list) else [result])
        return at + 1

    def loop(self, at: int, names: str, code: str) -> int:
        initial = re.findall(r"(%[\w-]+) = (%[\w.#-]+)", code.split(" : ")[0])
        values = [self.env[value] for _, value in initial]
        while True:
            self.env.update(zip((name for name, _ in initial), values, strict=True))
            end, (condition, *carried) = self.block(at + 1)
            assert self.lines[end] == "} do {"
            if not condition:
                self.assign(names, carried)
                return self.end_of(end) + 1
            self.env.update(zip(re.findall(r"(%\w+):", self.lines[end + 1]), carried, strict=True))
            values = self.block(end + 2)[1]

    def operation(self, code: str):
        kind = re.match(r"[\w.]+", code).group()
        operands = self.values(code.split(" : ")[0])
        if kind == "arith.constant":
            literal, text = re.match(r"arith\.constant (.*) : (.*)|.*", code).groups()
            if literal is None:
                return np.bool_(code.endswith("true"))
            shape, dtype = type_of(text)
            value = re.sub(r"dense<(.*)>", r"\1", literal)
            if value.startswith("0x"):
                bits = bytes.fromhex(value[2:])[::-1]
                return np.full(shape, np.frombuffer(bits, dtype)[0], dtype)
            number = value == "true" if value in ("true", "false") else float(value) if "." in value else int(value)
            return np.full(shape, number, dtype)
        if kind in ("arith.cmpf", "arith.cmpi"):
            name = re.search(r"arith\.cmp[fi] ([a-z]+)", code).group(1)
            return COMPARE[name[-2:]](*operands)
        if kind in OPERATIONS:
            return OPERATIONS[kind](*operands)
        if kind in CASTS:
            return operands[0].astype(type_of(code.rpartition(" to ")[2])[1])
        result = re.search(r"(?:-> |tt\.make_range.* : )(tensor<[^!]*>)$", code)
        return getattr(self, kind.replace(".", "_"))(operands, result and type_of(result.group(1))[0], code)

    def tt_get_program_id(self, operands, shape, code):
        return np.int32(self.number)

    def tt_get_num_programs(self, operands, shape, code):
        return np.int32(self.programs)

    def tt_make_range(self, operands, shape, code):
        return np.arange(shape[0], dtype=np.int32)

    def tt_splat(self, operands, shape, code):
        if isinstance(operands[0], Pointers):
            return operands[0]
        return np.full(shape, operands[0])

    def tt_broadcast(self, operands, shape, code):
        if isinstance(operands[0], Pointers):
            return operands[0]
        return np.broadcast_to(operands[0], shape)

    def tt_expand_dims(self, operands, shape, code):
        return operands[0].reshape(shape)

    tt_reshape = tt_expand_dims

    def tt_split(self, operands, shape, code):
        return [operands[0][..., 0], operands[0][..., 1]]

    def tt_join(self, operands, shape, code):
        return np.stack(operands, -1)

    def tt_addptr(self, operands, shape, code):
        return Pointers(operands[0].memory, operands[0].at + operands[1])

    def tt_bitcast(self, operands, shape, code):
        if not isinstance(operands[0], Pointers):
            return operands[0].view(type_of(code.rpartition(" -> ")[2])[1])
        memory, at = operands[0]
        element = NUMPY[re.search(r"-> .*!tt\.ptr<(\w+)>", code).group(1)]
        wider = np.dtype(element).itemsize // memory.itemsize
        assert not np.any(at % wider)
        return Pointers(memory[: len(memory) // wider * wider].view(element), at // wider)

    def tt_load(self, operands, shape, code):
        pointers, keep, *other = operands if len(operands) > 1 else (operands[0], np.True_)
        at = np.where(keep, pointers.at, 0)
        assert np.min(at) >= 0
        values = pointers.memory[at]
        return np.where(keep, values, other[0]) if other else values

    def tt_store(self, operands, shape, code):
        pointers, values, keep = operands if len(operands) > 2 else (*operands, np.True_)
        at, values, keep = np.broadcast_arrays(pointers.at, values, keep)
        assert np.min(at, where=keep, initial=0) >= 0
        pointers.memory[at[keep]] = values[keep]

    def tt_atomic_rmw(self, operands, shape, code):
        """Lanes whose addresses differ."""
        pointers, by, keep = operands
        at, by, keep = np.broadcast_arrays(pointers.at, by, keep)
        before = pointers.memory[np.where(keep, at, 0)]
        combine = ATOMICS[re.match(r"tt\.atomic_rmw (\w+)", code).group(1)]
        pointers.memory[at[keep]] = combine(before, by)[keep]
        return before

    def gpu_barrier(self, operands, shape, code):
        pass

    ttg_barrier = ttg_local_barrier = gpu_barrier


def in_memory(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        # All of the storage behind the first element: a workspace is longer than its shape.
        whole = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage(), value.storage_offset(), (0,))
        size = value.untyped_storage().nbytes() // value.element_size() - value.storage_offset()
        return Pointers(whole.resize_(size).numpy(), np.int64(0))
    return np.float64(value) if isinstance(value, float) else np.int64(value)
