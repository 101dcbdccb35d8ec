"""Frameworks whose adapters are tested. A user's machine may lack them; continuous integration may not."""

import importlib.util
import os
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import case

ALL = os.environ.get("ICR_KERNELS_ALL_FRAMEWORKS") == "1"


def need(name: str) -> None:
    """Skips the module's tests where a framework is not installed, unless all of them are to be there; called in a
    fixture, the tests with this fixture."""
    if importlib.util.find_spec(name) is None:
        reason = f"{name} is not installed; `make test` installs it"
        if ALL:
            raise ModuleNotFoundError(reason)
        pytest.skip(reason, allow_module_level=True)


def torchvision(member: str) -> Any:
    """A member of torchvision, as in "ops.box_iou", for a test that compares with it."""
    if not ALL and importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    return case.torchvision(member)


COLOURS = torch.tensor([[0.2, 0.3, 0.8], [0.9, 0.9, 0.7], [0.1, 0.6, 0.2], [0.7, 0.2, 0.2]])


def painted(boxes: Tensor, labels: Tensor, side: int) -> Tensor:
    """An image (3, side, side) of the boxes, corners in pixels, each in the colour of its class, on a noisy ground."""
    image = 0.4 + 0.1 * torch.rand(3, side, side)
    for (x1, y1, x2, y2), label in zip(boxes.round().int().tolist(), labels.tolist(), strict=True):
        image[:, y1:y2, x1:x2] = COLOURS[label].view(3, 1, 1)
    return image
