"""The adapter for transformers, on tiny models of eight families: its terms."""

import copy
import warnings

import pytest
import torch

from icr_kernels.integrations.transformers import enable_icr
from transformers_models import PAIRS, batch, corners, every_family, model_of, step


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
