"""A call with its gradients, and the same from the reference in double precision: what a backend is held against."""

from typing import NamedTuple

import torch
from torch import Tensor

from icr_kernels import reference

BOXES = ("pred", "target", "anchor_objects")


class Result(NamedTuple):
    value: Tensor
    pred: Tensor | None
    target: Tensor | None
    anchor_objects: Tensor | None


def upstream(value: Tensor) -> Tensor:
    """A gradient of the result that differs from pair to pair and is 1 for none."""
    rows = torch.linspace(0.5, 0.75, value.numel(), dtype=torch.float64)
    return rows.reshape(value.shape).to(value.device, value.dtype)


def evaluate(function, *boxes: Tensor | None, wanted: tuple[str, ...] = BOXES, **options) -> Result:
    """The value of ``function`` and the gradients of the ``wanted`` boxes; strides and storage stay as they are."""
    leaves = {name: rows if rows is None else rows.detach() for name, rows in zip(BOXES, boxes, strict=False)}
    asked = {name: rows.requires_grad_() for name, rows in leaves.items() if rows is not None and name in wanted}
    value = function(*leaves.values(), **options)
    gradients = torch.autograd.grad(value, list(asked.values()), upstream(value))
    return Result(value.detach(), **{**dict.fromkeys(BOXES), **dict(zip(asked, gradients, strict=True))})


def expected(*boxes: Tensor | None, wanted: tuple[str, ...] = BOXES, **options) -> Result:
    """`evaluate` of the reference's icr_loss in double precision on the CPU."""

    def wide(value):
        if not isinstance(value, Tensor):
            return value
        return value.detach().cpu().double() if value.is_floating_point() else value.cpu()

    options = {name: wide(value) for name, value in options.items() if name != "backend"}
    return evaluate(reference.icr_loss, *map(wide, boxes), wanted=wanted, **options)
