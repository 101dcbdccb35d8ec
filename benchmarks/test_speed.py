"""The quick cases under pytest-benchmark: ``python -m pytest benchmarks``; compare runs with ``--benchmark-compare``.

Without what would be compiled first: `python -m benchmarks run` has that.
"""

import pytest

from .case import loaded
from .catalogue import chosen

PAIRS = [
    pytest.param(case, name, load, id=f"{case}-{name}")
    for case in chosen()
    if case.pairs < 10_000_000
    for name, load in case.loaders("cpu").items()
    if not name.startswith("torch.compile")
]


@pytest.mark.parametrize(("case", "name", "load"), PAIRS)
def test_speed(benchmark, case, name, load):
    function = loaded(load)
    if isinstance(function, str):
        pytest.skip(function)
    benchmark.group = str(case)
    benchmark.extra_info["pairs"] = case.pairs
    inputs = case.inputs()
    assert case.agrees(function, inputs, case.truth(inputs))
    benchmark.pedantic(case.quantities[case.quantity](function, inputs), rounds=5, warmup_rounds=1)
