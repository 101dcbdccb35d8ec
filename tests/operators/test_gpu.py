"""What only a GPU can show: many blocks, streams, graphs, launches and allocations counted, nothing that waits.

The tests that run over all backends run over these as well, on small inputs. Here
are large ones, and the device itself.
"""

import contextlib

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    pytest.skip("torch finds no NVIDIA GPU", allow_module_level=True)

import icr_kernels as icr
from benchmarks.gpu.counting import launches, memory, synchronisations
from dense_scenes import dense_scene
from detection_scenes import LOGITS, Scene, detection_loss, detection_scene, leaves, moved
from icr_kernels import builds, reference
from inputs import device_of, dtype_id, every_reduction, pairs, pairs_of_a_table
from oracle import BOXES, evaluate
from tolerances import assert_close, assert_result, same_bits

NAN = float("nan")
every_gpu_backend = pytest.mark.parametrize(
    "backend", [name for name in icr.available_backends() if device_of(name) == "cuda"]
)

# Hundreds of blocks, the last of them not full.
MANY = 100_003

# What the reductions are made of: a mean over unmasked pairs is divided by a number that only the kernel knows.
REDUCTIONS = pytest.mark.parametrize(
    ("reduction", "masked"),
    [("none", True), ("sum", False), ("mean", False), ("mean", True)],
    ids=["none_masked", "sum", "mean", "mean_masked"],
)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """What the allocator hands out next holds NaN: an element that no kernel writes shows."""
    torch.cuda.empty_cache()
    large = torch.full((2**24,), NAN, device="cuda")
    small = [torch.full((512,), NAN, device="cuda") for _ in range(2000)]
    del large, small


def boxes_of(n: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    """As `pairs`; many of them repeat, at a distance that is no power of two."""
    some = pairs(min(n, MANY), dtype=dtype, seed=seed, device="cuda")
    return [rows.repeat(-(-n // max(len(rows), 1)), 1)[:n] if n > MANY else rows for rows in some]


def mask_of(n: int) -> Tensor:
    return torch.arange(n, device="cuda") % 3 != 1


def options_of(reduction: str, masked: bool, n: int, backend: str) -> dict:
    return {"reduction": reduction, "mask": mask_of(n) if masked else None, "backend": backend}


def run(boxes, **options) -> list[Tensor]:
    """The loss and the gradients of all boxes; without an own copy to the device, which would wait."""
    leaves = [rows.detach().requires_grad_() for rows in boxes]
    loss = icr.icr_loss(*leaves, **options)
    return [loss.detach(), *torch.autograd.grad(loss.sum(), leaves)]


def all_same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(same_bits(a, b) for a, b in zip(one, other, strict=True))


def truth(*boxes: Tensor, wanted: tuple[str, ...] = BOXES, **options):
    """The reference in double precision, on the device."""
    return evaluate(reference.icr_loss, *(rows.double() for rows in boxes), wanted=wanted, **options)


def test_the_kernels_are_built():
    assert builds.CUDA_ERROR is None, builds.CUDA_ERROR
    assert icr.backend_for("cuda") == "cuda"


# Large inputs.


@every_gpu_backend
@pytest.mark.parametrize("n", [0, 1, 255, 256, 257, 65_536, MANY, 1_000_003, 10_000_000])
def test_sizes(n, backend):
    boxes = boxes_of(n)
    for reduction, masked in (("none", False), ("sum", False), ("mean", False), ("mean", True)):
        options = {"reduction": reduction, "mask": mask_of(n) if masked else None, "wanted": ("pred",)}
        assert_result(evaluate(icr.icr_loss, *boxes, backend=backend, **options), truth(*boxes, **options))


@every_gpu_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("n", [257, MANY])
def test_sizes_in_other_dtypes(n, dtype, backend):
    boxes = boxes_of(n, dtype)
    for reduction in ("none", "mean"):
        options = {"reduction": reduction, "penalty": "containment+pull"}
        assert_result(evaluate(icr.icr_loss, *boxes, backend=backend, **options), truth(*boxes, **options))


@every_gpu_backend
def test_a_table_of_anchor_objects_for_many_pairs(backend):
    pred, target, table, index = pairs_of_a_table(MANY, 501, device="cuda")
    options = {"anchor_index": index, "mask": mask_of(MANY)}
    result = evaluate(icr.icr_loss, pred, target, table, backend=backend, **options)
    assert_result(result, truth(pred, target, table, **options))


@every_gpu_backend
def test_an_assignment_in_one_graph(backend):
    """Nothing waits while it is captured, and with new boxes and padding it is what the reference finds."""

    def scene(seed: int) -> dict[str, Tensor]:
        found = dense_scene("trained", seed, images=4, most=100, size=640)
        padding = 400 - len(found["image"])
        found["truth"] = torch.cat((found["truth"], torch.zeros(padding, 4)))
        for name, value in (("labels", 0), ("image", -1)):
            found[name] = torch.cat((found[name], torch.full((padding,), value)))
        return {name: tensor.cuda() for name, tensor in found.items()}

    static = scene(0)
    options = {"smallest_side": 16.0, "topk2": 5}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        icr.task_aligned_assign(**static, **options, backend=backend)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = icr.task_aligned_assign(**static, **options, backend=backend)
    for seed in (1, 2):
        for name, tensor in scene(seed).items():
            static[name].copy_(tensor)
        expected = icr.task_aligned_assign(**static, **options, backend="reference")
        graph.replay()
        differs = found.index != expected.index
        assert differs.sum() <= differs.numel() / 1000
        torch.testing.assert_close(found.score[~differs], expected.score[~differs], rtol=2e-5, atol=1e-12)


@every_gpu_backend
def test_a_detection_loss_in_one_graph(backend):
    """With its assignment and its gradients; nothing waits while it is captured."""

    def scene(seed: int) -> Scene:
        found = detection_scene(seed, bins=16, size=640, most=100) | {"assignment": None}
        padding = 200 - len(found["image"])
        found["truth"] = torch.cat((found["truth"], torch.zeros(padding, 4)))
        for name, value in (("labels", 0), ("image", -1), ("anchor_index", -1)):
            found[name] = torch.cat((found[name], torch.full((padding,), value)))
        return {name: moved(value, "cuda") for name, value in found.items()}

    static, options = leaves(scene(0)), {"smallest_side": 16.0, "penalty": "containment"}

    def step(backend: str) -> tuple[Tensor, ...]:
        terms = detection_loss(static, backend, **options)
        return *terms, *torch.autograd.grad(sum(terms), [static[name] for name in LOGITS])

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(backend)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step(backend)
    for seed in (1, 2):
        with torch.no_grad():
            for name, value in scene(seed).items():
                if isinstance(value, Tensor):
                    static[name].copy_(value)
        # An assignment may differ from the reference's where two points are as good as each other.
        eager = step(backend)
        graph.replay()
        assert all(same_bits(a, b) for a, b in zip(found, eager, strict=True))
        for actual, expected in zip(found, step("reference"), strict=True):
            assert (actual - expected).norm() <= 1e-3 * expected.norm()


@every_gpu_backend
def test_more_than_2_to_the_31_elements(backend):
    """Offsets that 32 bits do not hold: both ends, and every pair in the sum."""
    n, end = 2**29 + 1000, 2000
    needed = 48 * 2**30
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < needed:
        pytest.skip(f"takes {needed >> 30} GiB of the GPU's memory, {free >> 30} GiB are free")
    boxes = boxes_of(n, torch.bfloat16)
    assert boxes[0].numel() > 2**31
    losses, gradient = icr.icr_loss_and_grad(*boxes, reduction="none", backend=backend)
    for part in (slice(0, end), slice(n - end, n)):
        expected = truth(*(rows[part] for rows in boxes), reduction="none", wanted=("pred",))
        assert_close(losses[part], expected.value, f"losses of {part}")
        # `evaluate` asks for other factors than 1.
        factor = torch.linspace(0.5, 0.75, end, dtype=torch.float64, device="cuda").unsqueeze(1)
        assert_close(gradient[part], expected.pred / factor, f"gradient of {part}")
    total = sum(part.double().sum().item() for part in losses.split(2**26))
    del losses
    leaf = boxes[0].requires_grad_()
    loss = icr.icr_loss(leaf, *boxes[1:], reduction="sum", backend=backend)
    assert loss.item() == pytest.approx(total, rel=1e-6)
    (scaled,) = torch.autograd.grad(loss, leaf)
    for part in (slice(0, end), slice(n // 2, n // 2 + end), slice(n - end, n)):
        assert same_bits(scaled[part], gradient[part])


# Same input, same bits.


@every_gpu_backend
@REDUCTIONS
def test_same_bits_in_a_hundred_runs(reduction, masked, backend):
    boxes, options = boxes_of(MANY), options_of(reduction, masked, MANY, backend)
    first = run(boxes, **options)
    for _ in range(100):
        again = run(boxes, **options)
        assert all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(first, again, strict=True))


@every_gpu_backend
def test_same_bits_of_a_table_in_a_hundred_runs(backend):
    pred, target, table, index = pairs_of_a_table(20_011, 29, device="cuda")
    options = {"anchor_index": index, "mask": mask_of(20_011), "backend": backend}
    first = run((pred, target, table), **options)
    for _ in range(100):
        again = run((pred, target, table), **options)
        assert all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(first, again, strict=True))


@every_gpu_backend
@REDUCTIONS
def test_same_bits_on_two_streams_at_once(reduction, masked, backend):
    sizes = (MANY, 3 * MANY // 2)
    boxes = [boxes_of(n) for n in sizes]
    options = [options_of(reduction, masked, n, backend) for n in sizes]
    expected = [run(rows, **given) for rows, given in zip(boxes, options, strict=True)]
    torch.cuda.synchronize()
    streams, results = [torch.cuda.Stream() for _ in sizes], ([], [])
    for _ in range(50):
        for stream, rows, given, found in zip(streams, boxes, options, results, strict=True):
            with torch.cuda.stream(stream):
                found.append(run(rows, **given))
    torch.cuda.synchronize()
    for truth_of_one, found in zip(expected, results, strict=True):
        assert all(all_same(truth_of_one, each) for each in found)


# Streams and devices.


@every_gpu_backend
def test_work_waits_for_its_own_stream_and_for_no_other(backend):
    boxes = boxes_of(MANY)
    expected = run(boxes, backend=backend)
    late = [torch.full_like(rows, NAN) for rows in boxes]
    side, busy = torch.cuda.Stream(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        run(late, backend=backend)  # takes its memory from the driver now, which may wait
    torch.cuda.synchronize()
    with torch.cuda.stream(busy):
        torch.cuda._sleep(2_000_000_000)  # about a second
        end = torch.cuda.Event()
        end.record()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        for to, rows in zip(late, boxes, strict=True):
            to.copy_(rows)
        found = run(late, backend=backend)
    side.synchronize()
    did_not_wait = not end.query()
    torch.cuda.synchronize()
    assert did_not_wait, "it waited for a stream that is none of its business"
    assert all_same(found, expected), "it did not wait for the work before it on its own stream"


@every_gpu_backend
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="takes two GPUs")
def test_tensors_on_a_device_that_is_not_the_current_one(backend):
    boxes = boxes_of(MANY)
    expected = run(boxes, backend=backend)
    with torch.cuda.device(0):
        found = run([rows.to("cuda:1") for rows in boxes], backend=backend)
        assert torch.cuda.current_device() == 0
    assert all(tensor.device.index == 1 for tensor in found)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, "result on the second device")


# Graphs.


def captured(boxes: list[Tensor], **options):
    """A graph of two calls, forward and backward, over boxes that stay where they are; and what it writes."""
    half = [rows[: len(rows) // 2].detach() for rows in boxes]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    options_of_half = {**options, "mask": None if options.get("mask") is None else options["mask"][: len(half[0])]}
    with torch.cuda.stream(side):
        for _ in range(3):
            run(boxes, **options)
            run(half, **options_of_half)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        first, second = run(boxes, **options), run(half, **options_of_half)
    return graph, first, second, options_of_half


@every_gpu_backend
@REDUCTIONS
def test_graph_replays_with_new_inputs_between_eager_calls(reduction, masked, backend):
    static, options = boxes_of(MANY), options_of(reduction, masked, MANY, backend)
    graph, first, second, options_of_half = captured(static, **options)
    for seed in range(1, 6):
        fresh = boxes_of(MANY, seed=seed)
        for to, rows in zip(static, fresh, strict=True):
            to.copy_(rows)
        before = run(fresh, **options)
        for _ in range(3):
            graph.replay()
        after = run(fresh, **options)
        half = run([rows[: MANY // 2] for rows in fresh], **options_of_half)
        assert all_same(before, after)
        assert all_same(before, first) and all_same(half, second), seed


@every_gpu_backend
def test_graph_replays_beside_eager_calls_of_another_stream(backend):
    static, other = boxes_of(MANY), boxes_of(MANY, seed=7)
    graph, first, second, _ = captured(static, backend=backend)
    expected, halves = run(static, backend=backend), run([rows[: MANY // 2] for rows in static], backend=backend)
    expected_of_other = run(other, backend=backend)
    side, found = torch.cuda.Stream(), []
    torch.cuda.synchronize()
    for _ in range(50):
        graph.replay()
        with torch.cuda.stream(side):
            found.append(run(other, backend=backend))
    torch.cuda.synchronize()
    assert all_same(first, expected) and all_same(second, halves)
    assert all(all_same(expected_of_other, each) for each in found)


@every_gpu_backend
def test_compiled_for_few_launches(backend):
    """torch.compile's own graphs of the loss inside a larger step."""

    def training_step(raw: Tensor, target: Tensor, anchor_objects: Tensor) -> Tensor:
        pred = torch.cat((raw[:, :2], raw[:, :2] + raw[:, 2:].exp()), 1)
        return icr.icr_loss(pred, target, anchor_objects, mask=target[:, 0] > -1e6, backend=backend) * 3

    torch._dynamo.reset()
    compiled = torch.compile(training_step, fullgraph=True, mode="reduce-overhead")
    for seed in range(5):
        pred, target, anchor_objects = boxes_of(MANY, seed=seed)
        raw = torch.cat((pred[:, :2], (pred[:, 2:] - pred[:, :2]).log()), 1)
        torch.compiler.cudagraph_mark_step_begin()
        result = [tensor.clone() for tensor in evaluate(compiled, raw, target, anchor_objects)]
        eager = evaluate(training_step, raw, target, anchor_objects)
        for one, other in zip(result, eager, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    torch._dynamo.reset()


# Nothing waits, nothing is launched or allocated that need not be.


@contextlib.contextmanager
def waiting_is_an_error():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_gpu_backend
@every_reduction
def test_nothing_waits_for_the_device(reduction, backend):
    pred, target, table, index = pairs_of_a_table(1000, 7, device="cuda")
    options = {
        "weight": torch.linspace(0.5, 2, 1000, device="cuda"),
        "mask": mask_of(1000),
        "reduction": reduction,
        "backend": backend,
    }
    normalizers = (None, 3.0, torch.tensor(5, device="cuda")) if reduction == "mean" else (None,)

    def calls() -> None:
        for normalizer in normalizers:
            given = {**options, "normalizer": normalizer}
            run((pred, target, table), anchor_index=index, **given)
            run((pred, target, target), **given)
            icr.icr_loss_and_grad(pred, target, table, anchor_index=index, **given)
        leaf = pred.detach().requires_grad_()
        terms = icr.icr_terms(leaf, target, table, anchor_index=index, mask=options["mask"], backend=backend)
        torch.autograd.grad(sum(term.sum() for term in terms), leaf)

    calls()  # What is compiled and loaded once may wait.
    with waiting_is_an_error():
        calls()
    assert synchronisations(calls) == {"synchronisations": 0}
    assert synchronisations(lambda: pred.sum().item())["synchronisations"] > 0, "the counter counts"


@every_gpu_backend
@REDUCTIONS
@pytest.mark.parametrize("n", [1000, MANY])
def test_one_launch_forward_and_one_backward(n, reduction, masked, backend):
    boxes, options = boxes_of(n), options_of(reduction, masked, n, backend)
    leaf = boxes[0].requires_grad_()

    def forward() -> Tensor:
        return icr.icr_loss(leaf, *boxes[1:], **options)

    loss = forward()
    above = torch.full_like(loss, 0.5)

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, leaf, above, retain_graph=True)

    backward()
    with torch.no_grad():
        forward()
        assert launches(forward) == {"kernels": 1, "memsets": 0, "copies": 0}
    assert launches(forward) == {"kernels": 1, "memsets": 0, "copies": 0}
    assert launches(backward) == {"kernels": 1, "memsets": 0, "copies": 0}


@every_gpu_backend
@REDUCTIONS
def test_memory_is_for_the_loss_and_the_gradient(reduction, masked, backend):
    boxes, options = boxes_of(MANY), options_of(reduction, masked, MANY, backend)
    leaf = boxes[0].requires_grad_()

    def forward() -> Tensor:
        return icr.icr_loss(leaf, *boxes[1:], **options)

    loss = forward()
    above = torch.full_like(loss, 0.5)
    counts = memory(forward)
    # The number of unmasked pairs, by which the gradient is still to be divided, is a third.
    assert counts["allocations"] <= (3 if (reduction, masked) == ("mean", True) else 2)
    losses = 4 * MANY if reduction == "none" else 0
    assert counts["peak bytes"] < 16 * MANY + losses + 2**20
    counts = memory(lambda: torch.autograd.grad(loss, leaf, above, retain_graph=True))
    assert counts["allocations"] <= 1 and counts["peak bytes"] < 16 * MANY + 2**20


@every_gpu_backend
def test_second_backward_pass(backend):
    pred, target, table, index = pairs_of_a_table(MANY, 29, device="cuda")
    leaves = [rows.requires_grad_() for rows in (pred, target, table)]
    loss = icr.icr_loss(*leaves, anchor_index=index, mask=mask_of(MANY), backend=backend)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    assert all_same(first, torch.autograd.grad(loss, leaves, retain_graph=True))
    for half, whole in zip(torch.autograd.grad(loss / 2, leaves), first, strict=True):
        torch.testing.assert_close(half, whole / 2, rtol=1e-6, atol=1e-12)


# What must not be read.


@every_gpu_backend
@every_reduction
def test_masked_rows_may_hold_anything(reduction, backend):
    boxes, mask = boxes_of(MANY), mask_of(MANY)
    spoiled = [torch.where(mask.unsqueeze(1), rows, NAN) for rows in boxes]
    options = {"mask": mask, "reduction": reduction, "backend": backend}
    clean, dirty = run(boxes, **options), run(spoiled, **options)
    assert all_same(clean, dirty)
    assert all((gradient[~mask] == 0).all() for gradient in dirty[1:])


@every_gpu_backend
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=dtype_id)
def test_index_outside_the_table_reads_nothing(index_dtype, backend):
    """A table of 19 rows in the midst of NaN, and indices that point all around it: no NaN comes back, and a pair whose
    index is outside has the loss of a pair without an anchor object."""
    pred, target, anchor_objects = boxes_of(MANY)
    around = torch.full((MANY, 4), NAN, device="cuda")
    table = around[MANY // 2 : MANY // 2 + 19]
    table.copy_(anchor_objects[:19])
    index = (torch.arange(MANY, device="cuda") - MANY // 2).to(index_dtype)
    info = torch.iinfo(index_dtype)
    index[:4] = torch.tensor([info.min, info.max, info.min + 1, info.max - 1], dtype=index_dtype, device="cuda")
    outside = (index < 0) | (index >= 19)
    options = {"reduction": "none", "backend": backend}
    loss, grad_pred, _, grad_table = run((pred, target, table), anchor_index=index, **options)
    leaf = pred.detach().requires_grad_()
    alone = icr.box_iou_loss(leaf, target, **options)
    torch.testing.assert_close(loss[outside], alone.detach()[outside], rtol=1e-6, atol=1e-7)
    (grad_alone,) = torch.autograd.grad(alone.sum(), leaf)
    torch.testing.assert_close(grad_pred[outside], grad_alone[outside], rtol=1e-5, atol=1e-7)
    assert loss.isfinite().all() and grad_table.isfinite().all()
    assert around.isnan().sum() == 4 * (MANY - 19)
