"""A gradient that was computed with the loss is scaled in place where nobody will ask for it again. No one may see it:
what is handed out never changes, and every pass has the gradient that it would have alone."""

import threading

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import icr_kernels as icr
from icr_kernels import shortcut
from inputs import (
    device_of,
    every_backend,
    every_compiled_backend,
    every_quick_backend,
    every_reduction,
    pairs,
    pairs_of_a_table,
)
from oracle import BOXES
from tolerances import same_bits


@pytest.fixture(autouse=True, params=["short", "long"])
def way(request, monkeypatch):
    """Both ways of a call: `test_shortcut.py` says which is which."""
    if request.param == "long":
        monkeypatch.setattr(shortcut, "icr_loss", lambda *_: None)


def leaves(backend: str, n: int = 33, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [rows.requires_grad_() for rows in pairs(n, dtype=dtype, device=device_of(backend))]


def alone(backend: str, factor: float = 1, **options) -> tuple[Tensor, ...]:
    """The gradients of a pass of its own, by a graph that is kept."""
    boxes = leaves(backend)
    loss = factor * icr.icr_loss(*boxes, backend=backend, **options).sum()
    return torch.autograd.grad(loss, boxes, retain_graph=True)


def assert_same(found, wanted) -> None:
    for name, one, other in zip(BOXES, found, wanted, strict=True):
        assert same_bits(one, other), name


@every_backend
@every_reduction
@pytest.mark.parametrize("factor", [1, -2.5])
def test_passes_over_a_graph_that_is_kept(factor, reduction, backend):
    """Two that keep it and one that does not, and what the earlier ones gave after the later."""
    boxes = leaves(backend)
    loss = factor * icr.icr_loss(*boxes, reduction=reduction, backend=backend).sum()
    found = [torch.autograd.grad(loss, boxes, retain_graph=keep) for keep in (True, True, False)]
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, boxes)
    for gradients in found:
        assert_same(gradients, alone(backend, factor, reduction=reduction))


@every_backend
@pytest.mark.parametrize("factor", [1, 3])
def test_what_hooks_have_kept_never_changes(factor, backend):
    boxes, kept = leaves(backend), []

    def keep(gradient: Tensor) -> None:
        kept.append((gradient, gradient.clone()))

    for rows in boxes:
        rows.register_hook(keep)
    loss = icr.icr_loss(*boxes, backend=backend)
    loss.register_hook(keep)
    loss.grad_fn.register_hook(lambda gradients, _: [keep(each) for each in gradients if each is not None] and None)
    (factor * loss).backward(retain_graph=True)
    (factor * loss).backward()
    icr.icr_loss(*boxes, backend=backend).backward()
    assert len(kept) >= 3 * 3
    assert all(same_bits(gradient, copy) for gradient, copy in kept)


@every_backend
def test_hooks_after_accumulation(backend):
    """As optimizers take the step of a parameter in them: each has a gradient of its own."""
    boxes, kept = leaves(backend), []

    def take(rows: Tensor) -> None:
        kept.append((rows.grad, rows.grad.clone()))
        rows.grad = None

    for rows in boxes:
        rows.register_post_accumulate_grad_hook(take)
    for _ in range(2):
        icr.icr_loss(*boxes, backend=backend).backward()
    assert len(kept) == 6
    assert all(same_bits(gradient, copy) for gradient, copy in kept)
    assert len({gradient.data_ptr() for gradient, _ in kept}) == 6


@every_backend
def test_hooks_of_saved_tensors_keep_what_they_were_given(backend):
    """One that hands out what it keeps, as offloading to another memory may."""
    boxes, kept = leaves(backend), []

    def pack(tensor: Tensor) -> Tensor:
        kept.append((tensor, tensor.clone()))
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = 3 * icr.icr_loss(*boxes, backend=backend)
    loss.backward()
    assert_same([rows.grad for rows in boxes], alone(backend, 3))
    assert kept and all(same_bits(tensor, copy) for tensor, copy in kept)


@every_backend
def test_one_loss_twice_in_a_graph(backend):
    for combine in (lambda loss: loss + loss, lambda loss: 2 * loss + loss.detach()):
        boxes = leaves(backend)
        combine(icr.icr_loss(*boxes, backend=backend)).backward()
        assert_same([rows.grad for rows in boxes], alone(backend, 2))


@every_backend
def test_accumulation_into_a_gradient_that_is_there(backend):
    boxes = leaves(backend)
    before = [torch.full_like(rows, 0.25) for rows in boxes]
    for rows, gradient in zip(boxes, before, strict=True):
        rows.grad = gradient
    icr.icr_loss(*boxes, backend=backend).backward()
    assert all(rows.grad is gradient for rows, gradient in zip(boxes, before, strict=True))
    assert_same([rows.grad for rows in boxes], [0.25 + gradient for gradient in alone(backend)])


@every_backend
@pytest.mark.parametrize("together", [False, True])
def test_two_losses_of_the_same_boxes(together, backend):
    boxes = leaves(backend)
    losses = [icr.icr_loss(*boxes, loss=name, backend=backend) for name in ("ciou", "giou")]
    if together:
        sum(losses).backward()
    else:
        for loss in losses:
            loss.backward()
    wanted = [a + b for a, b in zip(alone(backend, loss="ciou"), alone(backend, loss="giou"), strict=True)]
    assert_same([rows.grad for rows in boxes], wanted)


@every_backend
def test_a_prediction_that_is_no_leaf_keeps_its_gradient(backend):
    first, target, anchor_objects = leaves(backend)
    pred = first * 1
    pred.retain_grad()
    (2 * icr.icr_loss(pred, target, anchor_objects, backend=backend)).backward()
    kept = pred.grad.clone()
    first.grad.zero_()
    assert same_bits(pred.grad, kept) and same_bits(kept, alone(backend, 2)[0])


@every_compiled_backend
@pytest.mark.parametrize("factor", [0.0, 1.0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("keep", [False, True])
def test_any_factor(keep, factor, backend):
    """What the mask leaves out stays 0 with infinities and NaN too, as a GradScaler's overflow brings them."""
    boxes = leaves(backend)
    mask = torch.arange(33, device=boxes[0].device) % 3 != 0
    loss = icr.icr_loss(*boxes, mask=mask, reduction="sum", backend=backend)
    unit = torch.autograd.grad(loss, boxes, retain_graph=True)
    upstream = torch.tensor(factor, device=boxes[0].device)
    for gradient, rows in zip(torch.autograd.grad(loss, boxes, upstream, retain_graph=keep), unit, strict=True):
        wanted = torch.where(rows == 0, rows, rows * upstream)
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=0, equal_nan=True)
        assert not gradient[~mask].any()


@every_backend
def test_gradient_of_one_input_at_a_time(backend):
    boxes = leaves(backend)
    for i, wanted in enumerate(alone(backend)):
        for with_graph in (False, True):
            loss = icr.icr_loss(*boxes, backend=backend)
            (gradient,) = torch.autograd.grad(loss, boxes[i], create_graph=with_graph)
            assert same_bits(gradient, wanted)


@every_quick_backend  # Triton's interpreter knows one thread
@pytest.mark.parametrize("shared", [False, True])
def test_backward_passes_of_several_threads(shared, backend):
    """Each over a graph of its own, or all over one that is kept."""
    n, found, wanted = 8, [], alone(backend)
    boxes = leaves(backend)
    losses = [icr.icr_loss(*boxes, backend=backend) for _ in range(1 if shared else n)] * (n if shared else 1)
    barrier = threading.Barrier(n)

    def differentiate(loss: Tensor) -> None:
        barrier.wait()
        found.append(torch.autograd.grad(loss, boxes, retain_graph=shared))

    threads = [threading.Thread(target=differentiate, args=(loss,)) for loss in losses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == n
    for gradients in found:
        assert_same(gradients, wanted)


@every_backend
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant, backend):
    boxes = leaves(backend)
    loss = checkpoint(lambda *boxes: icr.icr_loss(*boxes, backend=backend), *boxes, use_reentrant=reentrant)
    (2 * loss).backward()
    assert_same([rows.grad for rows in boxes], alone(backend, 2))


@every_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_table_and_half_precision(dtype, backend):
    """Neither gradient has the memory of the one that was kept."""
    pred, target, table, index = pairs_of_a_table(33, 5, dtype=dtype, device=device_of(backend))
    boxes = [rows.requires_grad_() for rows in (pred, target, table)]
    for target_index in (None, index):
        indices = {"target_index": target_index, "anchor_index": index}
        loss = 2 * icr.icr_loss(*boxes, **indices, backend=backend)
        first = torch.autograd.grad(loss, boxes, retain_graph=True)
        assert_same(torch.autograd.grad(loss, boxes), first)


@every_compiled_backend
def test_scaling_by_one_takes_no_memory(backend):
    """Of the size of a gradient, which is nowhere copied on its way into ``.grad``; but where the graph is kept."""
    boxes = leaves(backend, 3000)
    losses = [icr.icr_loss(*boxes, backend=backend) for _ in range(2)]
    for loss, keep in zip(losses, (True, False), strict=True):
        for rows in boxes:
            rows.grad = None
        with torch.profiler.profile(profile_memory=True) as profile:
            loss.backward(retain_graph=keep)
        taken = [max(event.self_cpu_memory_usage, event.self_device_memory_usage) for event in profile.events()]
        assert (max(taken, default=0) >= boxes[0].nbytes) == keep


@every_backend
@pytest.mark.parametrize("keep", [True, False])
def test_a_batch_of_upstream_gradients(keep, backend):
    """As `jacobian(vectorize=True)` has them: one pass for all."""
    boxes = leaves(backend, 4)
    loss = icr.icr_loss(*boxes, reduction="none", backend=backend)
    one_by_one = [torch.autograd.grad(each, boxes[0], retain_graph=True)[0] for each in loss]
    upstream = torch.eye(4, device=loss.device)
    (batch,) = torch.autograd.grad(loss, boxes[0], upstream, is_grads_batched=True, retain_graph=keep)
    assert torch.equal(batch, torch.stack(one_by_one))


def test_operators_refuse_what_they_cannot_scale():
    """They are public: nothing is read beyond a factor, and nothing is lost in a copy."""
    operators = torch.ops.icr_kernels
    rows = torch.ones(8, 4)
    for misplaced in (torch.ones(4, 8).t(), torch.ones(33)[1:].view(8, 4)):
        with pytest.raises(RuntimeError, match="gradient: expected a contiguous tensor, at a multiple of 16 bytes"):
            operators.scaled_(misplaced, torch.tensor(3.0), None)
    with pytest.raises(RuntimeError, match="gradient: expected float32 or float64"):
        operators.scaled_(rows.half(), torch.tensor(3.0), None)
    with pytest.raises(RuntimeError, match="table_index: expected one for each of 8 pairs"):
        operators.scaled(rows, None, None, torch.float32, torch.ones(2, 4), torch.zeros(3, dtype=torch.int64))
    for factor, pending in ((torch.rand(3), None), (None, torch.rand(9))):
        message = "factor: expected one value, or one for each of 8 pairs"
        with pytest.raises(RuntimeError, match=message):
            operators.scaled_(rows, factor, pending)
        with pytest.raises(RuntimeError, match=message):
            operators.scaled(rows, factor, pending, torch.float32, None, None)
    assert (rows == 1).all()
