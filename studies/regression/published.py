"""The gradients of the published simulation of the DIoU paper, where they are not the derivatives of its formulas.

The program that came with the paper (MATLAB, github.com/Zzh-tju/DIoU, folder "simulation experiment") writes each
derivative by hand. Four facts of it are restated here, none of its code:

1. IoU and GIoU move the sides at twice their derivative.
2. GIoU does not clamp the overlap of disjoint boxes: the product of two signed lengths stands for the intersection.
3. In the distance term of DIoU and CIoU the derivative of the squared diagonal cw^2 + ch^2 is that of (cw + ch)^2; it
   enters the centre with the opposite sign, and so does a side's own share where the box covers the target's side.
4. The aspect term of CIoU leaves out 1/(w^2 + h^2); this one the paper says itself.

With them the paper's curves come back, which is the evidence for why the formulas' own gradients order differently.
"""

import math

import torch
from torch import Tensor

from icr_kernels import formulas
from icr_kernels.formulas import Box

from .protocol import BOX_FORMAT, Gradient

EPS = 1e-7
LOSSES = ("iou", "giou", "diou", "ciou")


def gradient(loss: str) -> Gradient:
    """The published gradient of one of `LOSSES`."""
    value = {"iou": _iou, "giou": _giou, "diou": _diou, "ciou": _ciou}[loss]

    def weighted(boxes: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        leaf = boxes.detach().requires_grad_()
        total = (weight * value(leaf, formulas.corners(target, BOX_FORMAT))).sum()
        return torch.autograd.grad(total, leaf)[0]

    return weighted


def _with_speeds(boxes: Tensor, center: float, sides: float) -> Box:
    """The boxes, whose derivative in the centre and in the sides is multiplied by these."""
    speed = boxes.new_tensor((center, center, sides, sides))
    return formulas.corners(boxes.detach() + speed * (boxes - boxes.detach()), BOX_FORMAT)


def _iou(boxes: Tensor, g: Box) -> Tensor:
    return formulas.iou(_with_speeds(boxes, 1, 2), g, EPS)


def _giou(boxes: Tensor, g: Box) -> Tensor:
    p = _with_speeds(boxes, 1, 2)
    overlap_x = torch.minimum(p.x2, g.x2) - torch.maximum(p.x1, g.x1)
    overlap_y = torch.minimum(p.y2, g.y2) - torch.maximum(p.y1, g.y1)
    union = formulas.area(p) + formulas.area(g) - overlap_x * overlap_y
    return formulas.iou(p, g, EPS) + 1 - union / formulas.area(formulas.enclosing(p, g))


def _diou(boxes: Tensor, g: Box) -> Tensor:
    p = formulas.corners(boxes, BOX_FORMAT)
    (px, py), (gx, gy) = formulas.center(p), formulas.center(g)
    c = formulas.enclosing(_with_speeds(boxes, -1, 1), g)
    cw, ch = formulas.width(c), formulas.height(c)
    covers_x, covers_y = (p.x1 < g.x1) & (p.x2 > g.x2), (p.y1 < g.y1) & (p.y2 > g.y2)
    moving = (cw + ch) ** 2 - 2 * torch.where(covers_x, cw, 0) ** 2 - 2 * torch.where(covers_y, ch, 0) ** 2
    # The squared diagonal, with the derivative of `moving`.
    c2 = (cw**2 + ch**2).detach() + moving - moving.detach()
    return _iou(boxes, g) + ((px - gx) ** 2 + (py - gy) ** 2) / c2


def _ciou(boxes: Tensor, g: Box) -> Tensor:
    p = formulas.corners(boxes, BOX_FORMAT)
    v = (2 / math.pi * (formulas.angle(g, EPS) - formulas.angle(p, EPS))) ** 2
    alpha = v / (formulas.iou(p, g, EPS) + v + EPS)
    removed = formulas.width(p) ** 2 + formulas.height(p) ** 2
    return _diou(boxes, g) + (alpha * removed).detach() * v
