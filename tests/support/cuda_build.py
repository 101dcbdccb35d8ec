"""The CUDA extension, built for tests alone."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOG = "log"


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


def build(folder: Path, architectures: Sequence[str]) -> None:
    """The library is in lib, the object files of its kernels are in temp, and what nvcc and ptxas said is in the
    log."""
    result = setup(
        *("build_ext", "--build-temp", str(folder / "temp"), "--build-lib", str(folder / "lib")),
        script=("-c", CUDA_ALONE),
        ICR_KERNELS_CUDA="1",
        TORCH_CUDA_ARCH_LIST=" ".join(architectures),
        NVCC_APPEND_FLAGS="-Xptxas=-v --threads=1",
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    (folder / LOG).write_text(result.stdout + result.stderr)
