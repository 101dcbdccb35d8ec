"""How many instructions the CUDA kernels execute for each pair: speed without a GPU, so that a regression shows.

The machine code that nvcc makes for sm_90 is run by an interpreter (tests/support/sass), its results are compared
with the CPU's, and what it executed is compared with cuda_instructions.csv. Written anew by
`python tests/builds/test_cuda_instructions.py`; with --print, shown beside the record instead. A kernel runs over few
and over more pairs, and the difference counts, without what a launch does once.
"""

import argparse
import csv
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import icr_kernels as icr
from icr_kernels import reference
from icr_kernels.variants import KIND_IDS, LOSS_IDS, PENALTY_IDS

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1] / "support"), str(Path(__file__).parents[2])]

from benchmarks.aligned import boxes
from sass import cubin
from sass.counting import Count, counted
from sass.launch import packed, run
from sass.machine import WARP, Machine
from sass.memory import GLOBAL, Memory
from sass.structs import Structs
from tolerances import assert_close, same_bits

RECORD = Path(__file__).parent / "cuda_instructions.csv"
# Of the recorded count.
TOLERANCE = 0.01

ALIGNED, PAIRWISE, SELECTION = (f"csrc/cuda/{name}.cu" for name in ("kernels", "pairwise", "selection"))
STRUCTS = Structs(
    "csrc/task.h", "csrc/box.h", "csrc/cuda/kernels.h", "csrc/cuda/pairwise.h", ALIGNED, PAIRWISE, SELECTION
)
THREADS = 256
FEW, MANY = 2, 10
EPS = 1e-7

Check = Callable[[], None]


class Work(NamedTuple):
    """One launch: its arguments, and what has to be true afterwards."""

    arguments: tuple[Any, ...]
    pairs: int
    check: Check


class Case(NamedTuple):
    """A kernel with an input of ordinary boxes; `prepare` puts one into memory, of so many pieces for each thread."""

    name: str
    source: str
    kernel: str
    prepare: Callable[[Memory, int], Work]


# Inputs and outputs


def rows(memory: Memory, values: Tensor) -> dict[str, Any]:
    return {"data": memory.put(values.detach().numpy()), "aligned": True, "row_stride": 4, "row_count": len(values)}


def written(memory: Memory, address: int, *shape: int, dtype: Any = np.float32) -> Tensor:
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return torch.from_numpy(memory.view(address, count).view(dtype).reshape(shape).copy())


def aligned_arguments(
    memory: Memory, loss: str, penalty: str, given: Sequence[Tensor | None], value: int, gradient: int = 0
) -> tuple[Any, ...]:
    task: dict[str, Any] = {"pairs": len(given[0]), "grad_pred": {"data": gradient}}
    for name, each in zip(("pred", "target", "anchor_objects"), given, strict=False):
        if each is not None:
            task[name] = rows(memory, each)
    formula = {"loss": LOSS_IDS[loss], "penalty": PENALTY_IDS[penalty], "numbers": (1.0, EPS, 0.0)}
    return task, formula, {"value": value}


def aligned(loss: str, penalty: str = "none", gradient: bool = True) -> Callable[[Memory, int], Work]:
    def prepare(memory: Memory, pieces: int) -> Work:
        pairs = pieces * THREADS
        pred, target, anchor_objects = boxes(pairs)
        given = [pred, target, anchor_objects if penalty != "none" else None]
        value, rows_out = memory.reserve(4), memory.reserve(16 * pairs)
        arguments = aligned_arguments(memory, loss, penalty, given, value, rows_out if gradient else 0)

        def check() -> None:
            wide = [None if each is None else each.detach().double() for each in given]
            leaf = wide[0].requires_grad_()
            truth = reference.icr_loss(*wide, loss=loss, penalty=penalty, reduction="sum", eps=EPS)
            truth.backward()
            assert_close(written(memory, value), truth.detach(), "sum")
            if gradient:
                assert_close(written(memory, rows_out, pairs, 4), leaf.grad, "gradient")

        return Work(arguments, pairs, check)

    return prepare


def scaling(memory: Memory, pieces: int) -> Work:
    pairs = pieces * THREADS
    gradient = boxes(pairs)[0].detach()
    factor, out = torch.tensor([0.75]), memory.reserve(16 * pairs)
    column = {"data": memory.put(factor.numpy())}
    task = {"pairs": pairs, "gradient": rows(memory, gradient), "factor": column, "out": {"data": out}}
    return Work((task,), pairs, lambda: assert_close(written(memory, out, pairs, 4), gradient * factor, "rows"))


FUNCTION = {"kind": KIND_IDS["iou"]}
NUMBERS = {"eps": EPS}


def box_set(memory: Memory, values: Tensor) -> dict[str, Any]:
    return {"rows": rows(memory, values), "count": len(values), "batch_stride": 4 * len(values)}


def matrix(columns: int, rows_of_thread: int = 16) -> Callable[[Memory, int], Work]:
    """As launch_matrix of pairwise.cu divides one of 8400 rows; a block takes one tile after the other."""

    def prepare(memory: Memory, pieces: int) -> Work:
        chunks = -(-columns // 4)
        across = -(-chunks // THREADS)
        width = -(-chunks // across)
        tile_rows = THREADS // width * rows_of_thread
        count = pieces * tile_rows
        first, second = boxes(count)[0].detach(), boxes(columns, 1)[2]
        out = memory.reserve(4 * count * columns)
        task = {"function": FUNCTION, "first": box_set(memory, first), "second": box_set(memory, second), "out": out}
        tiles = {"whole": True, "width": width, "rows": tile_rows, "across": across}
        tiles |= {"down": pieces, "count": pieces * across}

        def check() -> None:
            truth = icr.pairwise_iou(first.double(), second.double(), backend="reference")
            assert_close(written(memory, out, count, columns), truth, "matrix")

        return Work((task, tiles, FUNCTION["kind"], NUMBERS), count * columns, check)

    return prepare


def row_maximum(owners: int) -> Callable[[Memory, int], Work]:
    """Of so many threads that own two queries each; tile after tile of candidates."""

    def prepare(memory: Memory, pieces: int) -> Work:
        queries, candidates = boxes(2 * owners)[0].detach(), boxes(pieces * 1024, 1)[2]
        count = len(queries)
        values, indices = memory.reserve(4 * count), memory.reserve(8 * count)
        task = {"function": FUNCTION, "queries": box_set(memory, queries), "candidates": box_set(memory, candidates)}
        task |= {"values": values, "indices": indices}

        def check() -> None:
            truth = icr.pairwise_iou(queries.double(), candidates.double(), backend="reference")
            assert_close(written(memory, values, count), truth.amax(1), "maxima")
            chosen = written(memory, indices, count, dtype=np.int64)
            assert_close(truth.gather(1, chosen[:, None])[:, 0].float(), truth.amax(1), "values at the indices")

        return Work((task, owners, NUMBERS), count * len(candidates), check)

    return prepare


GENERAL = "pairs_kernel<float, 1u, false, AnyTask>"


def specialised(loss: str, penalty: str = "none") -> str:
    return f"pairs_kernel<float, 1u, false, PackedTask<{LOSS_IDS[loss]}, {PENALTY_IDS[penalty]}> >"


CASES = (
    Case(
        "ciou + containment, gradient to pred",
        ALIGNED,
        specialised("ciou", "containment"),
        aligned("ciou", "containment"),
    ),
    Case("ciou + containment, general kernel", ALIGNED, GENERAL, aligned("ciou", "containment")),
    Case("ciou, gradient to pred", ALIGNED, specialised("ciou"), aligned("ciou")),
    Case("giou, gradient to pred", ALIGNED, specialised("giou"), aligned("giou")),
    Case(
        "ciou + containment, forward only",
        ALIGNED,
        "pairs_kernel<float, 0u, false, AnyTask>",
        aligned("ciou", "containment", gradient=False),
    ),
    Case("scaling", ALIGNED, "scale_kernel<float>", scaling),
    Case("matrix iou, 1,000 columns", PAIRWISE, "matrix_kernel<float, CommonKinds>", matrix(1000)),
    Case("matrix iou, 100 columns", PAIRWISE, "matrix_kernel<float, CommonKinds>", matrix(100)),
    Case("row maximum of many", SELECTION, "maximum_kernel<Similarity<IoU> >", row_maximum(256)),
    Case("row maximum of 8,400", SELECTION, "maximum_kernel<Similarity<IoU> >", row_maximum(16)),
)


# Counting


def read(cases: Sequence[Case], code_of: Callable[[str], Path]) -> dict[str, cubin.Kernel]:
    """Their kernels, from the machine code of each source."""
    wanted: dict[str, set[str]] = {}
    for case in cases:
        wanted.setdefault(case.source, set()).add(case.kernel)
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda item: cubin.read(code_of(item[0]), sorted(item[1])), wanted.items())
    return {name: kernel for kernels in found for name, kernel in kernels.items()}


def launched(case: Case, kernel: cubin.Kernel, pieces: int) -> tuple[Machine, int]:
    """A launch of one block, whose results are right, and its number of pairs."""
    memory = Memory(GLOBAL, 1 << 25)
    work = case.prepare(memory, pieces)
    machine = run(STRUCTS, kernel, memory, work.arguments, blocks=1, threads=THREADS)
    work.check()
    return machine, work.pairs


def executed(case: Case, kernel: cubin.Kernel) -> np.ndarray:
    """How often each instruction is executed for each pair of a lane."""
    (few, pairs_of_few), (many, pairs_of_many) = (launched(case, kernel, pieces) for pieces in (FEW, MANY))
    return (many.executed - few.executed) / ((pairs_of_many - pairs_of_few) / WARP)


def row_of(case: Case, count: Count) -> dict[str, str]:
    counts = {name: f"{value:.2f}" for name, value in count._asdict().items()}
    return {"case": case.name, "kernel": case.kernel, **counts, "nvcc": cubin.nvcc_version()}


def recorded() -> dict[str, dict[str, str]]:
    with RECORD.open(newline="") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def kernels(cuda_extension, tmp_path_factory) -> dict[str, cubin.Kernel]:
    if reason := cubin.obstacle():
        pytest.skip(reason)
    objects, folder = cuda_extension / "temp", tmp_path_factory.mktemp("cubin")
    return read(CASES, lambda source: cubin.extracted((objects / source).with_suffix(".o"), folder))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernels_execute_as_many_instructions_as_recorded(kernels, case):
    row = row_of(case, counted(kernels[case.kernel].code, executed(case, kernels[case.kernel])))
    before = recorded()[case.name]
    if row["nvcc"] != before["nvcc"]:
        pytest.skip(f"right results; recorded with nvcc {before['nvcc']}, this is {row['nvcc']}")
    assert row["kernel"] == before["kernel"]
    wrong = {
        name: f"{row[name]} instead of {before[name]}"
        for name in Count._fields
        if abs(float(row[name]) - float(before[name])) > TOLERANCE * float(before[name])
    }
    assert wrong == {}, f"slower, or faster: then record it with `python tests/builds/{Path(__file__).name}`"


def test_record_has_every_case():
    assert list(recorded()) == [case.name for case in CASES]


def test_documentation_has_the_record():
    text = (Path(__file__).parents[2] / "docs" / "gpu.md").read_text()
    for case, row in recorded().items():
        counts = (f"{float(row[name]):.0f}" for name in Count._fields)
        assert f"| {case} | {' | '.join(counts)} |" in text


def test_blocks_add_up_one_sum(kernels):
    """Shuffles, barriers, shared memory, a ticket of the kernel's own and the last block: all are in it."""
    memory = Memory(GLOBAL, 1 << 20)
    case = CASES[0]
    work = case.prepare(memory, 3)
    task, formula, total = work.arguments
    arguments = (task, formula, {**total, "partials": memory.reserve(16 * 3), "ticket_number": 5})
    run(STRUCTS, kernels[case.kernel], memory, arguments, blocks=3, threads=THREADS)
    work.check()


@pytest.mark.parametrize(("loss", "penalty"), [("ciou", "containment"), ("giou", "none")])
def test_specialised_and_general_kernels_agree(kernels, loss, penalty):
    """To the bit, over boxes that are anything but ordinary too."""
    generator = torch.Generator().manual_seed(3)
    numbers = torch.tensor(
        [0.0, -0.0, 1, 2, 2, 3, 5, -4, 1e-30, 1e-20, 1e10, 9e17, 1e18, -2e18, 1e30, torch.inf, torch.nan]
    )
    given = [numbers[torch.randint(len(numbers), (8 * THREADS, 4), generator=generator)] for _ in range(3)]
    for each, ordinary in zip(given, boxes(len(given[0])), strict=True):
        each[::4] = ordinary.detach()[::4]
    results = []
    for name in (specialised(loss, penalty), GENERAL):
        memory = Memory(GLOBAL, 1 << 22)
        value, gradient = memory.reserve(4), memory.reserve(16 * len(given[0]))
        arguments = aligned_arguments(memory, loss, penalty, given[: 3 if penalty != "none" else 2], value, gradient)
        run(STRUCTS, kernels[name], memory, arguments, blocks=1, threads=THREADS)
        results.append(written(memory, gradient, len(given[0]), 4))
    assert 0.1 < results[0].isnan().any(1).double().mean() < 0.8, "of both kinds"
    assert same_bits(*results)


def test_other_instructions_give_other_results(kernels):
    """A difference that is made a sum is found out, and so is a minimum that is made a maximum; but for those that ask
    whether boxes are corners as they stand, because what is not is made so."""
    case = CASES[0]
    kernel = kernels[case.kernel]
    is_executed = launched(case, kernel, 1)[0].executed > 0
    changed = {}
    for place, each in enumerate(kernel.code):
        *others, last = each.operands or (None,)
        if is_executed[place] and each.name == "FADD" and last.negative and others[1].kind == "R":
            changed[place] = each._replace(operands=(*others, last._replace(negative=False)))
        elif is_executed[place] and each.name == "FMNMX":
            changed[place] = each._replace(operands=(*others, last._replace(inverted=not last.inverted)))
    tried, found = list(changed)[::2], 0
    for place in tried:
        code = [*kernel.code[:place], changed[place], *kernel.code[place + 1 :]]
        try:
            launched(case, kernel._replace(code=code), 1)
        except AssertionError:
            found += 1
    assert len(tried) >= 15 and found >= 0.75 * len(tried), f"{found} of {len(tried)}"


def test_structs_have_the_size_that_the_kernel_says(kernels):
    kernel = kernels["scale_kernel<float>"]
    with pytest.raises(AssertionError, match=r"scale_kernel<float>: \d+ bytes, not 3"):
        packed(STRUCTS, kernel._replace(parameter_bytes=3), ({},))
    with pytest.raises(AssertionError, match="Scaling has no"):
        packed(STRUCTS, kernel, ({"pears": 1},))


def listing(kernel: cubin.Kernel, times: np.ndarray) -> str:
    """The instructions that are executed, and how often for each pair."""
    found = zip(times, kernel.code, strict=True)
    return "\n".join(f"{often:8.3f}  {each.address:05x}  {each.text}" for often, each in found if often)


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the record, or shows counts beside it.")
    parser.add_argument("--print", action="store_true", help="leave the record as it is")
    parser.add_argument("--listing", action="store_true", help="likewise, and show what is executed")
    parser.add_argument("--case", default="", help="only cases with this in their name; leaves the record as it is")
    options = parser.parse_args()
    if reason := cubin.obstacle():
        raise SystemExit(reason)
    before = recorded() if RECORD.exists() else {}
    cases, rows_found = [case for case in CASES if options.case in case.name], []
    with tempfile.TemporaryDirectory() as folder:
        found = read(cases, lambda source: cubin.compiled(source, Path(folder), cubin.flags_of(source)))
    for case in cases:
        times = executed(case, found[case.kernel])
        row = row_of(case, counted(found[case.kernel].code, times))
        rows_found.append(row)
        beside = (f"{name} {row[name]} ({before.get(case.name, {}).get(name, '-')})" for name in Count._fields)
        print(f"{case.name}: {', '.join(beside)}", flush=True)
        if options.listing:
            print(listing(found[case.kernel], times))
    if not (options.print or options.listing or options.case):
        with RECORD.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows_found[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows_found)
        print(f"written: {RECORD}")


if __name__ == "__main__":
    main()
