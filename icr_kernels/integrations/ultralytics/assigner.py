"""The assigner of a detector, and how it takes the place of the stock one in a criterion."""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...assignment import task_aligned_assign
from ..handle import ROUNDING
from .in_place import InPlace, before, heads, named

# The side of the images of a trial, in units.
TRIAL_SIZE = 20

# target_labels, target_bboxes, target_scores, fg_mask, target_gt_idx
Targets = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class TaskAlignedAssigner(nn.Module):
    """`task_aligned_assign` with the arguments and results of Ultralytics' `TaskAlignedAssigner`, but without its
    tensors of (images, boxes, points). Ultralytics need not be installed.

    The results are the same but for ties, where the lowest index is taken, as the stock one does it on a GPU (on a CPU
    it takes any); for predictions and scores that are NaN, which the stock one lets into the scores of all points of
    the image; and for the last bits of powers. Scores are float32, whatever the dtype of the predictions, as the stock
    one's are under CUDA's autocast. Among overlaps that are all 0 a point goes to the first box that the mask keeps.

    Args:
        topk: how many points a box takes, at most 32.
        num_classes: the label of all points where no image of a batch has a box.
        alpha, beta: the exponents of score and overlap.
        stride: of the levels. The second (or only) one is the least side of a box that a point lies in; None: 16.
        eps: as of `task_aligned_assign`, of the candidates too, for which the stock one always takes 1e-9.
        topk2: how many points a box keeps; None: all.
    """

    # What versions before 8.4 do not have: they keep all points, and boxes as they are.
    topk2: int | None = None
    stride_val: float | None = None

    def __init__(
        self,
        topk: int = 13,
        num_classes: int = 80,
        alpha: float = 1.0,
        beta: float = 6.0,
        stride: list | None = None,
        eps: float = 1e-9,
        topk2: int | None = None,
    ) -> None:
        super().__init__()
        self.topk, self.topk2 = topk, topk2 or topk
        self.num_classes = num_classes
        self.alpha, self.beta, self.eps = alpha, beta, eps
        self.stride = [8, 16, 32] if stride is None else stride
        self.stride_val = self.stride[1] if len(self.stride) > 1 else self.stride[0]

    @torch.no_grad()
    def forward(
        self,
        pd_scores: Tensor,
        pd_bboxes: Tensor,
        anc_points: Tensor,
        gt_labels: Tensor,
        gt_bboxes: Tensor,
        mask_gt: Tensor,
        **extra: Any,
    ) -> Targets:
        """Of B images with A points, and at most M boxes each.

        Args:
            pd_scores: (B, A, num_classes), probabilities.
            pd_bboxes: (B, A, 4), corners in pixels, as of ``anc_points`` (A, 2) and ``gt_bboxes`` (B, M, 4).
            gt_labels, mask_gt: (B, M, 1); 0 in the mask is padding.
            extra: of other tasks; ignored, as by the stock assigner of boxes.

        Returns:
            Labels (B, A), boxes (B, A, 4), scores (B, A, num_classes), which points have a target (B, A), and its
            number in the image (B, A). That of background is 0; so its label and box are those of the first.
        """
        images, count = gt_bboxes.shape[:2]
        if count == 0:
            none = torch.zeros_like(pd_scores[..., 0])
            return (
                torch.full_like(none, self.num_classes),
                torch.zeros_like(pd_bboxes),
                torch.zeros_like(pd_scores),
                none.bool(),
                none,
            )
        labels = gt_labels.view(images, count).long().clamp(min=0)
        number = torch.arange(images, device=labels.device)[:, None]
        assigned = task_aligned_assign(
            pd_scores,
            pd_bboxes,
            anc_points,
            gt_bboxes.reshape(-1, 4),
            labels.flatten(),
            torch.where(mask_gt.view(images, count) > 0, number, -1).flatten(),
            **self.rule(),
        )
        is_positive = assigned.index >= 0
        index = torch.where(is_positive, assigned.index - count * number, 0)
        label = labels.gather(1, index)
        box = gt_bboxes.gather(1, index[..., None].expand(-1, -1, 4))
        scores = assigned.score.new_zeros(pd_scores.shape).scatter_(2, label[..., None], assigned.score[..., None])
        return label, box, scores, is_positive, index

    def rule(self) -> dict[str, Any]:
        """As the arguments of `task_aligned_assign`."""
        return {
            "topk": self.topk,
            "topk2": None if self.topk2 == self.topk else self.topk2,
            "alpha": self.alpha,
            "beta": self.beta,
            "smallest_side": self.stride_val,
            "eps": self.eps,
        }


class AssignerInPlace(InPlace, TaskAlignedAssigner):
    """Before a stock assigner."""


def replace_assigners(criterion: Any, stays: str = "the assigner") -> list[AssignerInPlace]:
    """Puts this assigner in the place of each stock one of a criterion that assigns in the same way; the others stay,
    and a warning says which, what they stay, and why. Returns what is in place."""
    from ultralytics.utils import tal

    found = [getattr(head, "assigner", None) for head in heads(criterion)]
    if not all(isinstance(each, nn.Module) for each in found):
        raise ValueError(f"model: expected one whose criterion has an assigner, got one with {named(criterion)}")
    for assigner in found:
        if isinstance(assigner, InPlace):
            continue
        base: Any = type(assigner)
        reason = "is of another class" if base is not tal.TaskAlignedAssigner else _difference(assigner)
        if reason is None:
            assigner.__class__ = before(AssignerInPlace, base)
        else:
            warnings.warn(f"icr_kernels: {named(assigner)} stays {stays}, because it {reason}", stacklevel=2)
    return [each for each in found if isinstance(each, AssignerInPlace)]


def _difference(stock: Any) -> str | None:
    """What a stock assigner does in another way: versions differ in how they enlarge small boxes, and forks in more."""
    base: Any = type(stock)
    own = copy.copy(stock)
    own.__class__ = before(AssignerInPlace, base)
    try:
        trial = trial_scene(stock.num_classes, (own.stride_val or 16.0) / 2)
        # Of a copy, because it takes notes.
        theirs, ours = copy.copy(stock).forward(*trial), own.forward(*trial)
        if all((a.float() - b.float()).abs().max() <= ROUNDING for a, b in zip(theirs, ours, strict=True)):
            return None
        return "assigns a trial scene otherwise"
    except Exception as error:  # whatever one raises that is called in another way
        return f"cannot be compared ({error})"


def trial_scene(classes: int, unit: float, steps: Sequence[float] = (1, 2, 4)) -> tuple[Tensor, ...]:
    """What an assigner is called with: two images of 20 units, and levels of points that are so many units apart. In
    one are many boxes apart from each other, with sides from an eighth of a unit to three, of which two are what small
    ones may be enlarged to; in the other two that share points, and padding. A point predicts the box nearest to it,
    more or less, so that every candidate of a box has some similarity, and there are no ties."""
    # Of some seeds the one with most small boxes whose points depend on how they are enlarged, of both kinds of heads.
    random = torch.Generator().manual_seed(9)
    points = torch.cat([step * (_grid(int(TRIAL_SIZE / step)) + 0.5) for step in steps])
    side = 24 ** torch.rand(25, 2, generator=random) / 8
    centre = 4 * _grid(5) + 1.5 + torch.rand(25, 2, generator=random)
    boxes = torch.zeros(2, 25, 4)
    boxes[0] = torch.cat((centre - side / 2, centre + side / 2), 1)
    boxes[1, :2] = torch.tensor([(1, 1, 12, 12), (4, 3, 14, 13)])
    is_box = boxes.sum(-1, keepdim=True) > 0
    distance = (points[:, None] - (boxes[:, None, :, :2] + boxes[:, None, :, 2:]) / 2).abs().amax(-1)
    nearest = torch.where(is_box.mT, distance, torch.inf).argmin(-1, keepdim=True)
    predicted = boxes.gather(1, nearest.expand(-1, -1, 4))
    side = (predicted[..., 2:] - predicted[..., :2]).repeat(1, 1, 2)
    predicted = predicted + 0.2 * (torch.rand(predicted.shape, generator=random) - 0.5) * side
    scores = torch.rand(2, len(points), classes, generator=random)
    labels = torch.arange(50).view(2, 25, 1) % classes
    return scores, unit * predicted, unit * points, labels, unit * boxes, is_box


def _grid(count: int) -> Tensor:
    return torch.cartesian_prod(torch.arange(count), torch.arange(count)).flip(1)
