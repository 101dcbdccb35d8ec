"""The matrix of all pairs of two sets of boxes: against the reference, the aligned losses and torchvision."""

import math
import re

import pytest
import torch
from torch import Tensor

import icr_kernels as icr
from frameworks import torchvision
from icr_kernels.backends import BY_NAME
from icr_kernels.variants import KIND_NAMES, LOSS_NAMES, PENALTY_NAMES
from inputs import (
    COMPILED_BACKENDS,
    DTYPES,
    INSTRUCTION_SETS,
    SOME_KINDS,
    crowd,
    device_of,
    dtype_id,
    every_backend,
    every_compiled_backend,
    every_dtype,
    every_format,
    every_kind,
    every_quick_compiled_backend,
    full_precision,
    grid_boxes,
    some_kinds,
    to_format,
)
from operator_calls import OperatorCalls, operators_over_sets
from selections import SIZES, assert_is_max_of_matrix
from tolerances import assert_close, same_bits


def evaluate(boxes1: Tensor, boxes2: Tensor, upstream: Tensor | None = None, **options) -> list[Tensor]:
    """The matrix and both gradients, for an upstream gradient that differs from pair to pair."""
    leaves = [boxes.detach().requires_grad_() for boxes in (boxes1, boxes2)]
    matrix = icr.pairwise_iou(*leaves, **options)
    if upstream is None:
        upstream = torch.linspace(-0.5, 0.75, matrix.numel(), dtype=torch.float64).reshape(matrix.shape)
    gradients = torch.autograd.grad(matrix, leaves, upstream.to(matrix))
    return [matrix.detach(), *gradients]


def assert_matches_reference(boxes1: Tensor, boxes2: Tensor, backend: str, upstream=None, **options) -> None:
    found = evaluate(boxes1, boxes2, upstream, backend=backend, **options)
    wide = (boxes1.detach().double().cpu(), boxes2.detach().double().cpu())
    truth = evaluate(*wide, None if upstream is None else upstream.cpu(), backend="reference", **options)
    for name, actual, expected in zip(
        ("matrix", "gradient of boxes1", "gradient of boxes2"), found, truth, strict=True
    ):
        assert_close(actual, expected, name)
    assert [each.dtype for each in found[1:]] == [boxes1.dtype, boxes2.dtype]


# The matrix


# Every kind in one dtype, and some in the others.
kinds_and_dtypes = pytest.mark.parametrize(
    ("kind", "dtype"),
    [pytest.param(kind, torch.float64, id=f"{kind}-float64") for kind in KIND_NAMES]
    + [pytest.param(kind, each, id=f"{kind}-{dtype_id(each)}") for kind in SOME_KINDS for each in DTYPES[1:]],
)


@every_backend
@kinds_and_dtypes
def test_matrix_and_gradients(kind, dtype, backend):
    device = device_of(backend)
    assert_matches_reference(crowd(19, 0, dtype, device), crowd(71, 1, dtype, device), backend, kind=kind)


@every_backend
@every_kind
def test_matrix_and_gradients_on_an_integer_grid(kind, backend):
    """Equal coordinates, touching edges, empty and inverted boxes: ties split as the reference's."""
    device = device_of(backend)
    boxes = grid_boxes(40, 4, 0, torch.float32).to(device), grid_boxes(60, 4, 1, torch.float32).to(device)
    assert_matches_reference(*boxes, backend, kind=kind, eps=0.5)


@every_backend
@every_format
@some_kinds
def test_formats(kind, box_format, backend):
    boxes = [to_format(crowd(n, n, torch.float64, device_of(backend)), box_format) for n in (33, 18)]
    assert_matches_reference(*boxes, backend, kind=kind, box_format=box_format)


@every_backend
@pytest.mark.parametrize(("n", "m"), SIZES)
def test_sizes(n, m, backend):
    device = device_of(backend)
    assert_matches_reference(crowd(n, 0, device=device), crowd(m, 1, device=device), backend, kind="giou")


@every_backend
@pytest.mark.parametrize(
    ("lead1", "lead2"), [((3,), (3,)), ((), (3,)), ((3,), ()), ((2, 1), (3,)), ((2, 3), (2, 3)), ((0,), (0,))]
)
def test_batches(lead1, lead2, backend):
    device, sizes = device_of(backend), (torch.Size(lead1).numel(), torch.Size(lead2).numel())
    boxes1 = crowd(sizes[0] * 9, 2, device=device).view(*lead1, 9, 4)
    boxes2 = crowd(sizes[1] * 7, 3, device=device).view(*lead2, 7, 4)
    assert_matches_reference(boxes1, boxes2, backend, kind="diou")


def strided(boxes: Tensor, layout: str) -> Tensor:
    if layout == "columns":
        return boxes.t().contiguous().t()
    if layout == "every second":
        return boxes.repeat_interleave(2, 0)[::2]
    wide = torch.full((len(boxes) + 2, 7), math.nan, dtype=boxes.dtype, device=boxes.device)
    wide[1:-1, 2:6] = boxes
    return wide[1:-1, 2:6]


@every_backend
@every_dtype
@pytest.mark.parametrize("layout", ["columns", "every second", "between sentinels"])
def test_strides(layout, dtype, backend):
    boxes = [strided(crowd(n, n, dtype, device_of(backend)), layout) for n in (21, 35)]
    assert_matches_reference(*boxes, backend)
    contiguous = icr.pairwise_max(*(each.contiguous() for each in boxes), backend=backend)
    assert all(map(same_bits, icr.pairwise_max(*boxes, backend=backend), contiguous))


@every_backend
@pytest.mark.parametrize("layout", ["expanded", "transposed", "sliced", "one row for all"])
def test_strides_of_the_upstream_gradient(layout, backend):
    device = device_of(backend)
    upstream = {
        "expanded": torch.ones(()).expand(13, 37),
        "transposed": torch.rand(37, 13).t(),
        "sliced": torch.rand(26, 111)[::2, ::3],
        "one row for all": torch.rand(37).expand(13, 37),
    }[layout].to(device)
    assert_matches_reference(crowd(13, 0, device=device), crowd(37, 1, device=device), backend, upstream)


@every_backend
def test_boxes_of_different_dtypes(backend):
    device = device_of(backend)
    assert_matches_reference(crowd(13, 0, torch.float16, device), crowd(9, 1, torch.float32, device), backend)
    matrix = icr.pairwise_iou(crowd(3, 0, torch.float16, device), crowd(2, 1, torch.float64, device), backend=backend)
    assert matrix.dtype == torch.float64


@every_backend
@every_kind
def test_agreement_with_the_aligned_functions(kind, backend):
    """Each element is what the loss or penalty of its pair alone is."""
    device = device_of(backend)
    boxes1, boxes2 = crowd(11, 0, torch.float64, device), crowd(13, 1, torch.float64, device)
    first, second = boxes1.repeat_interleave(13, 0), boxes2.repeat(11, 1)
    if kind in LOSS_NAMES:
        expected = 1 - icr.box_iou_loss(first, second, loss=kind, reduction="none", backend=backend)
    else:
        penalty = kind.removesuffix("_penalty") if kind != "containment" else PENALTY_NAMES[0]
        terms = icr.icr_terms(first, first, second, penalty=penalty, backend=backend)
        expected = terms.containment if kind == "containment" else terms.penalty
    matrix = icr.pairwise_iou(boxes1, boxes2, kind=kind, backend=backend)
    assert torch.allclose(matrix.flatten(), expected, rtol=0, atol=1e-12)


@every_backend
@full_precision
@pytest.mark.parametrize(
    ("kind", "peer", "tolerance"),
    [
        ("iou", "ops.box_iou", 1e-6),
        ("giou", "ops.generalized_box_iou", 1e-6),
        ("diou", "ops.distance_box_iou", 1e-5),
        ("ciou", "ops.complete_box_iou", 1e-5),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_agreement_with_torchvision(scale, kind, peer, tolerance, dtype, backend):
    boxes = [scale * crowd(n, n, dtype) for n in (150, 90)]
    matrix = icr.pairwise_iou(*(each.to(device_of(backend)) for each in boxes), kind=kind, backend=backend)
    assert (matrix.cpu() - torchvision(peer)(*boxes)).abs().max() <= tolerance


@every_backend
def test_golden_values(backend):
    car = torch.tensor([[0.0, 0, 4, 4]], device=device_of(backend))
    boxes = torch.tensor([[1.0, 1, 3, 3], [2, 2, 6, 6], [5, 0, 9, 4], [0, 0, 4, 4]], device=car.device)

    def row(kind):
        return icr.pairwise_iou(boxes, car, kind=kind, backend=backend).flatten().tolist()

    assert row("iou") == pytest.approx([4 / 16, 4 / 28, 0, 1])
    # Enclosing areas 16, 36, 36, 16.
    assert row("giou") == pytest.approx([4 / 16, 4 / 28 - 8 / 36, -4 / 36, 1])
    assert row("containment") == pytest.approx([1, 4 / 16, 0, 1])
    assert row("containment_penalty") == pytest.approx([0, 12 / 16, 1, 0])
    assert row("inverse_penalty") == pytest.approx([0, 3, 9, 0], abs=1e-6)
    first_in_denominator = icr.pairwise_iou(car, boxes, kind="containment", backend=backend).flatten().tolist()
    assert first_in_denominator == pytest.approx([4 / 16, 4 / 16, 0, 1])


@every_backend
def test_tiny_overlaps_keep_their_order(backend):
    """1 - (1 - x) would round them all to 0."""
    boxes = torch.tensor([[0, 0, 1000, 1000]], dtype=torch.float32, device=device_of(backend))
    slivers = torch.tensor([[0, 0, 1e-3, s] for s in (1e-3, 2e-3, 3e-3)], dtype=torch.float32, device=boxes.device)
    row = icr.pairwise_iou(boxes, slivers, backend=backend)[0]
    assert row.tolist() == pytest.approx([1e-12, 2e-12, 3e-12], rel=1e-5)
    assert icr.pairwise_max(boxes, slivers, backend=backend).indices.tolist() == [2]


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS, indirect=True)
@kinds_and_dtypes
def test_instruction_sets(kind, dtype, instruction_set):
    boxes = crowd(37, 0, dtype), crowd(530, 1, dtype)
    assert_matches_reference(*boxes, "cpu", kind=kind)
    for dim in (-1, -2):
        assert_is_max_of_matrix(*boxes, "cpu", dim, kind=kind)


@every_compiled_backend
def test_nothing_but_the_boxes_is_saved(backend):
    boxes = [crowd(n, n, device=device_of(backend)).requires_grad_() for n in (30, 40)]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        icr.pairwise_iou(*boxes, backend=backend)
    assert [tensor.data_ptr() for tensor in saved] == [each.data_ptr() for each in boxes]


@every_backend
def test_gradient_of_one_side_alone(backend):
    boxes1, boxes2 = crowd(8, 0, device=device_of(backend)), crowd(9, 1, device=device_of(backend))
    _, both1, both2 = evaluate(boxes1, boxes2, torch.ones(8, 9), kind="ciou", backend=backend)
    (alone,) = torch.autograd.grad(
        icr.pairwise_iou(boxes1.requires_grad_(), boxes2, kind="ciou", backend=backend).sum(), boxes1
    )
    assert same_bits(alone, both1)
    (alone,) = torch.autograd.grad(
        icr.pairwise_iou(boxes1.detach(), boxes2.requires_grad_(), kind="ciou", backend=backend).sum(), boxes2
    )
    assert same_bits(alone, both2)


@every_quick_compiled_backend
def test_determinism(backend, restored_threads):
    boxes = [crowd(n, n, device=device_of(backend)) for n in (700, 900)]
    results = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        results.append(
            [
                *evaluate(*boxes, kind="ciou", backend=backend),
                *icr.pairwise_max(*boxes, backend=backend),
                *icr.pairwise_topk(*boxes, 5, dim=0, backend=backend),
            ]
        )
    for others in results[1:]:
        assert all(map(same_bits, results[0], others))


@every_backend
def test_gradients_in_half_precision_overflow(backend):
    device = device_of(backend)
    boxes = torch.tensor([[0, 0, 1, 1]], dtype=torch.float16, device=device)
    upstream = torch.full((1, 3000), 6e4)
    _, gradient, _ = evaluate(boxes, boxes.expand(3000, 4) * 0.5, upstream, backend=backend)
    assert gradient.isinf().all()


@every_backend
def test_masked_autocast_and_inference(backend):
    device = device_of(backend)
    boxes = crowd(9, 0, device=device), crowd(5, 1, device=device)
    expected = icr.pairwise_iou(*boxes, kind="giou", backend=backend)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert same_bits(icr.pairwise_iou(*boxes, kind="giou", backend=backend), expected)
    with torch.inference_mode():
        assert same_bits(icr.pairwise_iou(*boxes, kind="giou", backend=backend), expected)


# Operators under torch.compile


@every_compiled_backend
def test_operators_keep_their_contract(backend):
    device = device_of(backend)
    boxes1, boxes2 = crowd(2 * 7, 0, device=device).view(2, 7, 4), crowd(5, 1, torch.float16, device)
    group1, group2 = torch.arange(14, device=device).view(2, 7) % 3, torch.arange(5, device=device) % 3
    with OperatorCalls() as calls:
        evaluate(boxes1, boxes2, backend=backend)
        icr.pairwise_iou(boxes1, boxes2.requires_grad_(), backend=backend).sum().backward()
        boxes2 = boxes2.detach()
        icr.pairwise_max(boxes1, boxes2, dim=-2, backend=backend)
        icr.pairwise_topk(boxes1, boxes2, 3, group1=group1, group2=group2, backend=backend)
        icr.match_anchor_objects(boxes1, boxes2, larger=True, backend=backend)
        icr.Matcher(0.5, 0.4, True, backend=backend)(boxes1, boxes2)
        for classification in ("softmax", "focal"):
            logits, labels = torch.rand(2, 7, 3, device=device), torch.tensor([0, 2, 1, 3, 0], device=device)
            image = torch.tensor([0, 1, 1, 0, 2], device=device)
            icr.detr_matching_cost(
                logits, boxes1, labels, boxes2, image, classification=classification, backend=backend
            )
        icr.task_aligned_assign(logits, boxes1, boxes1[0, :, :2], boxes2, labels, image, backend=backend)
    names = {operator.name() for operator, *_ in calls.found}
    assert names == operators_over_sets(backend)
    for operator, arguments, _ in calls.found:
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


@every_quick_compiled_backend
def test_more_than_there_is_memory_for(backend):
    """In PyTorch's words: trainers look for them, and try again with a smaller batch."""
    device = device_of(backend)
    boxes = torch.rand(1, 4, device=device).expand(10**8, 4)
    message = f"{device.upper()} out of memory. icr_kernels tried to allocate a tensor of 1e+16 elements"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        icr.pairwise_iou(boxes, boxes, backend=backend)


@every_quick_compiled_backend
def test_one_graph_for_all_sizes(backend):
    device = device_of(backend)

    def function(boxes1, boxes2, group1, group2):
        matrix = icr.pairwise_iou(boxes1, boxes2, kind="giou", backend=backend)
        best = icr.pairwise_max(boxes1, boxes2, group1=group1, group2=group2, backend=backend)
        match = icr.match_anchor_objects(boxes1, boxes2, backend=backend)
        return matrix.sum() + best.values.clamp(min=0).sum() + match.containment.sum()

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for n, m in ((12, 7), (30, 41), (9, 100)):
        boxes = [crowd(count, count, device=device).requires_grad_() for count in (n, m)]
        groups = [torch.arange(count, device=device) % 3 for count in (n, m)]
        with torch._dynamo.config.patch(error_on_recompile=n != 12):
            found = compiled(*boxes, *groups)
        expected = function(*boxes, *groups)
        assert torch.allclose(found, expected)
        for a, b in zip(torch.autograd.grad(found, boxes), torch.autograd.grad(expected, boxes), strict=True):
            assert same_bits(a, b)
    torch._dynamo.reset()


# Errors

BOXES = torch.tensor([[0.0, 0, 1, 1]] * 3)


@pytest.mark.parametrize("backend", [name for name in COMPILED_BACKENDS if name != "triton"])
@pytest.mark.parametrize("k", [-1, 17, 10**6])
def test_the_operator_itself_keeps_to_its_lists(k, backend):
    """Those of Triton are as long as k says."""
    boxes = BOXES.to(device_of(backend))
    with pytest.raises(RuntimeError, match="at most 16"):
        BY_NAME[backend].operators.selected(boxes, boxes, *[None] * 4, False, k, False, [0, 0, 1e-7])


@pytest.mark.parametrize("backend", [name for name in COMPILED_BACKENDS if name != "triton"])
@pytest.mark.parametrize("length", [0, 2, 9, 100])
def test_the_operators_read_no_formula_of_another_length(length, backend):
    boxes, operators = BOXES.to(device_of(backend)), BY_NAME[backend].operators
    with pytest.raises(RuntimeError, match=f"expected a formula of 7 numbers, got {length}$"):
        operators.pairwise(boxes, boxes, [0.0] * length)
    with pytest.raises(RuntimeError, match=f"expected a formula of {8 if length < 8 else 17} numbers, got {length}$"):
        operators.terms(boxes, boxes, *[None] * 6, [0.0] * length)
