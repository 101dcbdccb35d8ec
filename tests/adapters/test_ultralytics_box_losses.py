"""Box losses and criteria of forks of Ultralytics: what is not known is not replaced, and is said."""

import copy
import functools
import inspect
import io
import re
import types
import warnings
from pathlib import Path

import pytest
import torch

import icr_kernels as icr
from frameworks import need
from icr_kernels.integrations.ultralytics import accelerate, enable_box_loss, enable_icr, enable_small_object_term
from icr_kernels.integrations.ultralytics.criteria import Criterion
from icr_kernels.integrations.ultralytics.in_place import heads
from icr_kernels.integrations.ultralytics.start import EVENT, Start
from ultralytics_steps import FAMILIES, PAIRS, batch, begin, every_family, network, step
from ultralytics_training import NAMES, SIZE, globals_of

need("ultralytics")
pytestmark = pytest.mark.usefixtures("ultralytics")


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


def in_the_box_loss(other):
    """In the place of bbox_iou, which RT-DETR asks for the plain IoU too."""
    from ultralytics.utils import metrics

    def chosen(pred, target, xywh=True, **options):
        is_of_box_loss = options.get("CIoU") or options.get("GIoU")
        return (other if is_of_box_loss else metrics.bbox_iou)(pred, target, xywh=xywh, **options)

    return chosen


def of_the_distance_and_inner(pred, target, xywh=True, **_):
    """In the place of bbox_iou: Inner-DIoU, with sides of 0.7."""
    from ultralytics.utils import metrics

    def inner(boxes):
        first, second = boxes.split(2, -1)
        centre, half = (first, second / 2) if xywh else ((first + second) / 2, (second - first) / 2)
        return torch.cat((centre - 0.7 * half, centre + 0.7 * half), -1)

    of_inner = metrics.bbox_iou(inner(pred), inner(target), xywh=False)
    return of_the_distance(pred, target, xywh) - metrics.bbox_iou(pred, target, xywh=xywh) + of_inner


# Each with what it is in a stock criterion.
OTHERS = {
    "diou": ("diou", of_the_distance),
    "inner diou": (icr.BoxLoss("diou", inner=0.7), of_the_distance_and_inner),
}
fused = functools.partial(accelerate, criterion=True)


def of_stock_with(other, family, given):
    """A step of a stock criterion with another box loss."""
    import ultralytics.models.utils.loss as of_detr
    import ultralytics.utils.loss as of_yolo

    with pytest.MonkeyPatch.context() as patch:
        for module in of_detr, of_yolo:
            patch.setattr(module, "bbox_iou", in_the_box_loss(other))
        return step(network(family), given)


# RT-DETR has no fused criterion.
@pytest.mark.parametrize(
    ("family", "is_fused"), [(each, False) for each in FAMILIES] + [(each, True) for each in FAMILIES[:-1]]
)
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("is_alone", [True, False], ids=["alone", "beside a penalty"])
def test_another_loss_of_the_boxes(yolo, family, is_fused, name, is_alone):
    """Beside a stock criterion with that loss; alone the items are those of the stock one, and no other."""
    loss, other = OTHERS[name]
    model, given = network(family), batch()
    if is_alone:
        enable = functools.partial(enable_box_loss, loss=loss)
    else:
        enable = functools.partial(enable_icr, pairs=PAIRS, weight=0.0, iou_loss=loss)
    handle = begin(yolo, model, enable=lambda yolo: [enable(yolo), is_fused and fused(yolo)][0])
    found, items, gradient = step(model, given)
    expected, of_stock_items, of_stock = of_stock_with(other, family, given)
    assert found == pytest.approx(expected, rel=1e-4)
    assert torch.allclose(gradient, of_stock, rtol=1e-2, atol=1e-4 * of_stock.abs().max().item())
    if is_alone and isinstance(items, dict):
        of_items = [{name: each.item() for name, each in found.items()} for found in (items, of_stock_items)]
        assert list(items) == list(of_stock_items) and of_items[0] == pytest.approx(of_items[1], rel=1e-4)
    elif is_alone:
        assert torch.allclose(items, of_stock_items, rtol=1e-4)
    assert handle.statistics.steps == 1 and handle.statistics.positives > 0
    assert handle.statistics.parts == handle.statistics.paired == 0 or not is_alone


INNER, OTHER = OTHERS["inner diou"]
TERMS = {
    "penalty": functools.partial(enable_icr, pairs=PAIRS, weight=3.0),
    "small objects": functools.partial(enable_small_object_term, weight=3.0),
}


@pytest.mark.parametrize("family", ["yolo11n", "yolo26n", "yolov8n-rtdetr"])
@pytest.mark.parametrize("term", TERMS.values(), ids=list(TERMS))
@pytest.mark.parametrize("term_first", [True, False], ids=["term first", "loss first"])
def test_a_box_loss_together_with_a_term(yolo, family, term, term_first):
    """Both are there, in any order, beside the fused criterion too; nothing is replaced, and either is switched off
    without the other, in the model and in its average."""
    model, average, given = network(family), network(family), batch()
    stock, *_ = step(model, given)
    expected, *_ = of_stock_with(OTHER, family, given)
    alone = begin(yolo, model, enable=term)
    of_term = step(model, given)[0] - stock
    alone.disable()
    assert abs(expected - stock) > 1e-3 * stock and of_term > 1e-3 * stock

    other = functools.partial(enable_box_loss, loss=INNER)
    order = (term, other) if term_first else (other, term)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handles = begin(yolo, model, average, enable=lambda yolo: {each: each(yolo) for each in order})
    both, items, _ = step(model, given)
    assert both == pytest.approx(expected + of_term, rel=1e-4)
    assert step(average, given)[0] == pytest.approx(both, rel=1e-6)
    if isinstance(items, dict) and "rtdetr" not in family:
        assert len(items) == 4
    if "rtdetr" not in family:
        accelerated = begin(yolo, model, average, enable=fused)
        assert step(model, given)[0] == pytest.approx(both, rel=1e-4)
        accelerated.disable()
    of_both, of_one = handles[term].statistics, alone.statistics
    assert of_both.positives == of_both.steps * of_one.positives == handles[other].statistics.positives > 0
    assert (of_both.mean_penalty, of_both.mean_loss) == pytest.approx(
        (of_one.mean_penalty, of_one.mean_loss), nan_ok=True
    )

    left = {term: expected, other: stock + of_term}
    handles[order[0]].disable()
    for each in model, average:
        assert step(each, given)[0] == pytest.approx(left[order[0]], rel=1e-4)
    handles[order[1]].disable()
    for each in model, average:
        assert step(each, given)[0] == pytest.approx(stock, rel=1e-6) and not isinstance(each.criterion, Criterion)
    assert not any(type(each).__module__.startswith("icr_kernels") for each in yolo.callbacks[EVENT])


def test_the_last_loss_of_the_boxes_counts(yolo):
    """That one function replaces what another has brought is said; the term that came with it stays."""
    model, given = network("yolo11n"), batch()
    expected, *_ = of_stock_with(OTHER, "yolo11n", given)
    old = enable_icr(yolo, PAIRS, weight=0.0, iou_loss="siou")
    with pytest.warns(UserWarning) as caught:
        new = begin(yolo, model, enable=lambda yolo: enable_box_loss(yolo, INNER))
    message = "icr_kernels: enable_box_loss replaces the box loss of enable_icr: a model has one"
    assert [(str(each.message), each.filename) for each in caught] == [(message, __file__)]
    assert step(model, given)[0] == pytest.approx(expected, rel=1e-4)
    assert old.statistics.paired > 0
    old.disable()
    assert step(model, given)[0] == pytest.approx(expected, rel=1e-4)
    assert (old.statistics.steps, new.statistics.steps) == (1, 2)
    with pytest.warns(UserWarning, match="enable_icr replaces the box loss of enable_box_loss: a model has one$"):
        begin(yolo, model, weight=0.0, iou_loss="giou")
    assert step(model, given)[0] != pytest.approx(expected, rel=1e-3)


def test_a_call_replaces_all_of_an_earlier_one_of_its_function(yolo):
    """Without a warning: that is how it is set anew."""
    given = batch()
    stock, *_ = step(network("yolo11n"), given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        enable_icr(yolo, PAIRS, weight=5.0, iou_loss="siou")
        enable_icr(yolo, PAIRS, weight=0.0)
        model = network("yolo11n")
        begin(yolo, model, enable=accelerate)
        assert step(model, given)[0] == pytest.approx(stock, rel=1e-6)
        expected, *_ = of_stock_with(OTHER, "yolo11n", given)
        enable_box_loss(yolo, "siou")
        model = network("yolo11n")
        begin(yolo, model, enable=functools.partial(enable_box_loss, loss=INNER))
        assert step(model, given)[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("family", "column"), [("yolo11n", "box_loss"), ("yolov8n-rtdetr", "giou_loss")])
def test_the_log_says_which_loss_of_the_boxes(yolo, monkeypatch, family, column):
    from ultralytics.utils import LOGGER

    model, lines = network(family), []
    monkeypatch.setattr(LOGGER, "info", lines.append)
    loss = icr.BoxLoss("mpdiou", width=SIZE, height=SIZE, inner=0.7)
    begin(yolo, model, enable=functools.partial(enable_box_loss, loss=loss))
    expected = f"BoxLoss('mpdiou', width={SIZE}.0, height={SIZE}.0, inner=0.7)"
    assert lines == [f"Loss of boxes: {expected}, in {column}"]


@every_family
def test_copies_and_pickles_with_a_box_loss(yolo, family):
    """A copy is trained with it, into the same statistics; what is stored is Ultralytics' alone."""
    model, given = network(family), batch()
    stock, *_ = step(model, given)
    expected, *_ = of_stock_with(OTHER, family, given)
    handle = begin(yolo, model, enable=functools.partial(enable_box_loss, loss=INNER))
    assert step(copy.deepcopy(model), given)[0] == pytest.approx(expected, rel=1e-4)
    assert handle.statistics.steps == 1
    file = io.BytesIO()
    torch.save(model, file)
    assert "icr_kernels" not in globals_of(file)
    file.seek(0)
    assert step(torch.load(file, weights_only=False), given)[0] == pytest.approx(stock, rel=1e-6)


@every_family
def test_a_box_loss_of_a_batch_without_boxes(yolo, family):
    model, given = network(family), batch([])
    stock, _, of_stock = step(model, given)
    begin(yolo, model, enable=functools.partial(enable_box_loss, loss=INNER))
    found, _, gradient = step(model, given)
    assert found == pytest.approx(stock, rel=1e-6) and torch.allclose(gradient, of_stock, rtol=1e-5, atol=1e-9)


def in_pixels(pred, target, xywh=True, **_):
    """In the place of bbox_iou: the NWD of 12.8 pixels, of normalised centres and sides."""
    difference = SIZE * (pred - target) * pred.new_tensor((1, 1, 0.5, 0.5))
    return torch.exp(-difference.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt() / 12.8)


def test_parameters_are_in_pixels(yolo, monkeypatch):
    import ultralytics.models.utils.loss as of_detr

    model, given = network("yolov8n-rtdetr"), batch()
    begin(yolo, model, enable=functools.partial(enable_box_loss, loss=icr.BoxLoss("nwd")))
    found, *_ = step(model, given)
    monkeypatch.setattr(of_detr, "bbox_iou", in_the_box_loss(in_pixels))
    expected, *_ = step(network("yolov8n-rtdetr"), given)
    assert found == pytest.approx(expected, rel=1e-4)


@every_family
def test_a_running_mean(yolo, family):
    """Each head has one, which training moves, and validation does not."""
    model, given = network(family), batch()
    begin(yolo, model, enable=functools.partial(enable_box_loss, loss=icr.BoxLoss("wiou", wise="v3")))
    means = model.criterion.changes.box_loss.means
    step(model, given)
    before = {head: mean.item() for head, mean in means.items()}
    assert len(before) == len(heads(model.criterion.stock)) and all(0.9 < mean < 1 for mean in before.values())
    with torch.no_grad():
        model.loss(given)
    assert {head: mean.item() for head, mean in means.items()} == before
    step(model, given)
    assert all(mean.item() < before[head] for head, mean in means.items())


def test_losses_that_are_refused(yolo):
    for options, message in (
        ({"iou_loss": "ioux"}, "loss: expected one of iou, giou"),
        (
            {"iou_loss": "siou", "replace_iou_loss": True},
            "replace_iou_loss: expected False, because iou_loss is 'siou'",
        ),
    ):
        with pytest.raises(ValueError, match=rf"^{message}"):
            enable_icr(yolo, PAIRS, **options)
    with pytest.raises(ValueError, match=r"^wise_mean: expected the running mean"):
        enable_small_object_term(yolo, loss=icr.BoxLoss("iou", wise="v2"))
    with pytest.raises(ValueError, match=r"^loss: expected one of iou, giou, .*, got 'ioux'$"):
        enable_box_loss(yolo, "ioux")
    for none in (None, 0.5, torch.nn.functional.l1_loss):
        with pytest.raises(ValueError, match=rf"^loss: expected one of iou, giou, .*, got {re.escape(repr(none))}$"):
            enable_box_loss(yolo, none)
    with pytest.raises(TypeError, match=r"^model: expected a model of ultralytics like YOLO or RTDETR, .* got Linear$"):
        enable_box_loss(torch.nn.Linear(2, 2), "siou")
    assert not any(isinstance(each, Start) for each in yolo.callbacks[EVENT])


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
    assert stock.updates == 2 and type(stock) is Noting and "batch_changes" not in vars(stock)


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
