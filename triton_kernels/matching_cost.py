"""What the Hungarian matcher of a DETR minimises: the cost of a query's prediction for a target."""

import triton
import triton.language as tl

from .box import Box, corners, spread, variables
from .iou_losses import giou
from .kernels import Column, Rows, load_columns, load_rows, load_value
from .number import greater
from .pair_functions import of_pair
from .pairwise import load_of_batch


@triton.jit
def power(x, gamma, SQUARE: tl.constexpr):
    """x^gamma for x in [0, 1]; the square, which nearly everyone takes, without a detour."""
    return x * x if SQUARE else tl.exp(gamma * tl.log(greater(x, tl.full((), 1e-30, x.dtype))))


@triton.jit
def focal_cost(logit, alpha, gamma, eps, SQUARE: tl.constexpr):
    """Zhu et al. 2021, Deformable DETR: the focal loss (Lin et al. 2017) as a positive less the one as a negative."""
    # The smaller of p and 1 - p keeps all its digits.
    e = tl.exp(-tl.abs(logit))
    larger, smaller = 1.0 / (1.0 + e), e / (1.0 + e)
    p, not_p = tl.where(logit > 0.0, larger, smaller), tl.where(logit > 0.0, smaller, larger)
    positive = alpha * power(not_p, gamma, SQUARE) * -tl.log(p + eps)
    return positive - (1.0 - alpha) * power(p, gamma, SQUARE) * -tl.log(not_p + eps)


@triton.jit
def distance(a, b):
    """L1, of the coordinates as they are given."""
    return tl.abs(a.x1 - b.x1) + tl.abs(a.y1 - b.y1) + tl.abs(a.x2 - b.x2) + tl.abs(a.y2 - b.y2)


@triton.jit(do_not_specialize=["batches", "count", "classes", "targets"])
def matching_kernel(
    boxes,
    batches: tl.int64,
    count: tl.int64,
    logits,
    classes: tl.int64,
    log_normalizer,
    target_boxes,
    labels,
    image,
    targets: tl.int64,
    out,
    class_weight: tl.float64,
    l1_weight: tl.float64,
    giou_weight: tl.float64,
    alpha: tl.float64,
    gamma: tl.float64,
    focal_eps: tl.float64,
    eps: tl.float64,
    SQUARE: tl.constexpr,
    FORMAT: tl.constexpr,
    DTYPE: tl.constexpr,
    TARGETS: tl.constexpr,
    QUERIES: tl.constexpr,
):
    """Tiles of targets and the queries of their images; NaN for a target whose image or label does not exist, for which
    nothing is read."""
    across = tl.cdiv(count, QUERIES).to(tl.int32)
    target = (tl.program_id(0) // across).to(tl.int64) * TARGETS + tl.arange(0, TARGETS)
    query = ((tl.program_id(0) % across).to(tl.int64) * QUERIES + tl.arange(0, QUERIES))[None, :]
    there = target < targets
    batch = load_value(image, target, there).to(tl.int64)
    label = load_value(labels, target, there).to(tl.int64)
    exists = (there & (batch >= 0) & (batch < batches) & (label >= 0) & (label < classes))[:, None]
    t = spread(load_rows(target_boxes, target, there, DTYPE), 1)
    batch, label, inside = batch[:, None], label[:, None], query < count
    keep = exists & inside
    of_image = Rows(boxes.data + batch * boxes.batch_stride, boxes.row_stride, boxes.column_stride)
    b = load_columns(of_image, query, keep)
    b = Box(b.x1.to(DTYPE), b.y1.to(DTYPE), b.x2.to(DTYPE), b.y2.to(DTYPE))
    of_class = Column(logits.data + batch * logits.batch_stride + label * logits.column_stride, logits.row_stride)
    logit = load_value(of_class, query, keep).to(DTYPE)
    if log_normalizer.data is None:
        of_positive, exponent = tl.full((), alpha, DTYPE), tl.full((), gamma, DTYPE)
        class_cost = focal_cost(logit, of_positive, exponent, tl.full((), focal_eps, DTYPE), SQUARE)
    else:
        # Carion et al. 2020, DETR: minus the probability of the class among all.
        log_sum = load_of_batch(log_normalizer, count, batch, query, keep).to(DTYPE)
        class_cost = -tl.exp(logit - log_sum)
    p, g = variables(corners(b, FORMAT), 0, 0), variables(corners(t, FORMAT), 0, 0)
    overlap = of_pair(p, g, tl.full((), eps, DTYPE), (), giou, True).value
    cost = tl.full((), class_weight, DTYPE) * class_cost + tl.full((), l1_weight, DTYPE) * distance(b, t)
    cost -= tl.full((), giou_weight, DTYPE) * overlap
    at = target[:, None] * count + query
    tl.store(out + at, tl.where(exists, cost, float("nan")), there[:, None] & inside)
