"""Box losses and criteria of forks of Ultralytics: what is not known is not replaced, and is said."""

import functools
import inspect
import types
from pathlib import Path

import pytest
import torch

import icr_kernels as icr
from frameworks import need
from icr_kernels.integrations.ultralytics import accelerate, enable_icr, enable_small_object_term
from icr_kernels.integrations.ultralytics.in_place import heads
from ultralytics_steps import FAMILIES, PAIRS, batch, begin, every_family, network, step
from ultralytics_training import NAMES, SIZE

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


# RT-DETR has no fused criterion.
@pytest.mark.parametrize(
    ("family", "is_fused"), [(each, False) for each in FAMILIES] + [(each, True) for each in FAMILIES[:-1]]
)
def test_another_loss_of_the_boxes(yolo, monkeypatch, family, is_fused):
    """DIoU by its name, beside a stock criterion whose box loss is DIoU."""
    import ultralytics.models.utils.loss as of_detr
    import ultralytics.utils.loss as of_yolo

    model, given = network(family), batch()
    begin(yolo, model, weight=0.0, iou_loss="diou")
    if is_fused:
        handle = begin(yolo, model, enable=functools.partial(accelerate, criterion=True))
    found, _, gradient = step(model, given)
    if is_fused:
        handle.disable()
    with monkeypatch.context() as patch:
        for module in of_detr, of_yolo:
            patch.setattr(module, "bbox_iou", in_the_box_loss(of_the_distance))
        expected, _, of_stock = step(network(family), given)
    assert found == pytest.approx(expected, rel=1e-4)
    assert torch.allclose(gradient, of_stock, rtol=1e-2, atol=1e-4 * of_stock.abs().max().item())


def in_pixels(pred, target, xywh=True, **_):
    """In the place of bbox_iou: the NWD of 12.8 pixels, of normalised centres and sides."""
    difference = SIZE * (pred - target) * pred.new_tensor((1, 1, 0.5, 0.5))
    return torch.exp(-difference.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt() / 12.8)


def test_parameters_are_in_pixels(yolo, monkeypatch):
    import ultralytics.models.utils.loss as of_detr

    model, given = network("yolov8n-rtdetr"), batch()
    begin(yolo, model, weight=0.0, iou_loss=icr.BoxLoss("nwd"))
    found, *_ = step(model, given)
    monkeypatch.setattr(of_detr, "bbox_iou", in_the_box_loss(in_pixels))
    expected, *_ = step(network("yolov8n-rtdetr"), given)
    assert found == pytest.approx(expected, rel=1e-4)


@every_family
def test_a_running_mean(yolo, family):
    """Each head has one, which training moves, and validation does not."""
    model, given = network(family), batch()
    begin(yolo, model, weight=0.0, iou_loss=icr.BoxLoss("wiou", wise="v3"))
    means = model.criterion.terms.means
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
    assert stock.updates == 2 and type(stock) is Noting and "batch_terms" not in vars(stock)


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
