"""The adapter for torchvision: small RetinaNet, FCOS and Faster R-CNN with random weights."""

import copy
import io
import pickle
import re
import warnings
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.torchvision_without_extension import make_importable
from frameworks import need, painted

need("torchvision")
make_importable()

from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet  # noqa: E402
from torchvision.models.detection.anchor_utils import AnchorGenerator  # noqa: E402
from torchvision.ops import MultiScaleRoIAlign  # noqa: E402

from icr_kernels import Relations  # noqa: E402
from icr_kernels.integrations.handle import Record  # noqa: E402
from icr_kernels.integrations.torchvision import enable_icr  # noqa: E402

NAMES = ["background", "car", "plate", "tree"]
CAR, PLATE, TREE = 1, 2, 3
PAIRS = {"plate": "car"}


class Backbone(nn.Sequential):
    out_channels = 32  # the heads normalise in 32 groups

    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, self.out_channels, 3, 2, 1))

    def forward(self, x):
        return OrderedDict({"0": super().forward(x)})


class Pool(MultiScaleRoIAlign):
    """Without RoIAlign, whose operator is compiled: what is read off does not matter here."""

    def __init__(self):
        super().__init__(["0"], 1, 1)

    def forward(self, features, proposals, image_shapes):
        boxes = torch.cat(proposals)
        of_image = features["0"].mean((2, 3)).repeat_interleave(torch.tensor([len(each) for each in proposals]), 0)
        return torch.cat((of_image, boxes / 64, boxes.new_ones(len(boxes), 4)), 1)[:, :, None, None]


def retinanet():
    anchors = AnchorGenerator(((8, 24, 40),), ((0.5, 1.0, 2.0),))
    return RetinaNet(Backbone(), 4, min_size=64, max_size=64, anchor_generator=anchors)


def fcos():
    anchors = AnchorGenerator(((8,),), ((1.0,),))
    return FCOS(Backbone(), 4, min_size=64, max_size=64, anchor_generator=anchors, center_sampling_radius=3.0)


def faster_rcnn():
    anchors = AnchorGenerator(((8, 24, 40),), ((0.5, 1.0, 2.0),))
    head = nn.Sequential(nn.Flatten(), nn.Linear(40, 16), nn.ReLU())
    return FasterRCNN(
        Backbone(),
        box_roi_pool=Pool(),
        box_head=head,
        box_predictor=Predictor(),
        min_size=64,
        max_size=64,
        rpn_anchor_generator=anchors,
        box_batch_size_per_image=64,
    )


class Predictor(nn.Module):
    def __init__(self):
        super().__init__()
        self.classes, self.boxes = nn.Linear(16, 4), nn.Linear(16, 16)
        nn.init.normal_(self.boxes.weight, std=0.01)
        nn.init.zeros_(self.boxes.bias)

    def forward(self, x):
        return self.classes(x), self.boxes(x)


MODELS = {"retinanet": retinanet, "fcos": fcos, "faster_rcnn": faster_rcnn}
every_model = pytest.mark.parametrize("name", MODELS)


def model_of(name: str):
    torch.manual_seed(0)
    return MODELS[name]().train()


def batch() -> tuple[list, list]:
    """Images of 64 pixels: a car with its plate, which sticks out, and a plate of no car; a car; nothing."""
    torch.manual_seed(0)
    boxes = [[4.0, 8, 44, 40], [36, 20, 52, 28], [2, 52, 18, 60]], [[10.0, 10, 50, 50]], []
    labels = [CAR, PLATE, PLATE], [CAR], []
    targets = [
        {"boxes": torch.tensor(each).view(-1, 4), "labels": torch.tensor(of_image, dtype=torch.int64)}
        for each, of_image in zip(boxes, labels, strict=True)
    ]
    return [painted(each["boxes"], each["labels"], 64) for each in targets], targets


def step(model, given=None):
    torch.manual_seed(1)  # Faster R-CNN draws its samples
    model.zero_grad()
    losses = model(*copy.deepcopy(given or batch()))
    total = sum(losses.values())
    total.backward()
    return losses, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@every_model
def test_weight_0_is_the_stock_loss(name):
    model = model_of(name)
    stock, gradient = step(model)
    enable_icr(model, PAIRS, NAMES, weight=0.0)
    ours, our_gradient = step(model)
    assert ours.pop("loss_icr") == 0
    assert {key: value.item() for key, value in ours.items()} == {key: value.item() for key, value in stock.items()}
    assert (our_gradient - gradient).norm() <= 1e-5 * gradient.norm()


@every_model
def test_weight_1_is_the_mean_penalty_of_the_paired(name):
    model = model_of(name)
    handle = enable_icr(model, PAIRS, NAMES, weight=1.0)
    losses, _ = step(model)
    steps, positives, parts, paired, mean = handle.statistics[:5]
    assert steps == 1 and positives > parts > paired > 0
    assert losses["loss_icr"].item() == pytest.approx(mean, rel=1e-6)
    assert 0 < mean <= 1  # FCOS begins with boxes of no size
    enable_icr(model, PAIRS, NAMES, weight=3.0)
    assert step(model)[0]["loss_icr"].item() == pytest.approx(3 * mean, rel=1e-6)


def of_anchors(**options) -> tuple[dict, list, list, list]:
    """The losses of a RetinaNet with a regression of zeros, which predicts its anchors: with the boxes, the anchors
    and the matches of its head."""
    model = model_of("retinanet")
    nn.init.zeros_(model.head.regression_head.bbox_reg.weight)
    seen = []
    stock = type(model.head).compute_loss

    def look(head, targets, outputs, anchors, matched):
        seen.extend(([each["boxes"] for each in targets], anchors, matched))
        return stock(head, targets, outputs, anchors, matched)

    enable_icr(model, PAIRS, NAMES, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.head), "compute_loss", look)
        losses, _ = step(model)
    return losses, *seen


def test_the_penalty_by_hand():
    """Each positive anchor of the plate against the car."""
    losses, boxes, anchors, matched = of_anchors(weight=1.0)
    x1, y1, x2, y2 = boxes[0][0].tolist()
    penalties = []
    for a, b, c, d in anchors[0][matched[0] == 1].tolist():
        inside = max(min(c, x2) - max(a, x1), 0) * max(min(d, y2) - max(b, y1), 0)
        penalties.append(1 - inside / ((c - a) * (d - b)))
    assert penalties
    assert losses["loss_icr"].item() == pytest.approx(sum(penalties) / len(penalties), abs=1e-5)


@every_model
def test_the_uniform_term_is_a_loss_of_its_own(name):
    model = model_of(name)
    enable_icr(model, PAIRS, NAMES, weight=0.0)
    stock, gradient = step(model)
    handle = enable_icr(model, PAIRS, NAMES, weight=0.0, box_term=3.0)
    losses, ours = step(model)
    assert handle.statistics.chosen == handle.statistics.parts > handle.statistics.paired
    assert losses.pop("loss_uniform").item() == pytest.approx(3 * handle.statistics.mean_loss, rel=1e-6)
    assert {key: value.item() for key, value in losses.items()} == {key: value.item() for key, value in stock.items()}
    assert 0 < handle.statistics.mean_loss <= 1
    # FCOS begins with boxes of no size, whose IoU has no gradient yet.
    assert bool((ours - gradient).norm() > 1e-3 * gradient.norm()) == (name != "fcos")


def test_the_uniform_term_by_hand():
    """torchvision's own IoU of each positive anchor of both plates."""
    from torchvision.ops import box_iou

    losses, boxes, anchors, matched = of_anchors(weight=0.0, box_term=1.0)
    ious = torch.cat([box_iou(anchors[0][matched[0] == row], boxes[0][row : row + 1])[:, 0] for row in (1, 2)])
    assert len(ious) > 1
    assert losses["loss_uniform"].item() == pytest.approx(1 - ious.mean().item(), abs=1e-5)


@every_model
def test_training_lowers_the_term(name):
    model = model_of(name)
    enable_icr(model, PAIRS, NAMES, weight=5.0, penalty="containment+pull")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    terms = []
    for _ in range(40):
        terms.append(step(model)[0]["loss_icr"].item())
        optimizer.step()
    assert sum(terms[-5:]) / 5 < 0.6 * terms[0]


def test_known_pairs_survive_resizing():
    model, (images, targets) = model_of("retinanet"), batch()
    for target in targets:
        target["boxes"] = 2 * target["boxes"]
    images = [painted(each["boxes"], each["labels"], 128) for each in targets]
    handle = enable_icr(model, PAIRS, NAMES)
    for target, parents in zip(targets, ([-1, -2, -2], [-1], []), strict=True):
        target["parent_idx"] = torch.tensor(parents, dtype=torch.int64)
    losses, _ = step(model, (images, targets))
    assert handle.statistics.paired == 0 and losses["loss_icr"] == 0
    targets[0]["parent_idx"] = torch.tensor([-1, 0, 0])
    handle.reset()
    step(model, (images, targets))
    assert handle.statistics.paired == handle.statistics.parts > 0


@every_model
def test_without_objects(name):
    model, (images, _) = model_of(name), batch()
    handle = enable_icr(model, PAIRS, NAMES)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses, gradient = step(model, (images, [empty] * 3))
    assert losses["loss_icr"] == 0 and gradient.isfinite().all()
    assert handle.statistics[:4] == (1, 0, 0, 0)


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
@pytest.mark.parametrize("value", [60000.0, float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_without_objects_predictions_may_be_anything(name, value, dtype):
    """In half precision sums and decoded boxes overflow; the term is 0 all the same, and so is its gradient."""
    model = model_of(name)
    enable_icr(model, PAIRS, NAMES)
    regression = torch.full((2, 100, 4), value, dtype=dtype, requires_grad=True)
    outputs = {
        "cls_logits": torch.zeros(2, 100, 4),
        "bbox_regression": regression,
        "bbox_ctrness": torch.zeros(2, 100, 1),
    }
    anchors, nothing = torch.tensor([[0.0, 0, 8, 8]]).expand(100, 4), torch.full((100,), -1)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = model.head.compute_loss([empty] * 2, outputs, [anchors] * 2, [nothing] * 2)
    losses["loss_icr"].backward()
    assert losses["loss_icr"].item() == 0
    assert torch.equal(regression.grad, torch.zeros_like(regression))


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_half_precision_decodes_in_full(name):
    """Right of pixel 1024 float16 knows whole pixels: a plate reaches out of its car by a quarter of its width."""
    model = model_of(name)
    enable_icr(model, PAIRS, NAMES, weight=1.0)
    plate = torch.tensor([1501.75, 10.25, 1533.75, 42.25])
    # RetinaNet predicts its anchor; FCOS half the side of its anchor from the middle to every edge.
    regression = torch.full((1, 1, 4), 0.5 if name == "fcos" else 0.0, dtype=torch.float16)
    outputs = {"cls_logits": torch.zeros(1, 1, 4), "bbox_regression": regression, "bbox_ctrness": torch.zeros(1, 1, 1)}
    car = torch.tensor([1400.0, 0, 1525.75, 60])
    targets = [{"boxes": torch.stack((plate, car)), "labels": torch.tensor([PLATE, CAR])}]
    losses = model.head.compute_loss(targets, outputs, [plate[None]], [torch.tensor([0])])
    assert losses["loss_icr"].item() == pytest.approx(8 / 32, abs=1e-6)


@every_model
def test_copies_keep_the_term_and_state_dicts_are_ordinary(name):
    model = model_of(name)
    stock = step(model)[0]
    handle = enable_icr(model, PAIRS, NAMES)
    ours = step(model)[0]["loss_icr"]
    assert set(model.state_dict()) == set(model_of(name).state_dict())
    copied = copy.deepcopy(model)
    assert step(copied)[0]["loss_icr"] == ours
    assert copied.eval()(batch()[0])[0].keys() >= {"boxes", "scores", "labels"}
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert step(torch.load(file, weights_only=False))[0]["loss_icr"] == ours
    handle.disable()
    assert step(model)[0] == stock
    assert step(copied.train())[0]["loss_icr"] == ours


@every_model
def test_handles_are_copied_and_pickled(name):
    """Alone a copy has the statistics; as an attribute of its model it goes on counting."""
    model = model_of(name)
    model.icr = handle = enable_icr(model, PAIRS, NAMES)
    step(model)
    statistics = handle.statistics
    for copied in copy.deepcopy(handle), pickle.loads(pickle.dumps(handle)):
        assert copied.statistics == statistics
        with pytest.raises(RuntimeError, match="disable: expected the handle of a model, got a copy of one"):
            copied.disable()
    for copied in copy.deepcopy(model), pickle.loads(pickle.dumps(model)):
        step(copied)
        assert copied.icr.statistics[:4] == (2, *(2 * count for count in statistics[1:4]))
    assert handle.statistics == statistics


def test_after_inference():
    model = model_of("retinanet")
    handle = enable_icr(model, PAIRS, NAMES)
    with torch.inference_mode():
        model(*batch())  # in training mode: losses of a validation set
    assert handle.statistics.steps == 0
    step(model)
    assert handle.statistics.steps == 1


@pytest.mark.parametrize(
    ("pairs", "options", "error", "message"),
    [
        (
            {"licence": "car"},
            {},
            ValueError,
            "pairs: expected classes among background, car, plate, tree, got 'licence'",
        ),
        (PAIRS, {"weight": "1"}, TypeError, "weight: expected a number, got str"),
        (PAIRS, {"box_term": "1"}, TypeError, "box_term: expected a number, got str"),
        (PAIRS, {"penalty": "overlap"}, ValueError, "penalty: expected one of containment"),
    ],
)
def test_errors(pairs, options, error, message):
    with pytest.raises(error, match=message):
        enable_icr(model_of("retinanet"), pairs, NAMES, **options)


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="model: expected a RetinaNet, FCOS or FasterRCNN of torchvision, got Backbone"):
        enable_icr(Backbone(), PAIRS, NAMES)


@every_model
@pytest.mark.parametrize("names", [["car", "plate"], [*NAMES, "bus"]], ids=["fewer", "more"])
def test_names_are_one_for_each_class(name, names):
    """Labels would be shifted, or some without a name. A mapping may leave some out."""
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

    model = model_of(name)
    if name == "faster_rcnn":
        enable_icr(model, PAIRS, names).disable()  # how many classes this predictor has cannot be known
        model.roi_heads.box_predictor = FastRCNNPredictor(16, 4)
    message = (
        f"names: expected one for each of the 4 classes of the model, or a mapping from label to name, got {len(names)}"
    )
    with pytest.raises(ValueError, match=rf"^{message}$"):
        enable_icr(model, PAIRS, names)
    assert "loss_icr" not in step(model)[0]
    for accepted in (NAMES, {CAR: "car", PLATE: "plate"}):
        handle = enable_icr(model, PAIRS, accepted)
        step(model)
        assert handle.statistics.paired > 0


def test_a_run_without_a_pair_is_warned_of_after_the_steps_that_the_page_names():
    page = (Path(__file__).parents[2] / "docs" / "frameworks.md").read_text()
    (named,) = re.findall(r"in whose first (\d+) training steps no part is paired", " ".join(page.split()))
    record = Record(Relations({"plate": "car"}, ["car", "plate"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(int(named) - 1):
            record.step()
    with pytest.warns(UserWarning, match=f"in {named} training steps no part was paired"):
        record.step()
