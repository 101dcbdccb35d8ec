"""A box loss for MMDetection-style configurations, registered with mmengine, and the hook that finds anchor objects.

Tried with mmengine 0.10. In a configuration::

    custom_imports = dict(imports=["icr_kernels.integrations.mmdet"])
    custom_hooks = [dict(type="ICRPairHook", pairs={"plate": "car"}, names=("car", "plate"))]
    loss_bbox = dict(type="ICRBoxLoss", loss="giou", penalty_weight=0.5, loss_weight=2.0)

Heads hand a loss predictions and targets, and neither images nor classes. So in every iteration the hook shows it the
batch's ground truth, as the data preprocessor leaves it (rescaled by BatchSyncRandomResize, say), and the loss looks
its targets up among the parts. That needs a head whose box loss gets decoded boxes in the pixels of the ground truth
(ATSS, FCOS, RTMDet; anchor heads with reg_decoded_bbox=True). A head that scales its targets (GFL) finds nothing, and
the hook warns. Equal boxes of two images are taken for one."""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .. import arguments
from ..calls import Formula, compute_dtype
from ..functional import icr_loss, icr_terms
from ..pairwise import pairwise_max
from ..relations import Relations
from .handle import Handle, Record, framework

framework("mmengine", "0.10", "1")

from mmengine.hooks import Hook  # noqa: E402
from mmengine.model import is_model_wrapper  # noqa: E402
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
        self.options: dict[str, Any] = {
            "loss": loss,
            "penalty": penalty,
            "penalty_weight": penalty_weight,
            "relative": relative,
            "eps": eps,
        }
        arguments.formula(*Formula(**self.options))
        arguments.reduction(reduction)
        self.reduction = reduction
        self.loss_weight = arguments.number("loss_weight", loss_weight)
        self.pairing: Pairing | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy of a model is not the one whose batches the hook sees.
        return {**self.__dict__, "pairing": None}

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
        **_: object,
    ) -> Tensor:
        """The loss of n predictions; ``weight`` (n,) or (n, 4), of which the mean counts; with ``avg_factor``, a number
        or a tensor of one, the mean divides by it. Where the weight is 0 a prediction may be anything, NaN too. "none"
        gives (n,)."""
        reduction = reduction_override or self.reduction
        if avg_factor is not None and reduction == "sum":
            raise ValueError("avg_factor: expected None with reduction='sum', got a number")
        anchor_objects, index = self._anchor_objects_of(target.detach())
        per_pair = None if weight is None else weight.detach() if weight.dim() == 1 else weight.detach().mean(-1)
        mask = None if per_pair is None else per_pair != 0
        count = len(pred) if avg_factor is None else _one_number(avg_factor, pred)
        loss = icr_loss(
            pred,
            target,
            anchor_objects,
            anchor_index=index,
            weight=per_pair,
            mask=mask,
            normalizer=count if reduction == "mean" else None,
            reduction=reduction,
            **self.options,
        )
        if index is not None and torch.is_grad_enabled():
            self._count(pred.detach(), target.detach(), anchor_objects, index, mask)
        return self.loss_weight * loss

    def _anchor_objects_of(self, target: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if self.pairing is None or self.pairing.samples is None:
            return None, None
        parts, wholes = (boxes.to(target.device) for boxes in self.pairing.parts_and_wholes())
        same, index = pairwise_max(target, parts)
        return wholes.to(target.dtype), torch.where(same >= SAME, index, -1)

    def _count(
        self, pred: Tensor, target: Tensor, anchor_objects: Tensor | None, index: Tensor, is_positive: Tensor | None
    ) -> None:
        assert self.pairing is not None
        options = {name: value for name, value in self.options.items() if name in ("penalty", "relative", "eps")}
        penalty = icr_terms(pred, target, anchor_objects, anchor_index=index, **options).penalty
        is_positive = torch.ones_like(index, dtype=torch.bool) if is_positive is None else is_positive
        is_paired = is_positive & (index >= 0)
        self.pairing.record.add_positives(is_positive)
        self.pairing.record.add_penalty(is_paired, is_paired, penalty)


def _one_number(avg_factor: Any, pred: Tensor) -> float | Tensor:
    """As a normalizer; a tensor stays on the device, whatever its shape, and goes there without waiting."""
    if not isinstance(avg_factor, Tensor):
        if not isinstance(avg_factor, Real):
            raise TypeError(f"avg_factor: expected a number or a tensor of one, got {type(avg_factor).__name__}")
        return float(avg_factor)
    if avg_factor.numel() != 1:
        raise ValueError(f"avg_factor: expected a number or a tensor of one, got shape {tuple(avg_factor.shape)}")
    dtype = compute_dtype(pred)
    return avg_factor.detach().reshape(()).to(pred.device, dtype, non_blocking=True)


class Pairing:
    """The data samples of the iteration that runs, for all losses of a model."""

    def __init__(self, relations: Relations) -> None:
        self.relations = relations
        self.record = Record(relations)
        self.show(None)

    def show(self, samples: Sequence[Any] | None) -> None:
        self.samples = samples
        self._found: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def parts_and_wholes(self) -> tuple[Tensor, Tensor]:
        """Two tables of the same rows. Looked for when a loss first asks: until then the boxes may change."""
        assert self.samples is not None
        if self._found is None:
            samples = [sample.gt_instances for sample in self.samples]
            boxes = torch.cat([_corners(each.bboxes) for each in samples])
            labels = torch.cat([each.labels for each in samples])
            image = torch.cat([torch.full_like(each.labels, number) for number, each in enumerate(samples)])
            index = self.relations.anchor_index(boxes, labels, image)
            # One row per box of the ground truth; one without a whole is of no use, and is nowhere.
            parts = torch.where((index >= 0).unsqueeze(-1), boxes, torch.nan)
            self._found = parts, boxes[index.clamp(min=0)] if len(boxes) else boxes
        return self._found


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
        self.handle: Handle | None = None
        self._watch: RemovableHandle | None = None

    def before_train(self, runner: Any) -> None:
        names = self.names
        if names is None:
            names = runner.train_dataloader.dataset.metainfo["classes"]
        relations = Relations(self.pairs, names, min_containment=self.min_containment)
        self.losses = [module for module in runner.model.modules() if isinstance(module, ICRBoxLoss)]
        if not self.losses:
            raise ValueError("ICRPairHook: expected a model with an ICRBoxLoss, got one without")
        self.pairing = Pairing(relations)
        for loss in self.losses:
            loss.pairing = self.pairing
        self.handle = Handle(self.pairing.record, self._disable)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self._end_iteration()  # one that an exception left has not been
        self.pairing.show(data_batch["data_samples"])
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        preprocessor = getattr(model, "data_preprocessor", None)
        if preprocessor is not None:
            # It makes new samples, and may rescale their boxes. Watched during the iteration only: nothing stays in
            # copies and pickles of the model.
            self._watch = preprocessor.register_forward_hook(self._after_preprocessor)

    def _after_preprocessor(self, _: nn.Module, __: tuple, batch: Any) -> None:
        self.pairing.show(batch["data_samples"])

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._end_iteration()
        if self.losses:
            self.pairing.record.step()

    def _end_iteration(self) -> None:
        self.pairing.show(None)
        if self._watch is not None:
            self._watch.remove()
            self._watch = None

    def _disable(self) -> None:
        self._end_iteration()
        for loss in self.losses:
            loss.pairing = None
        self.losses = []


def _corners(boxes: Any) -> Tensor:
    """The tensor of MMDetection's HorizontalBoxes, or the boxes themselves."""
    return getattr(boxes, "tensor", boxes)
