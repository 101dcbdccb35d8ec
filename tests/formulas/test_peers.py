"""Other people's losses: on ordinary boxes ours agree with them, in value and gradient.

Conventions differ where a denominator meets eps (they add it, we take the maximum), so agreement is to 1e-5 and not to
the last bit, and on degenerate boxes there is none.
"""

import math

import pytest
import torch
from torch import Tensor

import icr_kernels as icr
from benchmarks.torchvision_without_extension import make_importable
from frameworks import need
from inputs import device_of, every_backend, full_precision, pairs
from oracle import evaluate
from tolerances import relative_l2

need("torchvision")
make_importable()

from torchvision.ops import (  # noqa: E402  (after the operators it describes are declared)
    box_area,
    box_iou,
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou,
    generalized_box_iou_loss,
)

AGREEMENT = 1e-5


def ciou_of_the_ultralytics_form(pred: Tensor, target: Tensor, eps: float = 1e-7) -> Tensor:
    """The other widespread convention, after its description: eps is added to the heights and to the union, and
    alpha = v / (v - IoU + 1 + eps) is held constant."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = pred.unbind(-1), target.unbind(-1)
    aw, ah, bw, bh = ax2 - ax1, ay2 - ay1 + eps, bx2 - bx1, by2 - by1 + eps
    overlap_w = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    overlap_h = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    overlap = overlap_w * overlap_h
    iou = overlap / (aw * ah + bw * bh - overlap + eps)
    diagonal = (
        (torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)) ** 2
        + (torch.maximum(ay2, by2) - torch.minimum(ay1, by1)) ** 2
        + eps
    )
    distance = ((bx1 + bx2 - ax1 - ax2) ** 2 + (by1 + by2 - ay1 - ay2) ** 2) / 4
    v = 4 / math.pi**2 * (torch.atan(bw / bh) - torch.atan(aw / ah)) ** 2
    with torch.no_grad():
        alpha = v / (v - iou + 1 + eps)
    return 1 - iou + distance / diagonal + v * alpha


def from_torchvision(function):
    return lambda pred, target: function(pred, target, reduction="none")


PEERS = [
    pytest.param("giou", from_torchvision(generalized_box_iou_loss), id="giou-torchvision"),
    pytest.param("diou", from_torchvision(distance_box_iou_loss), id="diou-torchvision"),
    pytest.param("ciou", from_torchvision(complete_box_iou_loss), id="ciou-torchvision"),
    pytest.param("ciou", ciou_of_the_ultralytics_form, id="ciou-ultralytics-form"),
]


@every_backend
@full_precision
@pytest.mark.parametrize("scale", [1.0, 20.0], ids=["up_to_100_pixels", "up_to_2000_pixels"])
@pytest.mark.parametrize(("loss", "peer"), PEERS)
def test_agreement(loss, peer, scale, dtype, backend):
    pred, target, _ = (rows * scale for rows in pairs(2000, dtype=dtype, seed=17))
    theirs = evaluate(peer, pred, target)
    device = device_of(backend)
    ours = evaluate(
        icr.icr_loss, pred.to(device), target.to(device), None, loss=loss, reduction="none", backend=backend
    )
    assert (ours.value.cpu() - theirs.value).abs().max() < AGREEMENT
    assert relative_l2(ours.pred, theirs.pred) < AGREEMENT
    assert relative_l2(ours.target, theirs.target) < AGREEMENT


@every_backend
@pytest.mark.parametrize(("loss", "peer"), PEERS)
def test_agreement_of_the_mean(loss, peer, backend):
    pred, target, _ = pairs(500, dtype=torch.float64, seed=18)
    theirs = evaluate(lambda *boxes: peer(*boxes).mean(), pred, target)
    device = device_of(backend)
    ours = evaluate(icr.icr_loss, pred.to(device), target.to(device), None, loss=loss, backend=backend)
    assert ours.value.item() == pytest.approx(theirs.value.item(), abs=AGREEMENT)
    assert relative_l2(ours.pred, theirs.pred) < AGREEMENT


@every_backend
def test_where_ours_differs_on_purpose(backend):
    """A prediction of no area: torchvision's CIoU is NaN, ours is not."""
    device = device_of(backend)
    pred, target = torch.tensor([[5.0, 5, 5, 5]]), torch.tensor([[0.0, 0, 10, 10]])
    assert complete_box_iou_loss(pred, target).isnan().all()
    result = evaluate(icr.icr_loss, pred.to(device), target.to(device), None, loss="ciou", backend=backend)
    # I = 0 and the centres agree; the angle of a point counts as 0: v = 4/pi2 (atan 1)2 = 1/4, alpha = v/(1 + v).
    assert result.value.item() == pytest.approx(1 + 0.25**2 / 1.25, abs=1e-6)
    assert result.pred.isfinite().all()


@every_backend
@pytest.mark.parametrize(("width", "height"), [(5.0, 0.0), (0.0, 5.0)], ids=["no height", "no width"])
def test_gradient_of_an_empty_box(width, height, backend):
    """Torchvision's CIoU has none where w/h is infinite; without width its value and ours are finite, and the same."""
    device = device_of(backend)
    pred, target = torch.tensor([[0.0, 0, width, height]]), torch.tensor([[0.0, 0, 4, 4]])
    theirs = evaluate(from_torchvision(complete_box_iou_loss), pred, target)
    assert theirs.pred.isnan().all() if height == 0 else theirs.pred.isfinite().all()
    ours = evaluate(
        icr.icr_loss, pred.to(device), target.to(device), None, loss="ciou", reduction="none", backend=backend
    )
    assert ours.value.item() == pytest.approx(theirs.value.item(), abs=AGREEMENT)
    assert ours.pred.isfinite().all()


@every_backend
def test_matrices_of_empty_boxes(backend):
    point = torch.tensor([[1.0, 1, 1, 1]])
    for kind, function in (("iou", box_iou), ("giou", generalized_box_iou)):
        assert function(point, point).isnan().all()
        given = point.to(device_of(backend))
        assert icr.pairwise_iou(given, given, kind=kind, backend=backend).item() == 0


@every_backend
def test_inverted_side(backend):
    """A box from 5 to 0 has a negative area for torchvision; for us it is one without width."""
    inverted, target = torch.tensor([[5.0, 0, 0, 5]]), torch.tensor([[0.0, 0, 10, 10]])
    assert box_area(inverted).item() == -25
    # Nothing shared: IoU 0. They take the union for 75 of the 100 that enclose both, which is 1/4; we for all.
    assert generalized_box_iou_loss(inverted, target).item() == pytest.approx(1.25)
    given = inverted.to(device_of(backend)), target.to(device_of(backend))
    assert icr.icr_loss(*given, None, loss="giou", backend=backend).item() == pytest.approx(1)
