"""A box loss for MMDetection-style configurations, registered with mmengine, and the hook that finds anchor objects.

Tried with mmengine 0.10. In a configuration::

    custom_imports = dict(imports=["icr_kernels.integrations.mmdet"])
    custom_hooks = [dict(type="ICRPairHook", pairs={"plate": "car"}, names=("car", "plate"))]
    loss_bbox = dict(type="ICRBoxLoss", loss="giou", penalty_weight=0.5, loss_weight=2.0)

Heads hand a loss predictions and targets, and neither images nor classes. So before every iteration the hook gives it
the parts and wholes of the batch's ground truth, and the loss looks its targets up among the parts. That needs a head
whose box loss gets decoded boxes in the pixels of the ground truth (ATSS, FCOS, RTMDet; anchor heads with
reg_decoded_bbox=True). A head that scales its targets (GFL) finds nothing, and the hook warns. Equal boxes of two
images are taken for one."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import checks
from ..functional import icr_loss, icr_terms
from ..pairwise import pairwise_max
from ..relations import Relations
from .handle import Handle, Record, framework

framework("mmengine", "0.10", "1")

from mmengine.hooks import Hook  # noqa: E402
from mmengine.registry import HOOKS, MODELS  # noqa: E402

# A target is a part of the ground truth where their IoU is at least this: it went through a box coder and back.
SAME = 0.999


@MODELS.register_module()
class ICRBoxLoss(nn.Module):
    """`icr_loss` with the signature of MMDetection's box losses. Boxes are corners in pixels, (n, 4).

    Args:
        loss, penalty, penalty_weight, relative, eps: as of `icr_loss`.
        reduction: "none", "sum" or "mean".
        loss_weight: multiplies the result.
    """

    def __init__(
        self,
        loss: str = "giou",
        penalty: str = "containment",
        penalty_weight: float = 0.5,
        relative: bool = False,
        eps: float = 1e-7,
        reduction: str = "mean",
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        checks.names(reduction=reduction, loss=loss, penalty=penalty, eps=eps, box_format="xyxy")
        self.options: dict[str, Any] = {
            "loss": loss,
            "penalty": penalty,
            "penalty_weight": penalty_weight,
            "relative": relative,
            "eps": eps,
        }
        self.reduction = reduction
        self.loss_weight = loss_weight
        self.pairs: tuple[Tensor, Tensor] | None = None
        self.record: Record | None = None

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
        **_: object,
    ) -> Tensor:
        """The loss of n predictions; ``weight`` (n,) or (n, 4), of which the mean counts; with ``avg_factor`` the mean
        divides by it. "none" gives (n,)."""
        reduction = reduction_override or self.reduction
        if avg_factor is not None and reduction == "sum":
            raise ValueError("avg_factor: expected None with reduction='sum', got a number")
        anchors, index = self._anchors_of(target.detach())
        per_pair = None if weight is None else weight.detach() if weight.dim() == 1 else weight.detach().mean(-1)
        loss = icr_loss(
            pred,
            target,
            anchors,
            anchor_index=index,
            weight=per_pair,
            normalizer=avg_factor if reduction == "mean" else None,
            reduction=reduction,
            **self.options,
        )
        if self.record is not None and anchors is not None and torch.is_grad_enabled():
            self._count(pred.detach(), target.detach(), anchors, index)
        return self.loss_weight * loss

    def _anchors_of(self, target: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if self.pairs is None:
            return None, None
        parts, wholes = (boxes.to(target.device) for boxes in self.pairs)
        same, index = pairwise_max(target, parts)
        return wholes.to(target.dtype), torch.where(same >= SAME, index, -1)

    def _count(self, pred: Tensor, target: Tensor, anchors: Tensor, index: Tensor | None) -> None:
        assert self.record is not None and index is not None
        options = {name: value for name, value in self.options.items() if name in ("penalty", "relative", "eps")}
        penalty = icr_terms(pred, target, anchors, anchor_index=index, **options).penalty
        self.record.add(torch.ones_like(index, dtype=torch.bool), index >= 0, index >= 0, penalty)


@HOOKS.register_module()
class ICRPairHook(Hook):
    """Finds the parts and wholes of every batch for the `ICRBoxLoss` of a model.

    Args:
        pairs: to each part the name or names of its wholes.
        names: of the classes, by their label; None: those that the training data set states.
        min_containment: a part of which no whole contains at least this share has no anchor object.

    ``handle`` has the statistics. The hook warns where no target was found among the parts for long.
    """

    def __init__(
        self,
        pairs: Mapping[str, str | Sequence[str]],
        names: Sequence[str] | Mapping[int, str] | None = None,
        min_containment: float = 0.5,
    ) -> None:
        self.pairs = pairs
        self.names = names
        self.min_containment = min_containment
        self.losses: list[ICRBoxLoss] = []
        self.relations: Relations | None = None
        self.handle: Handle | None = None

    def before_train(self, runner: Any) -> None:
        names = self.names
        if names is None:
            names = runner.train_dataloader.dataset.metainfo["classes"]
        self.relations = Relations(self.pairs, names, min_containment=self.min_containment)
        self.losses = [module for module in runner.model.modules() if isinstance(module, ICRBoxLoss)]
        if not self.losses:
            raise ValueError("ICRPairHook: expected a model with an ICRBoxLoss, got one without")
        self.record = Record(self.relations)
        for loss in self.losses:
            loss.record = self.record
        self.handle = Handle(self.record, self._disable)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        assert self.relations is not None
        samples = [sample.gt_instances for sample in data_batch["data_samples"]]
        boxes = torch.cat([_corners(each.bboxes) for each in samples])
        labels = torch.cat([each.labels for each in samples])
        image = torch.cat([torch.full_like(each.labels, number) for number, each in enumerate(samples)])
        index = self.relations.anchor_index(boxes, labels, image)
        # The table has a row a box of the ground truth; one without a whole is of no use, and is nowhere.
        parts = torch.where((index >= 0).unsqueeze(-1), boxes, torch.nan)
        wholes = boxes[index.clamp(min=0)] if len(boxes) else boxes
        for loss in self.losses:
            loss.pairs = parts, wholes

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        for loss in self.losses:
            loss.pairs = None
        if self.losses:
            self.record.step()

    def _disable(self) -> None:
        for loss in self.losses:
            loss.pairs = loss.record = None
        self.losses = []


def _corners(boxes: Any) -> Tensor:
    """The tensor of MMDetection's HorizontalBoxes, or the boxes themselves."""
    return getattr(boxes, "tensor", boxes)
