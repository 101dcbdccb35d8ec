"""The loss of dense heads in the place of Ultralytics': its losses and gradients, and the training of models with
random weights. The truth is the installed stock criterion, with what it rounds away in its cross-entropy."""

import copy
import functools
import io
import re
import warnings

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import icr_kernels as icr
from assigner_scenes import ties_as_on_a_gpu
from frameworks import need
from icr_kernels.integrations.ultralytics import (
    accelerate,
    detection,
    enable_box_loss,
    enable_icr,
    enable_small_object_term,
)
from icr_kernels.integrations.ultralytics.assigner import AssignerInPlace
from icr_kernels.integrations.ultralytics.detection import LossInPlace
from icr_kernels.integrations.ultralytics.in_place import heads
from ultralytics_steps import PAIRS, batch, begin, network, random_batch, step
from ultralytics_training import NAMES, SIZE, assert_same_losses, globals_of, logged, train

need("ultralytics")
pytestmark = pytest.mark.usefixtures("ultralytics")

ROUNDING = 1e-5
FAMILIES = ("yolov8n", "yolo11n", "yolo12n", "yolo26n")
every_family = pytest.mark.parametrize("family", FAMILIES)
# One head with distributions, and two with distances.
both_kinds = pytest.mark.parametrize("family", ["yolo11n", "yolo26n"])
accelerated = functools.partial(accelerate, criterion=True)


@pytest.fixture(autouse=True)
def the_first_of_equals():
    """As the stock assigner takes it on a GPU: on a CPU it takes any, and the test of the assigner counts what comes of
    that."""
    with ties_as_on_a_gpu():
        yield


def is_accelerated(model) -> bool:
    stock = getattr(model.criterion, "stock", model.criterion)
    (found,) = {(isinstance(head, LossInPlace), isinstance(head.assigner, AssignerInPlace)) for head in heads(stock)}
    assert found[0] == found[1]
    return found[0]


def of_one_image(seed: int) -> dict:
    given = random_batch(seed, 8)
    return {**given, "batch_idx": torch.ones_like(given["batch_idx"])}


def with_a_box_of_padding(seed: int) -> dict:
    """About the origin: the stock criterion takes it for none, although points lie in it."""
    given = random_batch(seed, 8)
    given["bboxes"][0] = torch.tensor((0.0, 0.0, 0.5, 0.5))
    return given


SCENES = {
    "some": functools.partial(random_batch, count=6),
    "crowded": functools.partial(random_batch, count=60),
    "one box": functools.partial(random_batch, count=1),
    "one image": of_one_image,
    "nothing": functools.partial(random_batch, count=0),
    "a box of padding": with_a_box_of_padding,
}


def outputs(model, height: int = SIZE, width: int = SIZE):
    """What the criterion is called with, without a graph."""
    with torch.no_grad():
        return model(torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)))


def copied(value, change, leaves: list):
    """Outputs of their own, changed by a function, that end up in a list."""
    if isinstance(value, dict):
        return {name: copied(each, change, leaves) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([copied(each, change, leaves) for each in value])
    leaves.append(change(value.detach().clone()).requires_grad_())
    return leaves[-1]


def results(criterion, found, given: dict, change=lambda logits: logits):
    """Losses, items, and the gradients of all outputs that have one."""
    leaves = []
    losses, items = criterion(copied(found, change, leaves), given)
    gradients = torch.autograd.grad(losses.sum(), leaves, allow_unused=True)
    return losses.detach(), items, [each for each in gradients if each is not None]


def are_same(ours, theirs, tolerance: float = ROUNDING) -> None:
    losses, items, gradients = ours
    expected, expected_items, expected_gradients = theirs
    torch.testing.assert_close(losses, expected, rtol=tolerance, atol=0)
    assert isinstance(items, dict) and list(items) == list(expected_items)
    for name, item in items.items():
        assert not item.requires_grad
        torch.testing.assert_close(item, expected_items[name], rtol=tolerance, atol=0)
    assert len(gradients) == len(expected_gradients) > 0
    for a, b in zip(gradients, expected_gradients, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert (a - b).norm() <= tolerance * b.norm()


@functools.cache
def _network(family: str):
    return network(family)


def model_of(family: str):
    """With the same weights every time."""
    return copy.deepcopy(_network(family))


def exact(criterion):
    """The stock criterion with its cross-entropy in float64. In float32 it loses the small losses of background to a
    difference of large numbers: of logits about -5.5, as here, 1e-5 of them, and of -14 a tenth."""
    for head in heads(criterion):
        head.bce = lambda logits, target: functional.binary_cross_entropy_with_logits(
            logits.double(), target.double(), reduction="none"
        )
    return criterion


def both(yolo, family: str, prepare=lambda model: None):
    """The criteria of a stock model and of an accelerated one with the same weights, and the latter."""
    model = model_of(family)
    prepare(model)
    stock = exact(model.init_criterion())
    begin(yolo, model, enable=accelerated)
    assert is_accelerated(model)
    return stock, model.criterion, model


# Losses and gradients


@every_family
@pytest.mark.parametrize("kind", SCENES)
def test_same_as_stock(yolo, family, kind):
    stock, ours, model = both(yolo, family)
    found = outputs(model)
    for seed in range(2):
        given = SCENES[kind](seed)
        theirs = results(stock, found, given)
        are_same(results(ours, found, given), theirs)
        # Without boxes only classes are trained, and otherwise everything.
        box_loss, cls_loss, third = theirs[1].values()
        assert cls_loss > 0 and (box_loss > 0) == (third > 0) == (kind != "nothing")


@both_kinds
def test_images_that_are_no_squares_and_change(yolo, family):
    """Several sizes one after the other, each twice."""
    stock, ours, model = both(yolo, family)
    for size in 2 * [(64, 96), (96, 64), (128, 128)]:
        found, given = outputs(model, *size), random_batch(0, 6)
        are_same(results(ours, found, given), results(stock, found, given))


def test_of_many_sizes_few_are_kept(yolo, monkeypatch):
    monkeypatch.setattr(detection, "MOST_GRIDS", 2)
    stock, ours, model = both(yolo, "yolo11n")
    kept = []
    for size in [(64, 96), (96, 64), (128, 128), (64, 96)]:
        found, given = outputs(model, *size), random_batch(0, 6)
        are_same(results(ours, found, given), results(stock, found, given))
        kept.append(len(detection._GRIDS[ours]))
    assert kept == [1, 2, 1, 2]


@both_kinds
def test_after_inference(yolo, family):
    """What a model leaves then is a tuple; and what is made in that mode cannot be differentiated."""
    stock, ours, model = both(yolo, family)
    found, given = outputs(model.eval()), random_batch(0, 6)
    with torch.inference_mode():
        losses, items = ours(found, given)
        expected, _ = stock(found, given)
        assert not losses.requires_grad and items
        torch.testing.assert_close(losses, expected, rtol=ROUNDING, atol=0)
    are_same(results(ours, found, given), results(stock, found, given))


@both_kinds
def test_class_weights(yolo, family):
    def weighted(model) -> None:
        model.class_weights = torch.tensor((0.2, 1.0, 1.8))

    stock, ours, model = both(yolo, family, weighted)
    found, given = outputs(model), random_batch(0, 6)
    are_same(results(ours, found, given), results(stock, found, given))
    uniform, _, _ = results(model_of(family).init_criterion(), found, given)
    assert (uniform[1] - results(ours, found, given)[0][1]).abs() > 0.01 * uniform[1]


@both_kinds
def test_gains_are_read_at_every_step(yolo, family):
    stock, ours, model = both(yolo, family)
    found, given = outputs(model), random_batch(0, 6)
    before = results(ours, found, given)[0]
    for criterion in stock, ours:
        for head in heads(criterion):
            head.hyp = copy.copy(head.hyp)
            head.hyp.box, head.hyp.cls, head.hyp.dfl = 3.0, 2.0, 0.5
    are_same(results(ours, found, given), results(stock, found, given))
    assert not torch.allclose(results(ours, found, given)[0], before, rtol=0.1)


def test_the_schedule_of_an_end_to_end_model(yolo):
    """It stays the stock one: weights of the heads move from one to the other."""
    stock, ours, model = both(yolo, "yolo26n")
    assert type(ours) is type(stock)
    for criterion in stock, ours:
        criterion.one2one.hyp = copy.copy(criterion.one2one.hyp)
        criterion.one2one.hyp.epochs = 5
    found, given, seen = outputs(model), random_batch(0, 6), set()
    for _ in range(5):
        theirs = results(stock, found, given)
        are_same(results(ours, found, given), theirs)
        seen.add(theirs[0].sum().item())
        stock.update()
        ours.update()
        assert (ours.o2m, ours.o2o) == (stock.o2m, stock.o2o)
    assert len(seen) == 5


@both_kinds
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(yolo, family, dtype):
    """Of logits in half precision the losses are those of the same numbers in float32 but for the scores of the
    assignment, which are rounded as in the stock criterion; that is a hundred times further away. Gradients are rounded
    once."""
    stock, ours, model = both(yolo, family)
    found, given = outputs(model), random_batch(0, 6)

    def rounded(logits):
        return logits.to(dtype)

    losses, items, gradients = results(ours, found, given, rounded)
    expected, _, expected_gradients = results(stock, found, given, lambda logits: rounded(logits).float())
    in_half, _, _ = results(model.init_criterion(), found, given, rounded)
    assert {each.dtype for each in (losses, *items.values())} == {torch.float32}
    assert (losses - expected).norm() <= 0.01 * min(
        torch.finfo(dtype).eps * expected.norm(), (in_half - expected).norm()
    )
    for a, b in zip(gradients, expected_gradients, strict=True):
        assert a.dtype == dtype and (a - b).norm() <= torch.finfo(dtype).eps * b.norm()


# What it calls

# What reads from the device, makes a shape that depends on data, or brings something to the device.
WAITS = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "aten::index", "lift_fresh", "aten::copy_")
MOST_CALLS = 12


class Calls(TorchDispatchMode):
    """The operators that are called and make something."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        is_view = any(each.alias_info and not each.alias_info.is_write for each in operator._schema.arguments)
        if not is_view:
            self.names.append(operator.name())
        return operator(*args, **(kwargs or {}))


@every_family
def test_few_calls_of_operators(yolo, family, extension):
    """Of a head, forward and backward, its assigner included, from the second step on; and none that waits."""
    _, ours, model = both(yolo, family)
    found, given = outputs(model), random_batch(0, 6)
    if "one2one" in found:
        found, ours = found["one2one"], ours.one2one
    results(ours, found, given)
    leaves = []
    logits = copied({name: found[name] for name in ("boxes", "scores")}, lambda each: each, leaves)
    with Calls() as calls:
        losses, _ = ours.loss({**logits, "feats": found["feats"]}, given)
        torch.autograd.backward(losses, torch.ones(3))
    assert all(each.grad is not None for each in leaves)
    names = [name for name in calls.names if not name.startswith("aten::ones")]
    assert len(names) <= MOST_CALLS, names
    assert not any(wait in name for name in names for wait in WAITS), names
    assert sum(name.startswith("icr_kernels::") for name in names) == 4, names


# In training


@both_kinds
def test_every_step_of_a_training(yolo, family):
    """From the weights and the momentum of the stock training each of 20 steps of the optimizer changes the weights as
    the stock one: compared is the change, which is small beside the weights. Left to itself a network of random weights
    goes its own way before long, whatever the last bit is (see the assigner's test)."""
    stock, ours = model_of(family), model_of(family)
    stock.criterion = exact(stock.init_criterion())
    begin(yolo, ours, enable=accelerated)
    optimizers = [torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9) for model in (stock, ours)]
    for seed in range(20):
        ours.load_state_dict(stock.state_dict())
        optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
        before = [each.detach().clone() for each in stock.parameters()]
        given = random_batch(seed, count=seed)
        (expected, *_), (found, *_) = step(stock, given), step(ours, given)
        assert found == pytest.approx(expected, rel=ROUNDING)
        for optimizer in optimizers:
            optimizer.step()
        changes = [
            torch.cat([(now - then).flatten() for now, then in zip(model.parameters(), before, strict=True)])
            for model in (stock, ours)
        ]
        assert changes[0].norm() > 0
        assert (changes[1] - changes[0]).norm() <= 1e-4 * changes[0].norm()
    assert is_accelerated(ours)


@both_kinds
def test_outputs_that_are_trained_themselves(yolo, family):
    """Left to itself for 20 steps: without a network between, which makes much of a last bit, outputs stay together
    while they come to the boxes."""
    stock, ours, model = both(yolo, family)
    found, given = outputs(model), random_batch(0, 8)
    trained, losses = [], []
    for criterion in stock, ours:
        leaves = []
        preds = copied(found, lambda logits: logits, leaves)
        start = [each.detach().clone() for each in leaves]
        optimizer = torch.optim.SGD(leaves, lr=0.1, momentum=0.9)
        for _ in range(20):
            optimizer.zero_grad()
            loss = criterion(preds, given)[0].sum()
            loss.backward()
            losses.append(loss.item())
            optimizer.step()
        trained.append(torch.cat([(now.detach() - then).flatten() for now, then in zip(leaves, start, strict=True)]))
    assert losses[19] < 0.8 * losses[0] and losses[20:] == pytest.approx(losses[:20], rel=ROUNDING)
    assert (trained[1] - trained[0]).norm() <= ROUNDING * trained[0].norm()


def test_training(ultralytics, data, tmp_path):
    """Two epochs of Ultralytics' trainer with validation, with weights of the classes: every loss that is logged, and
    checkpoints."""
    options = {"cls_pw": 0.5} if "cls_pw" in vars(ultralytics.utils.DEFAULT_CFG) else {}
    stock = logged(train(ultralytics.YOLO("yolo11n.yaml"), data, tmp_path / "stock", **options))
    model = ultralytics.YOLO("yolo11n.yaml")
    handle = accelerated(model)
    seen, said = [], []
    model.add_callback("on_train_batch_end", lambda trainer: seen.append(is_accelerated(trainer.model)))
    model.add_callback("on_train_epoch_end", lambda trainer: seen.append(is_accelerated(trainer.ema.ema)))
    model.add_callback("on_model_save", lambda trainer: seen.append("icr_kernels" not in globals_of(trainer.last)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ultralytics.utils.LOGGER, "info", lambda message, *_: said.append(message))
        rows = logged(train(model, data, tmp_path / "ours", **options))
    assert seen == [True] * 8
    assert [each for each in said if "icr_kernels" in each] == [
        "Task-aligned assignment of icr_kernels: topk 10",
        "Detection loss of icr_kernels: reg_max 16",
    ]
    assert_same_losses(rows, stock)
    model.add_callback("on_train_batch_end", lambda trainer: handle.disable())
    seen.clear()
    train(model, data, tmp_path / "ours", epochs=1)
    assert seen == [True, False, False, True]


# Together with terms

TERMS = {
    "penalty": functools.partial(enable_icr, pairs=PAIRS, weight=3.0),
    "penalty by score": functools.partial(enable_icr, pairs=PAIRS, weight=3.0, weighting="tal", penalty="pull"),
    "weight 0, and another": functools.partial(
        enable_icr, pairs=PAIRS, weight=0.0, box_term=1.0, replace_iou_loss=True
    ),
    "another loss": functools.partial(
        enable_icr, pairs=PAIRS, iou_loss=icr.BoxLoss("mpdiou", width=SIZE, height=SIZE, inner=0.8)
    ),
    "another loss alone": functools.partial(
        enable_box_loss, loss=icr.BoxLoss("mpdiou", width=SIZE, height=SIZE, focaler=(0.1, 0.9))
    ),
    "small objects": functools.partial(
        enable_small_object_term, weight=3.0, loss=lambda pred, target: (pred - target).abs().mean(-1) / SIZE
    ),
}


@both_kinds
@pytest.mark.parametrize("term", TERMS.values(), ids=list(TERMS))
@pytest.mark.parametrize("term_first", [True, False], ids=["term first", "loss first"])
def test_together_with_a_term(yolo, family, term, term_first):
    """Losses, columns, gradients and statistics are those of the term alone, and either is switched off without the
    other."""
    alone, model, given = model_of(family), model_of(family), batch()
    of_alone = begin(yolo, alone, enable=term)
    found = outputs(model)
    theirs = results(alone.criterion, found, given)
    of_alone.disable()

    order = (term, accelerated) if term_first else (accelerated, term)
    handles = begin(yolo, model, enable=lambda yolo: {each: each(yolo) for each in order})
    assert is_accelerated(model)
    are_same(results(model.criterion, found, given), theirs)
    assert handles[term].statistics == pytest.approx(of_alone.statistics, rel=ROUNDING, nan_ok=True)
    assert handles[term].statistics.positives > 0
    for head in heads(model.criterion.stock):
        assert "changes" not in vars(head)

    of_stock = results(model.init_criterion(), found, given)
    for number, each in enumerate(order):
        handles[each].disable()
        assert is_accelerated(model) == (each is term and number == 0)
        has_term = each is accelerated and number == 0
        are_same(results(model.criterion, found, given), theirs if has_term else of_stock)


def test_a_term_where_another_criterion_calls_a_head_otherwise(yolo):
    """By its targets, say, where the stock way computes: the term is there all the same."""
    from ultralytics.utils.loss import E2ELoss

    class Other(E2ELoss):
        def __call__(self, preds, batch):
            preds = self.one2many.parse_output(preds)
            many = self.one2many.get_assigned_targets_and_loss(preds["one2many"], batch)
            one = self.one2one.get_assigned_targets_and_loss(preds["one2one"], batch)
            return (many[1] * self.o2m + one[1] * self.o2o) * len(batch["img"]), one[2]

    found, statistics = [], []
    for enable in (TERMS["penalty"], lambda yolo: [TERMS["penalty"](yolo), accelerated(yolo)][0]):
        model = model_of("yolo26n")
        model.criterion = Other(model)
        handle = begin(yolo, model, enable=enable)
        found.append(results(model.criterion, outputs(model), batch()))
        statistics.append(handle.statistics)
    are_same(found[1], found[0])
    assert statistics[0].paired > 0 and statistics[1] == pytest.approx(statistics[0], rel=ROUNDING, nan_ok=True)
    assert found[0][1]["icr_loss"] > 0


@both_kinds
def test_a_term_of_nothing(yolo, family):
    """Its column is there, of batches without a box too."""
    model = model_of(family)
    begin(yolo, model, enable=lambda yolo: [accelerated(yolo), enable_icr(yolo, PAIRS, weight=3.0, box_term=1.0)])
    found = outputs(model)
    losses, items, _ = results(model.criterion, found, random_batch(0, 0))
    stock, of_stock, _ = results(exact(model.init_criterion()), found, random_batch(0, 0))
    torch.testing.assert_close(losses, stock, rtol=ROUNDING, atol=0)
    expected = {name: item.item() for name, item in of_stock.items()} | {"icr_loss": 0.0, "uniform_loss": 0.0}
    assert {name: item.item() for name, item in items.items()} == pytest.approx(expected, rel=ROUNDING)


# Copies, pickles, switching it off


@both_kinds
def test_copies_and_pickles(yolo, family):
    """A copy is accelerated too; what is stored is Ultralytics' alone, and that of a stock model."""
    stock, ours, model = both(yolo, family)
    found, given = outputs(model), random_batch(0, 6)
    theirs = results(stock, found, given)
    are_same(results(ours, found, given), theirs)
    twin = copy.deepcopy(model)
    assert is_accelerated(twin) and twin.criterion is not ours
    are_same(results(twin.criterion, found, given), theirs)
    file = io.BytesIO()
    torch.save(model, file)
    assert "icr_kernels" not in globals_of(file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False).criterion
    for head, of_stock in zip(heads(loaded), heads(stock), strict=True):
        assert type(head) is type(of_stock) and vars(head).keys() == vars(of_stock).keys()
        assert type(head.assigner) is type(of_stock.assigner)
    are_same(results(loaded, found, given), theirs)


@both_kinds
def test_the_last_call_counts(yolo, family):
    """With and without the loss; the moving average as well as the model; and any handle switches off all."""
    model, average = model_of(family), model_of(family)
    first = begin(yolo, model, average, enable=accelerated)
    assert is_accelerated(model) and is_accelerated(average)
    begin(yolo, model, average, enable=accelerate)
    for each in model, average:
        assert not any(isinstance(head, LossInPlace) for head in heads(each.criterion))
        assert all(isinstance(head.assigner, AssignerInPlace) for head in heads(each.criterion))
    begin(yolo, model, average, enable=accelerated)
    assert is_accelerated(model) and is_accelerated(average)
    first.disable()
    assert not is_accelerated(model) and not is_accelerated(average)
    stock = model.init_criterion()
    for head, of_stock in zip(heads(model.criterion), heads(stock), strict=True):
        assert vars(head).keys() == vars(of_stock).keys()


def test_other_uses_of_a_head_stay(yolo):
    """What other criteria are made of gives what it gave: targets, and losses without the size of the batch."""
    stock, ours, model = both(yolo, "yolo11n")
    found, given = outputs(model), random_batch(0, 6)
    expected, losses = (each.get_assigned_targets_and_loss(found, given) for each in (stock, ours))
    for a, b in zip(expected[0], losses[0], strict=True):
        torch.testing.assert_close(a, b, rtol=ROUNDING, atol=0)
    torch.testing.assert_close(expected[1], losses[1], rtol=ROUNDING, atol=0)


# What is left as it is


def of_a_fork(stock):
    class OtherClass(type(stock)):
        """Of a fork."""

    stock.__class__ = OtherClass
    return stock


def squared(head) -> None:
    """A box loss that is changed where it is."""
    before = head.bbox_loss.forward

    def forward(*arguments, **named):
        box, distribution = before(*arguments, **named)
        return box**2, distribution

    head.bbox_loss.forward = forward


CHANGES = {
    "class": (of_a_fork, "OtherClass of .* stays the loss, because it is of another class"),
    "box loss": (
        lambda head: of_a_fork(head.bbox_loss),
        "because its bbox_loss, OtherClass of .*, is of another class",
    ),
    "bce": (lambda head: setattr(head, "bce", torch.nn.Identity()), "because its bce, Identity of .*, is of another"),
    "weights of bce": (
        lambda head: setattr(head.bce, "pos_weight", torch.full((len(NAMES),), 2.0)),
        "v8DetectionLoss of .*loss.py stays the loss, because its bce has weights of its own",
    ),
    "a method": (lambda head: setattr(head, "loss", head.loss), "because it has methods of its own"),
    "a function": (squared, "because it gives other losses on a trial scene"),
    "no gain": (lambda head: setattr(head, "hyp", None), "because it cannot be compared .*NoneType.* has no attribute"),
    "assigner": (
        lambda head: of_a_fork(head.assigner),
        "OtherClass of .* stays the assigner, and its loss stays, because it is of another class",
    ),
    "rule of the assigner": (
        lambda head: setattr(head.assigner, "iou_calculation", lambda truth, predicted: torch.ones(len(truth))),
        "stays the assigner, and its loss stays, because it assigns a trial scene otherwise",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_known_stays(yolo, change):
    """One head of two; one warning says which, and why."""
    model = model_of("yolo26n")
    model.criterion = model.init_criterion()
    make, message = CHANGES[change]
    make(model.criterion.one2many)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        begin(yolo, model, enable=accelerated)
    (warning,) = [str(each.message) for each in caught if "icr_kernels" in str(each.message)]
    assert re.search(message, warning), warning
    assert [isinstance(head, LossInPlace) for head in heads(model.criterion)] == [False, True]


def with_weights(head) -> None:
    head.bce = torch.nn.BCEWithLogitsLoss(reduction="none", pos_weight=torch.tensor(3.0))


def with_another_assigner(head) -> None:
    from ultralytics.utils.tal import TaskAlignedAssigner

    rule = {"topk": 5, "alpha": 0.5, "beta": 6.0, "stride": head.stride.tolist()}
    head.assigner = TaskAlignedAssigner(num_classes=head.nc, **rule)


def with_gains_that_are_tensors(head) -> None:
    head.hyp = copy.copy(head.hyp)
    head.hyp.box = torch.tensor(3.0)


LATER = {
    "bce": (with_weights, "because its bce has weights of its own"),
    "class of the box loss": (lambda head: of_a_fork(head.bbox_loss), "its bbox_loss, OtherClass of .*, is of another"),
    "assigner": (with_another_assigner, "its assigner, TaskAlignedAssigner of .*, is of another class"),
    "gains": (with_gains_that_are_tensors, "because its hyp.box is no number"),
}


@pytest.mark.parametrize("change", LATER)
def test_what_is_changed_in_mid_run_is_stock_again(yolo, change):
    stock, ours, model = both(yolo, "yolo11n")
    found, given = outputs(model), random_batch(0, 6)
    make, message = LATER[change]
    stock.bce = torch.nn.BCEWithLogitsLoss(reduction="none")
    make(stock)
    make(ours)
    with pytest.warns(UserWarning, match=f"is the stock loss in this step, .*{message}"):
        actual = results(ours, found, given)
    are_same(actual, results(stock, found, given))


def test_another_loss_of_boxes_stays(yolo, monkeypatch):
    """Of a fork that changes a function of a module."""
    from ultralytics.utils import loss

    def iou(*arguments, CIoU=False, **named):
        return loss_before(*arguments, GIoU=CIoU, **named)

    loss_before = loss.bbox_iou
    monkeypatch.setattr(loss, "bbox_iou", iou)
    model, given = model_of("yolo11n"), batch()
    expected, *_ = step(copy.deepcopy(model), given)
    with pytest.warns(UserWarning, match="stays the loss, because it gives other losses on a trial scene"):
        begin(yolo, model, enable=accelerated)
    assert step(model, given)[0] == pytest.approx(expected, rel=1e-6)


def test_a_flag_is_expected(yolo):
    with pytest.raises(TypeError, match="criterion: expected True or False, got str"):
        accelerate(yolo, criterion="loss")
