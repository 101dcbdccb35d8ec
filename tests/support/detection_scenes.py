"""What a dense head leaves, and whom its points are assigned to."""

from typing import Any

import torch
from torch import Tensor

import icr_kernels as icr
from benchmarks.assignment import STRIDES
from dense_scenes import dense_scene
from inputs import device_of, to_format
from tolerances import assert_close

Scene = dict[str, Any]

# Beside the logits, what `dense_detection_loss` takes in order.
GIVEN = ("points", "strides", "truth", "labels", "image")
LOGITS = ("box_logits", "class_logits")


def detection_scene(
    seed: int,
    *,
    bins: int = 4,
    classes: int = 5,
    dtype: torch.dtype = torch.float32,
    is_channels_first: bool = True,
    box_format: str = "xyxy",
    size: int = 64,
    most: int = 12,
) -> Scene:
    """The arguments of `icr.dense_detection_loss`: two images, logits of order 1, every third point or so assigned to
    a box of its image, with the anchor object of each box: some other one, or none."""
    scene = dense_scene("trained", seed, size=size, classes=classes, most=most)
    random = torch.Generator().manual_seed(seed)
    points, rows = scene["points"], len(scene["truth"])
    shape = (2, len(points))

    def logits(channels: int) -> Tensor:
        if is_channels_first:
            return torch.randn(2, channels, len(points), generator=random).mT
        return torch.randn(*shape, channels, generator=random)

    box_logits = 2 * logits(4 * bins)
    if bins == 1:
        box_logits = box_logits.abs() + 0.2
    strides = torch.cat([torch.full(((size // stride) ** 2,), float(stride)) for stride in STRIDES])
    is_assigned = torch.rand(*shape, generator=random) < 0.35
    some = (torch.rand(*shape, generator=random) * rows).long()
    index = torch.where(is_assigned & (rows > 0), some, -1)
    return {
        "box_logits": box_logits.to(dtype),
        "class_logits": (2 * logits(classes) - 2).to(dtype),
        "points": points,
        "strides": strides,
        "truth": to_format(scene["truth"], box_format),
        "labels": scene["labels"],
        "image": scene["image"],
        "assignment": icr.Assignment(index, torch.rand(*shape, generator=random)),
        "anchor_index": torch.randint(-1, max(rows, 1), (rows,), generator=random),
        "box_format": box_format,
    }


def moved(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return icr.Assignment(*(each.to(device) for each in value)) if isinstance(value, icr.Assignment) else value


def on_device_of(backend: str, scene: Scene) -> Scene:
    return {name: moved(value, device_of(backend)) for name, value in scene.items()}


def detection_loss(scene: Scene, backend: str, dtype: torch.dtype | None = None, **options: Any) -> icr.DetectionTerms:
    """Of a scene, in another dtype if so asked. Anchor objects count only with a penalty."""
    arguments = on_device_of(backend, scene | options)
    if dtype is not None:
        for name in (*LOGITS, "points", "strides", "truth"):
            arguments[name] = arguments[name].to(dtype)
    if arguments.get("penalty") is None:
        arguments.pop("anchor_index", None)
    return icr.dense_detection_loss(**arguments, backend=backend)


def leaves(scene: Scene) -> Scene:
    """With logits that want a gradient, as they lie in memory."""
    return scene | {name: scene[name].detach().requires_grad_() for name in LOGITS}


# So much of each term, none alike.
WEIGHTS = (1.3, 0.7, 2.0, 0.6)


def evaluated(scene: Scene, backend: str, dtype: torch.dtype | None = None, **options: Any) -> list[Tensor]:
    """The terms, one after the other, and the gradients of their weighted sum."""
    scene = leaves(scene)
    terms = detection_loss(scene, backend, dtype, **options)
    total = sum(weight * term for weight, term in zip(WEIGHTS, terms, strict=True))
    gradients = torch.autograd.grad(total, [scene[name] for name in LOGITS])
    return [torch.stack(terms).detach(), *gradients]


def assert_as_reference(scene: Scene, backend: str, **options: Any) -> None:
    """Terms and gradients are those of the reference in float64, in the dtypes and layouts that they have to have."""
    actual = evaluated(scene, backend, **options)
    expected = evaluated(scene, "reference", torch.float64, **options)
    for what, found, truth in zip(("terms", *LOGITS), actual, expected, strict=True):
        assert_close(found, truth, what)
    for name, gradient in zip(LOGITS, actual[1:], strict=True):
        assert gradient.dtype == scene[name].dtype and gradient.stride() == scene[name].stride()
    is_double = any(scene[name].dtype == torch.float64 for name in (*LOGITS, "truth"))
    assert actual[0].dtype == (torch.float64 if is_double else torch.float32)
