"""The adapter for Ultralytics: small models with random weights, offline; the terms by hand."""

import copy
import io
import pickle
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from frameworks import need
from icr_kernels.integrations import handle
from icr_kernels.integrations.ultralytics import enable_icr, enable_small_object_term
from icr_kernels.integrations.ultralytics.criteria import Criterion
from icr_kernels.integrations.ultralytics.start import EVENT
from ultralytics_steps import (
    BOX_GAIN,
    PAIRS,
    SCENE,
    WHOLE_OF,
    batch,
    begin,
    by_hand,
    every_family,
    every_yolo,
    network,
    step,
)
from ultralytics_training import (
    PLATE,
    globals_of,
)

need("ultralytics")
pytestmark = pytest.mark.usefixtures("ultralytics")


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


def test_the_last_call_counts(yolo):
    """A model has the penalty or the small-object term, and either is switched off by what switched it on. That one
    replaces the other is said, where the line of the user is."""
    model, given = network("yolo11n"), batch()
    stock, *_ = step(model, given)
    begin(yolo, model, weight=5.0)
    message = "^icr_kernels: enable_small_object_term replaces the term of enable_icr: a model has one$"
    with pytest.warns(UserWarning, match=message) as caught:
        small = begin(yolo, model, enable=lambda yolo: enable_small_object_term(yolo, weight=0.0))
    assert [each.filename for each in caught] == [__file__]
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


def test_package_imports_without_the_framework():
    script = "import sys, icr_kernels.integrations.ultralytics; assert 'ultralytics' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
