"""How much half precision costs the gradients of a dense head's criterion: ours and Ultralytics', each beside what
float64 makes of the same rounded outputs, assigned alike. `python -m benchmarks.rounding` prints the table."""

import argparse
import importlib
import sys
from typing import Any

import torch
from torch import Tensor, nn

import icr_kernels as icr
from icr_kernels.terminal import table

MODELS = ("yolo11n", "yolo26n")
SIDES = {"small objects, 8 to 32 px": (0.0125, 0.05), "larger ones, 32 to 288 px": (0.05, 0.45)}
IMAGES, BOXES, SIZE = 2, 30, 640


class Given(nn.Module):
    """An assigner that knows the answer."""

    def __init__(self, assignment: icr.Assignment, truth: Tensor, labels: Tensor, classes: int) -> None:
        super().__init__()
        row, is_positive = assignment.index.clamp(min=0), assignment.index >= 0
        label = labels[row]
        scores = torch.zeros(*row.shape, classes).scatter_(2, label[..., None], assignment.score[..., None])
        self.found = label, truth[row], scores, is_positive, row

    def forward(self, *_: Any, **__: Any) -> tuple[Tensor, ...]:
        return self.found


def errors(name: str, sides: tuple[float, float], dtype: torch.dtype) -> list[float]:
    """The relative errors of the gradients of boxes and classes, ours and then Ultralytics'."""
    ultralytics, tal = importlib.import_module("ultralytics"), importlib.import_module("ultralytics.utils.tal")
    torch.manual_seed(0)
    model = ultralytics.YOLO(f"{name}.yaml").model.train()
    model.args = importlib.import_module("ultralytics.utils").DEFAULT_CFG
    criterion = model.init_criterion()
    criterion = getattr(criterion, "one2many", criterion)
    with torch.no_grad():
        preds = model(torch.rand(IMAGES, 3, SIZE, SIZE))
    preds = preds.get("one2many", preds)
    maps = preds["feats"]
    centres, strides = tal.make_anchors(maps, criterion.stride, 0.5)
    points, strides = centres * strides, strides[:, 0]
    # Not all cells alike, as in a network that has been trained.
    spread = torch.randn_like(preds["boxes"]) if criterion.reg_max > 1 else torch.rand_like(preds["boxes"]) / 2
    logits = [(preds["boxes"] + spread).to(dtype), preds["scores"].to(dtype)]

    low, high = sides
    side = low + (high - low) * torch.rand(IMAGES * BOXES, 2)
    boxes = torch.cat((side / 2 + (1 - side) * torch.rand(IMAGES * BOXES, 2), side), 1)
    truth = SIZE * torch.cat((boxes[:, :2] - side / 2, boxes[:, :2] + side / 2), 1)
    labels = torch.randint(criterion.nc, (len(boxes),))
    image = torch.arange(IMAGES).repeat_interleave(BOXES)
    head = logits[1].mT.float(), icr.decode_boxes(logits[0].mT.float(), points, strides), points
    assignment = icr.task_aligned_assign(*head, truth, labels, image, smallest_side=16.0, from_logits=True)

    def ours(leaves: list[Tensor], place: torch.dtype, backend: str | None) -> Tensor:
        options: dict[str, Any] = {"assignment": assignment, "image_size": (SIZE, SIZE), "backend": backend}
        given = points.to(place), strides.to(place), truth.to(place)
        head = leaves[0].mT, leaves[1].mT
        terms = icr.dense_detection_loss(*head, *given, labels, image, **options)
        return IMAGES * torch.stack(terms).sum()

    def stock(leaves: list[Tensor]) -> Tensor:
        criterion.assigner = Given(assignment, truth, labels, criterion.nc)
        batch = {"batch_idx": image.float(), "cls": labels.float(), "bboxes": boxes}
        with torch.autocast("cpu", dtype=dtype):
            outputs = {"boxes": leaves[0], "scores": leaves[1], "feats": [each.to(dtype) for each in maps]}
            return criterion.loss(outputs, batch)[0].sum()

    def gradients(loss: Any, kind: torch.dtype, *options: Any) -> tuple[Tensor, ...]:
        leaves = [each.to(kind).requires_grad_() for each in logits]
        return torch.autograd.grad(loss(leaves, *options), leaves)

    exact = gradients(ours, torch.float64, torch.float64, "reference")
    found = gradients(ours, dtype, torch.float32, None), gradients(stock, dtype)
    return [float((a.double() - b).norm() / b.norm()) for each in found for a, b in zip(each, exact, strict=True)]


def main(*arguments: str) -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.rounding", description=__doc__).parse_args(arguments)
    lines = []
    for name in MODELS:
        for what, sides in SIDES.items():
            for dtype in (torch.bfloat16, torch.float16):
                boxes, classes, of_boxes, of_classes = errors(name, sides, dtype)
                numbers = f"{boxes:.1e}", f"{of_boxes:.1e}", f"{of_boxes / boxes:.0f}"
                more = f"{classes:.1e}", f"{of_classes:.1e}", f"{of_classes / classes:.1f}"
                lines.append([name, what, str(dtype).removeprefix("torch."), *numbers, *more])
    head = ["model", "objects", "dtype", *("boxes: ours", "Ultralytics'", "ratio")]
    print(table([*head, *("classes: ours", "Ultralytics'", "ratio")], lines, "lllrrrrrr"))


if __name__ == "__main__":
    main(*sys.argv[1:])
