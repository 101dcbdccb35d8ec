"""The kernels in Triton: the same losses and penalties as csrc/, for tensors on a GPU. In Triton's interpreter
(TRITON_INTERPRET=1) they run on CPU tensors."""

from .assignment_operators import assigned
from .detection_operators import decoded, decoded_backward, detection_loss, detection_loss_backward
from .operators import loss, scaled, scaled_, terms, terms_backward
from .pairwise_operators import matching_cost, pairwise, pairwise_backward, selected

__all__ = [
    "assigned",
    "decoded",
    "decoded_backward",
    "detection_loss",
    "detection_loss_backward",
    "loss",
    "matching_cost",
    "pairwise",
    "pairwise_backward",
    "scaled",
    "scaled_",
    "selected",
    "terms",
    "terms_backward",
]
