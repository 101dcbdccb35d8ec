"""The assigner in the place of Ultralytics': alone, and in the training of models with random weights."""

import copy
import functools
import importlib
import io
import pickle
import subprocess
import sys
import types

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from assigner_scenes import CLASSES, KINDS, scene, ties_as_on_a_gpu
from frameworks import need
from icr_kernels.integrations.ultralytics import TaskAlignedAssigner, accelerate, enable_icr, enable_small_object_term
from icr_kernels.integrations.ultralytics.assigner import AssignerInPlace, replace_assigners, trial_scene
from icr_kernels.integrations.ultralytics.in_place import heads
from icr_kernels.integrations.ultralytics.start import EVENT
from ultralytics_steps import PAIRS, batch, begin, every_yolo, network, random_batch, step
from ultralytics_training import assert_same_losses, globals_of, logged, train

need("ultralytics")
pytestmark = pytest.mark.usefixtures("ultralytics")

SEEDS = 12
RESULTS = ("target_labels", "target_bboxes", "target_scores", "fg_mask", "target_gt_idx")
RULES = [{"topk": 10}, {"topk": 7, "topk2": 1}]
every_rule = pytest.mark.parametrize("rule", RULES, ids=["one to many", "one to one"])


def assigners(**options):
    """The stock one and ours."""
    tal = importlib.import_module("ultralytics.utils.tal")
    options = {"num_classes": CLASSES, "alpha": 0.5, "beta": 6.0, **options}
    return tal.TaskAlignedAssigner(**options), TaskAlignedAssigner(**options)


def stock_arguments(given: tuple) -> tuple:
    """On a CPU the stock assigner rounds powers of half-precision scores to half precision."""
    return given[0].float(), *given[1:]


# Alone


@every_rule
@pytest.mark.parametrize("kind", KINDS)
def test_same_as_stock(kind, rule):
    """Where equals are taken in the same order nothing is excepted but what NaN leaks into: the scores of an image and,
    where a box keeps some of its points, which."""
    stock, ours = assigners(**rule)
    positives = 0
    for seed in range(SEEDS):
        given = scene(kind, seed)
        with ties_as_on_a_gpu():
            expected = stock(*stock_arguments(given))
        found = ours(*given)
        is_number = ~expected[2].isnan()
        assert kind == "NaN" or is_number.all()
        compared = is_number.all(-1) if "topk2" in rule else torch.ones_like(found[3])
        for name, a, b in zip(RESULTS, expected, found, strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape, name
            if name == "target_scores":
                ulps = (a.view(torch.int32) - b.view(torch.int32)).abs()
                assert torch.where(is_number, ulps, 0).max() <= 2
            else:
                assert torch.equal(a[compared], b[compared]), name
        positives += int(found[3][is_number.all(-1)].sum())
    assert positives > SEEDS


@every_rule
def test_few_points_differ_by_ties(rule):
    """By the stock assigner's choice among equals on a CPU: 114 of 138,600, and none."""
    stock, ours = assigners(**rule)
    points = differ = 0
    for kind in KINDS.keys() - {"NaN"}:
        for seed in range(SEEDS):
            given = scene(kind, seed)
            expected, found = stock(*stock_arguments(given)), ours(*given)
            differ += int(((expected[3] != found[3]) | (expected[4] != found[4])).sum())
            points += found[3].numel()
    assert differ < 0.002 * points


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_batch_without_boxes(dtype):
    stock, ours = assigners()
    scores, predicted, points, labels, boxes, mask = scene("some", 0)
    given = scores.to(dtype), predicted, points, labels[:, :0], boxes[:, :0], mask[:, :0]
    for a, b in zip(stock(*given), ours(*given), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def test_masks_and_labels_of_other_dtypes():
    """And boxes that the mask leaves out in between."""
    stock, ours = assigners()
    scores, predicted, points, labels, boxes, mask = scene("crowded", 0)
    mask[:, ::3] = 0
    with ties_as_on_a_gpu():
        expected = stock(scores, predicted, points, labels, boxes, mask)
    found = ours(scores, predicted, points, labels.int(), boxes, mask.bool(), something_of_another_task=None)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


def test_other_options():
    for options in ({}, {"stride": [8]}, {"stride": [4, 8, 16]}, {"eps": 1e-3}, {"alpha": 1.0, "beta": 2.0}):
        stock, ours = assigners(**options)
        for seed in range(SEEDS):
            given = scene("tiny", seed)
            with ties_as_on_a_gpu():
                expected = stock(*given)
            for a, b in zip(expected, ours(*given), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


def test_call_signature_and_attributes():
    stock, ours = assigners()
    public = {name: value for name, value in vars(stock).items() if not name.startswith("_")}
    assert {name: getattr(ours, name) for name in public} == public


def test_without_gradients():
    _, ours = assigners()
    scores, *rest = scene("some", 0)
    assert not any(each.requires_grad for each in ours(scores.requires_grad_(), *rest))


class Calls(TorchDispatchMode):
    """The names of the operators that are called, and the size of the largest tensor that one of them makes."""

    def __init__(self):
        super().__init__()
        self.names, self.largest = set(), 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        self.names.add(operator.name())
        sizes = [each.untyped_storage().nbytes() for each in pytree.tree_leaves(result) if torch.is_tensor(each)]
        self.largest = max([self.largest, *sizes])
        return result


def test_memory_and_waiting(extension):
    """Nothing is larger than the scores, and nothing is read back from the device."""
    _, ours = assigners()
    given = scene("crowded", 0)
    with Calls() as calls:
        ours(*given)
    images, boxes, points = *given[4].shape[:2], len(given[2])
    assert calls.largest == 4 * images * points * CLASSES < images * points * boxes
    waits = ("_local_scalar_dense", "nonzero", "masked_select", "aten::index")
    assert not any(wait in name for name in calls.names for wait in waits), calls.names


def test_compiled():
    _, ours = assigners(topk=7, topk2=1)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for kind in "some", "crowded":
        given = scene(kind, 0)
        assert all(map(torch.equal, ours(*given), compiled(*given)))


def test_without_ultralytics():
    script = (
        "import sys; sys.modules['ultralytics'] = None\n"
        "import torch\n"
        "from icr_kernels.integrations.ultralytics import TaskAlignedAssigner\n"
        "predicted = torch.rand(2, 9, 3), torch.rand(2, 9, 4), torch.rand(9, 2)\n"
        "truth = torch.zeros(2, 1, 1), torch.rand(2, 1, 4), torch.ones(2, 1, 1)\n"
        "print(len(TaskAlignedAssigner(num_classes=3)(*predicted, *truth)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "5\n"


def test_the_trial_scene_is_without_ties():
    """What decides on a stock assigner has to be the same on every device."""
    for rule in RULES:
        stock, _ = assigners(**rule)
        given = trial_scene(CLASSES, 8.0)
        expected = stock(*given)
        with ties_as_on_a_gpu():
            assert all(map(torch.equal, expected, stock(*given)))
        assert expected[3].sum() > 25


# In training


@pytest.mark.parametrize("family", ["yolo11n", "yolo12n", "yolo26n"])
def test_every_step_of_a_training(yolo, family):
    """With the weights of the stock training: left to itself each goes its own way before long, because the training of
    a network of random weights makes of the last bit of one score the second digit of a loss."""
    stock, ours = network(family), network(family)
    handle = begin(yolo, ours, enable=accelerate)
    optimizer = torch.optim.SGD(stock.parameters(), lr=1e-3, momentum=0.9)
    for seed in range(20):
        ours.load_state_dict(stock.state_dict())
        given = random_batch(seed, count=seed)
        found, _, gradient = step(ours, given)
        with ties_as_on_a_gpu():
            expected, _, expected_gradient = step(stock, given)
        assert found == pytest.approx(expected, rel=1e-5)
        assert (gradient - expected_gradient).norm() <= 1e-4 * expected_gradient.norm()
        optimizer.step()
    assert is_accelerated(ours) and not is_accelerated(stock)
    handle.disable()


def is_accelerated(model) -> bool:
    stock = getattr(model.criterion, "stock", model.criterion)
    (is_ours,) = {isinstance(head.assigner, AssignerInPlace) for head in heads(stock)}
    return is_ours


TERMS = {
    "penalty": functools.partial(enable_icr, pairs=PAIRS, weight=3.0),
    "small objects": functools.partial(enable_small_object_term, weight=3.0),
}
every_term = pytest.mark.parametrize("term", TERMS.values(), ids=list(TERMS))


@every_yolo
@every_term
@pytest.mark.parametrize("term_first", [True, False], ids=["term first", "assigner first"])
def test_together_with_a_term(yolo, family, term, term_first):
    """The loss is that of the term alone, and either is switched off without the other."""
    model, average, given = network(family), network(family), batch()
    stock, *_ = step(copy.deepcopy(model), given)
    trained = copy.deepcopy(model)
    alone = begin(yolo, trained, enable=term)
    expected, _, expected_gradient = step(trained, given)
    alone.disable()

    order = (term, accelerate) if term_first else (accelerate, term)
    handles = begin(yolo, model, average, enable=lambda yolo: {each: each(yolo) for each in order})
    ours, _, gradient = step(model, given)
    assert ours == pytest.approx(expected, rel=1e-6) and ours > stock + 0.1
    assert (gradient - expected_gradient).norm() <= 1e-5 * expected_gradient.norm()
    assert handles[term].statistics == pytest.approx(alone.statistics, rel=1e-6, nan_ok=True)
    assert is_accelerated(model) and is_accelerated(average)

    for number, each in enumerate(order):
        handles[each].disable()
        for trained in model, average:
            has_term = each is accelerate and number == 0
            assert step(trained, given)[0] == pytest.approx(expected if has_term else stock, rel=1e-6)
            assert is_accelerated(trained) == (each is term and number == 0)
    assert not any(type(each).__module__.startswith("icr_kernels") for each in yolo.callbacks[EVENT])


def test_any_handle_switches_it_off(yolo):
    model = network("yolo11n")
    first = begin(yolo, model, enable=accelerate)
    second = begin(yolo, model, enable=accelerate)
    assert sum(type(each).__module__.startswith("icr_kernels") for each in yolo.callbacks[EVENT]) == 1
    step(model, batch())
    assert second.statistics.steps == 0
    first.disable()
    assert not is_accelerated(model)
    second.disable()
    assert not any(type(each).__module__.startswith("icr_kernels") for each in yolo.callbacks[EVENT])


@every_yolo
def test_copies_and_pickles(yolo, family):
    """A copy is accelerated too; what is stored is Ultralytics' alone, and that of a stock model."""
    model, given = network(family), batch()
    expected, *_ = step(copy.deepcopy(model), given)
    of_term = begin(yolo, model, enable=lambda yolo: [accelerate(yolo), enable_icr(yolo, PAIRS, weight=0.0)])[1]
    copied = copy.deepcopy(model)
    assert is_accelerated(copied) and step(copied, given)[0] == pytest.approx(expected, rel=1e-6)
    for _ in range(2):
        file = io.BytesIO()
        torch.save(model, file)
        assert "icr_kernels" not in globals_of(file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        assert step(loaded, given)[0] == pytest.approx(expected, rel=1e-6)
        assert not any(isinstance(head.assigner, AssignerInPlace) for head in heads(loaded.criterion))
        of_term.disable()
    assert is_accelerated(model)
    of_stock, assigner = (heads(each)[0].assigner for each in (model.init_criterion(), model.criterion))
    stored = pickle.loads(pickle.dumps(assigner))
    assert type(stored) is type(of_stock) and vars(stored) == vars(of_stock)
    accelerate(yolo).disable()


def test_training(ultralytics, data, tmp_path):
    """Two epochs of Ultralytics' trainer with validation: every loss that is logged, and checkpoints."""
    stock = logged(train(ultralytics.YOLO("yolo11n.yaml"), data, tmp_path / "stock"))
    model = ultralytics.YOLO("yolo11n.yaml")
    handle = accelerate(model)
    seen = []
    model.add_callback("on_train_batch_end", lambda trainer: seen.append(is_accelerated(trainer.model)))
    model.add_callback("on_model_save", lambda trainer: seen.append("icr_kernels" not in globals_of(trainer.last)))
    rows = logged(train(model, data, tmp_path / "ours"))
    assert seen == [True] * 6
    assert_same_losses(rows, stock)
    model.add_callback("on_train_batch_end", lambda trainer: handle.disable())
    seen.clear()
    train(model, data, tmp_path / "ours", epochs=1)
    assert seen == [True, False, True]


# What is left as it is


def other_assigner(base):
    class OtherAssigner(base):
        """Of a fork."""

    return OtherAssigner


def test_an_assigner_of_a_fork_stays(yolo):
    """Of a class of its own, or of the stock class that does something else."""
    model, given = network("yolo26n"), batch()
    model.criterion = model.init_criterion()
    one2many, one2one = (head.assigner for head in heads(model.criterion))
    one2many.__class__ = other_assigner(type(one2many))
    expected, *_ = step(copy.deepcopy(model), given)
    with pytest.warns(UserWarning, match=rf"OtherAssigner of {__file__} stays the assigner, because it is of another"):
        handle = begin(yolo, model, enable=accelerate)
    assert [isinstance(head.assigner, AssignerInPlace) for head in heads(model.criterion)] == [False, True]
    assert step(model, given)[0] == pytest.approx(expected, rel=1e-6)
    handle.disable()
    assert type(one2one) is type(heads(model.init_criterion())[1].assigner)


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("iou_calculation", lambda truth, predicted: torch.ones(len(truth)), "assigns a trial scene otherwise"),
        ("topk", 40, "topk: expected 1 to 32, got 40"),
        ("num_classes", None, "cannot be compared"),
    ],
)
def test_another_rule_stays(yolo, attribute, value, reason):
    model = network("yolo11n")
    model.criterion = model.init_criterion()
    setattr(model.criterion.assigner, attribute, value)
    if attribute == "topk":
        model.criterion.assigner.topk2 = value
    with pytest.warns(UserWarning, match=f"TaskAlignedAssigner of .*tal.py stays the assigner, because it .*{reason}"):
        handle = begin(yolo, model, enable=accelerate)
    assert not is_accelerated(model)
    handle.disable()


@every_rule
@pytest.mark.parametrize("classes", [1, 3, 80])
def test_an_older_rule_stays(rule, classes):
    """Up to 8.4.127 a side is enlarged if it is below the first stride, and not the second. Most points of a head that
    keeps one for each box are the same either way."""
    stock, _ = assigners(num_classes=classes, stride=[8.0, 16.0, 32.0], **rule)
    without, of_class = copy.copy(stock), type(stock).select_candidates_in_gts
    without.stride_val = 0

    def select(points, boxes, mask, *eps):
        centre, side = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
        half = torch.where((side < stock.stride[0]) & (mask > 0), stock.stride[1], side) / 2
        return of_class(without, points, torch.cat((centre - half, centre + half), -1), mask, *eps)

    stock.select_candidates_in_gts = select
    with pytest.warns(UserWarning, match="stays the assigner, because it assigns a trial scene otherwise"):
        assert replace_assigners(types.SimpleNamespace(assigner=stock)) == []


def test_models_without_an_assigner(ultralytics, yolo):
    for other in torch.nn.Linear(2, 2), "yolo11n.pt":
        with pytest.raises(TypeError, match=r"model: expected a model of ultralytics like YOLO or RTDETR, .* got"):
            accelerate(other)
    with pytest.raises(ValueError, match="model: expected one with the task detect, got segment"):
        accelerate(ultralytics.YOLO("yolo11n-seg.yaml"))
    with pytest.raises(ValueError, match="model: expected one with a task-aligned assigner, got RTDETR"):
        accelerate(ultralytics.RTDETR("yolov8n-rtdetr.yaml"))
    expected = "model: expected one whose criterion has an assigner, got one with RTDETRDetectionLoss of .*loss.py"
    with pytest.raises(ValueError, match=expected):
        begin(yolo, network("yolov8n-rtdetr"), enable=accelerate)
    yolo.callbacks[EVENT].clear()
