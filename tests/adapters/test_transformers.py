"""The adapter for transformers: tiny models of eight families, with random weights, offline."""

import copy
import pickle
import subprocess
import sys
import types
import warnings

import pytest
import torch

from benchmarks.torchvision_without_extension import make_importable
from frameworks import need, painted

need("transformers")
make_importable()  # a torchvision that does not import keeps transformers from importing its models

import transformers  # noqa: E402

import icr_kernels as icr  # noqa: E402
from icr_kernels.integrations import handle  # noqa: E402
from icr_kernels.integrations.transformers import enable_icr  # noqa: E402

NAMES = {0: "car", 1: "plate", 2: "tree"}
CLASSES = {"id2label": NAMES, "label2id": {name: label for label, name in NAMES.items()}}
PAIRS = {"plate": "car"}


def resnet(kind, *stages: str):
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    return kind(**sizes, out_features=list(stages))


def real_time(name: str, backbone=transformers.RTDetrResNetConfig):
    """RT-DETR, its second version, D-FINE."""
    config = getattr(transformers, f"{name}Config")(
        backbone_config=resnet(backbone, "stage2", "stage3", "stage4"),
        encoder_hidden_dim=32,
        encoder_in_channels=[16, 24, 32],
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        d_model=32,
        num_queries=20,
        decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=32,
        decoder_layers=2,
        num_denoising=10,
        **CLASSES,
    )
    return getattr(transformers, f"{name}ForObjectDetection")(config)


def detr(name: str, *stages: str, **options):
    """DETR, and its conditional and deformable forms."""
    config = getattr(transformers, f"{name}Config")(
        backbone_config=resnet(transformers.ResNetConfig, *stages),
        use_timm_backbone=False,
        backbone=None,
        num_queries=20,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        d_model=32,
        auxiliary_loss=True,
        **options,
        **CLASSES,
    )
    return getattr(transformers, f"{name}ForObjectDetection")(config)


def light_weight(name: str, backbone, **options):
    """LW-DETR and RF-DETR: groups of queries, and a plain transformer as the backbone."""
    backbone = backbone(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
        out_indices=[1, 2],
        **options,
    )
    config = getattr(transformers, f"{name}Config")(
        backbone_config=backbone,
        num_queries=10,
        d_model=32,
        decoder_layers=2,
        decoder_ffn_dim=32,
        decoder_self_attention_heads=2,
        decoder_cross_attention_heads=2,
        group_detr=2,
        num_feature_levels=1,
        **({"projector_scale_factors": [1.0]} if name == "LwDetr" else {}),
        **CLASSES,
    )
    return getattr(transformers, f"{name}ForObjectDetection")(config)


FAMILIES = {
    "rt_detr": lambda: real_time("RTDetr"),
    "rt_detr_v2": lambda: real_time("RTDetrV2"),
    "d_fine": lambda: real_time("DFine"),
    "detr": lambda: detr("Detr", "stage4"),
    "conditional_detr": lambda: detr("ConditionalDetr", "stage4"),
    "deformable_detr": lambda: detr("DeformableDetr", "stage2", "stage3", "stage4", num_feature_levels=3),
    "lw_detr": lambda: light_weight(
        "LwDetr", transformers.LwDetrViTConfig, pretrain_image_size=64, num_windows=4, window_block_indices=[0]
    ),
    "rf_detr": lambda: light_weight("RfDetr", transformers.RfDetrDinov2Config, num_windows=2),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def model_of(family: str, seed: int = 0):
    torch.manual_seed(seed)
    return FAMILIES[family]().train()


def batch(dtype: torch.dtype = torch.float32) -> dict:
    """Two images: a car with its plate, a plate of no car and a tree; and nothing but a car."""
    torch.manual_seed(0)
    # Not on the grid of a model's first proposals, where edges would touch: torch.clamp has a derivative there.
    boxes = [
        [0.2013, 0.3029, 0.2071, 0.2043],
        [0.2917, 0.3031, 0.0973, 0.0519],
        [0.9011, 0.1007, 0.0983, 0.0507],
        [0.5023, 0.6989, 0.2977, 0.3019],
    ]
    labels = [
        {"class_labels": torch.tensor([0, 1, 1, 2]), "boxes": torch.tensor(boxes, dtype=dtype)},
        {"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.3017, 0.5009, 0.3979, 0.4021]], dtype=dtype)},
    ]
    images = [painted(corners(each["boxes"]) * 64, each["class_labels"], 64) for each in labels]
    return {"pixel_values": torch.stack(images).to(dtype), "labels": labels}


def corners(boxes: torch.Tensor) -> torch.Tensor:
    return torch.cat((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), 1)


def step(model, given: dict, seed: int = 1):
    """The outputs of a training step, and the gradient of all weights."""
    torch.manual_seed(seed)  # denoising queries and dropout are drawn
    model.zero_grad()
    outputs = model(**given)
    outputs.loss.backward()
    return outputs, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@every_family
def test_weight_0_is_the_stock_loss(family):
    """In double precision where the model can, so that rounding tips no edge over another."""
    dtype = torch.float32 if family in ("detr", "d_fine") else torch.float64
    model, given = model_of(family).to(dtype), batch(dtype)
    stock, gradient = step(model, given)
    enable_icr(model, PAIRS, weight=0.0, denoising=True)
    ours, our_gradient = step(model, given)
    assert ours.loss.item() == pytest.approx(stock.loss.item(), rel=1e-5)
    assert (our_gradient - gradient).norm() <= 1e-5 * gradient.norm()
    for name, value in stock.loss_dict.items():
        assert torch.as_tensor(ours.loss_dict[name]).item() == pytest.approx(
            torch.as_tensor(value).item(), rel=1e-5, abs=1e-6
        )
    assert set(ours.loss_dict) == {*stock.loss_dict, "icr_penalty"}


@every_family
def test_the_term_is_in_the_loss_and_its_gradient(family):
    """The plate is said to belong to the tiny box in the corner, where no prediction lies."""
    model, given = model_of(family), batch()
    for label, parents in zip(given["labels"], ([-1, 2, -1, -1], [-1]), strict=True):
        label["parent_idx"] = torch.tensor(parents)
    enable_icr(model, PAIRS, weight=0.0)
    stock, stock_gradient = step(model, given)
    enable_icr(model, PAIRS, weight=1.0, penalty="containment+pull")
    ours, gradient = step(model, given)
    assert (ours.loss - stock.loss).item() > 0.1
    assert (gradient - stock_gradient).norm() > 1e-3


def with_iou(losses, pred, target):
    iou = icr.box_iou_loss(pred, target, loss="iou", reduction="none", box_format="cxcywh")
    return {**losses, "loss_giou": iou.sum() / 5}


def with_smooth_l1(losses, pred, target):
    smooth = torch.nn.functional.smooth_l1_loss(pred, target, reduction="sum")
    return {**losses, "loss_bbox": smooth / 5}


def with_another_gradient(losses, pred, target):
    """The same values."""
    giou = losses["loss_giou"]
    return {**losses, "loss_giou": giou.detach() + 0.5 * (giou - giou.detach())}


def with_one_more(losses, pred, target):
    return {**losses, "loss_size": losses["loss_bbox"] / 2}


def fork(model, change, uses_more: bool = False):
    """The model with a criterion of its own: the box losses are changed."""
    stock = model.loss_function
    base = stock.__globals__["ImageLoss"]

    class ForkedLoss(base):
        def loss_boxes(self, outputs, targets, indices, num_boxes):
            assert not uses_more or self.num_classes == len(NAMES)
            pred = outputs["pred_boxes"][self._get_source_permutation_idx(indices)]
            target = torch.cat([each["boxes"][rows] for each, (_, rows) in zip(targets, indices, strict=True)])
            return change(super().loss_boxes(outputs, targets, indices, num_boxes), pred, target)

    model.loss_function = types.FunctionType(
        stock.__code__, {**stock.__globals__, "ImageLoss": ForkedLoss}, stock.__name__, stock.__defaults__
    )
    return model


@pytest.mark.parametrize("uses_more", [False, True], ids=["of boxes", "of more than boxes"])
@pytest.mark.parametrize("change", [with_iou, with_smooth_l1, with_another_gradient, with_one_more])
def test_other_box_losses_stay(change, uses_more):
    """A fork keeps its losses, and has the penalty beside them; a warning says so."""
    given = batch()
    stock, stock_gradient = step(fork(model_of("detr"), change), given)
    model = fork(model_of("detr"), change, uses_more)
    with pytest.warns(UserWarning, match="the box losses of ForkedLoss are not L1 and GIoU; they stay"):
        enable_icr(model, PAIRS, weight=0.0)
    ours, gradient = step(model, given)
    assert {name: float(value) for name, value in ours.loss_dict.items() if name != "icr_penalty"} == pytest.approx(
        {name: float(value) for name, value in stock.loss_dict.items()}, rel=1e-6
    )
    assert (gradient - stock_gradient).norm() <= 1e-6 * stock_gradient.norm()
    with pytest.warns(UserWarning, match="they stay"):
        enable_icr(model, PAIRS, weight=3.0, auxiliary=False)
    ours, _ = step(model, given)
    # One plate of five boxes has a car.
    assert float(ours.loss_dict["loss_giou"] - stock.loss_dict["loss_giou"]) == pytest.approx(
        3.0 * float(ours.loss_dict["icr_penalty"]) / 5, abs=1e-6
    )
    assert float(ours.loss_dict["icr_penalty"]) > 0


def test_a_fork_without_giou():
    model = fork(model_of("detr"), lambda losses, pred, target: {"loss_bbox": losses["loss_bbox"]})
    with pytest.warns(UserWarning, match="they stay"):
        enable_icr(model, PAIRS)
    with pytest.raises(ValueError, match="loss_boxes: expected loss_giou among its losses, got loss_bbox"):
        step(model, batch())


@every_family
def test_stock_box_losses_are_replaced(family, monkeypatch):
    """So none of the supported families makes the matrix of all matched pairs."""
    model, given = model_of(family), batch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        enable_icr(model, PAIRS)

    def called(*arguments):
        raise AssertionError("the stock box losses were called")

    for base in of_criterion(model):
        if "loss_boxes" in vars(base):
            monkeypatch.setattr(base, "loss_boxes", called)
    step(model, given)


def of_criterion(model) -> tuple[type, ...]:
    """The classes of the stock criterion."""
    code = model.loss_function.stock
    found = [code.__globals__.get(name) for name in code.__code__.co_names]
    (criterion,) = [each for each in found if isinstance(each, type) and hasattr(each, "loss_boxes")]
    return criterion.__mro__


@pytest.mark.parametrize("family", ["detr", "rt_detr"])
def test_logits_that_are_none(family):
    """The stock matchers give a query with NaN to no target; with the penalty, too, matching and box losses go on."""
    model, given = model_of(family).eval(), batch()
    outputs = model(**given)
    icr_handle = enable_icr(model, PAIRS, weight=0.0, auxiliary=False)
    function = model.loss_function
    seen = []
    for loss in function.stock, function:
        logits = outputs.logits.detach().clone()
        logits[:, 3] = torch.nan
        pred = outputs.pred_boxes.detach().clone().requires_grad_()
        config = copy.copy(model.config)
        config.auxiliary_loss = False
        _, parts, _ = loss(logits, given["labels"], torch.device("cpu"), pred, config)
        parts["loss_giou"].backward()
        assert pred.grad.isfinite().all() and not pred.grad[:, 3].any() and pred.grad.any()
        seen.append((float(parts["loss_giou"]), float(parts["loss_bbox"])))
    assert seen[1] == pytest.approx(seen[0], rel=1e-5)
    assert icr_handle.statistics.paired == 1


def test_training_lowers_the_penalty():
    model, given = model_of("detr"), batch()
    enable_icr(model, PAIRS, weight=10.0, penalty="containment+pull")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    penalties = []
    for _ in range(25):
        penalties.append(float(step(model, given)[0].loss_dict["icr_penalty"]))
        optimizer.step()
    assert sum(penalties[-5:]) / 5 < 0.5 * penalties[0]


def of_the_matched(model, given: dict) -> list[tuple]:
    """Predictions and targets that the stock criterion matched at the last layer: image, box, row of the target."""
    outputs = model(**given)
    from transformers.loss.loss_for_object_detection import HungarianMatcher

    config = model.config
    matcher = HungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)
    indices = matcher({"logits": outputs.logits, "pred_boxes": outputs.pred_boxes}, given["labels"])
    return [
        (image, outputs.pred_boxes[image, query], row)
        for image, (queries, rows) in enumerate(indices)
        for query, row in zip(queries, rows, strict=True)
    ]


def test_the_penalty_by_hand():
    """In a model without anything random: what the matched plate leaves of its car, in corners."""
    model, given = model_of("detr").eval(), batch()
    ((_, box, _),) = [each for each in of_the_matched(model, given) if each[0] == 0 and each[2] == 1]
    stock = model(**given)
    handle = enable_icr(model, PAIRS, weight=3.0, auxiliary=False)
    outputs = model(**given)
    cx, cy, w, h = box.tolist()
    car = corners(given["labels"][0]["boxes"])[0].tolist()
    inside = [
        max(min(c + s / 2, high) - max(c - s / 2, low), 0) / s
        for c, s, low, high in ((cx, w, car[0], car[2]), (cy, h, car[1], car[3]))
    ]
    penalty = 1 - inside[0] * inside[1]
    assert float(outputs.loss_dict["icr_penalty"]) == pytest.approx(penalty, abs=1e-5)
    boxes, coefficient = 5, model.config.giou_loss_coefficient
    assert (outputs.loss - stock.loss).item() == pytest.approx(coefficient * 3.0 * penalty / boxes, abs=1e-4)
    statistics = handle.statistics
    assert statistics[:4] == (1, 5, 2, 1) and statistics.mean_penalty == pytest.approx(penalty, abs=1e-5)


def test_the_uniform_term_by_hand():
    """The mean of 1 - IoU of both matched plates, times the coefficient of the GIoU loss; the penalty beside it."""
    model, given = model_of("detr").eval(), batch()
    targets = corners(given["labels"][0]["boxes"])
    losses = []
    for image, box, row in of_the_matched(model, given):
        if image == 0 and row in (1, 2):
            ours = corners(box[None])[0]
            inside = (torch.minimum(ours[2:], targets[row, 2:]) - torch.maximum(ours[:2], targets[row, :2])).clamp(
                min=0
            )
            areas = [(each[2:] - each[:2]).prod() for each in (ours, targets[row])]
            losses.append(float(1 - inside.prod() / (sum(areas) - inside.prod())))
    assert len(losses) == 2
    enable_icr(model, PAIRS, weight=3.0, auxiliary=False)
    without = model(**given)
    handle = enable_icr(model, PAIRS, weight=3.0, box_term=2.0, auxiliary=False)
    outputs = model(**given)
    mean = sum(losses) / 2
    expected = model.config.giou_loss_coefficient * 2.0 * mean
    assert mean > 0.1 and (outputs.loss - without.loss).item() == pytest.approx(expected, abs=1e-4)
    assert handle.statistics.chosen == 2 and handle.statistics.mean_loss == pytest.approx(mean, abs=1e-5)
    assert float(outputs.loss_dict["icr_uniform"]) == pytest.approx(mean, abs=1e-5)


def test_the_uniform_term_beside_losses_that_stay():
    """A fork's criterion keeps its losses, and the term is added to its GIoU."""
    fork_of = fork(model_of("detr").eval(), with_smooth_l1)
    given = batch()
    with pytest.warns(UserWarning, match="they stay"):
        enable_icr(fork_of, PAIRS, weight=0.0, auxiliary=False)
    without = fork_of(**given)
    with pytest.warns(UserWarning, match="they stay"):
        handle = enable_icr(fork_of, PAIRS, weight=0.0, box_term=2.0, auxiliary=False)
    added = (fork_of(**given).loss - without.loss).item()
    assert added == pytest.approx(fork_of.config.giou_loss_coefficient * 2.0 * handle.statistics.mean_loss, abs=1e-4)


@pytest.mark.parametrize("family", ["rt_detr", "detr", "lw_detr"])
def test_where_the_terms_apply(family):
    """Each of the two options adds to the loss; only RT-DETR has denoising queries."""
    given, losses = batch(), {}
    for auxiliary in (False, True):
        for denoising in (False, True):
            model = model_of(family)
            for terms in ({"weight": 1.0, "penalty": "pull"}, {"weight": 0.0, "box_term": 1.0}):
                enable_icr(model, PAIRS, auxiliary=auxiliary, denoising=denoising, **terms)
                losses["box_term" in terms, auxiliary, denoising] = step(model, given)[0].loss.item()
    has_denoising = family == "rt_detr"
    for kind in (False, True):
        assert losses[kind, True, False] > losses[kind, False, False] + 1e-4
        assert (losses[kind, False, True] > losses[kind, False, False] + 1e-5) == has_denoising


def test_known_pairs():
    """A parent_idx beside the boxes takes precedence over geometry."""
    model, given = model_of("detr"), batch()
    handle = enable_icr(model, PAIRS)
    for label, parents in zip(given["labels"], ([-1, -2, 0, -1], [-1]), strict=True):
        label["parent_idx"] = torch.tensor(parents)
    step(model, given)
    assert handle.statistics.paired == 1
    given["labels"][0]["parent_idx"] = torch.tensor([-1, 0, 0, -1])
    handle.reset()
    step(model, given)
    assert handle.statistics.paired == 2


@every_family
def test_without_objects(family):
    model, given = model_of(family), batch()
    enable_icr(model, PAIRS)
    for label in given["labels"]:
        label["class_labels"], label["boxes"] = label["class_labels"][:0], label["boxes"][:0]
    outputs, gradient = step(model, given)
    assert outputs.loss.isfinite() and gradient.isfinite().all()


def test_disable_and_enable_again():
    model, given = model_of("rt_detr"), batch()
    stock = step(model, given)[0].loss
    first = enable_icr(model, PAIRS, weight=5.0, penalty="pull")
    once = step(model, given)[0].loss
    second = enable_icr(model, PAIRS, weight=5.0, penalty="pull")
    assert step(model, given)[0].loss == once != stock
    assert first.statistics.steps == second.statistics.steps == 1
    second.disable()
    assert step(model, given)[0].loss == stock


def test_checkpoints_are_ordinary(tmp_path):
    """Weights load where this package cannot be imported, and a loaded model has the stock loss."""
    model, given = model_of("rt_detr"), batch()
    stock = step(model, given)[0].loss
    enable_icr(model, PAIRS, weight=5.0, penalty="pull")
    ours = step(model, given)[0].loss
    copied = copy.deepcopy(model)
    assert step(copied, given)[0].loss == ours
    torch.save(model, tmp_path / "whole.pt")
    assert step(torch.load(tmp_path / "whole.pt", weights_only=False), given)[0].loss == ours
    model.save_pretrained(tmp_path)
    loaded = transformers.RTDetrForObjectDetection.from_pretrained(tmp_path).train()
    assert step(loaded, given)[0].loss == stock
    script = (
        "import sys; sys.modules['icr_kernels'] = sys.modules['torchvision'] = None\n"
        "from transformers import RTDetrForObjectDetection\n"
        f"RTDetrForObjectDetection.from_pretrained({str(tmp_path)!r})"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_handles_are_copied_and_pickled():
    """Alone a copy has the statistics; with its model it goes on counting, and so does what training loops store."""
    model, given = model_of("detr"), batch()
    icr_handle = enable_icr(model, PAIRS, weight=1.0)
    step(model, given)
    statistics = icr_handle.statistics
    for copied in copy.deepcopy(icr_handle), pickle.loads(pickle.dumps(icr_handle)):
        assert copied.statistics == statistics and repr(copied) == repr(icr_handle)
        copied.reset()
        assert copied.statistics.steps == 0
        with pytest.raises(RuntimeError, match="disable: expected the handle of a model, got a copy of one"):
            copied.disable()
    state = {"model": model, "icr": icr_handle}
    for copied in copy.deepcopy(state), pickle.loads(pickle.dumps(state)):
        step(copied["model"], given)
        assert copied["icr"].statistics[:4] == (2, 10, 4, 2)
    assert icr_handle.statistics == statistics
    icr_handle.disable()
    step(model, given)
    assert icr_handle.statistics == statistics


def test_after_inference():
    """Validation in inference mode leaves nothing that training could stumble over, and is not counted."""
    model, given = model_of("detr"), batch()
    handle = enable_icr(model, PAIRS)
    with torch.inference_mode():
        model.eval()(**given)
    assert handle.statistics.steps == handle.statistics.positives == 0
    step(model.train(), given)
    assert handle.statistics[:4] == (1, 5, 2, 1)


def test_no_pairs_for_long_is_worth_a_warning(monkeypatch):
    monkeypatch.setattr(handle, "STEPS_WITHOUT_PAIRS", 3)
    model, given = model_of("detr"), batch()
    enable_icr(model, {"tree": "plate"})
    step(model, given)
    step(model, given)
    with pytest.warns(UserWarning, match=r"in 3 training steps no part was paired with a whole; Relations\({'tree'"):
        step(model, given)
    for _ in range(4):
        step(model, given)


@pytest.mark.parametrize(
    ("pairs", "options", "error", "message"),
    [
        ({"licence": "car"}, {}, ValueError, "pairs: expected classes among car, plate, tree, got 'licence'"),
        (
            PAIRS,
            {"weight": -1.0},
            ValueError,
            "weight: expected a number of at least 0 that is finite in float32, got -1.0",
        ),
        (PAIRS, {"penalty": "overlap"}, ValueError, "penalty: expected one of containment"),
        (PAIRS, {"min_containment": 2}, ValueError, "min_containment: expected a number from 0 to 1, got 2"),
    ],
)
def test_errors(pairs, options, error, message):
    with pytest.raises(error, match=message):
        enable_icr(model_of("detr"), pairs, **options)


def test_models_that_are_no_detectors():
    with pytest.raises(TypeError, match="model: expected an object detection model of transformers, got Linear"):
        enable_icr(torch.nn.Linear(2, 2), PAIRS)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", **CLASSES)
    with pytest.raises(ValueError, match="model: expected a detector whose loss has a criterion with loss_boxes"):
        enable_icr(transformers.ResNetForImageClassification(config), PAIRS)


def test_missing_or_unsupported(monkeypatch):
    with pytest.raises(ImportError, match="no_such_framework is not installed; pip install 'no_such_framework>=1,<2'"):
        handle.framework("no_such_framework", "1", "2")
    # It is not always the module that was imported first: transformers replaces itself.
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "4.57.1")
    with pytest.raises(
        ImportError, match=r"transformers: expected a version from 5\.0 on and below 6, got 4\.57\.1 in /"
    ):
        handle.framework("transformers", "5.0", "6")


def test_package_imports_without_the_framework():
    script = "import sys, icr_kernels.integrations; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert icr.Relations(PAIRS, NAMES)
