"""The losses as modules: they hold the options and call the functions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import arguments, wise
from .backends import named
from .calls import Formula
from .dense_reference import Assignment, DetectionTerms
from .detection import assign, decode_boxes, dense_detection_loss
from .formulas import plain_corners
from .functional import box_iou_loss, documented, icr_loss
from .specifications import BoxLoss, Penalty, box_loss

_WISE = """

    Of a `BoxLoss` that is ``wise`` the module has the running mean of 1 - IoU, the buffer ``wise_mean``, as part of
    its state; a model that is cast to half precision keeps it in float32. It begins at 1; in training, not in
    evaluation, each call moves it by ``wise_momentum`` towards the mean of its pairs that count (of those of all
    processes with ``average_over_ranks``) before it is used."""


class _WithMean(nn.Module):
    """Keeps the running mean of a loss that is wise, and shows the options."""

    options: dict[str, Any]
    wise_mean: Tensor | None

    def _keep_mean(self, loss: str | BoxLoss, momentum: float, average_over_ranks: bool) -> None:
        is_wise = box_loss(loss).wise is not None
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.register_buffer("wise_mean", torch.ones((), dtype=dtype) if is_wise else None)
        arguments.flag("average_over_ranks", average_over_ranks)
        self.of_mean: dict[str, Any] = {
            "momentum": arguments.number("wise_momentum", momentum, 0, 1),
            "average_over_ranks": average_over_ranks,
        }

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Half precision would round the steps of the mean away: a cast to it moves the mean to its device alone."""
        before = self.wise_mean
        super()._apply(fn, recurse)
        after: Any = self.wise_mean
        if before is not None and after.dtype not in (torch.float32, torch.float64):
            self.wise_mean = before.to(after.device)
        return self

    def _updated_mean(self, pred: Tensor, target: Tensor, **pairs: Any) -> Tensor | None:
        """The mean to use now. A copy: a backward pass that is still to come needs it as it is."""
        if self.wise_mean is None:
            return None
        if self.training:
            wise.update(self.wise_mean, pred, target, **pairs, **self.of_mean)
        return self.wise_mean.clone()

    def extra_repr(self) -> str:
        momentum, over_ranks = self.of_mean.values()
        of_mean = {"wise_momentum": momentum, "average_over_ranks": over_ranks} if self.wise_mean is not None else {}
        return ", ".join(f"{name}={value!r}" for name, value in {**self.options, **of_mean}.items())


class _Options(_WithMean):
    """Keeps keyword options and checks their names and numbers at once."""

    def __init__(
        self, reduction: str, backend: str | None, wise_momentum: float, average_over_ranks: bool, **formula: Any
    ) -> None:
        super().__init__()
        arguments.formula(*Formula(**formula))
        arguments.reduction(reduction)
        if backend is not None:
            named(backend)
        self.options = {**formula, "reduction": reduction, "backend": backend}
        self._keep_mean(formula["loss"], wise_momentum, average_over_ranks)

    def _mean_of(
        self,
        pred: Tensor,
        target: Tensor,
        target_index: Tensor | None,
        weight: Tensor | None,
        mask: Tensor | None,
        scale: float | Tensor,
    ) -> Tensor | None:
        if self.wise_mean is None:
            return None
        # What is refused does not move it.
        arguments.pairs(pred, target, None, target_index, None, weight, mask, scale)
        arguments.formula("iou", "pull", "xyxy", False, 0.0, self.options["eps"], scale)
        same = {name: self.options[name] for name in ("eps", "box_format", "backend")}
        return self._updated_mean(pred, target, target_index=target_index, mask=mask, **same)


@documented(_WISE)
class BoxIoULoss(_Options):
    """`box_iou_loss` with its options held: ``BoxIoULoss(loss="giou")(pred, target, mask=mask)``.

    The tensors target_index, weight, mask and normalizer, and scale, are given at the call."""

    def __init__(
        self,
        loss: str | BoxLoss = "ciou",
        *,
        reduction: str = "mean",
        wise_momentum: float = wise.MOMENTUM,
        average_over_ranks: bool = False,
        eps: float = 1e-7,
        box_format: str = "xyxy",
        backend: str | None = None,
    ) -> None:
        formula = {"loss": loss, "eps": eps, "box_format": box_format}
        super().__init__(reduction, backend, wise_momentum, average_over_ranks, **formula)

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        *,
        target_index: Tensor | None = None,
        weight: Tensor | None = None,
        mask: Tensor | None = None,
        normalizer: float | Tensor | None = None,
        scale: float | Tensor = 1.0,
    ) -> Tensor:
        return box_iou_loss(
            pred,
            target,
            target_index=target_index,
            weight=weight,
            mask=mask,
            normalizer=normalizer,
            scale=scale,
            wise_mean=self._mean_of(pred, target, target_index, weight, mask, scale),
            **self.options,
        )


@documented(_WISE)
class ICRLoss(_Options):
    """`icr_loss` with its options held: ``ICRLoss("giou", penalty_weight=0.5)(pred, target, cars)``.

    The tensors target_index, anchor_index, weight, mask and normalizer, and scale, are given at the call."""

    def __init__(
        self,
        loss: str | BoxLoss = "ciou",
        penalty: str | Penalty = "containment",
        *,
        penalty_weight: float = 1.0,
        relative: bool = False,
        reduction: str = "mean",
        wise_momentum: float = wise.MOMENTUM,
        average_over_ranks: bool = False,
        eps: float = 1e-7,
        box_format: str = "xyxy",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            reduction,
            backend,
            wise_momentum,
            average_over_ranks,
            loss=loss,
            penalty=penalty,
            penalty_weight=penalty_weight,
            relative=relative,
            eps=eps,
            box_format=box_format,
        )

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        anchor_objects: Tensor | None,
        *,
        target_index: Tensor | None = None,
        anchor_index: Tensor | None = None,
        weight: Tensor | None = None,
        mask: Tensor | None = None,
        normalizer: float | Tensor | None = None,
        scale: float | Tensor = 1.0,
    ) -> Tensor:
        return icr_loss(
            pred,
            target,
            anchor_objects,
            target_index=target_index,
            anchor_index=anchor_index,
            weight=weight,
            mask=mask,
            normalizer=normalizer,
            scale=scale,
            wise_mean=self._mean_of(pred, target, target_index, weight, mask, scale),
            **self.options,
        )


@documented(_WISE)
class DetectionLoss(_WithMean):
    """`dense_detection_loss` with its options held: ``sum(DetectionLoss()(boxes.mT, classes.mT, points, strides, truth,
    labels, image))``.

    The tensors assignment, anchor_index and normalizer, and image_size, are given at the call. ``class_weight`` is a
    buffer that moves with the module and is not part of its state."""

    class_weight: Tensor | None

    def __init__(
        self,
        loss: str | BoxLoss = "ciou",
        penalty: str | Penalty | None = None,
        *,
        penalty_weight: float = 1.0,
        relative: bool = False,
        weighting: str = "uniform",
        class_weight: Tensor | None = None,
        gains: tuple[float, float, float] = (7.5, 0.5, 1.5),
        topk: int = 10,
        topk2: int | None = None,
        alpha: float = 0.5,
        beta: float = 6.0,
        smallest_side: float | None = None,
        average_over_ranks: bool = False,
        scale: float = 1.0,
        wise_momentum: float = wise.MOMENTUM,
        eps: float = 1e-7,
        box_format: str = "xyxy",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        arguments.detection_formula(
            loss, penalty, box_format, relative, penalty_weight, eps, scale, gains, None, weighting, None
        )
        arguments.assignment_rule(topk, topk2, alpha, beta, smallest_side, True, "xyxy", box_format, 0.0)
        self._keep_mean(loss, wise_momentum, average_over_ranks)
        if backend is not None:
            named(backend)
        if class_weight is not None:
            arguments.weights_of_classes(class_weight)
        self.register_buffer("class_weight", class_weight, persistent=False)
        self.options = {
            "loss": loss,
            "penalty": penalty,
            "penalty_weight": penalty_weight,
            "relative": relative,
            "weighting": weighting,
            "gains": gains,
            "topk": topk,
            "topk2": topk2,
            "alpha": alpha,
            "beta": beta,
            "smallest_side": smallest_side,
            "average_over_ranks": average_over_ranks,
            "scale": scale,
            "eps": eps,
            "box_format": box_format,
            "backend": backend,
        }

    def forward(
        self,
        box_logits: Tensor,
        class_logits: Tensor,
        points: Tensor,
        strides: Tensor,
        truth: Tensor,
        labels: Tensor,
        image: Tensor,
        *,
        assignment: Assignment | tuple[Tensor, Tensor] | None = None,
        anchor_index: Tensor | None = None,
        normalizer: float | Tensor | None = None,
        image_size: tuple[float, float] | None = None,
    ) -> DetectionTerms:
        mean = None
        if self.wise_mean is not None:
            head = box_logits, class_logits, points, strides, truth, labels, image
            if assignment is None:
                of_assignment = ("topk", "topk2", "alpha", "beta", "smallest_side", "box_format", "backend")
                assignment = assign(*head, **{name: self.options[name] for name in of_assignment})
            boxes = decode_boxes(box_logits.detach(), points, strides, backend=self.options["backend"])
            corners = torch.stack(plain_corners(truth, self.options["box_format"]), -1)
            same = {name: self.options[name] for name in ("eps", "backend")}
            mean = self._updated_mean(boxes, corners, target_index=assignment[0], **same)
        return dense_detection_loss(
            box_logits,
            class_logits,
            points,
            strides,
            truth,
            labels,
            image,
            assignment=assignment,
            anchor_index=anchor_index,
            normalizer=normalizer,
            image_size=image_size,
            class_weight=self.class_weight,
            wise_mean=mean,
            **self.options,
        )
