"""Every CUDA kernel of this package over sizes, layouts and dtypes that could lead it astray: what runs under
compute-sanitizer. All tensors are made on the CPU, so that (almost) every kernel that runs is one of the package's.

Run it with PYTORCH_NO_CUDA_MEMORY_CACHING=1: each tensor is then a block of memory of just its size.
"""

import argparse
import functools
import itertools
import math
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import icr_kernels as icr
from benchmarks import aligned
from icr_kernels import builds
from icr_kernels.variants import (
    BOX_FORMATS,
    CLASSIFICATIONS,
    KIND_NAMES,
    LOSS_NAMES,
    PENALTY_NAMES,
    REDUCTIONS,
    WEIGHTINGS,
)

from .parts import DRIVER, FINISHED, STOPPED

# Nothing, one pair, both sides of a warp and of a block; and hundreds of blocks, whose sums the last one adds up.
SIZES = (0, 1, 31, 257, 1000, 100_003)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAYOUTS = ("packed", "misaligned", "strided")
# Rows and columns of all pairs: none, one, both sides of a warp and of a block, few of one and many of the other.
SET_SIZES = ((0, 3), (3, 0), (1, 1), (31, 257), (1025, 33), (5, 3001), (3001, 5))
TABLE_ROWS = 19


def place(values: Tensor, layout: str) -> Tensor:
    """The values on the GPU; as a view, one that ends where its memory ends."""
    if layout == "misaligned":
        return torch.cat((values.new_zeros(1), values.flatten())).cuda()[1:].view(values.shape)
    if layout == "strided":
        columns = values.shape[1] if values.dim() == 2 else 1
        padded = torch.cat((values.new_zeros(len(values), 3), values.view(-1, columns)), 1).cuda()[:, 3:]
        return padded if values.dim() == 2 else padded[:, 0]
    return values.cuda()


def call(backend: str, number: int, pairs: int, dtype: torch.dtype, layout: str) -> None:
    """One combination of options, forward and backward, drawn by its number: the same in every run."""
    draw = random.Random(number)
    pred, target, anchor_objects = (rows.detach().to(dtype) for rows in aligned.boxes(pairs, seed=number))
    row = torch.arange(pairs)
    kept = row % 3 != 1
    index = torch.where(row % 7 == 6, -1, row % TABLE_ROWS)
    # Far outside the table, in pairs that count and in those that do not.
    index[row % 11 == 5] = 2**40
    index[row % 11 == 4] = -(2**62)
    options: dict[str, Any] = {
        "loss": draw.choice(LOSS_NAMES),
        "penalty": draw.choice(PENALTY_NAMES),
        "relative": draw.random() < 0.3,
        "box_format": draw.choice(BOX_FORMATS),
        "backend": backend,
    }
    mask = place(kept, layout) if draw.random() < 0.5 else None
    if draw.random() < 0.6:
        anchor_objects = torch.cat((anchor_objects, torch.ones(TABLE_ROWS, 4, dtype=dtype)))[:TABLE_ROWS]
        index = index.int() if draw.random() < 0.5 else index
        options["anchor_index"] = place(index, layout)
        if draw.random() < 0.3:
            target = torch.cat((target, torch.ones(TABLE_ROWS, 4, dtype=dtype)))[:TABLE_ROWS]
            options["target_index"] = place(index.flip(0), layout)
    boxes = [place(rows, layout) for rows in (pred, target, anchor_objects)]
    wanted = draw.choice((boxes[:1], boxes[1:], boxes))
    for rows in wanted:
        rows.requires_grad_()

    if draw.random() < 0.2:
        terms = icr.icr_terms(*boxes, mask=mask, **options)
        above = [torch.linspace(-1, 1, pairs).to(term.dtype).cuda() for term in terms]
        used = [(term, gradient) for term, gradient in zip(terms, above, strict=True) if term.requires_grad]
        results = [*terms, *torch.autograd.grad([t for t, _ in used], wanted, [g for _, g in used])]
    else:
        reduction = draw.choice(REDUCTIONS)
        if draw.random() < 0.5:
            options["weight"] = place(torch.linspace(0.5, 2, pairs).to(dtype), layout)
        if reduction == "mean" and draw.random() < 0.4:
            options["normalizer"] = torch.tensor(7.0).cuda()
        with torch.no_grad():
            silent = icr.icr_loss(*boxes, mask=mask, reduction=reduction, **options)
        loss = icr.icr_loss(*boxes, mask=mask, reduction=reduction, **options)
        factor = torch.full(loss.shape, 0.5, dtype=loss.dtype).cuda()
        one_pass = icr.icr_loss_and_grad(*boxes, mask=mask, reduction=reduction, **options)
        results = [silent, loss, *one_pass, *torch.autograd.grad(loss, wanted, factor)]
    for result in results:
        assert result.detach().cpu().isfinite().all(), (backend, number, pairs, dtype, layout, options)


def call_over_sets(number: int, rows: int, columns: int, dtype: torch.dtype, layout: str) -> None:
    """All pairs of two sets, with one combination of options: matrix, gradient, selections and matching cost."""
    draw = random.Random(number)
    sets = [aligned.boxes(count, seed=number + i)[i].detach().to(dtype) for i, count in enumerate((rows, columns))]
    boxes = [place(values, layout) for values in sets]
    options: dict[str, Any] = {"box_format": draw.choice(BOX_FORMATS), "backend": "cuda"}
    kind = draw.choice(KIND_NAMES)

    leaves = [values.detach().requires_grad_() for values in boxes]
    matrix = icr.pairwise_iou(*leaves, kind=kind, **options)
    upstream = torch.linspace(-1, 1, rows * columns).view(matrix.shape).to(matrix.dtype).cuda()
    results = [matrix, *torch.autograd.grad(matrix, leaves, upstream)]

    groups = [torch.arange(count) * 7 // max(count, 1) for count in (rows, columns)]
    for group in groups:
        group[::9] = draw.choice((-1, 2**40, -(2**62)))
    grouped = {f"group{i}": place(group, layout) for i, group in enumerate(groups, 1)} if draw.random() < 0.6 else {}
    chosen = {"kind": kind, "dim": draw.choice((-1, -2)), **grouped, **options}
    selections = [icr.pairwise_max(*boxes, **chosen), icr.pairwise_topk(*boxes, draw.choice((1, 5, 16)), **chosen)]
    for selection in selections:
        results.append(selection.values.nan_to_num(neginf=0))
        assert (selection.indices < max(rows, columns)).all()

    classes, images = 5, 2
    queries = boxes[1].unsqueeze(0).expand(images, columns, 4)
    labels, image = torch.arange(rows) % classes, torch.arange(rows) % images
    cost = icr.detr_matching_cost(
        torch.linspace(-3, 3, images * columns * classes).view(images, columns, classes).to(dtype).cuda(),
        queries,
        place(torch.where(torch.arange(rows) % 11 == 3, 2**40, labels), layout),
        boxes[0],
        place(torch.where(torch.arange(rows) % 7 == 5, -(2**62), image), layout),
        classification=draw.choice(CLASSIFICATIONS),
        **options,
    )
    results.append(cost.nan_to_num())

    points = queries[0, :, :2].detach().double() + 0.5
    assignment = icr.task_aligned_assign(
        torch.linspace(0, 1, images * columns * classes).view(images, columns, classes).to(dtype).cuda(),
        queries.detach(),
        points,
        boxes[0].detach(),
        place(torch.where(torch.arange(rows) % 11 == 3, 2**40, labels), layout),
        place(torch.where(torch.arange(rows) % 7 == 5, -(2**62), image), layout),
        topk=draw.choice((1, 10, 32)),
        topk2=draw.choice((None, 1)),
        smallest_side=draw.choice((None, 1.0)),
        **options,
    )
    assert (assignment.index < rows).all()
    results += [assignment.score, *detection_results("cuda", draw, boxes[0].detach(), images, columns, layout)]
    for result in results:
        assert result.detach().cpu().isfinite().all(), (number, rows, columns, dtype, layout, kind, options)


def detection_results(
    backend: str, draw: random.Random, truth: Tensor, images: int, columns: int, layout: str
) -> list[Tensor]:
    """The criterion of a dense head whose points are assigned to rows of the truth, some of them outside of it; and
    what decodes its boxes. Both with gradients."""
    classes, bins, rows = draw.choice((1, 5, 80)), draw.choice((1, 4, 16)), len(truth)

    def logits(channels: int) -> Tensor:
        values = torch.linspace(-3, 3, images * columns * channels).to(truth.dtype)
        if draw.random() < 0.5:
            return values.view(images, channels, columns).cuda().requires_grad_()
        return values.view(images, columns, channels).cuda().mT.requires_grad_()

    leaves = [logits(4 * bins), logits(classes)]
    box_logits, class_logits = (leaf.mT for leaf in leaves)
    number = torch.arange(columns)
    points = place(torch.stack((number % 97, number // 97), 1).float(), layout)
    strides = place(1.0 + number % 3, layout)
    decoded = icr.decode_boxes(box_logits, points, strides, backend=backend)
    upstream = torch.linspace(-1, 1, decoded.numel()).view(decoded.shape).to(decoded.dtype).cuda()
    results = [decoded, *torch.autograd.grad(decoded, leaves[:1], upstream)]

    of_truth = torch.arange(rows)
    labels = place(torch.where(of_truth % 11 == 3, 2**40, of_truth % classes), layout)
    image = place(torch.where(of_truth % 7 == 5, -(2**62), of_truth % images), layout)
    index = torch.arange(images * columns) % max(2 * rows, 1) - rows // 2
    index[::13] = 2**40
    options: dict[str, Any] = {}
    if draw.random() < 0.5:
        index = index.view(images, columns).cuda()
        options["assignment"] = icr.Assignment(index, torch.linspace(0, 1, index.numel()).view(index.shape).cuda())
    if draw.random() < 0.6:
        anchor = torch.where(of_truth % 5 == 2, 2**40, of_truth.flip(0))
        options |= {
            "penalty": draw.choice(PENALTY_NAMES),
            "anchor_index": place(anchor, layout),
            "weighting": draw.choice(WEIGHTINGS),
            "relative": draw.random() < 0.3,
        }
    terms = icr.dense_detection_loss(
        box_logits,
        class_logits,
        points,
        strides,
        truth,
        labels,
        image,
        loss=draw.choice(LOSS_NAMES),
        class_weight=torch.linspace(0.5, 2, classes).cuda() if draw.random() < 0.5 else None,
        normalizer=torch.tensor(7.0).cuda() if draw.random() < 0.3 else None,
        image_size=draw.choice((None, (640.0, 480.0))),
        box_format=draw.choice(BOX_FORMATS),
        backend=backend,
        **options,
    )
    return [*results, *terms, *torch.autograd.grad(list(terms), leaves, [torch.ones_like(each) for each in terms])]


def calls_over_sets() -> Iterator[tuple[int, int, int, torch.dtype, str]]:
    """Each dtype with each pair of sizes, the layouts in turn."""
    for number, (sizes, dtype) in enumerate(itertools.product(SET_SIZES, DTYPES)):
        yield number, *sizes, dtype, LAYOUTS[(number + number // len(DTYPES)) % len(LAYOUTS)]


def calls() -> Iterator[tuple[int, int, torch.dtype, str]]:
    """Each dtype and layout with each size, twice but for the largest."""
    repeats = [(size, number) for size in SIZES for number in range(1 if size > 10_000 else 2)]
    for number, ((pairs, _), dtype, layout) in enumerate(itertools.product(repeats, DTYPES, LAYOUTS)):
        yield number, pairs, dtype, layout


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {DRIVER}", description=__doc__)
    parser.add_argument("--until", type=float, default=math.inf, help="stop at this time, in seconds since the epoch")
    parser.add_argument("--dry-run", action="store_true", help="counts the combinations")
    options = parser.parse_args(arguments)
    todo = [functools.partial(call, "cuda", *each) for each in calls()]
    todo += [functools.partial(call_over_sets, *each) for each in calls_over_sets()]
    random.Random(0).shuffle(todo)  # one that has to stop has seen some of every kind
    if options.dry_run:
        print(f"{len(todo)} combinations")
        return 0
    if builds.CUDA_ERROR is not None:
        print(builds.CUDA_ERROR)
        return 1
    for done, combination in enumerate(todo):
        if time.time() > options.until:
            print(f"{STOPPED} {done} of {len(todo)} combinations", flush=True)
            return 0
        combination()
    torch.cuda.synchronize()
    print(f"{FINISHED}: {len(todo)} combinations", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
