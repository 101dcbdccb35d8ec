"""Models of transformers with the criterion of a fork: its box losses stay, with the penalty beside them."""

import types

import pytest
import torch

import icr_kernels as icr
from icr_kernels.integrations.transformers import enable_icr
from transformers_models import NAMES, PAIRS, batch, model_of, step


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
