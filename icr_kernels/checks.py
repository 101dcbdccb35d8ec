"""Every check of an argument, once, for all backends and before any launch.

A message names the argument, says what was expected and what came. These checks read shapes, dtypes and devices only;
checks of values would make a GPU wait and are opt-in: ICR_KERNELS_CHECK_VALUES=1.
"""

import os
from typing import NamedTuple

import torch
from torch import Tensor

from .variants import BOX_FORMATS, LOSS_NAMES, NO_PENALTY, PENALTY_NAMES, REDUCTIONS

CHECK_VALUES = os.environ.get("ICR_KERNELS_CHECK_VALUES", "0") not in ("", "0")

FLOAT_TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INDEX_TYPES = (torch.int64, torch.int32)


class Pairs(NamedTuple):
    """The tensors of one call, checked."""

    pred: Tensor
    target: Tensor
    anchors: Tensor | None
    anchor_index: Tensor | None
    weight: Tensor | None
    mask: Tensor | None


class Formula(NamedTuple):
    """What is computed for each pair, checked."""

    loss: str
    penalty: str
    penalty_weight: float
    relative: bool
    eps: float
    box_format: str


def compute_dtype(*boxes: Tensor | None) -> torch.dtype:
    """What the arithmetic runs in, and the dtype of losses: float32, or float64 if any box is float64."""
    double = any(rows is not None and rows.dtype == torch.float64 for rows in boxes)
    return torch.float64 if double else torch.float32


def pairs(
    pred: Tensor,
    target: Tensor,
    anchors: Tensor | None,
    anchor_index: Tensor | None,
    weight: Tensor | None,
    mask: Tensor | None,
) -> Pairs:
    """Shapes, dtypes and devices of everything that comes in pairs."""
    _boxes("pred", pred)
    shape, device = pred.shape, pred.device
    _boxes("target", target)
    if target.shape != shape:
        raise ValueError(f"target: expected the shape of pred, {tuple(shape)}, got {tuple(target.shape)}")
    _device("target", target, device)
    if anchors is None:
        if anchor_index is not None:
            raise ValueError("anchor_index: expected None, because anchors is None, got a tensor")
    else:
        _boxes("anchors", anchors)
        _device("anchors", anchors, device)
        if anchor_index is None:
            if anchors.shape != shape:
                raise ValueError(
                    f"anchors: expected the shape of pred, {tuple(shape)}, or a table (M, 4) with anchor_index, "
                    f"got {tuple(anchors.shape)}"
                )
        else:
            if anchors.dim() != 2:
                raise ValueError(f"anchors: expected a table (M, 4) with anchor_index, got {tuple(anchors.shape)}")
            _tensor("anchor_index", anchor_index, INDEX_TYPES)
            _per_pair("anchor_index", anchor_index, shape, device)
    if weight is not None:
        _tensor("weight", weight, FLOAT_TYPES)
        _per_pair("weight", weight, shape, device)
        _no_gradient("weight", weight)
    if mask is not None:
        _tensor("mask", mask, (torch.bool,))
        _per_pair("mask", mask, shape, device)
    if CHECK_VALUES:
        _values(pred, target, anchors, anchor_index, mask)
    return Pairs(pred, target, anchors, anchor_index, weight, mask)


def formula(
    loss: str, penalty: str, penalty_weight: float, relative: bool, eps: float, box_format: str, anchors: Tensor | None
) -> Formula:
    """The names and numbers that choose what is computed. Without anchors there is no penalty."""
    _name("loss", loss, LOSS_NAMES)
    _name("penalty", penalty, PENALTY_NAMES)
    _name("box_format", box_format, BOX_FORMATS)
    if not eps >= 1e-30:
        raise ValueError(f"eps: expected a number of at least 1e-30, got {eps!r}")
    return Formula(loss, NO_PENALTY if anchors is None else penalty, penalty_weight, relative, eps, box_format)


def names(
    *, reduction: str, loss: str, eps: float, box_format: str, penalty: str = PENALTY_NAMES[0], **_: object
) -> None:
    """The names that a module holds, checked when it is made."""
    _name("reduction", reduction, REDUCTIONS)
    formula(loss, penalty, 1.0, False, eps, box_format, None)


def reduction(reduction: str, normalizer: float | Tensor | None, pred: Tensor) -> None:
    _name("reduction", reduction, REDUCTIONS)
    if normalizer is None:
        return
    if reduction != "mean":
        raise ValueError(f"normalizer: expected None with reduction={reduction!r}, got {normalizer!r}")
    if isinstance(normalizer, Tensor):
        if normalizer.dim() != 0:
            raise ValueError(f"normalizer: expected a number or a 0-dim tensor, got shape {tuple(normalizer.shape)}")
        _tensor("normalizer", normalizer, FLOAT_TYPES + INDEX_TYPES)
        _device("normalizer", normalizer, pred.device)
        _no_gradient("normalizer", normalizer)
    elif isinstance(normalizer, bool) or not isinstance(normalizer, (int, float)):
        raise TypeError(f"normalizer: expected a number or a 0-dim tensor, got {type(normalizer).__name__}")


def _name(argument: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"{argument}: expected one of {', '.join(known)}, got {name!r}")


def _tensor(argument: str, value: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{argument}: expected a tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{argument}: expected dtype {expected}, got {str(value.dtype).removeprefix('torch.')}")


def _boxes(argument: str, boxes: Tensor) -> None:
    _tensor(argument, boxes, FLOAT_TYPES)
    if boxes.dim() == 0 or boxes.shape[-1] != 4:
        raise ValueError(f"{argument}: expected boxes of shape (..., 4), got {tuple(boxes.shape)}")


def _device(argument: str, value: Tensor, device: torch.device) -> None:
    if value.device != device:
        raise ValueError(f"{argument}: expected a tensor on {device}, where pred is, got one on {value.device}")


def _per_pair(argument: str, value: Tensor, shape: torch.Size, device: torch.device) -> None:
    if value.shape != shape[:-1]:
        raise ValueError(f"{argument}: expected one value per pair, {tuple(shape[:-1])}, got {tuple(value.shape)}")
    _device(argument, value, device)


def _no_gradient(argument: str, value: Tensor) -> None:
    if value.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{argument}: expected a tensor that does not require grad (no gradient flows to it), got one that does; "
            f"pass {argument}.detach()"
        )


def _values(
    pred: Tensor, target: Tensor, anchors: Tensor | None, anchor_index: Tensor | None, mask: Tensor | None
) -> None:
    """Opt-in: finite boxes in unmasked pairs, and an index of -1 or in the table."""
    rows = (("pred", pred), ("target", target), ("anchors", anchors))
    for argument, boxes in rows:
        if boxes is None:
            continue
        finite = boxes.isfinite().all(-1)
        if mask is not None and finite.shape == mask.shape:
            finite = finite | ~mask
        if not finite.all():
            raise ValueError(f"{argument}: expected finite boxes, got {int((~finite).sum())} that are not")
    if anchors is not None and anchor_index is not None:
        outside = (anchor_index < -1) | (anchor_index >= anchors.shape[0])
        if outside.any():
            value = int(anchor_index[outside].flatten()[0])
            raise ValueError(f"anchor_index: expected -1 or a row of the {anchors.shape[0]} anchors, got {value}")
