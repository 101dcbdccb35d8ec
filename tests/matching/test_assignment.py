"""The task-aligned assignment: by hand, by an oracle in plain Python, and every backend against the reference."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import icr_kernels as icr
from dense_scenes import KINDS, dense_scene
from frameworks import torchvision
from icr_kernels import builds
from inputs import (
    EMULATED,
    INSTRUCTION_SETS,
    INTERPRETED,
    device_of,
    every_backend,
    every_compiled_backend,
    every_dtype,
    every_format,
    every_quick_backend,
    every_quick_compiled_backend,
    to_format,
)
from tolerances import same_bits

assign = icr.task_aligned_assign


def run(scene: dict[str, Tensor], backend: str, **options) -> icr.Assignment:
    device = device_of(backend)
    return assign(**{name: tensor.to(device) for name, tensor in scene.items()}, backend=backend, **options)


def most_of(backend: str) -> int:
    """Boxes of an image; an interpreter takes its time for each."""
    return 6 if backend in INTERPRETED else 20


def assert_same(actual: icr.Assignment, expected: icr.Assignment) -> None:
    """Angles and powers may differ in their last bits from backend to backend, so that one point in some hundreds, as
    good as another, may go elsewhere; and scores are sixth powers."""
    index, score = actual.index.cpu(), actual.score.cpu()
    differs = index != expected.index.cpu()
    assert differs.sum() <= 2 * math.ceil(len(index.flatten()) / 1000)
    torch.testing.assert_close(score[~differs], expected.score.cpu()[~differs], rtol=2e-5, atol=1e-12, equal_nan=True)


# By hand

# Four points in a row, and a box around them that every prediction hits.
ROW = {
    "scores": torch.tensor([[[0.25], [1.0], [0.64], [0.04]]]),
    "boxes": torch.tensor([0.0, 0, 32, 8]).expand(1, 4, 4),
    "points": torch.tensor([[4.0, 4], [12, 4], [20, 4], [28, 4]]),
    "truth": torch.tensor([[0.0, 0, 32, 8]]),
    "labels": torch.tensor([0]),
    "image": torch.tensor([0]),
}


@every_backend
def test_the_best_points_of_a_box_are_its_own(backend):
    found = run(ROW, backend, topk=3)
    assert found.index.tolist() == [[0, 0, 0, -1]]
    assert (found.index.dtype, found.score.dtype) == (torch.int64, torch.float32)
    # Roots of the scores by the largest of them; the overlap is 1.
    torch.testing.assert_close(found.score.cpu(), torch.tensor([[0.5, 1.0, 0.8, 0.0]]), rtol=1e-6, atol=0)


@every_backend
def test_more_than_there_are_points_are_all(backend):
    assert run(ROW, backend, topk=32).index.tolist() == [[0, 0, 0, 0]]


@every_backend
def test_a_point_of_two_boxes_goes_to_the_one_it_predicts(backend):
    """The second box takes all points, the first one too, which overlaps the predictions less."""
    truth = torch.tensor([[0.0, 0, 32, 12], [0, 0, 32, 8]])
    scene = ROW | {"truth": truth, "labels": torch.tensor([0, 0]), "image": torch.tensor([0, 0])}
    assert run(scene, backend).index.tolist() == [[1, 1, 1, 1]]
    # It need not have taken the point itself: of the two classes it is sure of other points.
    scores = torch.tensor([[[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]]])
    scene |= {"scores": scores, "labels": torch.tensor([0, 1])}
    third = {name: torch.cat((scene[name], scene[name][:1])) for name in ("truth", "labels", "image")}
    for options in ({}, {"topk2": 1}):  # as many as topk are as none, as in Ultralytics
        assert run(scene | third, backend, topk=1, **options).index.tolist() == [[1, -1, -1, 1]]


@every_backend
def test_equal_boxes_and_points_are_taken_in_their_order(backend):
    scene = ROW | {"scores": torch.full((1, 4, 1), 0.5), "truth": ROW["truth"].repeat(2, 1)}
    scene |= {"labels": torch.tensor([0, 0]), "image": torch.tensor([0, 0])}
    assert run(scene, backend, topk=2).index.tolist() == [[0, 0, -1, -1]]
    assert run(scene, backend, topk=3, topk2=1).index.tolist() == [[0, -1, -1, -1]]


@every_backend
def test_a_box_keeps_its_topk2_best(backend):
    found = run(ROW, backend, topk=4, topk2=2)
    assert found.index.tolist() == [[-1, 0, 0, -1]]
    torch.testing.assert_close(found.score.cpu(), torch.tensor([[0.0, 1.0, 0.8, 0.0]]), rtol=1e-6, atol=0)


@every_backend
def test_free_places_go_to_the_first_points_at_zero(backend):
    """No prediction overlaps a box but one, so all other points of the image are equals, those outside the box too."""
    points = torch.cat((torch.tensor([[100.0, 4]]), ROW["points"]))
    boxes = torch.tensor([200.0, 200, 210, 210]).repeat(1, 5, 1)
    boxes[0, 4] = ROW["truth"][0]
    scene = ROW | {"points": points, "boxes": boxes, "scores": torch.full((1, 5, 1), 0.5)}
    # Places for the last point, for the first, which is no candidate, and for the second, which is.
    found = run(scene, backend, topk=3)
    assert found.index.tolist() == [[-1, 0, -1, -1, 0]]
    torch.testing.assert_close(found.score.cpu(), torch.tensor([[0, 0, 0, 0, 1.0]]), rtol=1e-6, atol=0)
    assert run(scene, backend, topk=3, topk2=2).index.tolist() == [[-1, -1, -1, -1, 0]]
    # A score of 0 makes a metric of 0, whatever the overlap.
    scene |= {"scores": torch.zeros(1, 5, 1)}
    assert run(scene, backend, topk=3).index.tolist() == [[-1, 0, 0, -1, -1]]


@every_backend
def test_all_at_zero_a_point_of_two_boxes_goes_to_the_first_of_the_image(backend):
    rows = {"labels": torch.zeros(3, dtype=torch.int64), "image": torch.tensor([-1, 0, 0])}
    rows["truth"] = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 8], [0, 0, 16, 8]])
    boxes = torch.tensor([200.0, 200, 210, 210]).expand(1, 4, 4)
    assert run(ROW | {"boxes": boxes} | rows, backend).index.tolist() == [[1, 2, -1, -1]]
    # It takes the point even if that is not its candidate.
    rows = {name: torch.cat((rows[name], rows[name][-1:])) for name in rows}
    assert run(ROW | {"boxes": boxes} | rows, backend).index.tolist() == [[1, 1, -1, -1]]


@every_backend
def test_small_sides_reach_further(backend):
    """A box of 2 pixels between the points, of which no side is nearer than 3."""
    truth = torch.tensor([[15.0, 3, 17, 5]])
    scene = ROW | {"truth": truth, "boxes": truth.expand(1, 4, 4)}
    assert run(scene, backend).index.tolist() == [[-1, -1, -1, -1]]
    assert run(scene, backend, smallest_side=8.0).index.tolist() == [[-1, -1, -1, -1]]  # not beyond the edge
    assert run(scene, backend, smallest_side=8.5).index.tolist() == [[-1, 0, 0, -1]]


# An oracle


def by_loops(
    scores: Tensor, boxes: Tensor, points: Tensor, truth: Tensor, labels: Tensor, image: Tensor, topk: int, topk2: int
) -> tuple[list[list[int]], list[list[float]]]:
    """As the docstring says it, in double, with torchvision's CIoU, for boxes of some size and no ties."""
    similarity = torchvision("ops.complete_box_iou")
    indices, values = [], []
    for number, (of_points, predicted) in enumerate(zip(scores.double(), boxes.double(), strict=True)):
        rows = (image == number).nonzero().flatten().tolist()
        suits: dict[int, dict[int, tuple[float, float]]] = {}
        for row in rows:
            x1, y1, x2, y2 = truth[row].tolist()
            inside = [a for a, (x, y) in enumerate(points.tolist()) if x1 < x < x2 and y1 < y < y2]
            overlap = similarity(truth[row : row + 1].double(), predicted[inside])[0].clamp(min=0)
            metric = of_points[inside, labels[row]].sqrt() * overlap**6
            suits[row] = {
                a: pair for a, pair in zip(inside, zip(metric.tolist(), overlap.tolist(), strict=True), strict=True)
            }
        takers: dict[int, list[int]] = {}
        for row in rows:
            best = sorted(suits[row], key=lambda a: suits[row][a][0], reverse=True)[:topk]
            for a in best:
                if suits[row][a][0] > 0:
                    takers.setdefault(a, []).append(row)
        owner = {
            a: taken[0] if len(taken) == 1 else max(rows, key=lambda row: suits[row].get(a, (0, 0))[1])
            for a, taken in takers.items()
        }
        index, value = [-1] * len(points), [0.0] * len(points)
        for row in rows:
            own = sorted((a for a in owner if owner[a] == row), key=lambda a: suits[row][a][0], reverse=True)[:topk2]
            for a in own:
                index[a] = row
                value[a] = suits[row][a][0] * max(suits[row][o][1] for o in own) / suits[row][own[0]][0]
        indices.append(index)
        values.append(value)
    return indices, values


@pytest.mark.parametrize("topk2", [None, 1, 3])
@pytest.mark.parametrize("seed", range(4))
@every_backend
def test_as_in_plain_python(backend, seed, topk2):
    scene = dense_scene("trained", seed, size=64, most=12)
    # Every prediction overlaps what its point is a candidate of, so that nothing is at zero.
    at, half = (
        scene["points"],
        torch.tensor([24.0, 24]) + torch.rand(2, 84, 2, generator=torch.Generator().manual_seed(seed)),
    )
    scene["boxes"] = torch.cat((at - half, at + half), -1)
    found = run(scene, backend, topk=5, topk2=topk2, eps=1e-30)
    index, score = by_loops(**scene, topk=5, topk2=topk2 or 84)
    assert found.index.tolist() == index
    torch.testing.assert_close(found.score.cpu(), torch.tensor(score), rtol=3e-4, atol=1e-9)


# Every backend as the reference


@pytest.mark.parametrize(
    "options", [{}, {"topk": 7, "topk2": 1, "smallest_side": 16.0}, {"topk": 32, "topk2": 3}], ids=str
)
@pytest.mark.parametrize("kind", KINDS)
@every_compiled_backend
def test_backends_agree(backend, kind, options):
    for seed in range(3):
        scene = dense_scene(kind, seed, most=most_of(backend))
        assert_same(run(scene, backend, **options), run(scene, "reference", **options))


@pytest.mark.parametrize("from_logits", [False, True])
@every_format
@every_dtype
@every_quick_compiled_backend
def test_dtypes_formats_and_strides(backend, dtype, box_format, from_logits):
    scene = dense_scene("trained", 5)
    for name in ("boxes", "truth"):
        scene[name] = to_format(scene[name], box_format).to(dtype)
    scene["points"] = scene["points"].to(dtype)
    scene["scores"] = (scene["scores"].logit() if from_logits else scene["scores"]).to(dtype)
    options = {"box_format": box_format, "from_logits": from_logits, "smallest_side": 16.0}
    expected = run(scene, "reference", **options)
    assert expected.index.max() > 0 and expected.score.max() > 0.5
    actual = run(scene, backend, **options)
    assert_same(actual, expected)
    # As a head leaves them: channels first, and parts of something larger.
    for name in ("boxes", "scores"):
        scene[name] = scene[name].mT.contiguous().mT
    scene["points"] = torch.cat((scene["points"], scene["points"]), 1)[:, :2]
    scene["truth"] = scene["truth"].repeat_interleave(2, 0)[::2]
    scene["labels"], scene["image"] = scene["labels"].int(), scene["image"].repeat_interleave(3)[::3]
    again = run(scene, backend, **options)
    assert same_bits(again.index, actual.index) and same_bits(again.score, actual.score)


@every_compiled_backend
def test_logits_are_as_their_sigmoid(backend):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        scene = dense_scene("trained", 6)
        logits = (6 * scene["scores"] - 3).to(dtype)
        expected = run(scene | {"scores": logits.sigmoid()}, "reference")
        assert_same(run(scene | {"scores": logits}, backend, from_logits=True), expected)


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (0.7, 0.0)])
@every_compiled_backend
def test_exponents(backend, alpha, beta):
    scene = dense_scene("trained", 7)
    assert_same(run(scene, backend, alpha=alpha, beta=beta), run(scene, "reference", alpha=alpha, beta=beta))


@every_backend
def test_rows_of_no_image_and_no_class_take_nothing(backend):
    """Nor does anything else change, whatever they hold."""
    scene = dense_scene("trained", 8, most=10)
    rows = len(scene["image"])
    place = 2 * torch.arange(rows) + 1
    padded = {"truth": torch.full((2 * rows + 1, 4), math.nan), "labels": torch.zeros(2 * rows + 1, dtype=torch.int64)}
    padded["truth"][0] = torch.tensor([0.0, 0, 96, 96])
    padded["truth"][2] = torch.tensor([0.0, 0, 96, 96])
    padded["labels"][2], padded["image"] = 5, torch.full((2 * rows + 1,), -1)
    padded["image"][2], padded["image"][4] = 1, 2**40
    for name in ("truth", "labels", "image"):
        padded[name][place] = scene[name]
    expected, found = run(scene, backend), run(scene | padded, backend)
    assert torch.equal(found.index.cpu(), torch.where(expected.index.cpu() < 0, -1, 2 * expected.index.cpu() + 1))
    assert same_bits(found.score, expected.score)


@every_backend
def test_rows_may_come_in_any_order_of_images(backend):
    scene = dense_scene("trained", 9, images=3)
    order = torch.randperm(len(scene["image"]), generator=torch.Generator().manual_seed(0))
    expected = run(scene, backend)
    found = run(scene | {name: scene[name][order] for name in ("truth", "labels", "image")}, backend)
    index = found.index.cpu()
    assert torch.equal(torch.where(index < 0, -1, order[index]), expected.index.cpu())
    assert same_bits(found.score, expected.score)


@every_compiled_backend
def test_points_in_no_order(backend):
    scene = dense_scene("trained", 10)
    order = torch.randperm(len(scene["points"]), generator=torch.Generator().manual_seed(0))
    shuffled = scene | {"points": scene["points"][order]}
    shuffled |= {name: scene[name][:, order] for name in ("scores", "boxes")}
    found, expected = run(shuffled, backend), run(scene, backend)
    assert_same(found, run(shuffled, "reference"))
    # There are no ties but at zero.
    is_above = expected.score[:, order] > 0
    assert is_above.any() and torch.equal(found.index[is_above], expected.index[:, order][is_above])


@every_quick_compiled_backend
def test_grids_of_every_shape(backend):
    """Levels that are no squares, a single column, two levels that follow each other as one, points with NaN."""

    def grid(width: int, height: int, stride: float, y: float = 0.0) -> Tensor:
        ticks = (torch.arange(width) + 0.5) * stride, (torch.arange(height) + 0.5) * stride + y
        return torch.cartesian_prod(ticks[1], ticks[0]).flip(-1)

    levels = [
        grid(12, 3, 8),
        grid(12, 2, 8, 60),
        grid(1, 9, 10),
        grid(7, 1, 13),
        torch.full((3, 2), math.nan),
        grid(5, 5, 19),
    ]
    points = torch.cat(levels)
    scene = dense_scene("random", 11)
    near = torch.cat((points - 20, points + 20), -1).nan_to_num(0)
    scene |= {"points": points, "boxes": near.expand(2, -1, -1), "scores": scene["scores"][:, : len(points)]}
    assert_same(run(scene, backend), run(scene, "reference"))


# NaN and emptiness


@every_backend
def test_nan_is_largest(backend):
    """As in torch.topk: of two predictions with NaN the first is the box's only point."""
    boxes = ROW["boxes"].clone()
    boxes[0, 2:] = math.nan
    found = run(ROW | {"boxes": boxes}, backend, topk=1)
    assert found.index.tolist() == [[-1, -1, 0, -1]] and found.score.isnan().tolist() == [[False, False, True, False]]


@pytest.mark.parametrize("dimension", ["images", "points", "classes", "rows"])
@every_backend
def test_of_nothing(backend, dimension):
    scene = dense_scene("trained", 12)
    for name, tensor in scene.items():
        dimensions = {
            "scores": ("images", "points", "classes"),
            "boxes": ("images", "points"),
            "points": ("points",),
        }.get(name, ("rows",))
        if dimension in dimensions:
            scene[name] = tensor.narrow(dimensions.index(dimension), 0, 0)
    found = run(scene, backend)
    assert found.index.shape == found.score.shape == scene["boxes"].shape[:2]
    assert (found.index == -1).all() and (found.score == 0).all()


# What it is not to depend on, and not to do


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_instruction_sets_and_threads_agree(instruction_set):
    if instruction_set not in builds.cpu_build.usable_instruction_sets():
        pytest.skip("not of this processor")
    scene = dense_scene("broken", 13, images=5, size=160)
    before, threads, expected = builds.cpu_build.instruction_set(), torch.get_num_threads(), run(scene, "cpu")
    try:
        builds.cpu_build.set_instruction_set(instruction_set)
        for count in (1, 3):
            torch.set_num_threads(count)
            found = run(scene, "cpu")
            assert same_bits(found.index, expected.index) and same_bits(found.score, expected.score)
    finally:
        builds.cpu_build.set_instruction_set(before)
        torch.set_num_threads(threads)


@pytest.mark.skipif(EMULATED is None, reason="no emulated GPU here")
def test_launches_and_the_order_of_blocks():
    scene = dense_scene("equal", 14)
    results = []
    device = EMULATED.device
    for order in (EMULATED.Order.forward, EMULATED.Order.backward, EMULATED.Order.shuffled):
        device.order, device.launches, device.memsets = order, 0, 0
        results.append(run(scene, "emulated", topk2=2))
        assert (device.launches, device.memsets) == (4, 0)
    device.order = EMULATED.Order.forward
    for found in results[1:]:
        assert same_bits(found.index, results[0].index) and same_bits(found.score, results[0].score)
    device.fails = True
    with pytest.raises(RuntimeError, match="a launch for an assignment failed"):
        run(scene, "emulated")
    device.fails = False


@every_quick_compiled_backend
def test_no_gradient_flows(backend):
    scene = dense_scene("trained", 15)
    scene["boxes"].requires_grad_()
    found = run(scene, backend)
    assert not found.score.requires_grad


@every_quick_backend
def test_no_tangent_passes(backend):
    scene = {name: tensor.to(device_of(backend)) for name, tensor in dense_scene("trained", 15).items()}
    boxes = scene.pop("boxes")
    _, tangent = torch.func.jvp(
        lambda boxes: assign(**scene, boxes=boxes, backend=backend).score, (boxes,), (torch.ones_like(boxes),)
    )
    assert (tangent == 0).all()


def test_in_a_graph():
    """Of a compiler that knows shapes alone."""
    scene = dense_scene("trained", 16)
    compiled = torch.compile(assign, fullgraph=True, backend="aot_eager")
    found, expected = compiled(**scene), assign(**scene)
    assert torch.equal(found.index, expected.index) and torch.equal(found.score, expected.score)


# Errors

GOOD = dense_scene("trained", 0, most=5)
ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"boxes": GOOD["boxes"][0]}, ValueError, r"boxes: expected boxes of shape \(B, A, 4\), got \(\d+, 4\)"),
    ({"boxes": GOOD["boxes"].int()}, TypeError, "boxes: expected dtype float32.*, got int32"),
    (
        {"scores": GOOD["scores"][:, 1:]},
        ValueError,
        r"scores: expected \(B, A, C\) with the B and A of boxes, \(2, \d+\)",
    ),
    ({"scores": None}, TypeError, "scores: expected a tensor, got NoneType"),
    ({"points": GOOD["points"][1:]}, ValueError, r"points: expected \(A, 2\) with the A of boxes, \d+, got \(\d+, 2\)"),
    ({"truth": GOOD["truth"][None]}, ValueError, r"truth: expected boxes of shape \(M, 4\), got \(1, "),
    ({"labels": GOOD["labels"].float()}, TypeError, "labels: expected dtype int64, int32, got float32"),
    ({"image": GOOD["image"][1:]}, ValueError, r"image: expected one number for each box of truth, \(\d+,\), got"),
    (
        {"points": GOOD["points"].to("meta")},
        ValueError,
        "points: expected a tensor on cpu, where boxes is, got one on meta",
    ),
    ({"topk": 0}, ValueError, "topk: expected 1 to 32, got 0"),
    ({"topk": 2.0}, TypeError, "topk: expected a whole number, got float"),
    ({"topk2": 33}, ValueError, "topk2: expected 1 to 32, got 33"),
    ({"topk2": True}, TypeError, "topk2: expected a whole number, got bool"),
    ({"alpha": -1}, ValueError, "alpha: expected a number of at least 0 that is finite in float32, got -1"),
    ({"beta": "6"}, TypeError, "beta: expected a number, got str"),
    ({"smallest_side": -1.0}, ValueError, "smallest_side: expected a number of at least 0"),
    ({"from_logits": 1}, TypeError, "from_logits: expected True or False, got int"),
    ({"box_format": "yxyx"}, ValueError, "box_format: expected one of xyxy, cxcywh, xywh, got 'yxyx'"),
    ({"truth_format": ""}, ValueError, "truth_format: expected one of xyxy, cxcywh, xywh, got ''"),
    ({"eps": math.inf}, ValueError, "eps: expected a number of at least 0"),
    ({"backend": "tpu"}, ValueError, "backend: expected one of"),
]


@pytest.mark.parametrize(("wrong", "kind", "message"), ERRORS, ids=[message[:24] for *_, message in ERRORS])
def test_errors(wrong, kind, message):
    with pytest.raises(kind, match=message):
        assign(**(GOOD | wrong))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": GOOD["labels"] + 5}, r"labels: expected one of 5 classes, got \d+"),
        ({"image": GOOD["image"] + 2}, "image: expected one of 2 images, got [23]"),
        ({"truth": GOOD["truth"] / 0}, r"truth: expected finite boxes, got \d+ that are not"),
    ],
)
def test_values_are_checked_where_that_is_asked_for(wrong, message, monkeypatch):
    monkeypatch.setattr("icr_kernels.arguments.CHECK_VALUES", True)
    padding = {"truth": torch.full((1, 4), math.nan), "labels": torch.tensor([0]), "image": torch.tensor([-1])}
    padded = GOOD | {name: torch.cat((GOOD[name], rows)) for name, rows in padding.items()}
    index, score = assign(**padded)
    assert icr.icr_loss(padded["boxes"], padded["truth"], None, target_index=index, weight=score).isfinite()
    with pytest.raises(ValueError, match=message):
        assign(**(GOOD | wrong))


@every_quick_backend
def test_the_truth_may_come_in_another_format(backend):
    """Halves and sums of these are exact, so the assignment is the same to the bit."""
    scene = dense_scene("trained", 7, most=most_of(backend))
    scene["truth"] = scene["truth"].round()
    expected = run(scene, backend, smallest_side=16.0)
    truth = to_format(scene["truth"], "cxcywh")
    actual = run(scene | {"truth": truth}, backend, smallest_side=16.0, truth_format="cxcywh")
    assert same_bits(actual.index, expected.index) and same_bits(actual.score, expected.score)
