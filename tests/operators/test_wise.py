"""The running mean of losses that are wise: who keeps it, when it moves, and what is made of it."""

import copy

import pytest
import torch

import icr_kernels as icr
from detection_scenes import GIVEN, LOGITS, detection_scene
from inputs import device_of, every_backend, pairs


def test_a_mean_goes_with_a_wise_loss():
    pred, target, _ = pairs(4)
    wise, mean = icr.BoxLoss("wiou", wise="v3"), torch.tensor(0.5)
    for loss, given, message in (
        (wise, None, r"wise_mean: expected the running mean of 1 - IoU, a 0-dim tensor, with BoxLoss\('wiou', wise="),
        ("iou", mean, r"wise_mean: expected None, because BoxLoss\('iou'\) is not wise, got a tensor"),
        (wise, torch.ones(2), r"wise_mean: expected a 0-dim tensor, got shape \(2,\)"),
        (wise, torch.ones((), requires_grad=True), "wise_mean: expected a tensor that does not require grad"),
    ):
        with pytest.raises(ValueError, match=rf"^{message}"):
            icr.box_iou_loss(pred, target, loss=loss, wise_mean=given)
    with pytest.raises(TypeError, match=r"^wise_mean: expected a tensor, got float"):
        icr.box_iou_loss(pred, target, loss=wise, wise_mean=0.5)


@every_backend
def test_modules_keep_it(backend):
    """It begins at 1 and moves before it is used, in training alone, by the pairs that count."""
    device = device_of(backend)
    pred, target, _ = pairs(40, dtype=torch.float64, device=device)
    mask = torch.arange(40, device=device) % 3 > 0
    pred[~mask] = float("nan")
    module = icr.BoxIoULoss(icr.BoxLoss("wiou", wise="v3"), wise_momentum=0.25, backend=backend).to(device)
    assert module.state_dict()["wise_mean"] == 1
    iou_loss = icr.box_iou_loss(pred, target, loss="iou", mask=mask, backend="reference")
    found = module(pred, target, mask=mask)
    mean = 1 + 0.25 * (iou_loss - 1)
    assert module.wise_mean.item() == pytest.approx(mean.item(), rel=1e-6)
    expected = icr.box_iou_loss(
        pred, target, mask=mask, loss=icr.BoxLoss("wiou", wise="v3"), wise_mean=mean, backend="reference"
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    module.eval()
    before = module.wise_mean.clone()
    module(pred, target, mask=mask)
    module.train()
    module(pred, target, mask=torch.zeros_like(mask))  # nothing counts
    assert torch.equal(module.wise_mean, before)
    assert "wise_mean" not in icr.BoxIoULoss("wiou").state_dict()


def test_what_is_refused_or_not_a_number_leaves_the_mean():
    pred, target, _ = pairs(6)
    module = icr.BoxIoULoss(icr.BoxLoss("iou", wise="v2"), wise_momentum=0.5)
    with pytest.raises(ValueError, match=r"^weight: "):
        module(pred, target, weight=torch.ones(3))
    with pytest.raises(ValueError, match=r"^scale: "):
        module(pred, target, scale=-1)
    assert module(pred * float("nan"), target).isnan() and module.wise_mean == 1
    assert "wise_momentum=0.5, average_over_ranks=False" in repr(module)


def test_a_module_in_half_precision_has_the_mean_of_many_pairs():
    """More than half precision counts to."""
    pred = torch.tensor([0.0, 0, 1, 1]).repeat(100_000, 1)
    module = icr.BoxIoULoss(icr.BoxLoss("iou", wise="v2"), wise_momentum=1.0).half()
    module(pred, pred + torch.tensor([0.0, 0, 1, 0]))
    assert module.wise_mean.item() == pytest.approx(0.5, abs=1e-3)


def test_a_backward_pass_has_the_mean_of_its_forward_pass():
    """Two forward passes, then both backward passes: each gradient is by the mean that its loss was."""
    pred, target, cars = pairs(12, dtype=torch.float64)
    module = icr.ICRLoss(icr.BoxLoss("iou", wise="v2"), wise_momentum=0.5, reduction="sum")
    first, second = pred.clone().requires_grad_(), pred.clone().requires_grad_()
    losses = module(first, target, cars), module(second, target, cars)
    sum(losses).backward()
    for given, loss in ((first, losses[0]), (second, losses[1])):
        alone = copy.deepcopy(module)
        alone.wise_mean.fill_(1)
        again = pred.clone().requires_grad_()
        value = alone(again, target, cars)
        if given is second:
            again.grad = None
            value = alone(again, target, cars)
        value.backward()
        assert value.item() == loss.item() and torch.equal(again.grad, given.grad)


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_the_factor_is_constant_under_differentiation(version):
    """The gradient of a wise loss is that of the loss times the factor of each pair."""
    pred, target, _ = pairs(9, dtype=torch.float64)
    mean = torch.tensor(0.4, dtype=torch.float64)
    leaf = pred.clone().requires_grad_()
    wise = icr.box_iou_loss(leaf, target, loss=icr.BoxLoss("giou", wise=version), wise_mean=mean, reduction="none")
    (gradient,) = torch.autograd.grad(wise.sum(), leaf)
    plain = icr.box_iou_loss(leaf, target, loss="giou", reduction="none")
    (of_plain,) = torch.autograd.grad(plain.sum(), leaf)
    factor = (wise / plain).detach()
    assert torch.allclose(gradient, factor[:, None] * of_plain, rtol=1e-10, atol=1e-14)
    beta = icr.box_iou_loss(pred, target, loss="iou", reduction="none") / 0.4
    expected = beta.sqrt() if version == "v2" else beta / (3 * 1.9 ** (beta - 3))
    assert torch.allclose(factor, expected, rtol=1e-10)


@pytest.mark.parametrize("box_format", ["xyxy", "cxcywh"])
def test_a_criterion_keeps_it_of_its_points_with_a_target(box_format):
    scene = detection_scene(3, box_format=box_format)
    head = [scene[name] for name in (*LOGITS, *GIVEN)]
    loss = icr.BoxLoss("wiou", wise="v3")
    module = icr.DetectionLoss(loss, wise_momentum=0.25, box_format=box_format)
    for given in (scene["assignment"], None):
        module.wise_mean.fill_(1)
        found = module(*head, assignment=given)
        options = {"assignment": given, "box_format": box_format}
        if given is None:
            boxes = icr.decode_boxes(head[0], head[2], head[3])
            options["assignment"] = icr.task_aligned_assign(
                head[1], boxes, head[2], *head[4:], from_logits=True, truth_format=box_format
            )
        index = options["assignment"].index
        # The mean of 1 - IoU by the criterion itself: every point with a target counts 1, and nothing else is asked.
        ones = icr.Assignment(index, torch.ones(index.shape))
        iou_loss = icr.dense_detection_loss(
            *head, assignment=ones, loss="iou", gains=(1.0, 0.0, 0.0), box_format=box_format
        ).box
        mean = 1 + 0.25 * (iou_loss - 1)
        assert module.wise_mean.item() == pytest.approx(mean.item(), rel=1e-5)
        expected = icr.dense_detection_loss(*head, loss=loss, wise_mean=mean, **options)
        assert found.box.item() == pytest.approx(expected.box.item(), rel=1e-5)
