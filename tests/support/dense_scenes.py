"""Dense heads and their ground truth, for assignments: what a network predicts at the points of B images."""

import torch
from torch import Tensor

from benchmarks.assignment import grids

# Of the scenes: predictions that fit some box; such with overlaps at random; equal scores and boxes on a coarse grid;
# inverted boxes and NaN among them.
KINDS = ("trained", "random", "equal", "broken")


def dense_scene(
    kind: str, seed: int, *, images: int = 2, most: int = 20, size: int = 96, classes: int = 5
) -> dict[str, Tensor]:
    """The arguments of `icr.task_aligned_assign`: up to so many boxes an image, of sides from 2 % to 100 % of it."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    points = grids(size)
    counts = torch.randint(0, most + 1, (images,), generator=generator)
    image = torch.arange(images).repeat_interleave(counts)
    rows = len(image)
    side, center = size * torch.exp(4 * uniform(rows, 2) - 4), size * uniform(rows, 2)
    truth = torch.cat((center - side / 2, center + side / 2), -1).clamp(0, size)
    boxes = torch.cat((points, points), -1) + (uniform(images, len(points), 4) - torch.tensor([1, 1, 0, 0])) * size / 4
    if kind != "random":
        for number in range(images):
            of_image = truth[image == number]
            if len(of_image):
                middle = (of_image[:, :2] + of_image[:, 2:]) / 2
                boxes[number] = of_image[torch.cdist(points, middle).argmin(1)]
        boxes = boxes + 4 * torch.randn(boxes.shape, generator=generator)
    scores = uniform(images, len(points), classes)
    if kind == "equal":
        boxes, scores = 8 * (boxes / 8).round(), torch.full_like(scores, 0.25)
    if kind == "broken":
        fate = uniform(*boxes.shape[:2], 1)
        boxes = torch.where(fate < 0.05, boxes.flip(-1), boxes).where(fate < 0.97, torch.nan)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    return {"scores": scores, "boxes": boxes, "points": points, "truth": truth, "labels": labels, "image": image}
