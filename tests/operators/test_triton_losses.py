"""The formulas of the Triton kernels beside the reference: every loss, its parameters, modifiers and pixels, in every
operator that has them. On a machine without a GPU the kernels run in Triton's interpreter."""

import pytest
import torch
from torch import Tensor

import icr_kernels as icr
import inputs
from detection_scenes import LOGITS, detection_loss, detection_scene, leaves
from icr_kernels import BoxLoss, Penalty
from icr_kernels.calls import DetectionFormula, Formula, PairFunction
from icr_kernels.variants import FURTHER_LOSS_NAMES, LOSS_BY_NAME, LOSS_NAMES, REDUCTION_IDS
from oracle import BOXES, evaluate, expected
from tolerances import relative_l2

if "triton" not in inputs.BACKENDS:
    pytest.skip("Triton is not there", allow_module_level=True)

import triton.language as tl

from icr_kernels import triton_kernels

operators = triton_kernels.operators
DEVICE = inputs.device_of("triton")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}
PAIRS = 60

# Of every parameter a number that is not the default.
OTHER = {"alpha": 2.5, "width": 90.0, "height": 70.0, "exponent": 1.5, "attention": 0.9, "interpolation": 0.6}
OTHER |= {"delta": 0.8, "area": 400.0, "constant": 20.0, "tau": 2.0}
ALL_MODIFIERS = {"inner": 0.8, "focaler": (0.0, 0.95), "wise": ("v3", 1.7, 2.0)}
MODIFIED = [
    BoxLoss("ciou", inner=0.7),
    BoxLoss("iou", inner=1.25),
    BoxLoss("giou", focaler=(0.1, 0.9)),
    BoxLoss("siou", wise="v2"),
    BoxLoss("piou", wise=("v2", 1.5)),
    BoxLoss("eiou", wise="v3"),
    BoxLoss("diou", **ALL_MODIFIERS),
    BoxLoss("sd", delta=0.4, **ALL_MODIFIERS),
]
every_modified_loss = pytest.mark.parametrize("loss", MODIFIED, ids=repr)


def with_other_parameters(name: str) -> BoxLoss:
    return BoxLoss(name, **{parameter.name: OTHER[parameter.name] for parameter in LOSS_BY_NAME[name].parameters})


def mean_for(loss: BoxLoss) -> Tensor | None:
    return torch.tensor(0.4, device=DEVICE) if loss.wise is not None else None


def assert_is_reference(
    loss: BoxLoss, dtype: torch.dtype = torch.float64, scale: float | Tensor = 1.0, **options
) -> None:
    boxes = inputs.pairs(PAIRS, dtype=dtype, device=DEVICE)
    options = {"loss": loss, "wise_mean": mean_for(loss), "reduction": "none", **options}
    actual = evaluate(icr.icr_loss, *boxes, backend="triton", scale=scale, **options)
    # The reference itself takes a number as one of its formula's.
    truth = expected(*boxes, **{"scale" if isinstance(scale, Tensor) else "pixels": scale}, **options)
    for name in ("value", *BOXES):
        assert relative_l2(getattr(actual, name), getattr(truth, name)) < TOLERANCE[dtype], name


@inputs.full_precision
@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_losses(loss, dtype):
    assert_is_reference(with_other_parameters(loss), dtype, relative=True)


@inputs.full_precision
@every_modified_loss
def test_modifiers(loss, dtype):
    assert_is_reference(loss, dtype)


@pytest.mark.parametrize("loss", ["mpdiou", "sd", "nwd", "shape"])
def test_pixels_of_every_pair_of_all_and_as_a_number(loss):
    pixels = torch.linspace(0.5, 8, 2 * PAIRS, dtype=torch.float64, device=DEVICE)
    for scale in (pixels[::2], pixels[:PAIRS].float(), pixels[7], 4.0):
        assert_is_reference(with_other_parameters(loss), scale=scale)


@pytest.mark.parametrize("penalty", ["inverse", "log"])
def test_clamp(penalty):
    for relative in (False, True):
        assert_is_reference(BoxLoss("iou"), penalty=Penalty(penalty, clamp=0.3), relative=relative)


def test_terms():
    boxes = inputs.pairs(PAIRS, dtype=torch.float64, device=DEVICE)
    loss = BoxLoss("mpdiou", width=80.0, **ALL_MODIFIERS)
    pixels, mask = torch.linspace(1, 4, PAIRS, device=DEVICE), torch.arange(PAIRS, device=DEVICE) % 4 != 1
    options = {"loss": loss, "penalty": Penalty("log", clamp=0.2), "scale": pixels, "wise_mean": mean_for(loss)}
    results = []
    for backend in ("triton", "reference"):
        given = [rows.clone().requires_grad_() for rows in boxes]
        terms = icr.icr_terms(*given, mask=mask, backend=backend, **options)
        upstream = [torch.linspace(1, 2 + place, PAIRS, device=DEVICE).double() for place in range(4)]
        results.append([*terms, *torch.autograd.grad(terms, given, upstream)])
    for actual, truth in zip(*results, strict=True):
        assert relative_l2(actual.detach(), truth.detach()) < 1e-12


@pytest.mark.parametrize("kind", FURTHER_LOSS_NAMES)
def test_matrices_with_their_gradients(kind):
    first, second = inputs.crowd(9, 0, torch.float64, DEVICE), inputs.crowd(7, 1, torch.float64, DEVICE)
    results = []
    for backend in ("triton", "reference"):
        given = [rows.clone().requires_grad_() for rows in (first, second)]
        value = icr.pairwise_iou(*given, kind=with_other_parameters(kind), backend=backend)
        upstream = torch.linspace(1, 2, 63, dtype=torch.float64, device=DEVICE).view(9, 7)
        results.append([value, *torch.autograd.grad(value, given, upstream)])
    for actual, truth in zip(*results, strict=True):
        assert relative_l2(actual.detach(), truth.detach()) < 1e-12


def test_selection_with_parameters():
    first, second = inputs.crowd(9, 0, torch.float64, DEVICE), inputs.crowd(30, 1, torch.float64, DEVICE)
    for loss in (BoxLoss("nwd", constant=30.0), BoxLoss("shape", exponent=1.0)):
        actual, truth = (
            icr.pairwise_topk(first, second, 3, kind=loss, backend=each) for each in ("triton", "reference")
        )
        assert torch.equal(actual.indices, truth.indices)
        assert relative_l2(actual.values, truth.values) < 1e-12


@pytest.mark.parametrize("loss", [BoxLoss("nwd", constant=9.0), BoxLoss("mpdiou", **ALL_MODIFIERS)], ids=repr)
def test_dense_heads(loss):
    options = {"loss": loss, "penalty": Penalty("inverse", clamp=0.4), "scale": 2.0, "wise_mean": mean_for(loss)}
    results = []
    for backend in ("triton", "reference"):
        scene = leaves(detection_scene(0, dtype=torch.float64))
        terms = detection_loss(scene, backend, torch.float64, **options)
        gradients = torch.autograd.grad(sum(terms), [scene[name] for name in LOGITS])
        results.append([*terms, *gradients])
    for actual, truth in zip(*results, strict=True):
        assert relative_l2(actual.detach(), truth.detach()) < 1e-12


# Boxes at their limits.


def every_two(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Empty, inverted, huge, tiny, thin and ordinary boxes, each with each."""
    rows = [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1e-30, 1e-30], [-1e18, -1e18, 1e18, 1e18], [1e18, 1e18, 1e18, 1e18]]
    rows += [[5, 5, 2, 2], [1, 2, 3, 2], [0, 0, 1e18, 1e-30], [-3e30, 0, 3e30, 1], [10, 10, 20, 30], [0, 0, 3e-7, 5]]
    boxes = torch.tensor(rows, dtype=torch.float64).to(DEVICE, dtype)
    return boxes.repeat_interleave(len(rows), 0), boxes.repeat(len(rows), 1)


@inputs.full_precision
@pytest.mark.parametrize(
    "loss",
    [*map(BoxLoss, FURTHER_LOSS_NAMES), *MODIFIED, BoxLoss("ciou", inner=20.0), BoxLoss("ciou", inner=0.05)],
    ids=repr,
)
def test_every_finite_box_has_a_finite_loss_and_gradient(loss, dtype):
    options = {"loss": loss, "reduction": "none", "wise_mean": mean_for(loss), "backend": "triton"}
    result = evaluate(icr.icr_loss, *every_two(dtype), None, **options)
    for each in (result.value, result.pred, result.target):
        assert each.isfinite().all(), (~each.isfinite()).nonzero()[:5].tolist()


@inputs.full_precision
@every_modified_loss
def test_identical_boxes_rest(loss, dtype):
    boxes = inputs.crowd(500, 3, torch.float64, DEVICE) * 1.37
    options = {"loss": loss, "reduction": "none", "wise_mean": mean_for(loss), "backend": "triton"}
    result = evaluate(icr.icr_loss, boxes.to(dtype), boxes.to(dtype), None, **options)
    assert not result.value.any() and not result.pred.any() and not result.target.any()


@pytest.mark.parametrize("loss", [*map(BoxLoss, FURTHER_LOSS_NAMES), *MODIFIED], ids=repr)
def test_nan_stays_nan(loss):
    pred, target = inputs.pairs(8, device=DEVICE)[:2]
    for column in range(4):
        pred[column, column] = target[4 + column, column] = float("nan")
    options = {"loss": loss, "reduction": "none", "wise_mean": mean_for(loss), "backend": "triton"}
    result = evaluate(icr.icr_loss, pred, target, None, **options)
    assert result.value.isnan().all() and result.pred.isnan().any(1).all()


# What is compiled.


@pytest.fixture
def launches(monkeypatch):
    """Each launch: its kernel, what it is given by position, and what is compiled in."""
    found, launch = [], operators.launch

    def record(kernel, programs, *arguments, **constants):
        found.append((kernel, arguments, constants))
        launch(kernel, programs, *arguments, **constants)

    for module in (operators, triton_kernels.pairwise_operators, triton_kernels.detection_operators):
        monkeypatch.setattr(module, "launch", record)
    return found


@pytest.mark.parametrize("what", ["loss", "terms", "matrix", "head"])
def test_another_number_compiles_nothing_anew(what, launches):
    """What is compiled in stays, and what changes is a double, of which Triton looks at no value."""
    boxes, scene, mean = inputs.pairs(8, device=DEVICE), detection_scene(0), torch.tensor(0.4, device=DEVICE)
    of_head = *(scene[name] for name in (*LOGITS, "points", "strides", "truth", "labels")), *scene["assignment"]
    of_head = [each.to(DEVICE) for each in (*of_head, scene["anchor_index"])]

    def call(loss: BoxLoss, penalty: Penalty, number: float) -> None:
        formula = Formula(loss, penalty, penalty_weight=number, eps=number / 10)
        if what == "loss":
            tensors = *boxes, *(None,) * 5, mean, None
            triton_kernels.loss(*tensors, number, REDUCTION_IDS["sum"], formula.packed(), 3, False)
        elif what == "terms":
            triton_kernels.terms(*boxes, *(None,) * 4, mean, formula.packed())
        elif what == "matrix":
            triton_kernels.pairwise(*boxes[:2], PairFunction(loss.name, "xyxy", number, loss.parameters).packed())
        else:
            options = DetectionFormula(formula, number, number, number, number, True, number, number)
            triton_kernels.detection_loss(*of_head, None, mean, None, options.packed())

    call(BoxLoss("mpdiou", **ALL_MODIFIERS), Penalty("log"), 0.5)
    other = {"inner": 1.0, "focaler": (0.5, 1.0), "wise": ("v3", 1.5, 1.0)}
    call(BoxLoss("mpdiou", width=1.0, height=16.0, **other), Penalty("log", clamp=1.0), 1.0)
    count = len(launches) // 2
    for (kernel, one, compiled), (again, another, compiled_again) in zip(
        launches[:count], launches[count:], strict=True
    ):
        assert kernel is again and compiled == compiled_again
        for name, first, second in zip(kernel.arg_names, one, another, strict=False):
            if isinstance(first, float):
                assert kernel.fn.__annotations__[name] == tl.float64
            elif not isinstance(first, (Tensor, tuple)):
                assert first == second
