"""What is refused of two sets of boxes, and how it is said."""

import math

import pytest
import torch

import icr_kernels as icr

BOXES = torch.tensor([[0.0, 0, 1, 1]] * 3)
GROUP = torch.zeros(3, dtype=torch.int64)
ERRORS = [
    (
        icr.pairwise_iou,
        (BOXES[0], BOXES),
        {},
        ValueError,
        r"boxes1: expected boxes of shape \(\.\.\., N, 4\), got \(4,\)",
    ),
    (icr.pairwise_iou, (BOXES, torch.ones(3, 5)), {}, ValueError, r"boxes2: expected boxes of shape \(\.\.\., 4\)"),
    (icr.pairwise_iou, (BOXES, [1]), {}, TypeError, "boxes2: expected a tensor, got list"),
    (icr.pairwise_iou, (BOXES.int(), BOXES), {}, TypeError, "boxes1: expected dtype float32.*, got int32"),
    (
        icr.pairwise_iou,
        (BOXES, BOXES.to("meta")),
        {},
        ValueError,
        "boxes2: expected a tensor on cpu, where boxes1 is, got",
    ),
    (
        icr.pairwise_iou,
        (BOXES.expand(2, 3, 4), BOXES.expand(5, 3, 4)),
        {},
        ValueError,
        r"boxes2: expected leading dimensions that go with those of boxes1, \(2,\), got \(5,\)",
    ),
    (
        icr.pairwise_iou,
        (BOXES, BOXES),
        {"kind": "iof"},
        ValueError,
        "kind: expected one of iou, .*containment, .*, got 'iof'",
    ),
    (icr.pairwise_iou, (BOXES, BOXES), {"box_format": "yxyx"}, ValueError, "box_format: expected one of xyxy"),
    (icr.pairwise_iou, (BOXES, BOXES), {"eps": 0.0}, ValueError, "eps: expected a number of at least 1e-30 that is"),
    (
        icr.pairwise_max,
        (BOXES, BOXES),
        {"dim": 2},
        ValueError,
        r"dim: expected one of the last two .* of 2 dimensions, got 2",
    ),
    (icr.pairwise_max, (BOXES, BOXES), {"dim": None}, ValueError, "dim: expected one of the last two dimensions"),
    (icr.pairwise_max, (BOXES[None], BOXES), {"dim": 0}, ValueError, "dim: expected one of the last two dimensions"),
    (
        icr.pairwise_max,
        (BOXES, BOXES),
        {"group1": GROUP},
        ValueError,
        "group2: expected a tensor, because group1 is one",
    ),
    (
        icr.pairwise_max,
        (BOXES, BOXES),
        {"group2": GROUP},
        ValueError,
        "group1: expected a tensor, because group2 is one",
    ),
    (
        icr.pairwise_max,
        (BOXES, BOXES),
        {"group1": GROUP, "group2": GROUP[:2]},
        ValueError,
        r"group2: expected one number for each box of boxes2, \(3,\), got \(2,\)",
    ),
    (
        icr.pairwise_max,
        (BOXES, BOXES),
        {"group1": GROUP.float(), "group2": GROUP},
        TypeError,
        "group1: expected dtype int64, int32, got float32",
    ),
    (
        icr.pairwise_max,
        (BOXES, BOXES),
        {"group1": GROUP.to("meta"), "group2": GROUP},
        ValueError,
        "group1: expected a tensor on cpu, where boxes1 is, got one on meta",
    ),
    (icr.pairwise_topk, (BOXES, BOXES, 0), {}, ValueError, "k: expected 1 to 16, got 0"),
    (icr.pairwise_topk, (BOXES, BOXES, 17), {}, ValueError, "k: expected 1 to 16, got 17; for more, take torch.topk"),
    (icr.pairwise_topk, (BOXES, BOXES, 2.0), {}, TypeError, "k: expected a whole number, got float"),
]


@pytest.mark.parametrize(("function", "arguments", "options", "error", "message"), ERRORS)
def test_errors(function, arguments, options, error, message):
    with pytest.raises(error, match=message):
        function(*arguments, **options)


def test_values_are_checked_on_request(monkeypatch):
    monkeypatch.setattr("icr_kernels.arguments.CHECK_VALUES", True)
    boxes = BOXES.clone()
    boxes[1, 1] = math.nan
    with pytest.raises(ValueError, match="boxes2: expected finite boxes, got 1 that are not"):
        icr.pairwise_iou(BOXES, boxes)
