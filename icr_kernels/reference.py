"""The pure-PyTorch reference: the truth that every kernel is checked against, and the path that always works.

A loss reads here as its formula in the paper, in plain differentiable tensor operations: no host synchronisation, no
boolean indexing, so it compiles into one graph. Speed is the kernels' business.
"""

import math
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
)
from .variants import (
    COORDINATE_LIMIT,
    KIND_NAMES,
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


def diou(p: Box, g: Box, eps: float) -> Tensor:
    (px, py), (gx, gy) = center(p), center(g)
    c = enclosing(p, g)
    rho2 = (px - gx) ** 2 + (py - gy) ** 2
    c2 = width(c) ** 2 + height(c) ** 2
    return iou(p, g, eps) + rho2 / guard(c2, eps)


def ciou(p: Box, g: Box, eps: float) -> Tensor:
    v = (2 / math.pi * (angle(g, eps) - angle(p, eps))) ** 2
    alpha = v / guard(iou(p, g, eps) + v, eps)
    return diou(p, g, eps) + constant(alpha) * v


def eiou(p: Box, g: Box, eps: float) -> Tensor:
    c = enclosing(p, g)
    width_term = (width(p) - width(g)) ** 2 / guard(width(c) ** 2, eps)
    height_term = (height(p) - height(g)) ** 2 / guard(height(c) ** 2, eps)
    return diou(p, g, eps) + width_term + height_term


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
    omega_w = (width(p) - width(g)).abs() / guard(torch.maximum(width(p), width(g)), eps)
    omega_h = (height(p) - height(g)).abs() / guard(torch.maximum(height(p), height(g)), eps)
    shape_cost = (1 - torch.exp(-omega_w)) ** 4 + (1 - torch.exp(-omega_h)) ** 4
    return iou(p, g, eps) + (distance_cost + shape_cost) / 2


def containment_penalty(p: Box, a: Box, eps: float) -> Tensor:
    return 1 - containment(p, a, eps)


def inverse_penalty(p: Box, a: Box, eps: float) -> Tensor:
    return 1 / guard(containment(p, a, eps), 0.1) - 1


def log_penalty(p: Box, a: Box, eps: float) -> Tensor:
    return -torch.log(guard(containment(p, a, eps), 0.01))


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


LOSSES = dict(zip(LOSS_NAMES, (iou, giou, diou, ciou, eiou, siou), strict=True))
PENALTIES = dict(
    zip(
        PENALTY_NAMES,
        (containment_penalty, inverse_penalty, log_penalty, pull_penalty, containment_pull_penalty),
        strict=True,
    )
)


def similarity(loss):
    """1 - loss, without a detour for the plain IoU: the smallest overlaps keep their order."""
    if loss is iou:
        return iou_similarity
    return lambda p, q, eps: 1 - loss(p, q, eps)


PAIR_FUNCTIONS = dict(
    zip(KIND_NAMES, (*map(similarity, LOSSES.values()), containment, *PENALTIES.values()), strict=True)
)


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
    total = LOSSES[formula.loss](p, g, eps)
    if anchor_objects is None or formula.penalty == NO_PENALTY:
        inside, excess = torch.ones_like(total), torch.zeros_like(total)
    else:
        anchor_objects, has_anchor = gathered(anchor_objects.to(dtype), anchor_index)
        a = box(anchor_objects)
        inside = containment(p, a, eps)
        penalty = PENALTIES[formula.penalty]
        excess = penalty(p, a, eps)
        if formula.relative:
            excess = torch.relu(excess - constant(penalty(g, a, eps)))
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
    **options,
) -> Tensor:
    """`icr_kernels.icr_loss` in plain PyTorch, without its checks. ``options`` are those of `Formula`."""
    indices = {"target_index": target_index, "anchor_index": anchor_index}
    loss = icr_terms(pred, target, anchor_objects, **indices, mask=mask, **options).loss
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
    return PAIR_FUNCTIONS[function.kind](first, second, function.eps)


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
