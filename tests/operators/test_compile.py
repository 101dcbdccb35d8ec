"""torch.compile: operators keep their contract, graphs have no break, a new number of pairs compiles nothing anew."""

import pytest
import torch
from torch import Tensor

import icr_kernels as icr
from icr_kernels.backends import BY_NAME
from inputs import (
    COMPILED_BACKENDS,
    INTERPRETED,
    as_table,
    device_of,
    every_backend,
    every_compiled_backend,
    every_quick_compiled_backend,
    pairs,
    pairs_of_a_table,
)
from operator_calls import OperatorCalls, operator_names, operators_of_heads, operators_over_sets
from oracle import BOXES, evaluate
from tolerances import same_bits


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _pairs_alone(backend: str, **options) -> None:
    pred, target, _ = (rows.requires_grad_() for rows in pairs(13, device=device_of(backend)))
    icr.box_iou_loss(pred, target, backend=backend, **options).sum().backward()


def _every_argument(backend: str, reduction: str, dtype: torch.dtype = torch.float32) -> None:
    device = device_of(backend)
    pred, target, table, index = pairs_of_a_table(13, 5, dtype=dtype, device=device)
    target, target_index = as_table(target)
    boxes = [rows.requires_grad_() for rows in (pred, target, table)]
    options = {
        "weight": torch.rand(13, device=device),
        "mask": torch.arange(13, device=device) % 3 != 0,
        "target_index": target_index,
        "anchor_index": index,
        "backend": backend,
    }
    if reduction == "mean":
        options["normalizer"] = torch.tensor(5.0, device=device)
    icr.icr_loss(*boxes, reduction=reduction, **options).sum().backward()
    icr.icr_loss_and_grad(*boxes, reduction=reduction, **options)


def _mean_of_the_unmasked(backend: str, n: int = 13) -> None:
    boxes = [rows.requires_grad_() for rows in pairs(n, device=device_of(backend))]
    mask = torch.arange(n, device=boxes[0].device) % 3 != 0
    icr.icr_loss(*boxes, mask=mask, backend=backend).backward()
    icr.icr_loss_and_grad(*boxes, mask=mask, backend=backend)


def _rows_of_their_own(backend: str, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...] = (13,)) -> None:
    rows_and_dtypes = zip(pairs(torch.Size(shape).numel(), device=device_of(backend)), dtypes, strict=True)
    boxes = [rows.view(*shape, 4).to(dtype).requires_grad_() for rows, dtype in rows_and_dtypes]
    icr.icr_loss(*boxes, backend=backend).backward()
    sum(term.sum() for term in icr.icr_terms(*boxes, backend=backend)).backward()


def _mean_of_those_with_a_target(backend: str) -> None:
    pred, target, anchor_objects = pairs(13, device=device_of(backend))
    target, index = as_table(target)
    boxes = [rows.requires_grad_() for rows in (pred, target, anchor_objects)]
    icr.icr_loss(*boxes, target_index=index, backend=backend).backward()


def _terms_with_a_table(backend: str) -> None:
    pred, target, table, index = pairs_of_a_table(13, 5, device=device_of(backend))
    boxes = [pred.requires_grad_(), target, table.requires_grad_()]
    mask = torch.arange(13, device=pred.device) % 3 != 0
    icr.icr_terms(*boxes, anchor_index=index, mask=mask, backend=backend).penalty.sum().backward()
    target, target_index = as_table(target)
    boxes[1] = target.requires_grad_()
    indices = {"target_index": target_index, "anchor_index": index}
    icr.icr_terms(*boxes, **indices, backend=backend).loss.sum().backward()


def _a_specification(backend: str) -> None:
    device = device_of(backend)
    boxes = [rows.requires_grad_() for rows in pairs(13, device=device)]
    options = {
        "loss": icr.BoxLoss("mpdiou", width=64, height=48, inner=0.7, wise="v3"),
        "penalty": icr.Penalty("log", clamp=0.1),
        "scale": torch.linspace(1, 8, 13, device=device),
        "wise_mean": torch.tensor(0.5, device=device),
        "backend": backend,
    }
    icr.icr_loss(*boxes, **options).backward()
    icr.icr_terms(*boxes, **options).loss.sum().backward()


SAMPLES = {
    "pairs_alone": _pairs_alone,
    "pairs_alone_none": lambda backend: _pairs_alone(backend, reduction="none"),
    "every_argument_mean": lambda backend: _every_argument(backend, "mean"),
    "every_argument_sum": lambda backend: _every_argument(backend, "sum", torch.float64),
    "every_argument_none": lambda backend: _every_argument(backend, "none", torch.bfloat16),
    "mean_of_the_unmasked": _mean_of_the_unmasked,
    "mean_of_the_unmasked_of_no_pairs": lambda backend: _mean_of_the_unmasked(backend, 0),
    "mean_of_those_with_a_target": _mean_of_those_with_a_target,
    "rows_of_their_own": lambda backend: _rows_of_their_own(backend, (torch.float32,) * 3),
    "mixed_dtypes": lambda backend: _rows_of_their_own(backend, (torch.float16, torch.float32, torch.float64)),
    "leading_shape": lambda backend: _rows_of_their_own(backend, (torch.float64,) * 3, (2, 3, 2)),
    "no_pairs": lambda backend: _rows_of_their_own(backend, (torch.float32,) * 3, (0,)),
    "terms_with_a_table": _terms_with_a_table,
    "a_specification": _a_specification,
}


def recorded(sample: str, backend: str) -> list[tuple]:
    with OperatorCalls() as calls:
        SAMPLES[sample](backend)
    return [(operator, args) for operator, args, _ in calls.found]


def described(operator, arguments: tuple) -> tuple:
    """All that the dispatcher knows of a call: two of one description are one to it."""

    def of(value):
        if not isinstance(value, Tensor):
            return repr(value)
        return value.dtype, value.device, value.shape, value.stride(), value.storage_offset()

    return operator.name(), *map(of, arguments)


@every_compiled_backend
def test_samples_reach_every_operator_over_aligned_pairs(backend):
    found = {operator.name() for sample in SAMPLES for operator, _ in recorded(sample, backend)}
    assert found == operator_names(backend) - operators_over_sets(backend) - operators_of_heads(backend)


def test_every_operator_belongs_to_a_backend():
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("icr_kernels::")}
    families = (operator_names(name) for name, backend in BY_NAME.items() if backend.operators is not None)
    assert registered == set().union(*families)


# Beside inputs that require grad torch warns that the operators have no autograd of their own: it stands around them.
@pytest.mark.filterwarnings("ignore:.*an autograd kernel was not registered")
@pytest.mark.parametrize(
    ("requires_grad", "backend"),
    [pytest.param(False, backend, id=f"no_grad-{backend}") for backend in COMPILED_BACKENDS]
    + [pytest.param(True, backend, id=f"requires_grad-{backend}") for backend in COMPILED_BACKENDS if backend == "cpu"],
)
@pytest.mark.parametrize("sample", SAMPLES)
def test_operators_keep_the_contract_of_the_dispatcher(sample, requires_grad, backend):
    """Schema (what is mutated or aliased), fake kernels (static and dynamic shapes) and the way through AOTAutograd,
    for each call that the public functions make. AOTAutograd knows of no backend."""

    def ready(value):
        if not isinstance(value, Tensor):
            return value
        value = value.detach().clone()
        return value.requires_grad_(requires_grad and value.is_floating_point())

    calls = {described(operator, args): (operator, args) for operator, args in recorded(sample, backend)}
    assert calls
    checks = ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic")
    for operator, args in calls.values():
        arguments = tuple(ready(value) for value in args)
        torch.library.opcheck(operator, arguments, test_utils=checks if backend in ("cpu", "cuda") else checks[:3])


def assert_same_bits_compiled_once(function, calls) -> None:
    """Compiled with dynamic shapes, ``function`` gives what it gives eagerly for each of the calls, and is compiled for
    the first of them only: a second compilation raises."""
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for boxes, options in calls:
            eager, result = evaluate(function, *boxes, **options), evaluate(compiled, *boxes, **options)
            for one, other in zip(eager, result, strict=True):
                assert one is other is None or same_bits(one, other), len(boxes[0])


def sizes(backend: str) -> tuple[int, ...]:
    """Fewer and more pairs than at first, and many more; in Triton's interpreter as many as take several programs."""
    return 1000, 37, 4100, 10007 if backend in INTERPRETED else 70001


@every_quick_compiled_backend
@pytest.mark.parametrize(
    ("wanted", "reduction"),
    [(BOXES, "none"), (BOXES, "mean"), (("pred",), "sum")],
    ids=["all-none", "all-mean", "pred-sum"],
)
def test_dynamic_shapes_give_the_same_bits_and_compile_once(wanted, reduction, backend):
    options = {"penalty": "containment+pull", "reduction": reduction, "wanted": wanted, "backend": backend}
    calls = [(pairs(n, device=device_of(backend)), options) for n in (1000, 37, 4100, 70001)]
    assert_same_bits_compiled_once(icr.icr_loss, calls)


@every_compiled_backend
def test_dynamic_shapes_of_every_argument(backend):
    """The lengths of the tables too."""
    device, calls = device_of(backend), []
    for n, m in ((1000, 50), (37, 9), (4100, 2000)):
        *boxes, index = pairs_of_a_table(n, m, device=device)
        boxes[1], target_index = as_table(boxes[1])
        options = {
            "target_index": target_index,
            "anchor_index": index,
            "weight": torch.linspace(0.5, 2, n, device=device),
            "mask": torch.arange(n, device=device) % 3 != 0,
            "normalizer": torch.tensor(float(n), device=device),
        }
        calls.append((boxes, {**options, "backend": backend}))
    assert_same_bits_compiled_once(icr.icr_loss, calls)


@every_compiled_backend
def test_dynamic_shapes_of_the_terms(backend):
    def weighted(*boxes, **options):
        terms = icr.icr_terms(*boxes, **options)
        return terms.loss + 2 * terms.iou - 3 * terms.containment + 4 * terms.penalty

    calls = [(pairs(n, device=device_of(backend)), {"backend": backend}) for n in sizes(backend)]
    assert_same_bits_compiled_once(weighted, calls)


@every_compiled_backend
def test_dynamic_shapes_of_the_loss_and_gradient_in_one_pass(backend):
    compiled = torch.compile(icr.icr_loss_and_grad, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n in sizes(backend):
            boxes = pairs(n, device=device_of(backend))
            eager, result = icr.icr_loss_and_grad(*boxes, backend=backend), compiled(*boxes, backend=backend)
            assert same_bits(eager[0], result[0]) and same_bits(eager[1], result[1]), n


@every_backend
def test_terms_compile_into_one_graph(backend):
    compiled = torch.compile(icr.icr_terms, backend="aot_eager", fullgraph=True, dynamic=True)
    for n in (1000, 37):
        boxes = pairs(n, dtype=torch.float64, device=device_of(backend))
        for one, other in zip(icr.icr_terms(*boxes, backend=backend), compiled(*boxes, backend=backend), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@every_backend
def test_a_module_with_a_running_mean_compiles_into_one_graph(backend):
    """What the mean is after each step is part of it."""
    boxes = pairs(37, dtype=torch.float64, device=device_of(backend))
    loss = icr.BoxLoss("sd", area=20, focaler=(0.1, 0.9), wise="v3")
    eager, compiled = (icr.ICRLoss(loss, wise_momentum=0.5, backend=backend).to(boxes[0].device) for _ in range(2))
    graph = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        assert graph(*boxes).item() == pytest.approx(eager(*boxes).item(), rel=1e-6)
        assert compiled.wise_mean.item() == pytest.approx(eager.wise_mean.item(), rel=1e-6) and eager.wise_mean < 1


@every_backend
def test_modules_compile_into_one_graph(backend):
    module = icr.ICRLoss("giou", backend=backend)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    boxes = pairs(37, dtype=torch.float64, device=device_of(backend))
    assert compiled(*boxes).item() == pytest.approx(module(*boxes).item(), rel=1e-12)
    index = {"target_index": torch.arange(37, device=boxes[0].device) % 41 - 2}
    assert compiled(*boxes, **index).item() == pytest.approx(module(*boxes, **index).item(), rel=1e-12)


@every_backend
def test_graph_without_a_gradient(backend):
    compiled = torch.compile(icr.icr_loss, backend="aot_eager", fullgraph=True, dynamic=True)
    boxes = pairs(37, dtype=torch.float64, device=device_of(backend))
    with torch.no_grad():
        value = compiled(*boxes, backend=backend)
    assert not value.requires_grad
    assert value.item() == pytest.approx(icr.icr_loss(*boxes, backend=backend).item(), rel=1e-12)


@every_backend
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_inductor(dynamic, backend):
    """The default compiler, with the loss inside a larger graph, forward and backward."""

    def training_step(raw: Tensor, target: Tensor, anchor_objects: Tensor) -> Tensor:
        first, size = raw[:, :2], raw[:, 2:].exp()
        pred = torch.cat((first, first + size), 1)
        return icr.icr_loss(pred, target, anchor_objects, penalty="containment+pull", backend=backend) * 3

    pred, target, anchor_objects = pairs(257, device=device_of(backend))
    raw = torch.cat((pred[:, :2], (pred[:, 2:] - pred[:, :2]).log()), 1)
    compiled = torch.compile(training_step, fullgraph=True, dynamic=dynamic)
    eager, result = (
        evaluate(training_step, raw, target, anchor_objects),
        evaluate(compiled, raw, target, anchor_objects),
    )
    for one, other in zip(eager, result, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
