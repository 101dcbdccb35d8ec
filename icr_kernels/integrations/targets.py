"""The ground truth of a batch, a dictionary an image as transformers and torchvision have it, as one table."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..relations import Relations


class Targets(NamedTuple):
    """Boxes of all images, one after the other; of each whether it is more than padding (None: all are), whether it is
    a part, and the row of its anchor object."""

    boxes: Tensor
    is_box: Tensor | None
    is_part: Tensor
    anchor_index: Tensor
    first_rows: list[int]

    def rows(self, of_images: list[Tensor]) -> Tensor:
        """Numbers of boxes within each image as rows of the table; negative ones stay as they are."""
        return torch.cat([_shifted(*each) for each in zip(of_images, self.first_rows, strict=True)])


def table_of(
    targets: list[dict[str, Tensor]], label_key: str, relations: Relations, *, eps: float, box_format: str
) -> Targets:
    """The anchor object of each box is looked for among those of its image; a ``parent_idx`` (n,) of every image takes
    precedence. Where ``valid`` (n,) is False there is no box but padding."""
    counts = [len(target["boxes"]) for target in targets]
    first_rows = [sum(counts[:number]) for number in range(len(counts))]
    boxes = torch.cat([target["boxes"] for target in targets])
    labels = torch.cat([target[label_key] for target in targets])
    image = torch.cat([torch.full_like(target[label_key], number) for number, target in enumerate(targets)])
    parents = None
    if all("parent_idx" in target for target in targets):
        parents = torch.cat(
            [
                # What is outside of its image is unknown, not a box of the next one.
                _shifted(torch.where(each["parent_idx"] < count, each["parent_idx"], -1), first)
                for each, count, first in zip(targets, counts, first_rows, strict=True)
            ]
        )
    is_part, is_box = relations.is_part(labels), None
    if targets and "valid" in targets[0]:
        is_box = torch.cat([target["valid"] for target in targets]).bool()
        is_part, image = is_part & is_box, torch.where(is_box, image, -1)
    index = relations.anchor_index(boxes, labels, image, parent_idx=parents, eps=eps, box_format=box_format)
    return Targets(boxes, is_box, is_part, index, first_rows)


def _shifted(index: Tensor, first: int) -> Tensor:
    return torch.where(index >= 0, index + first, index)
