"""The Triton operators, in blocks so small that a few pairs take several programs: sums over programs, tables, tiles of
all pairs. What the formulas give, and how boxes may lie in memory, the tests that run over every backend hold.

On a machine without a GPU the operators run in Triton's interpreter.
"""

import pytest
import torch
from torch import Tensor

import inputs
from icr_kernels import dense_reference, formulas, reference
from icr_kernels.calls import (
    AssignmentCall,
    AssignmentRule,
    CostCall,
    DecodingCall,
    DetectionCall,
    DetectionFormula,
    Formula,
    MatchingCost,
    PairFunction,
)
from icr_kernels.variants import DEFAULTS_OF_KINDS, KIND_NAMES, LOSS_NAMES, PENALTY_NAMES, REDUCTION_IDS, REDUCTIONS

if "triton" not in inputs.BACKENDS:
    pytest.skip("Triton is not there", allow_module_level=True)

from icr_kernels import triton_kernels

pytestmark = pytest.mark.in_triton
operators = triton_kernels.operators
DEVICE = inputs.device_of("triton")
GPU = DEVICE == "cuda"
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-6}


@pytest.fixture
def several_programs(monkeypatch):
    """Blocks so small that a few pairs take several, and several for each program of a reduction."""
    for name in ("BLOCK", "INTERPRETED_BLOCK"):
        monkeypatch.setattr(operators, name, 16)
    for name in ("TABLE_BLOCK", "INTERPRETED_TABLE_BLOCK"):
        monkeypatch.setattr(operators, name, 4)
    monkeypatch.setattr(operators, "most_programs", lambda device: 3)
    if GPU:
        monkeypatch.setattr(operators, "WARPS", 1)


def ordinary(n: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(n, 4, generator=generator, dtype=torch.float64) * 8
    return torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1).to(DEVICE, dtype)


def on_grid(n: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Ties, touching edges, empty and inverted boxes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 5, (n, 4), generator=generator).to(DEVICE, dtype)


def call(
    *boxes: Tensor | None,
    index: Tensor | None = None,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: str = "none",
    penalty: str = "containment",
) -> tuple[Tensor, ...]:
    formula = Formula("ciou", penalty)
    tensors = (*boxes, None, index, weight, mask, None, None, None)
    return triton_kernels.loss(*tensors, 1.0, REDUCTION_IDS[reduction], formula.packed(), 7, False)


def expected(*boxes: Tensor | None, **options) -> list[Tensor]:
    """Value and gradients of the reference in double precision."""
    leaves = [rows if rows is None else rows.detach().double().requires_grad_() for rows in boxes]
    value = reference.icr_loss(*leaves, **options)
    return [value.detach(), *torch.autograd.grad(value.sum(), [leaf for leaf in leaves if leaf is not None])]


def assert_close(actual: Tensor, truth: Tensor, tolerance: float) -> None:
    assert actual.shape == truth.shape
    error, size = (actual.double() - truth).norm(), truth.norm()
    assert error <= tolerance * size, f"error {error:.3g} of {size:.3g}"


# Reductions, masks, weights.


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 16 * 3, 16 * 3 + 1, 200])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_sizes_and_reductions(reduction, n, several_programs):
    boxes = [ordinary(n, seed) for seed in range(3)]
    weight = torch.linspace(0.5, 2, n, device=DEVICE, dtype=torch.float16)
    for _ in range(3):  # a program too many or too few would be seen by the next launch
        value, pending, *gradients = call(*boxes, weight=weight, reduction=reduction)
        truth = expected(*boxes, weight=weight, reduction=reduction)
        assert pending.numel() == 0
        for actual, true in zip((value, *gradients), truth, strict=True):
            assert_close(actual, true, TOLERANCE[torch.float32])


@pytest.mark.parametrize("n", [0, 1, 40, 200])
def test_mean_of_unmasked_pairs_comes_with_a_factor_that_gradients_lack(n, several_programs):
    boxes = [ordinary(n, seed) for seed in range(3)]
    mask = torch.arange(n, device=DEVICE) % 3 == 1
    for rows in boxes:
        rows[~mask] = float("nan")
    value, pending, *gradients = call(*boxes, mask=mask, reduction="mean")
    assert pending.shape == () and pending.item() == pytest.approx(1 / max(int(mask.sum()), 1))
    truth = expected(*boxes, mask=mask, reduction="mean")
    assert_close(value, truth[0], 1e-6)
    for gradient, true in zip(gradients, truth[1:], strict=True):
        assert not gradient[~mask].any()
        upstream = torch.tensor(3.0, device=DEVICE)
        actual = triton_kernels.scaled(gradient, upstream, pending, torch.float32, None, None)
        assert_close(actual, 3 * true, 2e-6)


# A table of anchor objects.


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("rows", [0, 1, 9])
def test_table(rows, dtype, several_programs):
    pred, target, table = ordinary(50, 0), ordinary(50, 1), ordinary(rows, 2, torch.float64).float()
    index = torch.randint(-3, rows + 3, (50,), generator=torch.Generator().manual_seed(3)).to(DEVICE, dtype)
    index[:2] = torch.tensor([torch.iinfo(dtype).min, torch.iinfo(dtype).max])
    options = {"penalty": "containment+pull", "reduction": "none"}
    value, _, gradient, _, of_pairs = call(pred, target, table, index=index, **options)
    truth = expected(pred, target, table, anchor_index=index, **options)
    assert_close(value, truth[0], 1e-6)
    assert_close(gradient, truth[1], 1e-6)
    assert of_pairs.shape == pred.shape
    one = torch.ones(1, device=DEVICE).expand(50)
    of_table = triton_kernels.scaled(of_pairs, one, None, torch.float32, table, index)
    assert_close(of_table, truth[3], 1e-6)


# The terms.


@inputs.full_precision
@pytest.mark.parametrize("with_anchor_objects", [True, False])
def test_terms_and_their_gradients(with_anchor_objects, dtype, several_programs):
    boxes = [ordinary(60, seed, dtype) for seed in range(3)]
    boxes[2] = boxes[2] if with_anchor_objects else None
    mask = torch.arange(60, device=DEVICE) % 4 != 1
    formula = Formula("giou", "log", penalty_weight=0.5).packed()
    upstream = [torch.linspace(1, 2 + i, 120, dtype=dtype, device=DEVICE)[::2] for i in range(4)]
    terms = triton_kernels.terms(*boxes, None, None, mask, None, None, formula)
    leaves = [rows if rows is None else rows.double().requires_grad_() for rows in boxes]
    truth = reference.icr_terms(*leaves, mask=mask, loss="giou", penalty="log", penalty_weight=0.5)
    for actual, true in zip(terms, truth, strict=True):
        assert actual.dtype == dtype
        assert_close(actual, true.detach(), TOLERANCE[dtype])
    gradients = triton_kernels.terms_backward(*upstream, *boxes, None, None, mask, None, None, formula, 7)
    leaves = [leaf for leaf in leaves if leaf is not None]
    wide = [rows.double() for rows, term in zip(upstream, truth, strict=True) if term.requires_grad]
    truth = torch.autograd.grad([term for term in truth if term.requires_grad], leaves, wide)
    for actual, true in zip(gradients, truth, strict=False):
        assert actual.dtype == dtype
        assert_close(actual, true, TOLERANCE[dtype])


# All pairs of two sets. Other tests see the large blocks that the interpreter is given.


@pytest.fixture(params=["many", "some", "few"])
def small_tiles(request, monkeypatch):
    """As a GPU has them, but smaller: for many, some or few queries and rows."""
    pairwise = triton_kernels.pairwise_operators
    tiles = pairwise.Tile(16, 4, 0), pairwise.Tile(4, 16, 1), pairwise.Tile(1, 32, 1)
    blocks = pairwise.Blocks((4, 32), (16, 8), *tiles, span=16, mine=(8, 2), pairs=128, cost=(2, 16))
    for name in ("BLOCKS", "INTERPRETED_BLOCKS"):
        monkeypatch.setattr(pairwise, name, dict.fromkeys(pairwise.BLOCKS, blocks))
    monkeypatch.setattr(pairwise, "WIDE", 20)
    if request.param == "many":
        monkeypatch.setattr(pairwise, "MANY_QUERIES", 0)
        monkeypatch.setattr(pairwise, "MANY_ROWS", 0)
    elif request.param == "some":
        monkeypatch.setattr(pairwise, "SOME_QUERIES", 0)


def function_of(kind: str) -> PairFunction:
    return PairFunction(kind, "xyxy", 0.5, DEFAULTS_OF_KINDS[kind])


def matrix(first: Tensor, second: Tensor, kind: str = "iou") -> Tensor:
    return triton_kernels.pairwise(first, second, function_of(kind).packed())


def matrix_gradients(upstream: Tensor, first: Tensor, second: Tensor, kind: str) -> tuple[Tensor, ...]:
    return triton_kernels.pairwise_backward(upstream, first, second, function_of(kind).packed(), 3)


def expected_matrix(upstream: Tensor, first: Tensor, second: Tensor, kind: str) -> list[Tensor]:
    leaves = [boxes.detach().double().requires_grad_() for boxes in (first, second)]
    value = reference.pairwise_iou(*leaves, function_of(kind))
    return [value.detach(), *torch.autograd.grad(value, leaves, upstream.double())]


def assert_selected(
    queries: Tensor, candidates: Tensor, k: int, kind: str = "iou", candidate_first: bool = False, **options
) -> None:
    """Exactly what a stable sort of the matrix gives."""
    tensors = [options.get(name) for name in ("query_group", "candidate_group", "offset", "at_least")]
    larger = options.get("larger", False)
    result = triton_kernels.selected(
        queries, candidates, *tensors, candidate_first, k, larger, function_of(kind).packed()
    )
    pair = (candidates, queries) if candidate_first else (queries, candidates)
    score = matrix(*pair, kind).transpose(-1, -2) if candidate_first else matrix(*pair, kind)
    query_group, candidate_group, offset, at_least = tensors
    if offset is not None:
        score = score - offset.unsqueeze(-2)
    counts = ~score.isnan()
    if query_group is not None:
        counts &= (query_group.unsqueeze(-1) == candidate_group.unsqueeze(-2)) & (query_group >= 0).unsqueeze(-1)
    areas = [formulas.area(formulas.corners(boxes, "xyxy")) for boxes in (queries, candidates)]
    if larger:
        counts &= areas[1].unsqueeze(-2) > areas[0].unsqueeze(-1)
    if at_least is not None:
        counts &= score >= at_least.unsqueeze(-1)
        score = -areas[1].unsqueeze(-2).expand_as(score)
    score = torch.nn.functional.pad(torch.where(counts, score, -torch.inf), (0, k + 1), value=-torch.inf)
    values, indices = (part[..., : max(k, 1)] for part in torch.sort(score, dim=-1, descending=True, stable=True))
    indices = torch.where(values == -torch.inf, -1, indices)
    for actual, true in zip(result, (values, indices), strict=True):
        assert torch.equal(actual, true.squeeze(-1) if k == 0 else true)


@pytest.mark.parametrize(("n", "m"), [(0, 5), (5, 0), (1, 1), (17, 19), (8, 33)])
def test_matrix_in_small_tiles(n, m, small_tiles):
    first, second = ordinary(2 * n, 0).view(2, n, 4), ordinary(m, 1).expand(2, m, 4)
    upstream = torch.ones((), device=DEVICE).expand(2, n, m)
    results = matrix(first, second, "giou"), *matrix_gradients(upstream, first, second, "giou")
    for actual, truth in zip(results, expected_matrix(upstream, first, second, "giou"), strict=True):
        assert_close(actual, truth, 2e-6)


@pytest.mark.parametrize("k", [0, 1, 5, 16])
@pytest.mark.parametrize(("n", "m"), [(0, 5), (5, 0), (1, 1), (9, 40)])
def test_selection_in_small_tiles(n, m, k, small_tiles):
    for boxes_of in (ordinary, on_grid):
        queries, candidates = boxes_of(2 * n, 0).view(2, n, 4), boxes_of(2 * m, 1).view(2, m, 4)
        queries[:1, 1:2, 2], candidates[1:, 2:3, 0] = float("nan"), float("nan")
        assert_selected(queries, candidates, k)
        group = torch.arange(n, device=DEVICE).expand(2, n) // 3, torch.arange(m, device=DEVICE).expand(2, m) // 7
        assert_selected(queries, candidates, k, query_group=group[0], candidate_group=group[1])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("k", [0, 4])
def test_groups_lie_anyhow(k, dtype, small_tiles):
    queries, candidates, generator = ordinary(20, 0), ordinary(40, 1), torch.Generator().manual_seed(2)
    mine, its = (torch.randint(-1, 4, (n,), generator=generator).to(DEVICE, dtype) for n in (40, 40))
    largest = 2**31 - 1
    groups = {
        "unsorted": (mine[::2], its),
        "none": (mine[::2], torch.full_like(its, -1)),
        "one": (torch.full_like(mine[::2], largest), torch.where(its == 1, largest, its)),
        "gaps": ((mine[::2] * 9).sort().values, torch.where(its == 2, -5, its * 9).sort().values),
    }
    if dtype == torch.int64:
        groups["beyond"] = (mine[::2].clamp(min=0), its.clamp(min=0) + 2**32 * (its == 3))
    for query_group, candidate_group in groups.values():
        assert_selected(queries, candidates, k, query_group=query_group, candidate_group=candidate_group)


@inputs.full_precision
@pytest.mark.parametrize("candidate_first", [False, True])
def test_selection_by_other_scores(candidate_first, dtype, small_tiles):
    queries, candidates = ordinary(30, 0, dtype), ordinary(50, 1, dtype)
    offset = torch.linspace(0, 1, 100, dtype=dtype, device=DEVICE)[::2]
    at_least = torch.linspace(0, 0.4, 30, dtype=dtype, device=DEVICE)
    for options in ({"offset": offset}, {"larger": True}, {"at_least": at_least, "larger": True}, {"k": 3}):
        options = {"k": 0, "kind": "containment", **options}
        assert_selected(queries, candidates, candidate_first=candidate_first, **options)


@pytest.mark.parametrize("kind", KIND_NAMES if GPU else inputs.SOME_KINDS)
def test_largest_value_less_itself_is_zero(kind):
    """Which the matching of low quality is made of."""
    first, second = ordinary(40, 0), ordinary(30, 1)
    options = 0, False, function_of(kind).packed()
    most, index = triton_kernels.selected(first, second, None, None, None, None, False, *options)
    value = matrix(first, second, kind)
    assert torch.equal(most, value.gather(1, index.unsqueeze(1)).squeeze(1))
    left, _ = triton_kernels.selected(second, first, None, None, most, None, True, *options)
    assert torch.equal(left == 0, (value == most.unsqueeze(1)).any(0))


@inputs.full_precision
@pytest.mark.parametrize("gamma", [2.0, 0.5])
def test_matching_cost(gamma, dtype, small_tiles):
    generator = torch.Generator().manual_seed(3)
    boxes = ordinary(105, 0, dtype).view(35, 3, 4).transpose(0, 1)
    logits = torch.randn(5, 35, 3, generator=generator).to(DEVICE, dtype).transpose(0, 2) * 10
    targets = ordinary(9, 1)
    image, labels = torch.tensor([0, 1, 2, 2, -1, 3, 1, 0, 2**31 - 1]).int(), torch.tensor([0, 4, 2, -1, 1, 1, 5, 3, 2])
    tensors = targets, labels.to(DEVICE), image.to(DEVICE)
    for normalizer in (None, logits.logsumexp(-1)):
        of_pair = MatchingCost("cxcywh", 2.0, 5.0, 1.5, 0.25, gamma, 1e-12, 1e-16)
        cost = triton_kernels.matching_cost(boxes, logits, normalizer, *tensors, of_pair.packed())
        wide = [None if rows is None else rows.double() for rows in (boxes, logits, normalizer, targets)]
        truth = reference.matching_cost(CostCall(*wide, *tensors[1:], of_pair.packed()), of_pair)
        assert cost.dtype == dtype and cost.isnan().any(1).tolist() == [False, False, False] + [True] * 4 + [
            False,
            True,
        ]
        assert torch.equal(cost.isnan(), truth.isnan())
        assert_close(cost.nan_to_num(), truth.nan_to_num(), TOLERANCE[dtype])


@pytest.mark.parametrize(("topk", "topk2"), [(1, 0), (10, 0), (32, 3)])
@pytest.mark.parametrize(("images", "points", "rows"), [(0, 9, 3), (2, 0, 3), (2, 9, 0), (2, 9, 3), (3, 75, 20)])
def test_assignment_in_small_blocks(images, points, rows, topk, topk2, several_programs):
    """Points and boxes of a grid: equal metrics, equal boxes, and boxes with fewer candidates than they may take."""
    place = torch.arange(points, device=DEVICE)
    of_point = torch.stack((place % 9, place // 9), 1) + 0.5
    truth, boxes = on_grid(rows, 1) * 2, on_grid(images * points, 2).view(images, points, 4) * 2
    truth[:, 2:] += truth[:, :2]
    if rows:
        boxes[:, 1::2] = truth[place[1::2] % rows]
    scores = (torch.arange(images * points * 3, device=DEVICE) % 5 / 4).view(images, 3, points).transpose(1, 2)
    row = torch.arange(rows, device=DEVICE)
    rule = AssignmentRule("xyxy", "xyxy", topk, topk2, False, 0.5, 6.0, 3.0, 1e-9)
    call = AssignmentCall(scores, boxes, of_point, truth, row * 5 % 4, row % 4 - 1, rule.packed())
    truth = dense_reference.task_aligned_assign(call, rule)
    index, score = triton_kernels.assigned(*call)
    assert torch.equal(index, truth.index)
    assert_close(score, truth.score, TOLERANCE[torch.float32])


# Dense heads.


@pytest.fixture
def small_blocks(monkeypatch):
    """Of which even a small head takes several, whose sums are added up in several steps."""
    detection = triton_kernels.detection_operators
    blocks = detection.Blocks(8, 128, (8, 4), (4, 8))
    for name in ("BLOCKS", "INTERPRETED_BLOCKS"):
        monkeypatch.setattr(detection, name, dict.fromkeys(detection.BLOCKS, blocks))
    monkeypatch.setattr(detection, "SUMMED", 4)


HEADS = [(0, 9, 5, 4, 3), (2, 0, 5, 4, 3), (2, 9, 0, 4, 3), (2, 9, 5, 4, 0), (2, 21, 9, 1, 4), (3, 37, 5, 5, 6)]
every_head = pytest.mark.parametrize(("images", "points", "classes", "bins", "rows"), HEADS)
every_layout = pytest.mark.parametrize("points_side_by_side", [True, False])


def head_of(
    images: int, points: int, channels: int, seed: int, points_side_by_side: bool, dtype: torch.dtype
) -> Tensor:
    values = torch.randn(images, points, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values = (4 * values).to(DEVICE, dtype)
    return values.mT.contiguous().mT if points_side_by_side else values


def grid_of(points: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    place = torch.arange(points, device=DEVICE)
    return torch.stack((place % 7, place // 7), 1).to(dtype) + 0.5, 2.0 ** (place % 3).to(dtype)


def assert_gradient(actual: Tensor, truth: Tensor, logits: Tensor) -> None:
    """As the memory of the logits is laid out."""
    assert actual.dtype == logits.dtype and actual.stride() == torch.empty_like(logits).stride()
    assert_close(actual, truth.double(), TOLERANCE[logits.dtype])


@inputs.full_precision
@every_layout
@every_head
def test_decoding_in_small_blocks(images, points, classes, bins, rows, points_side_by_side, dtype, small_blocks):
    call = DecodingCall(head_of(images, points, 4 * bins, 0, points_side_by_side, dtype), *grid_of(points, dtype))
    upstream = head_of(images, points, 4, 1, not points_side_by_side, dtype)
    leaf = call.box_logits.double().requires_grad_()
    truth = dense_reference.decode_boxes(leaf, call.points, call.strides)
    assert_close(triton_kernels.decoded(*call), truth.detach(), TOLERANCE[dtype])
    (truth,) = torch.autograd.grad(truth, leaf, upstream.double())
    assert_gradient(triton_kernels.decoded_backward(upstream, *call, 1), truth, call.box_logits)


@inputs.full_precision
@every_layout
@every_head
def test_detection_in_small_blocks(images, points, classes, bins, rows, points_side_by_side, dtype, small_blocks):
    """Targets, labels and anchor objects that are not there among them, and blocks without any target."""
    boxes = head_of(images, points, 4 * bins, 0, points_side_by_side, dtype)
    logits = head_of(images, points, classes, 1, points_side_by_side, dtype)
    place = torch.arange(images * points, device=DEVICE).view(images, points)
    row = torch.arange(rows, device=DEVICE)
    formula = DetectionFormula(
        Formula("ciou", "containment+pull", eps=1e-3), 7.5, 0.5, 1.5, 0.0, points_side_by_side, 0.0, 0.0
    )
    call = DetectionCall(
        boxes,
        logits,
        *grid_of(points, dtype),
        ordinary(rows, 2, dtype),
        row * 3 % 7 - 1,
        torch.where(place // 8 % 2 == 0, -1, place % 11 - 2),
        (place % 10 / 10).float(),
        row.int() * 5 % 7 - 2,
        torch.linspace(0.5, 2, classes, device=DEVICE, dtype=torch.float16),
        None,
        None,
        formula.packed(),
    )
    leaves = [each.double().requires_grad_() for each in (boxes, logits)]
    truth = dense_reference.dense_detection_loss(DetectionCall(*leaves, *call[2:]), formula)
    *terms, divisors = triton_kernels.detection_loss(*call)
    for actual, true in zip(terms, truth, strict=True):
        assert_close(actual, true.detach().double(), TOLERANCE[dtype])
    total = truth.box + 2 * truth.distribution + 3 * truth.penalty + 4 * truth.classification
    upstream = [torch.tensor(factor, dtype=dtype, device=DEVICE) for factor in (1.0, 4.0, 2.0, 3.0)]
    arguments = *upstream, *call._replace(normalizer=divisors)
    gradients = triton_kernels.detection_loss_backward(*arguments, 3)
    for actual, true, given in zip(gradients, torch.autograd.grad(total, leaves), (boxes, logits), strict=True):
        assert_gradient(actual, true, given)
    assert [each.numel() for each in triton_kernels.detection_loss_backward(*arguments, 0)] == [0, 0]
    for each in triton_kernels.detection_loss_backward(*[None] * 4, *arguments[4:], 3):
        assert not each.any()


def test_losses_and_penalties_are_those_of_the_registry():
    assert [loss.__name__ for loss in operators.LOSSES] == list(LOSS_NAMES)
    assert [penalty.__name__ for penalty in operators.PENALTIES] == [name.replace("+", "_") for name in PENALTY_NAMES]


def test_pair_functions_are_those_of_the_registry():
    functions = triton_kernels.pairwise_operators.PAIR_FUNCTIONS
    assert len(functions) == len(KIND_NAMES)
    assert [each.complement for each in functions] == [name in LOSS_NAMES and name != "iou" for name in KIND_NAMES]
