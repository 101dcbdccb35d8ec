"""Who belongs to whom: parts and wholes by hand and by brute force, and torchvision's matcher from boxes."""

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
    grid_boxes,
    to_format,
)
from tolerances import same_bits

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


def test_matcher_shows_its_options():
    """What it shows is how it is made."""
    loss = icr.BoxLoss("nwd", constant=3.0)
    for matcher in (
        icr.Matcher(0.5, 0.4),
        icr.Matcher(0.7, 0.3, True, kind=loss, eps=1e-9, box_format="cxcywh", backend="reference"),
    ):
        again = eval(repr(matcher), {"Matcher": icr.Matcher, "BoxLoss": icr.BoxLoss})
        assert vars(again) == vars(matcher)
    assert repr(matcher) == (
        "Matcher(high_threshold=0.7, low_threshold=0.3, allow_low_quality_matches=True, "
        "kind=BoxLoss('nwd', constant=3.0), eps=1e-09, box_format='cxcywh', backend='reference')"
    )
