"""The term for small objects of the adapter for Ultralytics."""

import fractions

import numpy
import pytest
import torch

from frameworks import need
from icr_kernels.integrations import handle
from icr_kernels.integrations.ultralytics import enable_small_object_term
from ultralytics_steps import (
    BOX_GAIN,
    SCENE,
    area,
    assigned,
    batch,
    begin,
    corners_of,
    every_family,
    every_yolo,
    network,
    overlap,
    step,
)
from ultralytics_training import (
    NAMES,
)

need("ultralytics")
pytestmark = pytest.mark.usefixtures("ultralytics")


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
        term = begin(yolo, model, **options)
        alone.append(step(model, given)[:2])
        term.disable()
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


def test_nothing_small_for_long_is_worth_a_warning(yolo, monkeypatch):
    monkeypatch.setattr(handle, "STEPS_WITHOUT_PAIRS", 2)
    model, given = network("yolo11n"), batch()
    begin(yolo, model, enable=enable_small_object_term, max_side=4)
    step(model, given)
    with pytest.warns(UserWarning, match="in 2 training steps nothing counted in the uniform term, iou of all objects"):
        step(model, given)


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
        ({"loss": "ioux"}, ValueError, "loss: expected one of iou, giou"),
    ],
)
def test_errors_of_the_small_object_term(yolo, options, error, message):
    with pytest.raises(error, match=message):
        enable_small_object_term(yolo, **options)
