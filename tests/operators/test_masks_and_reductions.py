"""Masks, weights, normalizers, reductions and tables of anchor objects, against sums written out by hand.

The loss of each pair is taken from reduction="none", which test_golden.py and test_parity.py hold; here it is what is
made of it.
"""

import itertools
import math

import pytest
import torch

import icr_kernels as icr
from inputs import (
    as_table,
    box,
    device_of,
    every_backend,
    every_dtype,
    every_loss,
    every_penalty,
    every_reduction,
    full_precision,
    pairs,
    pairs_of_a_table,
    some_losses,
)
from oracle import BOXES, evaluate
from tolerances import assert_close, same_bits

NAN, INF = float("nan"), float("inf")


def rows_and_losses(n: int, backend: str, **options):
    boxes = pairs(n, dtype=torch.float64, device=device_of(backend))
    result = evaluate(icr.icr_loss, *boxes, reduction="none", backend=backend, **options)
    return boxes, result.value.tolist()


def loss_of(boxes, backend: str, **options) -> float:
    return icr.icr_loss(*boxes, backend=backend, **options).item()


def per_pair(values, device: str, dtype=torch.float64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


# Sums.


@every_backend
def test_sum_and_mean(backend):
    boxes, losses = rows_and_losses(7, backend)
    assert loss_of(boxes, backend, reduction="sum") == pytest.approx(math.fsum(losses), rel=1e-13)
    assert loss_of(boxes, backend, reduction="mean") == pytest.approx(math.fsum(losses) / 7, rel=1e-13)


@every_backend
def test_weight_multiplies_each_pair_and_leaves_the_number_of_pairs(backend):
    boxes, losses = rows_and_losses(5, backend)
    weights = [0.5, 0.0, -2.0, 1.0, 10.0]
    weight = per_pair(weights, device_of(backend))
    products = [w * x for w, x in zip(weights, losses, strict=True)]
    assert icr.icr_loss(*boxes, weight=weight, reduction="none", backend=backend).tolist() == pytest.approx(
        products, rel=1e-13
    )
    assert loss_of(boxes, backend, weight=weight, reduction="sum") == pytest.approx(math.fsum(products), rel=1e-13)
    assert loss_of(boxes, backend, weight=weight) == pytest.approx(math.fsum(products) / 5, rel=1e-13)


@every_backend
def test_mean_is_over_the_unmasked_pairs(backend):
    boxes, losses = rows_and_losses(6, backend)
    mask = torch.tensor([True, False, True, True, False, False], device=device_of(backend))
    kept = [losses[0], losses[2], losses[3]]
    assert loss_of(boxes, backend, mask=mask) == pytest.approx(math.fsum(kept) / 3, rel=1e-13)
    assert loss_of(boxes, backend, mask=mask, reduction="sum") == pytest.approx(math.fsum(kept), rel=1e-13)
    rows = icr.icr_loss(*boxes, mask=mask, reduction="none", backend=backend).tolist()
    assert rows == [losses[0], 0, losses[2], losses[3], 0, 0]


NORMALIZERS = [
    pytest.param(lambda device: 4.0, 4, id="float"),
    pytest.param(lambda device: 4, 4, id="int"),
    pytest.param(lambda device: torch.tensor(4.0, device=device), 4, id="float32"),
    pytest.param(lambda device: torch.tensor(4.0, dtype=torch.float64, device=device), 4, id="float64"),
    pytest.param(lambda device: torch.tensor(4.0, dtype=torch.bfloat16, device=device), 4, id="bfloat16"),
    pytest.param(lambda device: torch.tensor(4.0, dtype=torch.float16, device=device), 4, id="float16"),
    pytest.param(lambda device: torch.tensor(4, device=device), 4, id="int64"),
    pytest.param(lambda device: torch.tensor(4, dtype=torch.int32, device=device), 4, id="int32"),
    pytest.param(lambda device: torch.tensor([3.0, 4.0], device=device)[1], 4, id="element_of_a_tensor"),
    pytest.param(lambda device: 0.125, 0.125, id="below_1"),
    pytest.param(lambda device: torch.tensor(0.125, device=device), 0.125, id="tensor_below_1"),
    pytest.param(lambda device: 0.0, 1e-2, id="zero"),
    pytest.param(lambda device: torch.tensor(0, device=device), 1e-2, id="integer_zero"),
    pytest.param(lambda device: torch.tensor(1e-3, device=device), 1e-2, id="tensor_below_eps"),
    pytest.param(lambda device: -3.0, 1e-2, id="negative"),
    pytest.param(lambda device: torch.tensor(-3, device=device), 1e-2, id="negative_tensor"),
]


@every_backend
@pytest.mark.parametrize(("normalizer", "divisor"), NORMALIZERS)
def test_mean_divides_by_the_normalizer(normalizer, divisor, backend):
    """Whatever it is, and by eps (here 0.01) where it is less; the gradient is divided by the same."""
    boxes, losses = rows_and_losses(6, backend, eps=1e-2)
    device = device_of(backend)
    mask = torch.tensor([True, True, False, True, True, True], device=device)
    expected = math.fsum(losses[:2] + losses[3:]) / divisor
    options = {"mask": mask, "eps": 1e-2, "backend": backend}
    result = evaluate(icr.icr_loss, *boxes, normalizer=normalizer(device), **options)
    total = evaluate(icr.icr_loss, *boxes, reduction="sum", **options)
    assert result.value.item() == pytest.approx(expected, rel=1e-12)
    value, gradient = icr.icr_loss_and_grad(*boxes, normalizer=normalizer(device), **options)
    assert value.item() == pytest.approx(expected, rel=1e-12)
    for name in BOXES:
        torch.testing.assert_close(getattr(result, name), getattr(total, name) / divisor, rtol=1e-12, atol=0)
    # `evaluate` asks for half the gradient.
    torch.testing.assert_close(gradient, 2 * result.pred, rtol=1e-12, atol=0)


@every_backend
@pytest.mark.parametrize("normalizer", [None, 5.0, torch.tensor(5.0)], ids=["pairs", "number", "tensor"])
@every_dtype
def test_mean_of_no_unmasked_pair_is_0_with_a_gradient_of_zeros(dtype, normalizer, backend):
    device = device_of(backend)
    boxes = [torch.full((9, 4), NAN, dtype=dtype, device=device) for _ in range(3)]
    mask = torch.zeros(9, dtype=torch.bool, device=device)
    normalizer = normalizer.to(device) if isinstance(normalizer, torch.Tensor) else normalizer
    result = evaluate(icr.icr_loss, *boxes, mask=mask, normalizer=normalizer, backend=backend)
    assert result.value.item() == 0
    for name in BOXES:
        assert getattr(result, name).tolist() == [[0, 0, 0, 0]] * 9, name


@every_backend
@every_reduction
@full_precision
@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4)], ids=str)
def test_no_pair_at_all(shape, dtype, reduction, backend):
    device = device_of(backend)
    boxes = [torch.empty(shape, dtype=dtype, device=device) for _ in range(3)]
    result = evaluate(icr.icr_loss, *boxes, reduction=reduction, backend=backend)
    assert result.value.shape == (shape[:-1] if reduction == "none" else ())
    assert result.value.sum().item() == 0
    for name in BOXES:
        assert getattr(result, name).shape == shape
    value, gradient = icr.icr_loss_and_grad(*boxes, reduction=reduction, backend=backend)
    assert value.sum().item() == 0 and gradient.shape == shape
    assert all(term.shape == shape[:-1] for term in icr.icr_terms(*boxes, backend=backend))
    leaf = boxes[0].requires_grad_()
    icr.icr_loss(leaf, *boxes[1:], reduction=reduction, backend=backend).sum().backward()
    assert leaf.grad is not None and leaf.grad.shape == shape


@every_backend
def test_no_pair_but_a_table_of_anchor_objects(backend):
    device = device_of(backend)
    none = torch.empty(0, 4, dtype=torch.float64, device=device)
    table, index = (
        torch.ones(3, 4, dtype=torch.float64, device=device),
        torch.empty(0, dtype=torch.int64, device=device),
    )
    result = evaluate(icr.icr_loss, none, none.clone(), table, anchor_index=index, backend=backend)
    assert result.value.item() == 0
    assert result.anchor_objects.tolist() == [[0, 0, 0, 0]] * 3


# Masked rows hold anything.

GARBAGE = [NAN, INF, -INF, 3e38, -1e30]


def mask_of(n, device):
    """Leaves out single pairs, and whole groups of neighbours, of which a kernel may read nothing."""
    place = torch.arange(n, device=device)
    return (place % 3 != 1) & (place % 32 < 16)


@every_backend
@every_dtype
@some_losses
def test_masked_rows_may_hold_anything(loss, dtype, backend):
    """NaN and infinities in every box, the weight, and an index far outside: the other rows do not notice, bit by bit,
    and the masked rows have a gradient of exactly 0."""
    device, n = device_of(backend), 61
    pred, target, table, index = pairs_of_a_table(n, 11, dtype=dtype, device=device)
    mask = mask_of(n, device)
    weight = torch.linspace(0.5, 2, n, device=device)
    garbage = torch.tensor([min(max(x, -6e4), 6e4) if math.isfinite(x) else x for x in GARBAGE], device=device)
    garbage = garbage[torch.arange(n, device=device) % len(GARBAGE)]

    def spoiled(rows):
        return torch.where(
            mask.view(-1, *[1] * (rows.dim() - 1)), rows, garbage.to(rows.dtype).view(-1, *[1] * (rows.dim() - 1))
        )

    far = torch.where(mask, index, torch.tensor(2**62, device=device))
    for reduction in ("none", "sum", "mean"):
        options = {
            "loss": loss,
            "penalty": "containment+pull",
            "mask": mask,
            "reduction": reduction,
            "backend": backend,
        }
        clean = evaluate(icr.icr_loss, pred, target, table, anchor_index=index, weight=weight, **options)
        dirty = evaluate(
            icr.icr_loss, spoiled(pred), spoiled(target), table, anchor_index=far, weight=spoiled(weight), **options
        )
        assert clean.value.isfinite().all()
        assert same_bits(clean.value, dirty.value), reduction
        for name in BOXES:
            assert same_bits(getattr(clean, name), getattr(dirty, name)), f"{reduction}: gradient of {name}"
        assert (dirty.pred[~mask] == 0).all() and (dirty.target[~mask] == 0).all()


@every_backend
def test_masked_rows_with_anchor_objects_of_their_own(backend):
    device, n = device_of(backend), 61
    pred, target, anchor_objects = pairs(n, device=device)
    mask = mask_of(n, device)
    options = {"penalty": "containment+pull", "reduction": "none", "backend": backend}
    plain = evaluate(icr.icr_loss, pred, target, anchor_objects, **options)
    clean = evaluate(icr.icr_loss, pred, target, anchor_objects, mask=mask, **options)
    dirty = evaluate(
        icr.icr_loss, pred, target, torch.where(mask.unsqueeze(1), anchor_objects, NAN), mask=mask, **options
    )
    assert same_bits(clean.value, dirty.value) and same_bits(clean.anchor_objects, dirty.anchor_objects)
    assert (dirty.anchor_objects[~mask] == 0).all() and (clean.anchor_objects[mask] != 0).any()
    for name in ("value", *BOXES):
        assert same_bits(getattr(plain, name)[mask], getattr(clean, name)[mask]), name


@every_backend
def test_masked_pairs_do_not_reach_the_table_of_anchor_objects(backend):
    """A masked pair and an unmasked one share a row of the table: the gradient is that of the unmasked one alone."""
    device = device_of(backend)
    table = box(0, 0, 10, 5, device=device)
    plate, index = box(-1, 1, 1, 2, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    both = torch.cat((plate, plate - 0.5))
    mask = torch.tensor([True, False], device=device)
    options = {"reduction": "sum", "backend": backend}
    one = evaluate(icr.icr_loss, plate, plate.clone(), table, anchor_index=index[:1], **options)
    two = evaluate(icr.icr_loss, both, both.clone(), table, anchor_index=index, mask=mask, **options)
    assert one.anchor_objects.any() and same_bits(one.anchor_objects, two.anchor_objects)


@every_backend
def test_terms_of_masked_pairs_are_0(backend):
    device, n = device_of(backend), 61
    boxes = pairs(n, device=device)
    mask = mask_of(n, device)
    dirty = [torch.where(mask.unsqueeze(1), rows, NAN).requires_grad_() for rows in boxes]
    plain, terms = icr.icr_terms(*boxes, backend=backend), icr.icr_terms(*dirty, mask=mask, backend=backend)
    for name, one, other in zip(terms._fields, plain, terms, strict=True):
        assert same_bits(one[mask], other[mask].detach()), name
        assert (other[~mask] == 0).all(), name
    for name, gradient in zip(BOXES, torch.autograd.grad([term.sum() for term in terms], dirty), strict=True):
        assert (gradient[~mask] == 0).all() and gradient[mask].isfinite().all() and gradient[mask].any(), name


@every_backend
@every_dtype
def test_masked_pairs_take_no_gradient_from_above(dtype, backend):
    """Nor an infinity or NaN that a later step of the graph makes of their 0."""
    boxes = [rows.requires_grad_() for rows in pairs(61, dtype=dtype, device=device_of(backend))]
    mask = mask_of(61, boxes[0].device)
    for value in (NAN, INF):
        loss = icr.icr_loss(*boxes, mask=mask, reduction="none", backend=backend)
        terms = icr.icr_terms(*boxes, mask=mask, backend=backend)
        above = torch.where(mask, 1.0, value).to(loss.dtype)
        for outputs in ((loss,), terms):
            gradients = torch.autograd.grad(outputs, boxes, [above] * len(outputs))
            for name, gradient in zip(BOXES, gradients, strict=True):
                assert (gradient[~mask] == 0).all() and gradient[mask].isfinite().all(), name


# NaN in a pair that counts.


@every_backend
@every_loss
def test_nan_stays_nan(loss, backend):
    """Any coordinate of any box: it shows in that pair, and touches no other."""
    device, n = device_of(backend), 37
    options = {"loss": loss, "penalty": "containment+pull", "backend": backend}
    clean = pairs(n, device=device)
    truth = evaluate(icr.icr_loss, *clean, reduction="none", **options)
    boxes = [rows.clone() for rows in clean]
    spoiled = list(range(1, n, 3))
    for row, (number, column) in zip(spoiled, itertools.product(range(3), range(4)), strict=True):
        boxes[number][row, column] = NAN
    result = evaluate(icr.icr_loss, *boxes, reduction="none", **options)
    others = [row for row in range(n) if row not in spoiled]
    assert result.value[spoiled].isnan().all()
    assert same_bits(result.value[others], truth.value[others])
    for name in BOXES:
        assert same_bits(getattr(result, name)[others], getattr(truth, name)[others]), name


@every_backend
@pytest.mark.parametrize("argument", BOXES)
def test_sum_with_a_nan_is_nan(argument, backend):
    boxes = dict(zip(BOXES, pairs(37, device=device_of(backend)), strict=True))
    boxes[argument][20, 2] = NAN
    for reduction in ("sum", "mean"):
        assert math.isnan(loss_of(boxes.values(), backend, reduction=reduction, penalty="containment+pull"))


@every_backend
@every_penalty
def test_nan_anchor_object_gives_nan(penalty, backend):
    plates, cars = (box(*corners, device=device_of(backend)).repeat(4, 1) for corners in ((2, 1, 5, 3), (0, 0, 3, 2)))
    cars.fill_diagonal_(NAN)
    for relative in (False, True):
        options = {"penalty": penalty, "relative": relative, "reduction": "none", "backend": backend}
        assert icr.icr_loss(plates, plates.clone(), cars, **options).isnan().all()


@every_backend
@every_loss
def test_nan_in_every_format(loss, backend):
    pred, target = (box(*sides, device=device_of(backend)).repeat(4, 1) for sides in ((5, 5, 3, 2), (5, 4, 2, 4)))
    pred.fill_diagonal_(NAN)
    for box_format in ("cxcywh", "xywh"):
        options = {"box_format": box_format, "reduction": "none", "backend": backend}
        assert icr.box_iou_loss(pred, target, loss=loss, **options).isnan().all()


# Tables of anchor objects.


@every_backend
@every_penalty
def test_pair_without_an_anchor_object_has_no_penalty(penalty, backend):
    """-1, and any number outside the table: containment 1, penalty 0, the loss and gradients of the pair alone."""
    device = device_of(backend)
    pred, target, table = pairs(40, dtype=torch.float64, device=device)
    table = table[:7]
    for nowhere in (-1, -2, 7, 8, 10**6, -(10**6)):
        index = torch.full((40,), nowhere, dtype=torch.int64, device=device)
        terms = icr.icr_terms(pred, target, table, anchor_index=index, penalty=penalty, backend=backend)
        assert (terms.containment == 1).all() and (terms.penalty == 0).all()
        options = {"penalty": penalty, "reduction": "none", "backend": backend}
        result = evaluate(icr.icr_loss, pred, target, table, anchor_index=index, **options)
        alone = evaluate(icr.icr_loss, pred, target, None, **options)
        torch.testing.assert_close(result.value, alone.value, rtol=1e-13, atol=0)
        torch.testing.assert_close(result.pred, alone.pred, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(result.target, alone.target, rtol=1e-12, atol=1e-15)
        assert not result.anchor_objects.any()


@every_backend
@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32], ids=["int64", "int32"])
@pytest.mark.parametrize("penalty", ["log", "containment+pull"])
def test_index_chooses_a_row_and_its_gradient_adds_up_there(penalty, index_dtype, backend):
    device = device_of(backend)
    pred, target, table, index = pairs_of_a_table(203, 13, dtype=torch.float64, device=device)
    has_anchor = index >= 0
    gathered = table[index.clamp(min=0)]
    options = {"penalty": penalty, "reduction": "none", "backend": backend}
    result = evaluate(icr.icr_loss, pred, target, table, anchor_index=index.to(index_dtype), **options)
    rows = evaluate(icr.icr_loss, pred, target, gathered, **options)
    alone = evaluate(icr.icr_loss, pred, target, None, **options)
    torch.testing.assert_close(result.value, torch.where(has_anchor, rows.value, alone.value), rtol=1e-13, atol=0)
    expected = torch.where(has_anchor.unsqueeze(1), rows.pred, alone.pred)
    torch.testing.assert_close(result.pred, expected, rtol=1e-12, atol=1e-14)
    by_row = [[0.0] * 4 for _ in table]
    for row, gradient in zip(index.tolist(), rows.anchor_objects.tolist(), strict=True):
        if row >= 0:
            by_row[row] = [a + b for a, b in zip(by_row[row], gradient, strict=True)]
    torch.testing.assert_close(
        result.anchor_objects.cpu(), torch.tensor(by_row, dtype=torch.float64), rtol=1e-11, atol=1e-13
    )


@every_backend
def test_rows_of_the_table_that_nobody_points_at_may_hold_anything(backend):
    device = device_of(backend)
    pred, target, table, index = pairs_of_a_table(50, 9, dtype=torch.float64, device=device)
    # Row 0 too: where a pair without an anchor object must not look.
    index = torch.where((index == 0) | (index == 8), -1, index)
    spoiled = table.clone()
    spoiled[0], spoiled[8] = NAN, INF
    options = {"anchor_index": index, "penalty": "containment+pull", "backend": backend}
    for reduction in ("none", "mean"):
        clean = evaluate(icr.icr_loss, pred, target, table, reduction=reduction, **options)
        dirty = evaluate(icr.icr_loss, pred, target, spoiled, reduction=reduction, **options)
        assert same_bits(clean.value, dirty.value)
        for name in BOXES:
            assert same_bits(getattr(clean, name), getattr(dirty, name)), name
        assert not dirty.anchor_objects[0].any() and not dirty.anchor_objects[8].any()


@every_backend
def test_empty_table(backend):
    device = device_of(backend)
    pred, target, _ = pairs(10, dtype=torch.float64, device=device)
    table = torch.empty(0, 4, dtype=torch.float64, device=device)
    for index in (torch.full((10,), -1, device=device), torch.arange(10, device=device)):
        result = evaluate(icr.icr_loss, pred, target, table, anchor_index=index, reduction="none", backend=backend)
        alone = evaluate(icr.icr_loss, pred, target, None, reduction="none", backend=backend)
        torch.testing.assert_close(result.value, alone.value, rtol=1e-13, atol=0)
        torch.testing.assert_close(result.pred, alone.pred, rtol=1e-12, atol=1e-15)
        assert result.anchor_objects.shape == (0, 4)


# Tables of targets.


@every_backend
@every_dtype
@every_reduction
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
def test_target_of_a_table_is_one_that_was_gathered(masked, reduction, dtype, backend):
    """To the last bit, and a pair without one is a masked pair: it is not counted, and may hold anything, as may a row
    that no pair points at. The gradient of the table is that of the gathered targets, added up."""
    device, n = device_of(backend), 203
    pred, target, cars, anchor_index = pairs_of_a_table(n, 13, dtype=dtype, device=device)
    table, index = as_table(target)
    keep = (index >= 0) & (index < len(table)) & (mask_of(n, device) if masked else True)
    gathered = table[index.clamp(0, len(table) - 1)]
    table[~torch.isin(torch.arange(len(table), device=device), index)] = NAN
    dirty = torch.where(keep.unsqueeze(1), pred, NAN)
    weight = torch.linspace(0.5, 2, n, device=device)
    spoiled = torch.where(keep, weight, NAN)
    options = {"anchor_index": anchor_index, "penalty": "containment+pull", "reduction": reduction, "backend": backend}
    strided = torch.stack((index, index - 7), 1).int()[:, 0]
    mask = {"mask": mask_of(n, device)} if masked else {}
    found = evaluate(icr.icr_loss, dirty, table, cars, target_index=strided, weight=spoiled, **mask, **options)
    truth = evaluate(icr.icr_loss, pred, gathered, cars, mask=keep, weight=weight, **options)
    assert keep.any() and found.value.isfinite().all() and (found.pred[~keep] == 0).all()
    for name in ("value", "pred", "anchor_objects"):
        assert same_bits(getattr(found, name), getattr(truth, name)), name
    wide = evaluate(icr.icr_loss, pred.double(), gathered.double(), cars.double(), mask=keep, weight=weight, **options)
    sums = torch.zeros(table.shape, dtype=torch.float64, device=device).index_add(0, index[keep], wide.target[keep])
    assert_close(found.target, sums, "gradient of the table")
    value, gradient = icr.icr_loss_and_grad(dirty, table, cars, target_index=index, weight=spoiled, **mask, **options)
    one_pass = icr.icr_loss_and_grad(pred, gathered, cars, mask=keep, weight=weight, **options)
    assert same_bits(value, one_pass[0]) and same_bits(gradient, one_pass[1])


@every_backend
def test_terms_of_pairs_without_a_target_are_0(backend):
    device, n = device_of(backend), 131
    pred, target, cars = pairs(n, device=device)
    table, index = as_table(target)
    keep = (index >= 0) & (index < len(table))
    dirty = [torch.where(keep.unsqueeze(1), rows, NAN).requires_grad_() for rows in (pred, cars)]
    terms = icr.icr_terms(dirty[0], table.requires_grad_(), dirty[1], target_index=index, backend=backend)
    truth = icr.icr_terms(pred, table[index.clamp(0, len(table) - 1)], cars, mask=keep, backend=backend)
    for name, one, other in zip(terms._fields, terms, truth, strict=True):
        assert same_bits(one.detach(), other.detach()), name
    gradients = torch.autograd.grad([term.sum() for term in terms], (*dirty, table))
    assert all(rows.isfinite().all() and rows.any() for rows in gradients)
    assert not gradients[0][~keep].any() and not gradients[1][~keep].any()


@every_backend
@every_reduction
def test_no_target_at_all(reduction, backend):
    """A batch without truth: an empty table, or one that nobody points at."""
    device = device_of(backend)
    pred, target, cars = pairs(40, device=device)
    nobody = torch.full((40,), -1, device=device)
    for rows, index in ((0, nobody), (0, torch.arange(40, device=device)), (7, nobody), (1, nobody + 2)):
        options = {"target_index": index, "reduction": reduction, "backend": backend}
        result = evaluate(icr.icr_loss, pred * NAN, target[:rows], cars * NAN, **options)
        assert (result.value == 0).all() and result.target.shape == (rows, 4)
        assert not any(getattr(result, name).any() for name in BOXES)
    none = evaluate(icr.icr_loss, pred[:0], target, None, target_index=nobody[:0], backend=backend)
    assert none.value == 0 and none.pred.shape == (0, 4) and not none.target.any()


# The modules hold the options of the functions.


@every_backend
def test_modules_pass_their_options_on(backend):
    device = device_of(backend)
    pred, target, table, index = pairs_of_a_table(50, 9, device=device)
    weight, mask = torch.linspace(0.5, 2, 50, device=device), torch.arange(50, device=device) % 3 != 0
    tensors = {"weight": weight, "mask": mask, "normalizer": 7.0}
    options = {"loss": "siou", "reduction": "mean", "eps": 1e-3, "box_format": "cxcywh", "backend": backend}
    module = icr.BoxIoULoss(**options)
    assert same_bits(module(pred, target, **tensors), icr.box_iou_loss(pred, target, **tensors, **options))
    tensors["target_index"] = torch.arange(50, device=device) % 53 - 2
    assert same_bits(module(pred, target, **tensors), icr.box_iou_loss(pred, target, **tensors, **options))
    options |= {"penalty": "log", "penalty_weight": 0.3, "relative": True}
    tensors["anchor_index"] = index
    module = icr.ICRLoss(**options)
    assert same_bits(module(pred, target, table, **tensors), icr.icr_loss(pred, target, table, **tensors, **options))
    for name, value in options.items():
        assert f"{name}={value!r}" in repr(module)
    assert not list(module.parameters()) and not module.state_dict()
