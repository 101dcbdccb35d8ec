"""The aligned losses: N (prediction, target, anchor object) triples, forward and backward, as trainers call them."""

import functools
import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

import icr_kernels as icr
from icr_kernels import reference
from icr_kernels.variants import LOSS_NAMES, PENALTY_NAMES

from .case import BOTH, Case, Function, Inputs, LeftOut, step, torchvision, with_compiled

# The loss of each pair, of (pred, target, anchor_objects); anchor_objects None: the box loss alone.
Rowwise = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Loss = str | icr.BoxLoss

MAIN = "ciou + containment"
SIZES = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)
QUICK_SIZES = (1, 1_000, 100_000, 1_000_000)
TRUTH_AT_ONCE = 250_000


# Inputs


def boxes(pairs: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions, targets a little off, and anchor objects that most predictions lie in, in pixels."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(pairs, 2, generator=generator) * (high - low) + low

    corner, side = uniform(0, 600), uniform(8, 48)
    pred = torch.cat([corner, corner + side], 1)
    target = pred + torch.cat([uniform(-2, 2), uniform(-2, 2)], 1)
    anchor_objects = torch.cat([corner - uniform(-4, 30), corner + side + uniform(-4, 30)], 1)
    return pred.requires_grad_(), target, anchor_objects


# Peers


def _containment(pred: Tensor, anchor_objects: Tensor, eps: float = 1e-7) -> Tensor:
    shared = (
        torch.minimum(pred[:, 2:], anchor_objects[:, 2:]) - torch.maximum(pred[:, :2], anchor_objects[:, :2])
    ).clamp(min=0)
    side = pred[:, 2:] - pred[:, :2]
    return shared[:, 0] * shared[:, 1] / (side[:, 0] * side[:, 1] + eps)


def with_containment(loss: Callable[[Tensor, Tensor], Tensor]) -> Rowwise:
    """A box loss of others with the containment penalty beside it."""

    def rowwise(pred: Tensor, target: Tensor, anchor_objects: Tensor | None) -> Tensor:
        value = loss(pred, target)
        return value if anchor_objects is None else value + 1 - _containment(pred, anchor_objects)

    return rowwise


def clamp_form(name: str, eps: float = 1e-7) -> Rowwise:
    """The form that YOLO trainers use: clamped sides, eps added to denominators and heights, alpha without gradient."""
    if name not in ("iou", "giou", "diou", "ciou"):
        raise LeftOut(f"YOLO trainers have no {name}")

    def loss(pred: Tensor, target: Tensor) -> Tensor:
        x1, y1, x2, y2 = pred.unbind(-1)
        tx1, ty1, tx2, ty2 = target.unbind(-1)
        w, h, tw, th = x2 - x1, y2 - y1 + eps, tx2 - tx1, ty2 - ty1 + eps
        shared_w = (torch.minimum(x2, tx2) - torch.maximum(x1, tx1)).clamp(min=0)
        shared_h = (torch.minimum(y2, ty2) - torch.maximum(y1, ty1)).clamp(min=0)
        inter = shared_w * shared_h
        union = w * h + tw * th - inter + eps
        iou = inter / union
        if name == "iou":
            return 1 - iou
        cw = torch.maximum(x2, tx2) - torch.minimum(x1, tx1)
        ch = torch.maximum(y2, ty2) - torch.minimum(y1, ty1)
        if name == "giou":
            enclosing = cw * ch + eps
            return 1 - iou + (enclosing - union) / enclosing
        rho2 = ((tx1 + tx2 - x1 - x2) ** 2 + (ty1 + ty2 - y1 - y2) ** 2) / 4
        distance = rho2 / (cw**2 + ch**2 + eps)
        if name == "diou":
            return 1 - iou + distance
        v = (4 / math.pi**2) * (torch.atan(tw / th) - torch.atan(w / h)) ** 2
        with torch.no_grad():
            alpha = v / (v - iou + (1 + eps))
        return 1 - iou + distance + v * alpha

    return with_containment(loss)


LONG_NAMES = {"giou": "generalized", "diou": "distance", "ciou": "complete"}


def torchvision_form(name: str) -> Rowwise:
    if name not in LONG_NAMES:
        raise LeftOut(f"torchvision has no {name} loss")
    return with_containment(torchvision(f"ops.{LONG_NAMES[name]}_box_iou_loss"))


def fast_box_ops_form(name: str) -> Rowwise:
    if name not in LONG_NAMES:
        raise LeftOut(f"torch-fast-box-ops has no {name} loss")
    package = importlib.import_module("torch_fast_box_ops")
    return with_containment(getattr(package, f"{LONG_NAMES[name]}_box_iou_loss"))


def mmdet_form(name: str) -> Rowwise:
    if name == "eiou":
        raise LeftOut("mmdet's eiou is another loss of that name")
    if name not in ("iou", "giou", "diou", "ciou", "siou"):
        raise LeftOut(f"mmdet has no {name} loss")
    function = getattr(importlib.import_module("mmdet.models.losses.iou_loss"), f"{name}_loss")
    options = {"linear": True} if name == "iou" else {}
    return with_containment(functools.partial(function, reduction="none", **options))


# Usage: how a trainer calls the loss. Each makes two functions of the inputs: one of `icr_loss` (or the reference of
# that name), which takes everything by itself, and one of a loss of each pair.


class Mean:
    """The mean over all pairs."""

    @staticmethod
    def fused(icr_loss: Function, options: Mapping[str, Any]) -> Function:
        return lambda pred, target, anchor_objects=None: icr_loss(pred, target, anchor_objects, **options)

    @staticmethod
    def by_hand(rowwise: Rowwise) -> Function:
        return lambda pred, target, anchor_objects=None: rowwise(pred, target, anchor_objects).mean()


class Sum:
    """The sum over all pairs: the gradient of a mean over many is too small for half precision."""

    @staticmethod
    def fused(icr_loss: Function, options: Mapping[str, Any]) -> Function:
        return lambda pred, target, anchor_objects: icr_loss(pred, target, anchor_objects, reduction="sum", **options)

    @staticmethod
    def by_hand(rowwise: Rowwise) -> Function:
        return lambda pred, target, anchor_objects: rowwise(pred, target, anchor_objects).sum()


class Weighted:
    """YOLO's positives: each weighted by its score, over the sum of all scores."""

    @staticmethod
    def inputs(pairs: int) -> Inputs:
        weight = torch.rand(pairs, generator=torch.Generator().manual_seed(1)) + 0.1
        return *boxes(pairs), weight, weight.sum()

    @staticmethod
    def fused(icr_loss: Function, options: Mapping[str, Any]) -> Function:
        return lambda pred, target, anchor_objects, weight, total: icr_loss(
            pred, target, anchor_objects, weight=weight, normalizer=total, **options
        )

    @staticmethod
    def by_hand(rowwise: Rowwise) -> Function:
        return lambda pred, target, anchor_objects, weight, total: (
            (rowwise(pred, target, anchor_objects) * weight).sum() / total
        )


class Padded:
    """Every point of every image, and a mask of the positives; anchor objects by their row in a table."""

    @staticmethod
    def inputs(batch: int, points: int, positives: int, wholes: int = 500) -> Inputs:
        generator = torch.Generator().manual_seed(2)
        pred, target, anchor_objects = (rows.detach().view(batch, points, 4) for rows in boxes(batch * points))
        mask = (torch.randperm(batch * points, generator=generator) < positives).view(batch, points)
        index = torch.randint(wholes, (batch, points), generator=generator)
        return (
            pred.requires_grad_(),
            target,
            anchor_objects.reshape(-1, 4)[:wholes].clone(),
            index,
            mask,
            mask.sum().float(),
        )

    @staticmethod
    def fused(icr_loss: Function, options: Mapping[str, Any]) -> Function:
        return lambda pred, target, table, index, mask, count: icr_loss(
            pred, target, table, anchor_index=index, mask=mask, normalizer=count, **options
        )

    @staticmethod
    def by_hand(rowwise: Rowwise) -> Function:
        def loss(pred: Tensor, target: Tensor, table: Tensor, index: Tensor, mask: Tensor, count: Tensor) -> Tensor:
            return rowwise(pred[mask], target[mask], table[index[mask]]).sum() / count

        return loss


class Crowded:
    """The positives of crowded images; anchor objects by their row in a table."""

    @staticmethod
    def inputs(pairs: int, wholes: int) -> Inputs:
        pred, target, anchor_objects = boxes(pairs)
        return pred, target, anchor_objects[:wholes].clone(), torch.arange(pairs) % wholes

    @staticmethod
    def fused(icr_loss: Function, options: Mapping[str, Any]) -> Function:
        return lambda pred, target, table, index: icr_loss(pred, target, table, anchor_index=index, **options)

    @staticmethod
    def by_hand(rowwise: Rowwise) -> Function:
        return lambda pred, target, table, index: rowwise(pred, target, table[index]).mean()


def corners(boxes: Tensor) -> Tensor:
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


class Queries:
    """DETR's matched queries: normalised centres and sides, over the number of targets."""

    @staticmethod
    def inputs(pairs: int) -> Inputs:
        generator = torch.Generator().manual_seed(3)
        target = torch.rand(pairs, 4, generator=generator) * 0.4 + torch.tensor([0.3, 0.3, 0.1, 0.1])
        pred = target + 0.02 * torch.rand(pairs, 4, generator=generator)
        return pred.requires_grad_(), target, torch.tensor(float(pairs))

    @staticmethod
    def fused(icr_loss: Function, options: Mapping[str, Any]) -> Function:
        return lambda pred, target, count: icr_loss(
            pred, target, None, normalizer=count, box_format="cxcywh", **options
        )

    @staticmethod
    def by_hand(rowwise: Rowwise) -> Function:
        return lambda pred, target, count: rowwise(corners(pred), corners(target), None).sum() / count

    @staticmethod
    def diagonal() -> Rowwise:
        """What DETR's own code does: the matrix of all pairs, of which it uses the diagonal."""
        generalized_box_iou = torchvision("ops.generalized_box_iou")
        return lambda pred, target, anchor_objects: 1 - torch.diag(generalized_box_iou(pred, target))


# Cases

LOADERS: dict[str, Callable[[str], Rowwise]] = {
    "eager, clamp form": clamp_form,
    "eager, torchvision": torchvision_form,
    "mmdet": mmdet_form,
    "torch-fast-box-ops": fast_box_ops_form,
}


@functools.cache
def peers(usage: Any, loss: Loss, penalty: str) -> dict[str, Callable[[], Function]]:
    """The code that users run today; the forms of others know of penalties only the containment."""

    def load(form: Callable[[str], Rowwise]) -> Function:
        if penalty not in ("containment", "none"):
            raise LeftOut(f"it would need the {penalty} penalty written out")
        if not isinstance(loss, str):
            raise LeftOut(f"it has no {loss}")
        return usage.by_hand(form(loss))

    def of_reference() -> Function:
        return usage.fused(reference.icr_loss, options_of(loss, penalty))

    found: dict[str, Callable[[], Function]] = {
        name: functools.partial(load, form) for name, form in LOADERS.items()
    } | {"eager, reference": of_reference}
    if usage is Queries:
        found["eager, diagonal of the matrix"] = lambda: usage.by_hand(usage.diagonal())
    return with_compiled(found, "eager, clamp form", "eager, reference")


def options_of(loss: Loss, penalty: str) -> dict[str, Any]:
    return {"loss": loss} if penalty == "none" else {"loss": loss, "penalty": penalty}


def value_and_gradient(function: Function, inputs: Inputs) -> tuple[Tensor, Tensor]:
    value = function(*inputs)
    (gradient,) = torch.autograd.grad(value, inputs[0])
    return value.detach().double(), gradient.double()


def in_double(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return tensor.detach().double().requires_grad_(tensor.requires_grad)


def truth(function: Function, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The reference in double. The mean of very many pairs by parts: its graph would not fit."""
    double = tuple(map(in_double, inputs))
    pairs = len(inputs[0])
    if pairs <= TRUTH_AT_ONCE:
        return value_and_gradient(function, double)
    parts = zip(*(rows.split(TRUTH_AT_ONCE) for rows in double), strict=True)
    found = [(value_and_gradient(function, part), len(part[0]) / pairs) for part in parts]
    value = sum((value * share for (value, _), share in found), torch.zeros_like(found[0][0][0]))
    return value, torch.cat([gradient * share for (_, gradient), share in found])


def agrees(function: Function, inputs: Inputs, truth: tuple[Tensor, Tensor]) -> bool:
    """Value and gradient are the right ones, to what the peers' additive eps (and half precision) allows."""
    of_value, of_gradient = (5e-3, 2e-2) if inputs[0].element_size() == 2 else (1e-5, 1e-4)
    value, gradient = value_and_gradient(function, inputs)
    error = (gradient - truth[1]).norm() / truth[1].norm()
    return bool((value - truth[0]).abs() <= of_value * truth[0].abs() and error <= of_gradient)


def case(
    name: str,
    shape: str,
    pairs: int,
    usage: Any,
    inputs: Callable[[], Inputs],
    loss: Loss = "ciou",
    penalty: str = "containment",
    bytes_per_pair: float | None = None,
    **rest: Any,
) -> Case:
    options = options_of(loss, penalty)
    return Case(
        name=name,
        shape=shape,
        pairs=pairs,
        inputs=inputs,
        ours=lambda backend: usage.fused(functools.partial(icr.icr_loss, backend=backend), options),
        peers=peers(usage, loss, penalty),
        truth=functools.partial(truth, usage.fused(reference.icr_loss, options)),
        agrees=agrees,
        quantities={BOTH: step},
        bytes_per_pair=bytes_per_pair,
        **rest,
    )


def bytes_of(boxes_a_pair: int, dtype: torch.dtype) -> int:
    """Boxes read and a gradient written; one of half precision in that of the arithmetic, read again, scaled and
    rounded."""
    size = dtype.itemsize
    return 4 * (boxes_a_pair * size + (size if size >= 4 else 4 + 4 + size))


def main_case(pairs: int, dtype: torch.dtype = torch.float32, usage: Any = Mean, **rest: Any) -> Case:
    def inputs() -> Inputs:
        pred, target, anchor_objects = (rows.detach().to(dtype) for rows in boxes(pairs))
        return pred.requires_grad_(), target, anchor_objects

    word = str(dtype).removeprefix("torch.")
    name = MAIN if usage is Mean else f"{MAIN}, {usage.__name__.lower()}"
    return case(name, f"{pairs:,}", pairs, usage, inputs, dtype=word, bytes_per_pair=bytes_of(3, dtype), **rest)


def cases() -> Iterator[Case]:
    for pairs in SIZES:
        yield main_case(pairs, full=pairs not in QUICK_SIZES, scales=pairs == 1_000_000, memory=pairs == SIZES[-1])
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        yield main_case(100_000, dtype, Sum, full=True)

    count = 4_000
    yield case("YOLO positives", f"{count:,}", count, Weighted, lambda: Weighted.inputs(count), full=True)
    batch, points = 16, 8_400
    yield case(
        "YOLO, padded and masked",
        f"{batch} x {points}",
        batch * points,
        Padded,
        lambda: Padded.inputs(batch, points, count),
    )
    for queries in (16 * 7, 16 * 100):
        make = functools.partial(Queries.inputs, queries)
        yield case("DETR queries, giou", f"{queries:,}", queries, Queries, make, "giou", "none", full=queries > 1_000)
    crowd = 60_000
    yield case("crowded images", f"{crowd:,}", crowd, Crowded, lambda: Crowded.inputs(crowd, 2_000), full=True)

    pairs = 10_000
    for loss in LOSS_NAMES:
        floor = bytes_of(2, torch.float32)
        yield case(
            loss, f"{pairs:,}", pairs, Mean, lambda: boxes(pairs)[:2], loss, "none", bytes_per_pair=floor, full=True
        )
    modified = icr.BoxLoss("ciou", inner=0.7, focaler=(0, 0.95))
    yield case(
        "ciou, inner and focaler",
        f"{pairs:,}",
        pairs,
        Mean,
        lambda: boxes(pairs)[:2],
        modified,
        "none",
        bytes_per_pair=floor,
        full=True,
    )
    for penalty in PENALTY_NAMES:
        name, floor = f"ciou + {penalty}", bytes_of(3, torch.float32)
        if name != MAIN:
            yield case(
                name,
                f"{pairs:,}",
                pairs,
                Mean,
                lambda: boxes(pairs),
                penalty=penalty,
                bytes_per_pair=floor,
                full=True,
            )
