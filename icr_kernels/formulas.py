"""The formulas in plain PyTorch: boxes, losses, penalties and modifiers, each as in its paper.

They are the truth that every kernel is checked against: differentiable tensor operations, one tensor per coordinate.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .calls import Formula, in_boxes_unit
from .specifications import BoxLoss
from .specifications import penalty as as_penalty
from .variants import COORDINATE_LIMIT, LOSS_NAMES, PENALTY_NAMES


class Box(NamedTuple):
    """Corners with x1 <= x2 and y1 <= y2, one tensor per coordinate."""

    x1: Tensor
    y1: Tensor
    x2: Tensor
    y2: Tensor


def constant(x: Tensor) -> Tensor:
    """sg() in the formulas: the value, constant under differentiation."""
    return x.detach()


def guard(denominator: Tensor, eps: float) -> Tensor:
    """max(denominator, eps). Adding eps instead would bias small normalised boxes."""
    return torch.where(denominator <= eps, eps, denominator)


def plain_corners(boxes: Tensor, box_format: str) -> Box:
    """Split (..., 4) boxes into corners, as they are: an inverted box stays one."""
    a, b, c, d = boxes.unbind(-1)
    if box_format == "cxcywh":
        return Box(a - c / 2, b - d / 2, a + c / 2, b + d / 2)
    return Box(a, b, a + c, b + d) if box_format == "xywh" else Box(a, b, c, d)


def limited(x: Tensor) -> Tensor:
    """Beyond the limit what it is there, with a derivative of 0."""
    return torch.where(x.abs() >= COORDINATE_LIMIT, torch.sign(x.detach()) * COORDINATE_LIMIT, x)


def corners(boxes: Tensor, box_format: str) -> Box:
    """Those that formulas may count on: an inverted side becomes a side of length 0 at its first corner. A side of
    exactly 0 is not inverted: it can grow."""
    boxes = limited(boxes)
    first, second = boxes.split(2, -1)
    inverted_x, inverted_y = (second < (first if box_format == "xyxy" else 0)).unbind(-1)
    box = plain_corners(boxes, box_format)
    return Box(box.x1, box.y1, torch.where(inverted_x, box.x1, box.x2), torch.where(inverted_y, box.y1, box.y2))


def width(box: Box) -> Tensor:
    return box.x2 - box.x1


def height(box: Box) -> Tensor:
    return box.y2 - box.y1


def area(box: Box) -> Tensor:
    return width(box) * height(box)


def center(box: Box) -> tuple[Tensor, Tensor]:
    return (box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2


def center_offset(p: Box, q: Box) -> tuple[Tensor, Tensor]:
    """From the centre of q to that of p, in the precision of how near they are, however far from the origin."""
    return ((p.x1 - q.x1) + (p.x2 - q.x2)) / 2, ((p.y1 - q.y1) + (p.y2 - q.y2)) / 2


def intersection(p: Box, q: Box) -> Tensor:
    overlap_x = torch.minimum(p.x2, q.x2) - torch.maximum(p.x1, q.x1)
    overlap_y = torch.minimum(p.y2, q.y2) - torch.maximum(p.y1, q.y1)
    return torch.relu(overlap_x) * torch.relu(overlap_y)


def union(p: Box, q: Box) -> Tensor:
    return area(p) + area(q) - intersection(p, q)


def enclosing(p: Box, q: Box) -> Box:
    return Box(
        torch.minimum(p.x1, q.x1),
        torch.minimum(p.y1, q.y1),
        torch.maximum(p.x2, q.x2),
        torch.maximum(p.y2, q.y2),
    )


def angle(box: Box, eps: float) -> Tensor:
    """atan(w/h), the angle of the diagonal, with the derivative (h dw - w dh) / max(w2 + h2, eps): 0 for an empty box,
    where that of the quotient is as large as 1/eps."""
    w, h = width(box), height(box)
    turn = constant(h) * w - constant(w) * h
    # A side of -0 is a side of 0.
    return constant(torch.atan2(w, h.abs())) + (turn - constant(turn)) / guard(constant(w * w + h * h), eps)


def iou_similarity(p: Box, q: Box, eps: float) -> Tensor:
    return intersection(p, q) / guard(union(p, q), eps)


def displaced_similarity(by: Box, q: Box, eps: float) -> Tensor:
    """The IoU of q and a box whose edges lie ``by`` beyond its own. Which edge is inside is the sign of a difference:
    edges next to each other stay two."""
    zero = torch.zeros_like(by.x1)
    # Of each pair, or in a matrix the derivatives that cancel would be summed before they do.
    w, h = width(q).expand_as(zero), height(q).expand_as(zero)

    def along(first: Tensor, second: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        shared = side + torch.minimum(second, zero) - torch.maximum(first, zero)
        return torch.relu(shared), side + second - first

    (shared_w, other_w), (shared_h, other_h) = along(by.x1, by.x2, w), along(by.y1, by.y2, h)
    shared = shared_w * shared_h
    return shared / guard(w * h + other_w * other_h - shared, eps)


def containment(p: Box, a: Box, eps: float) -> Tensor:
    """|P intersected with A| / |P|: 1 exactly when P lies in A."""
    return intersection(p, a) / guard(area(p), eps)


def iou(p: Box, g: Box, eps: float) -> Tensor:
    return 1 - iou_similarity(p, g, eps)


def giou(p: Box, g: Box, eps: float) -> Tensor:
    c = area(enclosing(p, g))
    return iou(p, g, eps) + (c - union(p, g)) / guard(c, eps)


def center_term(p: Box, g: Box, eps: float) -> Tensor:
    """rho2/c2"""
    dx, dy = center_offset(p, g)
    c = enclosing(p, g)
    rho2 = dx**2 + dy**2
    c2 = width(c) ** 2 + height(c) ** 2
    return rho2 / guard(c2, eps)


def diou(p: Box, g: Box, eps: float) -> Tensor:
    return iou(p, g, eps) + center_term(p, g, eps)


def aspect_term(p: Box, g: Box, eps: float) -> Tensor:
    """alpha v"""
    v = (2 / math.pi * (angle(g, eps) - angle(p, eps))) ** 2
    alpha = v / guard(iou(p, g, eps) + v, eps)
    return constant(alpha) * v


def ciou(p: Box, g: Box, eps: float) -> Tensor:
    return diou(p, g, eps) + aspect_term(p, g, eps)


def eiou(p: Box, g: Box, eps: float) -> Tensor:
    c = enclosing(p, g)
    width_term = (width(p) - width(g)) ** 2 / guard(width(c) ** 2, eps)
    height_term = (height(p) - height(g)) ** 2 / guard(height(c) ** 2, eps)
    return diou(p, g, eps) + width_term + height_term


def side_error(a: Tensor, b: Tensor, eps: float) -> Tensor:
    """How much two sides differ, in the longer one."""
    return (a - b).abs() / guard(torch.maximum(a, b), eps)


def siou(p: Box, g: Box, eps: float) -> Tensor:
    dx, dy = center_offset(p, g)
    c = enclosing(p, g)
    # The paper's Lambda = 1 - 2 sin2(asin(dy/sigma) - pi/4) is sin(2 asin(dy/sigma)), and that is rational.
    angle_cost = 2 * (dx * dy).abs() / guard(dx**2 + dy**2, eps)
    gamma = 2 - angle_cost
    distance_cost = (1 - torch.exp(-gamma * dx**2 / guard(width(c) ** 2, eps))) + (
        1 - torch.exp(-gamma * dy**2 / guard(height(c) ** 2, eps))
    )
    omega_w, omega_h = side_error(width(p), width(g), eps), side_error(height(p), height(g), eps)
    shape_cost = (1 - torch.exp(-omega_w)) ** 4 + (1 - torch.exp(-omega_h)) ** 4
    return iou(p, g, eps) + (distance_cost + shape_cost) / 2


def power(x: Tensor, exponent: float) -> Tensor:
    """x^exponent of a number from 0 on, with the derivative 0 at 0."""
    is_zero = x <= 0
    return torch.where(is_zero, 0, torch.where(is_zero, 1, x) ** exponent)


# Beyond this an exponential of the negative is 0.
_FAR = 1e4


def bounded(x: Tensor, most: float = _FAR) -> Tensor:
    """x up to where nothing depends on it any more; its square is finite."""
    return x.clamp(-most, most)


def root(x: Tensor) -> Tensor:
    """The square root, with the derivative 0 at 0."""
    return power(x, 0.5)


def alpha_iou(p: Box, g: Box, eps: float, alpha: float) -> Tensor:
    return 1 - power(iou_similarity(p, g, eps), alpha)


def alpha_giou(p: Box, g: Box, eps: float, alpha: float) -> Tensor:
    return alpha_iou(p, g, eps, alpha) + power(giou(p, g, eps) - iou(p, g, eps), alpha)


def alpha_diou(p: Box, g: Box, eps: float, alpha: float) -> Tensor:
    return alpha_iou(p, g, eps, alpha) + power(center_term(p, g, eps), alpha)


def alpha_ciou(p: Box, g: Box, eps: float, alpha: float) -> Tensor:
    return alpha_diou(p, g, eps, alpha) + power(aspect_term(p, g, eps), alpha)


def mpdiou(p: Box, g: Box, eps: float, width: float, height: float) -> Tensor:
    first = (p.x1 - g.x1) ** 2 + (p.y1 - g.y1) ** 2
    second = (p.x2 - g.x2) ** 2 + (p.y2 - g.y2) ** 2
    return iou(p, g, eps) + bounded((first + second) / (width**2 + height**2), 1e30)


def shape(p: Box, g: Box, eps: float, exponent: float) -> Tensor:
    # 2 wg^s/(wg^s + hg^s), without powers that overflow.
    lean = bounded(exponent * torch.log(guard(width(g), eps) / guard(height(g), eps)), 40)
    along_y, along_x = 2 * torch.sigmoid(lean), 2 * torch.sigmoid(-lean)
    dx, dy = center_offset(p, g)
    c = enclosing(p, g)
    c2 = guard(width(c) ** 2 + height(c) ** 2, eps)
    distance = along_x * dx**2 / c2 + along_y * dy**2 / c2
    omega_w, omega_h = along_x * side_error(width(p), width(g), eps), along_y * side_error(height(p), height(g), eps)
    return iou(p, g, eps) + distance + ((1 - torch.exp(-omega_w)) ** 4 + (1 - torch.exp(-omega_h)) ** 4) / 2


def corner_error(p: Box, g: Box, eps: float) -> Tensor:
    """How far the edges are from the target's, in sides of it."""
    of_x = ((p.x1 - g.x1).abs() + (p.x2 - g.x2).abs()) / guard(width(g), eps)
    of_y = ((p.y1 - g.y1).abs() + (p.y2 - g.y2).abs()) / guard(height(g), eps)
    return (of_x + of_y) / 4


def piou(p: Box, g: Box, eps: float) -> Tensor:
    return iou(p, g, eps) + 1 - torch.exp(-(bounded(corner_error(p, g, eps)) ** 2))


def piou2(p: Box, g: Box, eps: float, attention: float) -> Tensor:
    q = attention * torch.exp(-bounded(corner_error(p, g, eps)))
    return 3 * q * torch.exp(-(q**2)) * piou(p, g, eps)


def wiou(p: Box, g: Box, eps: float) -> Tensor:
    dx, dy = center_offset(p, g)
    c = enclosing(p, g)
    c2 = constant(guard(width(c) ** 2 + height(c) ** 2, eps))
    return torch.exp((dx**2 + dy**2) / c2) * iou(p, g, eps)


def interp(p: Box, g: Box, eps: float, interpolation: float) -> Tensor:
    beyond_target = Box(*((1 - interpolation) * (a - b) for a, b in zip(p, g, strict=True)))
    return iou(p, g, eps) + 1 - displaced_similarity(beyond_target, g, eps)


def sd(p: Box, g: Box, eps: float, delta: float, area: float | Tensor) -> Tensor:
    size = constant(width(g) * height(g))
    b = (delta * size / area).clamp(max=delta)
    of_overlap, of_distance = 1 - delta + b, 1 + delta - b
    return of_overlap * (iou(p, g, eps) + aspect_term(p, g, eps)) + of_distance * center_term(p, g, eps)


def nwd(p: Box, g: Box, eps: float, constant: float | Tensor) -> Tensor:
    dx, dy = center_offset(p, g)
    sides = (width(p) - width(g)) ** 2 + (height(p) - height(g)) ** 2
    return 1 - torch.exp(-root(dx**2 + dy**2 + sides / 4) / constant)


def gcd(p: Box, g: Box, eps: float) -> Tensor:
    dx, dy = center_offset(p, g)

    def distance2(of: Box) -> Tensor:
        w, h = guard(width(of), eps), guard(height(of), eps)
        centers = bounded(dx / w) ** 2 + bounded(dy / h) ** 2
        return centers + (bounded((width(p) - width(g)) / w) ** 2 + bounded((height(p) - height(g)) / h) ** 2) / 4

    return 1 - torch.exp(-root((distance2(p) + distance2(g)) / 2))


# A side counts as at most so many of another one, and so does a distance: the square is finite in float32.
_MOST_SIDES = 1e9


def divergence(p: Box, q: Box, eps: float) -> Tensor:
    """KL(P || Q) of Gaussians with the centres and half the sides of both boxes."""
    dx, dy = center_offset(p, q)

    def along(distance: Tensor, side: Tensor, other: Tensor) -> Tensor:
        other, side = guard(other, eps), guard(side, eps)
        sides, offset = side / other, bounded(2 * distance / other, _MOST_SIDES)
        return offset**2 / 2 + (bounded(sides, _MOST_SIDES) ** 2 - 1) / 2 - torch.log(sides)

    return along(dx, width(p), width(q)) + along(dy, height(p), height(q))


def kld(p: Box, g: Box, eps: float, tau: float) -> Tensor:
    return 1 - 1 / (tau + torch.log(1 + divergence(p, g, eps)))


def reverse_kld(p: Box, g: Box, eps: float, tau: float) -> Tensor:
    return 1 - 1 / (tau + torch.log(1 + divergence(g, p, eps)))


def inner_similarity(p: Box, g: Box, eps: float, ratio: float) -> Tensor:
    """The IoU of both boxes with sides ``ratio`` times as long about their centres. With that length as the unit the
    sides are what they were and the centres 1/ratio as far apart: nothing overflows."""
    dx, dy = center_offset(p, g)
    x, y = dx * (1 / ratio - 1), dy * (1 / ratio - 1)
    beyond_target = Box(p.x1 - g.x1 + x, p.y1 - g.y1 + y, p.x2 - g.x2 + x, p.y2 - g.y2 + y)
    return displaced_similarity(beyond_target, g, eps / ratio**2)


def modified_loss(loss: BoxLoss, p: Box, g: Box, eps: float, scale: float | Tensor, mean: Tensor | None) -> Tensor:
    """The box loss of every pair, with its parameters and modifiers."""
    value = LOSSES[loss.name](p, g, eps, *in_boxes_unit(loss, scale))
    similarity = iou_similarity(p, g, eps)
    counted = similarity
    if loss.inner is not None:
        counted = inner_similarity(p, g, eps, loss.inner)
    if loss.focaler is not None:
        low, high = loss.focaler
        counted = torch.relu(1 - torch.relu((high - counted) / (high - low)))
    if loss.inner is not None or loss.focaler is not None:
        value = value + similarity - counted
    if loss.wise is None:
        return value
    assert mean is not None
    beta = constant(1 - similarity) / guard(mean.to(similarity.dtype), eps)
    version, *numbers = loss.wise
    if version == "v2":
        return power(beta, numbers[0]) * value
    alpha, delta = numbers
    return beta / (delta * alpha ** (beta - delta)) * value


def containment_penalty(p: Box, a: Box, eps: float) -> Tensor:
    return 1 - containment(p, a, eps)


def inverse_penalty(p: Box, a: Box, eps: float, clamp: float) -> Tensor:
    return 1 / guard(containment(p, a, eps), clamp) - 1


def log_penalty(p: Box, a: Box, eps: float, clamp: float) -> Tensor:
    return -torch.log(guard(containment(p, a, eps), clamp))


def overhang(p1: Tensor, p2: Tensor, a1: Tensor, a2: Tensor, eps: float) -> Tensor:
    """How far [p1, p2] reaches out of [a1, a2], in its own lengths: relu(|c_P - c_A| + half_P - half_A) / side_P with
    half_P at most half_A. Written with edges, so that it is exactly 0 for a box that lies inside; the box moves as a
    rigid body: its edges follow its centre and its length is constant under differentiation."""
    middle = (p1 + p2) / 2
    motion = middle - constant(middle)
    length = constant(p2 - p1)
    off_edge = torch.maximum(constant(p2) + motion - a2, a1 - constant(p1) - motion)
    off_center = (middle - (a1 + a2) / 2).abs()
    return torch.relu(torch.where(length <= constant(a2 - a1), off_edge, off_center)) / guard(length, eps)


def pull_penalty(p: Box, a: Box, eps: float) -> Tensor:
    t = overhang(p.x1, p.x2, a.x1, a.x2, eps) + overhang(p.y1, p.y2, a.y1, a.y2, eps)
    return 1 - 1 / (1 + t)  # t / (1 + t), whose derivative cancels for a large t


def containment_pull_penalty(p: Box, a: Box, eps: float) -> Tensor:
    return containment_penalty(p, a, eps) + pull_penalty(p, a, eps)


LOSSES: dict[str, Callable[..., Tensor]] = dict(
    zip(
        LOSS_NAMES,
        (
            *(iou, giou, diou, ciou, eiou, siou),
            *(alpha_iou, alpha_giou, alpha_diou, alpha_ciou),
            *(mpdiou, shape, piou, piou2, wiou, interp, sd),
            *(nwd, gcd, kld, reverse_kld),
        ),
        strict=True,
    )
)
PENALTIES: dict[str, Callable[..., Tensor]] = dict(
    zip(
        PENALTY_NAMES,
        (containment_penalty, inverse_penalty, log_penalty, pull_penalty, containment_pull_penalty),
        strict=True,
    )
)


def penalty_of(formula: Formula, p: Box, g: Box, a: Box) -> Tensor:
    """The penalty before weighting. A relative one is what exceeds the target's own."""
    chosen = as_penalty(formula.penalty)
    penalty = PENALTIES[chosen.name]
    excess = penalty(p, a, formula.eps, *chosen.parameters)
    if formula.relative:
        excess = torch.relu(excess - constant(penalty(g, a, formula.eps, *chosen.parameters)))
    return excess


def similarity(loss):
    """1 - loss, without a detour for the plain IoU: the smallest overlaps keep their order."""
    if loss is iou:
        return iou_similarity
    return lambda p, q, eps, *parameters: 1 - loss(p, q, eps, *parameters)


PAIR_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    **{name: similarity(loss) for name, loss in LOSSES.items()},
    "containment": containment,
    **{f"{name}_penalty": penalty for name, penalty in PENALTIES.items()},
}
