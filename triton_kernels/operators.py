"""The operators, over tensors: views, allocations, launches. Each is handed the fields of its call, which are checked
already and mean what they mean in C++. Nothing here waits for a device."""

import concurrent.futures
import functools
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from icr_kernels.calls import ANCHOR_OBJECTS, PRED, TARGET, LossCall, ScalingCall, TermsCall, compute_dtype
from icr_kernels.variants import BOX_FORMATS, MOST_PARAMETERS, REDUCTION_IDS
from icr_kernels.variants import LOSSES as VARIANTS

from .iou_losses import LOSSES
from .kernels import Column, Rows, loss_kernel, scaled_kernel, table_kernel, terms_kernel
from .pair import Boxes, Terms
from .penalties import PENALTIES

# Pairs that a program takes at a time: one per thread, so that a row is one access of its own.
BLOCK, WARPS = 128, 4
# Programs of a reduction at most, per multiprocessor: as many as are resident at once.
PROGRAMS_PER_PROCESSOR = 8
# Rows of a table that a program adds up.
TABLE_BLOCK = 8
# The interpreter takes as long for an operation whatever its size.
INTERPRETED_BLOCK, INTERPRETED_PROGRAMS, INTERPRETED_TABLE_BLOCK = 2048, 8, 64

# In bytes. Triton makes use of no alignment but this one.
ALIGNMENT = 16

DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64}

# Of each loss the powers of the boxes' unit in its parameters, the digits of a number to the base 4.
POWERS = [sum(each.power << 2 * place for place, each in enumerate(variant.parameters)) for variant in VARIANTS]
# In the place of the numbers of losses that have neither parameters nor modifiers; no kernel looks at them.
NO_NUMBERS = [0.0] * (MOST_PARAMETERS + 5)


def flat(tensor: Tensor, trailing: int) -> tuple[Tensor, int]:
    """The tensor with all but its last ``trailing`` dimensions seen as one, and the stride of that one. Copies only
    what cannot be seen so."""
    stride, covered = 0, 1
    for dimension in range(tensor.dim() - trailing - 1, -1, -1):
        size = tensor.shape[dimension]
        if size == 1:
            continue
        if covered == 1:
            stride = tensor.stride(dimension)
        elif tensor.stride(dimension) != stride * covered:
            return tensor.contiguous(), tensor.shape[tensor.dim() - trailing :].numel()
        covered *= size
    return tensor, stride


def rows_of(boxes: Tensor | None) -> Rows:
    if boxes is None:
        return Rows()
    boxes, stride = flat(boxes, 1)
    if boxes.is_contiguous() and boxes.data_ptr() % ALIGNMENT == 0:
        return Rows(boxes)
    return Rows(boxes, stride, boxes.stride(-1))


def column_of(values: Tensor | None) -> Column:
    return Column() if values is None else Column(*flat(values, 0))


def index_of(table: Tensor | None, index: Tensor | None) -> tuple[Column, int | None]:
    """The row of each pair, and the number of rows; without an index each pair has its own."""
    return column_of(index), None if table is None or index is None else len(table)


def formula_of(numbers: list[float], anchors: Tensor | None) -> tuple[dict[str, Any], list[float]]:
    """What is computed of each pair, as kernels take it: what is compiled in, and numbers, which are always as many."""
    constants = compiled_in(*numbers[:5], anchors is not None)
    return constants, numbers[5:] if len(numbers) > 8 else numbers[5:] + NO_NUMBERS


@functools.cache
def compiled_in(
    loss: float, penalty: float, box_format: float, relative: float, modifiers: float, has_anchors: bool
) -> dict[str, Any]:
    return {
        "LOSS": LOSSES[int(loss)],
        "PARAMETERS": len(VARIANTS[int(loss)].parameters),
        "MODIFIERS": int(modifiers),
        "PENALTY": PENALTIES[int(penalty)] if has_anchors and penalty >= 0 else None,
        "RELATIVE": bool(relative),
        "FORMAT": BOX_FORMATS[int(box_format)],
    }


def pixels_of(call: LossCall | TermsCall) -> tuple[Column | None, int]:
    """Those of each pair, if they matter to the loss, and how."""
    powers = POWERS[int(call.numbers[0])]
    return None if call.pixels is None or not powers else column_of(call.pixels), powers


def variable_count(wanted: int) -> int:
    """Four for each box up to the last that a gradient is wanted for."""
    return 12 if wanted & ANCHOR_OBJECTS else 8 if wanted & TARGET else 4 if wanted & PRED else 0


def block_for(tensor: Tensor) -> int:
    return BLOCK if tensor.is_cuda else INTERPRETED_BLOCK


def programs_for(items: int, block: int) -> int:
    return (items + block - 1) // block


@functools.cache
def most_programs(device: torch.device) -> int:
    """Of a reduction. The sum's order depends on it, so it must not depend on anything but the device."""
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    return PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


_tickets: dict[tuple[int, int], Tensor] = {}


def ticket_on(device: torch.device) -> Tensor:
    """A zero that the programs of a launch count up; the last one leaves a zero again. The launches of a stream follow
    each other and share one. A graph has its own, because it may be replayed on any stream."""
    stream = None
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            return torch.zeros(1, dtype=torch.int32, device=device)
        stream = torch.cuda.current_stream(device)
    key = device.index, 0 if stream is None else stream.cuda_stream
    if key not in _tickets:

        def make() -> Tensor:
            with torch.cuda.stream(stream):
                return torch.zeros(1, dtype=torch.int32, device=device)

        # This thread may be taking its memory from the pool of a graph that is being warmed up: nothing may stay there.
        with concurrent.futures.ThreadPoolExecutor(1) as other_thread:
            _tickets[key] = other_thread.submit(make).result()
    return _tickets[key]


def launch(kernel, programs: int, *arguments, **constants) -> None:
    """On the current device, which is to be that of the tensors."""
    if programs:
        # Fusion is asked for, because Triton is about to change its default: what must not be fused the kernels see to.
        kernel[(programs,)](*arguments, **constants, num_warps=WARPS, enable_fp_fusion=True)


def gradients_of(call: LossCall | TermsCall, wanted: int, *dtypes: torch.dtype | None) -> Boxes:
    """Memory for those that are wanted, one row per pair, each in a dtype (None: that of its boxes)."""
    boxes = (call.pred, PRED), (call.target, TARGET), (call.anchor_objects, ANCHOR_OBJECTS)
    return Boxes(
        *(
            torch.empty(call.pred.shape, dtype=dtype or rows.dtype, device=call.pred.device)
            if rows is not None and wanted & bit
            else None
            for (rows, bit), dtype in zip(boxes, dtypes, strict=True)
        )
    )


def loss(*arguments):
    call = LossCall(*arguments)
    pred, (constants, numbers) = call.pred, formula_of(call.numbers, call.anchor_objects)
    dtype = compute_dtype(pred, call.target, call.anchor_objects)
    empty = functools.partial(torch.empty, dtype=dtype, device=pred.device)
    pairs, block, (pixels, powers) = pred.numel() // 4, block_for(pred), pixels_of(call)
    scale, normalizer, pending = call.scale, call.normalizer, None
    if call.reduction != REDUCTION_IDS["mean"]:
        normalizer = None
    elif call.is_mean_of_unmasked:
        pending = empty(())
    elif normalizer is None:
        scale /= max(pairs, 1)
    gradients = gradients_of(call, call.wanted, *[None if call.in_box_dtype else dtype] * 3)
    with torch.cuda.device_of(pred):
        programs, ticket = programs_for(pairs, block), None
        if call.reduction == REDUCTION_IDS["none"]:
            value = empty(pred.shape[:-1])
        else:
            programs = min(max(programs, 1), most_programs(pred.device))
            if programs == 1:
                value = empty(())
            else:
                # The value and, aligned to 8 bytes, two sums in double precision per program. It is no view of its
                # first element: to that autograd would let no caller add in place.
                value = empty(2 + 4 * programs).resize_(())
                ticket = ticket_on(pred.device)
        launch(
            loss_kernel,
            programs,
            rows_of(pred),
            rows_of(call.target),
            rows_of(call.anchor_objects),
            *index_of(call.target, call.target_index),
            *index_of(call.anchor_objects, call.anchor_index),
            column_of(call.weight),
            column_of(call.mask),
            pixels,
            call.wise_mean,
            normalizer,
            value,
            pending,
            ticket,
            gradients,
            pairs,
            float(scale),
            *numbers,
            **constants,
            POWERS=powers,
            COUNT=variable_count(call.wanted),
            REDUCED=call.reduction != REDUCTION_IDS["none"],
            DTYPE=DTYPES[dtype],
            BLOCK=block,
        )
    return value, *(empty(0) if each is None else each for each in (pending, *gradients))


def scaled(*arguments):
    call = ScalingCall(*arguments)
    gradient, is_table = call.gradient, call.table_index is not None
    out = torch.empty((call.table if is_table else gradient).shape, dtype=call.dtype, device=gradient.device)
    pairs, block = gradient.numel() // 4, block_for(gradient)
    rows = rows_of(gradient), column_of(call.factor), call.pending
    constants = {"DTYPE": DTYPES[gradient.dtype], "BLOCK": block}
    with torch.cuda.device_of(gradient):
        if not is_table:
            launch(scaled_kernel, programs_for(pairs, block), *rows, out, pairs, IN_PLACE=False, **constants)
        else:
            table_block = TABLE_BLOCK if gradient.is_cuda else INTERPRETED_TABLE_BLOCK
            launch(
                table_kernel,
                programs_for(len(out), table_block),
                *rows,
                column_of(call.table_index),
                out,
                pairs,
                len(out),
                TABLE_BLOCK=table_block,
                **constants,
            )
    return out


def scaled_(gradient: Tensor, factor: Tensor | None, pending: Tensor | None) -> None:
    pairs, block = gradient.numel() // 4, block_for(gradient)
    rows = rows_of(gradient), column_of(factor), pending
    constants = {"IN_PLACE": True, "DTYPE": DTYPES[gradient.dtype], "BLOCK": block}
    with torch.cuda.device_of(gradient):
        launch(scaled_kernel, programs_for(pairs, block), *rows, gradient, pairs, **constants)


def terms(*arguments):
    call = TermsCall(*arguments)
    dtype = compute_dtype(call.pred, call.target, call.anchor_objects)
    results = Terms(*(torch.empty(call.pred.shape[:-1], dtype=dtype, device=call.pred.device) for _ in Terms._fields))
    _launch_terms(call, 0, results, Terms(*[Column()] * 4), Boxes(None, None, None))
    return tuple(results)


def terms_backward(grad_loss, grad_iou, grad_containment, grad_penalty, *arguments):
    *arguments, wanted = arguments
    call = TermsCall(*arguments)
    dtype = compute_dtype(call.pred, call.target, call.anchor_objects)
    tables = Boxes((call.pred, None), (call.target, call.target_index), (call.anchor_objects, call.anchor_index))
    gradients = gradients_of(call, wanted, *(None if index is None else dtype for _, index in tables))
    upstream = Terms(*map(column_of, (grad_loss, grad_iou, grad_containment, grad_penalty)))
    _launch_terms(call, wanted, Terms(None, None, None, None), upstream, gradients)

    def finished(rows: Tensor | None, boxes: Tensor, index: Tensor | None) -> Tensor:
        if rows is None:
            return call.pred.new_empty(0, dtype=dtype)
        return rows if index is None else scaled(rows, None, None, boxes.dtype, boxes, index)

    return tuple(finished(rows, *of) for rows, of in zip(gradients, tables, strict=True))


def _launch_terms(call: TermsCall, wanted: int, results: Terms, upstream: Terms, gradients: Boxes) -> None:
    pred, (constants, numbers) = call.pred, formula_of(call.numbers, call.anchor_objects)
    pairs, block, (pixels, powers) = pred.numel() // 4, block_for(pred), pixels_of(call)
    with torch.cuda.device_of(pred):
        launch(
            terms_kernel,
            programs_for(pairs, block),
            rows_of(pred),
            rows_of(call.target),
            rows_of(call.anchor_objects),
            *index_of(call.target, call.target_index),
            *index_of(call.anchor_objects, call.anchor_index),
            column_of(call.mask),
            pixels,
            call.wise_mean,
            results,
            upstream,
            gradients,
            pairs,
            *numbers,
            **constants,
            POWERS=powers,
            COUNT=variable_count(wanted),
            DTYPE=DTYPES[compute_dtype(pred, call.target, call.anchor_objects)],
            BLOCK=block,
        )
