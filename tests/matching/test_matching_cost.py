"""The cost that DETR's matcher minimises, against the code that its users run."""

import math

import pytest
import torch
from torch import Tensor

import icr_kernels as icr
from frameworks import torchvision
from inputs import (
    device_of,
    every_backend,
    every_dtype,
    every_format,
    every_quick_backend,
    full_precision,
)
from tolerances import RELATIVE_L2, relative_l2, same_bits

# The cost


def assignment(cost: Tensor) -> list[tuple[int, int]]:
    """The pairs of a target and a query (M, Q) that cost least together."""
    optimize = pytest.importorskip("scipy.optimize")
    return sorted(zip(*(each.tolist() for each in optimize.linear_sum_assignment(cost.cpu())), strict=True))


def scene(dtype: torch.dtype = torch.float32, device: str = "cpu") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    counts = torch.tensor([3, 0, 17, 1])
    m = int(counts.sum())
    return {
        "pred_logits": (8 * uniform(4, 37, 11) - 5).to(device, dtype),
        "pred_boxes": (0.05 + 0.4 * uniform(4, 37, 4)).to(device, dtype),
        "target_labels": torch.randint(0, 11, (m,), generator=generator).to(device),
        "target_boxes": (0.05 + 0.4 * uniform(m, 4)).to(device, dtype),
        "target_image": torch.arange(4).repeat_interleave(counts).to(device),
    }


def focal_loss(logit: Tensor, alpha: float, eps: float) -> Tensor:
    """Lin et al. 2017, arXiv 1708.02002, gamma 2: of an example whose right answer is as likely as sigmoid(logit)."""
    return -alpha * (-logit).sigmoid() ** 2 * (logit.sigmoid() + eps).log()


def cost_of_a_pair_of_sets(
    logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    targets: Tensor,
    weights: tuple[float, float, float],
    focal_eps: float | None = None,
) -> Tensor:
    """As DETR implementations write it: every query (Q) with every target of one image, (Q, M). Without a focal_eps the
    classes exclude each other."""
    if focal_eps is not None:
        logit = logits[:, labels]
        of_class = focal_loss(logit, 0.25, focal_eps) - focal_loss(-logit, 0.75, focal_eps)
    else:
        of_class = -logits.softmax(-1)[:, labels]
    corners = [torch.cat((c[:, :2] - c[:, 2:] / 2, c[:, :2] + c[:, 2:] / 2), 1) for c in (boxes, targets)]
    return (
        weights[0] * of_class
        + weights[1] * torch.cdist(boxes, targets, p=1)
        - weights[2] * torchvision("ops.generalized_box_iou")(*corners)
    )


def cost_of_a_batch(given: dict[str, Tensor], weights: tuple[float, float, float], focal_eps: float | None = None):
    """Image after image, in float64: (M, Q)."""
    wide = {name: each.cpu().double() if each.is_floating_point() else each.cpu() for name, each in given.items()}
    costs = []
    for image, (logits, boxes) in enumerate(zip(wide["pred_logits"], wide["pred_boxes"], strict=True)):
        mine = wide["target_image"] == image
        targets = wide["target_labels"][mine], wide["target_boxes"][mine]
        costs.append(cost_of_a_pair_of_sets(logits, boxes, *targets, weights, focal_eps).t())
    return torch.cat(costs)


@every_backend
@every_dtype
@pytest.mark.parametrize("classification", ["softmax", "focal"])
def test_cost_is_that_of_detr(classification, dtype, backend):
    given, weights = scene(dtype, device_of(backend)), (1.5, 5.0, 2.0)
    options = dict(zip(("class_weight", "l1_weight", "giou_weight"), weights, strict=True))
    cost = icr.detr_matching_cost(**given, classification=classification, **options, backend=backend)
    assert cost.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = cost_of_a_batch(given, weights, 1e-8 if classification == "focal" else None)
    limit = RELATIVE_L2[torch.float64 if dtype == torch.float64 else torch.float32]
    assert relative_l2(cost, expected) < limit


@every_backend
@full_precision
@pytest.mark.parametrize(
    ("unit", "options"), [(2.0**-16, {}), (2.0**-48, {"eps": 1e-30})], ids=["default", "least eps"]
)
def test_cost_of_tiny_boxes(unit, options, dtype, backend):
    """Sides of 3e-5 to 9e-5, of a pixel's fraction in an image of unit size; in coordinates that float32 holds exactly,
    so that what is left is eps. The area of such a box is far below 1e-7."""
    generator = torch.Generator().manual_seed(5)
    corner, side = (torch.randint(low, high, (1, 18, 2), generator=generator) for low, high in ((0, 9), (1, 4)))
    boxes = unit * torch.cat((corner, 2 * side), -1).to(device_of(backend), dtype)
    given = {
        "pred_logits": torch.zeros(1, 12, 1, device=boxes.device, dtype=dtype),
        "pred_boxes": boxes[:, :12],
        "target_labels": torch.zeros(6, dtype=torch.int64, device=boxes.device),
        "target_boxes": boxes[0, 12:],
        "target_image": torch.zeros(6, dtype=torch.int64, device=boxes.device),
    }
    cost = icr.detr_matching_cost(**given, **options, backend=backend)
    expected = cost_of_a_batch(given, (1.0, 5.0, 2.0))
    assert expected.max() - expected.min() > 3
    assert relative_l2(cost, expected) < RELATIVE_L2[dtype]
    rows, queries = zip(*assignment(cost), strict=True)
    least = sum(expected[pair].item() for pair in assignment(expected))
    assert expected[list(rows), list(queries)].sum().item() == pytest.approx(least, abs=1e-5)


# Deformable DETR, RT-DETR and what came of them; MMDetection's FocalLossCost.
FAMILIES = {"DETR": 1e-8, "MMDetection": 1e-12}


@every_backend
@full_precision
def test_focal_costs_of_both_families(dtype, backend):
    """With logits of a deviation of 12, where the two differ in most assignments."""
    generator, images = torch.Generator().manual_seed(6), 20
    given = {
        "pred_logits": 12 * torch.randn(images, 25, 7, generator=generator),
        "pred_boxes": 0.05 + 0.4 * torch.rand(images, 25, 4, generator=generator),
        "target_labels": torch.randint(0, 7, (9 * images,), generator=generator),
        "target_boxes": 0.05 + 0.4 * torch.rand(9 * images, 4, generator=generator),
        "target_image": torch.arange(images).repeat_interleave(9),
    }
    given = {name: each.to(device_of(backend)) for name, each in given.items()}
    given = {name: each.to(dtype) if each.is_floating_point() else each for name, each in given.items()}
    assignments = {}
    for family, eps in FAMILIES.items():
        options = {} if family == "DETR" else {"focal_eps": eps}
        cost = icr.detr_matching_cost(**given, classification="focal", class_weight=2.0, **options, backend=backend)
        expected = cost_of_a_batch(given, (2.0, 5.0, 2.0), eps)
        assert relative_l2(cost, expected) < RELATIVE_L2[dtype]
        assignments[family] = [assignment(rows) for rows in expected.split(9)]
        assert [assignment(rows) for rows in cost.split(9)] == assignments[family]
    assert sum(ours != theirs for ours, theirs in zip(*assignments.values(), strict=True)) > 10


@every_backend
@full_precision
@pytest.mark.parametrize("focal_eps", [1e-8, 1e-12, 1e-30])
def test_focal_cost_of_certainties(focal_eps, dtype, backend):
    """Where a probability is too small for its dtype, and where it is 0 or 1."""
    certain = torch.tensor([20.0, 60, 87, 88, 89, 95, 104, 800, math.inf], dtype=dtype)
    logits = torch.cat((-certain, torch.tensor([0.0]), certain))
    cost = icr.detr_matching_cost(
        logits.view(1, -1, 1).to(device_of(backend)),
        torch.ones(1, len(logits), 4, dtype=dtype, device=device_of(backend)),
        torch.zeros(1, dtype=torch.int64, device=device_of(backend)),
        torch.ones(1, 4, dtype=dtype, device=device_of(backend)),
        torch.zeros(1, dtype=torch.int64, device=device_of(backend)),
        classification="focal",
        l1_weight=0,
        giou_weight=0,
        focal_eps=focal_eps,
        backend=backend,
    )
    wide = logits.double()
    expected = focal_loss(wide, 0.25, focal_eps) - focal_loss(-wide, 0.75, focal_eps)
    assert cost[0].tolist() == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-6)


@every_backend
@pytest.mark.parametrize("classification", ["softmax", "focal"])
def test_where_nan_is(classification, backend):
    given = scene(device=device_of(backend))
    label, image = given["target_labels"], given["target_image"]
    given["pred_logits"][2, 3, label[5]] = math.nan
    given["pred_boxes"][0, 7, 1] = math.nan
    given["target_boxes"][9, 2] = math.nan
    expected = torch.zeros(21, 37, dtype=torch.bool, device=label.device)
    expected[:, 3] = (image == 2) & ((label == label[5]) if classification == "focal" else True)
    expected[:, 7] = image == 0
    expected[9] = True
    cost = icr.detr_matching_cost(**given, classification=classification, backend=backend)
    assert torch.equal(cost.isnan(), expected)
    assert cost[~expected].isfinite().all()


@every_backend
@full_precision
@every_format
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.4, 1.5), (0.5, 0.0)])
def test_cost_is_that_of_the_reference(alpha, gamma, box_format, dtype, backend):
    given = scene(dtype, device_of(backend))
    given["pred_logits"][0, :3] = torch.tensor([40.0, -40.0, 100.0], device=given["pred_logits"].device).unsqueeze(1)
    given["target_labels"] = given["target_labels"].int()
    options = {"classification": "focal", "alpha": alpha, "gamma": gamma, "box_format": box_format}
    cost = icr.detr_matching_cost(**given, **options, backend=backend)
    wide = {name: each.cpu().double() if each.is_floating_point() else each.cpu() for name, each in given.items()}
    truth = icr.detr_matching_cost(**wide, **options, backend="reference")
    assert relative_l2(cost, truth) < RELATIVE_L2[dtype]


@every_backend
def test_cost_of_strided_inputs(backend):
    given = scene(device=device_of(backend))
    expected = icr.detr_matching_cost(**given, classification="focal", backend=backend)
    for name in ("pred_logits", "pred_boxes"):
        given[name] = given[name].permute(2, 0, 1).contiguous().permute(1, 2, 0)
    given["target_boxes"] = given["target_boxes"].t().contiguous().t()
    for name in ("target_labels", "target_image"):
        given[name] = given[name].repeat_interleave(3)[::3]
    assert same_bits(icr.detr_matching_cost(**given, classification="focal", backend=backend), expected)


@every_backend
@pytest.mark.parametrize("classification", ["softmax", "focal"])
def test_what_does_not_exist_costs_nan(classification, backend):
    given = scene(device=device_of(backend))
    labels, image = given["target_labels"], given["target_image"]
    labels[1], labels[2], image[4], image[5], image[6] = 11, -1, 4, -1, 2**40
    cost = icr.detr_matching_cost(**given, classification=classification, backend=backend)
    assert cost.isnan().all(1).nonzero().flatten().tolist() == [1, 2, 4, 5, 6]
    assert cost.isnan().any(1).sum() == 5


@every_backend
def test_cost_of_nothing(backend):
    given = scene(device=device_of(backend))
    for name in ("target_labels", "target_boxes", "target_image"):
        given[name] = given[name][:0]
    assert icr.detr_matching_cost(**given, backend=backend).shape == (0, 37)
    given = scene(device=device_of(backend))
    for name in ("pred_logits", "pred_boxes"):
        given[name] = given[name][:, :0]
    assert icr.detr_matching_cost(**given, backend=backend).shape == (21, 0)


@every_quick_backend
def test_no_gradient_flows_to_a_cost(backend):
    given = scene(device=device_of(backend))
    given["pred_boxes"].requires_grad_()
    given["pred_logits"].requires_grad_()
    assert not icr.detr_matching_cost(**given, backend=backend).requires_grad


COST_ERRORS = [
    ({"pred_boxes": torch.ones(37, 4)}, ValueError, r"pred_boxes: expected boxes of shape \(B, Q, 4\), got \(37, 4\)"),
    (
        {"pred_logits": torch.ones(4, 36, 11)},
        ValueError,
        r"pred_logits: expected \(B, Q, C\) with .* got \(4, 36, 11\)",
    ),
    ({"pred_logits": torch.ones(4, 37, 11).int()}, TypeError, "pred_logits: expected dtype float32"),
    ({"target_boxes": torch.ones(2, 21, 4)}, ValueError, r"target_boxes: expected boxes of shape \(M, 4\)"),
    (
        {"target_labels": torch.ones(20).long()},
        ValueError,
        r"target_labels: expected one number for each .* got \(20,\)",
    ),
    ({"target_labels": torch.ones(21)}, TypeError, "target_labels: expected dtype int64, int32, got float32"),
    (
        {"target_image": torch.ones(21).long().to("meta")},
        ValueError,
        "target_image: expected a tensor on cpu, where pred_boxes",
    ),
    ({"classification": "sigmoid"}, ValueError, "classification: expected one of softmax, focal, got 'sigmoid'"),
    ({"class_weight": "1"}, TypeError, "class_weight: expected a number, got str"),
    ({"l1_weight": math.nan}, ValueError, "l1_weight: expected a number that is finite in float32, got nan"),
    ({"alpha": 1.5}, ValueError, "alpha: expected a number from 0 to 1, got 1.5"),
    ({"gamma": -1}, ValueError, "gamma: expected a number of at least 0 that is finite in float32, got -1"),
    ({"focal_eps": 0}, ValueError, "focal_eps: expected a number from 1e-30 to 1, got 0"),
    ({"focal_eps": math.nan}, ValueError, "focal_eps: expected a number from 1e-30 to 1, got nan"),
    ({"focal_eps": "1e-8"}, TypeError, "focal_eps: expected a number, got str"),
    ({"box_format": "yxyx"}, ValueError, "box_format: expected one of xyxy, cxcywh, xywh, got 'yxyx'"),
]


@pytest.mark.parametrize(("options", "error", "message"), COST_ERRORS)
def test_cost_errors(options, error, message):
    with pytest.raises(error, match=message):
        icr.detr_matching_cost(**{**scene(), **options})


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("target_labels", 11, "target_labels: expected one of 11 classes, got 11"),
        ("target_labels", -3, "target_labels: expected one of 11 classes, got -3"),
        ("target_image", 4, "target_image: expected one of 4 images, got 4"),
        ("target_boxes", math.nan, "target_boxes: expected finite boxes, got 1 that are not"),
    ],
)
def test_values_are_checked_on_request(argument, value, message, monkeypatch):
    given = scene()
    given[argument][2] = value
    assert icr.detr_matching_cost(**given)[2].isnan().all(), "unasked they are told by a row of NaN"
    monkeypatch.setattr("icr_kernels.arguments.CHECK_VALUES", True)
    with pytest.raises(ValueError, match=rf"^{message}$"):
        icr.detr_matching_cost(**given)
    assert icr.detr_matching_cost(**scene()).isfinite().all()
    given["target_image"][2] = -1  # of no image: it may hold anything, as a row of the assignment
    assert icr.detr_matching_cost(**given)[2].isnan().all()
