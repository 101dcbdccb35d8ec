"""The Triton kernels, compiled for GPUs on a machine that may have none: they fit into registers, rows are read and
written whole, and what was compiled computes what the reference does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
# Registers per thread. With up to 64, 32 warps of a GPU's multiprocessor are resident at once.
MOST_REGISTERS = {"all gradients": 96, "masked": 80, "modified": 80, "gradient, double": 200}
# Where a thread has several pairs or candidates at a time, or works in double precision.
MOST_REGISTERS |= {
    "matrix of": 160,
    "matrix gradient, double": 128,
    "selected, many, 16": 144,
    "selected, some, 16": 96,
}
MOST_REGISTERS |= {"selected in groups, many, 16": 104, "selected in groups": 80}
# Of dense heads a thread has several bins of a point beside the gradient of its box.
MOST_REGISTERS |= {
    "decoded, double": 80,
    "decoded_backward, double": 96,
    "detection_loss, double": 128,
    "detection_loss, half": 72,
    "detection_loss_backward, double": 192,
    "detection_loss_backward": 128,
}
MOST_ERROR = {"gradient, double": 1e-12, "matrix of siou, double": 1e-12, "matrix gradient, double": 1e-12}
MOST_ERROR |= {"matrix gradient in half": 2**-11, "cost, double": 1e-12}
for what in ("decoded", "decoded_backward", "detection_loss", "detection_loss_backward"):
    MOST_ERROR |= {f"{what}, double": 1e-12, f"{what}, half": 2**-11}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> list[dict]:
    """In a process of its own, because in this one Triton may run in its interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    command = [sys.executable, str(ROOT / "tests" / "support" / "triton_ahead_of_time.py")]
    finished = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-4000:]
    return [json.loads(line) for line in finished.stdout.splitlines()]


def limit(table: dict, name: str, otherwise):
    return next((value for prefix, value in table.items() if name.startswith(prefix)), otherwise)


def test_every_kernel_compiles_for_every_gpu(compiled):
    assert {found["capability"] for found in compiled} == {80, 90, 100}


def test_nothing_spills(compiled):
    for found in compiled:
        assert found["spilled"] == 0, found
        assert found["registers"] <= limit(MOST_REGISTERS, found["name"], 64), found


def test_rows_are_read_and_written_in_one_access_and_not_exchanged_between_threads(compiled):
    for found in compiled:
        if found["name"].startswith(("value", "gradient of")):
            assert found["vector_loads"] == 3 and found["vector_stores"] == found["name"].startswith("gradient"), found
        if found["name"] in ("terms", "terms_backward", "scaled"):
            assert found["shared"] == 0, found


def test_areas_are_rounded_before_they_are_added(compiled):
    """Or the union of two equal boxes differs from their intersection in the last bit."""
    for found in compiled:
        if found["name"].startswith("gradient of"):
            assert found["rounded_products"] >= 3, found


def test_compiled_code_computes_what_the_reference_does(compiled):
    errors = {found["name"]: found["error"] for found in compiled if "error" in found}
    assert len(errors) > 55
    for name, error in errors.items():
        assert error < limit(MOST_ERROR, name, 5e-7), (name, error)
