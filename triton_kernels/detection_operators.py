"""The operators of a dense head: views, allocations, launches, as in `operators`."""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from icr_kernels.calls import BOX_LOGITS, CLASS_LOGITS, DecodingCall, DetectionCall, compute_dtype
from icr_kernels.dense_reference import DetectionTerms
from icr_kernels.operators import like_a_head

from .detection import (
    Assigned,
    Grid,
    Sums,
    Truth,
    boxes_kernel,
    classes_kernel,
    decoded_backward_kernel,
    decoded_kernel,
    divided_kernel,
)
from .kernels import Rows
from .operators import DTYPES, column_of, formula_of, launch, programs_for, rows_of
from .pairwise import Columns, Set


class Blocks(NamedTuple):
    """How much a program does at a time."""

    # Points at most, and bins of all their sides.
    points: int = 128
    bins: int = 2048
    # Points and classes, where points lie side by side in memory and where classes do.
    by_points: tuple[int, int] = (128, 8)
    by_classes: tuple[int, int] = (64, 16)


BLOCKS = {torch.float32: Blocks(), torch.float64: Blocks(64, 1024, (128, 4), (32, 16))}
# Sums of programs that are added up at a time.
SUMMED = 1024
# The interpreter takes as long for an operation whatever its size.
INTERPRETED_BLOCKS = dict.fromkeys(BLOCKS, Blocks(2048, 1 << 20, (2048, 128), (2048, 128)))


def blocks_for(tensor: Tensor, dtype: torch.dtype) -> Blocks:
    return (BLOCKS if tensor.is_cuda else INTERPRETED_BLOCKS)[dtype]


def head_of(logits: Tensor | None) -> Set:
    if logits is None:
        return Set(None)
    of_image, of_point, of_channel = logits.stride()
    return Set(logits, of_image, None if of_point == 1 else of_point, of_channel)


def grid_of(call: DecodingCall | DetectionCall) -> Grid:
    return Grid(Rows(call.points, *call.points.stride()), column_of(call.strides))


def side_blocks(logits: Tensor, dtype: torch.dtype) -> tuple[int, dict[str, Any]]:
    """How many blocks of points, sides and bins there are, and what of them is compiled in."""
    (images, points, channels), blocks = logits.shape, blocks_for(logits, dtype)
    bins = channels // 4
    width = triton.next_power_of_2(bins)
    block = min(blocks.points, max(blocks.bins // (4 * width), 1))
    constants = {"BINS": bins, "WIDTH": width, "DTYPE": DTYPES[dtype], "POINTS": block}
    return images * programs_for(points, block), constants


def class_blocks(logits: Tensor, dtype: torch.dtype) -> tuple[int, dict[str, Any]]:
    """The same of points and classes."""
    (images, points, _), blocks = logits.shape, blocks_for(logits, dtype)
    block, classes = blocks.by_points if logits.stride(1) < logits.stride(2) else blocks.by_classes
    return images * programs_for(points, block), {"DTYPE": DTYPES[dtype], "POINTS": block, "CLASSES": classes}


def decoded(*arguments):
    call = DecodingCall(*arguments)
    logits, dtype = call.box_logits, compute_dtype(call.box_logits)
    out = torch.empty((*logits.shape[:2], 4), dtype=dtype, device=logits.device)
    blocks, constants = side_blocks(logits, dtype)
    with torch.cuda.device_of(logits):
        launch(decoded_kernel, blocks, head_of(logits), grid_of(call), logits.shape[1], out, **constants)
    return out


def decoded_backward(gradient, *arguments):
    call = DecodingCall(*arguments[:-1])
    logits, out = call.box_logits, like_a_head(call.box_logits)
    blocks, constants = side_blocks(logits, compute_dtype(logits))
    tensors = Set(gradient, *gradient.stride()), head_of(logits), grid_of(call), logits.shape[1], head_of(out)
    with torch.cuda.device_of(logits):
        launch(decoded_backward_kernel, blocks, *tensors, **constants)
    return out


def detection_loss(*arguments):
    call = DetectionCall(*arguments)
    device, dtype = call.box_logits.device, compute_dtype(call.box_logits, call.class_logits, call.truth)
    *terms, divisors = (torch.empty(shape, dtype=dtype, device=device) for shape in ((), (), (), (), 2))
    of_boxes, of_classes = side_blocks(call.box_logits, dtype)[0], class_blocks(call.class_logits, dtype)[0]
    programs = 4 * programs_for(max(of_boxes, of_classes), 4)  # what each leaves is aligned, whatever their number
    sums = Sums(*torch.empty((len(Sums._fields), programs), dtype=dtype, device=device).unbind())
    box_gain, class_gain, distribution_gain, number, is_uniform, _, _, *formula = call.numbers
    _, (_, eps, *_) = formula_of(formula, call.anchor_index)
    with torch.cuda.device_of(call.box_logits):
        _launch(call, sums, DetectionTerms(None, None, None, None), None, None)
        launch(
            divided_kernel,
            1,
            sums,
            of_boxes,
            of_classes,
            call.normalizer,
            DetectionTerms(*terms),
            divisors,
            eps,
            box_gain,
            class_gain,
            distribution_gain,
            number,
            UNIFORM=bool(is_uniform),
            BLOCK=SUMMED,
        )
    return *terms, divisors


def detection_loss_backward(*arguments):
    upstream, call, wanted = DetectionTerms(*arguments[:4]), DetectionCall(*arguments[4:-1]), arguments[-1]
    boxes = like_a_head(call.box_logits) if wanted & BOX_LOGITS else None
    classes = like_a_head(call.class_logits) if wanted & CLASS_LOGITS else None
    with torch.cuda.device_of(call.box_logits):
        _launch(call, None, upstream, boxes, classes)
    return (
        call.box_logits.new_empty(0) if boxes is None else boxes,
        call.class_logits.new_empty(0) if classes is None else classes,
    )


def _launch(
    call: DetectionCall, sums: Sums | None, upstream: DetectionTerms, boxes: Tensor | None, classes: Tensor | None
) -> None:
    """The kernels of boxes and of classes: their sums, or else the gradients that are wanted."""
    dtype = compute_dtype(call.box_logits, call.class_logits, call.truth)
    points, rows, divisors = call.box_logits.shape[1], len(call.truth), None if sums is not None else call.normalizer
    truth = Truth(rows_of(call.truth), column_of(call.labels), column_of(call.anchor_index))
    assigned = Assigned(Columns(call.index, *call.index.stride()), Columns(call.score, *call.score.stride()))
    box_gain, class_gain, distribution_gain, _, is_uniform, height, width, *packed = call.numbers
    formula, numbers = formula_of(packed, call.anchor_index)
    if sums is not None or boxes is not None:
        blocks, constants = side_blocks(call.box_logits, dtype)
        launch(
            boxes_kernel,
            blocks,
            head_of(call.box_logits),
            grid_of(call),
            points,
            truth,
            rows,
            assigned,
            call.wise_mean,
            sums,
            upstream,
            divisors,
            head_of(boxes),
            *numbers,
            box_gain,
            distribution_gain,
            height,
            width,
            **formula,
            UNIFORM=bool(is_uniform),
            **constants,
        )
    if sums is not None or classes is not None:
        blocks, constants = class_blocks(call.class_logits, dtype)
        launch(
            classes_kernel,
            blocks,
            head_of(call.class_logits),
            points,
            call.class_logits.shape[2],
            truth.labels,
            rows,
            assigned,
            column_of(call.class_weight),
            None if sums is None else sums.classification,
            upstream.classification,
            divisors,
            head_of(classes),
            class_gain,
            **constants,
        )
