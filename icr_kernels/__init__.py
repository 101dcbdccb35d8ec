"""Fused box-regression losses with the inter-class relational (ICR) penalty for PyTorch."""

from .backends import available_backends, backend_for
from .functional import box_iou_loss, icr_loss, icr_loss_and_grad, icr_terms
from .modules import BoxIoULoss, ICRLoss
from .reference import ICRTerms

__version__ = "0.1.0"

__all__ = [
    "BoxIoULoss",
    "ICRLoss",
    "ICRTerms",
    "available_backends",
    "backend_for",
    "box_iou_loss",
    "icr_loss",
    "icr_loss_and_grad",
    "icr_terms",
]
