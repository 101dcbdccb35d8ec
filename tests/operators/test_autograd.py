"""What autograd asks of a function: the right gradient to the right input, once and twice."""

import pytest
import torch

import icr_kernels as icr
from icr_kernels import reference
from icr_kernels.backends import BY_NAME
from inputs import (
    box,
    device_of,
    every_backend,
    every_compiled_backend,
    every_dtype,
    every_loss,
    every_reduction,
    half_precision,
    pairs,
    pairs_of_a_table,
)
from operator_calls import OperatorCalls
from oracle import BOXES, evaluate, expected
from tolerances import assert_close, same_bits


def leaves(backend: str, n: int = 33, dtype=torch.float32, wanted=BOXES) -> list[torch.Tensor]:
    boxes = pairs(n, dtype=dtype, device=device_of(backend))
    return [rows.requires_grad_(name in wanted) for name, rows in zip(BOXES, boxes, strict=True)]


@every_backend
@every_reduction
def test_second_backward_gives_the_same_gradient(reduction, backend):
    boxes = leaves(backend)
    loss = icr.icr_loss(*boxes, reduction=reduction, backend=backend).sum()
    first = torch.autograd.grad(loss, boxes, retain_graph=True)
    second = torch.autograd.grad(loss, boxes)
    assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))
    assert all(gradient.any() for gradient in first)


@every_backend
def test_second_backward_of_the_terms_gives_the_same_gradient(backend):
    boxes = leaves(backend)
    loss = sum(term.square().sum() for term in icr.icr_terms(*boxes, backend=backend))
    first = torch.autograd.grad(loss, boxes, retain_graph=True)
    second = torch.autograd.grad(loss, boxes)
    assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))


@every_backend
def test_gradients_accumulate_over_calls(backend):
    boxes = leaves(backend)
    icr.icr_loss(*boxes, backend=backend).backward()
    once = [rows.grad.clone() for rows in boxes]
    icr.icr_loss(*boxes, backend=backend).backward()
    for rows, gradient in zip(boxes, once, strict=True):
        assert same_bits(rows.grad, 2 * gradient)


@every_backend
@pytest.mark.parametrize(
    "wanted", [("pred",), ("target",), ("anchor_objects",), ("pred", "anchor_objects"), BOXES], ids="+".join
)
def test_only_what_requires_grad_gets_a_gradient(wanted, backend):
    for call in (icr.icr_loss, lambda *boxes, **options: sum(t.sum() for t in icr.icr_terms(*boxes, **options))):
        boxes = leaves(backend, wanted=wanted)
        call(*boxes, backend=backend).backward()
        for name, rows in zip(BOXES, boxes, strict=True):
            assert (rows.grad is not None) == (name in wanted), name
            if name in wanted:
                assert rows.grad.any(), name


@every_compiled_backend
@pytest.mark.parametrize(
    "wanted", [("pred",), ("target",), ("anchor_objects",), ("pred", "target"), BOXES], ids="+".join
)
@pytest.mark.parametrize("what", ["loss", "terms"])
def test_operators_return_only_the_gradients_that_are_wanted(what, wanted, backend):
    """Of the rest they return a tensor without elements: memory for a gradient is taken only where somebody asked."""
    boxes = leaves(backend, n=67, wanted=wanted)
    with OperatorCalls() as calls:
        if what == "loss":
            icr.icr_loss(*boxes, backend=backend).backward()
        else:
            sum(icr.icr_terms(*boxes, backend=backend)).sum().backward()
    results = [
        result for _, _, result in calls.found for result in (result if isinstance(result, tuple) else (result,))
    ]
    gradients = [result for result in results if result is not None and result.shape[-1:] == (4,)]
    assert gradients
    assert {tuple(result.shape) for result in gradients} == {(67, 4)}
    a_pass = max(sum(r.shape[-1:] == (4,) for r in result) for _, _, result in calls.found if isinstance(result, tuple))
    assert a_pass == len(wanted)


@every_backend
def test_no_graph_without_a_gradient_to_compute(backend):
    boxes = leaves(backend)
    loss = icr.icr_loss(*boxes, backend=backend)
    assert loss.requires_grad
    with torch.no_grad():
        silent = icr.icr_loss(*boxes, backend=backend)
        terms = icr.icr_terms(*boxes, backend=backend)
    assert not silent.requires_grad and not any(term.requires_grad for term in terms)
    assert same_bits(silent, loss.detach())
    plain = icr.icr_loss(*(rows.detach() for rows in boxes), backend=backend)
    assert not plain.requires_grad and same_bits(plain, silent)


@every_backend
def test_inference_mode(backend):
    boxes = pairs(33, device=device_of(backend))
    truth = icr.icr_loss(*boxes, backend=backend)
    with torch.inference_mode():
        value = icr.icr_loss(*pairs(33, device=device_of(backend)), backend=backend)
        terms = icr.icr_terms(*boxes, backend=backend)
        one_pass, gradient = icr.icr_loss_and_grad(*boxes, backend=backend)
        assert value.is_inference() and all(term.is_inference() for term in terms)
    assert same_bits(value, truth)
    assert one_pass.item() == pytest.approx(truth.item(), rel=1e-6)
    assert gradient.any()


@every_backend
def test_loss_and_grad_needs_no_graph_and_leaves_none(backend):
    """Under no_grad too, and with inputs that require grad: it computes the gradient of `icr_loss` by itself."""
    boxes = leaves(backend)
    value = icr.icr_loss(*boxes, backend=backend)
    (truth,) = torch.autograd.grad(value, boxes[0])
    for context in (torch.enable_grad(), torch.no_grad()):
        with context:
            one_pass, gradient = icr.icr_loss_and_grad(*boxes, backend=backend)
        assert not one_pass.requires_grad and not gradient.requires_grad
        assert all(rows.grad is None for rows in boxes)
        assert_close(one_pass, value.detach().double(), "value")
        assert_close(gradient, truth.double(), "gradient")


@every_backend
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_autocast_does_not_lower_the_arithmetic(low, backend):
    device = device_of(backend)
    boxes = leaves(backend)
    truth = evaluate(icr.icr_loss, *boxes, backend=backend)
    with torch.autocast(device, dtype=low):
        result = evaluate(icr.icr_loss, *boxes, backend=backend)
        terms = icr.icr_terms(*boxes, backend=backend)
    assert result.value.dtype == torch.float32 and all(term.dtype == torch.float32 for term in terms)
    assert same_bits(result.value, truth.value)
    assert all(same_bits(getattr(result, name), getattr(truth, name)) for name in BOXES)


@every_backend
@half_precision
def test_half_predictions_of_an_autocast_model_with_float32_labels(dtype, backend):
    """The usual mixed-precision step: the gradient reaches the half-precision head as half precision."""
    device = device_of(backend)
    pred, target, anchor_objects = pairs(33, device=device)
    scale = torch.ones(4, device=device, requires_grad=True)
    head = pred.to(dtype) * scale.to(dtype)
    icr.icr_loss(head, target, anchor_objects, backend=backend).backward()
    truth = expected(head, target, anchor_objects, wanted=("pred",)).pred
    # d/d scale = sum over rows of gradient * pred; `expected` asks for half the gradient.
    by_hand = (2 * truth.to(dtype).double() * pred.to(dtype).cpu().double()).sum(0)
    assert scale.grad.cpu().tolist() == pytest.approx(by_hand.tolist(), rel=0.05, abs=0.02)


def _eager_giou(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Of boxes cx, cy, w, h, as one writes it."""
    (a, b), (c, d) = ((rows[:, :2] - rows[:, 2:] / 2, rows[:, :2] + rows[:, 2:] / 2) for rows in (pred, target))
    overlap = (torch.minimum(b, d) - torch.maximum(a, c)).clamp(min=0).prod(1)
    union = (b - a).prod(1) + (d - c).prod(1) - overlap
    hull = (torch.maximum(b, d) - torch.minimum(a, c)).prod(1)
    return 1 - overlap / union + (hull - union) / hull


@every_backend
def test_grad_scaler_backs_off(backend):
    """A linear head in float16 and 20 small boxes: gradients of 50 times a scale of 2^22 overflow, and the scaler has
    to see it, as with an eager loss."""
    device = device_of(backend)
    generator = torch.Generator().manual_seed(0)
    # Small, so that largest finite gradients would leave finite sums.
    features = (0.02 + 0.001 * torch.rand(20, 8, generator=generator)).to(device, torch.float16)
    target = torch.tensor([0.5, 0.5, 0.02, 0.02]) + 0.002 * torch.rand(20, 4, generator=generator)
    target = target.to(device)

    def trained(criterion) -> tuple[float, torch.Tensor]:
        weight = torch.nn.Parameter(torch.tensor([[0.5, 0.5, 0.02, 0.02]], device=device).repeat(8, 1) / 0.164)
        optimizer = torch.optim.SGD([weight], lr=1e-6)
        scaler = torch.amp.GradScaler(device, init_scale=2.0**22, growth_interval=5)
        for _ in range(20):
            optimizer.zero_grad()
            loss = criterion(features @ weight.half(), target)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return scaler.get_scale(), weight.detach()

    options = {"loss": "giou", "box_format": "cxcywh", "eps": 1e-16, "reduction": "sum", "backend": backend}
    scale, weight = trained(lambda pred, target: icr.box_iou_loss(pred, target, **options))
    eager_scale, eager_weight = trained(lambda pred, target: _eager_giou(pred.float(), target).sum())
    assert scale == eager_scale < 2.0**16
    torch.testing.assert_close(weight, eager_weight, rtol=1e-4, atol=1e-7)


@every_compiled_backend
@half_precision
def test_half_precision_is_rounded_as_torch_casts(dtype, backend):
    """Any float32, and those about the largest and the smallest numbers; NaN and infinities among them."""
    generator = torch.Generator().manual_seed(0)
    anywhere = torch.randint(-(2**31), 2**31, (4000,), generator=generator)
    limits = torch.tensor([0x477FF000, 0x47800000, 0x7F7F8000, 0x7F800000, 0x33000000, 0x38800000])
    near = (limits.unsqueeze(1) + torch.arange(-50, 50)).flatten()
    numbers = torch.cat((anywhere, near, near - 2**31)).to(torch.int32).view(torch.float32)
    rows = numbers.view(-1, 4).to(device_of(backend))
    rounded = BY_NAME[backend].operators.scaled(rows, None, None, dtype, None, None)
    torch.testing.assert_close(rounded, rows.to(dtype), rtol=0, atol=0, equal_nan=True)


@every_backend
def test_gradient_beyond_half_precision_is_infinite(backend):
    """With the scale of a GradScaler; one of 1 fits."""
    device = device_of(backend)
    target = box(0.505, 0.497, 0.02, 0.02, dtype=torch.float32, device=device)

    def gradient(scale: float) -> list[float]:
        leaf = box(0.5, 0.5, 0.02, 0.02, dtype=torch.float32, device=device).requires_grad_()
        options = {"loss": "giou", "box_format": "cxcywh", "eps": 1e-16, "backend": backend}
        (icr.box_iou_loss(leaf.half(), target, **options) * scale).backward()
        return leaf.grad.flatten().tolist()

    assert gradient(1) == pytest.approx([-54.1, 55.5, -6.8, -4.2], abs=0.05)
    infinity = float("inf")
    assert gradient(65536) == [-infinity, infinity, -infinity, -infinity]


@every_backend
@pytest.mark.parametrize("argument", BOXES)
@pytest.mark.parametrize("what", ["loss", "terms"])
def test_change_in_place_between_forward_and_backward(what, argument, backend):
    """An error, where the gradient would be computed from the changed box; otherwise without effect. Never the gradient
    of another box."""

    def call(*boxes):
        return (
            icr.icr_loss(*boxes, backend=backend)
            if what == "loss"
            else icr.icr_terms(*boxes, backend=backend).loss.sum()
        )

    boxes = dict(zip(BOXES, leaves(backend, wanted=("pred",)), strict=True))
    (truth,) = torch.autograd.grad(call(*boxes.values()), boxes["pred"])
    changed = {**boxes, argument: boxes[argument].clone()}
    loss = call(*changed.values())
    with torch.no_grad():
        changed[argument].add_(3)
    try:
        (gradient,) = torch.autograd.grad(loss, boxes["pred"])
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        assert same_bits(gradient, truth)


@every_backend
def test_a_loss_can_be_added_to_in_place(backend):
    """Autograd allows it of no view, such as the first element of a kernel's workspace."""
    for n in (33, 5003):
        boxes = leaves(backend, n=n)
        loss = icr.icr_loss(*boxes, reduction="sum", backend=backend)
        before = loss.item()
        loss += 1
        assert loss.item() == pytest.approx(before + 1) and not loss._is_view()
        loss.backward()
        assert all(rows.grad.any() for rows in boxes)


@every_backend
def test_inputs_are_left_as_they_were(backend):
    device = device_of(backend)
    pred, target, table, index = pairs_of_a_table(33, 5, device=device)
    tensors = {
        "anchor_index": index,
        "weight": torch.rand(33, device=device),
        "mask": torch.arange(33, device=device) % 3 != 0,
        "normalizer": torch.tensor(5.0, device=device),
    }
    boxes = [rows.requires_grad_() for rows in (pred, target, table)]
    before = [rows.detach().clone() for rows in (*boxes, *tensors.values())]
    icr.icr_loss(*boxes, **tensors, backend=backend).backward()
    icr.icr_loss_and_grad(*boxes, **tensors, backend=backend)
    for rows, original in zip((*boxes, *tensors.values()), before, strict=True):
        assert same_bits(rows.detach(), original)


@every_backend
@every_dtype
def test_gradient_from_above_scales_the_gradient(dtype, backend):
    """By a factor, and pair by pair with a gradient that is 0 and negative too. All powers of two: exact, but for half
    precision near its smallest numbers."""
    boxes = leaves(backend, dtype=dtype)
    close = {"rtol": 0, "atol": 0 if dtype not in (torch.float16, torch.bfloat16) else 1e-7}
    unit = torch.autograd.grad(icr.icr_loss(*boxes, reduction="sum", backend=backend), boxes)
    scaled = torch.autograd.grad(-2 * icr.icr_loss(*boxes, reduction="sum", backend=backend), boxes)
    for one, other in zip(unit, scaled, strict=True):
        torch.testing.assert_close(other, -2 * one, **close)
    factors = torch.tensor([0.0, 1, -2, 4, 0.5], dtype=dtype, device=boxes[0].device)[torch.arange(33) % 5]
    rows = icr.icr_loss(*boxes, reduction="none", backend=backend)
    for one, other in zip(unit, torch.autograd.grad(rows, boxes, factors.to(rows.dtype)), strict=True):
        torch.testing.assert_close(other, one * factors.unsqueeze(1), **close)


@every_backend
def test_gradient_from_above_may_have_any_strides(backend):
    """sum() hands down a gradient of stride 0, a transposed loss one of reversed strides, indexing one of zeros."""
    boxes = [rows.view(3, 11, 4) for rows in pairs(33, dtype=torch.float64, device=device_of(backend))]
    weight = torch.linspace(-1, 2, 33, dtype=torch.float64, device=boxes[0].device).view(3, 11)
    for what, reduce in {
        "expanded": lambda loss: loss.sum() * 2,
        "transposed": lambda loss: (loss.t() * weight.t().contiguous()).sum(),
        "strided": lambda loss: (torch.stack((loss, loss), -1)[..., 0] * weight).sum(),
        "some pairs": lambda loss: loss[1, ::2].sum(),
    }.items():
        mine = [rows.detach().requires_grad_() for rows in boxes]
        reduce(icr.icr_loss(*mine, reduction="none", backend=backend)).backward()
        truth = [rows.detach().cpu().requires_grad_() for rows in boxes]
        reduce(reference.icr_loss(*truth, reduction="none").to(boxes[0].device)).backward()
        for name, one, other in zip(BOXES, mine, truth, strict=True):
            assert_close(one.grad, other.grad, f"{what}: gradient of {name}")


@every_backend
@pytest.mark.parametrize("term", icr.ICRTerms._fields)
def test_terms_used_one_at_a_time(term, backend):
    """The others have no gradient from above: theirs counts as 0."""
    boxes = leaves(backend, dtype=torch.float64)
    value = getattr(icr.icr_terms(*boxes, penalty="containment+pull", backend=backend), term).sum()
    gradients = torch.autograd.grad(value, boxes, materialize_grads=True)
    truth = [rows.detach().cpu().requires_grad_() for rows in boxes]
    value = getattr(reference.icr_terms(*truth, penalty="containment+pull"), term).sum()
    expected_gradients = torch.autograd.grad(value, truth, materialize_grads=True)
    for name, one, other in zip(BOXES, gradients, expected_gradients, strict=True):
        assert_close(one, other, f"gradient of {name}")


@every_backend
@every_loss
def test_one_tensor_as_several_inputs(loss, backend):
    """Gradients of all its roles add up; a box is its own perfect prediction and lies in itself."""
    rows = leaves(backend)[0]
    value = icr.icr_loss(rows, rows, rows, loss=loss, backend=backend)
    assert value.item() == 0
    (gradient,) = torch.autograd.grad(value, rows)
    # d/dP + d/dA of 1 - |P & A|/|P| at P = A: both ties split, -1/2 + 1/2.
    assert gradient.abs().max() < 1e-7


@every_backend
def test_gradient_reaches_through_a_view_and_a_network(backend):
    """pred is not a leaf: a decoded output, sliced from a larger one."""
    device = device_of(backend)
    pred, target, anchor_objects = pairs(12, dtype=torch.float64, device=device)
    raw = torch.cat((pred, torch.zeros(12, 3, dtype=torch.float64, device=device)), 1).requires_grad_()
    icr.icr_loss(raw[:, :4].exp().log(), target, anchor_objects, backend=backend).backward()
    truth = expected(pred, target, anchor_objects, wanted=("pred",)).pred
    assert_close(raw.grad[:, :4], 2 * truth, "gradient")
    assert not raw.grad[:, 4:].any()


@every_backend
def test_integer_tensors_beside_the_boxes_do_not_confuse_autograd(backend):
    device = device_of(backend)
    pred, target, table, index = pairs_of_a_table(33, 5, dtype=torch.float64, device=device)
    table.requires_grad_()
    loss = icr.icr_loss(
        pred, target, table, anchor_index=index, normalizer=torch.tensor(3, device=device), backend=backend
    )
    loss.backward()
    assert table.grad.any() and pred.grad is None


@every_compiled_backend
def test_scaling_reads_a_gradient_of_any_layout(backend):
    """A compiler may hand the saved gradient back in another layout; read as if it were packed, it would be garbage."""
    rows = torch.arange(1.0, 41.0, device=device_of(backend)).reshape(4, 10).T
    assert not rows.is_contiguous()
    factor, pending = torch.tensor(2.0, device=rows.device), torch.tensor(0.25, device=rows.device)
    scaled = BY_NAME[backend].operators.scaled
    assert torch.equal(scaled(rows, factor, None, torch.float32, None, None), 2 * rows)
    assert torch.equal(scaled(rows, factor, pending, torch.float32, None, None), rows / 2)
