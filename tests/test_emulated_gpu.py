"""What the CUDA path does with its device: launches, tickets, orders of blocks, errors. On the emulated one, where each
can be counted and steered; `test_gpu.py` asks the same of a real one."""

import pytest
import torch

import icr_kernels as icr
import inputs
from inputs import every_reduction, pairs, pairs_of_a_table
from oracle import evaluate, expected
from tolerances import assert_result, same_bits

if inputs.EMULATED is None:
    pytest.skip("the emulated device is for machines without a GPU, and needs g++", allow_module_level=True)

ORDER = inputs.EMULATED.Order
BACKEND = "emulated"


@pytest.fixture
def device():
    """The emulated device; what a test sets is taken back."""
    device = inputs.EMULATED.device
    names = ("multiprocessors", "order", "is_capturing", "fails")
    before = {name: getattr(device, name) for name in names}
    device.launches = device.memsets = 0
    yield device
    for name, value in before.items():
        setattr(device, name, value)


def arguments(n: int) -> tuple[list[torch.Tensor], dict]:
    pred, target, table, index = pairs_of_a_table(n, 19)
    mask = torch.arange(n) % 3 != 0
    return [pred, target, table], {"anchor_index": index, "mask": mask, "backend": BACKEND}


@every_reduction
@pytest.mark.parametrize("n", [1, 257, 5000])
def test_one_launch_forward_and_one_backward(n, reduction, device):
    boxes, options = arguments(n)
    loss = icr.icr_loss(boxes[0].requires_grad_(), *boxes[1:], reduction=reduction, **options)
    assert (device.launches, device.memsets) == (1, 0)
    loss.sum().backward()
    assert (device.launches, device.memsets) == (2, 0)


@pytest.mark.parametrize("n", [1, 257, 5000])
def test_a_captured_launch_has_a_ticket_of_its_own(n, device):
    """The kernel's own tickets are shared with eager calls, which may run while a graph does."""
    boxes, options = arguments(n)
    eager = evaluate(icr.icr_loss, *boxes, **options)
    device.is_capturing = True
    captured = evaluate(icr.icr_loss, *boxes, **options)
    assert device.memsets == (n > 256)
    assert all(same_bits(a, b) for a, b in zip(eager, captured, strict=True))


def test_sum_of_thousands_of_blocks_does_not_depend_on_their_order(device):
    n = 600_011
    boxes, options = arguments(n)
    device.multiprocessors = 1000
    results = []
    for order in (ORDER.forward, ORDER.backward, ORDER.shuffled):
        device.order = order
        results.append(icr.icr_loss(*boxes, **options))
    assert same_bits(results[0], results[1]) and same_bits(results[0], results[2])
    options["backend"] = "cpu"
    assert results[0].item() == pytest.approx(icr.icr_loss(*boxes, **options).item(), rel=1e-6)


@every_reduction
def test_more_pairs_than_threads(reduction, device):
    """Each thread takes many pairs, one after the other."""
    device.multiprocessors = 1
    boxes = pairs(20_011)
    actual = evaluate(icr.icr_loss, *boxes, reduction=reduction, backend=BACKEND)
    assert_result(actual, expected(*boxes, reduction=reduction))


@pytest.mark.parametrize("what", ["loss", "none", "terms", "scaled", "table"])
def test_a_launch_that_fails_is_an_error_that_says_which(what, device):
    boxes, options = arguments(33)
    leaf = boxes[2 if what == "table" else 0].requires_grad_()
    launch = {"scaled": "the launch for scaling", "table": "the launch for a table's gradient"}.get(
        what, "the launch for pairs"
    )
    message = f"icr_kernels: {launch} failed: invalid configuration argument"
    if what in ("scaled", "table"):
        loss = icr.icr_loss(*boxes, **options)
        device.fails = True
        with pytest.raises(RuntimeError, match=message):
            torch.autograd.grad(loss, leaf)
    else:
        device.fails = True
        with pytest.raises(RuntimeError, match=message):
            if what == "terms":
                icr.icr_terms(*boxes, **options)
            else:
                icr.icr_loss(*boxes, reduction="none" if what == "none" else "mean", **options)
    device.fails = False
    assert icr.icr_loss(*boxes, **options).isfinite()
