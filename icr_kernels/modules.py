"""The losses as modules: they hold the options and call the functions."""

from typing import Any

from torch import Tensor, nn

from . import arguments
from .backends import named
from .calls import Formula
from .dense_reference import Assignment, DetectionTerms
from .detection import dense_detection_loss
from .functional import box_iou_loss, icr_loss


class _Options(nn.Module):
    """Keeps keyword options, checks their names and numbers at once, and shows them."""

    def __init__(self, reduction: str, backend: str | None, **formula) -> None:
        super().__init__()
        arguments.formula(*Formula(**formula))
        arguments.reduction(reduction)
        if backend is not None:
            named(backend)
        self.options = {**formula, "reduction": reduction, "backend": backend}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class BoxIoULoss(_Options):
    """`box_iou_loss` with its options held: ``BoxIoULoss(loss="giou")(pred, target, mask=mask)``.

    The tensors target_index, weight, mask and normalizer are given at the call.
    """

    def __init__(
        self,
        loss: str = "ciou",
        *,
        reduction: str = "mean",
        eps: float = 1e-7,
        box_format: str = "xyxy",
        backend: str | None = None,
    ) -> None:
        super().__init__(loss=loss, reduction=reduction, eps=eps, box_format=box_format, backend=backend)

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        *,
        target_index: Tensor | None = None,
        weight: Tensor | None = None,
        mask: Tensor | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        return box_iou_loss(
            pred,
            target,
            target_index=target_index,
            weight=weight,
            mask=mask,
            normalizer=normalizer,
            **self.options,
        )


class ICRLoss(_Options):
    """`icr_loss` with its options held: ``ICRLoss("giou", penalty_weight=0.5)(pred, target, cars)``.

    The tensors target_index, anchor_index, weight, mask and normalizer are given at the call.
    """

    def __init__(
        self,
        loss: str = "ciou",
        penalty: str = "containment",
        *,
        penalty_weight: float = 1.0,
        relative: bool = False,
        reduction: str = "mean",
        eps: float = 1e-7,
        box_format: str = "xyxy",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            loss=loss,
            penalty=penalty,
            penalty_weight=penalty_weight,
            relative=relative,
            reduction=reduction,
            eps=eps,
            box_format=box_format,
            backend=backend,
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
            **self.options,
        )


class DetectionLoss(nn.Module):
    """`dense_detection_loss` with its options held: ``sum(DetectionLoss()(boxes.mT, classes.mT, points, strides, truth,
    labels, image))``.

    The tensors assignment, anchor_index and normalizer, and image_size, are given at the call. ``class_weight`` is a
    buffer that moves with the module and is not part of its state.
    """

    class_weight: Tensor | None

    def __init__(
        self,
        loss: str = "ciou",
        penalty: str | None = None,
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
        eps: float = 1e-7,
        box_format: str = "xyxy",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        arguments.detection_formula(
            loss, penalty, box_format, relative, penalty_weight, eps, gains, None, weighting, None
        )
        arguments.assignment_rule(topk, topk2, alpha, beta, smallest_side, True, "xyxy", box_format, 0.0)
        arguments.flag("average_over_ranks", average_over_ranks)
        if backend is not None:
            named(backend)
        if class_weight is not None:
            arguments.weights_of_classes(class_weight)
        self.register_buffer("class_weight", class_weight, persistent=False)
        self.options: dict[str, Any] = {
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
            "eps": eps,
            "box_format": box_format,
            "backend": backend,
        }

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())

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
            **self.options,
        )
