"""Who belongs to whom: parts to the wholes that contain them, boxes to ground truth by thresholds, and what matching a
query to a target costs. Nothing here makes a matrix of all pairs of a batch, or waits for a device."""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import arguments, reference
from .backends import choose, device_type
from .calls import CostCall, compute_dtype
from .pairwise import select
from .specifications import BoxLoss

# Containments that differ by less are equal: a plate inside two overlapping cars lies wholly in both, but for rounding.
TIE = 1e-6


class AnchorMatch(NamedTuple):
    """The anchor object of each part, -1 where it has none, and the largest containment found, 0 without any whole."""

    anchor_index: Tensor
    containment: Tensor


def match_anchor_objects(
    parts: Tensor,
    wholes: Tensor,
    *,
    part_group: Tensor | None = None,
    whole_group: Tensor | None = None,
    min_containment: float = 0.5,
    larger: bool = False,
    eps: float = 1e-7,
    box_format: str = "xyxy",
    backend: str | None = None,
) -> AnchorMatch:
    """The whole that contains each part best, by geometry: the anchor object of a plate is the car around it.

    Args:
        parts: boxes of shape (..., N, 4), float16, bfloat16, float32 or float64.
        wholes: boxes of shape (..., M, 4). Leading dimensions are batches, and are broadcast.
        part_group: (..., N) int64 or int32: a part belongs to a whole of its own group only, for example of its own
            image. A negative group belongs to nothing.
        whole_group: (..., M), of the wholes; both or neither. Sorted groups are faster.
        min_containment: a part of which no whole contains at least this share has no anchor object.
        larger: only wholes of a larger area than the part. Where parts and wholes are the same boxes, or of one class,
            no box is then its own anchor object, and no two are each other's.
        eps: every denominator is max(denominator, eps), in the square of the boxes' unit (pixels or normalised).
        box_format: "xyxy", "cxcywh" or "xywh", of all boxes.
        backend: name of a backend, or None: the first of `available_backends` that can run these tensors.

    Returns:
        `AnchorMatch` (anchor_index, containment), each (..., N): the row of the whole, int64, -1 for none, as
        `icr_loss` takes it; and |part and whole| / |part| of the whole that contains the part best, float32
        or float64. Of wholes whose containments differ by at most 1e-6 the smallest is taken, then the first. A box
        with NaN matches nothing. No gradient flows.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device, name or number.
        RuntimeError: the backend that was asked for cannot run here.
    """
    names = ("parts", "wholes", "part_group", "whole_group")
    matrix = arguments.sets(parts, wholes, part_group, whole_group, names=names)
    min_containment = arguments.number("min_containment", min_containment, 0, 1)
    arguments.flag("larger", larger)
    options = arguments.pair_function("containment", eps, box_format), -1, backend
    best, index = select(matrix, *options, larger=larger)
    found = (index >= 0) & (best >= min_containment)
    index = select(matrix, *options, larger=larger, at_least=best - TIE).indices
    return AnchorMatch(torch.where(found, index, -1), best.clamp(min=0))


class Matcher:
    """torchvision's `Matcher`, from boxes instead of their matrix: which ground truth each box is trained towards.

    Args:
        high_threshold: a box whose best ground truth overlaps it at least this much is matched to it.
        low_threshold: one that is overlapped less than this is background.
        allow_low_quality_matches: also match, each to its own best ground truth, the boxes that overlap some ground
            truth most of all boxes, ties included, however little that is; a ground truth that no box overlaps makes,
            as in torchvision, every box of its group such a box.
        kind, eps, box_format, backend: as of `icr_kernels.pairwise_max`.
    """

    BELOW_LOW_THRESHOLD = -1
    BETWEEN_THRESHOLDS = -2

    def __init__(
        self,
        high_threshold: float,
        low_threshold: float,
        allow_low_quality_matches: bool = False,
        *,
        kind: str | BoxLoss = "iou",
        eps: float = 1e-7,
        box_format: str = "xyxy",
        backend: str | None = None,
    ) -> None:
        self.high_threshold = arguments.number("high_threshold", high_threshold)
        self.low_threshold = arguments.number("low_threshold", low_threshold)
        if self.low_threshold > self.high_threshold:
            raise ValueError(
                f"low_threshold: expected at most high_threshold, {high_threshold!r}, got {low_threshold!r}"
            )
        arguments.flag("allow_low_quality_matches", allow_low_quality_matches)
        self.allow_low_quality_matches = allow_low_quality_matches
        self._function = arguments.pair_function(kind, eps, box_format)
        self._given: dict[str, Any] = {"kind": kind, "eps": eps, "box_format": box_format, "backend": backend}

    def __repr__(self) -> str:
        thresholds = ("high_threshold", "low_threshold", "allow_low_quality_matches")
        options = {**{name: getattr(self, name) for name in thresholds}, **self._given}
        return f"Matcher({', '.join(f'{name}={value!r}' for name, value in options.items())})"

    def __call__(
        self,
        ground_truth: Tensor,
        boxes: Tensor,
        *,
        ground_truth_group: Tensor | None = None,
        group: Tensor | None = None,
    ) -> Tensor:
        """The match of each of ``boxes`` (..., N, 4) among ``ground_truth`` (..., M, 4): (..., N) int64, the row of its
        ground truth, BELOW_LOW_THRESHOLD (-1) or BETWEEN_THRESHOLDS (-2). Groups, for example image numbers, are those
        of `pairwise_max`; a box in an image without ground truth is -1."""
        names = ("ground_truth", "boxes", "ground_truth_group", "group")
        matrix = arguments.sets(ground_truth, boxes, ground_truth_group, group, names=names)
        of_boxes = partial(select, matrix, self._function, -2, self._given["backend"])
        values, best = of_boxes()
        matches = torch.where(values < self.high_threshold, self.BETWEEN_THRESHOLDS, best)
        matches = torch.where(values < self.low_threshold, self.BELOW_LOW_THRESHOLD, matches)
        matches = torch.where(best < 0, self.BELOW_LOW_THRESHOLD, matches)
        if not self.allow_low_quality_matches:
            return matches
        most = select(matrix, self._function, -1, self._given["backend"]).values
        # A box reaches the most of a ground truth where the difference from it is 0.
        reaches = of_boxes(offset=most).values == 0
        return torch.where(reaches, best, matches)


def detr_matching_cost(
    pred_logits: Tensor,
    pred_boxes: Tensor,
    target_labels: Tensor,
    target_boxes: Tensor,
    target_image: Tensor,
    *,
    classification: str = "softmax",
    class_weight: float = 1.0,
    l1_weight: float = 5.0,
    giou_weight: float = 2.0,
    alpha: float = 0.25,
    gamma: float = 2.0,
    focal_eps: float = 1e-8,
    eps: float = 1e-16,
    box_format: str = "cxcywh",
    backend: str | None = None,
) -> Tensor:
    """The cost that DETR's Hungarian matcher minimises, of each target with the queries of its own image.

    Other implementations compute it for every pair of a query and a target of the whole batch, B times as much, and use
    the blocks on the diagonal.

    Args:
        pred_logits: (B, Q, C) floating, class logits of Q queries in each of B images.
        pred_boxes: (B, Q, 4), their boxes, usually normalised.
        target_labels: (M,) int64 or int32, the classes of the targets of all images.
        target_boxes: (M, 4), their boxes, in the same format and unit.
        target_image: (M,) int64 or int32, the image of each target.
        classification: "softmax" (DETR, Carion et al. 2020, arXiv 2005.12872): minus the probability of the target's
            class; or "focal" (Deformable DETR, RT-DETR and their family): the focal loss of that class as a positive,
            less the one as a negative.
        class_weight, l1_weight, giou_weight: of the classification term, of the L1 distance of the coordinates as they
            are given, and of minus the generalised IoU. The focal family uses 2, 5, 2.
        alpha, gamma: of the focal loss.
        focal_eps: from 1e-30 to 1, added to each probability of the focal loss before its logarithm is taken:
            1e-8 in Deformable DETR and its family, 1e-12 in MMDetection's FocalLossCost.
        eps: every denominator of the IoU is max(denominator, eps), in the square of the boxes' unit: the default is the
            area of a normalised box with sides of 1e-8.
        box_format: "cxcywh", "xyxy" or "xywh", of all boxes.
        backend: name of a backend, or None: the first of `available_backends` that can run these tensors.

    Returns:
        (M, Q) float32, or float64 if boxes or logits are: one row per target. No gradient flows. The rows of an image,
        transposed, are what `scipy.optimize.linear_sum_assignment` takes, but for NaN, which it refuses: put a number
        beyond every cost in its place, ``cost.nan_to_num(1e6, 1e6)``. NaN is the cost of a target whose box has NaN, or
        whose label or image does not exist; of a query whose box has NaN; and of one with a NaN logit, for targets of
        that class ("focal") or for all ("softmax").

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device, name or number.
        RuntimeError: the backend that was asked for cannot run here.
    """
    arguments.matched(pred_logits, pred_boxes, target_labels, target_boxes, target_image)
    cost = arguments.matching_cost(
        classification, class_weight, l1_weight, giou_weight, alpha, gamma, focal_eps, eps, box_format
    )
    chosen = choose(backend, device_type(pred_boxes))
    with torch.no_grad():
        log_normalizer = None
        if classification == "softmax":
            dtype = compute_dtype(pred_logits, pred_boxes, target_boxes)
            log_normalizer = pred_logits.to(dtype).logsumexp(-1)
        tensors = pred_boxes, pred_logits, log_normalizer, target_boxes, target_labels, target_image
        if chosen.operators is None:
            return reference.matching_cost(CostCall(*tensors, cost.packed()), cost)
        return chosen.operators.matching_cost(*tensors, cost.packed())
