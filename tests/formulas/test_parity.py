"""Every backend computes what the reference computes in double precision: values and gradients, called in any way."""

import pytest
import torch
from torch import Tensor

import icr_kernels as icr
from icr_kernels import formulas, reference
from icr_kernels.calls import Formula
from icr_kernels.specifications import box_loss
from icr_kernels.variants import LOSS_NAMES, NO_PENALTY, PENALTY_NAMES
from inputs import (
    HALF_DTYPES,
    INSTRUCTION_SETS,
    SOME_LOSSES,
    as_table,
    device_of,
    dtype_id,
    every_backend,
    every_dtype,
    every_format,
    every_loss,
    every_loss_and_penalty,
    every_penalty,
    every_reduction,
    full_precision,
    grid_boxes,
    half_precision,
    pairs,
    pairs_of_a_table,
    some_losses,
    some_losses_and_penalties,
)
from oracle import BOXES, evaluate, expected, upstream
from tolerances import assert_close, assert_matches_reference, relative_l2, same_bits

# Empty, one pair, both sides of a SIMD register and of two, of a block and of a chunk of blocks, and primes.
SIZES = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 61, 127, 255, 256, 257, 1021, 2047, 2048, 2049, 4099, 10007)


@every_backend
@full_precision
@every_loss_and_penalty
def test_loss_and_gradients(loss, penalty, dtype, backend):
    boxes = pairs(131, dtype=dtype, device=device_of(backend))
    assert_matches_reference(*boxes, loss=loss, penalty=penalty, reduction="none", backend=backend)


@every_backend
@half_precision
@some_losses_and_penalties
def test_loss_and_gradients_in_half_precision(loss, penalty, dtype, backend):
    boxes = pairs(131, dtype=dtype, device=device_of(backend))
    assert_matches_reference(*boxes, loss=loss, penalty=penalty, reduction="none", backend=backend)


@every_backend
@every_dtype
@some_losses
def test_loss_without_anchor_objects(loss, dtype, backend):
    pred, target, _ = pairs(131, dtype=dtype, device=device_of(backend))
    assert_matches_reference(pred, target, None, loss=loss, reduction="none", backend=backend)


@every_backend
@full_precision
@every_loss_and_penalty
def test_loss_and_gradients_on_an_integer_grid(loss, penalty, dtype, backend):
    """Equal coordinates, touching edges, empty and inverted boxes in every combination: ties split as the reference's.
    With an eps between 0 and 1, so that dividing by it instead of an empty side magnifies no rounding error."""
    boxes = [grid_boxes(1500, 4, seed, dtype).to(device_of(backend)) for seed in range(3)]
    assert_matches_reference(*boxes, loss=loss, penalty=penalty, eps=0.5, reduction="none", backend=backend)


@every_backend
@every_loss_and_penalty
def test_terms_and_their_gradients(loss, penalty, backend):
    boxes = pairs(67, dtype=torch.float64, device=device_of(backend))
    assert_terms_match_reference(*boxes, loss=loss, penalty=penalty, penalty_weight=0.7, backend=backend)


@every_backend
@every_dtype
@every_format
def test_terms_with_every_option(box_format, dtype, backend):
    device = device_of(backend)
    pred, target, table, index = pairs_of_a_table(131, 17, dtype=dtype, box_format=box_format, device=device)
    options = {
        "anchor_index": index,
        "loss": "siou",
        "penalty": "containment+pull",
        "penalty_weight": 0.6,
        "relative": True,
        "mask": torch.arange(131, device=device) % 3 != 0,
        "box_format": box_format,
        "backend": backend,
    }
    assert_terms_match_reference(pred, target, table, **options)
    targets, target_index = as_table(target)
    assert_terms_match_reference(pred, targets, table, target_index=target_index, **options)


@every_backend
@full_precision
@some_losses
def test_terms_without_anchor_objects(loss, dtype, backend):
    pred, target, _ = pairs(67, dtype=dtype, device=device_of(backend))
    assert_terms_match_reference(pred, target, None, loss=loss, backend=backend)


def assert_terms_match_reference(*boxes: Tensor | None, backend: str, **options) -> None:
    """With a gradient from above that differs from term to term: none may leak into another."""

    def terms_and_gradients(function, boxes, **options):
        leaves = [rows if rows is None else rows.detach().requires_grad_() for rows in boxes]
        terms = function(*leaves, **options)
        used = [term for term in terms if term.requires_grad]
        upstreams = [weight * upstream(term).flip(0) for weight, term in zip((1.0, -2.0, 3.0, 0.5), used, strict=False)]
        leaves = [rows for rows in leaves if rows is not None]
        return terms, torch.autograd.grad(used, leaves, upstreams)

    terms, gradients = terms_and_gradients(icr.icr_terms, boxes, backend=backend, **options)
    wide = [rows if rows is None else rows.cpu().double() for rows in boxes]
    on_cpu = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in options.items()}
    true_terms, true_gradients = terms_and_gradients(reference.icr_terms, wide, **on_cpu)
    for name, term, truth in zip(terms._fields, terms, true_terms, strict=True):
        assert_close(term.detach(), truth.detach(), name)
    for name, gradient, truth in zip(BOXES, gradients, true_gradients, strict=False):
        assert_close(gradient, truth, f"gradient of {name}")


@every_backend
@every_loss
def test_loss_and_grad_in_one_pass(loss, backend):
    """For which the CUDA backend has kernels of each loss, alone and with the first penalty."""
    pred, target, anchor_objects = pairs(131, device=device_of(backend))
    for reduction in ("none", "sum", "mean"):
        options = {"loss": loss, "reduction": reduction, "backend": backend}
        assert_one_pass_matches_reference(pred, target, anchor_objects, **options)
        assert_one_pass_matches_reference(pred, target, None, **options)


@every_backend
@every_dtype
@every_format
def test_loss_and_grad_in_one_pass_with_every_option(box_format, dtype, backend):
    device = device_of(backend)
    pred, target, table, index = pairs_of_a_table(131, 17, dtype=dtype, box_format=box_format, device=device)
    row = torch.arange(131, device=device)
    options = {
        "anchor_index": index,
        "loss": "siou",
        "penalty": "containment+pull",
        "penalty_weight": 0.6,
        "relative": True,
        "weight": 2.0 ** (row % 5 - 2),
        "mask": row % 3 != 0,
        "box_format": box_format,
        "backend": backend,
    }
    assert_one_pass_matches_reference(pred, target, table, reduction="none", **options)
    assert_one_pass_matches_reference(pred, target, table, normalizer=torch.tensor(7, device=device), **options)
    targets, target_index = as_table(target)
    for mask in (options.pop("mask"), None):
        assert_one_pass_matches_reference(pred, targets, table, target_index=target_index, mask=mask, **options)


def assert_one_pass_matches_reference(*boxes: Tensor | None, backend: str, **options) -> None:
    truth = expected(*boxes, wanted=("pred",), **options)
    value, gradient = icr.icr_loss_and_grad(*boxes, backend=backend, **options)
    assert_close(value, truth.value, "value")
    assert gradient.dtype == boxes[0].dtype
    assert_close(gradient, truth.pred / upstream(truth.value).unsqueeze(-1), "gradient")
    assert not value.requires_grad and not gradient.requires_grad


@every_backend
@half_precision
@some_losses
def test_half_precision_is_no_worse_than_the_formula_in_half(loss, dtype, backend):
    """The yardstick: the same formulas with every step rounded to half precision, as an eager loss does."""
    pred, target, anchor_objects = boxes = pairs(509, dtype=dtype)
    p, g, a = (rows.detach().requires_grad_() for rows in boxes)
    corners = [formulas.corners(rows, "xyxy") for rows in (p, g, a)]
    naive = formulas.modified_loss(box_loss(loss), corners[0], corners[1], 1e-7, 1.0, None)
    naive = naive + formulas.containment_penalty(corners[0], corners[2], 1e-7)
    naive_gradient = torch.autograd.grad(naive, p, upstream(naive))[0]
    truth = expected(pred, target, anchor_objects, loss=loss, reduction="none", wanted=("pred",))

    device = device_of(backend)
    boxes = [rows.to(device) for rows in boxes]
    ours = evaluate(icr.icr_loss, *boxes, loss=loss, reduction="none", backend=backend, wanted=("pred",))
    assert relative_l2(ours.value, truth.value) < relative_l2(naive.detach(), truth.value) / 20
    assert relative_l2(ours.pred, truth.pred) < relative_l2(naive_gradient, truth.pred)


@every_backend
@half_precision
def test_half_precision_is_float32_arithmetic_rounded_once(dtype, backend):
    half = pairs(509, dtype=dtype, device=device_of(backend))
    options = {"penalty": "containment+pull", "reduction": "none", "backend": backend}
    actual = evaluate(icr.icr_loss, *half, **options)
    full = evaluate(icr.icr_loss, *(rows.float() for rows in half), **options)
    assert same_bits(actual.value, full.value)
    for name in BOXES:
        assert same_bits(getattr(actual, name), getattr(full, name).to(dtype)), name
    value, gradient = icr.icr_loss_and_grad(*half, **options)
    full = icr.icr_loss_and_grad(*(rows.float() for rows in half), **options)
    assert same_bits(value, full[0]) and same_bits(gradient, full[1].to(dtype))


@every_backend
@pytest.mark.parametrize("n", SIZES)
def test_sizes(n, backend):
    boxes = pairs(n, device=device_of(backend), seed=n)
    for reduction in ("none", "sum", "mean"):
        assert_matches_reference(*boxes, penalty="containment+pull", reduction=reduction, backend=backend)


@every_backend
@pytest.mark.parametrize("n", [0, 1, 7, 33, 257, 2049])
@every_dtype
def test_sizes_with_tables(n, dtype, backend):
    pred, target, table, index = pairs_of_a_table(n, 19, dtype=dtype, device=device_of(backend))
    options = {"anchor_index": index, "penalty": "containment+pull", "backend": backend}
    targets, target_index = as_table(target)
    for reduction in ("none", "mean"):
        # A table row sums the gradients of its pairs: a half-precision sum is rounded once, as any other gradient.
        assert_matches_reference(pred, target, table, reduction=reduction, **options)
        assert_matches_reference(pred, targets, table, target_index=target_index, reduction=reduction, **options)


@every_backend
@every_reduction
@every_dtype
def test_reductions_with_weight_mask_and_normalizer(dtype, reduction, backend):
    n, device = 523, device_of(backend)
    boxes = pairs(n, dtype=dtype, device=device)
    # Powers of two are exact in every dtype, so a weight in half precision is the same weight.
    weight = 2.0 ** (torch.arange(n, device=device) % 5 - 2)
    mask = torch.arange(n, device=device) % 3 != 0
    normalizers = (None, 7, 0.25, torch.tensor(48.0, device=device), torch.tensor(48, device=device))
    for normalizer in normalizers if reduction == "mean" else (None,):
        for rows in (None, mask):
            for per_pair in (None, weight, weight.to(dtype), -weight.double()):
                options = {"reduction": reduction, "weight": per_pair, "mask": rows, "normalizer": normalizer}
                assert_matches_reference(*boxes, backend=backend, **options)


@every_backend
@every_format
@full_precision
@some_losses
def test_box_formats(loss, dtype, box_format, backend):
    boxes = pairs(131, dtype=dtype, box_format=box_format, device=device_of(backend))
    options = {"penalty": "containment+pull", "reduction": "none", "box_format": box_format}
    assert_matches_reference(*boxes, loss=loss, backend=backend, **options)


@every_backend
@every_format
def test_box_formats_with_a_table_and_half_precision(box_format, backend):
    for dtype in HALF_DTYPES:
        pred, target, table, index = pairs_of_a_table(
            131, 17, dtype=dtype, box_format=box_format, device=device_of(backend)
        )
        options = {"anchor_index": index, "reduction": "none", "box_format": box_format}
        assert_matches_reference(pred, target, table, penalty="containment+pull", backend=backend, **options)


@every_backend
@every_penalty
def test_relative_penalty(penalty, backend):
    pred, target, anchor_objects = pairs(523, device=device_of(backend))
    options = {"penalty": penalty, "relative": True, "penalty_weight": 2.5, "reduction": "none"}
    assert_matches_reference(pred, target, anchor_objects, backend=backend, **options)


@every_backend
@pytest.mark.parametrize("penalty_weight", [0.0, -1.0, 1e-3, 250.0])
def test_penalty_weight(penalty_weight, backend):
    boxes = pairs(131, device=device_of(backend))
    assert_matches_reference(*boxes, penalty_weight=penalty_weight, reduction="none", backend=backend)


@every_backend
@pytest.mark.parametrize(
    ("loss", "penalty"), [(loss, NO_PENALTY) for loss in LOSS_NAMES] + [("iou", penalty) for penalty in PENALTY_NAMES]
)
def test_eps(loss, penalty, backend):
    """Larger than some of the denominators here, and than every one: the same in value and gradient."""
    pred, target, anchor_objects = pairs(131, dtype=torch.float64, device=device_of(backend))
    for eps in (30.0, 1e6):
        options = {"loss": loss, "eps": eps, "reduction": "none", "backend": backend}
        if penalty == NO_PENALTY:
            assert_matches_reference(pred, target, None, **options)
        else:
            assert_matches_reference(pred, target, anchor_objects, penalty=penalty, **options)


@every_backend
@every_loss_and_penalty
def test_normalised_coordinates(loss, penalty, backend):
    """Plates of a few thousandths of the image: nothing is lost beside denominators that come close to eps."""
    boxes = pairs(1009, dtype=torch.float64, device=device_of(backend))
    for scale in (1e-3, 2e-4):
        small = [(rows * scale).float() for rows in boxes]
        assert_matches_reference(*small, loss=loss, penalty=penalty, reduction="none", backend=backend)


@every_backend
@pytest.mark.parametrize(
    "loss",
    [
        *LOSS_NAMES,
        *(icr.BoxLoss("interp", interpolation=interpolation) for interpolation in (0.0, 0.5)),
        *(icr.BoxLoss("ciou", inner=0.7), icr.BoxLoss("giou", inner=1.3)),
    ],
    ids=str,
)
def test_gradient_where_edges_are_next_to_each_other(loss, backend):
    """One or three steps of float32 apart, near the origin and far from it: which of them is inside decides the
    derivative."""
    row = torch.arange(960)
    edge, leftwards, steps = row % 4, row // 4 % 2 == 0, 1 + row // 8 % 2 * 2
    shift = torch.tensor([500.0, 0.0, 100.0, -1000.0, -30.0])[row // 16 % 5, None]
    pred, target = (shift + rows for rows in pairs(len(row), dtype=torch.float32)[:2])
    side = torch.where(leftwards, -1e4, 1e4)
    near = target[row, edge]
    for step in range(3):
        near = torch.where(step < steps, torch.nextafter(near, side), near)
    pred[row, edge] = near
    boxes = [rows.to(device_of(backend)) for rows in (pred, target)]
    options = {"loss": loss, "reduction": "none"}
    found = evaluate(icr.box_iou_loss, *boxes, **options, backend=backend)
    truth = evaluate(reference.icr_loss, pred.double(), target.double(), None, **options)
    torch.testing.assert_close(found.pred.cpu().double(), truth.pred, atol=1e-5, rtol=1e-3)


@every_backend
@full_precision
def test_gradient_of_pull_on_a_small_plate_far_from_its_car(dtype, backend):
    """By hand: T = (distance out of the car)/side; the derivative of T/(1 + T) is 1/(1 + T)2. So is the difference of
    1/(1 + T) and T/(1 + T)2, but for a T in the hundreds that leaves few digits in float32."""
    distance = torch.logspace(-2, 0, 40, dtype=torch.float64)
    x1, y1 = 0.1 - distance, torch.full_like(distance, 0.2)
    plates = torch.stack((x1, y1, x1 + 1e-3, y1 + 1e-3), 1).to(device_of(backend), dtype)
    cars = torch.tensor([[0.1, 0.1, 0.5, 0.5]], dtype=dtype, device=plates.device).expand(40, 4)
    penalty = icr.icr_terms(plates.requires_grad_(), plates.detach(), cars, penalty="pull", backend=backend).penalty
    (gradient,) = torch.autograd.grad(penalty.sum(), plates)
    wide = plates.detach().cpu().double()
    length = wide[:, 2] - wide[:, 0]
    t = (cars[0, 0].item() - wide[:, 0]) / length
    by_hand = -0.5 / length / (1 + t) ** 2  # the centre moves by half of either edge
    torch.testing.assert_close(gradient[:, 0].cpu().double(), by_hand, rtol=1e-4, atol=0)


@every_backend
@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float16, torch.float32, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.float16, torch.bfloat16),
        (torch.float16, torch.bfloat16, torch.float16),
        (torch.float32, torch.float64, torch.float32),
        (torch.bfloat16, torch.float16, torch.float64),
        (torch.float64, torch.float16, torch.float32),
    ],
    ids=lambda dtypes: "-".join(map(dtype_id, dtypes)),
)
def test_boxes_of_different_dtypes(dtypes, backend):
    boxes = [
        rows.to(dtype)
        for rows, dtype in zip(pairs(257, dtype=torch.float64, device=device_of(backend)), dtypes, strict=True)
    ]
    for reduction in ("none", "mean"):
        assert_matches_reference(*boxes, penalty="containment+pull", reduction=reduction, backend=backend)


@every_backend
@pytest.mark.parametrize(
    "wanted",
    [
        ("pred",),
        ("target",),
        ("anchor_objects",),
        ("pred", "target"),
        ("pred", "anchor_objects"),
        ("target", "anchor_objects"),
    ],
    ids="+".join,
)
def test_gradients_of_each_input_alone_and_in_pairs(wanted, backend):
    pred, target, table, index = pairs_of_a_table(131, 17, device=device_of(backend))
    cars, (targets, target_index) = table[index.clamp(min=0)], as_table(target)
    options = {"penalty": "containment+pull", "reduction": "none", "wanted": wanted, "backend": backend}
    for loss in SOME_LOSSES:
        assert_matches_reference(pred, target, cars, loss=loss, **options)
        assert_matches_reference(pred, target, table, loss=loss, anchor_index=index, **options)
        assert_matches_reference(pred, targets, cars, loss=loss, target_index=target_index, **options)


# Every compiled instruction set.


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS, indirect=True)
@every_loss_and_penalty
def test_instruction_sets(loss, penalty, instruction_set):
    for dtype in (torch.float64, torch.float32):
        boxes = pairs(131, dtype=dtype)
        assert_matches_reference(*boxes, loss=loss, penalty=penalty, reduction="none", backend="cpu")
        grid = [grid_boxes(600, 4, seed, dtype) for seed in range(3)]
        assert_matches_reference(*grid, loss=loss, penalty=penalty, eps=0.5, reduction="none", backend="cpu")


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS, indirect=True)
@every_format
@every_dtype
def test_instruction_sets_with_formats_masks_and_tables(dtype, box_format, instruction_set):
    for n in (1, 7, 33, 257):
        pred, target, table, index = pairs_of_a_table(n, 19, dtype=dtype, box_format=box_format)
        mask, (targets, target_index) = torch.arange(n) % 5 != 1, as_table(target)
        for reduction in ("none", "mean"):
            options = {"anchor_index": index, "mask": mask, "reduction": reduction, "box_format": box_format}
            options |= {"penalty": "containment+pull", "backend": "cpu"}
            assert_matches_reference(pred, target, table, **options)
            assert_matches_reference(pred, targets, table, target_index=target_index, **options)


# The math of a single pair.


@every_loss_and_penalty
@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_single_pair_of_the_extension(relative, loss, penalty, extension):
    """Ordinary boxes, and ties on a grid of integers; of positive area."""
    grids = [grid_boxes(24, 3, seed) for seed in range(3)]
    grids = [torch.cat((rows[:, :2], rows[:, :2] + rows[:, 2:] + 1), 1) for rows in grids]
    boxes = [torch.cat(rows) for rows in zip(pairs(24, dtype=torch.float64), grids, strict=True)]
    formula = Formula(loss, penalty, relative=relative, penalty_weight=1.5)
    leaves = [rows.requires_grad_() for rows in boxes]
    values = reference.icr_loss(*leaves, reduction="none", **formula._asdict())
    gradients = torch.cat(torch.autograd.grad(values.sum(), leaves), 1)
    for row, (value, gradient) in enumerate(zip(values.tolist(), gradients, strict=True)):
        actual, derivatives = extension.pair(formula.packed(), *(rows[row].tolist() for rows in boxes))
        assert actual == pytest.approx(value, rel=1e-12, abs=1e-12)
        assert derivatives == pytest.approx(gradient.tolist(), rel=1e-10, abs=1e-12)
