"""The pure-PyTorch reference: what every operator computes, by the formulas of `formulas`, and the path that always
works.

No host synchronisation and no boolean indexing, so it compiles into one graph. Speed is the kernels' business.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .calls import CostCall, Formula, MatchingCost, PairFunction, SelectionCall, compute_dtype
from .formulas import PAIR_FUNCTIONS, Box, area, containment, corners, iou_similarity, modified_loss, penalty_of
from .specifications import box_loss
from .specifications import penalty as as_penalty
from .variants import LARGEST_GROUP, NO_PENALTY


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
