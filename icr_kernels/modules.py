"""The losses as modules: they hold the options and call the functions."""

from torch import Tensor, nn

from . import arguments
from .backends import named
from .calls import Formula
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
