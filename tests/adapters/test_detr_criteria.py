"""A criterion of the DETR family that has the penalty: its statistics, copies, pickles and state; what is refused."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn

from detr_criteria import (
    NAMES,
    PAIRS,
    PLATES,
    STOCK,
    Groups,
    Weighted,
    added,
    assert_added,
    case,
    every_kind,
    l1_and_giou,
    penalties,
    step,
)
from icr_kernels.integrations.detr import enable_icr


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
