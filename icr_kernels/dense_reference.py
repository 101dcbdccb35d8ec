"""The reference of what dense heads need: who is trained towards what, and how far it is from that.

As in `reference`, plain differentiable tensor operations without a synchronisation.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .calls import AssignmentCall, AssignmentRule, DetectionCall, DetectionFormula, compute_dtype
from .formulas import (
    Box,
    center,
    corners,
    enclosing,
    height,
    intersection,
    limited,
    modified_loss,
    penalty_of,
    plain_corners,
    width,
)
from .reference import gathered
from .specifications import box_loss
from .specifications import penalty as as_penalty
from .variants import NO_PENALTY


class Assignment(NamedTuple):
    """What each point of a dense head is trained towards, (B, A) each."""

    index: Tensor  # type: ignore[assignment]  # a method of tuples
    score: Tensor


# What the CIoU of an assigner adds to denominators and heights.
OVERLAP_EPS = 1e-7


def enlarged(box: Box, smallest_side: float) -> Box:
    """Sides of at least so much, about the centre."""
    (x, y), w, h = center(box), width(box), height(box)
    w, h = torch.where(w < smallest_side, smallest_side, w), torch.where(h < smallest_side, smallest_side, h)
    return Box(x - w / 2, y - h / 2, x + w / 2, y + h / 2)


def overlap(g: Box, p: Box) -> Tensor:
    """max(CIoU, 0), operation by operation as detectors compute it, to the bit: with heights and denominators that eps
    is added to. NaN stays NaN."""
    eps = OVERLAP_EPS
    g_side, p_side = height(g) + eps, height(p) + eps
    i = intersection(g, p)
    iou = i / (width(g) * g_side + width(p) * p_side - i + eps)
    c = enclosing(g, p)
    c2 = width(c) * width(c) + height(c) * height(c) + eps
    x, y = p.x1 + p.x2 - g.x1 - g.x2, p.y1 + p.y2 - g.y1 - g.y2
    turn = torch.atan(width(p) / p_side) - torch.atan(width(g) / g_side)
    v = 4 / math.pi**2 * (turn * turn)
    ciou = iou - ((x * x + y * y) / 4 / c2 + v * (v / (1 - iou + v + eps)))
    return torch.where(ciou <= 0, 0, ciou)


def rank(values: Tensor) -> Tensor:
    """Whole numbers in the order of those that are not negative, NaN above all."""
    return torch.where(values.isnan(), math.nan, values).view(torch.int32).long()


def best_points(metric: Tensor, k: int) -> Tensor:
    """Where the k largest of each row (M, A) are; of equals, zeros too, the first."""
    order = rank(metric).sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(metric, dtype=torch.bool).scatter(1, order, True)


def task_aligned_assign(call: AssignmentCall, rule: AssignmentRule) -> Assignment:
    """With matrices (M, A) of every box and the points of its own image."""
    images, points, classes = call.scores.shape
    rows = call.truth.shape[0]
    nothing = call.boxes.new_full((images, points), -1, dtype=torch.int64)
    if rows == 0 or nothing.numel() == 0 or classes == 0:
        return Assignment(nothing, nothing.new_zeros(nothing.shape, dtype=torch.float32))
    counts = (call.image >= 0) & (call.image < images) & (call.labels >= 0) & (call.labels < classes)
    image, label = torch.where(counts, call.image, 0).long(), torch.where(counts, call.labels, 0).long()
    row = torch.arange(rows, device=nothing.device)[:, None].expand(rows, points)
    of_image = image[:, None].expand(rows, points)

    truth = Box(*(side[:, None] for side in plain_corners(call.truth.float(), rule.truth_format)))
    reach = truth if rule.smallest_side < 0 else enlarged(truth, rule.smallest_side)
    x, y = call.points.float().unbind(-1)
    sides = torch.stack(torch.broadcast_tensors(x - reach.x1, y - reach.y1, reach.x2 - x, reach.y2 - y))
    candidate = (sides > rule.eps).all(0) & counts[:, None]
    similarity = torch.where(candidate, overlap(truth, plain_corners(call.boxes[image].float(), rule.box_format)), 0)
    score = call.scores[image, :, label]
    score = (score.sigmoid() if rule.from_logits else score).float()
    score = torch.where(score <= 0, 0, score)
    metric = score.pow(rule.alpha) * similarity.pow(rule.beta)
    metric = torch.where(candidate & (similarity != 0), metric, 0)

    def largest(values: Tensor) -> Tensor:
        """Of the rows of each image, (B, A)."""
        return nothing.scatter_reduce(0, of_image, values, "amax")

    chosen = best_points(metric, rule.topk) & candidate
    claims = torch.zeros_like(nothing).scatter_add(0, of_image, chosen.long())
    # The row with the largest similarity, of equals the first, candidate or not.
    owner = rows - 1 - largest(torch.where(counts[:, None], rank(similarity) * rows + rows - 1 - row, -1)) % rows
    index = torch.where(claims > 1, owner, largest(torch.where(chosen, row, -1)))
    own = (index[image] == row) & counts[:, None]
    if rule.topk2:
        own = own & best_points(torch.where(own, metric, 0), rule.topk2)
        index = largest(torch.where(own, row, -1))
    best_metric = torch.where(own, metric, 0).amax(1, keepdim=True)
    best_similarity = torch.where(own, similarity, 0).amax(1, keepdim=True)
    normalised = metric * best_similarity / (best_metric + rule.eps)
    # Without the tangents of forward mode, which no_grad lets through.
    return Assignment(index, torch.where(index < 0, 0, normalised.gather(0, index.clamp(min=0))).detach())


class DetectionTerms(NamedTuple):
    """What a dense head is trained by: 0-dim tensors, each with its gain."""

    box: Tensor
    classification: Tensor
    distribution: Tensor
    penalty: Tensor


# How far below the last bin the target of a distribution stays.
LAST_BIN_MARGIN = 0.01


def sides_of(logits: Tensor) -> Tensor:
    """Of (B, A, 4R) logits the R of each side, (B, A, 4, R)."""
    return limited(logits).unflatten(-1, (4, logits.shape[-1] // 4))


def distances(sides: Tensor) -> Tensor:
    """From a point to the four sides of its box, in strides: the mean of a distribution over 0 to R - 1, or with R = 1
    what is predicted itself."""
    bins = sides.shape[-1]
    if bins == 1:
        return sides.squeeze(-1)
    return (sides.softmax(-1) * torch.arange(bins, dtype=sides.dtype, device=sides.device)).sum(-1)


def around(points: Tensor, distance: Tensor) -> Tensor:
    """The corners at these distances from the points."""
    return torch.cat((points - distance[..., :2], points + distance[..., 2:]), -1)


def decode_boxes(box_logits: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """`icr_kernels.decode_boxes` in plain PyTorch, without its checks."""
    dtype = compute_dtype(box_logits)
    return around(points.to(dtype), distances(sides_of(box_logits.to(dtype))) * strides.to(dtype)[:, None])


def distribution_focal_loss(sides: Tensor, target: Tensor) -> Tensor:
    """-log of the two bins beside the target, each by its share in it (Li et al. 2020); the mean of the four sides."""
    bins = sides.shape[-1]
    target = target.clamp(0, bins - 1 - LAST_BIN_MARGIN).unsqueeze(-1)
    share = torch.relu(1 - (target - torch.arange(bins, dtype=sides.dtype, device=sides.device)).abs())
    return -(share * sides.log_softmax(-1)).sum(-1).mean(-1)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Binary, of each logit. PyTorch's own is 0 where a probability is below 6e-8."""
    return -(target * F.logsigmoid(logits) + (1 - target) * F.logsigmoid(-logits))


def dense_detection_loss(call: DetectionCall, options: DetectionFormula) -> DetectionTerms:
    """`icr_kernels.dense_detection_loss` in plain PyTorch, given the assignment, without its checks."""
    formula, eps = options.formula, options.formula.eps
    dtype = compute_dtype(call.box_logits, call.class_logits, call.truth)
    points, strides, table = (tensor.to(dtype) for tensor in (call.points, call.strides, call.truth))
    target, has_target = gathered(table, call.index)
    assert has_target is not None
    score = torch.where(has_target, call.score, 0).to(dtype)

    def of_target(column: Tensor) -> Tensor:
        """The value of each point's target, -1 for those without."""
        padded = torch.cat([column, column.new_full((1,), -1)])
        return padded[torch.where(has_target, call.index, len(column))]

    total = score.sum().clamp(min=1)
    if options.normalizer > 0:
        total = torch.full_like(total, options.normalizer)
    elif call.normalizer is not None:
        total = call.normalizer.to(dtype).clamp(min=eps)

    logits = limited(call.class_logits.to(dtype))
    is_class = of_target(call.labels).unsqueeze(-1) == torch.arange(logits.shape[-1], device=logits.device)
    of_classes = cross_entropy(logits, torch.where(is_class, score.unsqueeze(-1), 0))
    if call.class_weight is not None:
        of_classes = of_classes * call.class_weight.to(dtype)

    # What background predicts may be anything, NaN included.
    sides = sides_of(torch.where(has_target.unsqueeze(-1), call.box_logits.to(dtype), 0))
    distance = distances(sides)
    p, g = corners(around(points, distance * strides[:, None]), "xyxy"), corners(target, formula.box_format)
    of_boxes = modified_loss(box_loss(formula.loss), p, g, eps, formula.pixels, call.wise_mean)
    wanted = torch.stack((points[:, 0] - g.x1, points[:, 1] - g.y1, g.x2 - points[:, 0], g.y2 - points[:, 1]), -1)
    if sides.shape[-1] == 1:
        size = strides[:, None]
        if options.width > 0:
            size = strides.new_tensor((options.width, options.height)).repeat(2)
        of_distances = ((distance * strides[:, None] - wanted).abs() / size).mean(-1)
    else:
        of_distances = distribution_focal_loss(sides, wanted / strides[:, None])

    excess, divisor = torch.zeros_like(of_boxes), total
    if as_penalty(formula.penalty).name != NO_PENALTY and call.anchor_index is not None:
        anchor, has_anchor = gathered(table, of_target(call.anchor_index))
        excess = penalty_of(formula, p, g, corners(anchor, formula.box_format))
        is_paired = has_target if has_anchor is None else has_target & has_anchor
        excess = formula.penalty_weight * torch.where(is_paired, excess, 0)
        if options.is_uniform:
            divisor = is_paired.sum().clamp(min=1)

    def reduced(values: Tensor, weight: Tensor | float, gain: float) -> Tensor:
        return gain * (torch.where(has_target, values, 0) * weight).sum()

    return DetectionTerms(
        reduced(of_boxes, score, options.box_gain) / total,
        options.class_gain * of_classes.sum() / total,
        reduced(of_distances, score, options.distribution_gain) / total,
        reduced(excess, 1.0 if options.is_uniform else score, options.box_gain) / divisor,
    )
