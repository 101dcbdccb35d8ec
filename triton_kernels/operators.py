"""The operators, over tensors: views, allocations, launches. Arguments stand as in the schemas, are checked already,
and mean what they mean in C++. Nothing here waits for a device."""

import concurrent.futures
import functools
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from icr_kernels.arguments import compute_dtype
from icr_kernels.operators import WANTED_ANCHOR_OBJECTS, WANTED_PRED, WANTED_TARGET
from icr_kernels.variants import BOX_FORMATS, REDUCTION_IDS

from .iou_losses import LOSSES
from .kernels import loss_kernel, scaled_kernel, table_kernel, terms_kernel
from .penalties import PENALTIES

# Pairs that a program takes at a time: one a thread, so that a row is one access of its own.
BLOCK, WARPS = 128, 4
# Programs of a reduction at most, a multiprocessor: as many as are resident at once.
PROGRAMS_PER_PROCESSOR = 8
# Rows of a table that a program adds up.
TABLE_BLOCK = 8
# The interpreter takes as long for an operation whatever its size.
INTERPRETED_BLOCK, INTERPRETED_PROGRAMS, INTERPRETED_TABLE_BLOCK = 2048, 8, 64

# In bytes. Triton makes use of no alignment but this one.
ALIGNMENT = 16

DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64}


class Rows(NamedTuple):
    """Rows of four coordinates as kernels take them. Without strides they lie one after the other, and aligned."""

    data: Tensor | None = None
    row_stride: int | None = None
    column_stride: int | None = None


class Column(NamedTuple):
    """One value a pair."""

    data: Tensor | None = None
    stride: int | None = None


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


def anchor_objects_of(anchor_objects: Tensor | None, index: Tensor | None) -> tuple:
    """Rows, the index that chooses one for each pair, and how many there are."""
    return *rows_of(anchor_objects), *column_of(index), None if index is None else len(anchor_objects)


def penalty_of(penalty: int, anchor_objects: Tensor | None):
    return None if anchor_objects is None or penalty < 0 else PENALTIES[penalty]


def variable_count(wanted: int) -> int:
    """Four for each box up to the last that a gradient is wanted for."""
    return 12 if wanted & WANTED_ANCHOR_OBJECTS else 8 if wanted & WANTED_TARGET else 4 if wanted & WANTED_PRED else 0


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


def loss(
    pred,
    target,
    anchor_objects,
    anchor_index,
    weight,
    mask,
    normalizer,
    scale,
    reduction,
    loss,
    penalty,
    penalty_weight,
    relative,
    eps,
    box_format,
    wanted,
    in_box_dtype,
):
    """The loss, a factor that its gradients still lack (no elements: none), and the gradients that are wanted."""
    dtype = compute_dtype(pred, target, anchor_objects)
    empty = functools.partial(torch.empty, dtype=dtype, device=pred.device)
    pairs, block = pred.numel() // 4, block_for(pred)
    pending = None
    if reduction != REDUCTION_IDS["mean"]:
        normalizer = None
    elif normalizer is None and mask is None:
        scale /= max(pairs, 1)
    elif normalizer is None:
        pending = empty(())

    def gradient(boxes: Tensor | None, bit: int) -> Tensor | None:
        if boxes is None or not wanted & bit:
            return None
        return empty(pred.shape, dtype=boxes.dtype if in_box_dtype else dtype)

    gradients = (
        gradient(pred, WANTED_PRED),
        gradient(target, WANTED_TARGET),
        gradient(anchor_objects, WANTED_ANCHOR_OBJECTS),
    )
    with torch.cuda.device_of(pred):
        programs, ticket = programs_for(pairs, block), None
        if reduction == REDUCTION_IDS["none"]:
            value = empty(pred.shape[:-1])
        else:
            programs = min(max(programs, 1), most_programs(pred.device))
            if programs == 1:
                value = empty(())
            else:
                # The value and, aligned to 8 bytes, two sums in double precision a program. It is no view of its first
                # element: to that autograd would let no caller add in place.
                value = empty(2 + 4 * programs).resize_(())
                ticket = ticket_on(pred.device)
        launch(
            loss_kernel,
            programs,
            *rows_of(pred),
            *rows_of(target),
            *anchor_objects_of(anchor_objects, anchor_index),
            *column_of(weight),
            *column_of(mask),
            normalizer,
            value,
            pending,
            ticket,
            *gradients,
            pairs,
            float(scale),
            float(penalty_weight),
            float(eps),
            LOSS=LOSSES[loss],
            PENALTY=penalty_of(penalty, anchor_objects),
            RELATIVE=bool(relative),
            FORMAT=BOX_FORMATS[box_format],
            COUNT=variable_count(wanted),
            REDUCED=reduction != REDUCTION_IDS["none"],
            DTYPE=DTYPES[dtype],
            BLOCK=block,
        )
    return value, *(empty(0) if each is None else each for each in (pending, *gradients))


def scaled(gradient, factor, pending, dtype, anchor_objects, anchor_index):
    """Gradient rows times an upstream factor (None: 1) and the one they lack, rounded to a dtype; given the index of a
    table, the gradient of that table."""
    shape = gradient.shape if anchor_index is None else anchor_objects.shape
    out = torch.empty(shape, dtype=dtype, device=gradient.device)
    pairs, block = gradient.numel() // 4, block_for(gradient)
    arguments = *rows_of(gradient), *column_of(factor), pending
    constants = {"DTYPE": DTYPES[gradient.dtype], "BLOCK": block}
    with torch.cuda.device_of(gradient):
        if anchor_index is None:
            launch(scaled_kernel, programs_for(pairs, block), *arguments, out, pairs, **constants)
        else:
            table_block = TABLE_BLOCK if gradient.is_cuda else INTERPRETED_TABLE_BLOCK
            launch(
                table_kernel,
                programs_for(len(out), table_block),
                *arguments,
                *column_of(anchor_index),
                out,
                pairs,
                len(out),
                TABLE_BLOCK=table_block,
                **constants,
            )
    return out


def terms(pred, target, anchor_objects, anchor_index, mask, loss, penalty, penalty_weight, relative, eps, box_format):
    """All terms of every pair."""
    dtype = compute_dtype(pred, target, anchor_objects)
    results = tuple(torch.empty(pred.shape[:-1], dtype=dtype, device=pred.device) for _ in range(4))
    formula = loss, penalty, penalty_weight, relative, eps, box_format
    _launch_terms(pred, target, anchor_objects, anchor_index, mask, formula, 0, results, (None,) * 4, (None,) * 3)
    return results


def terms_backward(
    grad_loss,
    grad_iou,
    grad_containment,
    grad_penalty,
    pred,
    target,
    anchor_objects,
    anchor_index,
    mask,
    loss,
    penalty,
    penalty_weight,
    relative,
    eps,
    box_format,
    wanted,
):
    """The gradients of the terms, computed anew, each in the dtype of its boxes."""
    dtype = compute_dtype(pred, target, anchor_objects)
    empty = functools.partial(torch.empty, dtype=dtype, device=pred.device)
    scattered = anchor_index is not None and wanted & WANTED_ANCHOR_OBJECTS

    def gradient(boxes: Tensor | None, bit: int) -> Tensor | None:
        if boxes is None or not wanted & bit:
            return None
        return empty(pred.shape, dtype=dtype if scattered and bit == WANTED_ANCHOR_OBJECTS else boxes.dtype)

    gradients = [
        gradient(pred, WANTED_PRED),
        gradient(target, WANTED_TARGET),
        gradient(anchor_objects, WANTED_ANCHOR_OBJECTS),
    ]
    formula = loss, penalty, penalty_weight, relative, eps, box_format
    upstream = grad_loss, grad_iou, grad_containment, grad_penalty
    _launch_terms(pred, target, anchor_objects, anchor_index, mask, formula, wanted, (None,) * 4, upstream, gradients)
    if scattered:
        gradients[2] = scaled(gradients[2], None, None, anchor_objects.dtype, anchor_objects, anchor_index)
    return tuple(empty(0) if each is None else each for each in gradients)


def _launch_terms(
    pred, target, anchor_objects, anchor_index, mask, formula, wanted, results, upstream, gradients
) -> None:
    loss, penalty, penalty_weight, relative, eps, box_format = formula
    pairs, block = pred.numel() // 4, block_for(pred)
    with torch.cuda.device_of(pred):
        launch(
            terms_kernel,
            programs_for(pairs, block),
            *rows_of(pred),
            *rows_of(target),
            *anchor_objects_of(anchor_objects, anchor_index),
            *column_of(mask),
            *results,
            *(part for values in upstream for part in column_of(values)),
            *gradients,
            pairs,
            float(penalty_weight),
            float(eps),
            LOSS=LOSSES[loss],
            PENALTY=penalty_of(penalty, anchor_objects),
            RELATIVE=bool(relative),
            FORMAT=BOX_FORMATS[box_format],
            COUNT=variable_count(wanted),
            DTYPE=DTYPES[compute_dtype(pred, target, anchor_objects)],
            BLOCK=block,
        )
