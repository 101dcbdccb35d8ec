"""Criteria of forks of the DETR family: box losses that are not L1 and GIoU stay, with the penalty beside them."""

import warnings

import pytest
import torch

from detr_criteria import (
    BOXES,
    NAMES,
    PAIRS,
    SCENE,
    STOCK,
    Groups,
    Weighted,
    added,
    assert_added,
    case,
    every_kind,
    gathered,
    mean_loss,
    overlaps,
    penalties,
    step,
)
from icr_kernels.integrations.detr import enable_icr

# Losses of forks, from those of the stand-in.


def with_iou(losses, pred, target, num_boxes):
    return {**losses, "loss_giou": (1 - overlaps(pred, target)[0]).sum() / num_boxes}


def with_smooth_l1(losses, pred, target, num_boxes):
    smooth = torch.nn.functional.smooth_l1_loss(pred, target, reduction="sum")
    return {**losses, "loss_bbox": smooth / num_boxes}


def with_another_gradient(losses, pred, target, num_boxes):
    """The same values."""
    giou = losses["loss_giou"]
    return {**losses, "loss_giou": giou.detach() + 0.5 * (giou - giou.detach())}


def with_one_more(losses, pred, target, num_boxes):
    return {**losses, "loss_size": losses["loss_bbox"] / 2}


def without_giou(losses, pred, target, num_boxes):
    return {"loss_bbox": losses["loss_bbox"]}


def fork(kind, change, uses_more=False, **options):
    class Fork(STOCK[kind]):
        def loss_boxes(self, outputs, targets, indices, num_boxes, **named):
            assert not uses_more or "pred_logits" in outputs
            where, target = gathered(outputs, targets, indices)
            losses = super().loss_boxes(outputs, targets, indices, num_boxes, **named)
            return change(losses, outputs["pred_boxes"][where], target, num_boxes)

    return Fork(**options)


@pytest.mark.parametrize("uses_more", [False, True], ids=["of boxes", "of more than boxes"])
@pytest.mark.parametrize("change", [with_iou, with_smooth_l1, with_another_gradient, with_one_more])
@every_kind
def test_other_box_losses_stay(kind, change, uses_more):
    """A fork keeps its losses, with the weights of its boxes, and has the penalty beside them; a warning says so."""
    given = case(kind)
    criterion = fork(kind, change, uses_more, **({} if kind == "groups" else {"weighs_boxes": True}))
    stock, gradient = step(criterion, given)
    with pytest.warns(UserWarning, match="the box losses of Fork are not L1 and GIoU; they stay, and the penalty is"):
        enable_icr(criterion, PAIRS, NAMES, weight=0.0)
    losses, our_gradient = step(criterion, given)
    assert_added(losses, stock, {})
    assert (our_gradient - gradient).norm() <= 1e-9 * gradient.norm()
    with pytest.warns(UserWarning, match="they stay"):
        handle = enable_icr(criterion, PAIRS, NAMES, weight=0.5, box_term=0.25, denoising=True)
    losses, _ = step(criterion, given)
    expected = {
        suffix: given.coefficient * 0.25 * mean_loss(given, suffix) + added(given, suffix, 0.5)
        for suffix in given.layers
    }
    assert_added(losses, stock, expected)
    assert handle.statistics.steps == 1 and handle.statistics.paired == len(penalties(given, ""))


def test_the_same_losses_under_another_name_are_replaced(monkeypatch):
    """What decides is what a subclass computes, not that it is one; nothing is said, and its own are not called."""
    criterion = fork("weighted", lambda losses, *rest: losses)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        enable_icr(criterion, PAIRS, NAMES)

    def called(*arguments, **named):
        raise AssertionError("the stock box losses were called")

    monkeypatch.setattr(Weighted, "loss_boxes", called)
    step(criterion, case("weighted"))


def test_the_warning_is_of_the_line_that_enables():
    criterion = fork("weighted", with_iou)

    def of_another_file():
        namespace = {"enable": lambda: enable_icr(criterion, PAIRS, NAMES)}
        exec(compile("enable()", "another_file.py", "exec"), namespace)

    with pytest.warns(UserWarning, match="they stay") as seen:
        of_another_file()
    assert seen[0].filename == __file__


@every_kind
def test_a_criterion_without_giou(kind):
    criterion = fork(kind, without_giou)
    with pytest.warns(UserWarning, match="they stay"):
        enable_icr(criterion, PAIRS, NAMES)
    message = "loss_boxes: expected loss_giou among its losses, got loss_bbox"
    with pytest.raises(ValueError, match=message):
        criterion(*case(kind)[:2])


def test_an_instance_attribute_is_passed_by_and_the_class_is_not():
    """Where the stock class takes a path of its own, which asks for exactly this class."""
    given, criterion = case("groups"), Groups(is_fast=True)
    stock, gradient = step(criterion, given)
    criterion.loss_boxes = lambda *arguments, **named: {}
    assert step(criterion, given)[0] == stock and criterion.fast_steps == 2
    del criterion.loss_boxes
    handle = enable_icr(criterion, PAIRS, NAMES, weight=0.5)
    losses, _ = step(criterion, given)
    assert_added(losses, stock, {suffix: added(given, suffix, 0.5) for suffix in given.layers})
    assert criterion.fast_steps == 2
    handle.disable()
    losses, our_gradient = step(criterion, given)
    assert losses == stock and torch.equal(our_gradient, gradient) and criterion.fast_steps == 3


def test_box_losses_outside_of_a_step():
    """Called alone they have the penalty, too; of the targets that come along, whatever step failed before."""
    given, criterion = case("weighted"), Weighted()
    enable_icr(criterion, PAIRS, NAMES, weight=0.5)
    other = case("weighted", scene=[SCENE[2], SCENE[2], SCENE[0]])
    other.outputs["enc_aux_outputs"] = [{}]
    with pytest.raises(KeyError):
        criterion(other.outputs, other.targets)
    arguments = given.outputs, given.targets, given.outputs["matched"], BOXES
    ours, stock = (loss_boxes(*arguments) for loss_boxes in (criterion.loss_boxes, Weighted().loss_boxes))
    expected = 0.5 * sum(penalties(given, "")) / BOXES
    assert float((ours["loss_giou"] - stock["loss_giou"]).detach()) == pytest.approx(expected, rel=1e-9)
