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


def sets(n: int, m: int, images: int = 3) -> tuple[list[torch.Tensor], dict]:
    boxes = [inputs.pairs(count, seed=count)[0] for count in (n, m)]
    groups = {f"group{i}": torch.arange(len(rows)) * images // len(rows) for i, rows in enumerate(boxes, 1)}
    return boxes, groups


def cost(**options) -> torch.Tensor:
    logits, boxes = torch.randn(2, 300, 5), inputs.pairs(600)[0].view(2, 300, 4)
    labels, image = torch.tensor([0, 4, 2]), torch.tensor([0, 0, 1])
    return icr.detr_matching_cost(logits, boxes, labels, boxes[0, :3], image, backend=BACKEND, **options)


def test_launches_over_all_pairs(device):
    boxes, groups = sets(40, 300)
    icr.pairwise_iou(*boxes, backend=BACKEND)
    assert device.launches == 1
    for wanted in ((0,), (1,), (0, 1)):
        leaves = [rows.clone().requires_grad_(i in wanted) for i, rows in enumerate(boxes)]
        matrix = icr.pairwise_iou(*leaves, backend=BACKEND)
        device.launches = 0
        matrix.sum().backward()
        assert device.launches == len(wanted)
    for options, launches in (({}, 1), (groups, 2)):
        device.launches = 0
        icr.pairwise_max(*boxes, **options, backend=BACKEND)
        icr.pairwise_topk(*boxes, 5, **options, backend=BACKEND)
        assert device.launches == 2 * launches
    device.launches = 0
    cost()
    assert (device.launches, device.memsets) == (1, 0)


def test_all_pairs_do_not_depend_on_the_order_of_the_blocks(device):
    """Nor on how many there are, but for a sum none of which is split among blocks."""
    boxes, groups = sets(150, 700)
    results = []
    for order, multiprocessors in ((ORDER.forward, 1), (ORDER.backward, 2), (ORDER.shuffled, 100)):
        device.order, device.multiprocessors = order, multiprocessors
        leaves = [rows.clone().requires_grad_() for rows in boxes]
        matrix = icr.pairwise_iou(*leaves, kind="ciou", backend=BACKEND)
        gradients = torch.autograd.grad(matrix, leaves, torch.linspace(-1, 1, matrix.numel()).view_as(matrix))
        torch.manual_seed(0)
        best = icr.pairwise_topk(*boxes, 16, **groups, backend=BACKEND)
        results.append([matrix.detach(), *gradients, *best, *icr.pairwise_max(*boxes, backend=BACKEND), cost()])
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))


def test_more_pieces_of_all_pairs_than_blocks(device):
    """Each block takes several, one after the other."""
    device.multiprocessors = 1
    boxes = inputs.pairs(600)[0].view(600, 1, 4)
    many = icr.pairwise_iou(boxes, boxes.flip(0), backend=BACKEND)
    each = icr.pairwise_iou(boxes[:1].squeeze(0), boxes.flip(0).squeeze(1), backend=BACKEND)
    assert same_bits(many[0, 0, 0], each[0, 0])
    best = icr.pairwise_max(boxes, boxes.flip(0), backend=BACKEND)
    assert same_bits(best.values, many.squeeze(-1)) and (best.indices == 0).all()
    group = torch.arange(600).view(600, 1) % 2
    best = icr.pairwise_max(boxes, boxes.flip(0), group1=group, group2=group.flip(0), backend=BACKEND)
    assert (best.indices == -1).all()


@pytest.mark.parametrize("what", ["all pairs", "the gradient of all pairs", "the groups of a selection", "a selection"])
def test_a_launch_over_all_pairs_that_fails_says_which(what, device):
    boxes, groups = sets(33, 40)
    matrix = icr.pairwise_iou(boxes[0].requires_grad_(), boxes[1], backend=BACKEND)
    device.fails = True
    with pytest.raises(
        RuntimeError, match=f"icr_kernels: the launch for {what} failed: invalid configuration argument"
    ):
        if what == "all pairs":
            icr.pairwise_iou(*boxes, backend=BACKEND)
        elif what == "the gradient of all pairs":
            matrix.sum().backward()
        else:
            icr.pairwise_max(*boxes, **(groups if "groups" in what else {}), backend=BACKEND)
    with pytest.raises(RuntimeError, match="icr_kernels: the launch for matching costs failed"):
        cost()
    device.fails = False
    assert icr.pairwise_iou(*boxes, backend=BACKEND).isfinite().all()
