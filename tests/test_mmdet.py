"""The box loss and the hook for MMDetection-style configurations, through mmengine's registries."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import icr_kernels as icr
from frameworks import need
from inputs import crowd

need("mmengine")

from mmengine.registry import HOOKS, MODELS  # noqa: E402

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
    assert model["head"].pairs is None
    hook.after_train_iter(runner, 1)
    assert hook.handle.statistics.steps == 1


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
    with pytest.raises(ValueError, match="pairs: expected classes among car, plate, got 'truck'"):
        trained(nn.ModuleDict({"head": built()}), pairs={"plate": "truck"})
    with pytest.raises(ValueError, match="ICRPairHook: expected a model with an ICRBoxLoss, got one without"):
        trained(nn.Linear(1, 1))
