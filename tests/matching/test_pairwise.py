"""All pairs of two sets of boxes: the matrix against the reference, the aligned losses and torchvision; what is best in
its rows and columns against the matrix, whatever the groups, ties and gaps."""

import math
import resource
import subprocess
import sys

import pytest
import torch
from torch import Tensor

import icr_kernels as icr
from frameworks import torchvision
from icr_kernels.backends import BY_NAME
from icr_kernels.variants import LOSS_NAMES, PENALTY_NAMES
from inputs import (
    COMPILED_BACKENDS,
    INSTRUCTION_SETS,
    crowd,
    device_of,
    every_backend,
    every_compiled_backend,
    every_dtype,
    every_format,
    every_kind,
    every_quick_backend,
    every_quick_compiled_backend,
    full_precision,
    grid_boxes,
    to_format,
)
from operator_calls import OperatorCalls, operators_over_sets
from tolerances import assert_close, same_bits

SIZES = [(0, 5), (5, 0), (0, 0), (1, 1), (1, 300), (300, 1), (17, 257), (255, 16), (65, 513)]


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


@every_backend
@every_dtype
@every_kind
def test_matrix_and_gradients(kind, dtype, backend):
    device = device_of(backend)
    assert_matches_reference(crowd(19, 0, dtype, device), crowd(71, 1, dtype, device), backend, kind=kind)


@every_backend
@full_precision
@every_kind
def test_matrix_and_gradients_on_an_integer_grid(kind, dtype, backend):
    """Equal coordinates, touching edges, empty and inverted boxes: ties split as the reference's."""
    device = device_of(backend)
    boxes = grid_boxes(40, 4, 0, dtype).to(device), grid_boxes(60, 4, 1, dtype).to(device)
    assert_matches_reference(*boxes, backend, kind=kind, eps=0.5)


@every_backend
@every_format
@every_kind
def test_formats(kind, box_format, backend):
    boxes = [to_format(crowd(n, n, torch.float64, device_of(backend)), box_format) for n in (33, 18)]
    assert_matches_reference(*boxes, backend, kind=kind, box_format=box_format)


@every_backend
@pytest.mark.parametrize(("n", "m"), SIZES)
def test_sizes(n, m, backend):
    device = device_of(backend)
    matrix = icr.pairwise_iou(crowd(n, 0, device=device), crowd(m, 1, device=device), backend=backend)
    assert matrix.shape == (n, m)
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
@every_dtype
@every_kind
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


# The best of a row or column


def ranked(matrix: Tensor, group1: Tensor | None = None, group2: Tensor | None = None) -> list[list[tuple]]:
    """For each row its (value, index), best first: the largest, of equals the first; no NaN, no other group."""
    one, other = (
        [0] * count if group is None else group.tolist()
        for count, group in zip(matrix.shape, (group1, group2), strict=True)
    )
    rows = []
    for i, row in enumerate(matrix.tolist()):
        counted = [
            (value, j)
            for j, value in enumerate(row)
            if not math.isnan(value) and one[i] == other[j] and 0 <= one[i] < 2**31
        ]
        rows.append(sorted(counted, key=lambda each: (-each[0], each[1])))
    return rows


def assert_selects(found: icr.Selection, rows: list[list[tuple]], k: int) -> None:
    missing = (-math.inf, -1)
    expected = [(row + [missing] * k)[: max(k, 1)] for row in (row or [missing] for row in rows)]
    values, indices = (part.cpu() if k else part.cpu().unsqueeze(-1) for part in found)
    assert indices.dtype == torch.int64
    assert indices.tolist() == [[index for _, index in row] for row in expected]
    assert values.tolist() == [[value for value, _ in row] for row in expected]


def assert_is_max_of_matrix(
    boxes1: Tensor, boxes2: Tensor, backend: str, dim: int, group1=None, group2=None, **options
):
    matrix = icr.pairwise_iou(boxes1, boxes2, backend=backend, **options).cpu()
    rows = ranked(matrix, group1, group2) if dim == -1 else ranked(matrix.t(), group2, group1)
    options |= {"dim": dim, "backend": backend, "group1": group1, "group2": group2}
    options |= {
        name: None if options[name] is None else options[name].to(boxes1.device) for name in ("group1", "group2")
    }
    assert_selects(icr.pairwise_max(boxes1, boxes2, **options), rows, 0)
    for k in (1, 10, 16):
        assert_selects(icr.pairwise_topk(boxes1, boxes2, k, **options), rows, k)


both_dimensions = pytest.mark.parametrize("dim", [-1, -2])


@every_backend
@full_precision
@both_dimensions
@every_kind
def test_max_is_that_of_the_matrix(kind, dim, dtype, backend):
    device = device_of(backend)
    assert_is_max_of_matrix(crowd(40, 0, dtype, device), crowd(71, 1, dtype, device), backend, dim, kind=kind)


@every_backend
@both_dimensions
@pytest.mark.parametrize("kind", ["iou", "containment", "giou"])
def test_of_equals_the_first_is_best(kind, dim, backend):
    """Boxes of small integers are full of ties."""
    device = device_of(backend)
    boxes = grid_boxes(90, 3, 0, torch.float32).to(device), grid_boxes(310, 3, 1, torch.float32).to(device)
    assert_is_max_of_matrix(*boxes, backend, dim, kind=kind)


@every_backend
@both_dimensions
@pytest.mark.parametrize(("n", "m"), SIZES)
def test_max_of_sizes(n, m, dim, backend):
    device = device_of(backend)
    assert_is_max_of_matrix(crowd(n, 0, device=device), crowd(m, 1, device=device), backend, dim)


@every_backend
@both_dimensions
def test_nan_is_never_chosen(dim, backend):
    boxes1, boxes2 = crowd(20, 0), crowd(300, 1)
    boxes1[3], boxes2[::3], boxes2[7, 2] = math.nan, math.nan, math.nan
    device = device_of(backend)
    assert_is_max_of_matrix(boxes1.to(device), boxes2.to(device), backend, dim)
    found = icr.pairwise_max(boxes1.to(device), boxes2.to(device), backend=backend)
    assert (found.values[3].item(), found.indices[3].item()) == (-math.inf, -1)


def groups_of(order: str, n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randint(0, 6, (n,), generator=generator)
    groups[groups == 2 + seed] = 4  # 2 or 3 is empty on one side
    if order == "some invalid":
        groups[::5], groups[1::7] = -1, -3
        groups[2::11], groups[3::13] = 2**31, 2**40
        return groups
    if order == "int32":
        return groups.sort().values.int()
    return (
        groups if order == "unsorted" else groups.sort().values if order == "sorted" else 10**9 + groups.sort().values
    )


@every_backend
@both_dimensions
@pytest.mark.parametrize("order", ["sorted", "unsorted", "some invalid", "int32", "large"])
def test_groups(order, dim, backend):
    device = device_of(backend)
    boxes = crowd(170, 0, device=device), crowd(700, 1, device=device)
    groups = groups_of(order, 170, 0), groups_of(order, 700, 1)
    assert_is_max_of_matrix(*boxes, backend, dim, *groups, kind="containment")


@every_backend
def test_groups_of_batches_and_strides(backend):
    device = device_of(backend)
    boxes1, boxes2 = crowd(3 * 20, 0, device=device).view(3, 20, 4), crowd(33, 1, device=device)
    group1 = (torch.arange(3 * 20 * 2).view(3, 40) % 4)[:, ::2].to(device)
    group2 = torch.arange(33, device=device) % 4
    found = icr.pairwise_max(boxes1, boxes2, group1=group1, group2=group2, backend=backend)
    for batch in range(3):
        alone = icr.pairwise_max(boxes1[batch], boxes2, group1=group1[batch], group2=group2, backend=backend)
        assert same_bits(found.values[batch], alone.values) and same_bits(found.indices[batch], alone.indices)
    found = icr.pairwise_topk(boxes1, boxes2, 3, dim=1, group1=group1, group2=group2, backend=backend)
    assert found.values.shape == (3, 33, 3)


@every_backend
def test_groups_are_a_batch_without_padding(backend):
    """The images of a batch in one call, and one by one."""
    device = device_of(backend)
    counts1, counts2 = (5, 0, 40, 1), (30, 12, 0, 3)
    boxes1, boxes2 = crowd(sum(counts1), 0, device=device), crowd(sum(counts2), 1, device=device)
    group1, group2 = (
        torch.arange(4).repeat_interleave(torch.tensor(counts)).to(device) for counts in (counts1, counts2)
    )
    found = icr.pairwise_max(boxes1, boxes2, group1=group1, group2=group2, backend=backend)
    start = 0
    for first, second in zip(boxes1.split(counts1), boxes2.split(counts2), strict=True):
        alone = icr.pairwise_max(first, second, backend=backend)
        rows = found.indices[: len(first)]
        found = icr.Selection(found.values[len(first) :], found.indices[len(first) :])
        assert torch.equal(torch.where(alone.indices < 0, -1, alone.indices + start), rows)
        start += len(second)


@every_quick_backend
def test_a_million_boxes_against_thousands(backend):
    """Against a matrix of a sample of the rows. The kernels of a GPU, emulated, take a hundredth."""
    n, m = (1_000_000, 2_000) if backend in ("cpu", "cuda") else (10_000, 200)
    device = device_of(backend)
    boxes1, boxes2 = crowd(n, 0, device=device), crowd(m, 1, device=device)
    found = icr.pairwise_max(boxes1, boxes2, backend=backend)
    sample = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:2_000].to(device)
    matrix = icr.pairwise_iou(boxes1[sample], boxes2, backend=backend)
    assert same_bits(found.values[sample], matrix.amax(1))
    assert torch.equal(found.indices[sample], matrix.argmax(1))


@every_backend
def test_no_gradient_flows_through_a_selection(backend):
    boxes = crowd(4, 0, device=device_of(backend)).requires_grad_()
    assert not icr.pairwise_max(boxes, boxes, backend=backend).values.requires_grad
    assert not icr.pairwise_topk(boxes, boxes, 2, backend=backend).values.requires_grad


# Memory

PEAK = """
import resource, sys, torch, icr_kernels as icr
n, m, groups = map(int, sys.argv[1:])
boxes1, boxes2 = torch.rand(n, 4), torch.rand(m, 4)
boxes1[:, 2:] += boxes1[:, :2]
boxes2[:, 2:] += boxes2[:, :2]
group1, group2 = (torch.arange(count) * groups // count for count in (n, m))
icr.pairwise_max(boxes1[:1000], boxes2[:1000])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
icr.pairwise_max(boxes1, boxes2, **({"group1": group1, "group2": group2} if groups else {}))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def added_memory(n: int, m: int, groups: int = 0) -> int:
    """The bytes by which the peak of a process grows in a call on the CPU."""
    command = [sys.executable, "-c", PEAK, str(n), str(m), str(groups)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not hasattr(resource, "RUSAGE_SELF") or sys.platform != "linux", reason="measured as Linux does")
@pytest.mark.parametrize(("n", "m", "groups"), [(1_000_000, 2_000, 0), (1_000_000, 200_000, 128)])
def test_memory_of_the_maximum(n, m, groups, extension):
    """A matrix would take 8 and 800 GB. The results are 12 bytes a row."""
    assert added_memory(n, m, groups) <= 12 * n + (64 << 20)


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
    names = {operator.name() for operator, *_ in calls.found}
    assert names == operators_over_sets(backend)
    for operator, arguments, _ in calls.found:
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


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
GROUP = torch.zeros(3, dtype=torch.int64)
ERRORS = [
    (
        icr.pairwise_iou,
        (BOXES[0], BOXES),
        {},
        ValueError,
        r"boxes1: expected boxes of shape \(\.\.\., N, 4\), got \(4,\)",
    ),
    (icr.pairwise_iou, (BOXES, torch.ones(3, 5)), {}, ValueError, r"boxes2: expected boxes of shape \(\.\.\., 4\)"),
    (icr.pairwise_iou, (BOXES, [1]), {}, TypeError, "boxes2: expected a tensor, got list"),
    (icr.pairwise_iou, (BOXES.int(), BOXES), {}, TypeError, "boxes1: expected dtype float32.*, got int32"),
    (
        icr.pairwise_iou,
        (BOXES, BOXES.to("meta")),
        {},
        ValueError,
        "boxes2: expected a tensor on cpu, where boxes1 is, got",
    ),
    (
        icr.pairwise_iou,
        (BOXES.expand(2, 3, 4), BOXES.expand(5, 3, 4)),
        {},
        ValueError,
        r"boxes2: expected leading dimensions that go with those of boxes1, \(2,\), got \(5,\)",
    ),
    (
        icr.pairwise_iou,
        (BOXES, BOXES),
        {"kind": "iof"},
        ValueError,
        "kind: expected one of iou, .*containment, .*, got 'iof'",
    ),
    (icr.pairwise_iou, (BOXES, BOXES), {"box_format": "yxyx"}, ValueError, "box_format: expected one of xyxy"),
    (icr.pairwise_iou, (BOXES, BOXES), {"eps": 0.0}, ValueError, "eps: expected a number of at least 1e-30 that is"),
    (
        icr.pairwise_max,
        (BOXES, BOXES),
        {"dim": 2},
        ValueError,
        r"dim: expected one of the last two .* of 2 dimensions, got 2",
    ),
    (icr.pairwise_max, (BOXES, BOXES), {"dim": None}, ValueError, "dim: expected one of the last two dimensions"),
    (icr.pairwise_max, (BOXES[None], BOXES), {"dim": 0}, ValueError, "dim: expected one of the last two dimensions"),
    (
        icr.pairwise_max,
        (BOXES, BOXES),
        {"group1": GROUP},
        ValueError,
        "group2: expected a tensor, because group1 is one",
    ),
    (
        icr.pairwise_max,
        (BOXES, BOXES),
        {"group2": GROUP},
        ValueError,
        "group1: expected a tensor, because group2 is one",
    ),
    (
        icr.pairwise_max,
        (BOXES, BOXES),
        {"group1": GROUP, "group2": GROUP[:2]},
        ValueError,
        r"group2: expected one number for each box of boxes2, \(3,\), got \(2,\)",
    ),
    (
        icr.pairwise_max,
        (BOXES, BOXES),
        {"group1": GROUP.float(), "group2": GROUP},
        TypeError,
        "group1: expected dtype int64, int32, got float32",
    ),
    (
        icr.pairwise_max,
        (BOXES, BOXES),
        {"group1": GROUP.to("meta"), "group2": GROUP},
        ValueError,
        "group1: expected a tensor on cpu, where boxes1 is, got one on meta",
    ),
    (icr.pairwise_topk, (BOXES, BOXES, 0), {}, ValueError, "k: expected 1 to 16, got 0"),
    (icr.pairwise_topk, (BOXES, BOXES, 17), {}, ValueError, "k: expected 1 to 16, got 17; for more, take torch.topk"),
    (icr.pairwise_topk, (BOXES, BOXES, 2.0), {}, TypeError, "k: expected a whole number, got float"),
]


@pytest.mark.parametrize(("function", "arguments", "options", "error", "message"), ERRORS)
def test_errors(function, arguments, options, error, message):
    with pytest.raises(error, match=message):
        function(*arguments, **options)


def test_values_are_checked_on_request(monkeypatch):
    monkeypatch.setattr("icr_kernels.arguments.CHECK_VALUES", True)
    boxes = BOXES.clone()
    boxes[1, 1] = math.nan
    with pytest.raises(ValueError, match="boxes2: expected finite boxes, got 1 that are not"):
        icr.pairwise_iou(BOXES, boxes)


@pytest.mark.parametrize("backend", [name for name in COMPILED_BACKENDS if name != "triton"])
@pytest.mark.parametrize("k", [-1, 17, 10**6])
def test_the_operator_itself_keeps_to_its_lists(k, backend):
    """Those of Triton are as long as k says."""
    boxes = BOXES.to(device_of(backend))
    with pytest.raises(RuntimeError, match="at most 16"):
        BY_NAME[backend].operators.selected(boxes, boxes, *[None] * 4, False, k, False, [0, 0, 1e-7])


@pytest.mark.parametrize("backend", [name for name in COMPILED_BACKENDS if name != "triton"])
@pytest.mark.parametrize("numbers", [[], [0.0, 0.0], [0.0] * 7])
def test_the_operators_read_no_formula_of_another_length(numbers, backend):
    boxes, operators = BOXES.to(device_of(backend)), BY_NAME[backend].operators
    with pytest.raises(RuntimeError, match=f"expected a formula of 3 numbers, got {len(numbers)}"):
        operators.pairwise(boxes, boxes, numbers)
    with pytest.raises(RuntimeError, match=f"expected a formula of 6 numbers, got {len(numbers)}"):
        operators.terms(boxes, boxes, None, None, None, numbers)
