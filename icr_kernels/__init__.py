"""Fused box-regression losses with the inter-class relational (ICR) penalty for PyTorch."""

from .assignment import task_aligned_assign
from .backends import available_backends, backend_for
from .dense_reference import Assignment, DetectionTerms
from .detection import decode_boxes, dense_detection_loss
from .functional import box_iou_loss, icr_loss, icr_loss_and_grad, icr_terms
from .matching import AnchorMatch, Matcher, detr_matching_cost, match_anchor_objects
from .modules import BoxIoULoss, DetectionLoss, ICRLoss
from .pairwise import pairwise_iou, pairwise_max, pairwise_topk
from .reference import ICRTerms, Selection
from .relations import Relations
from .specifications import BoxLoss, Penalty

__version__ = "0.1.0"

__all__ = [
    "AnchorMatch",
    "Assignment",
    "BoxIoULoss",
    "BoxLoss",
    "DetectionLoss",
    "DetectionTerms",
    "ICRLoss",
    "ICRTerms",
    "Matcher",
    "Penalty",
    "Relations",
    "Selection",
    "available_backends",
    "backend_for",
    "box_iou_loss",
    "decode_boxes",
    "dense_detection_loss",
    "detr_matching_cost",
    "icr_loss",
    "icr_loss_and_grad",
    "icr_terms",
    "match_anchor_objects",
    "pairwise_iou",
    "pairwise_max",
    "pairwise_topk",
    "task_aligned_assign",
]
