"""Compiles the Triton kernels for GPUs that are not there, and runs what they were compiled from.

Triton's interpreter runs the Python source. What is compiled is made by another program, from the same source but by
rules of its own (it once took two functions of differently nested arguments for one). So the code that it makes is run
here too: its first intermediate form, some fifty operations over arrays, by NumPy.

As a program it compiles and checks everything and prints a JSON line a case; `test_triton_ahead_of_time.py` reads them.
"""

import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from icr_kernels import reference, triton_kernels
from icr_kernels.variants import KIND_NAMES, LOSS_NAMES, PENALTY_NAMES

operators, pairwise_operators = triton_kernels.operators, triton_kernels.pairwise_operators
POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


# Compiling.


class Launch(NamedTuple):
    """What `operators` would have launched."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]

    def compiled(self, capability: int):
        """For a GPU of that capability, as the launch would do it."""
        signature, constants, attributes = {}, {}, {}
        for place, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            if parameter.is_constexpr or value is None:
                signature[parameter.name], constants[parameter.name] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[parameter.name] = POINTERS[value.dtype]
                if value.data_ptr() % 16 == 0:
                    attributes[(place,)] = [["tt.divisibility", 16]]
            else:
                signature[parameter.name] = parameter.annotation_type or "i32"
        return triton.compile(
            ASTSource(self.kernel, signature, constants, attributes),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": operators.WARPS, "enable_fp_fusion": True},
        )


def recorded(operator, *arguments) -> tuple[list[Launch], Any]:
    """The launches of a call, not made, and what it returned."""
    launches = []

    def record(kernel, programs, *positional, **named):
        names = [parameter.name for parameter in kernel.params]
        launches.append(Launch(kernel, programs, {**dict(zip(names, positional, strict=False)), **named}))

    launch = operators.launch
    operators.launch = pairwise_operators.launch = record
    try:
        return launches, operator(*arguments)
    finally:
        operators.launch = pairwise_operators.launch = launch


def resources(compiled) -> dict[str, int]:
    """Registers a thread, accesses to local memory (spills) and what the accesses to the other memories are."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [TOOLS / "cuobjdump", "-res-usage", "-sass", file.name]
        code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    accesses = re.findall(r"(?:ld|st)\.(?:global|local|shared)\S*", compiled.asm["ptx"])
    return {
        "registers": int(re.search(r"REG:(\d+)", code).group(1)),
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "shared": sum(".shared" in access for access in accesses),
        "rounded_products": len(re.findall(r"fma\.rn\.f32 .*, 0f00000000;", compiled.asm["ptx"])),
        "vector_loads": sum(access.startswith("ld.global.v") for access in accesses),
        "vector_stores": sum(access.startswith("st.global.v") for access in accesses),
    }


# Running the intermediate form.

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
}
REDUCTIONS = {"arith.add": np.add, "arith.max": np.maximum, "arith.min": np.minimum}
CASTS = ("arith.extsi", "arith.extui", "arith.extf", "arith.truncf", "arith.trunci", "arith.uitofp", "arith.sitofp")


class Program:
    """One program of a launch, run over the memory of its arguments."""

    def __init__(self, ttir: str, arguments: list[Any], programs: int):
        text = re.sub(r" loc\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)", "", ttir)
        self.lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        start = next(i for i, line in enumerate(self.lines) if "tt.func" in line)
        self.body, names = start + 1, re.findall(r"(%\w+): ", self.lines[start])
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
        return [self.env[name] for name in re.findall(r"%[\w#-]+", text)]

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
            if self.env[re.search(r"%[\w#-]+", code).group()]:
                self.assign(names, self.block(at + 1)[1])
            elif otherwise < end:
                self.assign(names, self.block(otherwise + 1)[1])
            return end + 1
        if code.startswith('"tt.reduce"'):
            operand = self.env[re.search(r"%[\w#-]+", code).group()]
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
        initial = re.findall(r"(%[\w-]+) = (%[\w#-]+)", code.split(" : ")[0])
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
            return COMPARE[name.removeprefix("o") if kind == "arith.cmpf" else name[-2:]](*operands)
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
        pointers, by, _ = operands
        before = pointers.memory[pointers.at]
        pointers.memory[pointers.at] = before + by
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


def run(launch: Launch, compiled) -> None:
    """Runs all programs of a launch, one after the other."""
    constants = {parameter.name for parameter in launch.kernel.params if parameter.is_constexpr}
    arguments = [
        in_memory(launch.arguments[name])
        for name in launch.kernel.arg_names
        if name not in constants and launch.arguments[name] is not None
    ]
    program = Program(compiled.asm["ttir"], arguments, launch.programs)
    for number in range(launch.programs):
        program.run(number)


# The cases: what is compiled, for which GPUs, and what it is held against.

EVALUATED = 90  # the GPU whose code is also run
PAIRS = 300
MOST = 1 << 62  # more queries and rows than there are


class Case(NamedTuple):
    name: str
    capability: int = EVALUATED
    what: str = "loss"
    loss: str = "ciou"
    penalty: str = "containment"
    wanted: int = 1
    dtype: torch.dtype = torch.float32
    kind: str = "iou"
    k: int = 0
    tile: str = "many"


def boxes_of(seed: int) -> torch.Tensor:
    """Ordinary boxes, and boxes of small integers: ties, touching edges, empty and inverted ones."""
    generator = torch.Generator().manual_seed(seed)
    ordinary = torch.rand(PAIRS, 4, generator=generator, dtype=torch.float64) * 8
    ordinary[:, 2:] += ordinary[:, :2]
    return torch.cat((ordinary, torch.randint(0, 5, (PAIRS, 4), generator=generator)))


class Given(NamedTuple):
    """The arguments of a case, as the operators and as the reference take them."""

    boxes: list[torch.Tensor]
    leaves: list[torch.Tensor]
    asked: list[torch.Tensor]
    formula: tuple
    options: dict[str, Any]


def given(case: Case) -> Given:
    boxes = [boxes_of(seed).to(case.dtype) for seed in range(3)]
    leaves = [rows.double().requires_grad_() for rows in boxes]
    asked = [rows for bit, rows in enumerate(leaves) if case.wanted >> bit & 1]
    formula = LOSS_NAMES.index(case.loss), PENALTY_NAMES.index(case.penalty), 0.75, True, 0.5, 0
    options = {"loss": case.loss, "penalty": case.penalty, "penalty_weight": 0.75, "relative": True, "eps": 0.5}
    return Given(boxes, leaves, asked, formula, options)


def gradients(value, asked: list[torch.Tensor], upstream=None) -> list[torch.Tensor]:
    return list(torch.autograd.grad(value, asked, upstream)) if asked else []


# Each returns the launches, where its results are, and what they are to be.


def loss(case: Case):
    of = given(case)
    launches, results = recorded(operators.loss, *of.boxes, *(None,) * 4, 1.0, 1, *of.formula, case.wanted, False)
    value = reference.icr_loss(*of.leaves, reduction="sum", **of.options)
    return launches, results, [value, None, *gradients(value, of.asked)]


def masked(case: Case):
    """The mean over the pairs that a mask leaves, weighted: what the gradients lack comes with the last program."""
    of = given(case)
    count = len(of.boxes[0])
    mask, weight = torch.arange(count) % 5 != 2, torch.linspace(0.5, 1.5, count)
    launches, results = recorded(
        operators.loss, *of.boxes, None, weight, mask, None, 1.0, 2, *of.formula, case.wanted, False
    )
    value = reference.icr_loss(*of.leaves, weight=weight, mask=mask, reduction="mean", **of.options)
    lacking = 1 / mask.sum().double()
    return launches, results, [value, lacking, *(rows / lacking for rows in gradients(value, of.asked))]


def table(case: Case):
    """A loss a pair, of strided predictions in another format, with anchor objects from a table in half precision."""
    of = given(case)
    count = len(of.boxes[0])
    pred = torch.cat((of.boxes[0], of.boxes[0]), 1)[:, 2:6]
    index, cars = (torch.arange(count) * 7 % 20 - 2).int(), of.boxes[2][:16].half()
    arguments = (pred, of.boxes[1], cars, index, None, None, torch.tensor(3.0), 2.0, 0, *of.formula[:5], 1)
    launches, results = recorded(operators.loss, *arguments, case.wanted, True)
    leaf = pred.double().requires_grad_()
    value = reference.icr_loss(
        leaf, of.leaves[1], cars.double(), anchor_index=index, reduction="none", box_format="cxcywh", **of.options
    )
    return launches, results, [2 * value, None, 2 * gradients(value.sum(), [leaf])[0]]


def terms(case: Case):
    of = given(case)
    launches, results = recorded(operators.terms, *of.boxes, None, None, *of.formula)
    return launches, results, list(reference.icr_terms(*of.leaves, **of.options))


def terms_backward(case: Case):
    of = given(case)
    upstream = [torch.linspace(0.5, 1 + number, len(of.boxes[0])) for number in range(4)]
    launches, results = recorded(operators.terms_backward, *upstream, *of.boxes, None, None, *of.formula, case.wanted)
    value = reference.icr_terms(*of.leaves, **of.options)
    return launches, results, gradients(value, of.asked, [rows.double() for rows in upstream])


def scaled(case: Case):
    rows = boxes_of(0).to(case.dtype)
    factor, lacking = torch.linspace(0.5, 1.5, len(rows)), torch.tensor(0.25)
    launches, result = recorded(operators.scaled, rows, factor, lacking, torch.float16, None, None)
    return launches, [result], [(rows.double() * 0.25 * factor.unsqueeze(1)).half().double()]


def scaled_table(case: Case):
    rows, cars = boxes_of(0).to(case.dtype), torch.empty(16, 4)
    index = torch.arange(len(rows)) * 7 % 20 - 2
    launches, result = recorded(operators.scaled, rows, torch.tensor(0.5), None, case.dtype, cars, index)
    has_row = (index >= 0) & (index < 16)
    sums = torch.zeros(16, 4, dtype=torch.float64)
    return launches, [result], [sums.index_add(0, index[has_row], rows[has_row].double() / 2)]


def pairwise(case: Case):
    first, second = (boxes_of(seed).to(case.dtype) for seed in range(2))
    first, second = (first[7::29], second) if case.tile != "narrow" else (first[::4], second[7::29])
    launches, result = recorded(triton_kernels.pairwise, first, second, KIND_NAMES.index(case.kind), 0.5, 0)
    return launches, [result], [reference.pairwise_iou(first.double(), second.double(), case.kind, 0.5, "xyxy")]


def pairwise_backward(case: Case):
    """Of the boxes of one side, which do not lie one after the other; the gradient from above is strided."""
    pairwise_operators.MANY_ROWS = 0 if case.tile == "many" else MOST
    mine = boxes_of(0)[5::41].to(torch.float16 if case.tile == "few" else case.dtype)
    sides = [mine, boxes_of(1).to(case.dtype)][:: 1 if case.wanted == 1 else -1]
    upstream = torch.linspace(-1, 2, len(sides[0]) * len(sides[1]) * 2).view(len(sides[1]), -1)[:, ::2].t()
    arguments = upstream, *sides, KIND_NAMES.index(case.kind), 0.5, 1, case.wanted
    launches, results = recorded(triton_kernels.pairwise_backward, *arguments)
    leaves = [rows.double().requires_grad_() for rows in sides]
    value = reference.pairwise_iou(*leaves, case.kind, 0.5, "cxcywh")
    truth = gradients(value, [leaves[case.wanted - 1]], upstream.double())
    return launches, results, truth


def of_selection(case: Case, group=None, offset=None, at_least=None, candidate_first=False, larger=False):
    pairwise_operators.MANY_QUERIES = 0 if case.tile == "many" else MOST
    pairwise_operators.SOME_QUERIES = 0 if case.tile == "some" else MOST
    queries, candidates = (boxes_of(seed).to(case.dtype) for seed in range(2))
    every = {"many": 4, "some": 30, "few": 100}[case.tile]
    groups = (None, None) if group is None else (group[::every], group)
    least = None if at_least is None else at_least[::every]
    tensors, options = (*groups, offset, least), (candidate_first, case.k, larger, 0.5)
    queries = queries[::every].clone()
    launches, results = recorded(
        triton_kernels.selected, queries, candidates, *tensors, KIND_NAMES.index(case.kind), *options, 0
    )
    truth = reference.selected(queries.double(), candidates.double(), *tensors, case.kind, *options, "xyxy")
    return launches, results, truth


def selected(case: Case):
    return of_selection(case)


def selected_in_groups(case: Case):
    """Sorted ones."""
    group = torch.arange(2 * PAIRS) // 70
    return of_selection(case, group, torch.linspace(0, 1, 2 * PAIRS), candidate_first=True)


def selected_by_area(case: Case):
    """Of those that overlap enough; groups lie anyhow."""
    group = (torch.arange(2 * PAIRS) * 7 % 5 - 1).int()
    return of_selection(case, group, at_least=torch.linspace(0, 0.5, 2 * PAIRS), larger=True)


def matching_cost(case: Case):
    """Focal or, with k, softmax; images and labels that do not exist."""
    boxes, targets = boxes_of(0).to(case.dtype).view(4, -1, 4), boxes_of(1)[::60]
    logits = torch.linspace(-9, 9, 600 * 6, dtype=case.dtype).view(6, 150, 4).permute(2, 1, 0)
    image, labels = torch.arange(10) % 6 - 1, torch.arange(10).int() % 8 - 1
    tensors = boxes, logits, logits.logsumexp(-1) if case.k else None, targets.to(case.dtype), labels, image
    numbers = 2.0, 5.0, 1.5, 0.25, 1.5 if case.tile == "few" else 2.0, 1e-8, 0.5
    launches, result = recorded(triton_kernels.matching_cost, *tensors, *numbers, 1)
    doubles = [rows if rows is None or not rows.is_floating_point() else rows.double() for rows in tensors]
    return launches, [result], [reference.matching_cost(*doubles, *numbers, "cxcywh")]


def error(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Relative; what is not finite counts as a number of its own."""
    found, truth = (rows.double().nan_to_num(nan=-7, neginf=-11) for rows in (found, truth))
    return float((found - truth).norm() / truth.norm())


def checked(case: Case) -> dict[str, Any]:
    """Compiles the case; for one of the GPUs, also runs it and compares with the reference in double precision."""
    launches, results, truth = globals()[case.what](case)
    begin = time.perf_counter()
    compiled = [launch.compiled(case.capability) for launch in launches]
    found = {"name": case.name, "capability": case.capability, "seconds": time.perf_counter() - begin}
    used = [resources(each) for each in compiled]
    found |= {name: max(each[name] for each in used) for name in used[0]}
    if case.capability == EVALUATED:
        for launch, each in zip(launches, compiled, strict=True):
            run(launch, each)
        results = [rows for rows in results if rows.numel()]
        truth = [rows.detach() for rows in truth if rows is not None]
        found["error"] = max(error(*pair) for pair in zip(results, truth, strict=True))
    return found


def cases() -> list[Case]:
    variants = [(loss, "containment+pull") for loss in LOSS_NAMES]
    variants += [("iou", penalty) for penalty in PENALTY_NAMES if penalty != "containment+pull"]
    found = []
    for loss, penalty in variants:
        found.append(Case(f"value of {loss} {penalty}", loss=loss, penalty=penalty, wanted=0))
        found.append(Case(f"gradient of {loss} {penalty}", loss=loss, penalty=penalty))
    for loss in ("ciou", "siou"):
        found += [Case(f"gradient of {loss}", capability, loss=loss) for capability in (80, 100)]
        found.append(Case(f"all gradients of {loss}", loss=loss, penalty="containment+pull", wanted=7))
    found.append(Case("two gradients", wanted=3))
    found.append(Case("gradient, double", dtype=torch.float64))
    found.append(Case("gradient, half", dtype=torch.float16))
    found.append(Case("table", what="table"))
    found += [Case("masked", capability, "masked", wanted=7) for capability in (80, 90, 100)]
    for what in ("terms", "scaled", "scaled_table"):
        found += [Case(what, capability, what) for capability in (80, 90)]
    found += [Case("terms_backward", capability, "terms_backward", wanted=7) for capability in (80, 90)]
    return found + pairwise_cases()


def pairwise_cases() -> list[Case]:
    found = [Case(f"matrix of {kind}", what="pairwise", kind=kind) for kind in KIND_NAMES]
    found += [Case("matrix of ciou, narrow", what="pairwise", kind="ciou", tile="narrow")]
    found += [Case("matrix of siou, double", what="pairwise", kind="siou", dtype=torch.float64)]
    for kind, wanted in (("ciou", 1), ("siou", 2), ("iou", 1), ("containment+pull_penalty", 2)):
        found.append(Case(f"matrix gradient of {kind}", what="pairwise_backward", wanted=wanted, kind=kind))
    for wanted in (1, 2):
        name = f"matrix gradient in half precision {wanted}"
        found.append(Case(name, what="pairwise_backward", wanted=wanted, tile="few"))
    found.append(Case("matrix gradient, double", what="pairwise_backward", kind="siou", dtype=torch.float64))
    for tile in ("many", "some", "few"):
        found.append(Case(f"selected, {tile}, 5", what="selected", tile=tile, k=5))
        found.append(Case(f"selected, {tile}, 16 in double", what="selected", tile=tile, k=16, dtype=torch.float64))
        name = f"selected in groups, {tile}"
        found.append(Case(f"{name}, 0", what="selected_in_groups", tile=tile, kind="siou"))
        found.append(Case(f"{name}, by area, 0", what="selected_by_area", tile=tile))
    found.append(Case("selected in groups, some, by area, 5", what="selected_by_area", tile="some", k=5))
    found += [Case(f"cost {k}", what="matching_cost", k=k) for k in (0, 1)]
    found.append(Case("cost, double", what="matching_cost", tile="few", dtype=torch.float64))
    for capability in (80, 100):
        found.append(Case("matrix of siou", capability, "pairwise", kind="siou"))
        found.append(Case("matrix gradient of siou", capability, "pairwise_backward", kind="siou", wanted=2))
        found.append(Case("cost 0", capability, "matching_cost"))
        found.append(Case("selected in groups, few, 0", capability, "selected_in_groups", tile="few"))
        found.append(Case("selected in groups, many, 16", capability, "selected_in_groups", tile="many", k=16))
    return found


if __name__ == "__main__":
    # Blocks of the size that a GPU gets, and several programs that share a reduction.
    operators.INTERPRETED_BLOCK, operators.INTERPRETED_TABLE_BLOCK = operators.BLOCK, operators.TABLE_BLOCK
    operators.INTERPRETED_PROGRAMS = 3
    pairwise_operators.INTERPRETED_BLOCKS = pairwise_operators.BLOCKS
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        for found in pool.imap(checked, [case for case in cases() if wanted in case.name]):
            print(json.dumps(found), flush=True)
