"""Shapes and strides of whatever is given: every layout has the values and gradients of the packed one."""

import pytest
import torch
from torch import Tensor

from inputs import (
    as_table,
    device_of,
    dtype_id,
    every_backend,
    every_dtype,
    full_precision,
    pairs,
    pairs_of_a_table,
)
from oracle import BOXES
from tolerances import assert_matches_reference, same_bits


@every_backend
@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (5, 1, 7), (0, 3), (3, 0), (2, 2, 2, 2)], ids=str)
def test_leading_shapes(leading, backend):
    n = torch.Size(leading).numel()
    flat = pairs(n, dtype=torch.float64, device=device_of(backend))
    boxes = [rows.reshape(*leading, 4) for rows in flat]
    mask = (torch.arange(n, device=flat[0].device) % 4 != 1).reshape(leading)
    weight = torch.linspace(0.5, 2, n, device=flat[0].device).reshape(leading)
    for reduction in ("none", "sum", "mean"):
        assert_matches_reference(*boxes, mask=mask, weight=weight, reduction=reduction, backend=backend)


@every_backend
def test_leading_shape_with_a_table(backend):
    pred, target, table, index = pairs_of_a_table(24, 5, dtype=torch.float64, device=device_of(backend))
    targets, target_index = as_table(target)
    pred, target, index = pred.view(2, 3, 4, 4), target.view(2, 3, 4, 4), index.view(2, 3, 4)
    options = {"anchor_index": index, "reduction": "none", "backend": backend}
    assert_matches_reference(pred, target, table, **options)
    assert_matches_reference(pred, targets, table, target_index=target_index.view(2, 3, 4), **options)


def _columns_of_a_wider_row(rows: Tensor) -> Tensor:
    wide = torch.full((len(rows), 7), -1e3, dtype=rows.dtype, device=rows.device)
    wide[:, 1:5] = rows
    return wide[:, 1:5]


def _transposed(rows: Tensor) -> Tensor:
    return rows.t().contiguous().t()


def _every_other_column(rows: Tensor) -> Tensor:
    return rows.repeat_interleave(2, dim=1)[:, ::2]


def _every_third_row(rows: Tensor) -> Tensor:
    return rows.repeat_interleave(3, dim=0)[::3]


def _narrowed(rows: Tensor) -> Tensor:
    padding = rows.new_full((5, 4), -1e3)
    return torch.cat((padding, rows, padding)).narrow(0, 5, len(rows))


def _expanded(rows: Tensor) -> Tensor:
    return rows[:1].expand(len(rows), 4)


def _rows_between_batches(rows: Tensor) -> Tensor:
    return torch.stack((rows, rows - 1e3), dim=1)[:, 0]


LAYOUTS = (
    _columns_of_a_wider_row,
    _transposed,
    _every_other_column,
    _every_third_row,
    _narrowed,
    _expanded,
    _rows_between_batches,
)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=dtype_id)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__.removeprefix("_"))
@pytest.mark.parametrize("argument", [*BOXES, "all"])
def test_strides(argument, layout, dtype, backend):
    boxes = dict(zip(BOXES, pairs(67, dtype=dtype, device=device_of(backend)), strict=True))
    for name in BOXES if argument == "all" else (argument,):
        boxes[name] = layout(boxes[name])
    for reduction in ("none", "mean"):
        assert_matches_reference(*boxes.values(), reduction=reduction, penalty="containment+pull", backend=backend)


@every_backend
def test_strides_of_weight_mask_index_and_table(backend):
    pred, target, table, index = pairs_of_a_table(67, 9, dtype=torch.float64, device=device_of(backend))
    n = len(pred)
    row = torch.arange(n, device=pred.device)
    weight = torch.linspace(0.5, 2, 3 * n, dtype=torch.float64, device=pred.device)[1::3]
    mask = torch.stack((row % 3 != 0, row % 3 == 0), 1)[:, 0]
    index = torch.stack((index, index + 1000), 1)[:, 0]
    options = {"anchor_index": index, "weight": weight, "mask": mask, "backend": backend}
    assert not (weight.is_contiguous() or mask.is_contiguous() or index.is_contiguous())
    for rows in (table, _transposed(table), _columns_of_a_wider_row(table)):
        for reduction in ("none", "mean"):
            assert_matches_reference(pred, target, rows, reduction=reduction, **options)
    one = {"weight": weight[:1].expand(n), "mask": mask[1:2].expand(n), "anchor_index": index[:1].expand(n)}
    for reduction in ("none", "mean"):
        assert_matches_reference(pred, target, table, reduction=reduction, backend=backend, **one)


def _part_of_each_batch(x: Tensor) -> Tensor:
    return torch.cat((x[:, :2], x, x[:, :3]), 1)[:, 2:-3]


def _batches_last(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def _one_batch_for_all(x: Tensor) -> Tensor:
    return x[:1].expand_as(x)


def _one_row_for_each_batch(x: Tensor) -> Tensor:
    return x[:, :1].expand_as(x)


@every_backend
@full_precision
@pytest.mark.parametrize(
    "layout",
    [_part_of_each_batch, _batches_last, _one_batch_for_all, _one_row_for_each_batch],
    ids=lambda layout: layout.__name__.removeprefix("_"),
)
@pytest.mark.parametrize("argument", [*BOXES, "target_index", "anchor_index", "weight", "mask"])
def test_strides_of_batches(argument, layout, dtype, backend):
    """Leading dimensions whose rows lie at no common distance."""
    pred, target, table, index = pairs_of_a_table(5 * 7, 9, dtype=dtype, device=device_of(backend))
    targets, target_index = as_table(target)
    row = torch.arange(35, device=pred.device).view(5, 7)
    tensors = {
        "pred": pred.view(5, 7, 4),
        "target": target.view(5, 7, 4),
        "anchor_objects": table[index.clamp(min=0)].view(5, 7, 4),
        "target_index": target_index.view(5, 7),
        "anchor_index": index.view(5, 7),
        "weight": 0.5 + row / 10,
        "mask": row % 3 != 1,
    }
    tensors[argument] = layout(tensors[argument])
    assert not tensors[argument].is_contiguous()
    boxes, target_index, index = (
        [tensors.pop(name) for name in BOXES],
        tensors.pop("target_index"),
        tensors.pop("anchor_index"),
    )
    for reduction in ("none", "mean"):
        options = {**tensors, "reduction": reduction, "backend": backend}
        if argument == "anchor_index":
            assert_matches_reference(*boxes[:2], table, anchor_index=index, **options)
        elif argument == "target_index":
            assert_matches_reference(boxes[0], targets, boxes[2], target_index=target_index, **options)
        else:
            assert_matches_reference(*boxes, **options)


@every_backend
@every_dtype
@pytest.mark.parametrize("offset", [1, 2, 3, 5])
def test_misaligned_boxes_between_sentinels(offset, dtype, backend):
    """Rows that start anywhere in a buffer whose other values would spoil the result: read in place, never written."""
    n, views, buffers = 61, [], []
    for rows in pairs(n, dtype=dtype, device=device_of(backend)):
        buffer = rows.new_full((4 * n + 16,), float("nan"))
        buffer[offset : offset + 4 * n] = rows.flatten()
        buffers.append(buffer)
        views.append(buffer[offset : offset + 4 * n].view(n, 4))
    before = [buffer.clone() for buffer in buffers]
    for reduction in ("none", "mean"):
        assert_matches_reference(*views, penalty="containment+pull", reduction=reduction, backend=backend)
    for name, buffer, original in zip(BOXES, buffers, before, strict=True):
        assert same_bits(buffer, original), f"{name} was written to"


@every_backend
def test_misaligned_weight_mask_and_index(backend):
    device, n = device_of(backend), 61
    pred, target, table, index = pairs_of_a_table(n, 9, dtype=torch.float64, device=device)
    weight = torch.full((n + 8,), float("nan"), dtype=torch.float32, device=device)
    weight[3 : 3 + n] = torch.linspace(0.5, 2, n)
    mask = (torch.arange(n + 8, device=device) % 3 != 0)[3 : 3 + n]
    for index_dtype in (torch.int32, torch.int64):
        padded = torch.full((n + 8,), 10**9, dtype=index_dtype, device=device)
        padded[1 : 1 + n] = index
        options = {"anchor_index": padded[1 : 1 + n], "weight": weight[3 : 3 + n], "mask": mask, "reduction": "none"}
        assert_matches_reference(pred, target, table, backend=backend, **options)
