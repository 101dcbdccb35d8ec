"""The CUDA extension compiles, against a torch without CUDA too, and its kernels keep everything in registers.

The registers of each kernel are recorded in cuda_registers.csv, so that a change of theirs is seen when it is made.
Written anew by `python tests/test_cuda_build.py`.
"""

import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RECORD = Path(__file__).parent / "cuda_registers.csv"
ARCHITECTURES = ("8.0", "9.0")

# As many as leave room for four blocks of 256 threads on a multiprocessor, or three: enough to keep the memory busy.
MOST_REGISTERS = {
    "pairs_kernel<float, 0u, false>": 64,
    "pairs_kernel<float, 1u, false>": 64,
    "matrix_kernel<float>": 64,
    "selection_kernel<float, 1>": 64,
    "selection_kernel<float, 16>": 64,
    "boxes_kernel<float, false>": 80,
    "boxes_kernel<float, true>": 80,
}

needs_nvcc = pytest.mark.skipif(
    shutil.which("nvcc") is None and not Path("/usr/local/cuda/bin/nvcc").exists(), reason="no nvcc to compile with"
)


def setup(*command: str, script: Sequence[str] = ("setup.py",), **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, *script, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )


# Without the extension for CPUs, which takes minutes and is tested elsewhere.
CUDA_ALONE = """
import setuptools, sys
from distutils.core import run_setup
chosen = run_setup("setup.py", sys.argv[1:], stop_after="commandline")
chosen.ext_modules = [module for module in chosen.ext_modules if module.name == "icr_kernels._C_cuda"]
chosen.run_commands()
"""


def build(folder: Path) -> str:
    result = setup(
        *("build_ext", "--build-temp", str(folder / "temp"), "--build-lib", str(folder / "lib")),
        script=("-c", CUDA_ALONE),
        ICR_KERNELS_CUDA="1",
        TORCH_CUDA_ARCH_LIST=" ".join(ARCHITECTURES),
        NVCC_APPEND_FLAGS="-Xptxas=-v --threads=1",
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout + result.stderr


def kernels(log: str) -> list[dict[str, str]]:
    """What ptxas says of each kernel."""
    found = re.findall(
        r"Compiling entry function '(\S+)' for '(sm_\d+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        log,
        re.DOTALL,
    )
    names = subprocess.run(["c++filt", *(name for name, *_ in found)], capture_output=True, text=True, check=True)
    rows = []
    for name, (_, architecture, stack, stores, loads, registers) in zip(names.stdout.splitlines(), found, strict=True):
        kernel = re.search(r"(\w+_kernel(?:<[^>]*>)?)", name)[1]
        spilled = int(stores) + int(loads)
        row = {"kernel": kernel, "architecture": architecture, "registers": registers}
        rows.append({**row, "stack": stack, "spilled": str(spilled)})
    return sorted(rows, key=lambda row: (row["kernel"], row["architecture"]))


def nvcc_version(log: str) -> str:
    return re.search(r"nvcc V(\S+)", log)[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("cuda")
    return folder, build(folder)


@needs_nvcc
def test_kernels_spill_nothing(built):
    rows = kernels(built[1])
    assert len(rows) == 27 * len(ARCHITECTURES)
    assert [row for row in rows if row["stack"] != "0" or row["spilled"] != "0"] == []
    for row in rows:
        assert int(row["registers"]) <= MOST_REGISTERS.get(row["kernel"], 255), row


@needs_nvcc
def test_registers_are_those_recorded(built):
    with RECORD.open() as file:
        recorded = list(csv.DictReader(file))
    if recorded[0]["nvcc"] != nvcc_version(built[1]):
        pytest.skip(f"recorded with nvcc {recorded[0]['nvcc']}, this is {nvcc_version(built[1])}")
    assert table(built[1]) == recorded


@needs_nvcc
def test_extension_uses_only_the_stable_abi(built):
    library = next((built[0] / "lib" / "icr_kernels").glob("_C_cuda*.so"))
    undefined = subprocess.run(
        ["nm", "-D", "--undefined-only", "--demangle", str(library)], capture_output=True, text=True, check=True
    ).stdout
    assert "aoti_torch_get_current_cuda_stream" in undefined and "cudaLaunchKernelExC" in undefined
    assert not re.findall(r"\b(?:at|c10)::\S+", undefined)


@needs_nvcc
def test_wrong_architectures_are_refused():
    result = setup("--name", ICR_KERNELS_CUDA="1", TORCH_CUDA_ARCH_LIST="8.0 Hopper")
    assert result.returncode != 0
    message = "TORCH_CUDA_ARCH_LIST: expected versions such as '8.0 9.0+PTX', got 'Hopper'"
    assert message in result.stderr and "Traceback" not in result.stderr


@needs_nvcc
def test_architectures_of_a_build_that_asks_for_none():
    result = setup("--name", ICR_KERNELS_CUDA="1", TORCH_CUDA_ARCH_LIST="")
    names = re.search(r"for (sm_80, .*)", result.stdout)[1].split(", ")
    assert names[-1] == names[-2].replace("sm_", "compute_"), "the newest comes as PTX too"
    assert "sm_90" in names


def test_cuda_kernels_can_be_left_out():
    assert "no CUDA kernels: ICR_KERNELS_CUDA=0" in setup("--name", ICR_KERNELS_CUDA="0").stdout


WITHOUT_NVCC = """
import runpy, shutil, sys
which = shutil.which
shutil.which = lambda name, *rest: None if name.endswith("nvcc") else which(name, *rest)
sys.argv = ["setup.py", "--name"]
runpy.run_path("setup.py")
"""


def test_cuda_kernels_that_are_asked_for_without_nvcc_are_an_error():
    environment = {**os.environ, "ICR_KERNELS_CUDA": "1"}
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_NVCC], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "ICR_KERNELS_CUDA=1: no nvcc found" in result.stderr and "Traceback" not in result.stderr


def table(log: str) -> list[dict[str, str]]:
    return [
        {name: row[name] for name in ("kernel", "architecture", "registers")} | {"nvcc": nvcc_version(log)}
        for row in kernels(log)
    ]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, RECORD.open("w") as file:
        rows = table(build(Path(folder)))
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
