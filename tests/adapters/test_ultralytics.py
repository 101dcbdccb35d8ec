"""The adapter for Ultralytics: small models with random weights, a set of generated images, offline."""

import copy
import fractions
import functools
import importlib
import inspect
import io
import json
import pickle
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy
import pytest
import torch

import icr_kernels as icr
from benchmarks.torchvision_without_extension import make_importable
from frameworks import need
from icr_kernels.integrations import handle
from icr_kernels.integrations.ultralytics import enable_icr, enable_small_object_term
from icr_kernels.integrations.ultralytics.criteria import Criterion
from icr_kernels.integrations.ultralytics.start import EVENT
from ultralytics_training import (
    CAR,
    NAMES,
    PLATE,
    SIZE,
    TRUCK,
    data_set,
    environment,
    globals_of,
    logged,
    small_detr,
    train,
)

need("ultralytics")

PAIRS = {"plate": ("car", "truck")}
BOX_GAIN = 7.5

FAMILIES = ("yolo11n", "yolo12n", "yolo26n", "yolov10n", "yolov8n-rtdetr")
every_family = pytest.mark.parametrize("family", FAMILIES)
every_yolo = pytest.mark.parametrize("family", FAMILIES[:-1])

# Image, class, box in pixels: two plates in their wholes and one of nobody; and fewer boxes, which are padded.
SCENE = [
    (0, CAR, (0, 4, 38, 40)),
    (0, PLATE, (14, 22, 38, 38)),
    (0, PLATE, (42, 4, 62, 22)),
    (0, TRUCK, (30, 40, 64, 64)),
    (1, TRUCK, (8, 8, 60, 60)),
    (1, PLATE, (20, 42, 44, 60)),
]
WHOLE_OF = {1: 0, 5: 4}


@pytest.fixture(scope="module", autouse=True)
def ultralytics(tmp_path_factory):
    """Imported late, because it changes settings of torch and numpy, and with a place of its own for its files."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(tmp_path_factory.mktemp("settings") / "ultralytics").items():
            patch.setenv(name, value)
        make_importable()
        yield importlib.import_module("ultralytics")


@pytest.fixture(scope="module")
def yolo(ultralytics):
    """What `enable_icr` is given where a test trains a network without its trainer."""
    return ultralytics.YOLO("yolo11n.yaml")


def network(family: str):
    """As the trainer makes it."""
    from ultralytics.cfg import get_cfg
    from ultralytics.nn import tasks

    torch.manual_seed(0)
    if family == "yolov8n-rtdetr":
        model = tasks.RTDETRDetectionModel(small_detr(), nc=len(NAMES), verbose=False)
        # Boxes that are large enough to reach out of their wholes, at every output.
        model.model[-1].enc_bbox_head.layers[-1].bias.data[2:] = 2.5
    else:
        try:
            model = tasks.DetectionModel(f"{family}.yaml", nc=len(NAMES), verbose=False)
        except FileNotFoundError as error:
            pytest.skip(str(error))
        # Boxes of a few cells, as for the smaller objects here; untrained ones reach over the whole image.
        distances = model.model[-1].reg_max
        for convolutions in ("cv2", "one2one_cv2"):
            for level in getattr(model.model[-1], convolutions, None) or ():
                if distances > 1:
                    level[-1].bias.data[:] = -0.35 * torch.arange(distances).repeat(4)
    model.args, model.names, model.nc = get_cfg(), NAMES, len(NAMES)
    return model.train()


def begin(yolo, *models, **options):
    """Switches the penalty on, and does what a trainer does then."""
    enable = options.pop("enable", None)
    icr_handle = enable(yolo, **options) if enable else enable_icr(yolo, options.pop("pairs", PAIRS), **options)
    average = types.SimpleNamespace(ema=models[1]) if len(models) > 1 else None
    arguments = types.SimpleNamespace(single_cls=False, imgsz=SIZE)
    yolo.trainer = types.SimpleNamespace(model=models[0], ema=average, args=arguments, loss_names=())
    for callback in yolo.callbacks[EVENT]:
        callback(yolo.trainer)
    return icr_handle


def batch(scene=SCENE, images: int = 2) -> dict:
    boxes = torch.tensor([box for _, _, box in scene]).view(-1, 4) / SIZE
    return {
        "img": torch.rand(images, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)),
        "cls": torch.tensor([[float(label)] for _, label, _ in scene]).view(-1, 1),
        "bboxes": torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1),
        "batch_idx": torch.tensor([float(image) for image, _, _ in scene]),
    }


def step(model, given: dict):
    """Loss, items and the gradient of all weights."""
    torch.manual_seed(1)  # the denoising queries are drawn
    model.zero_grad()
    loss, items = model.loss(given)
    loss.sum().backward()
    return loss.sum().item(), items, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def is_dict(model, given: dict) -> bool:
    """Whether the loss items of this version have names, and so room for one more."""
    return isinstance(step(model, given)[1], dict)


def assigned(model, given: dict) -> list[tuple[int, list, float, float]]:
    """Every prediction of the last head that the stock assigner gives a target: row of the target, box in pixels,
    weight, sum of all weights."""
    scene_row = {}
    for row, image in enumerate(given["batch_idx"].int().tolist()):
        scene_row[image, sum(key[0] == image for key in scene_row)] = row
    criterion = model.init_criterion()
    seen = []
    head = getattr(criterion, "one2one", criterion)
    head.assigner.register_forward_hook(lambda _, inputs, outputs: seen.append((inputs[1], *outputs)))
    criterion(model(given["img"]), given)
    ((boxes, _, _, scores, is_positive, gt_index),) = seen
    return [
        (
            scene_row[image, int(gt_index[image, point])],
            boxes[image, point].tolist(),
            float(scores[image, point].sum()),
            float(scores.sum()),
        )
        for image, point in is_positive.nonzero().tolist()
    ]


def corners_of(given: dict) -> list[list[float]]:
    boxes = given["bboxes"] * SIZE
    return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1).tolist()


def area(box) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def overlap(first, second) -> float:
    return area([*map(max, first[:2], second[:2]), *map(min, first[2:], second[2:])])


def by_hand(model, given: dict, whole_of: dict[int, int]) -> list[tuple[float, float, float]]:
    """Of every prediction of the last head that the stock assigner gives to a part: penalty, weight, sum of weights.

    From pixels, one prediction after the other.
    """
    corners = corners_of(given)
    return [
        (1 - overlap(box, corners[whole_of[row]]) / area(box), weight, total)
        for row, box, weight, total in assigned(model, given)
        if row in whole_of
    ]


@every_family
def test_weight_0_is_the_stock_loss(yolo, family):
    model, given = network(family), batch()
    stock, stock_items, stock_gradient = step(model, given)
    begin(yolo, model, weight=0.0, denoising=True)
    ours, items, gradient = step(model, given)
    assert ours == pytest.approx(stock, rel=1e-6)
    assert (gradient - stock_gradient).norm() <= 1e-6 * stock_gradient.norm()
    if isinstance(stock_items, dict):
        assert {name: items[name].item() for name in stock_items} == pytest.approx(
            {name: value.item() for name, value in stock_items.items()}, rel=1e-6
        )
        assert set(items) - set(stock_items) == (set() if "rtdetr" in family else {"icr_loss"})


@every_family
def test_own_iou_loss(yolo, family):
    """Differs from the stock one by rounding."""
    model, given = network(family), batch()
    stock, _, stock_gradient = step(model, given)
    begin(yolo, model, weight=0.0, replace_iou_loss=True)
    ours, _, gradient = step(model, given)
    assert ours == pytest.approx(stock, rel=1e-5)
    assert (gradient - stock_gradient).norm() <= 1e-3 * stock_gradient.norm()


def of_the_distance(pred, target, xywh=True, **_):
    """In the place of bbox_iou: DIoU in that of CIoU, the nearest relative, and of GIoU."""
    from ultralytics.utils import metrics

    return metrics.bbox_iou(pred, target, xywh=xywh, DIoU=True)


def times_a_detached_factor(pred, target, **options):
    """In the place of bbox_iou: the same value with another gradient."""
    from ultralytics.utils import metrics

    iou = metrics.bbox_iou(pred, target, **options)
    return iou.detach() + 0.5 * (iou - iou.detach())


@every_family
@pytest.mark.parametrize("other", [of_the_distance, times_a_detached_factor])
def test_another_box_loss_is_not_replaced(yolo, monkeypatch, family, other):
    """Refused before the first step, with the reason; without the option the loss stays what it is."""
    import ultralytics.models.utils.loss as of_detr
    import ultralytics.utils.loss as of_yolo

    for module in of_detr, of_yolo:
        monkeypatch.setattr(module, "bbox_iou", other)
    model, given = network(family), batch()
    other_loss, *_ = step(model, given)
    of_stock = "RTDETRDetectionLoss is not the GIoU" if "rtdetr" in family else "Loss is not the CIoU"
    with pytest.raises(ValueError, match=f"replace_iou_loss: expected False, because the box loss of .*{of_stock}"):
        begin(yolo, model, replace_iou_loss=True)
    assert step(model, given)[0] == pytest.approx(other_loss, rel=1e-6), "nothing was put in its place"
    begin(yolo, model, weight=0.0)
    assert step(model, given)[0] == pytest.approx(other_loss, rel=1e-6)


class InAnotherWay(torch.nn.Module):
    """A box loss that needs the image's height and width, as MPDIoU does."""

    def __init__(self, stock):
        super().__init__()
        self.stock, self.reg_max = stock, 16

    def forward(
        self,
        pred_dist,
        pred_bboxes,
        anchor_points,
        target_bboxes,
        target_scores,
        target_scores_sum,
        fg_mask,
        *rest,
        height_and_width,
    ):
        raise AssertionError("nothing is trained")


def test_a_box_loss_that_is_called_in_another_way_is_not_replaced(yolo):
    model = network("yolo11n")
    model.criterion = model.init_criterion()
    model.criterion.bbox_loss = InAnotherWay(model.criterion.bbox_loss)
    with pytest.raises(
        ValueError, match="replace_iou_loss: expected False, because the box loss of v8DetectionLoss is"
    ):
        begin(yolo, model, replace_iou_loss=True)


def test_each_head_is_looked_at(yolo):
    model = network("yolov10n")
    model.criterion = model.init_criterion()
    stock = model.criterion.one2one.bbox_loss.forward
    begin(yolo, model, replace_iou_loss=True)
    criterion = model.criterion.stock
    criterion.one2one.bbox_loss.forward = functools.wraps(stock)(lambda **named: [2 * each for each in stock(**named)])
    with pytest.raises(ValueError, match="replace_iou_loss: expected False"):
        begin(yolo, model, replace_iou_loss=True)


@every_family
def test_the_term_is_in_the_loss_and_its_gradient(yolo, family):
    model, given = network(family), batch()
    begin(yolo, model, weight=0.0)
    stock, _, stock_gradient = step(model, given)
    begin(yolo, model, weight=1.0, penalty="containment+pull")
    ours, _, gradient = step(model, given)
    assert ours > stock + 0.1
    assert (gradient - stock_gradient).norm() > 1e-3 * stock_gradient.norm()


@every_family
def test_training_lowers_the_penalty(yolo, family):
    model, given = network(family), batch()
    icr_handle = begin(yolo, model, weight=2.0, penalty="pull")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    penalties = []
    for _ in range(12):
        icr_handle.reset()
        step(model, given)
        optimizer.step()
        penalties.append(icr_handle.statistics.mean_penalty)
    assert sum(penalties[-3:]) / 3 < 0.7 * penalties[0]


@every_yolo
@pytest.mark.parametrize("weighting", ["uniform", "tal"])
def test_the_penalty_by_hand(yolo, family, weighting):
    """In pixels, by the assignment of the stock criterion: units, weights and the gain of the box loss."""
    model, given = network(family), batch()
    found = by_hand(model, given, WHOLE_OF)
    begin(yolo, model, weight=3.0, weighting=weighting)
    _, items, _ = step(model, given)
    if not isinstance(items, dict):
        pytest.skip("the term has no item of its own in this version")
    mean = sum(penalty for penalty, _, _ in found) / len(found)
    weighted = sum(penalty * weight for penalty, weight, _ in found) / max(found[0][2], 1)
    assert 0.1 < mean < 1 and abs(weighted - mean) > 0.01
    expected = BOX_GAIN * 3.0 * (mean if weighting == "uniform" else weighted)
    assert items["icr_loss"].item() == pytest.approx(expected, rel=1e-4)


def test_the_sum_by_hand(yolo):
    """The loss grows by the term, times the batch size as all of it; statistics count what the assigner gave."""
    model, given = network("yolo11n"), batch()
    found = by_hand(model, given, WHOLE_OF)
    stock, *_ = step(model, given)
    icr_handle = begin(yolo, model, weight=3.0)
    ours, *_ = step(model, given)
    mean = sum(penalty for penalty, _, _ in found) / len(found)
    assert ours - stock == pytest.approx(2 * BOX_GAIN * 3.0 * mean, rel=1e-3)
    statistics = icr_handle.statistics
    assert statistics.steps == 1 and statistics.paired == len(found) > 0
    assert statistics.positives > statistics.parts > statistics.paired
    assert statistics.mean_penalty == pytest.approx(mean, rel=1e-4)
    assert repr(icr_handle).startswith("Handle(Relations({'plate': ('car', 'truck')}, min_containment=0.5), Statistics")


# What is chosen: by default, classes, a bound, both, all; and the rows of the scene that are then. The roots of their
# areas are 37.0, 19.6, 19.0, 28.6, 52.0 and 20.8.
CHOICES = {
    "default": ({}, {1, 2, 3, 5}),
    "classes": ({"names": ["truck"]}, {3, 4}),
    "a bound": ({"max_side": 20}, {1, 2}),
    "both": ({"names": ("plate", "car"), "max_side": 19.2}, {2}),
    "all": ({"max_side": 1e6}, {0, 1, 2, 3, 4, 5}),
}


@every_yolo
@pytest.mark.parametrize("choice", CHOICES)
def test_the_uniform_term_by_hand(yolo, family, choice):
    """In pixels, by the assignment of the stock criterion: every chosen prediction counts as much as another."""
    options, rows = CHOICES[choice]
    model, given = network(family), batch()
    corners = corners_of(given)
    losses = []
    for row, box, *_ in assigned(model, given):
        if row in rows:
            both = overlap(box, corners[row])
            losses.append(1 - both / (area(box) + area(corners[row]) - both))
    mean = sum(losses) / len(losses)
    stock, stock_items, stock_gradient = step(model, given)
    term = begin(yolo, model, enable=enable_small_object_term, weight=3.0, **options)
    ours, items, gradient = step(model, given)
    assert 0.1 < mean < 1 and (gradient - stock_gradient).norm() > 1e-3 * stock_gradient.norm()
    statistics = term.statistics
    if not hasattr(model.criterion, "one2one"):
        assert statistics.chosen == len(losses)
        assert statistics.mean_loss == pytest.approx(mean, rel=1e-4)
        assert ours - stock == pytest.approx(2 * BOX_GAIN * 3.0 * mean, rel=1e-3)
    if isinstance(items, dict):
        assert items["uniform_loss"].item() == pytest.approx(BOX_GAIN * 3.0 * mean, rel=1e-4)
        assert items["box_loss"].item() == pytest.approx(stock_items["box_loss"].item(), rel=1e-5)
        assert set(items) - set(stock_items) == {"uniform_loss"}


@every_family
def test_small_object_term_of_weight_0_is_the_stock_loss(yolo, family):
    model, given = network(family), batch()
    stock, _, stock_gradient = step(model, given)
    begin(yolo, model, enable=enable_small_object_term, weight=0.0, denoising=True)
    ours, _, gradient = step(model, given)
    assert ours == stock and torch.equal(gradient, stock_gradient)


@every_family
def test_penalty_and_uniform_term_add_up(yolo, family):
    """Each is what it is alone, with a column of its own."""
    model, given = network(family), batch()
    stock, *_ = step(model, given)
    parts = {"enable": enable_small_object_term, "names": ["plate"], "weight": 0.7}
    alone = []
    for options in ({"weight": 0.3}, parts):
        begin(yolo, model, **options)
        alone.append(step(model, given)[:2])
    term = begin(yolo, model, weight=0.3, box_term=0.7)
    ours, items, _ = step(model, given)
    assert ours - stock == pytest.approx(sum(each - stock for each, _ in alone), rel=1e-3)
    assert alone[0][0] > stock and alone[1][0] > stock
    if isinstance(items, dict) and "rtdetr" not in family:
        for (_, single), column in zip(alone, ("icr_loss", "uniform_loss"), strict=True):
            assert items[column].item() == pytest.approx(single[column].item(), rel=1e-5)
    assert term.statistics.paired > 0 and term.statistics.chosen >= term.statistics.paired


def l1_of_sides(pred, target):
    """Of corners (..., 4): the mean difference of both sides, in sides of the target."""
    side, of_target = (each[..., 2:] - each[..., :2] for each in (pred, target))
    return ((side - of_target).abs() / of_target.clamp(min=1)).mean(-1)


def test_a_loss_of_ones_own(yolo):
    model, given = network("yolo11n"), batch()
    corners = corners_of(given)
    losses = []
    for row, box, *_ in assigned(model, given):
        sides = [[each[2] - each[0], each[3] - each[1]] for each in (box, corners[row])]
        losses.append(sum(abs(a - b) / b for a, b in zip(*sides, strict=True)) / 2)
    stock, *_ = step(model, given)
    begin(yolo, model, enable=enable_small_object_term, max_side=1e6, loss=l1_of_sides)
    expected = 2 * BOX_GAIN * 0.1 * sum(losses) / len(losses)
    assert step(model, given)[0] - stock == pytest.approx(expected, rel=1e-3)


def ratio_of_widths(pred, target):
    """Infinite where a target has no width, as the padding of an image without boxes has none."""
    width, of_target = (each[..., 2] - each[..., 0] for each in (pred, target))
    return (width / of_target - 1).abs()


@every_yolo
def test_what_a_loss_makes_of_other_boxes_stays_out(yolo, family):
    model, given = network(family), batch(SCENE[:4])
    term = begin(yolo, model, enable=enable_small_object_term, loss=ratio_of_widths)
    loss, _, gradient = step(model, given)
    assert term.statistics.chosen > 0 and torch.tensor(loss).isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda pred, target: (pred - target).abs().mean(), r"shape \(2, 84\), one value per prediction, got .*\(\)"),
        (
            lambda pred, target: (pred - target)[..., :1],
            r"shape \(2, 84\), one value per prediction, got .*\(2, 84, 1\)",
        ),
        (lambda pred, target: (pred < target).all(-1), "a floating-point tensor .* got torch.bool"),
        (lambda pred, target: None, "loss: expected a function that returns a tensor, got NoneType"),
    ],
)
def test_losses_of_ones_own_are_looked_at(yolo, loss, message):
    model, given = network("yolo11n"), batch()
    begin(yolo, model, enable=enable_small_object_term, loss=loss)
    with pytest.raises((TypeError, ValueError), match=message):
        step(model, given)


@pytest.mark.parametrize("number", [numpy.uint8, numpy.float32, numpy.int16, fractions.Fraction])
def test_numbers_of_any_kind(yolo, number):
    model, given = network("yolo11n"), batch()
    counts = []
    for bound, weight in ((200.0, 2.0), (number(200), number(2))):
        term = begin(yolo, model, enable=enable_small_object_term, max_side=bound, weight=weight)
        counts.append((step(model, given)[0], term.statistics))
    assert counts[0] == counts[1] and counts[0][1].chosen == counts[0][1].positives


def test_classes_of_one_name(yolo):
    """Without names nobody asks for them."""
    model, given = network("yolo11n"), batch()
    model.names = dict.fromkeys(NAMES, "object")
    term = begin(yolo, model, enable=enable_small_object_term)
    step(model, given)
    assert term.statistics.chosen > 0


def test_detr_uniform_term_by_hand(yolo):
    """In the unit of the GIoU loss times its gain; pixels are those of imgsz."""
    model, given = network("yolov8n-rtdetr"), batch()
    stock, *_ = step(model, given)
    choice = {"enable": enable_small_object_term, "weight": 3.0, "auxiliary": False}
    for options, count in (({}, 4), ({"max_side": 20.0}, 2), ({"names": ["plate"]}, 3)):
        term = begin(yolo, model, **choice, **options)
        ours, *_ = step(model, given)
        assert term.statistics.chosen == count and 0 < term.statistics.mean_loss <= 1
        assert ours - stock == pytest.approx(2 * 3.0 * term.statistics.mean_loss, rel=1e-3)


def test_the_last_call_counts(yolo):
    """A model has the penalty or the small-object term, and either is switched off by what switched it on."""
    model, given = network("yolo11n"), batch()
    stock, *_ = step(model, given)
    begin(yolo, model, weight=5.0)
    small = begin(yolo, model, enable=enable_small_object_term, weight=0.0)
    assert step(model, given)[0] == stock
    assert repr(small).startswith("Handle(Statistics(steps=1")


def test_an_old_handle_leaves_what_is_newer(yolo):
    model, given = network("yolo11n"), batch()
    old = begin(yolo, model, weight=5.0)
    small = begin(yolo, model, enable=enable_small_object_term)
    old.disable()
    step(model, given)
    assert small.statistics.steps == 1 and old.statistics.steps == 0
    assert repr(small).startswith("Handle(iou of all objects of an area below 32² pixels, Statistics(steps=1")
    small.disable()
    step(model, given)
    assert small.statistics.steps == 1


def test_nothing_small_for_long_is_worth_a_warning(yolo, monkeypatch):
    monkeypatch.setattr(handle, "STEPS_WITHOUT_PAIRS", 2)
    model, given = network("yolo11n"), batch()
    begin(yolo, model, enable=enable_small_object_term, max_side=4)
    step(model, given)
    with pytest.warns(UserWarning, match="in 2 training steps nothing counted in the uniform term, iou of all objects"):
        step(model, given)


def test_padding_is_nobodys_whole(yolo):
    """Rows of padding read like empty boxes of class 0, a car: without a mask they would take in any plate that
    overlaps no whole, if none is required to."""
    scene = [SCENE[0], SCENE[1], SCENE[3], (1, PLATE, (20, 40, 44, 58))]
    model, given = network("yolo11n"), batch(scene)
    found = by_hand(model, given, {1: 0})
    icr_handle = begin(yolo, model, min_containment=0.0)
    step(model, given)
    assert icr_handle.statistics.paired == len(found) > 0
    assert icr_handle.statistics.parts > len(found)


def test_detr_by_hand(yolo):
    """Each main, auxiliary and denoising output adds to the loss, in units of the GIoU loss times its gain."""
    model, given = network("yolov8n-rtdetr"), batch()
    stock, *_ = step(model, given)
    icr_handle = begin(yolo, model, weight=3.0, auxiliary=False)
    ours, *_ = step(model, given)
    statistics = icr_handle.statistics
    assert statistics[:4] == (1, 6, 3, 2)
    assert ours - stock == pytest.approx(2 * 3.0 * statistics.mean_penalty, rel=1e-3)
    begin(yolo, model, weight=3.0, auxiliary=False, weighting="tal")
    assert step(model, given)[0] - stock == pytest.approx(2 * 3.0 * statistics.mean_penalty * 2 / 6, rel=1e-3)
    losses = [ours]
    for options in ({}, {"denoising": True}):
        begin(yolo, model, weight=3.0, **options)
        losses.append(step(model, given)[0])
    assert losses[0] + 0.1 < losses[1] < losses[2] - 0.1


@every_family
@pytest.mark.parametrize(
    "scene", [[], [SCENE[0], SCENE[3]], [SCENE[2]]], ids=["without boxes", "without parts", "without a whole"]
)
def test_nothing_to_pair(yolo, family, scene):
    """Without ground truth the assigner's index is even of a floating dtype."""
    model, given = network(family), batch(scene)
    stock, _, stock_gradient = step(model, given)
    icr_handle = begin(yolo, model, weight=10.0)
    ours, items, gradient = step(model, given)
    assert ours == pytest.approx(stock, rel=1e-6)
    assert (gradient - stock_gradient).norm() <= 1e-6 * stock_gradient.norm()
    assert icr_handle.statistics.paired == 0
    if "rtdetr" not in family and isinstance(items, dict):
        assert items["icr_loss"].item() == 0


def test_without_foreground(yolo):
    """Ground truth of no extent is assigned to nothing."""
    model, given = network("yolo11n"), batch([(0, PLATE, (0, 0, 0, 0))])
    icr_handle = begin(yolo, model, weight=10.0)
    loss, _, gradient = step(model, given)
    assert torch.tensor(loss).isfinite() and gradient.isfinite().all()
    assert icr_handle.statistics[1:4] == (0, 0, 0)


@every_family
def test_half_precision(yolo, family):
    """Under autocast predictions come in bfloat16; the penalty is computed in float32."""
    model, given = network(family), batch()
    icr_handle = begin(yolo, model)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = model.loss(given)
    loss.sum().backward()
    assert loss.isfinite().all() and 0 < icr_handle.statistics.mean_penalty <= 1


@every_family
def test_after_inference(yolo, family):
    """Validation, in inference mode, leaves nothing that training could stumble over, and is not counted."""
    model, average, given = network(family), network(family).eval(), batch()
    icr_handle = begin(yolo, model, average)
    with torch.inference_mode():
        average.loss(given, average(given["img"]))
    assert icr_handle.statistics.steps == icr_handle.statistics.positives == 0
    step(model, given)
    assert icr_handle.statistics.steps == 1 and icr_handle.statistics.positives > 0


@every_family
def test_copies_and_pickles(yolo, family):
    """A copy trains with the penalty, into the same statistics; what is stored is Ultralytics' alone."""
    model, given = network(family), batch()
    stock, *_ = step(model, given)
    icr_handle = begin(yolo, model, weight=5.0)
    ours, *_ = step(model, given)
    copied = copy.deepcopy(model)
    assert step(copied, given)[0] == pytest.approx(ours, rel=1e-6) and ours > stock + 0.1
    assert icr_handle.statistics.steps == 2
    file = io.BytesIO()
    torch.save(model, file)
    assert "icr_kernels" not in globals_of(file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert step(loaded, given)[0] == pytest.approx(stock, rel=1e-6)


def test_handles_are_copied_and_pickled(ultralytics):
    """Alone a copy has the statistics; with the callbacks, as Ultralytics hands them to the processes of DDP, it counts
    what is trained there. The whole model can be copied and pickled as it could before."""
    model, given = network("yolo11n"), batch()
    stock, *_ = step(model, given)
    yolo = ultralytics.YOLO("yolo11n.yaml")
    icr_handle = begin(yolo, model, weight=5.0)
    ours, *_ = step(model, given)
    statistics = icr_handle.statistics
    for copied in copy.deepcopy(icr_handle), pickle.loads(pickle.dumps(icr_handle)):
        assert copied.statistics == statistics
        with pytest.raises(RuntimeError, match="disable: expected the handle of a model, got a copy of one"):
            copied.disable()
    state = {"callbacks": yolo.callbacks[EVENT], "icr": icr_handle}
    for copied in copy.deepcopy(state), pickle.loads(pickle.dumps(state)):
        trained, trainer = network("yolo11n"), copy.copy(yolo.trainer)
        trainer.model = trained
        for callback in copied["callbacks"]:
            callback(trainer)
        assert step(trained, given)[0] == pytest.approx(ours, rel=1e-6) and ours > stock + 0.1
        assert copied["icr"].statistics.steps == 2
    assert icr_handle.statistics == statistics
    yolo.model.icr = icr_handle
    for whole in copy.deepcopy(yolo), pickle.loads(pickle.dumps(yolo)):
        assert whole.model.icr.statistics == statistics


@every_family
def test_disable_and_enable_again(yolo, family):
    model, average, given = network(family), network(family), batch()
    stock, *_ = step(model, given)
    first = begin(yolo, model, average, weight=5.0)
    once, *_ = step(model, given)
    second = begin(yolo, model, average, weight=5.0)
    assert step(model, given)[0] == once != stock
    assert step(average, given)[0] == pytest.approx(once, rel=1e-6)
    assert first.statistics.steps == 1 and second.statistics.steps == 2
    second.disable()
    for each in (model, average):
        assert step(each, given)[0] == pytest.approx(stock, rel=1e-6)
        assert not isinstance(each.criterion, Criterion)
    assert not any(type(each).__module__.startswith("icr_kernels") for each in yolo.callbacks[EVENT])


def test_an_end_to_end_schedule_goes_on(yolo):
    """The trainer moves the weight from one head to the other through the criterion."""
    model, given = network("yolo26n"), batch()
    model.criterion = model.init_criterion()
    model.criterion.updates = 3
    begin(yolo, model)
    before, *_ = step(model, given)
    model.criterion.update()
    assert model.criterion.updates == 4 and model.criterion.o2m < 0.8
    assert step(model, given)[0] != before


def test_no_pairs_for_long_is_worth_a_warning(yolo, monkeypatch):
    monkeypatch.setattr(handle, "STEPS_WITHOUT_PAIRS", 2)
    model, given = network("yolo11n"), batch()
    begin(yolo, model, pairs={"truck": "plate"})
    step(model, given)
    with pytest.warns(UserWarning, match=r"in 2 training steps no part was paired with a whole; Relations\({'truck'"):
        step(model, given)


@pytest.fixture(scope="module")
def data(ultralytics, tmp_path_factory) -> Path:
    return data_set(tmp_path_factory.mktemp("plates"))


def test_training(ultralytics, data, tmp_path):
    """Two epochs with validation: the log, the statistics, and checkpoints for those who lack this package."""
    model = ultralytics.YOLO("yolo11n.yaml")
    icr_handle = enable_icr(model, {"plate": "car"}, weight=0.5)
    stored = []
    model.add_callback("on_model_save", lambda trainer: stored.append(globals_of(trainer.last)))
    run = train(model, data, tmp_path)
    statistics = icr_handle.statistics
    assert statistics.steps == 4 and 0 < statistics.paired <= statistics.parts < statistics.positives
    assert 0 < statistics.mean_penalty <= 1
    rows = logged(run)
    assert len(rows) == len(stored) == 2
    if is_dict(network("yolo11n"), batch()):
        assert all(float(row[f"{part}/icr_loss"]) > 0 for row in rows for part in ("train", "val"))
    assert all("icr_kernels" not in each for each in stored)
    script = (
        f"import sys; sys.modules['icr_kernels'] = None; sys.path.append({str(Path(__file__).parents[2])!r})\n"
        "from benchmarks.torchvision_without_extension import make_importable\n"
        "make_importable()\n"
        "import ultralytics\n"
        f"for name in ('best', 'last'): print(ultralytics.YOLO({str(run)!r} + f'/weights/{{name}}.pt').names)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-2:] == [str(NAMES)] * 2
    # The same object once more, and then without the penalty.
    train(model, data, tmp_path, epochs=1)
    assert icr_handle.statistics.steps == 6
    icr_handle.disable()
    train(model, data, tmp_path, epochs=1)
    assert icr_handle.statistics.steps == 6


def test_training_with_a_small_object_term(ultralytics, data, tmp_path):
    """A column of its own in training and in validation; one class is enough."""
    model = ultralytics.YOLO("yolo11n.yaml")
    term = enable_small_object_term(model)
    run = train(model, data, tmp_path, single_cls=True)
    assert term.statistics.steps == 4 and 0 < term.statistics.chosen < term.statistics.positives
    assert 0 < term.statistics.mean_loss <= 1
    rows = logged(run)
    if is_dict(network("yolo11n"), batch()):
        assert all(float(row[f"{part}/uniform_loss"]) > 0 for row in rows for part in ("train", "val"))
        assert not any("icr_loss" in name for name in rows[0])
    assert "icr_kernels" not in globals_of(run / "weights/last.pt")


def test_disabling_during_training(ultralytics, data, tmp_path):
    """The run goes on with the stock loss."""
    model = ultralytics.YOLO("yolo11n.yaml")
    icr_handle = enable_icr(model, {"plate": "car"})
    model.add_callback("on_fit_epoch_end", lambda trainer: icr_handle.disable())
    train(model, data, tmp_path)
    assert icr_handle.statistics.steps == 2


def test_resuming(ultralytics, data, tmp_path):
    """A checkpoint in the middle of a run is one of Ultralytics; the penalty is switched on again, and goes on."""
    family = "yolo26n" if (Path(ultralytics.__file__).parent / "cfg/models/26").exists() else "yolov10n"
    model = ultralytics.YOLO(f"{family}.yaml")
    enable_icr(model, {"plate": "car"})
    middle, stored = tmp_path / "middle.pt", []

    def save(trainer):
        if not stored:
            shutil.copy(trainer.last, middle)
        stored.append(globals_of(trainer.last))

    model.add_callback("on_model_save", save)
    train(model, data, tmp_path)
    assert len(stored) == 2 and all("icr_kernels" not in each for each in stored)
    resumed = ultralytics.YOLO(middle)
    icr_handle = enable_icr(resumed, {"plate": "car"})
    updates = []

    def note(trainer):
        updates.append(getattr(trainer.model.criterion, "updates", None))

    resumed.add_callback("on_train_start", note)
    resumed.train(resume=True)
    assert icr_handle.statistics.steps == 2 and icr_handle.statistics.paired > 0
    if family == "yolo26n" and is_dict(network("yolo11n"), batch()):
        assert updates == [1]


def test_training_a_detr(ultralytics, data, tmp_path):
    (tmp_path / "yolov8n-rtdetr.yaml").write_text(json.dumps(small_detr()))
    model = ultralytics.RTDETR(str(tmp_path / "yolov8n-rtdetr.yaml"))
    icr_handle = enable_icr(model, {"plate": "car"})
    run = train(model, data, tmp_path, epochs=1)
    statistics = icr_handle.statistics
    assert statistics.steps == 2 and 0 < statistics.paired <= statistics.parts < statistics.positives
    for name in ("best", "last"):
        assert "icr_kernels" not in globals_of(run / "weights" / f"{name}.pt")


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        ({"licence": "car"}, {}, "pairs: expected classes among car, plate, truck, got 'licence'"),
        ({"plate": "car"}, {"single_cls": True}, "single_cls: expected False"),
    ],
)
def test_errors_of_the_data(ultralytics, data, tmp_path, pairs, options, message):
    """Known when training begins, and said before the first step."""
    model = ultralytics.YOLO("yolo11n.yaml")
    icr_handle = enable_icr(model, pairs)
    with pytest.raises(ValueError, match=message):
        train(model, data, tmp_path, epochs=1, **options)
    assert icr_handle.statistics.steps == 0


def test_small_object_term_of_unknown_classes(ultralytics, data, tmp_path):
    model = ultralytics.YOLO("yolo11n.yaml")
    enable_small_object_term(model, names=["licence"])
    with pytest.raises(ValueError, match="names: expected classes among car, plate, truck, got 'licence'"):
        train(model, data, tmp_path, epochs=1)
    enable_small_object_term(model, names=["plate"])
    with pytest.raises(ValueError, match="single_cls: expected False"):
        train(model, data, tmp_path, epochs=1, single_cls=True)


@pytest.mark.parametrize(
    ("pairs", "options", "error", "message"),
    [
        (["plate"], {}, TypeError, "pairs: expected a mapping from part to whole, got list"),
        ({"plate": ()}, {}, ValueError, "pairs: expected the wholes of 'plate', got none"),
        ({"plate": 0}, {}, TypeError, "pairs: expected the names of classes, got 0"),
        (
            PAIRS,
            {"weight": -1.0},
            ValueError,
            "weight: expected a number of at least 0 that is finite in float32, got -1.0",
        ),
        (PAIRS, {"penalty": "overlap"}, ValueError, "penalty: expected one of containment"),
        (PAIRS, {"weighting": "box"}, ValueError, "weighting: expected one of uniform, tal, got 'box'"),
        (PAIRS, {"min_containment": 2}, ValueError, "min_containment: expected a number from 0 to 1, got 2"),
        (PAIRS, {"box_term": -0.5}, ValueError, "box_term: expected a number of at least 0"),
    ],
)
def test_errors(yolo, pairs, options, error, message):
    with pytest.raises(error, match=message):
        enable_icr(yolo, pairs, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weight": -1.0}, ValueError, "weight: expected a number of at least 0"),
        ({"weight": torch.tensor(1.0)}, TypeError, "weight: expected a number, got Tensor"),
        ({"max_side": -1}, ValueError, "max_side: expected a number of at least 0"),
        ({"max_side": "small"}, TypeError, "max_side: expected a number, got str"),
        ({"names": "plate"}, TypeError, "names: expected a sequence of names of classes, got 'plate'"),
        ({"names": ()}, ValueError, "names: expected at least one class, got none"),
        ({"names": [1]}, TypeError, "names: expected names of classes, got 1"),
        ({"names": 5}, TypeError, "names: expected a sequence of names of classes, got 5"),
        ({"names": b"plate"}, TypeError, "names: expected a sequence of names of classes, got b'plate'"),
        ({"loss": "nwd"}, ValueError, "loss: expected one of iou, giou"),
    ],
)
def test_errors_of_the_small_object_term(yolo, options, error, message):
    with pytest.raises(error, match=message):
        enable_small_object_term(yolo, **options)


def test_a_model_of_a_fork(ultralytics):
    """Of a class of its own, as YOLOv10's is; what has no trainer is said."""
    from ultralytics.engine.model import Model

    class Forked(Model):
        task_map = ultralytics.YOLO.task_map

    class Untrained(Model):
        task_map = types.MappingProxyType({"detect": {"predictor": None}})

    assert enable_icr(Forked("yolo11n.yaml"), PAIRS)
    model = object.__new__(Untrained)
    model.__dict__.update(task="detect")
    with pytest.raises(TypeError, match="model: expected one that can be trained, got Untrained"):
        enable_icr(model, PAIRS)


class ByName(torch.nn.Module):
    """The box loss of a fork: arguments in another order, and given by name."""

    def __init__(self, stock):
        super().__init__()
        self.stock = stock

    def __call__(self, *arguments):
        return super().__call__(**dict(zip(inspect.signature(self.stock.forward).parameters, arguments, strict=True)))

    def forward(self, fg_mask, target_scores_sum, target_scores, target_bboxes, anchor_points, pred_bboxes, **rest):
        return self.stock(
            fg_mask=fg_mask,
            target_scores_sum=target_scores_sum,
            target_scores=target_scores,
            target_bboxes=target_bboxes,
            anchor_points=anchor_points,
            pred_bboxes=pred_bboxes,
            **rest,
        )


def test_arguments_by_name(yolo):
    model, given = network("yolo11n"), batch()
    begin(yolo, model)
    expected, _, gradient = step(model, given)
    other = network("yolo11n")
    other.criterion = other.init_criterion()
    other.criterion.bbox_loss = ByName(other.criterion.bbox_loss)
    begin(yolo, other)
    ours, _, of_other = step(other, given)
    assert ours == expected and torch.equal(of_other, gradient)


def test_what_a_criterion_notes_about_itself_stays(yolo):
    """The DETR losses of forks have running means."""
    from ultralytics.models.utils.loss import RTDETRDetectionLoss

    class Noting(RTDETRDetectionLoss):
        updates = 0

        def forward(self, *arguments, **named):
            self.updates += 1
            return super().forward(*arguments, **named)

    model, given = network("yolov8n-rtdetr"), batch()
    model.criterion = Noting(nc=len(NAMES), use_vfl=True)
    stock = model.criterion
    begin(yolo, model)
    step(model, given), step(model, given)
    assert stock.updates == 2 and type(stock) is Noting and "batch_terms" not in vars(stock)


def test_models_that_are_none(ultralytics):
    with pytest.raises(TypeError, match=r"model: expected a model of ultralytics like YOLO or RTDETR, .* got Linear"):
        enable_icr(torch.nn.Linear(2, 2), PAIRS)
    with pytest.raises(TypeError, match=r"model: expected a model of ultralytics like YOLO or RTDETR, .* got str"):
        enable_icr("yolo11n.pt", PAIRS)
    with pytest.raises(ValueError, match="model: expected one with the task detect, got segment"):
        enable_icr(ultralytics.YOLO("yolo11n-seg.yaml"), PAIRS)
    with pytest.raises(TypeError, match=r"model: expected a model of ultralytics like YOLO or RTDETR, .* got Linear"):
        enable_small_object_term(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("name", ["YOLOWorld", "YOLOE"])
def test_models_whose_classes_are_texts(ultralytics, name):
    from ultralytics import models

    if not hasattr(models, name):
        pytest.skip("not in this version")
    model = object.__new__(getattr(models, name))  # one that is made asks for its text encoder in the network
    with pytest.raises(TypeError, match=f"model: expected .*not YOLO-World or YOLOE, got {name}"):
        enable_icr(model, PAIRS)


def test_missing_or_unsupported(ultralytics, yolo, monkeypatch):
    """What is imported counts, and is named with its place: a checkout of a fork beside another installed version."""
    place = str(Path(ultralytics.__file__).parent)
    for version in ("8.0.200", "8.5.0", None):
        monkeypatch.setattr(ultralytics, "__version__", version)
        with pytest.raises(ImportError) as error:
            enable_icr(yolo, PAIRS)
        expected = f"ultralytics: expected a version from 8.0.201 on and below 8.5, got {version} in {place}"
        assert str(error.value) == expected
    script = types.ModuleType("ultralytics")  # of the user's, of that name
    script.__file__ = "/somewhere/ultralytics.py"
    monkeypatch.setitem(sys.modules, "ultralytics", script)
    with pytest.raises(ImportError, match=r"below 8\.5, got None in /somewhere/ultralytics\.py"):
        enable_icr(yolo, PAIRS)
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with pytest.raises(ImportError, match=r"ultralytics is not installed; pip install 'ultralytics>=8\.0\.201,<8\.5'"):
        enable_icr(yolo, PAIRS)


def test_a_fork_without_the_symbols(ultralytics, yolo, monkeypatch):
    from ultralytics.models.utils import loss as of_detr
    from ultralytics.utils import loss as of_yolo

    monkeypatch.delattr(of_yolo, "BboxLoss")
    assert enable_icr(yolo, PAIRS), "a DETR might be trained"
    monkeypatch.delattr(of_detr, "RTDETRDetectionLoss")
    with pytest.raises(ImportError) as error:
        enable_icr(yolo, PAIRS)
    assert str(error.value) == (
        "ultralytics: expected utils.tal.TaskAlignedAssigner and utils.loss.BboxLoss, or "
        f"models.utils.loss.RTDETRDetectionLoss, found neither in {Path(ultralytics.__file__).parent}"
    )


class OtherCriterion:
    """Of a fork: without an assigner."""

    bbox_loss = torch.nn.Identity()


def test_criteria_that_are_not_known(yolo):
    """Said before the first step, with the file of what is not as expected."""
    model = network("yolo11n")
    model.criterion = OtherCriterion()
    with pytest.raises(ValueError, match=f"has an assigner and a box loss.* got one with OtherCriterion of {__file__}"):
        begin(yolo, model)
    model = network("yolo11n")
    model.criterion = model.init_criterion()
    model.criterion.bbox_loss = torch.nn.Identity()
    expected = r"expected one with bbox_loss.forward\(pred_bboxes, .*got one with Identity of .*which takes \(input\)"
    with pytest.raises(ValueError, match=expected):
        begin(yolo, model)


def test_package_imports_without_the_framework():
    script = "import sys, icr_kernels.integrations.ultralytics; assert 'ultralytics' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert icr.Relations(PAIRS, NAMES)
