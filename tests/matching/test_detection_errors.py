"""The loss of a dense head as a module, over several processes, and what it says of wrong arguments."""

import pytest
import torch
from torch import Tensor

import icr_kernels as icr
from detection_scenes import LOGITS, Scene, detection_loss, detection_scene
from tolerances import same_bits

# The module


def test_the_module_is_the_function():
    scene = detection_scene(26)
    weight = torch.linspace(0.5, 2, 5)
    options = {"loss": "giou", "penalty": "pull", "gains": (2.0, 1.0, 1.0), "topk": 5, "smallest_side": 16.0}
    module = icr.DetectionLoss(**options, class_weight=weight)
    assert "loss='giou'" in repr(module) and module.state_dict() == {}
    arguments = [scene[name] for name in (*LOGITS, "points", "strides", "truth", "labels", "image")]
    anchor = {"anchor_index": scene["anchor_index"]}
    for more in ({}, {"assignment": scene["assignment"]}, {"normalizer": 3.0}):
        actual = module(*arguments, **anchor, **more)
        expected = icr.dense_detection_loss(*arguments, **options, **anchor, **more, class_weight=weight)
        assert all(same_bits(a, b) for a, b in zip(actual, expected, strict=True))
    assert module.double().class_weight.dtype == torch.float64


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float16, 1e-6), (torch.float64, 1e-12)])
def test_the_mean_over_ranks_takes_the_place_of_the_sum(monkeypatch, dtype, rtol):
    """Of the scores of this rank in the arithmetic's dtype, which half precision would not hold."""
    scene = detection_scene(27, dtype=torch.float64 if dtype == torch.float64 else torch.float32, size=128)
    index, score = scene["assignment"]
    scene["assignment"] = icr.Assignment(torch.where(index == 0, 10**6, index), (2000 * score).to(dtype))
    of_rank = scene["assignment"].score.double()[index > 0].sum().item()
    assert of_rank > 65504
    one, mean = (torch.stack(detection_loss(scene, "cpu", average_over_ranks=each)) for each in (False, True))
    torch.testing.assert_close(mean, one, rtol=rtol, atol=0)

    def mean_over_ranks(total: Tensor) -> Tensor:
        assert total.item() == pytest.approx(of_rank, rel=rtol)
        return total / 3

    monkeypatch.setattr("icr_kernels.detection.mean_over_ranks", mean_over_ranks)
    third = torch.stack(detection_loss(scene, "cpu", average_over_ranks=True))
    torch.testing.assert_close(third, 3 * one, rtol=1e-6, atol=0)


# Errors

GOOD = {name: value for name, value in detection_scene(0).items() if name != "anchor_index"}
INDEX, SCORE = GOOD["assignment"]
ERRORS: list[tuple[Scene, type[Exception], str]] = [
    (
        {"box_logits": GOOD["box_logits"].mT},
        ValueError,
        r"box_logits: expected \(B, A, 4R\) with the 84 points as A, got .*handed on as box_logits.mT",
    ),
    (
        {"box_logits": GOOD["box_logits"][..., 1:]},
        ValueError,
        r"box_logits: expected \(B, A, 4R\).*handed on as box_logits.mT",
    ),
    (
        {"box_logits": GOOD["box_logits"][..., :0]},
        ValueError,
        r"box_logits: expected \(B, A, 4R\) with R of at least 1",
    ),
    ({"box_logits": GOOD["box_logits"].long()}, TypeError, "box_logits: expected dtype float32.*, got int64"),
    (
        {"class_logits": GOOD["class_logits"].mT},
        ValueError,
        r"class_logits: expected \(B, A, C\) with the B and A of box",
    ),
    ({"points": GOOD["points"][1:]}, ValueError, r"points: expected \(A, 2\) with the A of box_logits"),
    ({"strides": GOOD["strides"][:, None]}, ValueError, r"strides: expected \(A,\) with the A of box_logits, 84, got"),
    ({"strides": 8}, TypeError, "strides: expected a tensor, got int"),
    ({"truth": GOOD["truth"][None]}, ValueError, r"truth: expected boxes of shape \(M, 4\), got"),
    (
        {"truth": GOOD["truth"].clone().requires_grad_()},
        ValueError,
        "truth: expected a tensor that does not require grad",
    ),
    ({"labels": GOOD["labels"][1:]}, ValueError, "labels: expected one number for each box of truth"),
    ({"assignment": INDEX}, TypeError, r"assignment: expected an Assignment \(index, score\), got Tensor"),
    (
        {"assignment": (INDEX[:, 1:], SCORE)},
        ValueError,
        r"assignment.index: expected one value per point, \(2, 84\), got",
    ),
    ({"assignment": (INDEX.float(), SCORE)}, TypeError, "assignment.index: expected dtype int64, int32, got float32"),
    (
        {"assignment": (INDEX, SCORE.to("meta"))},
        ValueError,
        "assignment.score: expected a tensor on cpu, where box_logits",
    ),
    ({"class_weight": torch.ones(4)}, ValueError, r"class_weight: expected one for each class, \(5,\), got \(4,\)"),
    (
        {"penalty": "containment"},
        ValueError,
        "anchor_index: expected a tensor with a penalty and None without, got None",
    ),
    ({"anchor_index": GOOD["labels"]}, ValueError, "anchor_index: expected a tensor with a penalty and None without"),
    ({"penalty": "", "anchor_index": GOOD["labels"]}, ValueError, "penalty: expected one of containment.*, got ''"),
    ({"class_weight": torch.ones(1, 5)}, ValueError, r"class_weight: expected one number for each class, \(C,\), got"),
    ({"penalty": "none", "anchor_index": GOOD["labels"]}, ValueError, "penalty: expected one of containment"),
    ({"loss": "l2"}, ValueError, "loss: expected one of iou"),
    ({"weighting": "score"}, ValueError, "weighting: expected one of uniform, tal, got 'score'"),
    ({"gains": (1.0, 2.0)}, TypeError, "gains: expected three numbers, of box, classification and distribution, got"),
    ({"gains": (1.0, 2.0, torch.tensor(1.0))}, TypeError, "gains: expected a number, got Tensor"),
    ({"image_size": 640}, TypeError, "image_size: expected a height and a width, got 640"),
    ({"image_size": (640, 0)}, ValueError, "image_size: expected a number"),
    ({"normalizer": torch.ones(2)}, ValueError, r"normalizer: expected a number or a 0-dim tensor, got shape \(2,\)"),
    ({"normalizer": 1.0, "average_over_ranks": True}, ValueError, "average_over_ranks: expected False, because"),
    ({"average_over_ranks": 1}, TypeError, "average_over_ranks: expected True or False, got int"),
    ({"assignment": None, "topk": 33}, ValueError, "topk: expected 1 to 32, got 33"),
    ({"box_format": "yxyx"}, ValueError, "box_format: expected one of xyxy, cxcywh, xywh, got 'yxyx'"),
    ({"backend": "tpu"}, ValueError, "backend: expected one of"),
]


@pytest.mark.parametrize(("wrong", "kind", "message"), ERRORS, ids=[message[:32] for *_, message in ERRORS])
def test_errors(wrong, kind, message):
    with pytest.raises(kind, match=message):
        icr.dense_detection_loss(**(GOOD | wrong))


@pytest.mark.parametrize(
    "options",
    [
        {"class_weight": torch.ones(1, 2)},
        {"class_weight": [1.0]},
        {"loss": "l2"},
        {"penalty": "none"},
        {"gains": (1,)},
        {"topk": 0},
        {"weighting": ""},
        {"backend": "tpu"},
    ],
)
def test_a_module_is_checked_when_it_is_made(options):
    with pytest.raises((TypeError, ValueError), match=f"{next(iter(options))}: expected"):
        icr.DetectionLoss(**options)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"assignment": (INDEX + 100, SCORE)},
            r"assignment.index: expected -1 or a row of the \d+ boxes of truth, got",
        ),
        ({"labels": GOOD["labels"] + 5}, "labels: expected one of 5 classes"),
    ],
)
def test_values_are_checked_where_that_is_asked_for(wrong, message, monkeypatch):
    monkeypatch.setattr("icr_kernels.arguments.CHECK_VALUES", True)
    assert all(term.isfinite() for term in icr.dense_detection_loss(**GOOD))
    with pytest.raises(ValueError, match=message):
        icr.dense_detection_loss(**(GOOD | wrong))
