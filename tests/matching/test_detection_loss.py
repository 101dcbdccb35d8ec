"""The loss of a dense head: by hand, by an oracle of others' functions, and every backend against the reference."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import icr_kernels as icr
from detection_scenes import (
    LOGITS,
    Scene,
    assert_as_reference,
    detection_loss,
    detection_scene,
    evaluated,
    leaves,
    on_device_of,
)
from frameworks import torchvision
from icr_kernels import builds
from inputs import (
    DTYPES,
    INSTRUCTION_SETS,
    device_of,
    dtype_id,
    every_backend,
    every_compiled_backend,
    every_dtype,
    every_loss,
    every_penalty,
    every_quick_backend,
    every_quick_compiled_backend,
)
from tolerances import assert_close, same_bits

# By hand

# A point at (10, 10) of stride 4, and a box that reaches 4, 6, 8 and 2 pixels from it.
POINT: Scene = {
    "box_logits": torch.tensor([[[1.5, 1.0, 2.0, 1.0]]]),
    "class_logits": torch.tensor([[[0.0, math.log(3)]]]),
    "points": torch.tensor([[10.0, 10]]),
    "strides": torch.tensor([4.0]),
    "truth": torch.tensor([[6.0, 4, 18, 12]]),
    "labels": torch.tensor([1]),
    "image": torch.tensor([0]),
    "assignment": icr.Assignment(torch.tensor([[0]]), torch.tensor([[0.5]])),
}


@every_backend
def test_a_point_by_hand(backend):
    terms = detection_loss(POINT, backend, gains=(1.0, 1.0, 1.0), loss="iou")
    # Sides at 6, 4, 8 and 4 pixels: (4, 6, 18, 14) and (6, 4, 18, 12) share 12 x 6 of 14 x 8 + 12 x 8 - 72 = 136.
    assert terms.box.item() == pytest.approx(0.5 * (1 - 72 / 136), rel=1e-6)
    # -log of 1 - 1/2, and half of -log 3/4 and of -log 1/4.
    assert terms.classification.item() == pytest.approx(math.log(2) + math.log(4) - 0.5 * math.log(3), rel=1e-6)
    # Distances are off by 2, 2, 0 and 2 pixels, half a stride each.
    assert terms.distribution.item() == pytest.approx(0.5 * 3 * 0.5 / 4, rel=1e-6)
    assert terms.penalty.item() == 0
    sized = detection_loss(POINT, backend, gains=(1.0, 1.0, 1.0), image_size=(40, 20))
    assert sized.distribution.item() == pytest.approx(0.5 * (2 / 20 + 2 / 40 + 2 / 40) / 4, rel=1e-6)


@every_backend
def test_gains_weights_and_normalizers_by_hand(backend):
    once = detection_loss(POINT, backend, gains=(1.0, 1.0, 1.0))
    terms = detection_loss(POINT, backend, gains=(2.0, 3.0, 5.0), normalizer=4.0)
    for term, plain, gain in zip(terms, once, (2, 3, 5), strict=False):
        assert term.item() == pytest.approx(gain * plain.item() / 4, rel=1e-6)
    same = detection_loss(POINT, backend, gains=(2.0, 3.0, 5.0), normalizer=torch.tensor(4.0))
    assert all(same_bits(a, b) for a, b in zip(same, terms, strict=True))
    # The scores count from a sum of 1 on.
    more = icr.Assignment(torch.tensor([[0]]), torch.tensor([[2.0]]))
    assert detection_loss(POINT, backend, assignment=more).box.item() == pytest.approx(
        2 / 2 * detection_loss(POINT, backend, assignment=more, normalizer=2.0).box.item(), rel=1e-6
    )
    weighted = detection_loss(POINT, backend, gains=(1.0, 1.0, 1.0), class_weight=torch.tensor([0.0, 2.0]))
    assert weighted.classification.item() == pytest.approx(2 * (math.log(4) - 0.5 * math.log(3)), rel=1e-6)


@every_backend
def test_a_distribution_by_hand(backend):
    """The first two of three bins at 0.5 strides, the last two at 1.5; beyond the last it stays 0.01 short."""
    probability = torch.tensor([0.2, 0.3, 0.5])
    scene = POINT | {"box_logits": probability.log().repeat(1, 1, 4)}
    scene["truth"] = torch.tensor([[8.0, 4, 400, 8]])  # 0.5, 1.5, far beyond, and -0.5 strides
    a, b, c = (-probability.log()).tolist()
    expected = [(a + b) / 2, (b + c) / 2, 0.01 * b + 0.99 * c, a]
    terms = detection_loss(scene, backend, gains=(1.0, 1.0, 1.0))
    assert terms.distribution.item() == pytest.approx(0.5 * sum(expected) / 4, rel=1e-5)
    boxes = icr.decode_boxes(
        *(scene[name].to(device_of(backend)) for name in ("box_logits", "points", "strides")), backend=backend
    )
    reach = 4 * (0.3 + 2 * 0.5)
    assert boxes.cpu().flatten().tolist() == pytest.approx([10 - reach, 10 - reach, 10 + reach, 10 + reach], rel=1e-6)


@every_backend
def test_the_penalty_of_points_with_an_anchor_object(backend):
    """Two points, two boxes of which one has the other as anchor object: its prediction lies to 2/7 outside."""
    scene = POINT | {
        "box_logits": POINT["box_logits"].repeat(1, 2, 1),
        "class_logits": POINT["class_logits"].repeat(1, 2, 1),
        "points": POINT["points"].repeat(2, 1),
        "strides": POINT["strides"].repeat(2),
        "truth": torch.tensor([[6.0, 4, 18, 12], [0, 0, 14, 14]]),
        "labels": torch.tensor([1, 0]),
        "image": torch.tensor([0, 0]),
        "assignment": icr.Assignment(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.25]])),
        "anchor_index": torch.tensor([1, -1]),
    }
    of_point = 4 / 14
    options = {"penalty": "containment", "gains": (3.0, 1.0, 1.0), "penalty_weight": 0.5}
    uniform = detection_loss(scene, backend, **options)
    assert uniform.penalty.item() == pytest.approx(3 * 0.5 * of_point, rel=1e-6)
    by_score = detection_loss(scene, backend, **options, weighting="tal")
    assert by_score.penalty.item() == pytest.approx(3 * 0.5 * 0.5 * of_point, rel=1e-6)
    assert detection_loss(scene | {"anchor_index": torch.tensor([-1, 5])}, backend, **options).penalty.item() == 0


# An oracle


def by_other_functions(scene: Scene, gains: tuple[float, float, float]) -> list[Tensor]:
    """The three terms from torchvision's and PyTorch's functions, point by point in double."""
    giou = torchvision("ops.generalized_box_iou_loss")
    index, score = scene["assignment"]
    bins = scene["box_logits"].shape[-1] // 4
    total = score[index >= 0].double().sum().clamp(min=1)
    target = torch.zeros_like(scene["class_logits"])
    box, distribution = [], []
    for image, point in (index >= 0).nonzero().tolist():
        row, weight = index[image, point], score[image, point].double()
        target[image, point, scene["labels"][row]] = weight
        sides = scene["box_logits"][image, point].view(4, bins)
        (x, y), stride = scene["points"][point].double(), scene["strides"][point].double()
        distance = stride * torch.stack([side.softmax(0) @ torch.arange(bins).double() for side in sides])
        x1, y1, x2, y2 = truth = scene["truth"][row].double()
        found = torch.stack((x - distance[0], y - distance[1], x + distance[2], y + distance[3]))
        box.append(weight * giou(found, truth, eps=0.0))
        wanted = (torch.stack((x - x1, y - y1, x2 - x, y2 - y)) / stride).clamp(0, bins - 1.01)
        left = wanted.floor().long()
        beside = [F.cross_entropy(sides, left + n, reduction="none") for n in (0, 1)]
        distribution.append(weight * (beside[0] * (left + 1 - wanted) + beside[1] * (wanted - left)).mean())
    of_classes = F.binary_cross_entropy_with_logits(scene["class_logits"], target, reduction="sum")
    terms = torch.stack(box).sum(), of_classes, torch.stack(distribution).sum()
    return [gain * term / total for gain, term in zip(gains, terms, strict=True)]


@pytest.mark.parametrize("bins", [4, 16])
@every_backend
def test_as_by_other_functions(backend, bins):
    scene = leaves(detection_scene(1, bins=bins, dtype=torch.float64))
    terms = detection_loss(scene, backend, loss="giou")
    expected = by_other_functions(scene, (7.5, 0.5, 1.5))
    for term, truth in zip(terms, expected, strict=False):
        wanted = [scene[name] for name in LOGITS]
        found = torch.autograd.grad(term, wanted, retain_graph=True, allow_unused=True, materialize_grads=True)
        gradients = torch.autograd.grad(truth, wanted, retain_graph=True, allow_unused=True, materialize_grads=True)
        for actual, exact in ((term, truth), *zip(found, gradients, strict=True)):
            assert_close(actual, exact, "term or gradient")


# No loss with a value that is held constant, whose gradient is not the derivative of its value.
@pytest.mark.parametrize(("bins", "loss", "weighting"), [(1, "iou", "tal"), (3, "giou", "uniform"), (5, "eiou", "tal")])
@every_quick_backend
def test_gradients_are_derivatives(backend, bins, loss, weighting):
    scene = detection_scene(2, bins=bins, dtype=torch.float64, size=32, most=5, classes=3)
    for name in ("box_logits", "class_logits", "assignment"):
        first = [each[:1, :9] for each in (scene[name] if name == "assignment" else [scene[name]])]
        scene[name] = icr.Assignment(*first) if name == "assignment" else first[0]
    scene |= {name: scene[name][:9] for name in ("points", "strides")}
    assert (scene["assignment"].index >= 0).sum() > 2
    scene = on_device_of(backend, scene)
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)

    def function(box_logits: Tensor, class_logits: Tensor) -> icr.DetectionTerms:
        logits = {"box_logits": box_logits, "class_logits": class_logits}
        options = {"loss": loss, "penalty": "containment", "weighting": weighting, "class_weight": weights}
        return detection_loss(scene | logits, backend, **options)

    logits = [scene[name].requires_grad_() for name in LOGITS]
    assert torch.autograd.gradcheck(function, logits, eps=1e-6, atol=1e-6, rtol=1e-5, nondet_tol=0.0)
    boxes = [scene[name] for name in ("box_logits", "points", "strides")]
    assert torch.autograd.gradcheck(lambda logits: icr.decode_boxes(logits, *boxes[1:], backend=backend), boxes[0])


# Every backend as the reference


@pytest.mark.parametrize("is_channels_first", [True, False])
@pytest.mark.parametrize("bins", [1, 2, 5, 16])
@every_dtype
@every_compiled_backend
def test_dtypes_bins_and_layouts(backend, dtype, bins, is_channels_first):
    scene = detection_scene(3, bins=bins, dtype=dtype, is_channels_first=is_channels_first)
    assert_as_reference(scene, backend, penalty="containment")


@every_loss
@every_compiled_backend
def test_losses(backend, loss):
    assert_as_reference(detection_scene(4), backend, loss=loss, penalty="pull", penalty_weight=0.3)


@pytest.mark.parametrize("box_format", ["cxcywh", "xywh"])
@every_compiled_backend
def test_formats(backend, box_format):
    scene = detection_scene(4, box_format=box_format)
    assert_as_reference(scene, backend, loss="siou", penalty="pull", penalty_weight=0.3)


@every_penalty
@every_compiled_backend
def test_penalties(backend, penalty):
    options = {"penalty": penalty, "weighting": "tal", "relative": True, "penalty_weight": 0.7}
    assert_as_reference(detection_scene(5), backend, **options)


@pytest.mark.parametrize("is_relative", [True, False])
@every_compiled_backend
def test_uniform_penalties(backend, is_relative):
    options = {"penalty": "log", "weighting": "uniform", "relative": is_relative, "penalty_weight": 0.7}
    assert_as_reference(detection_scene(5), backend, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"class_weight": torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0])},
        {"class_weight": torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0], dtype=torch.float16)},
        {"normalizer": 7},
        {"normalizer": torch.tensor(7.5)},
        {"normalizer": torch.tensor(0)},
        {"gains": (1.0, 0.0, 3.0)},
        {"eps": 40.0},
        {"image_size": (64, 48)},
    ],
    ids=str,
)
@every_compiled_backend
def test_options(backend, options):
    assert_as_reference(detection_scene(6, bins=1 if "image_size" in options else 4), backend, **options)


@pytest.mark.parametrize("classes", [1, 2, 37])
@pytest.mark.parametrize("is_channels_first", [True, False])
@every_compiled_backend
def test_numbers_of_classes(backend, classes, is_channels_first):
    assert_as_reference(detection_scene(7, classes=classes, is_channels_first=is_channels_first), backend)


@every_quick_compiled_backend
def test_many_points(backend):
    """More than a part or a block has, and no multiple of it."""
    for is_channels_first in (True, False):
        scene = detection_scene(8, size=416, most=20, bins=8, is_channels_first=is_channels_first)
        assert_as_reference(scene, backend, penalty="containment+pull")


@every_compiled_backend
def test_parts_of_something_larger(backend):
    """Logits with strides of their own, and columns of tables."""
    scene = detection_scene(9)
    expected = evaluated(scene, backend, penalty="containment")
    wide = dict(scene)
    for name in LOGITS:
        wide[name] = torch.stack((scene[name], scene[name]), -1)[..., 0]
    wide["points"] = torch.cat((scene["points"], scene["points"]), 1)[:, :2]
    wide["truth"] = torch.cat((scene["truth"], scene["truth"]), 1)[:, :4]
    for name in ("strides", "labels", "anchor_index"):
        wide[name] = scene[name].repeat_interleave(2)[::2]
    wide["labels"] = wide["labels"].int()
    index, score = scene["assignment"]
    wide["assignment"] = icr.Assignment(index.mT.contiguous().mT, score.double())
    actual = [detection_loss(leaves(wide), backend, penalty="containment")]
    assert_close(torch.stack(actual[0]), expected[0], "terms")
    for found, truth in zip(evaluated(wide, backend, penalty="containment")[1:], expected[1:], strict=True):
        assert_close(found, truth, "gradient")


@every_dtype
@every_backend
def test_boxes_and_their_gradient(backend, dtype):
    for bins, is_channels_first in ((1, True), (6, True), (6, False), (16, True)):
        scene = detection_scene(10, bins=bins, dtype=dtype, is_channels_first=is_channels_first)
        arguments = [scene[name].to(device_of(backend)) for name in ("box_logits", "points", "strides")]
        results = []
        for name, logits in ((backend, arguments[0]), ("reference", arguments[0].double())):
            leaf = logits.detach().clone().requires_grad_()
            boxes = icr.decode_boxes(leaf, *arguments[1:], backend=name)
            upstream = torch.linspace(0.5, 1.5, boxes.numel(), dtype=boxes.dtype, device=boxes.device).view_as(boxes)
            results.append((boxes, *torch.autograd.grad(boxes, leaf, upstream)))
        for found, truth, what in zip(*results, ("boxes", "gradient"), strict=True):
            assert_close(found, truth, what)
        assert results[0][0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert results[0][1].dtype == dtype


@every_quick_backend
def test_its_own_assignment_is_the_task_aligned_one(backend):
    scene = detection_scene(11, bins=8, box_format="cxcywh", size=96)
    device = device_of(backend)
    tensors = {name: value.to(device) for name, value in scene.items() if isinstance(value, Tensor)}
    boxes = icr.decode_boxes(tensors["box_logits"], tensors["points"], tensors["strides"], backend=backend)
    options = {"topk": 7, "topk2": 3, "alpha": 0.7, "beta": 4.0, "smallest_side": 16.0}
    ground_truth = [tensors[name] for name in ("points", "truth", "labels", "image")]
    assignment = icr.task_aligned_assign(
        tensors["class_logits"].sigmoid(), boxes, *ground_truth, **options, truth_format="cxcywh", backend=backend
    )
    assert (assignment.index >= 0).sum() > 20
    expected = detection_loss(scene | {"assignment": assignment}, backend)
    actual = detection_loss(scene | {"assignment": None} | options, backend)
    assert torch.allclose(torch.stack(actual), torch.stack(expected), rtol=1e-6)


# What may be anything


@every_compiled_backend
def test_background_may_hold_anything(backend):
    """Its boxes are not even looked at; nor is the score of a point without a target."""
    scene = detection_scene(12)
    index, score = scene["assignment"]
    rows = len(scene["truth"])
    strange = torch.where(index < 0, torch.arange(index.numel()).view_as(index) % 3 * 10**6 + rows, index)
    strange[0, 0] = -(2**40)
    index = torch.where(torch.arange(index.shape[1]) == 0, -1, index)
    expected = evaluated(scene | {"assignment": icr.Assignment(index, score)}, backend, penalty="log")
    is_background = (index < 0)[..., None]
    other = scene | {
        "box_logits": torch.where(is_background, math.nan, scene["box_logits"].mT.contiguous().mT),
        "assignment": icr.Assignment(strange, torch.where(index < 0, math.nan, score)),
    }
    other["assignment"].index[:, 0] = rows
    actual = evaluated(other, backend, penalty="log")
    assert all(same_bits(a, b) for a, b in zip(actual, expected, strict=True))
    assert (actual[1][is_background.expand_as(actual[1])] == 0).all()


@every_compiled_backend
def test_labels_and_anchor_objects_that_do_not_exist(backend):
    scene = detection_scene(13)
    labels, anchor = scene["labels"].clone(), scene["anchor_index"].clone()
    labels[::3], labels[1::3] = -1, 2**40
    anchor[::2], anchor[1::4] = -(2**40), len(anchor)
    assert_as_reference(scene | {"labels": labels, "anchor_index": anchor}, backend, penalty="containment")


LARGE = [
    pytest.param(dtype, magnitude, id=f"{dtype_id(dtype)}-{magnitude:g}")
    for dtype in DTYPES
    for magnitude in (100.0, 1e4, 6e4, 2e18, 3e38)
    if magnitude <= torch.finfo(dtype).max
]


@pytest.mark.parametrize("bins", [1, 4])
@pytest.mark.parametrize(("dtype", "magnitude"), LARGE)
@every_compiled_backend
def test_every_finite_logit_has_a_finite_loss(backend, dtype, magnitude, bins):
    scene = detection_scene(14, bins=bins, dtype=dtype)
    for number, name in enumerate(LOGITS):
        place = torch.arange(scene[name].numel()).view(scene[name].shape)
        extreme = torch.where(place % 2 == 0, magnitude, -magnitude).to(dtype)
        scene[name] = torch.where(place % (3 + number) == 0, extreme, scene[name])
    options = {"penalty": "containment+pull"}
    actual = evaluated(scene, backend, **options)
    expected = evaluated(scene, "reference", torch.float64, **options)
    assert all(each.isfinite().all() for each in (*actual, *expected))
    torch.testing.assert_close(actual[0].double().cpu(), expected[0].cpu(), rtol=1e-4, atol=0)
    # Classes, of which none is near a kink.
    assert_close(actual[2], expected[2], "class_logits")


@every_backend
def test_small_probabilities_keep_their_loss(backend):
    """1.5e-8 each, which 1 + exp(-18) would not know of."""
    scene = POINT | {"class_logits": torch.full((1, 1, 1000), -18.0), "labels": torch.tensor([-1])}
    terms = detection_loss(scene, backend, gains=(1.0, 1.0, 1.0))
    assert terms.classification.item() == pytest.approx(1000 * math.log1p(math.exp(-18)), rel=1e-5)


@pytest.mark.parametrize("dimension", ["images", "points", "classes", "rows"])
@pytest.mark.parametrize("is_assigned", [True, False])
@every_backend
def test_of_nothing(backend, dimension, is_assigned):
    scene = detection_scene(15)
    names = {
        "box_logits": ("images", "points"),
        "class_logits": ("images", "points", "classes"),
        "points": ("points",),
        "strides": ("points",),
        **{name: ("rows",) for name in ("truth", "labels", "image", "anchor_index")},
    }
    for name, dimensions in names.items():
        if dimension in dimensions:
            scene[name] = scene[name].narrow(dimensions.index(dimension), 0, 0)
    shape = scene["box_logits"].shape[:2]
    assignment = icr.Assignment(torch.zeros(shape, dtype=torch.int64), torch.ones(shape))
    actual = evaluated(scene | {"assignment": assignment if is_assigned else None}, backend, penalty="containment")
    assert all(each.isfinite().all() for each in actual)
    assert [tuple(gradient.shape) for gradient in actual[1:]] == [tuple(scene[name].shape) for name in LOGITS]
    if dimension == "rows" or (dimension == "classes" and not is_assigned):
        assert (actual[1] == 0).all() and actual[0][0] == 0 and actual[0][2:].tolist() == [0, 0]
    if dimension == "rows":
        logits = scene["class_logits"]
        everything = F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits), reduction="sum")
        assert actual[0][1].item() == pytest.approx(0.5 * everything.item(), rel=1e-5)


@every_backend
def test_images_without_boxes(backend):
    scene = detection_scene(16, size=96)
    scene["image"] = torch.zeros_like(scene["image"])
    actual = evaluated(scene | {"assignment": None}, backend)
    assert (actual[1][1] == 0).all() and (actual[1][0] != 0).any() and (actual[2][1] > 0).all()


# What it is not to depend on


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_instruction_sets_and_threads(instruction_set):
    """Of an instruction set the same bits whatever the number of threads; the sets agree but for rounding."""
    if instruction_set not in builds.cpu_build.usable_instruction_sets():
        pytest.skip("not of this processor")
    scene = detection_scene(23, size=256, bins=7)
    before, threads = builds.cpu_build.instruction_set(), torch.get_num_threads()
    try:
        builds.cpu_build.set_instruction_set(instruction_set)
        assert_as_reference(scene, "cpu", penalty="containment")
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(evaluated(scene, "cpu", penalty="containment"))
        assert all(same_bits(a, b) for a, b in zip(*results, strict=True))
    finally:
        builds.cpu_build.set_instruction_set(before)
        torch.set_num_threads(threads)
