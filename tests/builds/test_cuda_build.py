"""The CUDA extension compiles, against a torch without CUDA too, and its kernels keep everything in registers.

The registers of each kernel are recorded in cuda_registers.csv, so that a change of theirs is seen when it is made.
Written anew by `python tests/builds/test_cuda_build.py`.
"""

import csv
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from icr_kernels.variants import COMMON_LOSS_NAMES, LOSS_NAMES

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1] / "support")]

from cuda_build import LOG, ROOT, build, setup
from sass import cubin

RECORD = Path(__file__).parent / "cuda_registers.csv"
# Each takes minutes: tests compile for the newest.
RECORDED = ("8.0", cubin.CAPABILITY)

COMMON_KINDS = [f"Similarity<{name}> " for name in ("IoU", "GIoU", "DIoU", "CIoU", "EIoU", "SIoU")]
COMMON_KINDS += ["Inside", "Containment", "Inverse", "Log", "Pull", "ContainmentPull"]

# As many as leave room for four blocks of 256 threads on a multiprocessor, or three: enough to keep the memory busy.
MOST_REGISTERS = {
    "pairs_kernel<float, 0u, false, AnyTask>": 64,
    "pairs_kernel<float, 1u, false, AnyTask>": 64,
    "matrix_kernel<float, CommonKinds>": 64,
    "selection_kernel<float, 1, CommonKinds>": 64,
    "selection_kernel<float, 16, CommonKinds>": 64,
    **{f"maximum_kernel<{kind}>": 64 for kind in COMMON_KINDS},
    "boxes_kernel<float, false, CommonKinds>": 80,
    "boxes_kernel<float, true, CommonKinds>": 80,
}

needs_nvcc = pytest.mark.skipif(cubin.nvcc() is None, reason="no nvcc to compile with")


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
        name = re.sub(r"\(anonymous namespace\)::|icr::|icr_cuda::|icr_kernels::", "", name)
        kernel = re.search(r"(\w+_kernel(?:<(?:[^<>]|<[^<>]*>)*>)?)", name)[1]
        spilled = int(stores) + int(loads)
        row = {"kernel": kernel, "architecture": architecture, "registers": registers}
        rows.append({**row, "stack": stack, "spilled": str(spilled)})
    return sorted(rows, key=lambda row: (row["kernel"], row["architecture"]))


def nvcc_version(log: str) -> str:
    return re.search(r"nvcc V(\S+)", log)[1]


@pytest.fixture(scope="module")
def log(cuda_extension) -> str:
    return (cuda_extension / LOG).read_text()


def test_kernels_spill_nothing(log):
    rows = kernels(log)
    # Each loss has two of its own, and the common ones two more.
    assert len(rows) == 69 + 2 * len(LOSS_NAMES) + 2 * len(COMMON_LOSS_NAMES)
    assert [row for row in rows if row["stack"] != "0" or row["spilled"] != "0"] == []
    for row in rows:
        most = MOST_REGISTERS.get(row["kernel"]) or MOST_REGISTERS.get(row["kernel"].partition("<")[0], 255)
        assert int(row["registers"]) <= (64 if "PackedTask" in row["kernel"] else most), row
        assert int(row["registers"]) <= most, row


def test_registers_are_those_recorded(log):
    with RECORD.open() as file:
        recorded = list(csv.DictReader(file))
    if recorded[0]["nvcc"] != nvcc_version(log):
        pytest.skip(f"recorded with nvcc {recorded[0]['nvcc']}, this is {nvcc_version(log)}")
    assert table(log) == [row for row in recorded if row["architecture"] == cubin.ARCHITECTURE]


def test_extension_serves_every_torch_and_every_cuda_version(cuda_extension):
    """It uses what torch 2.10 promises to keep, holds CUDA's runtime, and finds a CUDA torch through libtorch, which it
    may not have been built beside."""
    from audit import audited, output_of  # where pytest alone looks; as a program this file does without

    library = str(next((cuda_extension / "lib" / "icr_kernels").glob("_C_cuda*.so")))
    (found,) = audited(library)
    assert found["stable"] and found["min_torch_version"] == "2.10.0" and not found["unknown_shim_symbols"]
    assert found["stable_shim_count"] > 20, "it sees what is used of torch"
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", output_of("readelf", "--dynamic", library)))
    assert "libtorch.so" in needed
    assert [name for name in needed if "cuda" in name or "python" in name] == []
    undefined = output_of("nm", "-D", "--undefined-only", library)
    assert "aoti_torch_get_current_cuda_stream" in undefined and "cudaLaunchKernel" not in undefined


DRIVER = """
#include <stdlib.h>
int cuDriverGetVersion(int* version) { *version = 99990; return 0; }  // newer than any runtime
int cuInit(unsigned flags) { abort(); }
"""
VERSIONS = """
import importlib.util, os, sys, torch
sys.setdlopenflags(os.RTLD_LAZY)  # a torch without CUDA has no streams of it
spec = importlib.util.spec_from_file_location("_C_cuda", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(*module.cuda_versions())
"""


def test_driver_is_asked_for_its_version_and_not_initialised(cuda_extension, tmp_path):
    """Or, once this package is imported, no forked process could use a GPU, and CUDA_VISIBLE_DEVICES would count no
    more: Ultralytics sets it when it begins to train."""
    (tmp_path / "driver.c").write_text(DRIVER)
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", str(tmp_path / "driver.c"), "-o", str(library)], check=True)
    extension = next((cuda_extension / "lib" / "icr_kernels").glob("_C_cuda*.so"))
    asked = subprocess.run(
        [sys.executable, "-c", VERSIONS, str(extension)],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert asked.returncode == 0 and asked.stdout.startswith("99990 "), asked.stderr


@needs_nvcc
@pytest.mark.parametrize("chosen", ["8.0 Nonsense", "7", "native"])
def test_wrong_architectures_are_refused(chosen):
    if chosen == "native" and torch.cuda.is_available():
        pytest.skip("there is a GPU to be native to")
    result = setup("--name", ICR_KERNELS_CUDA="1", TORCH_CUDA_ARCH_LIST=chosen)
    assert result.returncode != 0
    message = f"expected versions such as '8.0 9.0+PTX' or names such as 'Hopper', got {chosen!r}"
    assert message in result.stderr and "Traceback" not in result.stderr


def architectures(chosen: str) -> list[str]:
    result = setup("--name", ICR_KERNELS_CUDA="1", TORCH_CUDA_ARCH_LIST=chosen)
    return re.search(r" for (sm_\d+.*)", result.stdout)[1].split(", ")


@needs_nvcc
def test_architectures():
    """As torch's own extensions take them; of a build that asks for none, the newest comes as PTX too."""
    assert architectures("Hopper") == ["sm_90", "compute_90"]
    assert architectures("8.0;9.0a") == ["sm_80", "sm_90a"]
    assert architectures("9.0+PTX 8.6") == ["sm_86", "sm_90", "compute_90"]
    default = architectures("")
    assert default[-1] == default[-2].replace("sm_", "compute_")
    assert "sm_80" in default and "sm_90" in default


SETUP = """
import runpy, sys
sys.argv = ["setup.py", "--name"]
found = runpy.run_path("setup.py")
print("nvcc:", *found["cuda_extension"]().nvcc)
print("compiler:", *found["compiler"]())
"""


@needs_nvcc
def test_compiler_behind_a_cache(tmp_path):
    """nvcc takes the compiler alone, and so does a torch that puts the cache before it by itself."""
    cache = tmp_path / "ccache"
    cache.write_text('#!/bin/sh\nexec "$@"\n')
    cache.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    options = {"PATH": path, "ICR_KERNELS_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0"}
    said = setup(script=("-c", SETUP), CXX="ccache g++", **options).stdout
    (command,) = re.findall(r"^nvcc: (.*)$", said, re.MULTILINE)
    assert command.endswith("-ccbin g++")
    (compiler,) = re.findall(r"^compiler: (.*)$", said, re.MULTILINE)
    assert compiler == ("g++" if hasattr(cpp_extension, "_wrap_compiler") else "ccache g++")


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
        build(Path(folder), RECORDED)
        rows = table((Path(folder) / LOG).read_text())
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
