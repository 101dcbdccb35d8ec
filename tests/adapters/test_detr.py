"""The adapter for criteria of the DETR family outside transformers, with stand-ins for them: its terms, by hand."""

import warnings

import pytest
import torch

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
    mean_loss,
    of_containment,
    of_excess,
    of_log,
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
