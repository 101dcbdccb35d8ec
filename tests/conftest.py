"""Fixtures and settings of every test."""

import os

import hypothesis
import pytest
import torch

import icr_kernels as icr
from icr_kernels import builds
from inputs import REFERENCE_ONLY
from poisoned import poison_memory
from thinning import thinned

poison_memory()

# Of processes that share the processors, threads that wait for each other hold up all: one each, and each program of a
# test. Tests of threads ask for theirs.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run: a failure is a change of the code, never of the dice.
hypothesis.settings.register_profile("icr_kernels", derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.load_profile("icr_kernels")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--only-backend", metavar="NAME", help="only tests that run over backends, and of these one backend"
    )


def pytest_report_header() -> list[str]:
    lines = [
        f"icr_kernels {icr.__version__}, torch {torch.__version__}, backends: {', '.join(icr.available_backends())}"
    ]
    build = builds.cpu_build
    if build is not None:
        lines.append(
            f"extension: {build.compiler()}; instruction sets {', '.join(build.instruction_sets())}, "
            f"in use: {build.instruction_set()}"
        )
    else:
        lines.append(f"NO EXTENSION: {builds.CPU_ERROR}")
        lines.append(
            "its tests are left out: ICR_KERNELS_TEST_REFERENCE_ONLY=1"
            if REFERENCE_ONLY
            else "its tests will fail; ICR_KERNELS_TEST_REFERENCE_ONLY=1 leaves them out"
        )
    return lines


# Files that take minutes begin first, so that at the end no process waits long for another.
LONGEST = (
    "test_sanitizers",
    "test_ultralytics_versions",
    "test_derivatives",
    "test_compile",
    "test_cuda_build",
    "test_detection",
    "test_triton_ahead_of_time",
    "test_cuda_instructions",
    "test_properties",
    "test_packaging",
    "test_pairwise",
    "test_parity",
    "test_triton_blocks",
    "test_extremes",
    "test_gradcheck",
    "test_masks_and_reductions",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    backend = config.getoption("--only-backend")
    if backend is not None:
        parameters = [getattr(item, "callspec", None) for item in items]
        chosen = [each is not None and each.params.get("backend") == backend for each in parameters]
        config.hook.pytest_deselected(items=[item for item, kept in zip(items, chosen, strict=True) if not kept])
        items[:] = [item for item, kept in zip(items, chosen, strict=True) if kept]
    config.hook.pytest_deselected(items=thinned(items))
    order = {f"{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture
def extension():
    """The compiled extension `icr_kernels._C`."""
    if builds.cpu_build is None and REFERENCE_ONLY:
        pytest.skip(builds.CPU_ERROR)
    assert builds.cpu_build is not None, builds.CPU_ERROR
    return builds.cpu_build


@pytest.fixture
def instruction_set(request, extension):
    """Runs the test with one of the compiled instruction sets; the one in use returns afterwards."""
    name, before = request.param, extension.instruction_set()
    supported = {"avx2": torch.cpu._is_avx2_supported, "avx512": torch.cpu._is_avx512_supported}
    if not supported.get(name, lambda: True)():
        pytest.skip(f"this processor has no {name}")
    extension.set_instruction_set(name)
    assert extension.instruction_set() == name
    yield name
    extension.set_instruction_set(before)


@pytest.fixture
def restored_threads():
    """Lets a test choose the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
