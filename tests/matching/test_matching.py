"""Who belongs to whom: parts and wholes by hand and by brute force, torchvision's matcher from boxes, and the cost that
DETR's matcher minimises against the code that its users run."""

import math

import pytest
import torch
from torch import Tensor

import icr_kernels as icr
from frameworks import torchvision
from inputs import (
    crowd,
    device_of,
    every_backend,
    every_dtype,
    every_format,
    every_quick_backend,
    full_precision,
    grid_boxes,
    to_format,
)
from tolerances import RELATIVE_L2, relative_l2, same_bits

# Anchor objects


def match(parts, wholes, backend: str, **options) -> icr.AnchorMatch:
    device = device_of(backend)
    found = icr.match_anchor_objects(
        *(torch.as_tensor(boxes, dtype=torch.float32, device=device).view(-1, 4) for boxes in (parts, wholes)),
        backend=backend,
        **{name: each.to(device) if isinstance(each, Tensor) else each for name, each in options.items()},
    )
    return icr.AnchorMatch(*(part.cpu() for part in found))


@every_backend
def test_the_whole_that_contains_the_part_best(backend):
    cars = [[0, 0, 10, 10], [20, 0, 40, 10], [8, 0, 22, 10]]
    plates = [[1, 1, 3, 2], [19, 1, 23, 2], [9, 8, 13, 10], [50, 50, 52, 51]]
    found = match(plates, cars, backend)
    # Inside the first; three quarters in the second and in the third; wholly in the third; outside all.
    assert found.anchor_index.tolist() == [0, 2, 2, -1]
    assert found.containment.tolist() == pytest.approx([1, 0.75, 1, 0])


@every_backend
def test_a_part_inside_two_wholes_belongs_to_the_smaller(backend):
    cars = [[0, 0, 100, 100], [10, 10, 60, 60], [0, 0, 90, 90], [10, 10, 60, 60]]
    assert match([[20, 20, 30, 30]], cars, backend).anchor_index.tolist() == [1]
    # Nearly wholly inside is less than wholly inside, but a millionth of it.
    assert match([[9.9, 20, 30, 30]], cars, backend).anchor_index.tolist() == [2]
    far = [[1000 * x for x in car] for car in cars]
    assert match([[10_000 - 5e-3, 20_000, 30_000, 30_000]], far, backend).anchor_index.tolist() == [1]


@every_backend
def test_threshold(backend):
    car = [[0, 0, 10, 10]]
    plates = [[8, 0, 12, 1], [9, 0, 13, 1], [-3, 0, 1, 1]]
    assert match(plates, car, backend).anchor_index.tolist() == [0, -1, -1]
    assert match(plates, car, backend, min_containment=0.25).anchor_index.tolist() == [0, 0, 0]
    assert match(plates, car, backend, min_containment=1).anchor_index.tolist() == [-1, -1, -1]
    everything = match([*plates, [20, 20, 21, 21]], car, backend, min_containment=0)
    assert everything.anchor_index.tolist() == [0, 0, 0, 0] and everything.containment[3] == 0


@every_backend
def test_larger_wholes_only(backend):
    boxes = [[0, 0, 10, 10], [1, 1, 9, 9], [2, 2, 4, 4], [2, 2, 4, 4]]
    assert match(boxes, boxes, backend).anchor_index.tolist() == [0, 1, 2, 2]
    assert match(boxes, boxes, backend, larger=True).anchor_index.tolist() == [-1, 0, 1, 1]


def by_brute_force(parts: Tensor, wholes: Tensor, groups=None, least: float = 0.5, larger: bool = False):
    found = []
    for i, (px1, py1, px2, py2) in enumerate(parts.double().tolist()):
        area = (px2 - px1) * (py2 - py1)
        rows = []
        for j, (x1, y1, x2, y2) in enumerate(wholes.double().tolist()):
            if groups is not None and (groups[0][i] != groups[1][j] or groups[0][i] < 0):
                continue
            of_whole = (x2 - x1) * (y2 - y1)
            if larger and not of_whole > area:
                continue
            shared = max(min(px2, x2) - max(px1, x1), 0) * max(min(py2, y2) - max(py1, y1), 0)
            rows.append((shared / area, of_whole, j))
        best = max((row[0] for row in rows), default=0.0)
        near = [row[1:] for row in rows if row[0] >= best - 1e-6]
        found.append((min(near)[1] if near and best >= least else -1, best))
    return [index for index, _ in found], [best for _, best in found]


@every_backend
@pytest.mark.parametrize("larger", [False, True])
@pytest.mark.parametrize("order", ["none", "sorted", "unsorted", "some negative"])
def test_against_brute_force(order, larger, backend):
    """In small integers, so that both are exact: full of ties in containment and in area."""
    parts, wholes = grid_boxes(80, 6, 1), grid_boxes(290, 9, 2)
    parts[:, 2:], wholes[:, 2:] = parts[:, :2] + 1 + parts[:, 2:] // 2, wholes[:, :2] + 1 + wholes[:, 2:]
    groups = None
    if order != "none":
        generator = torch.Generator().manual_seed(3)
        groups = [torch.randint(-1 if "neg" in order else 0, 9, (n,), generator=generator) for n in (80, 290)]
        groups = [group.sort().values for group in groups] if order == "sorted" else groups
    options = {} if groups is None else {"part_group": groups[0], "whole_group": groups[1]}
    found = match(parts, wholes, backend, larger=larger, **options)
    index, containment = by_brute_force(parts, wholes, groups, larger=larger)
    assert found.anchor_index.tolist() == index
    assert found.containment.tolist() == pytest.approx(containment, abs=1e-6)


@every_backend
def test_nan_and_nothing(backend):
    nan = [math.nan] * 4
    found = match([nan, [1, 1, 2, 2]], [nan, [0, 0, 9, 9]], backend)
    assert found.anchor_index.tolist() == [-1, 1] and found.containment.tolist() == [0, 1]
    assert match(torch.ones(3, 4), torch.ones(0, 4), backend).anchor_index.tolist() == [-1] * 3
    assert match(torch.ones(0, 4), torch.ones(3, 4), backend).anchor_index.shape == (0,)


@every_backend
@every_format
@every_dtype
def test_formats_and_dtypes(dtype, box_format, backend):
    wholes = torch.tensor([[0.0, 0, 16, 16], [24, 0, 40, 16]])
    parts = torch.tensor([[2.0, 2, 6, 4], [30, 4, 34, 8]])
    found = icr.match_anchor_objects(
        *(to_format(boxes, box_format).to(device_of(backend), dtype) for boxes in (parts, wholes)),
        box_format=box_format,
        backend=backend,
    )
    assert found.anchor_index.tolist() == [0, 1]
    assert found.containment.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@every_backend
def test_batches_of_anchor_objects(backend):
    device = device_of(backend)
    parts, wholes = crowd(30, 0, device=device).view(3, 10, 4), crowd(24, 1, device=device).view(3, 8, 4)
    found = icr.match_anchor_objects(parts, wholes, backend=backend)
    for batch in range(3):
        alone = icr.match_anchor_objects(parts[batch], wholes[batch], backend=backend)
        assert same_bits(found.anchor_index[batch], alone.anchor_index) and same_bits(
            found.containment[batch], alone.containment
        )


def test_indices_go_into_the_loss():
    """What is found is what `icr_loss` takes: a plate of no car has no penalty."""
    cars = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    plates = torch.tensor([[1.0, 1, 3, 2], [50, 50, 52, 51]])
    pred = plates + torch.tensor([[9.0, 0, 9, 0], [5, 0, 5, 0]])
    index = icr.match_anchor_objects(plates, cars).anchor_index
    terms = icr.icr_terms(pred, plates, cars, anchor_index=index)
    assert terms.penalty.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"min_containment": 1.5}, ValueError, "min_containment: expected a number from 0 to 1, got 1.5"),
        ({"min_containment": math.nan}, ValueError, "min_containment: expected a number from 0 to 1, got nan"),
        ({"min_containment": "half"}, TypeError, "min_containment: expected a number, got str"),
        (
            {"part_group": torch.zeros(3).long()},
            ValueError,
            "whole_group: expected a tensor, because part_group is one",
        ),
        (
            {"part_group": torch.zeros(2).long(), "whole_group": torch.zeros(3).long()},
            ValueError,
            r"part_group: expected one number for each box of parts, \(3,\), got \(2,\)",
        ),
        (
            {"part_group": torch.zeros(3), "whole_group": torch.zeros(3).long()},
            TypeError,
            "part_group: expected dtype int64, int32, got float32",
        ),
    ],
)
def test_errors_of_anchor_objects(options, error, message):
    with pytest.raises(error, match=message):
        icr.match_anchor_objects(torch.ones(3, 4), torch.ones(3, 4), **options)
    with pytest.raises(ValueError, match=r"wholes: expected boxes of shape \(\.\.\., 4\), got \(3, 5\)"):
        icr.match_anchor_objects(torch.ones(3, 4), torch.ones(3, 5))


# Thresholds


@every_backend
@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize("grid", [False, True], ids=["ordinary", "grid"])
def test_matcher_is_that_of_torchvision(grid, low_quality, backend):
    """The images of a batch in one call; on a grid, where many boxes overlap a ground truth equally."""
    device, thresholds = device_of(backend), (0.5, 0.3)
    counts, sizes = (3, 12, 1), (90, 40, 170)
    if grid:
        truth, boxes = grid_boxes(16, 8, 0, torch.float32), grid_boxes(300, 8, 1, torch.float32)
        truth[:, 2:], boxes[:, 2:] = truth[:, :2] + 1 + truth[:, 2:] // 3, boxes[:, :2] + 1 + boxes[:, 2:] // 3
    else:
        truth, boxes = crowd(16, 0), crowd(300, 1)
    group, box_group = (torch.arange(3).repeat_interleave(torch.tensor(each)) for each in (counts, sizes))
    found = icr.Matcher(*thresholds, low_quality, backend=backend)(
        truth.to(device), boxes.to(device), ground_truth_group=group.to(device), group=box_group.to(device)
    )
    expected, start = [], 0
    for of_image, rows in zip(truth.split(counts), boxes.split(sizes), strict=True):
        matrix = torchvision("ops.box_iou")(of_image, rows)
        matches = torchvision("models.detection._utils.Matcher")(*thresholds, low_quality)(matrix)
        expected.append(torch.where(matches >= 0, matches + start, matches))
        start += len(of_image)
    assert torch.equal(found.cpu(), torch.cat(expected))
    assert {-1, -2} < set(found.tolist())


@every_backend
def test_a_box_claimed_by_two_goes_to_the_one_it_overlaps_more(backend):
    """As in torchvision; elsewhere it goes to the first or the last that claims it."""
    truth, boxes = [[0.0, 0, 10, 10], [0, 0, 10, 14]], [[0.0, 0, 10, 11], [30, 30, 40, 40]]
    for order, expected in ((1, [0, -1]), (-1, [1, -1])):
        given = (torch.tensor(each, device=device_of(backend)) for each in (truth[::order], boxes))
        assert icr.Matcher(0.95, 0.4, True, backend=backend)(*given).tolist() == expected


@every_backend
def test_matcher_without_ground_truth(backend):
    device = device_of(backend)
    boxes = crowd(5, 0, device=device)
    for low_quality in (False, True):
        matcher = icr.Matcher(0.5, 0.4, low_quality, backend=backend)
        assert matcher(boxes[:0], boxes).tolist() == [icr.Matcher.BELOW_LOW_THRESHOLD] * 5
        assert matcher(boxes, boxes[:0]).shape == (0,)
        group = torch.tensor([0, 0, 1, 1, 1], device=device)
        assert matcher(boxes[:2], boxes, ground_truth_group=group[:2], group=group).tolist()[2:] == [-1] * 3


def test_matcher_errors():
    with pytest.raises(ValueError, match=r"low_threshold: expected at most high_threshold, 0\.4, got 0\.5"):
        icr.Matcher(0.4, 0.5)
    with pytest.raises(ValueError, match="kind: expected one of iou"):
        icr.Matcher(0.5, 0.4, kind="IoU")
    with pytest.raises(ValueError, match="group: expected a tensor, because ground_truth_group is one, got None"):
        icr.Matcher(0.5, 0.4)(torch.ones(2, 4), torch.ones(2, 4), ground_truth_group=torch.zeros(2).long())


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
