"""The short way of an ordinary call (csrc/autograd.cpp): taken where it should be, left where it should not, and the
same as the long way to the bit."""

import contextlib
import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

import icr_kernels as icr
from icr_kernels import arguments, builds, shortcut
from icr_kernels.variants import BOX_FORMATS
from inputs import (
    EMULATED,
    LOSSES_AND_PENALTIES,
    REFERENCE_ONLY,
    device_of,
    dtype_id,
    every_reduction,
    pairs,
    pairs_of_a_table,
)
from oracle import BOXES
from tolerances import same_bits

# Those that it knows.
BACKENDS = [
    name
    for name in ("cuda", "cpu", "emulated")
    if name in icr.available_backends() or (EMULATED and name == "emulated")
]
every_direct_backend = pytest.mark.parametrize("backend", BACKENDS)

pytestmark = pytest.mark.skipif(REFERENCE_ONLY, reason="the extensions are not tested")


@pytest.fixture(autouse=True)
def extension_of_autograd():
    assert builds.autograd_build is not None, builds.AUTOGRAD_ERROR


@pytest.fixture
def the_long_way(monkeypatch):
    """A context in which there is no short way."""

    @contextlib.contextmanager
    def closed():
        with monkeypatch.context() as patch:
            patch.setattr(shortcut, "icr_loss", lambda *_: None)
            patch.setattr(shortcut, "icr_loss_and_grad", lambda *_: None)
            yield

    return closed


def took_the_short_way(loss: Tensor) -> bool:
    name = loss.grad_fn.name()
    assert name in ("IcrLossBackward", "LossBackward")
    return name == "IcrLossBackward"


def inputs_of(backend: str, n: int, dtypes, form: str) -> tuple[list[Tensor], dict]:
    device = device_of(backend)
    if form == "table":
        *boxes, index = pairs_of_a_table(n, 5, device=device)
        options = {"anchor_index": index.int() if n % 2 else index}
    else:
        boxes, options = [*pairs(n, device=device)], {}
    if form == "alone":
        boxes[2] = None
    if form == "every argument":
        options |= {"weight": torch.linspace(0.5, 2, n, device=device), "mask": torch.arange(n, device=device) % 3 != 0}
    boxes = [rows if rows is None else rows.to(dtype) for rows, dtype in zip(boxes, dtypes, strict=True)]
    return boxes, options


def evaluated(boxes: list[Tensor], wanted: tuple[str, ...], options: dict) -> tuple[bool, list[Tensor]]:
    """The loss, its gradients by a graph that is kept and by one that is not, and what one pass gives."""
    leaves = [
        rows if rows is None else rows.detach().clone().requires_grad_(name in wanted)
        for name, rows in zip(BOXES, boxes, strict=True)
    ]
    loss = icr.icr_loss(*leaves, **options)
    given = [rows for rows in leaves if rows is not None and rows.requires_grad]
    upstream = torch.linspace(-1, 2, loss.numel(), dtype=loss.dtype, device=loss.device).view_as(loss)
    found = [loss.detach()]
    found += torch.autograd.grad(loss, given, upstream, retain_graph=True)
    found += torch.autograd.grad(loss.sum(), given)
    found += icr.icr_loss_and_grad(*boxes, **options)
    with torch.no_grad():
        found.append(icr.icr_loss(*leaves, **options))
    return took_the_short_way(loss), found


def assert_the_same_both_ways(the_long_way, boxes, wanted, **options) -> None:
    was_short, short = evaluated(boxes, wanted, options)
    with the_long_way():
        was_long, long = evaluated(boxes, wanted, options)
    assert was_short and not was_long
    assert all(same_bits(one, other) for one, other in zip(short, long, strict=True))
    assert all(one.requires_grad == other.requires_grad for one, other in zip(short, long, strict=True))


DTYPES = [(dtype,) * 3 for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)]
DTYPES += [(torch.float16, torch.float32, torch.float32), (torch.float32, torch.bfloat16, torch.float64)]


SPECIFIED = [
    (icr.BoxLoss("mpdiou", width=100, height=50.5), "containment"),
    (icr.BoxLoss("sd", delta=0.7, area=9), icr.Penalty("log", clamp=0.3)),
    (icr.BoxLoss("ciou", inner=0.7, focaler=(0, 0.95)), icr.Penalty("pull")),
    ("giou", icr.Penalty("inverse", clamp=1)),
]


@every_direct_backend
@every_reduction
@pytest.mark.parametrize("form", ["alone", "pairs", "table", "every argument"])
@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda dtypes: "+".join(map(dtype_id, dtypes)))
def test_it_is_the_same_as_the_long_way(dtypes, form, reduction, backend, the_long_way):
    for n, wanted in ((1, ("pred",)), (37, BOXES), (300, ("target",)), (0, BOXES)):
        boxes, options = inputs_of(backend, n, dtypes, form)
        assert_the_same_both_ways(the_long_way, boxes, wanted, reduction=reduction, backend=backend, **options)


@every_direct_backend
@pytest.mark.parametrize(("loss", "penalty"), LOSSES_AND_PENALTIES + SPECIFIED)
def test_every_formula_is_the_same(loss, penalty, backend, the_long_way):
    for box_format in BOX_FORMATS:
        boxes = pairs(37, box_format=box_format, device=device_of(backend))
        options = {"loss": loss, "penalty": penalty, "box_format": box_format, "backend": backend}
        assert_the_same_both_ways(the_long_way, boxes, BOXES, penalty_weight=3, relative=True, eps=1e-3, **options)


@every_direct_backend
def test_every_normalizer_is_the_same(backend, the_long_way):
    boxes = pairs(37, device=device_of(backend))
    tensors = (torch.tensor(number, device=boxes[0].device) for number in (5, 5.5, 0.0))
    for normalizer in (5, 5.5, 0, -3.0, *tensors):
        assert_the_same_both_ways(the_long_way, boxes, BOXES, normalizer=normalizer, backend=backend)


@every_direct_backend
@pytest.mark.parametrize("layout", ["strided", "transposed", "expanded", "leading"])
def test_every_layout_is_the_same(layout, backend, the_long_way):
    boxes = pairs(36, device=device_of(backend))
    lay = {
        "strided": lambda rows: torch.cat((rows, rows), 1)[:, 1:5],
        "transposed": lambda rows: rows.t().contiguous().t(),
        "expanded": lambda rows: rows[:1].expand(36, 4),
        "leading": lambda rows: rows.view(2, 3, 6, 4).transpose(0, 2),
    }[layout]
    for reduction in ("none", "mean"):
        laid = [lay(rows) for rows in boxes]
        with the_long_way():
            wanted = icr.icr_loss_and_grad(*laid, reduction=reduction, backend=backend)
        found = icr.icr_loss_and_grad(*laid, reduction=reduction, backend=backend)
        assert all(same_bits(one, other) for one, other in zip(found, wanted, strict=True))
        leaves = [rows.requires_grad_() for rows in boxes]
        loss = icr.icr_loss(*map(lay, leaves), reduction=reduction, backend=backend)
        assert took_the_short_way(loss)
        found = torch.autograd.grad(loss.sum(), leaves)
        with the_long_way():
            loss = icr.icr_loss(*map(lay, leaves), reduction=reduction, backend=backend)
            wanted = torch.autograd.grad(loss.sum(), leaves)
        assert all(same_bits(one, other) for one, other in zip(found, wanted, strict=True))


@every_direct_backend
def test_ordinary_calls_take_it(backend):
    pred, target, anchor_objects = pairs(9, device=device_of(backend))
    leaf = torch.nn.Parameter(pred)
    assert took_the_short_way(icr.icr_loss(leaf, target, anchor_objects, backend=backend))
    assert took_the_short_way(icr.icr_loss(leaf * 1, target, anchor_objects, backend=backend))
    assert took_the_short_way(icr.box_iou_loss(leaf, target, backend=backend))
    assert took_the_short_way(icr.ICRLoss("giou", backend=backend)(leaf, target, anchor_objects))
    assert took_the_short_way(icr.BoxIoULoss(backend=backend)(leaf, target))
    with torch.autocast(pred.device.type, dtype=torch.bfloat16):
        assert took_the_short_way(icr.icr_loss(leaf, target, anchor_objects, backend=backend))
    if backend != "emulated":
        assert took_the_short_way(icr.icr_loss(leaf, target, anchor_objects))


class _Subclass(Tensor):
    pass


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        return operator(*args, **(kwargs or {}))


CONTEXTS = {
    "dispatch mode": _Mode,
    "default device": lambda: torch.device("cpu"),
    "saved-tensor hooks": lambda: saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor),
    "anomaly mode": torch.autograd.detect_anomaly,
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", CONTEXTS)
def test_where_somebody_looks_on_the_long_way_is_taken(name):
    pred, target, anchor_objects = pairs(9)
    with CONTEXTS[name]():
        loss = icr.icr_loss(pred.requires_grad_(), target, anchor_objects)
    assert not took_the_short_way(loss)


def test_what_is_not_ordinary_takes_the_long_way(monkeypatch):
    """Values that the long way understands, or refuses in its own words: `test_errors.py`."""
    pred, target, anchor_objects = pairs(9)
    pred.requires_grad_()
    assert not took_the_short_way(icr.icr_loss(pred.as_subclass(_Subclass), target, anchor_objects))
    for options in ({"eps": torch.tensor(1e-7).numpy()[()]}, {"penalty_weight": torch.tensor(2.0).numpy()[()]}):
        assert not took_the_short_way(icr.icr_loss(pred, target, anchor_objects, **options))
    assert not took_the_short_way(icr.icr_loss(pred, target, anchor_objects, target_index=torch.arange(9)))
    wise = {"loss": icr.BoxLoss("ciou", wise="v3"), "wise_mean": torch.tensor(0.5)}
    assert not took_the_short_way(icr.icr_loss(pred, target, anchor_objects, **wise))
    with pytest.raises(ValueError, match="wise_mean: expected the running mean"):
        icr.icr_loss(pred, target, anchor_objects, loss=wise["loss"])
    of_another_version = icr.BoxLoss("mpdiou")
    of_another_version.__dict__["numbers"] += (1.0,) * 1000
    with pytest.raises(RuntimeError, match="expected a formula of 17 numbers, got 1017"):
        icr.icr_loss(pred, target, anchor_objects, loss=of_another_version)
    with pytest.raises(AttributeError, match=r"no attribute .name"):
        icr.icr_loss(pred, target, anchor_objects, penalty=object.__new__(icr.Penalty))
    with pytest.raises(TypeError, match="must be real number, not str"):
        of_another_version.__dict__["numbers"] = ("640",)
        icr.icr_loss(pred, target, anchor_objects, loss=of_another_version)
    with forward_ad.dual_level():
        assert icr.icr_loss(pred, target, anchor_objects).grad_fn.name() not in ("IcrLossBackward", "LossBackward")
    with torch.inference_mode():
        assert icr.icr_loss(pred, target, anchor_objects).is_inference()
    monkeypatch.setattr(arguments, "CHECK_VALUES", True)
    assert not took_the_short_way(icr.icr_loss(pred, target, anchor_objects))
    with pytest.raises(ValueError, match="finite"):
        icr.icr_loss(pred, target * math.nan, anchor_objects)


def test_an_interrupt_is_not_swallowed():
    """While Python runs for the numbers of a loss."""

    def interrupt(frame, event, argument):
        if frame.f_code.co_name == "packed":
            sys.setprofile(None)
            raise KeyboardInterrupt

    pred, target, _ = pairs(9)
    loss = icr.BoxLoss("mpdiou", width=100)
    before = sys.getprofile()
    sys.setprofile(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            icr.box_iou_loss(pred, target, loss=loss)
    finally:
        sys.setprofile(before)


@every_direct_backend
@pytest.mark.parametrize("form", ["pairs", "table", "every argument"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_compiled_autograd(dtype, form, backend):
    """A backward pass that is compiled, of a loss that was not; the operator is in its graph."""
    graphs = []

    def compiler(graph):
        graphs.append(graph)
        return torch.compile(graph, backend="aot_eager", fullgraph=True)

    boxes, options = inputs_of(backend, 9, (dtype,) * 3, form)
    found = []
    for context in (contextlib.nullcontext(), compiled_autograd._enable(compiler)):
        leaves = [rows.clone().requires_grad_() for rows in boxes]
        loss = icr.icr_loss(*leaves, **options, backend=backend)
        assert took_the_short_way(loss)
        with context:
            (3 * loss).backward()
        found.append([rows.grad for rows in leaves])
    torch._dynamo.reset()
    assert all(same_bits(one, other) for one, other in zip(*found, strict=True))
    (graph,) = graphs
    assert "icr_kernels.scaled" in graph.code


@every_direct_backend
def test_a_profiler_sees_it(backend):
    boxes = [rows.requires_grad_() for rows in pairs(9, device=device_of(backend))]
    with torch.profiler.profile() as profile:
        icr.icr_loss(*boxes, backend=backend).backward()
    names = {event.name for event in profile.events()}
    assert {"icr_kernels::loss", "IcrLossBackward"} <= names


def test_that_of_another_torch_is_not_loaded():
    """Not even looked into: this one's name is what another version asks for, and its content would end the process."""
    script = """
import torch, sys
torch.__version__ = torch.version.__version__ = "2.99.0+cpu"
import icr_kernels as icr
assert not [name for name in sys.modules if "_C_autograd" in name]
assert icr.builds.autograd_build is None
print(icr.builds.AUTOGRAD_ERROR)
pred = torch.tensor([[0.0, 0.0, 2.0, 2.0]], requires_grad=True)
loss = icr.box_iou_loss(pred, torch.tensor([[1.0, 0.0, 3.0, 2.0]]))
loss.backward()
assert loss.grad_fn.name() == "LossBackward" and pred.grad.any()
from icr_kernels import info
print(info.report())
"""
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    error, *report = printed.splitlines()
    assert error.startswith("_C_autograd_2_99_0_cpu is missing, there is _C_autograd_")
    assert "reinstall icr_kernels without build isolation, beside torch 2.99.0+cpu" in error
    assert any(line.startswith("autograd extension") and line.endswith(f"no: {error}") for line in report)
