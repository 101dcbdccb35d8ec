"""All pairs of two sets of boxes, and who is matched with whom."""

import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import icr_kernels as icr

from .aligned import corners
from .case import Case, Function, Inputs, LeftOut, constant, torchvision, with_compiled

# Of how many rows of a result the right one is looked at. They lie evenly between the first and the last.
ROWS_LOOKED_AT = 256
CLOSE = 1e-5

# A peer whose matrix is larger than that is left out: its temporaries are several times as many bytes.
LARGEST_MATRIX = 2**30

SHAPES = ((300, 20), (8_400, 100), (8_400, 1_000))


# Inputs


def some_boxes(count: int, seed: int, low: float = 8, high: float = 120) -> Tensor:
    """In pixels of an image of 640 x 640."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 520
    side = torch.rand(count, 2, generator=generator) * (high - low) + low
    return torch.cat([corner, corner + side], 1)


def of_images(batch: int, count: int) -> Tensor:
    """The image of each of ``count`` boxes per image."""
    return torch.arange(batch).repeat_interleave(count)


def rows_looked_at(count: int, most: int = ROWS_LOOKED_AT) -> Tensor:
    return torch.linspace(0, count - 1, min(count, most), dtype=torch.float64).round().long()


def double(*tensors: Tensor) -> list[Tensor]:
    return [tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors]


# Others


def clamp_overlap(first: Tensor, second: Tensor) -> Tensor:
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    shared = (torch.minimum(first[:, None, 2:], second[None, :, 2:]) - low).clamp(min=0)
    return shared[..., 0] * shared[..., 1]


def area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def clamp_iou(first: Tensor, second: Tensor) -> Tensor:
    """The form that YOLO trainers use."""
    overlap = clamp_overlap(first, second)
    return overlap / (area(first)[:, None] + area(second) - overlap + 1e-7)


def fits(pairs: int) -> None:
    if 4 * pairs > LARGEST_MATRIX:
        raise LeftOut(f"its matrix alone has {4 * pairs / 2**30:.1f} GiB")


def matrix_peers(kind: str, pairs: int, then: Callable[[Tensor], Any]) -> dict[str, Callable[[], Function]]:
    """Functions that make the matrix, and what is done with it."""

    def of(matrix: Function) -> Function:
        return lambda first, second: then(matrix(first, second))

    def load(maker: Callable[[], Function]) -> Function:
        fits(pairs)
        return of(maker())

    def mmdet() -> Function:
        bbox_overlaps = importlib.import_module("mmdet.structures.bbox").bbox_overlaps
        return lambda first, second: bbox_overlaps(first, second, mode=kind)

    def reference() -> Function:
        return matrix_of(kind, "reference")

    name = {"iou": "box_iou", "giou": "generalized_box_iou"}[kind]
    makers: dict[str, Callable[[], Function]] = {
        "eager, torchvision": lambda: torchvision(f"ops.{name}"),
        "eager, reference": reference,
        "mmdet": mmdet,
        "torch-fast-box-ops": lambda: getattr(importlib.import_module("torch_fast_box_ops"), name),
    }
    if kind == "iou":
        makers = {"eager, clamp form": constant(clamp_iou), **makers}
    peers = {which: functools.partial(load, maker) for which, maker in makers.items()}
    return with_compiled(peers, "eager, torchvision")


# Comparisons


def close(found: Tensor, right: Tensor) -> bool:
    return bool((found.double() - right).abs().max() <= CLOSE)


def matrix_truth(kind: str, inputs: Inputs) -> Tensor:
    first, second = double(*inputs[:2])
    return icr.pairwise_iou(first[rows_looked_at(len(first))], second, kind=kind, backend="reference")


def matrix_agrees(function: Function, inputs: Inputs, right: Tensor) -> bool:
    found = function(*inputs)
    return found.shape == (len(inputs[0]), len(inputs[1])) and close(found[rows_looked_at(len(found))], right)


def best_agree(function: Function, inputs: Inputs, right: Tensor) -> bool:
    """The values are the largest of their rows, and the indices point at such: of equals, any is right."""
    values, indices = function(*inputs)
    rows = rows_looked_at(len(inputs[0]))
    k = 1 if values.dim() == 1 else values.shape[1]
    values, indices = values[rows].view(len(rows), k), indices[rows].view(len(rows), k)
    return close(values, right.topk(k).values) and close(right.gather(1, indices), values.double())


# Cases


def matrix_cases() -> Iterator[Case]:
    for kind in ("iou", "giou"):
        for n, m in SHAPES:
            yield Case(
                name=f"pairwise {kind}",
                shape=f"{n} x {m}",
                pairs=n * m,
                inputs=functools.partial(two_sets, n, m),
                ours=functools.partial(matrix_of, kind),
                peers=matrix_peers(kind, n * m, lambda matrix: matrix),
                truth=functools.partial(matrix_truth, kind),
                agrees=matrix_agrees,
                # The matrix is written, the boxes are read.
                bytes_per_pair=4 + 16 * (n + m) / (n * m),
                full=(kind, m) != ("iou", 100),
                memory=m == 1_000,
            )


def matrix_of(kind: str, backend: str) -> Function:
    return functools.partial(icr.pairwise_iou, kind=kind, backend=backend)


def two_sets(n: int, m: int) -> Inputs:
    return some_boxes(n, 1), some_boxes(m, 2)


def selection_cases() -> Iterator[Case]:
    for n, m in (*SHAPES[1:], (8_400, 4_967), (1_000_000, 2_000)):
        yield Case(
            name="row maximum",
            shape=f"{n} x {m}",
            pairs=n * m,
            inputs=functools.partial(two_sets, n, m),
            ours=lambda backend: functools.partial(icr.pairwise_max, backend=backend),
            peers=matrix_peers("iou", n * m, lambda matrix: matrix.max(1)),
            truth=functools.partial(matrix_truth, "iou"),
            agrees=best_agree,
            full=m == 4_967,
            scales=m == 1_000,
            memory=True,
        )
    yield Case(
        name="best 10 of a row",
        shape="100 x 8400",
        pairs=100 * 8_400,
        inputs=functools.partial(two_sets, 100, 8_400),
        ours=lambda backend: functools.partial(icr.pairwise_topk, k=10, backend=backend),
        peers=matrix_peers("iou", 100 * 8_400, lambda matrix: matrix.topk(10)),
        truth=functools.partial(matrix_truth, "iou"),
        agrees=best_agree,
        full=True,
    )
    yield xview()


def xview() -> Case:
    """The images of xView, 128 a batch, whose matrices do not fit into a GPU."""
    batch, points, objects = 128, 8_400, 4_967

    def inputs() -> Inputs:
        first, second = some_boxes(batch * points, 1), some_boxes(batch * objects, 2)
        return first, second, of_images(batch, points), of_images(batch, objects)

    def ours(backend: str) -> Function:
        return lambda first, second, of_first, of_second: icr.pairwise_max(
            first, second, group1=of_first, group2=of_second, backend=backend
        )

    def truth(inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Of the first and the last image, each alone."""
        first, second = double(*inputs[:2])
        parts = []
        for image in (0, batch - 1):
            rows = first[image * points :][rows_looked_at(points)]
            found = icr.pairwise_max(rows, second[image * objects :][:objects], backend="reference")
            parts.append((found.values, found.indices + image * objects))
        values, indices = zip(*parts, strict=True)
        return torch.cat(values), torch.cat(indices)

    def agrees(function: Function, inputs: Inputs, right: tuple[Tensor, Tensor]) -> bool:
        values, indices = function(*inputs)
        rows = torch.cat([rows_looked_at(points), rows_looked_at(points) + (batch - 1) * points])
        return close(values[rows], right[0]) and bool((indices[rows] == right[1]).double().mean() > 0.99)

    def image_by_image() -> Function:
        raise LeftOut("minutes per call; one of its images is the row maximum of 8400 x 4967")

    return Case(
        name="row maximum of 128 images",
        shape=f"{batch} x ({points} x {objects})",
        pairs=batch * points * objects,
        inputs=inputs,
        ours=ours,
        peers={"eager, torchvision": image_by_image},
        truth=truth,
        agrees=agrees,
        full=True,
        memory=True,
    )


def anchor_object_cases() -> Iterator[Case]:
    """The car around each plate, in all images of a batch."""

    def inputs(batch: int, parts: int, wholes: int) -> Inputs:
        small, large = some_boxes(batch * parts, 1, 8, 24), some_boxes(batch * wholes, 2, 60, 240)
        return small, large, of_images(batch, parts), of_images(batch, wholes)

    def ours(backend: str) -> Function:
        return lambda parts, wholes, of_part, of_whole: icr.match_anchor_objects(
            parts, wholes, part_group=of_part, whole_group=of_whole, backend=backend
        )

    def one_matrix(parts: Tensor, wholes: Tensor, of_part: Tensor, of_whole: Tensor) -> tuple[Tensor, Tensor]:
        inside = clamp_overlap(parts, wholes) / (area(parts)[:, None] + 1e-7)
        containment, index = torch.where(of_part[:, None] == of_whole, inside, 0).max(1)
        return torch.where(containment >= 0.5, index, -1), containment

    def image_by_image(parts: Tensor, wholes: Tensor, of_part: Tensor, of_whole: Tensor) -> tuple[Tensor, Tensor]:
        found, begin = [], 0
        for image in range(int(of_part[-1]) + 1):
            own, candidates = parts[of_part == image], wholes[of_whole == image]
            containment, index = (clamp_overlap(own, candidates) / (area(own)[:, None] + 1e-7)).max(1)
            found.append((torch.where(containment >= 0.5, index + begin, -1), containment))
            begin += len(candidates)
        indices, containments = zip(*found, strict=True)
        return torch.cat(indices), torch.cat(containments)

    def truth(inputs: Inputs) -> Tensor:
        parts, wholes, of_part, of_whole = double(*inputs)
        rows = rows_looked_at(len(parts))
        inside = icr.pairwise_iou(parts[rows], wholes, kind="containment", backend="reference")
        return torch.where(of_part[rows][:, None] == of_whole, inside, 0)

    def agrees(function: Function, inputs: Inputs, right: Tensor) -> bool:
        """Wholes that contain a part equally well may be told apart in any way."""
        index, containment = (column[rows_looked_at(len(inputs[0]))] for column in function(*inputs))
        best = right.max(1).values
        same = right.gather(1, index.clamp(min=0)[:, None])[:, 0]
        return close(containment, best) and bool(torch.where(index < 0, best < 0.5 + CLOSE, best - same < CLOSE).all())

    for batch, parts, wholes in ((16, 30, 40), (16, 500, 500)):
        peers: dict[str, Callable[[], Function]] = {
            "eager, one matrix": constant(one_matrix),
            "eager, image by image": constant(image_by_image),
        }
        yield Case(
            name="anchor objects",
            shape=f"{batch} x ({parts} x {wholes})",
            pairs=batch * parts * wholes,
            inputs=functools.partial(inputs, batch, parts, wholes),
            ours=ours,
            peers=with_compiled(peers, "eager, one matrix"),
            truth=truth,
            agrees=agrees,
            full=parts == 500,
            memory=parts == 500,
        )


def matcher_case() -> Case:
    """What a two-stage detector trains its proposals towards, in a batch of images of unequally many objects."""
    batch, anchors = 8, 50_000
    thresholds = (0.7, 0.3, True)

    def inputs() -> Inputs:
        counts = torch.arange(batch) * 5 + 5
        objects = some_boxes(int(counts.sum()), 2)
        group = torch.arange(batch).repeat_interleave(counts)
        return objects, some_boxes(batch * anchors, 1), group, of_images(batch, anchors)

    def ours(backend: str) -> Function:
        matcher = icr.Matcher(*thresholds, backend=backend)

        def match(objects: Tensor, boxes: Tensor, of_object: Tensor, of_box: Tensor) -> Tensor:
            return matcher(objects, boxes, ground_truth_group=of_object, group=of_box)

        return match

    def image_by_image(match: Callable[[Tensor, Tensor], Tensor]) -> Function:
        def matches_of(objects: Tensor, boxes: Tensor, of_object: Tensor, of_box: Tensor) -> Tensor:
            found, begin = [], 0
            for image in range(batch):
                own = objects[of_object == image]
                matches = match(own, boxes[of_box == image])
                found.append(torch.where(matches >= 0, matches + begin, matches))
                begin += len(own)
            return torch.cat(found)

        return matches_of

    def theirs() -> Function:
        box_iou, matcher = torchvision("ops.box_iou"), torchvision("models.detection._utils.Matcher")(*thresholds)
        return image_by_image(lambda objects, boxes: matcher(box_iou(objects, boxes)))

    def truth(inputs: Inputs) -> Tensor:
        return image_by_image(icr.Matcher(*thresholds, backend="reference"))(*double(*inputs))

    def agrees(function: Function, inputs: Inputs, right: Tensor) -> bool:
        """But for boxes that are as near to a threshold as rounding."""
        return bool((function(*inputs) == right).double().mean() > 1 - 1e-4)

    def for_one_shape() -> Function:
        raise LeftOut("it would be compiled anew for each number of objects in an image")

    peers = with_compiled({"eager, torchvision": theirs}, "eager, torchvision")
    return Case(
        name="matcher",
        shape=f"{batch} x ({anchors} x 5 to 40)",
        pairs=anchors * sum(range(5, 45, 5)),
        inputs=inputs,
        ours=ours,
        peers=peers | {"torch.compile, torchvision, static": for_one_shape},
        truth=truth,
        agrees=agrees,
    )


def detr_cases() -> Iterator[Case]:
    """What DETR's Hungarian matcher is given: (targets, queries)."""
    batch, queries, classes = 16, 300, 80

    def inputs(objects: int) -> Inputs:
        generator = torch.Generator().manual_seed(4)

        def some(*shape: int) -> Tensor:
            return torch.rand(*shape, 4, generator=generator) * 0.4 + torch.tensor([0.3, 0.3, 0.1, 0.1])

        logits = torch.randn(batch, queries, classes, generator=generator)
        labels = torch.randint(classes, (batch * objects,), generator=generator)
        return logits, some(batch, queries), labels, some(batch * objects), of_images(batch, objects)

    def ours(backend: str) -> Function:
        return functools.partial(icr.detr_matching_cost, backend=backend)

    def whole_batch(generalized_box_iou: Function) -> Function:
        """Every query of the batch with every target of the batch, as the code that DETR came with."""

        def cost(logits: Tensor, boxes: Tensor, labels: Tensor, targets: Tensor, image: Tensor) -> Tensor:
            flat = boxes.flatten(0, 1)
            of_class = -logits.flatten(0, 1).softmax(-1)[:, labels]
            giou = -generalized_box_iou(corners(flat), corners(targets))
            total = 5 * torch.cdist(flat, targets, p=1) + of_class + 2 * giou
            return total.view(*boxes.shape[:2], -1)

        return cost

    def own_image(generalized_box_iou: Function) -> Function:
        """The same image by image."""

        def cost(logits: Tensor, boxes: Tensor, labels: Tensor, targets: Tensor, image: Tensor) -> Tensor:
            found = []
            for number, (logit, box) in enumerate(zip(logits, boxes, strict=True)):
                target = targets[image == number]
                of_class = -logit.softmax(-1)[:, labels[image == number]]
                giou = -generalized_box_iou(corners(box), corners(target))
                found.append((5 * torch.cdist(box, target, p=1) + of_class + 2 * giou).T)
            return torch.cat(found)

        return cost

    def agrees(function: Function, inputs: Inputs, right: Tensor) -> bool:
        found, image = function(*inputs), inputs[4]
        if found.dim() == 3:  # of the whole batch the blocks on the diagonal are used
            found = found[image, :, torch.arange(len(image), device=image.device)]
        return found.shape == right.shape and close(found / 10, right / 10)

    for objects in (7, 100):
        peers: dict[str, Callable[[], Function]] = {
            "eager, torchvision": lambda: whole_batch(torchvision("ops.generalized_box_iou")),
            "eager, image by image": lambda: own_image(torchvision("ops.generalized_box_iou")),
            "eager, reference": lambda: ours("reference"),
        }
        yield Case(
            name="DETR matching cost",
            shape=f"{batch} x ({queries} x {objects})",
            pairs=batch * queries * objects,
            inputs=functools.partial(inputs, objects),
            ours=ours,
            peers=with_compiled(peers, "eager, torchvision"),
            truth=lambda inputs: ours("reference")(*double(*inputs)),
            agrees=agrees,
            full=objects == 100,
            memory=objects == 100,
        )


def cases() -> Iterator[Case]:
    yield from matrix_cases()
    yield from selection_cases()
    yield from anchor_object_cases()
    yield matcher_case()
    yield from detr_cases()
