"""What an assigner of a dense head is given: predictions of all kinds, and the boxes of their images."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from benchmarks.assignment import grids

SIZE, CLASSES, IMAGES = 160, 5, 2
# How many boxes an image has at most, and their sides in pixels.
KINDS = {
    "empty": (4, 8, 80),  # of the second image
    "one box": (1, 4, 160),
    "some": (8, 4, 160),
    "crowded": (60, 4, 80),
    "tiny": (20, 0.5, 20),
    "huge": (20, 60, 320),
    "duplicates": (12, 8, 120),
    "inverted": (12, 4, 120),
    "NaN": (12, 4, 120),
    "unrelated": (20, 4, 120),  # predictions and boxes
    "half": (20, 4, 120),
    "equal": (20, 4, 120),
}


def scene(kind: str, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Scores, predicted boxes, points, labels, boxes, and which are not padding, as Ultralytics hands them on."""
    random = torch.Generator().manual_seed(seed)
    most, least_side, largest_side = KINDS[kind]
    points = grids(SIZE)
    count = torch.randint(1, most + 1, (IMAGES, 1), generator=random)
    if kind == "empty":
        count[1] = 0
    is_box = torch.arange(most) < count
    ratio = torch.tensor(largest_side / least_side)
    half = least_side * ratio ** torch.rand(IMAGES, most, 2, generator=random) / 2
    centre = SIZE * torch.rand(IMAGES, most, 2, generator=random)
    boxes = torch.cat((centre - half, centre + half), -1)
    if kind == "duplicates":
        boxes[:, 1::2] = boxes[:, ::2]
    boxes = torch.where(is_box[..., None], boxes, 0)
    labels = torch.where(is_box, torch.randint(CLASSES, is_box.shape, generator=random), 0)

    # Each point predicts the nearest box, more or less.
    distance = (points[:, None] - centre[:, None]).abs().sum(-1)
    nearest = torch.where(is_box[:, None], distance, torch.inf).argmin(-1, keepdim=True)
    found = boxes.gather(1, nearest.expand(-1, -1, 4))
    predicted = found + 4 * torch.randn(found.shape, generator=random)
    scores = torch.rand(IMAGES, len(points), CLASSES, generator=random)
    dice = torch.rand(IMAGES, len(points), 1, generator=random)
    if kind == "inverted":
        predicted = torch.where(dice < 0.2, predicted.roll(2, -1), predicted)
    elif kind == "NaN":
        predicted = torch.where(dice < 0.001, torch.nan, predicted)
    elif kind == "unrelated":
        reach = 40 * torch.rand(IMAGES, len(points), 4, generator=random)
        predicted = torch.cat((points - reach[..., :2], points + reach[..., 2:]), -1)
    elif kind == "half":
        scores = scores.half()
    elif kind == "equal":
        scores, predicted = torch.full_like(scores, 0.25), (predicted / 8).round() * 8
    return scores, predicted, points, labels[..., None].float(), boxes, is_box[..., None].float()


def first_of_equals(values: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple:
    """In the place of `torch.topk`, whose choice among equals is open on a CPU: as on a GPU."""
    best, index = values.sort(dim=dim, descending=largest, stable=True)
    return torch.return_types.topk((best.narrow(dim, 0, k), index.narrow(dim, 0, k)))


@contextmanager
def ties_as_on_a_gpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "topk", first_of_equals)
        patch.setattr(torch.Tensor, "topk", first_of_equals)
        yield
