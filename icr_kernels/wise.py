"""The running mean of 1 - IoU that losses with ``wise`` compare a pair with (Tong et al. 2023, arXiv 2301.10051).

It begins at 1 and is updated before it is used, as in the authors' code: the mean of a batch has to be known before its
first loss, so that is a pass of its own over the boxes, without a gradient. Nothing waits for a device.
"""

import torch
from torch import Tensor
from torch import distributed as dist

from .functional import box_iou_loss

# How much of the mean a batch is. The paper has 1 - 0.05^(1/(n t)), with n batches an epoch and t epochs until the
# overlap grows slowly; the authors' code has this.
MOMENTUM = 0.01


@torch.no_grad()
def update(
    mean: Tensor,
    pred: Tensor,
    target: Tensor,
    *,
    target_index: Tensor | None = None,
    mask: Tensor | None = None,
    momentum: float = MOMENTUM,
    average_over_ranks: bool = False,
    eps: float = 1e-7,
    box_format: str = "xyxy",
    backend: str | None = None,
) -> None:
    """Changes the mean in place by the pairs that count, as `box_iou_loss` takes them; without any, or with NaN among
    them, it stays."""
    total = box_iou_loss(
        pred.detach(),
        target.detach(),
        target_index=target_index,
        loss="iou",
        mask=mask,
        reduction="sum",
        eps=eps,
        box_format=box_format,
        backend=backend,
    )
    counts = torch.ones(pred.shape[:-1], dtype=torch.bool, device=pred.device) if mask is None else mask
    if target_index is not None:
        counts = counts & (target_index >= 0) & (target_index < len(target))
    sums = torch.stack((total, counts.sum().to(total.dtype)))
    if average_over_ranks and dist.is_available() and dist.is_initialized():
        dist.all_reduce(sums)
    total, count = sums.unbind()
    batch = total / count.clamp(min=1)
    mean.lerp_(torch.where((count > 0) & batch.isfinite(), batch, mean).to(mean.dtype), momentum)
