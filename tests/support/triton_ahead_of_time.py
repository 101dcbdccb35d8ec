"""Compiles the Triton kernels for GPUs that are not there, and compares what it makes of them with the reference.

As a program it prints a JSON line per case; `test_triton_ahead_of_time.py` reads them.
"""

import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from icr_kernels import BoxLoss, Penalty, dense_reference, reference, triton_kernels
from icr_kernels.calls import (
    AssignmentCall,
    AssignmentRule,
    CostCall,
    DecodingCall,
    DetectionCall,
    DetectionFormula,
    Formula,
    MatchingCost,
    PairFunction,
    SelectionCall,
)
from icr_kernels.variants import COMMON_LOSS_NAMES, DEFAULTS_OF_KINDS, FURTHER_LOSS_NAMES, KIND_NAMES, PENALTY_NAMES
from triton_intermediate import Program, in_memory

operators, pairwise_operators = triton_kernels.operators, triton_kernels.pairwise_operators
assignment_operators, detection_operators = triton_kernels.assignment_operators, triton_kernels.detection_operators
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
        constants, attributes = {}, {}

        def described(value, *path: int):
            """The type of an argument; what is in a tuple is specialised by its value, as what lies in memory is."""
            parameter = self.kernel.params[path[0]]
            if parameter.is_constexpr or value is None or (len(path) > 1 and type(value) is int and value == 1):
                constants[path] = value
                return "constexpr"
            if isinstance(value, tuple):
                return type(value)(*(described(each, *path, place) for place, each in enumerate(value)))
            number = value.data_ptr() if isinstance(value, torch.Tensor) else value
            if number % 16 == 0 and (isinstance(value, torch.Tensor) or len(path) > 1):
                attributes[path] = [["tt.divisibility", 16]]
            return POINTERS[value.dtype] if isinstance(value, torch.Tensor) else parameter.annotation_type or "i32"

        signature = {
            parameter.name: described(self.arguments[parameter.name], place)
            for place, parameter in enumerate(self.kernel.params)
        }
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
    rooms = operators, pairwise_operators, assignment_operators, detection_operators
    for room in rooms:
        room.launch = record
    try:
        return launches, operator(*arguments)
    finally:
        for room in rooms:
            room.launch = launch


def resources(compiled) -> dict[str, int]:
    """Registers per thread, bytes per thread that did not fit into them, and what the accesses to the memories are.

    What spills lies on the stack, which holds nothing else: it is there exactly where the machine code has accesses to
    local memory. To disassemble that would take as long as the compilation.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [TOOLS / "cuobjdump", "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    accesses = re.findall(r"(?:ld|st)\.(?:global|local|shared)\S*", compiled.asm["ptx"])
    return {
        "registers": int(re.search(r"REG:(\d+)", said).group(1)),
        "spilled": sum(int(size) for size in re.findall(r"(?:STACK|LOCAL):(\d+)", said)),
        "shared": sum(".shared" in access for access in accesses),
        "rounded_products": len(re.findall(r"fma\.rn\.f32 .*, 0f00000000;", compiled.asm["ptx"])),
        "vector_loads": sum(access.startswith("ld.global.v") for access in accesses),
        "vector_stores": sum(access.startswith("st.global.v") for access in accesses),
    }


def run(launch: Launch, compiled) -> None:
    """Runs all programs of a launch, one after the other."""

    def passed(value, depth: int = 0) -> Iterator:
        """Those that are not compiled in."""
        if isinstance(value, tuple):
            for each in value:
                yield from passed(each, depth + 1)
        elif value is not None and not (depth and type(value) is int and value == 1):
            yield in_memory(value)

    given = [parameter.name for parameter in launch.kernel.params if not parameter.is_constexpr]
    arguments = [each for name in given for each in passed(launch.arguments[name])]
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
    formula: Formula
    options: dict[str, Any]


def given(case: Case) -> Given:
    boxes = [boxes_of(seed).to(case.dtype) for seed in range(3)]
    leaves = [rows.double().requires_grad_() for rows in boxes]
    asked = [rows for bit, rows in enumerate(leaves) if case.wanted >> bit & 1]
    formula = Formula(case.loss, case.penalty, "xyxy", True, 0.75, 0.5)
    return Given(boxes, leaves, asked, formula, formula._asdict())


def gradients(value, asked: list[torch.Tensor], upstream=None) -> list[torch.Tensor]:
    return list(torch.autograd.grad(value, asked, upstream)) if asked else []


# Each returns the launches, where its results are, and what they are to be.


def loss(case: Case):
    of = given(case)
    launches, results = recorded(
        operators.loss, *of.boxes, *(None,) * 7, 1.0, 1, of.formula.packed(), case.wanted, False
    )
    value = reference.icr_loss(*of.leaves, reduction="sum", **of.options)
    return launches, results, [value, None, *gradients(value, of.asked)]


def masked(case: Case):
    """The mean over the pairs that a mask leaves, weighted: what the gradients lack comes with the last program."""
    of = given(case)
    count = len(of.boxes[0])
    mask, weight = torch.arange(count) % 5 != 2, torch.linspace(0.5, 1.5, count)
    launches, results = recorded(
        operators.loss,
        *of.boxes,
        None,
        None,
        weight,
        mask,
        *(None,) * 3,
        1.0,
        2,
        of.formula.packed(),
        case.wanted,
        False,
    )
    value = reference.icr_loss(*of.leaves, weight=weight, mask=mask, reduction="mean", **of.options)
    lacking = 1 / mask.sum().double()
    return launches, results, [value, lacking, *(rows / lacking for rows in gradients(value, of.asked))]


def table(case: Case):
    """A loss per pair, of strided predictions in another format, with anchor objects from a table in half precision and
    targets from one too."""
    of = given(case)
    count = len(of.boxes[0])
    pred = torch.cat((of.boxes[0], of.boxes[0]), 1)[:, 2:6]
    index, cars = (torch.arange(count) * 7 % 20 - 2).int(), of.boxes[2][:16].half()
    target_index = torch.arange(count) * 5 % 23 - 2
    formula = of.formula._replace(box_format="cxcywh")
    arguments = (
        pred,
        of.boxes[1][:19],
        cars,
        target_index,
        index,
        *(None,) * 4,
        torch.tensor(3.0),
        2.0,
        0,
        formula.packed(),
    )
    launches, results = recorded(operators.loss, *arguments, case.wanted, True)
    leaf = pred.double().requires_grad_()
    options = {"target_index": target_index, "anchor_index": index, "reduction": "none", **formula._asdict()}
    value = reference.icr_loss(leaf, of.leaves[1][:19], cars.double(), **options)
    return launches, results, [2 * value, None, 2 * gradients(value.sum(), [leaf])[0]]


def terms(case: Case):
    of = given(case)
    launches, results = recorded(operators.terms, *of.boxes, *(None,) * 5, of.formula.packed())
    return launches, results, list(reference.icr_terms(*of.leaves, **of.options))


def terms_backward(case: Case):
    of = given(case)
    upstream = [torch.linspace(0.5, 1 + number, len(of.boxes[0])) for number in range(4)]
    launches, results = recorded(
        operators.terms_backward, *upstream, *of.boxes, *(None,) * 5, of.formula.packed(), case.wanted
    )
    value = reference.icr_terms(*of.leaves, **of.options)
    return launches, results, gradients(value, of.asked, [rows.double() for rows in upstream])


def modified(case: Case):
    """With every modifier, and the pixels of each pair."""
    of, pixels, mean = given(case), torch.linspace(1, 2, 2 * PAIRS), torch.tensor(0.4)
    box_loss = BoxLoss(case.loss, inner=0.8, focaler=(0.0, 0.95), wise="v3" if case.k else "v2")
    formula = of.formula._replace(loss=box_loss, penalty=Penalty("log", clamp=0.2))
    tensors = *of.boxes, *(None,) * 4, pixels, mean, None
    launches, results = recorded(operators.loss, *tensors, 1.0, 1, formula.packed(), case.wanted, False)
    options = {"scale": pixels.double(), "wise_mean": mean, **formula._asdict()}
    value = reference.icr_loss(*of.leaves, reduction="sum", **options)
    return launches, results, [value, None, *gradients(value, of.asked)]


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
    function = PairFunction(case.kind, "xyxy", 0.5, DEFAULTS_OF_KINDS[case.kind])
    first, second = (first[7::29], second) if case.tile != "narrow" else (first[::4], second[7::29])
    launches, result = recorded(triton_kernels.pairwise, first, second, function.packed())
    return launches, [result], [reference.pairwise_iou(first.double(), second.double(), function)]


def pairwise_backward(case: Case):
    """Of the boxes of one side, which do not lie one after the other; the gradient from above is strided."""
    pairwise_operators.MANY_ROWS = 0 if case.tile == "many" else MOST
    mine = boxes_of(0)[5::41].to(torch.float16 if case.tile == "few" else case.dtype)
    sides = [mine, boxes_of(1).to(case.dtype)][:: 1 if case.wanted == 1 else -1]
    upstream = torch.linspace(-1, 2, len(sides[0]) * len(sides[1]) * 2).view(len(sides[1]), -1)[:, ::2].t()
    function = PairFunction(case.kind, "cxcywh", 0.5, DEFAULTS_OF_KINDS[case.kind])
    arguments = upstream, *sides, function.packed(), case.wanted
    launches, results = recorded(triton_kernels.pairwise_backward, *arguments)
    leaves = [rows.double().requires_grad_() for rows in sides]
    value = reference.pairwise_iou(*leaves, function)
    truth = gradients(value, [leaves[case.wanted - 1]], upstream.double())
    return launches, results, truth


def of_selection(case: Case, group=None, offset=None, at_least=None, candidate_first=False, larger=False):
    pairwise_operators.MANY_QUERIES = 0 if case.tile == "many" else MOST
    pairwise_operators.SOME_QUERIES = 0 if case.tile == "some" else MOST
    queries, candidates = (boxes_of(seed).to(case.dtype) for seed in range(2))
    every = {"many": 4, "some": 30, "few": 100}[case.tile]
    groups = (None, None) if group is None else (group[::every], group)
    least = None if at_least is None else at_least[::every]
    function = PairFunction(case.kind, "xyxy", 0.5, DEFAULTS_OF_KINDS[case.kind])
    call = (*groups, offset, least, candidate_first, case.k, larger, function.packed())
    queries = queries[::every].clone()
    launches, results = recorded(triton_kernels.selected, queries, candidates, *call)
    truth = reference.selected(SelectionCall(queries.double(), candidates.double(), *call), function)
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
    cost = MatchingCost("cxcywh", 2.0, 5.0, 1.5, 0.25, 1.5 if case.tile == "few" else 2.0, 1e-8, 0.5)
    launches, result = recorded(triton_kernels.matching_cost, *tensors, cost.packed())
    doubles = [rows if rows is None or not rows.is_floating_point() else rows.double() for rows in tensors]
    return launches, [result], [reference.matching_cost(CostCall(*doubles, cost.packed()), cost)]


def assigned(case: Case):
    """Boxes that share points, equal ones too; images and labels that do not exist. With k, a box keeps as many points,
    boxes and scores are strided, and alpha is no root. In half precision, of logits."""
    truth = boxes_of(1)[5::12]
    truth = torch.cat((truth, truth[:3]))
    rows = torch.arange(len(truth))
    image, labels = (rows % 4 - 1).int(), rows * 7 % 5 - 1
    points = torch.rand(300, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 12
    distance = torch.cdist(points, (truth[:, :2] + truth[:, 2:]) / 2)
    nearest = torch.stack([torch.where(image == each, distance, torch.inf).argmin(1) for each in range(2)])
    boxes = truth[nearest] + torch.linspace(-0.5, 0.5, 600).view(2, 300, 1)
    scores = torch.linspace(-0.1, 1, 600 * 3).view(2, 3, 300).transpose(1, 2)
    if case.k:
        boxes = boxes.transpose(0, 1).contiguous().transpose(0, 1)
    else:
        scores = scores.contiguous()
    tensors = scores.to(case.dtype), boxes.to(case.dtype), points, truth, labels, image
    from_logits = case.dtype == torch.float16
    rule = AssignmentRule("xyxy", "xyxy", 7, case.k, from_logits, 0.7 if case.k else 0.5, 6.0, 2.0, 1e-9)
    launches, results = recorded(triton_kernels.assigned, *tensors, rule.packed())
    truth = dense_reference.task_aligned_assign(AssignmentCall(*tensors, rule.packed()), rule)
    assert len(launches) == 4 and truth.score.count_nonzero() > 10
    return launches, results, truth


def head_of(case: Case, channels: int, seed: int) -> torch.Tensor:
    """Of two images, with the points side by side or, if few, the channels."""
    values = torch.randn(2, PAIRS // 2, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values = (4 * values).to(case.dtype)
    return values if case.tile == "few" else values.mT.contiguous().mT


def decoding_of(case: Case) -> DecodingCall:
    """With k bins."""
    place, dtype = torch.arange(PAIRS // 2), torch.float64 if case.dtype == torch.float64 else torch.float32
    points = torch.stack((place % 12, place // 12), 1).to(dtype) + 0.5
    return DecodingCall(head_of(case, 4 * case.k, 0), points, 2.0 ** (place % 3).to(dtype))


def decoded(case: Case):
    call = decoding_of(case)
    launches, result = recorded(triton_kernels.decoded, *call)
    assert len(launches) == 1
    return launches, [result], [dense_reference.decode_boxes(call.box_logits.double(), call.points, call.strides)]


def decoded_backward(case: Case):
    call = decoding_of(case)
    upstream = torch.linspace(-1, 2, 4 * PAIRS, dtype=call.points.dtype).view(2, 4, -1).mT
    launches, result = recorded(triton_kernels.decoded_backward, upstream, *call, 1)
    leaf = call.box_logits.double().requires_grad_()
    assert len(launches) == 1
    value = dense_reference.decode_boxes(leaf, call.points, call.strides)
    return launches, [result], gradients(value, [leaf], upstream.double())


def detection_of(case: Case) -> tuple[DetectionCall, DetectionFormula]:
    """Blocks without a target, and targets, labels and anchor objects that do not exist."""
    boxes, points, strides = decoding_of(case)
    truth = (boxes_of(1)[5::12] * 1.5).to(points.dtype)
    row, place = torch.arange(len(truth)), torch.arange(PAIRS).view(2, -1)
    formula = Formula(case.loss, case.penalty, "cxcywh", True, 0.75, 0.5)
    options = DetectionFormula(formula, 7.5, 0.5, 1.5, 0.0, case.tile != "few", 20.0, 15.0)
    logits, index = head_of(case, 20, 1), torch.where(place // 64 % 2 == 0, place % 60 - 4, -1)
    of_truth = row * 7 % 23 - 1, index, (place % 10 / 10).float(), row.int() * 5 % 60 - 4
    weight = torch.linspace(0.5, 2, 20, dtype=torch.float16)
    return DetectionCall(
        boxes, logits, points, strides, truth, *of_truth, weight, None, None, options.packed()
    ), options


def in_double(call: DetectionCall, options: DetectionFormula):
    leaves = [logits.double().requires_grad_() for logits in call[:2]]
    return leaves, dense_reference.dense_detection_loss(DetectionCall(*leaves, *call[2:]), options)


def detection_loss(case: Case):
    call, options = detection_of(case)
    launches, results = recorded(triton_kernels.detection_loss, *call)
    assert len(launches) == 3
    return launches, results[:4], in_double(call, options)[1]


def detection_loss_backward(case: Case):
    call, options = detection_of(case)
    leaves, terms = in_double(call, options)
    upstream = [torch.tensor(factor, dtype=call.points.dtype) for factor in (0.5, 1.0, 1.5, 2.0)]
    has_target = (call.index >= 0) & (call.index < len(call.truth))
    anchor = call.anchor_index[call.index[has_target]]
    divisors = torch.stack((call.score[has_target].double().sum(), ((anchor >= 0) & (anchor < len(call.truth))).sum()))
    call = call._replace(normalizer=divisors.to(call.points.dtype))
    launches, results = recorded(triton_kernels.detection_loss_backward, *upstream, *call, 3)
    assert len(launches) == 2
    return launches, results, gradients(terms, leaves, [each.double() for each in upstream])


def error(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Relative; what is not finite counts as a number of its own."""
    found, truth = (rows.double().nan_to_num(nan=-7, neginf=-11) for rows in (found, truth))
    return float((found - truth).norm() / truth.norm())


def checked(case: Case) -> dict[str, Any]:
    """Compiles the case; for one of the GPUs, also runs it and compares with the reference in double precision."""
    launches, results, truth = globals()[case.what](case)
    compiled = [launch.compiled(case.capability) for launch in launches]
    found = {"name": case.name, "capability": case.capability}
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
    variants = [(loss, "containment+pull") for loss in COMMON_LOSS_NAMES]
    variants += [("iou", penalty) for penalty in PENALTY_NAMES if penalty != "containment+pull"]
    found = []
    for loss, penalty in variants:
        found.append(Case(f"value of {loss} {penalty}", loss=loss, penalty=penalty, wanted=0))
        found.append(Case(f"gradient of {loss} {penalty}", loss=loss, penalty=penalty))
    found += [Case(f"gradient of {loss}", loss=loss) for loss in FURTHER_LOSS_NAMES]
    found += [Case(f"modified {loss} {k}", what="modified", loss=loss, k=k) for loss, k in (("ciou", 0), ("sd", 1))]
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
    kinds = [kind for kind in KIND_NAMES if kind not in FURTHER_LOSS_NAMES] + ["alpha_ciou", "reverse_kld"]
    found = [Case(f"matrix of {kind}", what="pairwise", kind=kind) for kind in kinds]
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
    for capability in (80, 90, 100):
        found += [Case(f"assigned {k}", capability, "assigned", k=k) for k in (0, 3)]
        found.append(Case("assigned, half", capability, "assigned", dtype=torch.float16))
    for what in ("decoded", "decoded_backward", "detection_loss", "detection_loss_backward"):
        found += [Case(f"{what} {k}, {tile}", what=what, k=k, tile=tile) for k, tile in ((16, "few"), (5, "many"))]
        found += [Case(f"{what} 1", what=what, k=1), Case(f"{what}, double", what=what, k=16, dtype=torch.float64)]
        for capability in (80, 90, 100):
            half = {"k": 16, "dtype": torch.float16, "loss": "siou", "penalty": "containment+pull"}
            found.append(Case(f"{what}, half", capability, what, **half))
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
    detection_operators.INTERPRETED_BLOCKS = detection_operators.BLOCKS
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        for found in pool.imap(checked, [case for case in cases() if wanted in case.name]):
            print(json.dumps(found), flush=True)
