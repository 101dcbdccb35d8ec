"""For training loops of one's own over several processes."""

import torch
from torch import Tensor
from torch import distributed as dist


def mean_over_ranks(count: Tensor | int, device: torch.device | str | None = None) -> Tensor:
    """The mean of a count over all processes, at least 1: the ``normalizer`` with which the gradients that
    `DistributedDataParallel` averages are those of one process on the whole batch.

    Args:
        count: of this process, for example ``mask.sum()`` or the sum of its target scores: a 0-dim tensor, or a number.
        device: where to put a number; for NCCL the GPU.

    Returns:
        A 0-dim tensor, float32, or float64 for a float64 count. Nothing waits: the sum stays on its device. Without a
        process group, the count itself, at least 1.
    """
    total = torch.as_tensor(count, device=device).detach().reshape(())
    total = total.to(torch.float64 if total.dtype == torch.float64 else torch.float32, copy=True)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
        total = total / dist.get_world_size()
    return total.clamp(min=1)
