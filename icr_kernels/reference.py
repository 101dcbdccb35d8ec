"""The pure-PyTorch reference: the truth that every kernel is checked against, and the path that always works.

A loss reads here as its formula in the paper, in plain differentiable tensor operations: no host synchronisation, no
boolean indexing, so it compiles into one graph. Speed is the kernels' business.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .calls import (
    CostCall,
    Formula,
    MatchingCost,
    PairFunction,
    SelectionCall,
    compute_dtype,
    in_boxes_unit,
)
from .specifications import BoxLoss, box_loss
from .specifications import penalty as as_penalty
from .variants import (
    COORDINATE_LIMIT,
    LARGEST_GROUP,
    LOSS_NAMES,
    NO_PENALTY,
    PENALTY_NAMES,
)


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
    (px, py), (gx, gy) = center(p), center(g)
    c = enclosing(p, g)
    rho2 = (px - gx) ** 2 + (py - gy) ** 2
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
    (px, py), (gx, gy) = center(p), center(g)
    c = enclosing(p, g)
    dx, dy = px - gx, py - gy
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
    (px, py), (gx, gy) = center(p), center(g)
    c = enclosing(p, g)
    c2 = guard(width(c) ** 2 + height(c) ** 2, eps)
    distance = along_x * (px - gx) ** 2 / c2 + along_y * (py - gy) ** 2 / c2
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
    (px, py), (gx, gy) = center(p), center(g)
    c = enclosing(p, g)
    c2 = constant(guard(width(c) ** 2 + height(c) ** 2, eps))
    return torch.exp(((px - gx) ** 2 + (py - gy) ** 2) / c2) * iou(p, g, eps)


def interp(p: Box, g: Box, eps: float, interpolation: float) -> Tensor:
    between = Box(*(b + (1 - interpolation) * (a - b) for a, b in zip(p, g, strict=True)))
    return iou(p, g, eps) + iou(between, g, eps)


def sd(p: Box, g: Box, eps: float, delta: float, area: float | Tensor) -> Tensor:
    size = constant(width(g) * height(g))
    b = (delta * size / area).clamp(max=delta)
    of_overlap, of_distance = 1 - delta + b, 1 + delta - b
    return of_overlap * (iou(p, g, eps) + aspect_term(p, g, eps)) + of_distance * center_term(p, g, eps)


def nwd(p: Box, g: Box, eps: float, constant: float | Tensor) -> Tensor:
    (px, py), (gx, gy) = center(p), center(g)
    sides = (width(p) - width(g)) ** 2 + (height(p) - height(g)) ** 2
    return 1 - torch.exp(-root((px - gx) ** 2 + (py - gy) ** 2 + sides / 4) / constant)


def gcd(p: Box, g: Box, eps: float) -> Tensor:
    (px, py), (gx, gy) = center(p), center(g)

    def distance2(of: Box) -> Tensor:
        w, h = guard(width(of), eps), guard(height(of), eps)
        centers = bounded((px - gx) / w) ** 2 + bounded((py - gy) / h) ** 2
        return centers + (bounded((width(p) - width(g)) / w) ** 2 + bounded((height(p) - height(g)) / h) ** 2) / 4

    return 1 - torch.exp(-root((distance2(p) + distance2(g)) / 2))


# A side counts as at most so many of another one, and so does a distance: the square is finite in float32.
_MOST_SIDES = 1e9


def divergence(p: Box, q: Box, eps: float) -> Tensor:
    """KL(P || Q) of Gaussians with the centres and half the sides of both boxes."""
    (px, py), (qx, qy) = center(p), center(q)

    def along(distance: Tensor, side: Tensor, other: Tensor) -> Tensor:
        other, side = guard(other, eps), guard(side, eps)
        sides, offset = side / other, bounded(2 * distance / other, _MOST_SIDES)
        return offset**2 / 2 + (bounded(sides, _MOST_SIDES) ** 2 - 1) / 2 - torch.log(sides)

    return along(px - qx, width(p), width(q)) + along(py - qy, height(p), height(q))


def kld(p: Box, g: Box, eps: float, tau: float) -> Tensor:
    return 1 - 1 / (tau + torch.log(1 + divergence(p, g, eps)))


def reverse_kld(p: Box, g: Box, eps: float, tau: float) -> Tensor:
    return 1 - 1 / (tau + torch.log(1 + divergence(g, p, eps)))


def inner_similarity(p: Box, g: Box, eps: float, ratio: float) -> Tensor:
    """The IoU of both boxes with sides ``ratio`` times as long about their centres. With that length as the unit the
    sides are what they were and the centres 1/ratio as far apart: nothing overflows."""
    (px, py), (gx, gy) = center(p), center(g)
    dx, dy = (px - gx) * (1 / ratio - 1), (py - gy) * (1 / ratio - 1)
    shared = intersection(Box(p.x1 + dx, p.y1 + dy, p.x2 + dx, p.y2 + dy), g)
    return shared / guard(area(p) + area(g) - shared, eps / ratio**2)


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


class ICRTerms(NamedTuple):
    """What one pass computes for every pair, each of the shape (...).

    ``loss`` is box loss + penalty_weight * penalty, ``iou`` the plain IoU of prediction and target, ``containment`` the
    share of the prediction that lies in its anchor object (1 without one) and ``penalty`` the penalty before weighting.
    """

    loss: Tensor
    iou: Tensor
    containment: Tensor
    penalty: Tensor


def icr_terms(
    pred: Tensor,
    target: Tensor,
    anchor_objects: Tensor | None = None,
    *,
    target_index: Tensor | None = None,
    anchor_index: Tensor | None = None,
    mask: Tensor | None = None,
    scale: Tensor | None = None,
    wise_mean: Tensor | None = None,
    **options,
) -> ICRTerms:
    """`icr_kernels.icr_terms` in plain PyTorch, without its checks. ``options`` are those of `Formula`."""
    formula = Formula(**options)
    dtype, eps = compute_dtype(pred, target, anchor_objects), formula.eps
    # Converted before it is gathered: the gradient of a table adds up in the arithmetic's dtype.
    target, has_target = gathered(target.to(dtype), target_index)
    mask = both(mask, has_target)

    def box(boxes: Tensor) -> Box:
        # A masked pair may hold anything, NaN included: replaced before the arithmetic, it cannot reach a gradient.
        boxes = boxes.to(dtype)
        return corners(boxes if mask is None else torch.where(mask.unsqueeze(-1), boxes, 0), formula.box_format)

    p, g = box(pred), box(target)
    overlap = iou_similarity(p, g, eps)
    pixels = formula.pixels if scale is None else scale.to(dtype)
    total = modified_loss(box_loss(formula.loss), p, g, eps, pixels, wise_mean)
    if anchor_objects is None or as_penalty(formula.penalty).name == NO_PENALTY:
        inside, excess = torch.ones_like(total), torch.zeros_like(total)
    else:
        anchor_objects, has_anchor = gathered(anchor_objects.to(dtype), anchor_index)
        a = box(anchor_objects)
        inside = containment(p, a, eps)
        excess = penalty_of(formula, p, g, a)
        if has_anchor is not None:
            inside, excess = torch.where(has_anchor, inside, 1), torch.where(has_anchor, excess, 0)
        total = total + formula.penalty_weight * excess
    terms = (total, overlap, inside, excess)
    return ICRTerms(*(terms if mask is None else (torch.where(mask, term, 0) for term in terms)))


def in_table(table: Tensor, index: Tensor | None) -> Tensor | None:
    """Which pairs have a row: those whose index lies in the table. None: all, without an index."""
    return None if index is None else (index >= 0) & (index < table.shape[0])


def gathered(table: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The row of every pair, and which pairs have one."""
    has_row = in_table(table, index)
    if index is None or has_row is None:
        return table, None
    padded = torch.cat([table, table.new_zeros(1, 4)])  # the last row is of those without
    rows = torch.where(has_row, index, table.shape[0])
    # With a dimension more: for a single number indexing would ask for its value, which vmap cannot tell.
    return padded[rows.unsqueeze(-1)].squeeze(-2), has_row


def both(mask: Tensor | None, other: Tensor | None) -> Tensor | None:
    """What two masks keep; None keeps all."""
    return other if mask is None else mask if other is None else mask & other


def icr_loss(
    pred: Tensor,
    target: Tensor,
    anchor_objects: Tensor | None = None,
    *,
    target_index: Tensor | None = None,
    anchor_index: Tensor | None = None,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    reduction: str = "mean",
    scale: Tensor | None = None,
    wise_mean: Tensor | None = None,
    **options,
) -> Tensor:
    """`icr_kernels.icr_loss` in plain PyTorch, without its checks. ``options`` are those of `Formula`."""
    pairs = {"target_index": target_index, "anchor_index": anchor_index, "scale": scale, "wise_mean": wise_mean}
    loss = icr_terms(pred, target, anchor_objects, **pairs, mask=mask, **options).loss
    mask = both(mask, in_table(target, target_index))
    return reduced(loss, weight, mask, normalizer, reduction, Formula(**options).eps)


def reduced(
    loss: Tensor,
    weight: Tensor | None,
    mask: Tensor | None,
    normalizer: float | Tensor | None,
    reduction: str,
    eps: float,
) -> Tensor:
    """The losses of all pairs, weighted and reduced."""
    if weight is not None:
        weight = weight.to(loss.dtype)
        loss = loss * (weight if mask is None else torch.where(mask, weight, 0))
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if normalizer is None:
        pairs = max(loss.numel(), 1) if mask is None else mask.sum().clamp(min=1)
        return loss.sum() / pairs
    return loss.sum() / torch.as_tensor(normalizer, dtype=loss.dtype, device=loss.device).clamp(min=eps)


class Selection(NamedTuple):
    """The best partners of each box, best first: their values and their indices; -inf and -1 where there is none."""

    values: Tensor
    indices: Tensor


def pairwise_iou(boxes1: Tensor, boxes2: Tensor, function: PairFunction) -> Tensor:
    """`icr_kernels.pairwise_iou` in plain PyTorch, without its checks."""
    dtype = compute_dtype(boxes1, boxes2)
    first = corners(boxes1.to(dtype).unsqueeze(-2), function.box_format)
    second = corners(boxes2.to(dtype).unsqueeze(-3), function.box_format)
    return PAIR_FUNCTIONS[function.kind](first, second, function.eps, *function.parameters)


# Pairs that are looked at together where no matrix is to be kept.
_PAIRS_AT_ONCE = 1 << 22


def selected(call: SelectionCall, function: PairFunction) -> Selection:
    """The operator of that name in plain PyTorch: for each query (..., N, 4) the best k of the candidates (..., M, 4),
    k = 0: the best, without a dimension of its own. What is best, and which pairs count, `operators.py` says."""
    queries, candidates, k = call.queries, call.candidates, call.k
    dtype = compute_dtype(queries, candidates)
    areas = area(corners(candidates.to(dtype), function.box_format)).unsqueeze(-2)

    def scores(rows: Tensor, group: Tensor | None, least: Tensor | None) -> Tensor:
        pair = (candidates, rows) if call.candidate_first else (rows, candidates)
        value = pairwise_iou(*pair, function)
        value = value.transpose(-1, -2) if call.candidate_first else value
        if call.offset is not None:
            value = value - call.offset.to(dtype).unsqueeze(-2)
        counts = ~value.isnan()
        if group is not None and call.candidate_group is not None:
            is_group = (group >= 0) & (group <= LARGEST_GROUP)
            counts &= (group.unsqueeze(-1) == call.candidate_group.unsqueeze(-2)) & is_group.unsqueeze(-1)
        if call.larger:
            counts &= areas > area(corners(rows.to(dtype), function.box_format)).unsqueeze(-1)
        if least is not None:
            counts &= value >= least.to(dtype).unsqueeze(-1)
            value = -areas.expand_as(value)
        return torch.where(counts, value, -math.inf)

    def best(score: Tensor) -> tuple[Tensor, Tensor]:
        if k == 0:
            if score.shape[-1] == 0:
                return score.new_full(score.shape[:-1], -math.inf), score.new_full(score.shape[:-1], -1).long()
            index = score.argmax(-1)  # of equals the first
            values = score.gather(-1, index.unsqueeze(-1)).squeeze(-1)
        else:
            padded = torch.nn.functional.pad(score, (0, k), value=-math.inf)
            values, index = (part[..., :k] for part in torch.sort(padded, dim=-1, descending=True, stable=True))
        return values, torch.where(values == -math.inf, -1, index)

    count = max(_PAIRS_AT_ONCE // max(candidates.shape[:-1].numel(), 1), 1)
    chunks = [None if part is None else part.split(count, -1) for part in (call.query_group, call.at_least)]
    parts = [
        best(scores(rows, *(None if chunk is None else chunk[number] for chunk in chunks)))
        for number, rows in enumerate(queries.split(count, -2))
    ]
    dimension = -1 if k == 0 else -2
    return Selection(*(torch.cat(each, dimension) for each in zip(*parts, strict=True)))


def matching_cost(call: CostCall, cost: MatchingCost) -> Tensor:
    """The operator of that name in plain PyTorch: the cost of each target (M) and each query (B, Q) of its own image,
    (M, Q); NaN where image or label do not exist. With a log_normalizer, the logsumexp of a query's logits, its classes
    exclude each other."""
    dtype = compute_dtype(call.boxes, call.target_boxes, call.logits)
    (images, queries, _), classes = call.boxes.shape, call.logits.shape[-1]
    exists = (call.image >= 0) & (call.image < images) & (call.labels >= 0) & (call.labels < classes)
    if images == 0 or classes == 0:
        return call.boxes.new_full((len(call.labels), queries), math.nan, dtype=dtype)
    image, label = torch.where(exists, call.image, 0), torch.where(exists, call.labels, 0)
    found = call.boxes.to(dtype)[image]
    logit = call.logits[image, :, label].to(dtype)
    if call.log_normalizer is not None:
        of_class = -torch.exp(logit - call.log_normalizer.to(dtype)[image])
    else:
        p, not_p = torch.sigmoid(logit), torch.sigmoid(-logit)
        positive = cost.alpha * not_p**cost.gamma * -torch.log(p + cost.focal_eps)
        of_class = positive - (1 - cost.alpha) * p**cost.gamma * -torch.log(not_p + cost.focal_eps)
    target = call.target_boxes.to(dtype).unsqueeze(-2)
    l1 = (found - target).abs().sum(-1)
    overlap = PAIR_FUNCTIONS["giou"](corners(found, cost.box_format), corners(target, cost.box_format), cost.eps)
    total = cost.class_weight * of_class + cost.l1_weight * l1 - cost.giou_weight * overlap
    return torch.where(exists.unsqueeze(-1), total, math.nan)
