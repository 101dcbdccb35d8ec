"""The CUDA extension, which takes minutes to compile, for every test that is about its kernels."""

import os
import shutil
from pathlib import Path

import filelock
import pytest

import cuda_build
from sass import cubin


@pytest.fixture(scope="session")
def cuda_extension(tmp_path_factory) -> Path:
    """The folder of one build for an H100, by whichever process of the tests asks first."""
    if cubin.nvcc() is None:
        pytest.skip("no nvcc to compile with")
    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cuda"
    with filelock.FileLock(f"{shared}.lock"):
        if not (shared / cuda_build.LOG).exists():
            shutil.rmtree(shared, ignore_errors=True)
            cuda_build.build(shared, [cubin.CAPABILITY])
    return shared
