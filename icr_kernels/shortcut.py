"""The short way of an ordinary call, by the extension of autograd (csrc/autograd.cpp) where there is one.

Each function takes what the one of `icr_kernels.functional` was called with, checks it, and returns the result; or
None, for a call that is not ordinary: it goes the long way.
"""

from . import autograd, builds
from .specifications import BoxLoss, Penalty
from .variants import BOX_FORMAT_IDS, LOSS_NAMES, PENALTY_NAMES, REDUCTION_IDS


def _no_result(*arguments) -> None:
    return None


icr_loss = icr_loss_and_grad = _no_result

if builds.autograd_build is not None:
    losses = {name: BoxLoss(name).packed for name in LOSS_NAMES}
    penalties = {name: Penalty(name).packed for name in PENALTY_NAMES}
    builds.autograd_build.set_up(
        autograd.backward_of_any, BoxLoss, losses, Penalty, penalties, BOX_FORMAT_IDS, REDUCTION_IDS
    )
    if builds.cpu_build is not None:
        builds.autograd_build.add_backend("cpu", False, True, builds.cpu_build.direct)
    if builds.cuda_build is not None and builds.CUDA_ERROR is None:
        builds.autograd_build.add_backend("cuda", True, True, builds.cuda_build.direct)
    icr_loss = builds.autograd_build.icr_loss
    icr_loss_and_grad = builds.autograd_build.icr_loss_and_grad
