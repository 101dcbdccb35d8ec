"""The aligned case under pytest-benchmark: ``python -m pytest benchmarks``; compare runs with --benchmark-compare."""

import pytest

from . import aligned

PRESENT = {name: loss for name, loss in aligned.implementations().items() if not isinstance(loss, str)}


@pytest.mark.parametrize("pairs", [1_000, 100_000])
@pytest.mark.parametrize("name", PRESENT)
def test_forward_and_backward(benchmark, name, pairs):
    benchmark.group = f"ciou + containment, {pairs} pairs"
    benchmark.extra_info["pairs"] = pairs
    run = aligned.step(PRESENT[name], *aligned.boxes(pairs))
    benchmark.pedantic(run, rounds=20, warmup_rounds=3)
    expected = aligned.pure_pytorch(*(boxes.double() for boxes in aligned.boxes(pairs)))
    assert abs(run() - expected) < 1e-5 * expected
