"""The adapter for criteria of the DETR family outside transformers, with stand-ins for them."""

import copy
import io
import math
import pickle
import warnings

import pytest
import torch
from torch import nn

from detr_criteria import (
    BOXES,
    BUS,
    CAR,
    GROUPS,
    NAMES,
    PAIRS,
    PART_FIRST,
    PLATES,
    SCENE,
    STOCK,
    WEIGHTS,
    WHOLES,
    Groups,
    Weighted,
    added,
    assert_added,
    case,
    every_kind,
    gathered,
    l1_and_giou,
    mean_loss,
    of_containment,
    of_excess,
    of_log,
    overlaps,
    penalties,
    step,
    wanted,
)
from icr_kernels.integrations.detr import enable_icr


@every_kind
def test_the_stand_ins_are_what_is_known_of_them(kind):
    """Whom they match with whom and what they divide by: the L1 loss of each output, box by box."""
    given = case(kind)
    losses, gradient = step(STOCK[kind](), given)
    weight = 1.0 if kind == "groups" else WEIGHTS["loss_bbox"]
    assert {key for key in losses if "giou" in key} == {f"loss_giou{suffix}" for suffix in given.layers}
    for suffix, (output, pairs, divisor) in given.layers.items():
        total = sum(
            abs(ours - theirs)
            for image, query, row in pairs
            for ours, theirs in zip(
                output["pred_boxes"][image, query].tolist(), given.targets[image]["boxes"][row].tolist(), strict=True
            )
        )
        assert losses[f"loss_bbox{suffix}"] == pytest.approx(weight * total / divisor, rel=1e-9)
        # So that what follows could fail: plates do not lie in their wholes at any output.
        assert sum(penalties(given, suffix)) > 0.1
    assert gradient.norm() > 0.1
    several = [pair[::2] for pair in given.layers[""].pairs]
    assert (len(set(several)) < len(several)) == (kind != "weighted")


@pytest.mark.parametrize("names", [NAMES, PART_FIRST], ids=["whole is 0", "part is 0"])
@every_kind
def test_weight_0_is_the_stock_loss(kind, names):
    given, criterion = case(kind, names), STOCK[kind]()
    stock, gradient = step(criterion, given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        enable_icr(criterion, PAIRS, names, weight=0.0, denoising=True)
    losses, our_gradient = step(criterion, given)
    assert_added(losses, stock, {})
    assert (our_gradient - gradient).norm() <= 1e-9 * gradient.norm()


@pytest.mark.parametrize("denoising", [False, True])
@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize(
    ("formula", "options"),
    [(of_containment, {}), (of_log, {"penalty": "log"}), (of_excess, {"relative": True})],
    ids=["containment", "log", "relative"],
)
@every_kind
def test_the_penalty_by_hand(kind, formula, options, auxiliary, denoising):
    """It is in the GIoU losses of the outputs that are asked for, and all else is the stock loss."""
    given, criterion = case(kind), STOCK[kind]()
    stock, _ = step(criterion, given)
    enable_icr(criterion, PAIRS, NAMES, weight=0.5, auxiliary=auxiliary, denoising=denoising, **options)
    losses, _ = step(criterion, given)
    expected = {suffix: added(given, suffix, 0.5, formula) for suffix in wanted(kind, auxiliary, denoising)}
    assert all(amount > 1e-3 for amount in expected.values())
    assert_added(losses, stock, expected)


@every_kind
def test_tiny_boxes(kind):
    """Down to areas of 1e-9 of the image, far below a pixel, nothing of a loss or of the penalty is guarded away."""
    given, criterion = case(kind, scale=1e-3), STOCK[kind]()
    stock, gradient = step(criterion, given)
    enable_icr(criterion, PAIRS, NAMES, weight=0.0)
    losses, our_gradient = step(criterion, given)
    assert_added(losses, stock, {})
    assert (our_gradient - gradient).norm() <= 1e-9 * gradient.norm()
    enable_icr(criterion, PAIRS, NAMES, weight=0.5, denoising=True)
    losses, _ = step(criterion, given)
    tiny = {place: tuple(1e-3 * each for each in whole) for place, whole in WHOLES.items()}
    assert_added(losses, stock, {suffix: added(given, suffix, 0.5, of_containment, tiny) for suffix in given.layers})


@pytest.mark.parametrize("denoising", [False, True])
@pytest.mark.parametrize("auxiliary", [False, True])
@every_kind
def test_the_uniform_term_by_hand(kind, auxiliary, denoising):
    """The mean of 1 - IoU over the predictions of all plates, with a car or without; the penalty goes beside it."""
    given, criterion = case(kind), STOCK[kind]()
    stock, _ = step(criterion, given)
    for weight in 0.0, 0.5:
        terms = {"weight": weight, "box_term": 0.25, "auxiliary": auxiliary, "denoising": denoising}
        handle = enable_icr(criterion, PAIRS, NAMES, **terms)
        losses, _ = step(criterion, given)
        expected = {
            suffix: given.coefficient * 0.25 * mean_loss(given, suffix) + added(given, suffix, weight)
            for suffix in wanted(kind, auxiliary, denoising)
        }
        assert_added(losses, stock, expected)
        chosen = sum((image, row) in PLATES for image, _, row in given.layers[""].pairs)
        assert handle.statistics.chosen == chosen
        assert handle.statistics.mean_loss == pytest.approx(mean_loss(given, ""), rel=1e-9)


@every_kind
def test_the_gradient_by_hand(kind):
    """Of the penalty at all outputs, from autograd of the containment written down in corners."""
    given, criterion = case(kind), STOCK[kind]()
    _, stock = step(criterion, given)
    enable_icr(criterion, PAIRS, NAMES, weight=0.5, denoising=True)
    _, gradient = step(criterion, given)
    total = torch.zeros((), dtype=torch.float64)
    for output, pairs, divisor in given.layers.values():
        for image, query, row in pairs:
            if (image, row) in WHOLES:
                p, whole = output["pred_boxes"][image, query], torch.tensor(WHOLES[image, row], dtype=torch.float64)
                low = torch.maximum(p[:2] - p[2:] / 2, whole[:2] - whole[2:] / 2)
                high = torch.minimum(p[:2] + p[2:] / 2, whole[:2] + whole[2:] / 2)
                inside = torch.relu(high - low).prod() / p[2:].prod()
                total = total + given.coefficient * 0.5 * (1 - inside) / divisor
    by_hand = torch.autograd.grad(total, given.leaves(), allow_unused=True)
    by_hand = [
        torch.zeros_like(leaf) if each is None else each for each, leaf in zip(by_hand, given.leaves(), strict=True)
    ]
    by_hand = torch.cat([each.flatten() for each in by_hand])
    assert by_hand.norm() > 0.1
    assert (gradient - stock - by_hand).norm() <= 1e-9 * by_hand.norm()


@pytest.mark.parametrize("names", [NAMES, PART_FIRST], ids=["whole is 0", "part is 0"])
@pytest.mark.parametrize("kind", ["weighted", "union"])
def test_the_encoder_has_the_true_labels(kind, names):
    """The criterion comes to it with zeros as labels: then every box would be a car, or a plate."""
    given, criterion = case(kind, names), STOCK[kind]()
    stock, _ = step(criterion, given)
    enable_icr(criterion, PAIRS, names, weight=0.5, box_term=0.25)
    losses, _ = step(criterion, given)
    expected = given.coefficient * 0.25 * mean_loss(given, "_enc_0") + added(given, "_enc_0", 0.5)
    assert losses["loss_giou_enc_0"] - stock["loss_giou_enc_0"] == pytest.approx(expected, rel=1e-9)
    assert losses["loss_class_enc_0"] == stock["loss_class_enc_0"]


@pytest.mark.parametrize("kind", ["weighted", "union"])
def test_weights_of_boxes_are_of_the_giou_alone(kind):
    given, criterion = case(kind), STOCK[kind](weighs_boxes=True)
    plain, _ = step(STOCK[kind](), given)
    stock, gradient = step(criterion, given)
    assert all(stock[f"loss_giou{suffix}"] < 0.9 * plain[f"loss_giou{suffix}"] for suffix in given.layers)
    enable_icr(criterion, PAIRS, NAMES, weight=0.0)
    losses, our_gradient = step(criterion, given)
    assert_added(losses, stock, {})
    assert (our_gradient - gradient).norm() <= 1e-9 * gradient.norm()
    enable_icr(criterion, PAIRS, NAMES, weight=0.5, box_term=0.25, denoising=True)
    losses, _ = step(criterion, given)
    expected = {
        suffix: given.coefficient * 0.25 * mean_loss(given, suffix) + added(given, suffix, 0.5)
        for suffix in given.layers
    }
    assert_added(losses, stock, expected)


@pytest.mark.parametrize("filler", [(0.0, 0.0, 0.0, 0.0), (0.5, 0.5, 1.0, 1.0)], ids=["empty", "all of the image"])
@pytest.mark.parametrize("names", [NAMES, PART_FIRST], ids=["whole is 0", "part is 0"])
def test_padding_is_no_object(names, filler):
    """Its label is 0 and queries are matched with it, but it is no plate, the whole of none, and not counted."""
    given, criterion = case("groups", names, filler=filler), Groups()
    stock, gradient = step(criterion, given)
    enable_icr(criterion, PAIRS, names, weight=0.0)
    losses, our_gradient = step(criterion, given)
    assert_added(losses, stock, {})
    assert (our_gradient - gradient).norm() <= 1e-9 * gradient.norm()
    handle = enable_icr(criterion, PAIRS, names, weight=0.5, box_term=0.25)
    losses, _ = step(criterion, given)
    expected = {suffix: 0.25 * mean_loss(given, suffix) + added(given, suffix, 0.5) for suffix in given.layers}
    assert_added(losses, stock, expected)
    assert len(given.layers[""].pairs) == 3 * 7 * GROUPS
    statistics = handle.statistics
    assert statistics[:4] == (1, BOXES * GROUPS, 3 * GROUPS, 2 * GROUPS) and statistics.chosen == 3 * GROUPS
    assert statistics.mean_penalty == pytest.approx(sum(penalties(given, "")) / (2 * GROUPS), rel=1e-9)


@pytest.mark.parametrize(
    ("kind", "filler"), [*((kind, None) for kind in STOCK), ("groups", (0.0, 0.0, 0.0, 0.0))], ids=[*STOCK, "padded"]
)
def test_without_objects(kind, filler):
    given, criterion = case(kind, filler=filler, scene=[[], [], []]), STOCK[kind]()
    stock, gradient = step(criterion, given)
    handle = enable_icr(criterion, PAIRS, NAMES, weight=0.5, box_term=0.25, denoising=True)
    losses, our_gradient = step(criterion, given)
    assert losses == stock and torch.equal(our_gradient, gradient) and gradient.isfinite().all()
    assert handle.statistics[:4] == (1, 0, 0, 0)


def test_the_number_of_boxes_is_the_callers():
    """A tensor, as rfdetr gives it where it divides by itself."""
    given, criterion = case("groups"), Groups()
    given = given._replace(layers={suffix: each._replace(divisor=3.0) for suffix, each in given.layers.items()})
    stock, _ = step(criterion, given, num_boxes=torch.tensor(3.0))
    enable_icr(criterion, PAIRS, NAMES, weight=0.5)
    losses, _ = step(criterion, given, num_boxes=torch.tensor(3.0))
    assert_added(losses, stock, {suffix: added(given, suffix, 0.5) for suffix in given.layers})


@every_kind
def test_known_pairs(kind):
    """A parent_idx takes precedence over geometry: another whole, a whole where geometry has none, and none at all."""
    given, criterion = case(kind), STOCK[kind]()
    stock, _ = step(criterion, given)
    handle = enable_icr(criterion, PAIRS, NAMES, weight=0.5, denoising=True)
    tree = SCENE[0][2][1]
    for rows, known in (
        (([-1, 2, -1, 0], [], [-2, -1]), {(0, 1): tree, (0, 3): CAR}),
        (([-1, -2, -1, -1], [], [1, -1]), {(2, 0): BUS}),
    ):
        for target, parents in zip(given.targets, rows, strict=True):
            target["parent_idx"] = torch.tensor(parents, dtype=torch.int64)
        handle.reset()
        losses, _ = step(criterion, given)
        expected = {suffix: added(given, suffix, 0.5, of_containment, known) for suffix in given.layers}
        assert_added(losses, stock, expected)
        assert handle.statistics.paired == len(penalties(given, "", of_containment, known))
    # Not every image has it: geometry again.
    del given.targets[1]["parent_idx"]
    losses, _ = step(criterion, given)
    assert_added(losses, stock, {suffix: added(given, suffix, 0.5) for suffix in given.layers})


def test_a_parent_outside_of_its_image_is_unknown():
    given, criterion = case("weighted"), Weighted()
    stock, _ = step(criterion, given)
    for target, parents in zip(given.targets, ([-1, 5, -1, -1], [], [-1, -1]), strict=True):
        target["parent_idx"] = torch.tensor(parents, dtype=torch.int64)
    enable_icr(criterion, PAIRS, NAMES, weight=0.5, auxiliary=False)
    losses, _ = step(criterion, given)
    assert_added(losses, stock, {"": added(given, "", 0.5)})


def test_wholes_contain_as_much_as_is_asked_for():
    """Five sixths of the first plate lie in the car, and the other lies in the bus."""
    given, criterion = case("weighted"), Weighted()
    stock, _ = step(criterion, given)
    handle = enable_icr(criterion, PAIRS, NAMES, weight=0.5, min_containment=0.9)
    losses, _ = step(criterion, given)
    layers = wanted("weighted", True, False)
    expected = {suffix: added(given, suffix, 0.5, of_containment, {(2, 0): BUS}) for suffix in layers}
    assert_added(losses, stock, expected)
    assert handle.statistics.parts == 3 and handle.statistics.paired == 1


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


@every_kind
def test_statistics(kind):
    given, criterion = case(kind), STOCK[kind]()
    handle = enable_icr(criterion, PAIRS, NAMES)
    assert handle.statistics[:4] == (0, 0, 0, 0) and math.isnan(handle.statistics.mean_penalty)
    step(criterion, given)
    step(criterion, given)
    pairs = [(image, row) for image, _, row in given.layers[""].pairs]
    parts, of_wholes = sum(pair in PLATES for pair in pairs), penalties(given, "")
    expected = (2, 2 * len(pairs), 2 * parts, 2 * len(of_wholes))
    mean = pytest.approx(sum(of_wholes) / len(of_wholes), rel=1e-9)
    assert handle.statistics[:4] == expected and handle.statistics.mean_penalty == mean
    # Evaluation has the loss of training, and is not counted.
    trained, _ = step(criterion, given)
    handle.reset()
    with torch.no_grad():
        evaluated = criterion.eval()(given.outputs, given.targets)
    with torch.inference_mode():
        criterion(given.outputs, given.targets)
    assert {key: loss.item() for key, loss in evaluated.items()} == pytest.approx(trained, rel=1e-9)
    assert handle.statistics[:4] == (0, 0, 0, 0)
    step(criterion.train(), given)
    assert handle.statistics[:4] == tuple(each // 2 for each in expected)


@every_kind
def test_a_deep_copy_goes_on(kind):
    """As the averaged weights of a training module do; it has the penalty and statistics of its own."""
    given, criterion = case(kind), STOCK[kind]()
    stock, _ = step(criterion, given)
    handle = enable_icr(criterion, PAIRS, NAMES)
    ours, _ = step(criterion, given)
    # In a module and by itself; and what is there twice has one copy.
    held = copy.deepcopy(nn.ModuleDict({"criterion": criterion, "again": criterion}))
    copied = held["criterion"]
    assert copied is held["again"] is not criterion and type(copied) is type(criterion)
    assert step(copied, given)[0] == ours == step(copy.deepcopy(copied), given)[0] != stock
    assert copied.losses == criterion.losses and copied.losses is not criterion.losses
    handle.disable()
    assert step(criterion, given)[0] == stock and step(copied, given)[0] == ours
    assert handle.statistics.steps == 1


def test_a_shallow_copy_goes_on():
    given, criterion = case("weighted"), Weighted()
    enable_icr(criterion, PAIRS, NAMES)
    assert step(copy.copy(criterion), given)[0] == step(criterion, given)[0]


def test_a_handle_that_is_copied_with_its_criterion_counts_on():
    given, criterion = case("weighted"), Weighted()
    handle = enable_icr(criterion, PAIRS, NAMES)
    step(criterion, given)
    copied = copy.deepcopy({"criterion": criterion, "icr": handle})
    step(copied["criterion"], given)
    assert copied["icr"].statistics.steps == 2 and handle.statistics.steps == 1


@every_kind
def test_a_pickle_goes_on(kind):
    """As launchers hand a criterion to the processes that they spawn."""
    given, criterion = case(kind), STOCK[kind]()
    handle = enable_icr(criterion, PAIRS, NAMES, weight=5.0)
    ours, _ = step(criterion, given)
    file = io.BytesIO()
    torch.save({"criterion": criterion, "icr": handle}, file)
    file.seek(0)
    state = {"criterion": criterion, "icr": handle}
    pickles = [pickle.dumps(state, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for each in (torch.load(file, weights_only=False), *map(pickle.loads, pickles)):
        assert type(each["criterion"]) is type(criterion)
        assert step(each["criterion"], given)[0] == ours
        assert each["icr"].statistics.steps == 2
    assert handle.statistics.steps == 1


def test_a_copy_of_what_refers_to_itself():
    criterion = Weighted()
    enable_icr(criterion, PAIRS, NAMES)
    criterion.__dict__.update(alias=criterion.loss_boxes, owner=[criterion])
    copied = copy.deepcopy(criterion)
    assert copied.owner[0] is copied is copied.alias.__self__ is not criterion


@every_kind
def test_the_state_is_that_of_the_stock_criterion(kind):
    criterion = STOCK[kind]()
    stock = {key: value.clone() for key, value in criterion.state_dict().items()}
    assert list(stock) == ([] if kind == "groups" else ["class_weight"])
    enable_icr(criterion, PAIRS, NAMES)
    step(criterion, case(kind))
    assert list(criterion.state_dict()) == list(stock)
    changed = {key: value + 1 for key, value in criterion.state_dict().items()}
    criterion.load_state_dict(changed, strict=True)
    fresh = STOCK[kind]()
    fresh.load_state_dict(criterion.state_dict(), strict=True)
    assert all(torch.equal(fresh.state_dict()[key], value + 1) for key, value in stock.items())
    assert not list(criterion.parameters()) and criterion.double().state_dict().keys() == stock.keys()


@every_kind
def test_disable_and_enable_again(kind):
    """The last call counts, and an older handle takes nothing from a newer one."""
    given, criterion = case(kind), STOCK[kind]()
    attributes = list(vars(criterion))
    stock, gradient = step(criterion, given)
    first = enable_icr(criterion, PAIRS, NAMES, weight=5.0)
    enabled, of_stock = type(criterion), STOCK[kind]
    assert isinstance(criterion, of_stock) and str(enabled) == str(of_stock) and enabled is not of_stock
    step(criterion, given)
    second = enable_icr(criterion, PAIRS, NAMES, weight=0.5, denoising=True)
    losses, _ = step(criterion, given)
    expected = {suffix: added(given, suffix, 0.5) for suffix in given.layers}
    assert_added(losses, stock, expected)
    assert first.statistics.steps == second.statistics.steps == 1
    first.disable()
    assert step(criterion, given)[0] == losses and second.statistics.steps == 2
    # What fails changes nothing.
    with pytest.raises(ValueError, match="weight"):
        enable_icr(criterion, PAIRS, NAMES, weight=-1.0)
    assert step(criterion, given)[0] == losses
    second.disable()
    assert type(criterion) is STOCK[kind] and list(vars(criterion)) == attributes
    again, our_gradient = step(criterion, given)
    assert again == stock and torch.equal(our_gradient, gradient)
    second.disable()
    assert type(criterion) is STOCK[kind] and second.statistics.steps == 3


@every_kind
def test_half_precision_beside_targets_in_full(kind):
    """As under autocast. Losses are those of the rounded predictions, computed in float32."""
    given, criterion = case(kind, dtype=torch.float32), STOCK[kind]()
    for output, _, _ in given.layers.values():
        output["pred_boxes"] = output["pred_boxes"].detach().bfloat16().requires_grad_()
    enable_icr(criterion, PAIRS, NAMES, weight=0.0)
    stock = criterion(given.outputs, given.targets)
    enable_icr(criterion, PAIRS, NAMES, weight=50.0, denoising=True)
    losses = criterion(given.outputs, given.targets)
    output, pairs, divisor = given.layers[""]
    difference = sum(
        abs(ours - theirs)
        for image, query, row in pairs
        for ours, theirs in zip(
            output["pred_boxes"][image, query].tolist(), given.targets[image]["boxes"][row].tolist(), strict=True
        )
    )
    weight = 1.0 if kind == "groups" else WEIGHTS["loss_bbox"]
    assert losses["loss_bbox"].item() == pytest.approx(weight * difference / divisor, rel=1e-5)
    for suffix in given.layers:
        loss = losses[f"loss_giou{suffix}"]
        assert loss.dtype == torch.float32
        assert (loss - stock[f"loss_giou{suffix}"]).item() == pytest.approx(added(given, suffix, 50.0), rel=1e-5)
    # Gradients are rounded once.
    halves = [layer.output["pred_boxes"] for layer in given.layers.values()]
    gradients = torch.autograd.grad(sum(losses.values()), halves)
    for layer in given.layers.values():
        layer.output["pred_boxes"] = layer.output["pred_boxes"].detach().float().requires_grad_()
    full = [layer.output["pred_boxes"] for layer in given.layers.values()]
    losses = criterion(given.outputs, given.targets)
    for ours, truth in zip(gradients, torch.autograd.grad(sum(losses.values()), full), strict=True):
        assert ours.dtype == torch.bfloat16 and torch.equal(ours, truth.bfloat16()) and ours.any()


@every_kind
def test_training_lowers_the_penalty(kind):
    """Where the label of a plate sticks out of its car the stock loss goes on paying; with the penalty it does not."""
    scene = [[("car", CAR), ("plate", (0.30, 0.595, 0.10, 0.06))]]
    whole, found = {(0, 1): CAR}, []
    for weight in 0.0, 5.0:
        given, criterion = case(kind, scene=scene), STOCK[kind]()
        handle = enable_icr(criterion, PAIRS, NAMES, weight=weight, denoising=True)
        optimizer = torch.optim.Adam(given.leaves(), lr=5e-3)
        for _ in range(100):
            optimizer.zero_grad()
            handle.reset()
            sum(criterion(given.outputs, given.targets).values()).backward()
            optimizer.step()
        found.append(handle.statistics.mean_penalty)
        means = [sum(each) / len(each) for each in (penalties(given, s, of_containment, whole) for s in given.layers)]
        assert all(mean > 0.3 if weight == 0.0 else mean < 0.15 for mean in means)
    assert found[0] > 0.3 and found[1] < 0.15


@pytest.mark.parametrize(
    ("pairs", "names", "options", "error", "message"),
    [
        (PAIRS, ("plate",), {}, ValueError, "pairs: expected classes among plate, got 'car'"),
        ({"licence": "car"}, NAMES, {}, ValueError, "expected classes among car, bus, plate, tree, got 'licence'"),
        ({}, NAMES, {}, ValueError, "pairs: expected at least one part and its whole, got none"),
        (PAIRS, "plate", {}, TypeError, "names: expected a sequence of names or a mapping from label to name, got str"),
        (PAIRS, NAMES, {"weight": -1.0}, ValueError, "weight: expected a number of at least 0 .* got -1.0"),
        (PAIRS, NAMES, {"weight": "1"}, TypeError, "weight: expected a number"),
        (PAIRS, NAMES, {"box_term": -0.5}, ValueError, "box_term: expected a number of at least 0 .* got -0.5"),
        (PAIRS, NAMES, {"penalty": "overlap"}, ValueError, "penalty: expected one of containment"),
        (PAIRS, NAMES, {"min_containment": 2}, ValueError, "min_containment: expected a number from 0 to 1, got 2"),
    ],
)
def test_wrong_arguments(pairs, names, options, error, message):
    criterion = Weighted()
    with pytest.raises(error, match=message):
        enable_icr(criterion, pairs, names, **options)
    assert type(criterion) is Weighted


def test_labels_without_a_name():
    """As of names that forget the background. Said at the first batch; later nothing waits for the device."""
    criterion = Weighted()
    enable_icr(criterion, {"plate": "car"}, {1: "car", 2: "plate", 3: "tree"})
    with pytest.raises(
        ValueError, match="names: expected one for each label of the targets, got none for 0; there are 1"
    ):
        step(criterion, case("weighted"))


def test_the_labels_of_padding_need_no_name():
    """Fillers have label 0, which names from 1 on do not have."""
    given = case("groups", names=("a hole", *NAMES), filler=(0.0, 0.0, 0.0, 0.0))
    criterion = Groups()
    handle = enable_icr(criterion, PAIRS, dict(enumerate(NAMES, 1)))
    step(criterion, given)
    assert handle.statistics.paired > 0


def test_what_runs_another_criterion():
    """It has the attributes of what it wraps, but is not what computes the losses."""
    with pytest.raises(TypeError, match="neither wrapped nor compiled, got OptimizedModule"):
        enable_icr(torch.compile(Weighted(), backend="eager"), PAIRS, NAMES)
    for name in ("forward", "loss_boxes"):
        criterion = Weighted()
        setattr(criterion, name, getattr(criterion, name))
        with pytest.raises(
            ValueError, match=f"criterion: expected one with the {name} of its class, got one with its own"
        ):
            enable_icr(criterion, PAIRS, NAMES)


class OtherBoxes(Weighted):
    def loss_boxes(self, pred, target):
        return l1_and_giou(pred, target, len(pred))


class NoModule:
    losses = ("boxes",)

    def loss_boxes(self, outputs, targets, indices, num_boxes):
        return {}


class Model(nn.Module):
    """A detector that holds its criterion."""

    def __init__(self):
        super().__init__()
        self.criterion = Weighted()


@pytest.mark.parametrize("make", [lambda: nn.Linear(2, 2), Model, OtherBoxes, NoModule, lambda: Weighted, lambda: None])
def test_what_is_no_criterion(make):
    given = make()
    expected = r"criterion: expected a module with loss_boxes\(outputs, targets, indices, num_boxes\), as those of "
    with pytest.raises(TypeError, match=f"{expected}.* got {type(given).__name__}$"):
        enable_icr(given, PAIRS, NAMES)


@pytest.mark.parametrize("losses", [("labels", "boxes", "masks"), ("labels", "boxes", "keypoints"), ("labels",)])
@every_kind
def test_criteria_of_other_losses(kind, losses):
    criterion = STOCK[kind](losses)
    message = f"expected one with boxes among its losses and none of masks, keypoints, got {', '.join(losses)}$"
    with pytest.raises(ValueError, match=message):
        enable_icr(criterion, PAIRS, NAMES)
    assert type(criterion) is STOCK[kind]
