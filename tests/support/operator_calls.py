"""The calls of this package's compiled operators, recorded as the public functions make them."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from icr_kernels.backends import BY_NAME
from icr_kernels.operators import OPERATORS


class OperatorCalls(TorchDispatchMode):
    """``found`` holds operator, arguments and result of each call made inside the with block."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[torch._ops.OpOverload, tuple, object]] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        if operator.namespace == "icr_kernels":
            assert not kwargs
            self.found.append((operator, args, result))
        return result


def operator_names(backend: str) -> set[str]:
    """The operators of a backend."""
    return {getattr(BY_NAME[backend].operators, name).name() for name in OPERATORS}


# The operators over pairs of two sets of boxes, and those of a dense head; the others are over aligned pairs.
OVER_SETS = ("pairwise", "pairwise_backward", "selected", "matching_cost", "assigned")
OF_HEADS = ("decoded", "decoded_backward", "detection_loss", "detection_loss_backward")


def operators_over_sets(backend: str) -> set[str]:
    return {name for name in operator_names(backend) if name.endswith(OVER_SETS)}


def operators_of_heads(backend: str) -> set[str]:
    return {name for name in operator_names(backend) if name.endswith(OF_HEADS)}
