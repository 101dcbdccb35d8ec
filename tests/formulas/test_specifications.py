"""`BoxLoss` and `Penalty`: what they are, what they refuse, and that their numbers arrive."""

import copy
import pickle

import numpy as np
import pytest
import torch

import icr_kernels as icr
from icr_kernels.variants import LOSSES, PENALTIES
from inputs import crowd, device_of, every_backend, pairs

with_parameters = [(variant, each) for variant in (*LOSSES, *PENALTIES) for each in variant.parameters]


def of(name: str, **parameters):
    """The specification of a loss or penalty."""
    return (icr.Penalty if name in {each.name for each in PENALTIES} else icr.BoxLoss)(name, **parameters)


@pytest.mark.parametrize(
    "given", [icr.BoxLoss("nwd"), icr.BoxLoss("mpdiou", width=8, inner=0.7, wise="v3"), icr.Penalty("log")]
)
def test_equal_ones_are_equal_and_copies_too(given):
    for other in (
        copy.copy(given),
        copy.deepcopy(given),
        pickle.loads(pickle.dumps(given)),
        eval(repr(given), vars(icr)),
    ):
        assert other == given and hash(other) == hash(given) and repr(other) == repr(given)
    assert given != icr.BoxLoss("iou") and given != icr.Penalty("inverse")


def test_it_cannot_be_changed():
    with pytest.raises(AttributeError):
        icr.BoxLoss("nwd").name = "iou"
    with pytest.raises(AttributeError):
        icr.Penalty("log").parameters = (0.5,)


def test_it_says_what_differs_from_the_name_alone():
    assert repr(icr.BoxLoss("mpdiou", width=640, height=480)) == "BoxLoss('mpdiou', height=480.0)"
    assert repr(icr.BoxLoss("iou", focaler=(0, 0.95), wise=("v2", 1))) == (
        "BoxLoss('iou', focaler=(0.0, 0.95), wise=('v2', 1.0))"
    )


@pytest.mark.parametrize(("variant", "parameter"), with_parameters, ids=lambda each: each.name)
def test_bounds(variant, parameter):
    for value in (parameter.least, parameter.most):
        assert value in of(variant.name, **{parameter.name: value}).parameters
    for value in (parameter.least - 1e-9 - abs(parameter.least), parameter.most * 2, float("nan")):
        with pytest.raises(ValueError, match=rf"^{parameter.name}: expected a number from .* to .*, got "):
            of(variant.name, **{parameter.name: value})
    with pytest.raises(TypeError, match=f"^{parameter.name}: expected a number, got str"):
        of(variant.name, **{parameter.name: "1"})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": "wise"}, ValueError, "loss: expected one of iou, giou"),
        ({"name": "iou", "width": 3}, TypeError, "width: expected no parameter with 'iou'"),
        ({"name": "mpdiou", "size": 3}, TypeError, "size: expected one of the parameters of 'mpdiou', width, height"),
        ({"name": "nwd", "inner": 0.7}, ValueError, "inner: expected None with loss 'nwd', which has no IoU"),
        ({"name": "gcd", "focaler": (0, 1)}, ValueError, "focaler: expected None with loss 'gcd'"),
        ({"name": "kld", "wise": "v3"}, ValueError, "wise: expected None with loss 'kld'"),
        ({"name": "iou", "inner": 0}, ValueError, "inner: expected a number from 0.05 to 20, got 0"),
        ({"name": "iou", "inner": "0.7"}, TypeError, "inner: expected a number, got str"),
        ({"name": "iou", "focaler": 0.5}, TypeError, r"focaler: expected two numbers \(d, u\), got 0.5"),
        ({"name": "iou", "focaler": "ab"}, TypeError, r"focaler: expected two numbers \(d, u\), got 'ab'"),
        (
            {"name": "iou", "focaler": (0.5, 0.5)},
            ValueError,
            "focaler: expected u at least 0.01 above d, got 0.5 and 0.5",
        ),
        ({"name": "iou", "focaler": (-0.1, 0.5)}, ValueError, "focaler: expected a number from 0 to 1, got -0.1"),
        ({"name": "iou", "wise": "v1"}, ValueError, "wise: expected 'v2' or 'v3', got 'v1', which is the loss 'wiou'"),
        ({"name": "iou", "wise": ()}, ValueError, "wise: expected 'v2', 'v3', "),
        ({"name": "iou", "wise": [["v2"], 0.5]}, ValueError, "wise: expected 'v2', 'v3', "),
        ({"name": "iou", "focaler": np.array([0, 0.95])}, TypeError, "focaler: expected two numbers"),
        ({"name": "iou", "wise": 3}, ValueError, "wise: expected 'v2', 'v3', "),
        ({"name": "iou", "wise": ("v3", 1.9)}, ValueError, "wise: expected 'v2', 'v3', "),
        ({"name": "iou", "wise": ("v2", -1)}, ValueError, "wise gamma: expected a number from 0 to 3, got -1"),
        ({"name": "iou", "wise": ("v3", 1, 3)}, ValueError, "wise alpha: expected a number from 1.01 to 3, got 1"),
        ({"name": "iou", "wise": ("v3", 2, 0)}, ValueError, "wise delta: expected a number from 0.01 to 10, got 0"),
    ],
    ids=lambda each: str(each) if isinstance(each, dict) else "",
)
def test_refusals(options, error, message):
    with pytest.raises(error, match=rf"^{message}"):
        icr.BoxLoss(**options)


def test_penalties_refuse():
    with pytest.raises(ValueError, match=r"^penalty: expected one of containment, "):
        icr.Penalty("iof")
    with pytest.raises(ValueError, match=r"^penalty: expected one of containment, "):
        icr.Penalty("none")
    with pytest.raises(TypeError, match=r"^clamp: expected no parameter with 'pull'"):
        icr.Penalty("pull", clamp=0.1)


@every_backend
def test_a_penalty_is_constant_below_its_clamp(backend):
    """Of a plate 30 % of which lies in its car."""
    device = device_of(backend)
    plate, car = (torch.tensor([row], device=device, dtype=torch.float64) for row in ((0, 0, 10, 1), (7, 0, 20, 1)))

    def penalty(name: str, clamp: float) -> tuple[float, float]:
        pred = plate.clone().requires_grad_()
        value = icr.icr_terms(pred, plate, car, penalty=icr.Penalty(name, clamp=clamp), backend=backend).penalty.sum()
        value.backward()
        return value.item(), pred.grad.abs().sum().item()

    assert penalty("inverse", 0.2)[0] == pytest.approx(1 / 0.3 - 1)
    assert penalty("inverse", 0.4) == pytest.approx((1 / 0.4 - 1, 0))
    assert penalty("log", 0.2)[0] == pytest.approx(1.2039728043259361)  # -ln 0.3
    assert penalty("log", 0.4) == pytest.approx((0.9162907318741551, 0))  # -ln 0.4


@every_backend
@pytest.mark.parametrize("loss", ["mpdiou", "nwd", "sd"])
def test_a_scale_is_another_unit(loss, backend):
    """Boxes in cells of their levels with their strides, and all in pixels: the same losses; gradients are by cells."""
    device = device_of(backend)
    pred, target = (crowd(60, seed, torch.float64, device) for seed in (0, 1))
    stride = torch.tensor([8.0, 16.0, 32.0], device=device).repeat(20)
    options = {"loss": loss, "reduction": "none", "backend": backend}
    in_pixels = pred.clone().requires_grad_()
    expected = icr.box_iou_loss(in_pixels, target, **options)
    expected.sum().backward()
    in_cells = (pred / stride[:, None]).requires_grad_()
    found = icr.box_iou_loss(in_cells, target / stride[:, None], scale=stride, **options)
    found.sum().backward()
    assert torch.allclose(found, expected, rtol=1e-12, atol=0)
    assert torch.allclose(in_cells.grad, in_pixels.grad * stride[:, None], rtol=1e-10, atol=1e-15)
    without = icr.box_iou_loss(in_cells.detach(), target / stride[:, None], **options)
    assert not torch.allclose(without, expected, rtol=1e-3)
    # One for all: as a number, and as a tensor.
    for scale in (4.0, torch.tensor(4.0, device=device)):
        found = icr.box_iou_loss(pred / 4, target / 4, scale=scale, **options)
        assert torch.allclose(found, expected, rtol=1e-12, atol=0)


def test_scales_that_are_refused():
    pred, target, _ = pairs(6)
    for scale, error, message in (
        (0, ValueError, "scale: expected a number from 1e-09 to 1e.09, got 0"),
        ("8", TypeError, "scale: expected a number or a tensor, got str"),
        (np.array([8.0, 8.0]), TypeError, "scale: expected a number or a tensor, got ndarray"),
        (torch.ones(5), ValueError, r"scale: expected one value per pair, \(6,\), got \(5,\)"),
        (torch.ones(6, dtype=torch.int64), TypeError, "scale: expected dtype float32"),
        (torch.ones(6, requires_grad=True), ValueError, "scale: expected a tensor that does not require grad"),
    ):
        with pytest.raises(error, match=rf"^{message}"):
            icr.box_iou_loss(pred, target, loss="nwd", scale=scale)
    with pytest.raises(TypeError, match=r"^scale: expected a number"):
        icr.DetectionLoss(scale=torch.ones(()))


@every_backend
def test_kinds_take_parameters(backend):
    """1 - loss of every pair, with the numbers of the specification."""
    device = device_of(backend)
    first, second = (crowd(5, seed, torch.float64, device) for seed in (0, 1))
    for loss in (icr.BoxLoss("nwd", constant=30), icr.BoxLoss("kld", tau=2), icr.BoxLoss("alpha_giou", alpha=2)):
        aligned = icr.box_iou_loss(first.repeat_interleave(5, 0), second.repeat(5, 1), loss=loss, reduction="none")
        matrix = icr.pairwise_iou(first, second, kind=loss, backend=backend)
        assert torch.allclose(matrix, 1 - aligned.view(5, 5), rtol=1e-12, atol=1e-14)
        values, indices = icr.pairwise_max(first, second, kind=loss, backend=backend)
        assert torch.equal(indices, matrix.argmax(1)) and torch.allclose(values, matrix.amax(1), rtol=1e-12)
    with pytest.raises(ValueError, match=r"^kind: expected a loss without inner, focaler and wise, got BoxLoss"):
        icr.pairwise_iou(first, second, kind=icr.BoxLoss("iou", inner=0.7))
