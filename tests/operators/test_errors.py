"""Bad input is refused in one sentence that names the argument, what was expected and what came, by every backend."""

import importlib.metadata
import os
import re
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch

import icr_kernels as icr
from icr_kernels import builds
from icr_kernels.variants import BOX_FORMATS, LOSS_NAMES, PENALTY_NAMES, REDUCTIONS
from inputs import device_of, every_backend, pairs, pairs_of_a_table
from oracle import evaluate
from tolerances import same_bits

N = 6


def good(backend: str) -> dict:
    """Arguments of icr_loss that are all there and all right."""
    device = device_of(backend)
    pred, target, table, index = pairs_of_a_table(N, 4, device=device)
    return {
        "pred": pred,
        "target": target,
        "anchor_objects": table,
        "anchor_index": index,
        "weight": torch.ones(N, device=device),
        "mask": torch.ones(N, dtype=torch.bool, device=device),
    }


def per_row(backend: str) -> dict:
    """The same with an anchor object of its own for each pair."""
    pred, target, anchor_objects = pairs(N, device=device_of(backend))
    return {**good(backend), "pred": pred, "target": target, "anchor_objects": anchor_objects, "anchor_index": None}


def call(arguments: dict, **options):
    arguments = {**arguments, **options}
    boxes = [arguments.pop(name) for name in ("pred", "target", "anchor_objects")]
    return icr.icr_loss(*boxes, **arguments)


def listed(names) -> str:
    return re.escape(", ".join(names))


SHAPES = [
    ("pred", torch.ones(N, 5), r"boxes of shape \(\.\.\., 4\), got \(6, 5\)"),
    ("pred", torch.ones(4, N), r"boxes of shape \(\.\.\., 4\), got \(4, 6\)"),
    ("pred", torch.tensor(1.0), r"boxes of shape \(\.\.\., 4\), got \(\)"),
    ("pred", torch.ones(0), r"boxes of shape \(\.\.\., 4\), got \(0,\)"),
    ("target", torch.ones(N, 3), r"boxes of shape \(\.\.\., 4\), got \(6, 3\)"),
    ("target", torch.ones(N + 1, 4), r"the shape of pred, \(6, 4\), got \(7, 4\)"),
    ("target", torch.ones(4), r"the shape of pred, \(6, 4\), got \(4,\)"),
    ("target", torch.ones(1, 4), r"the shape of pred, \(6, 4\), got \(1, 4\)"),
    ("target", torch.ones(2, 3, 4), r"the shape of pred, \(6, 4\), got \(2, 3, 4\)"),
    ("anchor_objects", torch.ones(3, 2), r"boxes of shape \(\.\.\., 4\), got \(3, 2\)"),
    ("anchor_objects", torch.ones(2, 3, 4), r"a table \(M, 4\) with anchor_index, got \(2, 3, 4\)"),
    ("anchor_objects", torch.ones(4), r"a table \(M, 4\) with anchor_index, got \(4,\)"),
    ("anchor_index", torch.zeros(N + 1, dtype=torch.int64), r"one value per pair, \(6,\), got \(7,\)"),
    ("anchor_index", torch.zeros(N, 1, dtype=torch.int64), r"one value per pair, \(6,\), got \(6, 1\)"),
    ("anchor_index", torch.tensor(0), r"one value per pair, \(6,\), got \(\)"),
    ("target_index", torch.zeros(N + 1, dtype=torch.int64), r"one value per pair, \(6,\), got \(7,\)"),
    ("target_index", torch.zeros(N, 1, dtype=torch.int64), r"one value per pair, \(6,\), got \(6, 1\)"),
    ("weight", torch.ones(N, 1), r"one value per pair, \(6,\), got \(6, 1\)"),
    ("weight", torch.ones(1), r"one value per pair, \(6,\), got \(1,\)"),
    ("weight", torch.tensor(1.0), r"one value per pair, \(6,\), got \(\)"),
    ("mask", torch.ones(N, 4, dtype=torch.bool), r"one value per pair, \(6,\), got \(6, 4\)"),
    ("mask", torch.ones(2, 3, dtype=torch.bool), r"one value per pair, \(6,\), got \(2, 3\)"),
    ("normalizer", torch.ones(1), r"a number or a 0-dim tensor, got shape \(1,\)"),
    ("normalizer", torch.ones(N), r"a number or a 0-dim tensor, got shape \(6,\)"),
]


@every_backend
@pytest.mark.parametrize(
    ("argument", "value", "message"), SHAPES, ids=[f"{name}{tuple(value.shape)}" for name, value, _ in SHAPES]
)
def test_wrong_shape(argument, value, message, backend):
    with pytest.raises(ValueError, match=rf"^{argument}: expected {message}$"):
        call({**good(backend), argument: value.to(device_of(backend))}, backend=backend)


@every_backend
@pytest.mark.parametrize("shape", [(N + 1, 4), (1, 4), (2, 3, 4)], ids=str)
def test_wrong_shape_of_anchor_objects_without_an_index(shape, backend):
    got = re.escape(str(shape))
    message = (
        rf"^anchor_objects: expected the shape of pred, \(6, 4\), or a table \(M, 4\) with anchor_index, got {got}$"
    )
    with pytest.raises(ValueError, match=message):
        call({**per_row(backend), "anchor_objects": torch.ones(shape, device=device_of(backend))}, backend=backend)


@every_backend
@pytest.mark.parametrize("shape", [(4,), (2, 3, 4)], ids=str)
def test_wrong_shape_of_a_table_of_targets(shape, backend):
    arguments = {**good(backend), "target": torch.ones(shape, device=device_of(backend))}
    arguments["target_index"] = arguments["anchor_index"]
    message = rf"^target: expected a table \(M, 4\) with target_index, got {re.escape(str(shape))}$"
    with pytest.raises(ValueError, match=message):
        call(arguments, backend=backend)


FLOATS = "dtype float32, float64, float16, bfloat16"
DTYPES = [
    ("pred", torch.ones(N, 4, dtype=torch.int64), rf"{FLOATS}, got int64"),
    ("pred", torch.ones(N, 4, dtype=torch.bool), rf"{FLOATS}, got bool"),
    ("pred", torch.ones(N, 4, dtype=torch.complex64), rf"{FLOATS}, got complex64"),
    ("target", torch.ones(N, 4, dtype=torch.int32), rf"{FLOATS}, got int32"),
    ("anchor_objects", torch.ones(4, 4, dtype=torch.uint8), rf"{FLOATS}, got uint8"),
    ("anchor_index", torch.zeros(N), r"dtype int64, int32, got float32"),
    ("anchor_index", torch.zeros(N, dtype=torch.int16), r"dtype int64, int32, got int16"),
    ("anchor_index", torch.zeros(N, dtype=torch.bool), r"dtype int64, int32, got bool"),
    ("target_index", torch.zeros(N), r"dtype int64, int32, got float32"),
    ("target_index", torch.zeros(N, dtype=torch.uint8), r"dtype int64, int32, got uint8"),
    ("weight", torch.ones(N, dtype=torch.int64), rf"{FLOATS}, got int64"),
    ("weight", torch.ones(N, dtype=torch.bool), rf"{FLOATS}, got bool"),
    ("mask", torch.ones(N), r"dtype bool, got float32"),
    ("mask", torch.ones(N, dtype=torch.uint8), r"dtype bool, got uint8"),
    ("normalizer", torch.tensor(True), rf"{FLOATS}, int64, int32, got bool"),
    ("normalizer", torch.tensor(1j), rf"{FLOATS}, int64, int32, got complex64"),
]


@every_backend
@pytest.mark.parametrize(
    ("argument", "value", "message"),
    DTYPES,
    ids=[f"{name}-{str(value.dtype).removeprefix('torch.')}" for name, value, _ in DTYPES],
)
def test_wrong_dtype(argument, value, message, backend):
    with pytest.raises(TypeError, match=rf"^{argument}: expected {message}$"):
        call({**good(backend), argument: value.to(device_of(backend))}, backend=backend)


@every_backend
@pytest.mark.parametrize(
    "argument", ["pred", "target", "anchor_objects", "target_index", "anchor_index", "weight", "mask"]
)
@pytest.mark.parametrize("value", [[[0.0, 0, 1, 1]] * N, "boxes", 3.0], ids=["list", "str", "float"])
def test_not_a_tensor(value, argument, backend):
    with pytest.raises(TypeError, match=rf"^{argument}: expected a tensor, got {type(value).__name__}$"):
        call({**good(backend), argument: value}, backend=backend)


@every_backend
@pytest.mark.parametrize("argument", ["pred", "target"])
def test_boxes_that_are_missing(argument, backend):
    with pytest.raises(TypeError, match=rf"^{argument}: expected a tensor, got NoneType$"):
        call({**good(backend), argument: None}, backend=backend)


@every_backend
@pytest.mark.parametrize("value", ["4", True, [4.0], 1j], ids=["str", "bool", "list", "complex"])
def test_normalizer_that_is_no_number(value, backend):
    message = rf"^normalizer: expected a number or a 0-dim tensor, got {type(value).__name__}$"
    with pytest.raises(TypeError, match=message):
        call(good(backend), normalizer=value, backend=backend)


@every_backend
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_normalizer_without_a_mean(reduction, backend):
    with pytest.raises(ValueError, match=rf"^normalizer: expected None with reduction='{reduction}', got 4\.0$"):
        call(good(backend), normalizer=4.0, reduction=reduction, backend=backend)


@every_backend
@pytest.mark.parametrize(
    "argument", ["target", "anchor_objects", "target_index", "anchor_index", "weight", "mask", "normalizer"]
)
def test_tensors_on_different_devices(argument, backend):
    arguments = {**good(backend), "normalizer": torch.tensor(4.0, device=device_of(backend))}
    arguments["target_index"] = arguments["anchor_index"]
    arguments[argument] = arguments[argument].to("meta")
    message = rf"^{argument}: expected a tensor on {arguments['pred'].device}, where pred is, got one on meta$"
    with pytest.raises(ValueError, match=message):
        call(arguments, backend=backend)


@every_backend
@pytest.mark.parametrize("argument", ["weight", "normalizer"])
def test_weights_that_want_a_gradient_are_refused_rather_than_ignored(argument, backend):
    value = torch.ones(N if argument == "weight" else (), device=device_of(backend)).requires_grad_()
    with pytest.raises(
        ValueError, match=rf"^{argument}: expected a tensor that does not require grad .*{argument}\.detach\(\)$"
    ):
        call({**good(backend), argument: value}, backend=backend)
    with torch.no_grad():
        assert call({**good(backend), argument: value}, backend=backend).isfinite()
    assert call({**good(backend), argument: value.detach()}, backend=backend).isfinite()


@every_backend
@pytest.mark.parametrize("argument", ["weight", "normalizer"])
def test_forward_mode_of_a_weight_is_refused_too(argument, backend):
    value = torch.ones(N if argument == "weight" else (), device=device_of(backend))

    def loss(value):
        return call({**good(backend), argument: value}, backend=backend)

    with pytest.raises(ValueError, match=rf"^{argument}: expected a tensor that does not require grad "):
        torch.func.jvp(loss, (value,), (torch.ones_like(value),))


NAMES = [
    ("loss", "ioux", LOSS_NAMES),
    ("loss", "CIoU", LOSS_NAMES),
    ("loss", None, LOSS_NAMES),
    ("penalty", "iof", PENALTY_NAMES),
    ("penalty", "none", PENALTY_NAMES),
    ("penalty", None, PENALTY_NAMES),
    ("reduction", "average", REDUCTIONS),
    ("reduction", None, REDUCTIONS),
    ("box_format", "xyhw", BOX_FORMATS),
    ("box_format", 0, BOX_FORMATS),
]


@every_backend
@pytest.mark.parametrize(
    ("argument", "name", "known"), NAMES, ids=[f"{argument}-{name}" for argument, name, _ in NAMES]
)
def test_unknown_name_lists_what_there_is(argument, name, known, backend):
    message = rf"^{argument}: expected one of {listed(known)}, got {name!r}$"
    with pytest.raises(ValueError, match=message):
        call(good(backend), **{argument: name}, backend=backend)
    with pytest.raises(ValueError, match=message):
        icr.ICRLoss(**{argument: name})
    if argument != "penalty":
        with pytest.raises(ValueError, match=message):
            icr.BoxIoULoss(**{argument: name})


def test_unknown_backend_lists_what_there_is():
    with pytest.raises(ValueError, match=r"^backend: expected one of .*cpu, .*reference.* or None, got 'tpu'$"):
        call(good("reference"), backend="tpu")


@every_backend
@pytest.mark.parametrize("eps", [0.0, -1e-7, 1e-31, float("nan")])
def test_eps_that_guards_nothing(eps, backend):
    with pytest.raises(ValueError, match=r"^eps: expected a number of at least 1e-30 that is finite in float32, got "):
        call(good(backend), eps=eps, backend=backend)


@every_backend
@pytest.mark.parametrize("argument", ["penalty_weight", "eps", "normalizer"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite(value, argument, backend):
    with pytest.raises(ValueError, match=rf"^{argument}: expected a number.* that is finite in float32, got {value}$"):
        call(good(backend), **{argument: value}, backend=backend)


@every_backend
@pytest.mark.parametrize("argument", ["penalty_weight", "eps"])
@pytest.mark.parametrize(
    "value", ["1", None, True, torch.tensor(1.0), torch.nn.Parameter(torch.tensor(1.0))], ids=lambda value: repr(value)
)
def test_what_is_no_number(value, argument, backend):
    """A weight that requires grad would get none."""
    with pytest.raises(TypeError, match=rf"^{argument}: expected a number, got {type(value).__name__}$"):
        call(good(backend), **{argument: value}, backend=backend)


@every_backend
def test_numbers_of_numpy(backend):
    options = {"penalty_weight": 0.5, "eps": 2.0**-20, "normalizer": 3.0}
    of_numpy = {name: np.float32(value) for name, value in options.items()}
    assert call(good(backend), **of_numpy, backend=backend) == call(good(backend), **options, backend=backend)


@every_backend
@pytest.mark.parametrize("argument", ["penalty_weight", "eps", "normalizer"])
def test_numbers_that_float32_does_not_hold(argument, backend):
    with pytest.raises(ValueError, match=rf"^{argument}: expected a number.* that is finite in float32, got 1e\+39$"):
        call(good(backend), **{argument: 1e39}, backend=backend)


@every_backend
@pytest.mark.parametrize("value", ["False", 1, None, torch.tensor(True)], ids=lambda value: repr(value))
def test_relative_that_is_no_bool(value, backend):
    with pytest.raises(TypeError, match=rf"^relative: expected True or False, got {type(value).__name__}$"):
        call(good(backend), relative=value, backend=backend)


@every_backend
def test_numbers_of_any_size_and_of_fractions(backend):
    for value, said in ((10**5000, "inf"), (-(10**5000), "-inf")):
        with pytest.raises(ValueError, match=rf"^penalty_weight: expected a number .* got {said}$"):
            call(good(backend), penalty_weight=value, backend=backend)
    half = call(good(backend), penalty_weight=0.5, backend=backend)
    for value in (Fraction(1, 2), np.float16(0.5)):
        assert same_bits(call(good(backend), penalty_weight=value, backend=backend), half)


def test_numbers_that_are_kept_are_floats():
    """A tensor cannot be compared with a fraction."""
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 3, 4], [8, 8, 9, 9]])
    truth = boxes[:1]
    assert icr.Matcher(Fraction(4, 5), Fraction(1, 2))(truth, boxes).tolist() == [0, -2, -1]
    assert icr.match_anchor_objects(boxes, truth, min_containment=Fraction(1)).anchor_index.tolist() == [0, 0, -1]
    relations = icr.Relations({"plate": "car"}, ["car", "plate"], min_containment=Fraction(1, 2))
    assert relations.anchor_index(boxes, torch.tensor([0, 1, 1])).tolist() == [-1, 0, -1]


def test_what_is_no_name_and_what_is_no_flag():
    boxes = torch.tensor([[0.0, 0, 4, 4]])
    with pytest.raises(ValueError, match=r"^backend: expected one of .* or None, got \['cpu'\]$"):
        icr.pairwise_iou(boxes, boxes, backend=["cpu"])
    with pytest.raises(ValueError, match=r"^backend: expected one of .* or None, got 'gpu'$"):
        icr.ICRLoss(backend="gpu")
    with pytest.raises(ValueError, match=r"^loss: expected one of .*, got \['ciou'\]$"):
        icr.box_iou_loss(boxes, boxes, loss=["ciou"])
    with pytest.raises(ValueError, match=r"^dim: expected one of the last two .* got True$"):
        icr.pairwise_max(boxes, boxes, dim=True)
    with pytest.raises(TypeError, match=r"^allow_low_quality_matches: expected True or False, got str$"):
        icr.Matcher(0.5, 0.4, "no")
    with pytest.raises(TypeError, match=r"^larger: expected True or False, got NoneType$"):
        icr.match_anchor_objects(boxes, boxes, larger=None)


def test_numbers_of_a_matcher():
    for options in ({"high_threshold": "0.5", "low_threshold": 0.4}, {"high_threshold": 0.5, "low_threshold": None}):
        with pytest.raises(TypeError, match=r"^(high|low)_threshold: expected a number, got (str|NoneType)$"):
            icr.Matcher(**options)


def test_numbers_of_modules():
    for value in ("1", float("nan"), torch.tensor(1.0)):
        with pytest.raises((TypeError, ValueError), match=r"^penalty_weight: expected a "):
            icr.ICRLoss(penalty_weight=value)


@every_backend
def test_index_without_anchor_objects(backend):
    arguments = {**good(backend), "anchor_objects": None}
    with pytest.raises(
        ValueError, match=r"^anchor_index: expected None, because anchor_objects is None, got a tensor$"
    ):
        call(arguments, backend=backend)


@every_backend
def test_every_public_function_checks(backend):
    arguments = good(backend)
    pred, target, anchor_objects, index = (
        arguments[name] for name in ("pred", "target", "anchor_objects", "anchor_index")
    )
    options = {"anchor_index": index, "backend": backend}
    for function in (icr.icr_loss, icr.icr_terms, icr.icr_loss_and_grad):
        for bad in ({"loss": "ioux"}, {"penalty": "iof"}, {"box_format": "yxyx"}, {"eps": 0.0}):
            with pytest.raises(ValueError, match=f"^{next(iter(bad))}: "):
                function(pred, target, anchor_objects, **options, **bad)
        with pytest.raises(ValueError, match=r"^target: "):
            function(pred, target[1:], anchor_objects, **options)
        with pytest.raises(TypeError, match=r"^mask: "):
            function(pred, target, anchor_objects, mask=torch.ones(N, device=pred.device), **options)
    for bad in ({"loss": "ioux"}, {"box_format": "yxyx"}, {"reduction": "average"}, {"eps": 0.0}):
        with pytest.raises(ValueError, match=f"^{next(iter(bad))}: "):
            icr.box_iou_loss(pred, target, backend=backend, **bad)
    for function in (icr.icr_loss, icr.icr_loss_and_grad):
        with pytest.raises(ValueError, match=r"^reduction: "):
            function(pred, target, anchor_objects, reduction="average", **options)


@every_backend
def test_options_are_keywords(backend):
    with pytest.raises(TypeError, match="positional argument"):
        icr.icr_loss(*pairs(N), torch.zeros(N, dtype=torch.int64))


def test_backend_for_a_device():
    assert icr.backend_for("cpu") == icr.backend_for(torch.ones(1)) == icr.backend_for(torch.device("cpu"))
    assert icr.backend_for("cpu") in icr.available_backends()
    assert icr.backend_for("meta") == "reference"


def test_backend_of_a_call_without_one():
    # The first that is meant for such tensors: Triton's interpreter is there only when it is asked for.
    first = "cpu" if "cpu" in icr.available_backends() else "reference"
    assert icr.backend_for("cpu") == first
    boxes = pairs(33)
    assert same_bits(icr.icr_loss(*boxes), icr.icr_loss(*boxes, backend=first))


@pytest.mark.parametrize(
    ("cuda", "triton", "chosen"), [(True, True, "cuda"), (False, True, "triton"), (False, False, "reference")]
)
def test_backend_for_a_gpu_is_the_first_that_is_there(cuda, triton, chosen, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(builds, "CUDA_ERROR", None if cuda else "no nvcc")
    monkeypatch.setattr(builds, "TRITON_ERROR", None if triton else "no Triton")
    assert icr.backend_for("cuda") == chosen


def test_triton_that_is_missing_or_too_old_is_told(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.3.1")
    assert builds._triton_error() == "Triton 3.3.1 is too old; the kernels need at least 3.4"

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    # Without CUDA only the interpreter has a use for Triton.
    for cuda, interpreted, expected in (
        ("12.8", "0", "Triton is not installed; `pip install triton` (at least 3.4)"),
        (None, "1", "Triton is not installed; `pip install triton` (at least 3.4)"),
        (None, "0", "this torch was built without CUDA"),
    ):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setenv("TRITON_INTERPRET", interpreted)
        assert builds._triton_error() == expected


def test_backend_that_cannot_run_these_tensors_says_why(extension):
    with pytest.raises(RuntimeError, match=r"^backend 'cpu' runs tensors on cpu, got tensors on meta$"):
        icr.box_iou_loss(torch.ones(3, 4, device="meta"), torch.ones(3, 4, device="meta"), backend="cpu")


# Values: checked when asked for, and safe when not.


@pytest.fixture
def checked_values(monkeypatch):
    monkeypatch.setattr("icr_kernels.arguments.CHECK_VALUES", True)


@every_backend
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("argument", ["pred", "target", "anchor_objects"])
def test_values_that_are_not_finite(argument, value, backend, checked_values):
    arguments = per_row(backend)
    arguments[argument][[1, 3], 2] = value
    with pytest.raises(ValueError, match=rf"^{argument}: expected finite boxes, got 2 that are not$"):
        call(arguments, backend=backend)
    masked = torch.tensor([True, False, True, False, True, True], device=device_of(backend))
    assert call({**arguments, "mask": masked}, backend=backend).isfinite()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -8.0])
def test_values_of_a_scale(value, checked_values):
    """Where a pair does not count it may be anything."""
    arguments = per_row("reference")
    scale = torch.ones(N)
    scale[2] = value
    for given in (scale, torch.tensor(value)):
        with pytest.raises(ValueError, match=rf"^scale: expected positive finite numbers, got {value}$"):
            call(arguments, loss="nwd", scale=given, backend="reference")
    assert call({**arguments, "mask": torch.arange(N) != 2}, loss="nwd", scale=scale, backend="reference").isfinite()


@every_backend
@pytest.mark.parametrize("value", [6, -2, 2**62])
@pytest.mark.parametrize(("argument", "rows"), [("anchor_index", "4 anchor objects"), ("target_index", "6 targets")])
def test_values_of_an_index_outside_the_table(argument, rows, value, backend, checked_values):
    arguments = good(backend)
    arguments["target_index"] = arguments["anchor_index"].clone()
    arguments["target_index"][4], arguments["pred"][4] = -1, float("nan")
    assert call(arguments, backend=backend).isfinite(), "-1 is in order, and its pair may hold anything"
    arguments[argument][2] = value
    with pytest.raises(ValueError, match=rf"^{argument}: expected -1 or a row of the {rows}, got {value}$"):
        call(arguments, backend=backend)


def test_values_are_checked_when_the_environment_asks_for_it():
    script = "from icr_kernels import arguments; print(arguments.CHECK_VALUES)"
    for setting, expected in (("1", "True"), ("0", "False"), ("", "False")):
        environment = {**os.environ, "ICR_KERNELS_CHECK_VALUES": setting}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected


@every_backend
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=["int32", "int64"])
def test_index_outside_the_table_reads_and_writes_nothing(index_dtype, backend):
    """Every extreme of the integers, and numbers that an offset of 32 bits would wrap around to a row of the table."""
    device, info = device_of(backend), torch.iinfo(index_dtype)
    numbers = [-1, -2, 5, 6, 100, 1000, 2**20, 2**28, 2**30, -(2**28), info.max, info.max - 1, info.min, info.min + 1]
    numbers += [2**32, 2**32 + 1, 2**60, 2**60 + 1, 2**62, -(2**32), -(2**62)] if index_dtype == torch.int64 else []
    n = len(numbers)
    pred, target, _ = pairs(n, dtype=torch.float64, device=device)
    buffer = torch.full((4 * 5 + 2000,), float("nan"), dtype=torch.float64, device=device)
    buffer[1000 : 1000 + 20] = pairs(5, dtype=torch.float64, device=device)[2].flatten()
    before, table = buffer.clone(), buffer[1000 : 1000 + 20].view(5, 4)
    index = torch.tensor(numbers, dtype=index_dtype, device=device)
    for reduction in ("none", "mean"):
        options = {"reduction": reduction, "backend": backend}
        result = evaluate(icr.icr_loss, pred, target, table, anchor_index=index, **options)
        alone = evaluate(icr.icr_loss, pred, target, None, **options)
        torch.testing.assert_close(result.value, alone.value, rtol=1e-13, atol=0)
        torch.testing.assert_close(result.pred, alone.pred, rtol=1e-12, atol=1e-15)
        assert not result.anchor_objects.any()
        without = evaluate(icr.icr_loss, pred, table, target, target_index=index, **options)
        assert not without.value.any() and not without.pred.any() and not without.target.any()
    assert same_bits(buffer, before)


# The package without its extension.

WITHOUT_EXTENSION = """
import sys
sys.modules["icr_kernels._C"] = None
import logging, torch
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format="%(name)s: %(message)s")
import icr_kernels as icr
assert icr.available_backends() == ["reference"], icr.available_backends()
assert icr.backend_for("cpu") == "reference"
pred = torch.tensor([[0.0, 0, 2, 2]], requires_grad=True)
icr.box_iou_loss(pred, torch.tensor([[1.0, 1, 3, 3]]), loss="iou").backward()
assert abs(pred.grad[0, 2].item() + 6 / 49) < 1e-6, pred.grad
try:
    icr.box_iou_loss(pred, pred, backend="cpu")
except RuntimeError as error:
    print("raised:", error)
"""


def test_without_the_extension_the_reference_runs_and_the_reason_is_told():
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", WITHOUT_EXTENSION], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reason = r"the compiled extension icr_kernels\._C is not usable \(.+\); install a C\+\+17 compiler .+"
    assert re.search(rf"^raised: {reason}$", done.stdout, re.MULTILINE), done.stdout
    assert re.search(rf"^icr_kernels: passing over backend 'cpu': {reason}$", done.stdout, re.MULTILINE), done.stdout
    assert done.stderr == "", "a missing extension is not a warning"
