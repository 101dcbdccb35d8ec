"""The operators over all pairs of two sets of boxes: views, allocations, launches, as in `operators`."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from icr_kernels.calls import BOXES1, BOXES2, CostCall, PairwiseCall, SelectionCall, compute_dtype
from icr_kernels.variants import BOX_FORMATS

from .matching_cost import matching_kernel
from .operators import ALIGNMENT, DTYPES, column_of, flat, launch, programs_for, rows_of
from .pair_functions import PAIR_FUNCTIONS
from .pairwise import LARGEST, Columns, Set, pairwise_backward_kernel, pairwise_kernel, range_kernel, selected_kernel


class Tile(NamedTuple):
    """Of a selection: queries and candidates, and the axis that candidates lie along. Threads lie along axis 1."""

    queries: int
    candidates: int
    axis: int


class Blocks(NamedTuple):
    """How much a program does at a time. A thread has several pairs, where registers allow it, that share what it has
    loaded."""

    # Rows and columns of a matrix, from WIDE columns on and below.
    wide: tuple[int, int] = (8, 256)
    narrow: tuple[int, int] = (32, 32)
    # Of MANY_QUERIES, each thread has one; a program has SOME together; fewer have a program each, to fill the GPU.
    many: Tile = Tile(128, 4, 0)
    some: Tile = Tile(4, 128, 1)
    few: Tile = Tile(1, 256, 1)
    # Groups of candidates, or ranges of groups, that a program looks at at once.
    span: int = 128
    # Rows whose gradient a program adds up, from MANY_ROWS on and below; and the pairs that it looks at at once.
    mine: tuple[int, int] = (8, 1)
    pairs: int = 128
    # Targets and queries of a matching cost.
    cost: tuple[int, int] = (4, 128)


WIDE, MANY_QUERIES, SOME_QUERIES, MANY_ROWS = 65, 1 << 16, 1 << 11, 1 << 12
IN_DOUBLE = Blocks((2, 256), (8, 32), many=Tile(128, 2, 0), some=Tile(2, 128, 1), few=Tile(1, 128, 1), cost=(1, 128))
BLOCKS = {torch.float32: Blocks(), torch.float64: IN_DOUBLE}
# The interpreter takes as long for an operation, be it on a few pairs or on some thousands.
_SIDES = (256, 512)
INTERPRETED_BLOCKS = dict.fromkeys(
    BLOCKS, Blocks(_SIDES, _SIDES, *[Tile(*_SIDES, 1)] * 3, span=256, mine=(256, 256), pairs=1 << 17, cost=_SIDES)
)


def set_of(boxes: Tensor) -> Set:
    boxes, batch_stride = flat(boxes, 2)
    count = boxes.shape[-2]
    follow = boxes.stride(-1) == 1 and (boxes.stride(-2) == 4 or count == 1)
    if not follow or batch_stride % 4 != 0 or boxes.data_ptr() % ALIGNMENT != 0:
        return Set(boxes, batch_stride, boxes.stride(-2), boxes.stride(-1))
    return Set(boxes, None if batch_stride == 4 * count else batch_stride)


def columns_of(values: Tensor | None) -> Columns:
    if values is None:
        return Columns()
    values, batch_stride = flat(values, 1)
    return Columns(values, None if batch_stride == values.shape[-1] else batch_stride, values.stride(-1))


def blocks_for(tensor: Tensor, dtype: torch.dtype) -> Blocks:
    return (BLOCKS if tensor.is_cuda else INTERPRETED_BLOCKS)[dtype]


def tile_for(blocks: Blocks, queries: int) -> Tile:
    return blocks.many if queries >= MANY_QUERIES else blocks.some if queries >= SOME_QUERIES else blocks.few


def function_of(numbers: list[float], dtype: torch.dtype) -> tuple[list[float], dict[str, Any]]:
    """Which function of two boxes, as kernels take it: eps and parameters, their last arguments, and what is compiled
    in."""
    kind, box_format, *numbers = numbers
    function, complement, parameters = PAIR_FUNCTIONS[int(kind)]
    constants = {"FUNCTION": function, "COMPLEMENT": complement, "PARAMETERS": parameters}
    return numbers, {**constants, "FORMAT": BOX_FORMATS[int(box_format)], "DTYPE": DTYPES[dtype]}


def pairwise(*arguments):
    boxes1, boxes2, numbers = PairwiseCall(*arguments)
    dtype, batches = compute_dtype(boxes1, boxes2), boxes1.shape[:-2].numel()
    count1, count2 = boxes1.shape[-2], boxes2.shape[-2]
    blocks = blocks_for(boxes1, dtype)
    rows, columns = blocks.wide if count2 >= WIDE else blocks.narrow
    out = torch.empty((*boxes1.shape[:-1], count2), dtype=dtype, device=boxes1.device)
    numbers, constants = function_of(numbers, dtype)
    programs = batches * programs_for(count1, rows) * programs_for(count2, columns)
    sets = set_of(boxes1), count1, set_of(boxes2), count2
    with torch.cuda.device_of(boxes1):
        launch(pairwise_kernel, programs, *sets, out, *numbers, **constants, ROWS=rows, COLUMNS=columns)
    return out


def pairwise_backward(gradient, *arguments):
    *arguments, wanted = arguments
    boxes1, boxes2, numbers = PairwiseCall(*arguments)
    dtype = compute_dtype(boxes1, boxes2)
    blocks, (numbers, constants) = blocks_for(boxes1, dtype), function_of(numbers, dtype)
    gradient, of_batch = flat(gradient, 2)
    of_row, of_column = gradient.stride()[-2:]

    def of(mine: Tensor, others: Tensor, bit: int, strides: tuple[int, int], axis: int) -> Tensor:
        if not wanted & bit:
            return mine.new_empty(0)
        out = torch.empty(mine.shape, dtype=mine.dtype, device=mine.device)
        rows, batches = mine.shape[-2], mine.shape[:-2].numel()
        block = blocks.mine[batches * rows < MANY_ROWS]
        launch(
            pairwise_backward_kernel,
            batches * programs_for(rows, block),
            set_of(mine),
            rows,
            set_of(others),
            others.shape[-2],
            gradient,
            of_batch,
            *strides,
            out,
            *numbers,
            **constants,
            MINE=block,
            OTHERS=blocks.pairs // block,
            AXIS=axis,
        )
        return out

    with torch.cuda.device_of(boxes1):
        return (
            of(boxes1, boxes2, BOXES1, (of_row, of_column), 1),
            of(boxes2, boxes1, BOXES2, (of_column, of_row), 0),
        )


def selected(*arguments):
    call = SelectionCall(*arguments)
    queries, candidates, k = call.queries, call.candidates, call.k
    dtype, batches = compute_dtype(queries, candidates), queries.shape[:-2].numel()
    count1, count2 = queries.shape[-2], candidates.shape[-2]
    if count2 > LARGEST.value:
        raise RuntimeError(f"icr_kernels: a selection looks at up to {LARGEST.value} candidates, got {count2}")
    shape = queries.shape[:-1] if k == 0 else (*queries.shape[:-1], k)
    values = torch.empty(shape, dtype=dtype, device=queries.device)
    indices = torch.empty(shape, dtype=torch.int64, device=queries.device)
    numbers, constants = function_of(call.numbers, dtype)
    blocks = blocks_for(queries, dtype)
    tile = tile_for(blocks, batches * count1)
    ranges = (None, None)
    with torch.cuda.device_of(queries):
        if call.query_group is not None:
            tiles = programs_for(count2, tile.candidates)
            ranges = torch.empty((2, batches, tiles), dtype=torch.int32, device=queries.device).unbind()
            together = max(1, blocks.span // tile.candidates)
            programs = batches * programs_for(tiles, together)
            group = columns_of(call.candidate_group)
            sizes = {"CANDIDATES": tile.candidates, "TILES": together}
            launch(range_kernel, programs, group, count2, *ranges, **sizes)
        launch(
            selected_kernel,
            batches * programs_for(count1, tile.queries),
            set_of(queries),
            count1,
            set_of(candidates),
            count2,
            columns_of(call.query_group),
            columns_of(call.candidate_group),
            *ranges,
            columns_of(call.offset),
            columns_of(call.at_least),
            values,
            indices,
            k,
            *numbers,
            **constants,
            CANDIDATE_FIRST=call.candidate_first,
            LARGER=call.larger,
            QUERIES=tile.queries,
            CANDIDATES=tile.candidates,
            AXIS=tile.axis,
            KEPT=1 << max(k - 1, 0).bit_length(),
            SPAN=blocks.span,
        )
    return values, indices


def matching_cost(*arguments):
    call = CostCall(*arguments)
    box_format, *weights = call.numbers
    boxes, logits = call.boxes, call.logits
    dtype = compute_dtype(boxes, call.target_boxes, logits)
    (batches, count, _), targets = boxes.shape, len(call.target_boxes)
    target_block, query_block = blocks_for(boxes, dtype).cost
    out = torch.empty((targets, count), dtype=dtype, device=boxes.device)
    gamma = weights[4]
    with torch.cuda.device_of(boxes):
        launch(
            matching_kernel,
            programs_for(targets, target_block) * programs_for(count, query_block),
            Set(boxes, *boxes.stride()),
            batches,
            count,
            Set(logits, *logits.stride()),
            logits.shape[-1],
            columns_of(call.log_normalizer),
            rows_of(call.target_boxes),
            column_of(call.labels),
            column_of(call.image),
            targets,
            out,
            *weights,
            SQUARE=gamma == 2,
            FORMAT=BOX_FORMATS[int(box_format)],
            DTYPE=DTYPES[dtype],
            TARGETS=target_block,
            QUERIES=query_block,
        )
    return out
