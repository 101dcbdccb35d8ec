"""The Triton operators, called directly: every loss and penalty, and what their contract says beyond the public
functions. On a machine without a GPU they run in Triton's interpreter."""

import itertools

import pytest
import torch
from torch import Tensor

import inputs
from icr_kernels import reference
from icr_kernels.variants import (
    BOX_FORMAT_IDS,
    BOX_FORMATS,
    COORDINATE_LIMIT,
    KIND_IDS,
    KIND_NAMES,
    LOSS_IDS,
    LOSS_NAMES,
    PENALTY_IDS,
    PENALTY_NAMES,
    REDUCTION_IDS,
    REDUCTIONS,
)

if "triton" not in inputs.BACKENDS:
    pytest.skip("Triton is not there", allow_module_level=True)

from icr_kernels import triton_kernels

operators = triton_kernels.operators
DEVICE = inputs.device_of("triton")
GPU = DEVICE == "cuda"
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}
every_variant = pytest.mark.parametrize(
    ("loss", "penalty"),
    [(loss, "containment+pull") for loss in LOSS_NAMES]
    + [("iou", penalty) for penalty in PENALTY_NAMES if penalty != "containment+pull"],
)
full_precision = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "float"])
half_precision = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["half", "bfloat"])


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
    normalizer: Tensor | None = None,
    scale: float = 1.0,
    reduction: str = "none",
    loss: str = "ciou",
    penalty: str = "containment",
    penalty_weight: float = 1.0,
    relative: bool = False,
    eps: float = 1e-7,
    box_format: str = "xyxy",
    wanted: int = 7,
    in_box_dtype: bool = False,
) -> tuple[Tensor, ...]:
    formula = LOSS_IDS[loss], PENALTY_IDS[penalty], penalty_weight, relative, eps, BOX_FORMAT_IDS[box_format]
    tensors = (*boxes, index, weight, mask, normalizer)
    return triton_kernels.loss(*tensors, scale, REDUCTION_IDS[reduction], *formula, wanted, in_box_dtype)


def expected(*boxes: Tensor | None, **options) -> list[Tensor]:
    """Value and gradients of the reference in double precision."""
    leaves = [rows if rows is None else rows.detach().double().requires_grad_() for rows in boxes]
    value = reference.icr_loss(*leaves, **options)
    return [value.detach(), *torch.autograd.grad(value.sum(), [leaf for leaf in leaves if leaf is not None])]


def assert_close(actual: Tensor, truth: Tensor, tolerance: float) -> None:
    assert actual.shape == truth.shape
    error, size = (actual.double() - truth).norm(), truth.norm()
    assert error <= tolerance * size, f"error {error:.3g} of {size:.3g}"


@full_precision
@pytest.mark.parametrize("boxes_of", [ordinary, on_grid])
@every_variant
def test_values_and_gradients(loss, penalty, boxes_of, dtype):
    boxes = [boxes_of(400, seed, dtype) for seed in range(3)]
    options = {"loss": loss, "penalty": penalty, "penalty_weight": 0.75, "eps": 0.5, "reduction": "none"}
    value, pending, *gradients = call(*boxes, **options)
    assert value.dtype == dtype and pending.numel() == 0
    for actual, truth in zip((value, *gradients), expected(*boxes, **options), strict=True):
        assert actual.dtype == dtype
        assert_close(actual, truth, TOLERANCE[dtype])


@full_precision
@pytest.mark.parametrize("penalty", PENALTY_NAMES)
def test_relative_penalty(penalty, dtype):
    boxes = [ordinary(300, seed, dtype) for seed in range(3)]
    options = {"penalty": penalty, "relative": True, "reduction": "none"}
    for actual, truth in zip(
        (call(*boxes, **options)[i] for i in (0, 2, 3, 4)), expected(*boxes, **options), strict=True
    ):
        assert_close(actual, truth, TOLERANCE[dtype])


@pytest.mark.parametrize("box_format", BOX_FORMATS)
def test_box_formats(box_format):
    boxes = [on_grid(300, seed, torch.float64) for seed in range(3)]
    options = {"box_format": box_format, "penalty": "containment+pull", "eps": 0.5, "reduction": "none"}
    for actual, truth in zip(
        (call(*boxes, **options)[i] for i in (0, 2, 3, 4)), expected(*boxes, **options), strict=True
    ):
        assert_close(actual, truth, TOLERANCE[torch.float64])


@pytest.mark.parametrize("wanted", range(8))
def test_only_wanted_gradients_are_returned(wanted):
    boxes = [ordinary(20, seed) for seed in range(3)]
    everything = call(*boxes, wanted=7)
    value, _, *gradients = call(*boxes, wanted=wanted)
    assert torch.allclose(value, everything[0], rtol=1e-6)
    for bit, (gradient, truth) in enumerate(zip(gradients, everything[2:], strict=True)):
        if wanted >> bit & 1:
            assert torch.allclose(gradient, truth, rtol=1e-5, atol=1e-6)
        else:
            assert gradient.shape == (0,) and gradient.dtype == torch.float32


@full_precision
@every_variant
def test_identical_boxes_rest(loss, penalty, dtype):
    """Exactly, whatever the corners round to."""
    generator = torch.Generator().manual_seed(5)
    first = torch.empty(500, 2, dtype=torch.float64).uniform_(-500, 500, generator=generator)
    size = torch.empty(500, 2, dtype=torch.float64).uniform_(-2, 7, generator=generator).exp()
    boxes = torch.cat((first, first + size), 1).to(DEVICE, dtype)
    around = boxes + torch.tensor([-1, -1, 1, 1], dtype=dtype, device=DEVICE)
    for anchor_objects in (None, around):
        value, _, *gradients = call(boxes, boxes, anchor_objects, loss=loss, penalty=penalty)
        assert not value.any() and not any(gradient.any() for gradient in gradients)


@every_variant
def test_nan_stays_nan_and_in_its_row(loss, penalty):
    clean = [ordinary(60, seed) for seed in range(3)]
    for place, column in itertools.product(range(3), range(4)):
        boxes = [rows.clone() for rows in clean]
        boxes[place][30, column] = float("nan")
        value = call(*boxes, loss=loss, penalty=penalty, wanted=0)[0]
        assert value.isnan().nonzero().flatten().tolist() == [30], (place, column)


@full_precision
@every_variant
def test_extreme_boxes_have_a_finite_loss_and_gradient(loss, penalty, dtype):
    numbers = [0.0, -0.0, 1.0, -1.0, 0.1, 100.5, 1e-30, -1e-30, 1e-7, 1e18, -1e18, 0.9e18, 3e38, -3e38]
    numbers = torch.tensor(numbers, dtype=torch.float64)
    generator = torch.Generator().manual_seed(11)
    boxes = [numbers[torch.randint(len(numbers), (1000, 4), generator=generator)].to(DEVICE, dtype) for _ in range(3)]
    for box_format in BOX_FORMATS:
        value, _, *gradients = call(*boxes, loss=loss, penalty=penalty, box_format=box_format)
        assert value.isfinite().all()
        for rows, gradient in zip(boxes, gradients, strict=True):
            assert gradient.isfinite().all()
            assert (gradient[rows.abs() >= COORDINATE_LIMIT] == 0).all()


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


@pytest.mark.parametrize("number", [7, 7.0, 0, -2.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int32, torch.int64])
def test_normalizer_of_any_dtype_divides_a_mean(dtype, number):
    boxes = [ordinary(30, seed) for seed in range(3)]
    mask, normalizer = torch.arange(30, device=DEVICE) % 2 == 0, torch.tensor(number, device=DEVICE).to(dtype)
    options = {"mask": mask, "reduction": "mean", "eps": 1e-3}
    value, pending, gradient, *_ = call(*boxes, normalizer=normalizer, **options)
    truth = expected(*boxes, normalizer=normalizer.double(), **options)
    assert pending.numel() == 0
    assert_close(value, truth[0], 1e-6)
    assert_close(gradient, truth[1], 1e-6)


def test_sums_are_the_same_in_every_run(several_programs):
    boxes = [ordinary(300, seed) for seed in range(3)]
    assert len({call(*boxes, reduction="sum", wanted=0)[0].item() for _ in range(3)}) == 1


def test_value_can_be_added_to_in_place(several_programs):
    value, *_ = call(*(ordinary(100, seed) for seed in range(3)), reduction="sum")
    assert not value._is_view() and value.is_contiguous()
    value += 1


# Layouts and dtypes.


def layouts(rows: Tensor) -> dict[str, Tensor]:
    n = len(rows)
    wide = torch.full((n, 9), float("nan"), dtype=rows.dtype, device=DEVICE)
    wide[:, 2:9:2] = rows
    shifted = torch.full((4 * n + 1,), float("nan"), dtype=rows.dtype, device=DEVICE)
    shifted[1:] = rows.flatten()
    return {
        "columns": rows.t().contiguous().t(),
        "strided": wide[:, 2:9:2],
        "misaligned": shifted[1:].view(n, 4),
        "every other": rows.repeat_interleave(2, 0)[::2],
    }


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_any_layout_gives_the_same(dtype):
    boxes = [ordinary(50, seed, dtype) for seed in range(3)]
    truth = call(*boxes, in_box_dtype=True)
    for place in range(3):
        for name, view in layouts(boxes[place]).items():
            given = [*boxes[:place], view, *boxes[place + 1 :]]
            for actual, true in zip(call(*given, in_box_dtype=True), truth, strict=True):
                assert torch.equal(actual, true), name


def test_leading_dimensions():
    boxes = [ordinary(60, seed) for seed in range(3)]
    truth = call(*boxes)
    batches = [rows.view(3, 4, 5, 4) for rows in boxes]
    transposed = [rows.transpose(0, 1).contiguous().transpose(0, 1) for rows in batches]
    for given in (batches, transposed):
        for actual, true in zip(call(*given), truth, strict=True):
            assert torch.equal(actual.flatten(), true.flatten())
    one = [rows[:1].expand(60, 4) for rows in boxes]
    assert torch.equal(call(*one)[0], truth[0][:1].expand(60))


@half_precision
@pytest.mark.parametrize("in_box_dtype", [False, True])
def test_half_precision_is_rounded_once(in_box_dtype, dtype):
    boxes = [ordinary(300, 0, dtype), ordinary(300, 1), ordinary(300, 2, dtype)]
    gradients = call(*boxes, in_box_dtype=in_box_dtype)[2:]
    exact = call(*(rows.float() for rows in boxes))[2:]
    for rows, gradient, true in zip(boxes, gradients, exact, strict=True):
        assert torch.equal(gradient, true.to(rows.dtype) if in_box_dtype else true)


@half_precision
def test_half_precision_overflows(dtype):
    boxes = [torch.tensor(rows, device=DEVICE) for rows in ([[0, 0, 2e-4, 2e-4]], [[-1e-4, -1e-4, 3e-4, 3e-4]])]
    boxes = [rows.to(dtype) for rows in boxes]
    infinity = float("inf")
    options = {"loss": "iou", "reduction": "sum", "wanted": 1, "in_box_dtype": True}
    gradient = call(*boxes, None, scale=1e37, **options)[2]
    assert gradient.tolist() == [[infinity, infinity, -infinity, -infinity]]
    factor = torch.tensor([infinity, float("nan")], device=DEVICE)
    rows = triton_kernels.scaled(torch.tensor([[1.0, -1, 0, 0]] * 2, device=DEVICE), factor, None, dtype, None, None)
    assert rows[0].tolist() == [infinity, -infinity, 0, 0]
    assert rows[1, :2].isnan().all() and rows[1, 2:].tolist() == [0, 0]


def test_any_double_is_computed_in_double():
    for place in range(3):
        boxes = [ordinary(20, seed, torch.float64 if seed == place else torch.float16) for seed in range(3)]
        value, _, gradient, *_ = call(*boxes)
        assert value.dtype == gradient.dtype == torch.float64
        assert_close(value, expected(*boxes, reduction="none")[0], 1e-12)


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


@full_precision
@pytest.mark.parametrize("with_anchor_objects", [True, False])
def test_terms_and_their_gradients(with_anchor_objects, dtype, several_programs):
    boxes = [ordinary(60, seed, dtype) for seed in range(3)]
    boxes[2] = boxes[2] if with_anchor_objects else None
    mask = torch.arange(60, device=DEVICE) % 4 != 1
    formula = LOSS_IDS["giou"], PENALTY_IDS["log"], 0.5, False, 1e-7, 0
    upstream = [torch.linspace(1, 2 + i, 120, dtype=dtype, device=DEVICE)[::2] for i in range(4)]
    terms = triton_kernels.terms(*boxes, None, mask, *formula)
    leaves = [rows if rows is None else rows.double().requires_grad_() for rows in boxes]
    truth = reference.icr_terms(*leaves, mask=mask, loss="giou", penalty="log", penalty_weight=0.5)
    for actual, true in zip(terms, truth, strict=True):
        assert actual.dtype == dtype
        assert_close(actual, true.detach(), TOLERANCE[dtype])
    gradients = triton_kernels.terms_backward(*upstream, *boxes, None, mask, *formula, 7)
    leaves = [leaf for leaf in leaves if leaf is not None]
    wide = [rows.double() for rows, term in zip(upstream, truth, strict=True) if term.requires_grad]
    truth = torch.autograd.grad([term for term in truth if term.requires_grad], leaves, wide)
    for actual, true in zip(gradients, truth, strict=False):
        assert actual.dtype == dtype
        assert_close(actual, true, TOLERANCE[dtype])


def test_gradient_of_the_terms_by_a_table():
    pred, target, table = ordinary(40, 0), ordinary(40, 1), ordinary(5, 2, torch.float16)
    index = torch.arange(40, device=DEVICE) % 7 - 1
    formula = LOSS_IDS["iou"], PENALTY_IDS["containment"], 1.0, False, 1e-7, 0
    upstream = [torch.ones(40, device=DEVICE)] * 4
    *_, gradient = triton_kernels.terms_backward(*upstream, pred, target, table, index, None, *formula, 4)
    leaf = table.double().requires_grad_()
    terms = reference.icr_terms(pred.double(), target.double(), leaf, anchor_index=index, loss="iou")
    truth = torch.autograd.grad(sum(term.sum() for term in terms), leaf)[0]
    assert gradient.dtype == torch.float16
    assert_close(gradient, truth, TOLERANCE[torch.float16])


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


def matrix(first: Tensor, second: Tensor, kind: str = "iou") -> Tensor:
    return triton_kernels.pairwise(first, second, KIND_IDS[kind], 0.5, 0)


def matrix_gradients(upstream: Tensor, first: Tensor, second: Tensor, kind: str) -> tuple[Tensor, ...]:
    return triton_kernels.pairwise_backward(upstream, first, second, KIND_IDS[kind], 0.5, 0, 3)


def expected_matrix(upstream: Tensor, first: Tensor, second: Tensor, kind: str) -> list[Tensor]:
    leaves = [boxes.detach().double().requires_grad_() for boxes in (first, second)]
    value = reference.pairwise_iou(*leaves, kind, 0.5, "xyxy")
    return [value.detach(), *torch.autograd.grad(value, leaves, upstream.double())]


def assert_selected(
    queries: Tensor, candidates: Tensor, k: int, kind: str = "iou", candidate_first: bool = False, **options
) -> None:
    """Exactly what a stable sort of the matrix gives."""
    tensors = [options.get(name) for name in ("query_group", "candidate_group", "offset", "at_least")]
    larger = options.get("larger", False)
    result = triton_kernels.selected(
        queries, candidates, *tensors, KIND_IDS[kind], candidate_first, k, larger, 0.5, BOX_FORMAT_IDS["xyxy"]
    )
    pair = (candidates, queries) if candidate_first else (queries, candidates)
    score = matrix(*pair, kind).transpose(-1, -2) if candidate_first else matrix(*pair, kind)
    query_group, candidate_group, offset, at_least = tensors
    if offset is not None:
        score = score - offset.unsqueeze(-2)
    counts = ~score.isnan()
    if query_group is not None:
        counts &= (query_group.unsqueeze(-1) == candidate_group.unsqueeze(-2)) & (query_group >= 0).unsqueeze(-1)
    areas = [reference.area(reference.corners(boxes, "xyxy")) for boxes in (queries, candidates)]
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


@full_precision
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_matrix_and_its_gradients(kind, dtype):
    for boxes_of in (ordinary, on_grid):
        first, second = boxes_of(70, 0, dtype), boxes_of(50, 1, dtype)
        upstream = torch.rand(50, 140, dtype=dtype, device=DEVICE)[:, ::2].t()
        results = matrix(first, second, kind), *matrix_gradients(upstream, first, second, kind)
        for actual, truth in zip(results, expected_matrix(upstream, first, second, kind), strict=True):
            assert actual.dtype == dtype and actual.is_contiguous()
            assert_close(actual, truth, 10 * TOLERANCE[dtype])


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


@full_precision
@pytest.mark.parametrize("candidate_first", [False, True])
def test_selection_by_other_scores(candidate_first, dtype, small_tiles):
    queries, candidates = ordinary(30, 0, dtype), ordinary(50, 1, dtype)
    offset = torch.linspace(0, 1, 100, dtype=dtype, device=DEVICE)[::2]
    at_least = torch.linspace(0, 0.4, 30, dtype=dtype, device=DEVICE)
    for options in ({"offset": offset}, {"larger": True}, {"at_least": at_least, "larger": True}, {"k": 3}):
        options = {"k": 0, "kind": "containment", **options}
        assert_selected(queries, candidates, candidate_first=candidate_first, **options)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_largest_value_less_itself_is_zero(kind):
    """Which the matching of low quality is made of."""
    first, second = ordinary(40, 0), ordinary(30, 1)
    numbers = 0, False, 0.5, 0
    most, index = triton_kernels.selected(first, second, None, None, None, None, KIND_IDS[kind], False, *numbers)
    value = matrix(first, second, kind)
    assert torch.equal(most, value.gather(1, index.unsqueeze(1)).squeeze(1))
    left, _ = triton_kernels.selected(second, first, None, None, most, None, KIND_IDS[kind], True, *numbers)
    assert torch.equal(left == 0, (value == most.unsqueeze(1)).any(0))


@full_precision
@pytest.mark.parametrize("gamma", [2.0, 0.5])
def test_matching_cost(gamma, dtype, small_tiles):
    generator = torch.Generator().manual_seed(3)
    boxes = ordinary(105, 0, dtype).view(35, 3, 4).transpose(0, 1)
    logits = torch.randn(5, 35, 3, generator=generator).to(DEVICE, dtype).transpose(0, 2) * 10
    targets = ordinary(9, 1)
    image, labels = torch.tensor([0, 1, 2, 2, -1, 3, 1, 0, 2**31 - 1]).int(), torch.tensor([0, 4, 2, -1, 1, 1, 5, 3, 2])
    tensors = targets, labels.to(DEVICE), image.to(DEVICE)
    for normalizer in (None, logits.logsumexp(-1)):
        numbers = 2.0, 5.0, 1.5, 0.25, gamma, 1e-12, 1e-16
        cost = triton_kernels.matching_cost(boxes, logits, normalizer, *tensors, *numbers, 1)
        wide = [None if rows is None else rows.double() for rows in (boxes, logits, normalizer, targets)]
        truth = reference.matching_cost(*wide, *tensors[1:], *numbers, "cxcywh")
        assert cost.dtype == dtype and cost.isnan().any(1).tolist() == [False, False, False] + [True] * 4 + [
            False,
            True,
        ]
        assert torch.equal(cost.isnan(), truth.isnan())
        assert_close(cost.nan_to_num(), truth.nan_to_num(), TOLERANCE[dtype])


def test_losses_and_penalties_are_those_of_the_registry():
    assert [loss.__name__ for loss in operators.LOSSES] == list(LOSS_NAMES)
    assert [penalty.__name__ for penalty in operators.PENALTIES] == [name.replace("+", "_") for name in PENALTY_NAMES]


def test_kinds_are_those_of_the_registry():
    kinds = triton_kernels.pairwise_operators.KINDS
    assert len(kinds) == len(KIND_NAMES)
    assert [kind.complement for kind in kinds] == [name in LOSS_NAMES and name != "iou" for name in KIND_NAMES]
