"""The box loss and the hook for MMDetection-style configurations, through mmengine's registries."""

import copy
import io
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import icr_kernels as icr
from benchmarks.torchvision_without_extension import make_importable
from frameworks import need
from inputs import crowd

need("mmengine")
make_importable()  # mmengine's runner asks torchvision for its version

from mmengine.model import BaseDataPreprocessor, BaseModel  # noqa: E402
from mmengine.registry import HOOKS, MODELS  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from mmengine.structures import BaseDataElement, InstanceData  # noqa: E402

import icr_kernels.integrations.mmdet  # noqa: E402  registers

NAMES = ("car", "plate")
CONFIG = {"type": "ICRBoxLoss", "loss": "giou", "penalty_weight": 0.5, "loss_weight": 2.0}


def built(**options):
    return MODELS.build({**CONFIG, **options})


def test_without_a_hook_it_is_the_box_loss():
    pred, target, weight = crowd(20, 0), crowd(20, 1), torch.rand(20)
    expected = icr.box_iou_loss(pred, target, loss="giou", weight=weight, reduction="none")
    loss = built()
    assert torch.allclose(loss(pred, target, weight), 2 * expected.mean())
    assert torch.allclose(loss(pred, target, weight, avg_factor=7.0), 2 * expected.sum() / 7)
    assert torch.allclose(loss(pred, target, weight, avg_factor=torch.tensor(7)), 2 * expected.sum() / 7)
    assert torch.allclose(loss(pred, target, weight, reduction_override="sum"), 2 * expected.sum())
    assert torch.allclose(loss(pred, target, weight, reduction_override="none"), 2 * expected)
    assert torch.allclose(loss(pred, target, weight.unsqueeze(1).expand(20, 4)), 2 * expected.mean())
    with pytest.raises(ValueError, match="avg_factor: expected None with reduction='sum'"):
        loss(pred, target, avg_factor=2.0, reduction_override="sum")


@pytest.mark.parametrize(
    "seven",
    [7, np.float32(7), np.int64(7), torch.tensor([7.0]), torch.tensor([[7]]), torch.tensor(7, dtype=torch.uint8)],
    ids=lambda value: f"{type(value).__name__}{list(getattr(value, 'shape', ()))}",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whatever_sums_can_be_divided_by(seven, dtype):
    """MMDetection's losses divide the sum by it."""
    pred, target = crowd(20, 0).to(dtype), crowd(20, 1).to(dtype)
    expected = icr.box_iou_loss(pred, target, loss="giou", reduction="none")
    loss = built()(pred, target, avg_factor=seven)
    assert loss.shape == () and torch.allclose(loss, 2 * expected.sum() / 7, rtol=1e-6)


def test_an_average_factor_has_no_gradient():
    pred, factor = crowd(20, 0).requires_grad_(), torch.tensor([3.0], requires_grad=True)
    built()(pred, crowd(20, 1), avg_factor=factor).backward()
    assert pred.grad.abs().sum() > 0 and factor.grad is None


def test_errors_of_an_average_factor():
    boxes = crowd(3, 0)
    with pytest.raises(ValueError, match=r"avg_factor: expected a number or a tensor of one, got shape \(2,\)"):
        built()(boxes, boxes, avg_factor=torch.ones(2))
    with pytest.raises(TypeError, match="avg_factor: expected a number or a tensor of one, got str"):
        built()(boxes, boxes, avg_factor="3")


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_where_the_weight_is_0_predictions_may_be_anything(value, reduction):
    """Anchor heads give the background the weight 0."""
    pred, target, weight = crowd(20, 0), crowd(20, 1), torch.rand(20)
    weight[5:] = 0
    expected = 2 * weight * icr.box_iou_loss(pred, target, loss="giou", reduction="none")
    pred[5:] = value
    pred.requires_grad_()
    loss = built()(pred, target, weight, reduction_override=reduction)
    loss.sum().backward()
    assert torch.allclose(loss, {"none": expected, "sum": expected.sum(), "mean": expected.mean()}[reduction])
    assert pred.grad[:5].isfinite().all() and torch.equal(pred.grad[5:], torch.zeros(15, 4))


def test_no_predictions_have_a_loss_that_is_connected():
    pred = torch.zeros(0, 4, requires_grad=True)
    loss = built()(pred, torch.zeros(0, 4), torch.zeros(0), avg_factor=1.0)
    loss.backward()
    assert loss == 0 and pred.grad.shape == (0, 4)


def trained(model: nn.Module, **options):
    """A hook at the beginning of a training with that model."""
    hook = HOOKS.build({"type": "ICRPairHook", "pairs": {"plate": "car"}, "names": NAMES, **options})
    dataset = SimpleNamespace(metainfo={"classes": NAMES})
    runner = SimpleNamespace(model=model, train_dataloader=SimpleNamespace(dataset=dataset))
    hook.before_train(runner)
    return hook, runner


def samples(*images: tuple) -> dict:
    instances = [
        SimpleNamespace(bboxes=torch.tensor(boxes).view(-1, 4), labels=torch.tensor(labels, dtype=torch.int64))
        for boxes, labels in images
    ]
    return {"data_samples": [SimpleNamespace(gt_instances=each) for each in instances]}


BATCH = samples(([[0.0, 0, 40, 40], [10, 10, 20, 16]], [0, 1]), ([[50.0, 50, 60, 56]], [1]), ([], []))


def test_the_hook_gives_the_loss_its_anchor_objects():
    model = nn.ModuleDict({"head": built(penalty_weight=1.0, loss_weight=1.0)})
    hook, runner = trained(model, names=None)
    hook.before_train_iter(runner, 0, BATCH)
    # Predictions for the plate, decoded and encoded with a little rounding; for the plate of no car; and for the car.
    target = torch.tensor([[10.0, 10, 20.001, 16], [50, 50, 60, 56], [0, 0, 40, 40]])
    pred = (target + torch.tensor([25.0, 0, 25, 0])).requires_grad_()
    loss = model["head"](pred, target, reduction_override="none")
    penalty = loss - icr.box_iou_loss(pred, target, loss="giou", reduction="none")
    assert penalty.tolist() == pytest.approx([0.5, 0, 0], abs=1e-3)
    hook.after_train_iter(runner, 0)
    assert hook.handle.statistics[:4] == (1, 3, 1, 1)
    assert hook.handle.statistics.mean_penalty == pytest.approx(0.5, abs=1e-3)
    # Validation, and a batch that the hook was not told of, have no anchor objects.
    assert torch.allclose(model["head"](pred, target, reduction_override="none") - (loss - penalty), torch.zeros(3))
    hook.handle.disable()
    hook.before_train_iter(runner, 1, BATCH)
    assert torch.allclose(model["head"](pred, target, reduction_override="none"), loss - penalty)
    hook.after_train_iter(runner, 1)
    assert hook.handle.statistics.steps == 1


def test_an_iteration_that_an_exception_ended_leaves_nothing_behind():
    model = nn.Module()
    model.head, model.data_preprocessor = built(), BaseDataPreprocessor()
    hook, runner = trained(model)
    for number in range(3):
        hook.before_train_iter(runner, number, BATCH)
    assert len(model.data_preprocessor._forward_hooks) == 1
    hook.after_train_iter(runner, 3)
    assert not model.data_preprocessor._forward_hooks


def test_statistics_leave_out_what_has_no_weight():
    model = nn.ModuleDict({"head": built()})
    hook, runner = trained(model)
    hook.before_train_iter(runner, 0, BATCH)
    target = torch.tensor([[10.0, 10, 20, 16], [10, 10, 20, 16], [0, 0, 40, 40]])
    model["head"](target.clone().requires_grad_(), target, torch.tensor([1.0, 0, 1]))
    hook.after_train_iter(runner, 0)
    assert hook.handle.statistics[:4] == (1, 2, 1, 1)


class Data(torch.utils.data.Dataset):
    """Images of a car, 40 pixels wide, and a plate at its right edge; another plate, of no car."""

    def __init__(self):
        self.metainfo = {"classes": NAMES}

    def __len__(self):
        return 4

    def __getitem__(self, number):
        boxes = torch.tensor([[0.0, 0, 40, 40], [30, 10, 40, 16], [50, 50, 60, 56]])
        instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, 1, 1]))
        return {"inputs": torch.zeros(3, 64, 64), "data_samples": BaseDataElement(gt_instances=instances)}


class Resized(BaseDataPreprocessor):
    """Scales the images of a batch and their boxes, as BatchSyncRandomResize does."""

    def __init__(self, in_place: bool):
        super().__init__()
        self.in_place = in_place

    def forward(self, data, training=False):
        data = super().forward(data, training)
        for sample in data["data_samples"]:
            # On a GPU these are copies of what the loader holds, on the CPU they are not.
            boxes = sample.gt_instances.bboxes if self.in_place else sample.gt_instances.bboxes.clone()
            boxes[..., 0::2] *= 2.5
            boxes[..., 1::2] *= 1.5
            sample.gt_instances.bboxes = boxes
        return {**data, "inputs": nn.functional.interpolate(torch.stack(data["inputs"]), scale_factor=(1.5, 2.5))}


class Detector(BaseModel):
    """Two heads that predict the boxes of the ground truth, 5 of the original pixels further to the right."""

    def __init__(self, in_place: bool = True):
        super().__init__(data_preprocessor=Resized(in_place))
        self.heads = nn.ModuleList([built(penalty_weight=1.0, loss_weight=1.0), built(loss_weight=0.0)])
        self.shift = nn.Parameter(torch.tensor(12.5))

    def forward(self, inputs, data_samples=None, mode="tensor"):
        target = torch.cat([sample.gt_instances.bboxes for sample in data_samples])
        pred = target + self.shift * torch.tensor([1.0, 0, 1, 0])
        return {f"loss_{number}": head(pred, target) for number, head in enumerate(self.heads)}


class Wrapped(nn.DataParallel):
    def train_step(self, data, optim_wrapper):
        return self.module.train_step(data, optim_wrapper)


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "wrapped"])
@pytest.mark.parametrize("in_place", [False, True], ids=["copied", "in place"])
def test_a_training_whose_preprocessor_rescales_boxes(tmp_path, in_place, wrapped):
    """Two iterations of mmengine's runner; half of every plate with a car leaves it."""
    detector, logged = Detector(in_place), []
    runner = Runner(
        model=Wrapped(detector) if wrapped else detector,
        work_dir=str(tmp_path),
        train_dataloader={
            "dataset": Data(),
            "batch_size": 2,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "collate_fn": {"type": "pseudo_collate"},
        },
        train_cfg={"by_epoch": True, "max_epochs": 1},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.0}},
        custom_hooks=[{"type": "ICRPairHook", "pairs": {"plate": "car"}}],
        default_hooks={"logger": None},
        log_level="ERROR",
    )
    (hook,) = [each for each in runner.hooks if type(each).__name__ == "ICRPairHook"]
    stock = type(hook).after_train_iter

    def note(self, runner, batch_idx, data_batch=None, outputs=None):
        logged.append(float(outputs["loss_0"]))
        stock(self, runner, batch_idx, data_batch, outputs)

    hook.after_train_iter = note.__get__(hook)
    runner.train()
    # Both heads, two iterations, two images.
    assert hook.handle.statistics[:4] == (2, 24, 8, 8)
    assert hook.handle.statistics.mean_penalty == pytest.approx(0.5, abs=1e-6)
    boxes = Data()[0]["data_samples"].gt_instances.bboxes
    giou = icr.box_iou_loss(boxes + torch.tensor([5.0, 0, 5, 0]), boxes, loss="giou")
    assert logged == pytest.approx([float(giou) + 0.5 / 3] * 2, abs=1e-5)
    assert not detector.data_preprocessor._forward_hooks, "left behind"


def stored(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_copies_and_pickles():
    """Of a model in the middle of an iteration: the box loss, without the batch; and of the statistics."""
    model = Detector()
    hook, runner = trained(model)
    batch = {"inputs": [torch.zeros(3, 8, 8)], "data_samples": [Data()[0]["data_samples"]]}
    hook.before_train_iter(runner, 0, batch)
    data = model.data_preprocessor(batch, True)
    ours = model(**data, mode="loss")["loss_0"]
    target = data["data_samples"][0].gt_instances.bboxes
    pred = target + 12.5 * torch.tensor([1.0, 0, 1, 0])
    for heads in copy.deepcopy(model.heads), stored(model.heads):
        assert heads[0](pred, target).item() == pytest.approx(ours.item() - 0.5 / 3, abs=1e-6)
    hook.after_train_iter(runner, 0)
    assert hook.handle.statistics[:4] == (1, 6, 2, 2)
    for copied in copy.deepcopy(model), stored(model):
        assert copied(**data, mode="loss")["loss_0"].item() == pytest.approx(ours.item() - 0.5 / 3, abs=1e-6)
    assert hook.handle.statistics.steps == 1
    for copied in copy.deepcopy(hook.handle), pickle.loads(pickle.dumps(hook.handle)):
        assert copied.statistics == hook.handle.statistics
        with pytest.raises(RuntimeError, match="disable: expected the handle of a model, got a copy of one"):
            copied.disable()


def test_a_head_that_scales_its_targets_is_worth_a_warning(monkeypatch):
    from icr_kernels.integrations import handle

    monkeypatch.setattr(handle, "STEPS_WITHOUT_PAIRS", 2)
    model = nn.ModuleDict({"head": built()})
    hook, runner = trained(model)
    boxes = torch.tensor([[10.0, 10, 20, 16]]) / 8
    with pytest.warns(UserWarning, match="in 2 training steps no part was paired"):
        for number in range(2):
            hook.before_train_iter(runner, number, BATCH)
            model["head"](boxes.clone().requires_grad_(), boxes)
            hook.after_train_iter(runner, number)


def test_errors():
    with pytest.raises(ValueError, match=r"loss: expected one of iou, .*, got 'GIoU'"):
        built(loss="GIoU")
    for name in ("penalty_weight", "loss_weight"):
        with pytest.raises(TypeError, match=f"^{name}: expected a number, got str$"):
            built(**{name: "1"})
        with pytest.raises(ValueError, match=f"^{name}: expected a number that is finite in float32, got nan$"):
            built(**{name: float("nan")})
    with pytest.raises(ValueError, match="pairs: expected classes among car, plate, got 'truck'"):
        trained(nn.ModuleDict({"head": built()}), pairs={"plate": "truck"})
    with pytest.raises(ValueError, match="ICRPairHook: expected a model with an ICRBoxLoss, got one without"):
        trained(nn.Linear(1, 1))
