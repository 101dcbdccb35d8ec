"""Stand-ins with the interfaces of the DETR family's criteria, what they are given, and the terms by hand, box by box.
Whom the queries of an output are matched with, the output says itself."""

import copy
import math
import types
from typing import NamedTuple

import pytest
import torch
from torch import nn

NAMES = ("car", "bus", "plate", "tree")
# Zeros stand where a criterion forgets labels or pads boxes: here they are those of a part, above those of a whole.
PART_FIRST = ("plate", "tree", "car", "bus")
PAIRS = {"plate": ("car", "bus")}

CAR, BUS = (0.35, 0.40, 0.50, 0.40), (0.50, 0.50, 0.60, 0.50)
SCENE = (
    [
        ("car", CAR),
        ("plate", (0.30, 0.58, 0.10, 0.06)),
        ("tree", (0.80, 0.70, 0.30, 0.40)),
        ("plate", (0.90, 0.20, 0.05, 0.05)),
    ],
    [],
    [("plate", (0.75, 0.62, 0.12, 0.08)), ("bus", BUS)],
)
BOXES = 6
# By image and row: the plates, and the wholes of those that have one.
PLATES = ((0, 1), (0, 3), (2, 0))
WHOLES = {(0, 1): CAR, (2, 0): BUS}

QUERIES, GROUPS = 8, 2
GIOU = 2.0
WEIGHTS = types.MappingProxyType({"loss_class": 1.0, "loss_bbox": 5.0, "loss_giou": GIOU})


def corners(boxes):
    return torch.cat((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), 1)


def overlaps(pred, target):
    """IoU and GIoU of each pair."""
    (p1, p2), (t1, t2) = (corners(boxes).split(2, 1) for boxes in (pred, target))
    inside = (torch.minimum(p2, t2) - torch.maximum(p1, t1)).clamp(min=0).prod(1)
    union = pred[:, 2:].prod(1) + target[:, 2:].prod(1) - inside
    hull = (torch.maximum(p2, t2) - torch.minimum(p1, t1)).prod(1)
    return inside / union, inside / union - (hull - union) / hull


def gathered(outputs, targets, indices, key="boxes"):
    image = torch.cat([torch.full_like(query, number) for number, (query, _) in enumerate(indices)])
    query = torch.cat([query for query, _ in indices])
    return (image, query), torch.cat([each[key][rows] for each, (_, rows) in zip(targets, indices, strict=True)])


def l1_and_giou(pred, target, num_boxes, weight=1.0, valid=1.0):
    l1, giou = (pred - target).abs().sum(1), 1 - overlaps(pred, target)[1]
    return {"loss_bbox": (l1 * valid).sum() / num_boxes, "loss_giou": (giou * weight * valid).sum() / num_boxes}


class Weighted(nn.Module):
    """As RT-DETRv2: losses are weighted here, and those without a weight left out."""

    def __init__(self, losses=("labels", "boxes"), weighs_boxes=False):
        super().__init__()
        self.losses, self.weighs_boxes, self.weight_dict = list(losses), weighs_boxes, dict(WEIGHTS)
        self.register_buffer("class_weight", torch.linspace(0.5, 1.0, len(NAMES)))

    def loss_labels(self, outputs, targets, indices, num_boxes):
        where, labels = gathered(outputs, targets, indices, "labels")
        scores = outputs["pred_logits"][where].log_softmax(1).gather(1, labels[:, None])[:, 0]
        return {"loss_class": -(scores * self.class_weight[labels]).sum() / num_boxes}

    def loss_boxes(self, outputs, targets, indices, num_boxes, boxes_weight=1.0):
        where, target = gathered(outputs, targets, indices)
        return l1_and_giou(outputs["pred_boxes"][where], target, num_boxes, boxes_weight)

    def of_output(self, suffix, outputs, targets, indices, num_boxes):
        found = {}
        for name in self.losses:
            options = {}
            if name == "boxes" and self.weighs_boxes:
                where, target = gathered(outputs, targets, indices)
                options["boxes_weight"] = overlaps(outputs["pred_boxes"][where].detach(), target)[0]
            losses = getattr(self, f"loss_{name}")(outputs, targets, indices, num_boxes, **options)
            found |= {key + suffix: loss * self.weight_dict[key] for key, loss in losses.items() if key in WEIGHTS}
        return found

    def of_denoising(self, outputs, targets):
        groups = outputs["dn_meta"]["groups"]
        rows = [torch.arange(len(each["labels"])).repeat(groups) for each in targets]
        return list(zip(outputs["dn_meta"]["queries"], rows, strict=True)), groups

    @staticmethod
    def without_classes(targets):
        blind = copy.deepcopy(targets)
        for each in blind:
            each["labels"] = torch.zeros_like(each["labels"])
        return blind

    def forward(self, outputs, targets, **unused):
        num_boxes = max(sum(len(each["labels"]) for each in targets), 1)
        losses = self.of_output("", outputs, targets, outputs["matched"], num_boxes)
        for number, each in enumerate(outputs["aux_outputs"]):
            losses |= self.of_output(f"_aux_{number}", each, targets, each["matched"], num_boxes)
        for number, each in enumerate(outputs["dn_aux_outputs"]):
            indices, groups = self.of_denoising(outputs, targets)
            losses |= self.of_output(f"_dn_{number}", each, targets, indices, num_boxes * groups)
        for number, each in enumerate(outputs["enc_aux_outputs"]):
            blind = self.without_classes(targets)
            losses |= self.of_output(f"_enc_{number}", each, blind, each["matched"], num_boxes)
        return losses


class Union(Weighted):
    """As D-FINE and DEIM: boxes are matched by what any of the layers matched, the main one first."""

    @staticmethod
    def union(layers):
        chosen = []
        for of_image in zip(*(each["matched"] for each in layers), strict=True):
            rows = {}
            for queries, of_queries in of_image:
                for query, row in zip(queries.tolist(), of_queries.tolist(), strict=True):
                    rows.setdefault(query, row)
            chosen.append((torch.tensor(list(rows), dtype=torch.int64), torch.tensor([*rows.values()]).long()))
        return chosen

    def forward(self, outputs, targets, **unused):
        layers = {"": outputs}
        layers |= {f"_aux_{number}": each for number, each in enumerate(outputs["aux_outputs"])}
        layers["_pre"] = outputs["pre_outputs"]
        layers |= {f"_enc_{number}": each for number, each in enumerate(outputs["enc_aux_outputs"])}
        indices, losses = self.union(layers.values()), {}
        num_boxes = max(sum(len(queries) for queries, _ in indices), 1)
        for suffix, each in layers.items():
            seen = self.without_classes(targets) if "enc" in suffix else targets
            losses |= self.of_output(suffix, each, seen, indices, num_boxes)
        denoising = {f"_dn_{number}": each for number, each in enumerate(outputs["dn_outputs"])}
        for suffix, each in {**denoising, "_dn_pre": outputs["dn_pre_outputs"]}.items():
            indices, groups = self.of_denoising(outputs, targets)
            num_boxes = max(sum(len(each["labels"]) for each in targets), 1) * groups
            losses |= self.of_output(suffix, each, targets, indices, num_boxes)
        return losses


class Matched(NamedTuple):
    where: tuple[torch.Tensor, torch.Tensor]
    boxes: torch.Tensor


class Groups(nn.Module):
    """As rfdetr: the caller weighs the losses, targets may be padded, and the stock class can go another way."""

    def __init__(self, losses=("labels", "boxes", "cardinality"), is_fast=False):
        super().__init__()
        self.losses, self.is_fast, self.fast_steps = list(losses), is_fast, 0
        self.weight_dict = dict(WEIGHTS)

    def loss_boxes(self, outputs, targets, indices, num_boxes, matched_targets=None):
        matched = Matched(*gathered(outputs, targets, indices)) if matched_targets is None else matched_targets
        return self.of_boxes(outputs["pred_boxes"][matched.where], matched.boxes, targets, indices, num_boxes)

    @staticmethod
    def of_boxes(pred, target, targets, indices, num_boxes):
        valid = gathered(None, targets, indices, "valid")[1] if "valid" in targets[0] else 1.0
        return l1_and_giou(pred, target, num_boxes, valid=valid)

    def forward(self, outputs, targets, num_boxes=None):
        main = {key: value for key, value in outputs.items() if key != "aux_outputs"}
        layers = {"": main, **{f"_{number}": each for number, each in enumerate(outputs["aux_outputs"])}}
        layers["_enc"] = outputs["enc_outputs"]
        if num_boxes is None:
            counts = [each["valid"].sum() if "valid" in each else len(each["labels"]) for each in targets]
            num_boxes = torch.as_tensor(float(sum(counts) * GROUPS)).clamp(min=1)
        is_fast = type(self) is Groups and self.is_fast
        self.fast_steps += is_fast
        losses = {}
        for suffix, each in layers.items():
            matched = Matched(*gathered(each, targets, each["matched"]))
            if is_fast:
                pred = each["pred_boxes"][matched.where]
                of_boxes = self.of_boxes(pred, matched.boxes, targets, each["matched"], num_boxes)
            else:
                of_boxes = self.loss_boxes(each, targets, each["matched"], num_boxes, matched_targets=matched)
            scores = each["pred_logits"].sigmoid()
            losses |= {key + suffix: value for key, value in of_boxes.items()}
            losses |= {f"loss_class{suffix}": scores.mean(), f"cardinality{suffix}": (scores.detach() > 0.5).sum()}
        return losses


STOCK = {"weighted": Weighted, "union": Union, "groups": Groups}
every_kind = pytest.mark.parametrize("kind", STOCK)


class Layer(NamedTuple):
    output: dict
    # Image, query and row of every prediction of a box.
    pairs: list[tuple[int, int, int]]
    divisor: float


class Case(NamedTuple):
    outputs: dict
    targets: list[dict]
    # By the suffix of their losses.
    layers: dict[str, Layer]
    # Of the GIoU loss, as far as it is in what the criterion returns.
    coefficient: float

    def leaves(self) -> list[torch.Tensor]:
        return [layer.output[key] for layer in self.layers.values() for key in ("pred_boxes", "pred_logits")]


DENOISING = {"weighted": ("_dn_0", "_dn_1"), "union": ("_dn_0", "_dn_pre"), "groups": ()}


def case(kind, names=NAMES, dtype=torch.float64, filler=None, scene=SCENE, scale=1.0) -> Case:
    """A batch for a stand-in. ``filler``: a box that pads the targets to seven rows. ``scale``: of all boxes."""
    generator = torch.Generator().manual_seed(0)
    targets, rows_of = [], [len(objects) for objects in scene]
    for objects in scene:
        boxes = torch.tensor([box for _, box in objects], dtype=dtype).reshape(-1, 4) * scale
        labels = torch.tensor([names.index(name) for name, _ in objects], dtype=torch.int64)
        targets.append({"boxes": boxes, "labels": labels})
    if filler is not None:
        rows_of = [7] * len(scene)
        for each in targets:
            count = len(each["labels"])
            each["valid"] = torch.arange(7) < count
            each["boxes"] = torch.cat((each["boxes"], torch.tensor([filler] * (7 - count), dtype=dtype)))
            each["labels"] = torch.cat((each["labels"], torch.zeros(7 - count, dtype=torch.int64)))
    groups = GROUPS if kind == "groups" else 1

    def output(shift, queries=QUERIES * groups, matched=None):
        """Boxes anywhere, but those of the queries that are matched here lie near their targets."""
        boxes = scale * (torch.rand(len(scene), queries, 4, generator=generator, dtype=torch.float64) * 0.3 + 0.2)
        if matched is None:
            rows = [torch.arange(count) for count in rows_of]
            matched = [
                (torch.cat([(3 * each + shift) % QUERIES + QUERIES * g for g in range(groups)]), each.repeat(groups))
                for each in rows
            ]
        for image, (of_image, of_rows) in enumerate(matched):
            noise = torch.rand(len(of_image), 4, generator=generator, dtype=torch.float64)
            noise = scale * (0.08 * noise - torch.tensor([0.02, 0.02, 0.0, 0.0]))
            boxes[image, of_image] = targets[image]["boxes"][of_rows].double() + noise
        logits = torch.randn(len(scene), queries, len(names), generator=generator, dtype=torch.float64)
        made = {"pred_logits": logits, "pred_boxes": boxes}
        return {key: value.to(dtype).requires_grad_() for key, value in made.items()} | {"matched": matched}

    total = max(sum(len(objects) for objects in scene), 1)
    outputs = output(0)
    layers = {"": outputs}
    if kind == "weighted":
        outputs["aux_outputs"], outputs["enc_aux_outputs"] = [output(1), output(2)], [output(3)]
        layers |= {"_aux_0": outputs["aux_outputs"][0], "_aux_1": outputs["aux_outputs"][1]}
        layers |= {"_enc_0": outputs["enc_aux_outputs"][0]}
    elif kind == "union":
        outputs["aux_outputs"], outputs["pre_outputs"], outputs["enc_aux_outputs"] = [output(1)], output(2), [output(3)]
        layers |= {"_aux_0": outputs["aux_outputs"][0], "_pre": outputs["pre_outputs"]}
        layers |= {"_enc_0": outputs["enc_aux_outputs"][0]}
    else:
        outputs["aux_outputs"], outputs["enc_outputs"] = [output(1), output(2)], output(3)
        layers |= {"_0": outputs["aux_outputs"][0], "_1": outputs["aux_outputs"][1], "_enc": outputs["enc_outputs"]}
    known = {}
    united = [dict() for _ in scene]
    for suffix, each in layers.items():
        pairs = triples(each["matched"])
        known[suffix] = Layer(each, pairs, total * groups)
        for image, query, row in pairs:
            united[image].setdefault(query, row)
    if kind == "union":
        pairs = [(image, query, row) for image, rows in enumerate(united) for query, row in rows.items()]
        known = {suffix: Layer(each, pairs, max(len(pairs), 1)) for suffix, each in layers.items()}
    if DENOISING[kind]:
        # Of the queries of each group only the first half are matched.
        queries = [torch.cat([torch.arange(count) + 8 * g for g in range(2)]) for count in rows_of]
        outputs["dn_meta"] = {"queries": queries, "groups": 2}
        matched = [(each, torch.arange(count).repeat(2)) for each, count in zip(queries, rows_of, strict=True)]
        made = [output(0, 16, matched) for _ in DENOISING[kind]]
        if kind == "weighted":
            outputs["dn_aux_outputs"] = made
        else:
            outputs["dn_outputs"], outputs["dn_pre_outputs"] = made[:1], made[1]
        for suffix, each in zip(DENOISING[kind], made, strict=True):
            known[suffix] = Layer(each, triples(matched), total * 2)
    return Case(outputs, targets, known, 1.0 if kind == "groups" else GIOU)


def triples(matched):
    return [
        (image, query, row)
        for image, (queries, rows) in enumerate(matched)
        for query, row in zip(queries.tolist(), rows.tolist(), strict=True)
    ]


def step(criterion, given: Case, **options):
    """The losses of a training step, and the gradients of all predictions in one."""
    losses = criterion(given.outputs, given.targets, **options)
    gradients = torch.autograd.grad(sum(losses.values()), given.leaves())
    return {key: loss.item() for key, loss in losses.items()}, torch.cat([each.flatten() for each in gradients])


def overlap(p, q) -> float:
    sides = (
        min(p[a] + p[a + 2] / 2, q[a] + q[a + 2] / 2) - max(p[a] - p[a + 2] / 2, q[a] - q[a + 2] / 2) for a in (0, 1)
    )
    return math.prod(max(side, 0.0) for side in sides)


def containment(p, whole) -> float:
    return overlap(p, whole) / (p[2] * p[3])


def iou(p, q) -> float:
    return overlap(p, q) / (p[2] * p[3] + q[2] * q[3] - overlap(p, q))


def of_containment(p, target, whole) -> float:
    return 1 - containment(p, whole)


def of_log(p, target, whole) -> float:
    return -math.log(max(containment(p, whole), 0.01))


def of_excess(p, target, whole) -> float:
    return max(containment(target, whole) - containment(p, whole), 0.0)


def penalties(given: Case, suffix: str, formula=of_containment, wholes=WHOLES) -> list[float]:
    """Of every prediction whose part has a whole, before weighting."""
    output, pairs, _ = given.layers[suffix]
    return [
        formula(
            output["pred_boxes"][image, query].tolist(), given.targets[image]["boxes"][row].tolist(), wholes[image, row]
        )
        for image, query, row in pairs
        if (image, row) in wholes
    ]


def added(given: Case, suffix: str, weight: float, *arguments) -> float:
    """What the penalty adds to the GIoU loss of an output."""
    return given.coefficient * weight * sum(penalties(given, suffix, *arguments)) / given.layers[suffix].divisor


def mean_loss(given: Case, suffix: str, parts=PLATES) -> float:
    output, pairs, _ = given.layers[suffix]
    losses = [
        1 - iou(output["pred_boxes"][image, query].tolist(), given.targets[image]["boxes"][row].tolist())
        for image, query, row in pairs
        if (image, row) in parts
    ]
    return sum(losses) / len(losses)


def wanted(kind: str, auxiliary: bool, denoising: bool) -> set[str]:
    """The suffixes of the losses with the terms."""
    earlier = {"weighted": {"_aux_0", "_aux_1", "_enc_0"}, "union": {"_aux_0", "_pre", "_enc_0"}}
    auxiliaries = earlier.get(kind, {"_0", "_1", "_enc"}) if auxiliary else set()
    return {"", *auxiliaries, *(DENOISING[kind] if denoising else ())}


def assert_added(losses: dict, stock: dict, expected: dict[str, float], rel: float = 1e-9) -> None:
    """Losses are the stock ones, with so much added to the GIoU loss of these suffixes, and nothing to any other."""
    assert list(losses) == list(stock)
    for key, loss in losses.items():
        amount = expected.get(key.removeprefix("loss_giou"), 0.0) if key.startswith("loss_giou") else 0.0
        assert loss - stock[key] == pytest.approx(amount, rel=rel, abs=rel * max(abs(stock[key]), 1e-3)), key
