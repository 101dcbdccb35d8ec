"""Which implementations of the operators are here: the compiled extensions and Triton.

One that is missing is no error: `CPU_ERROR`, `CUDA_ERROR` or `TRITON_ERROR` says why, and another backend runs. Without
the extension of autograd (`AUTOGRAD_ERROR`) the same backends run, with more to do around them.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import torch

_NO_CUDA = "this torch was built without CUDA"


def _source_tree() -> str | None:
    """Advice, where what was imported is the source tree and not an installation, an editable one included: only there
    has the folder triton_kernels another place."""
    if importlib.util.find_spec("icr_kernels.triton_kernels") is not None:
        return None
    return (
        f"{Path(__file__).parents[1]} is the source tree: start Python in another folder to import an installed "
        "icr_kernels, or install the tree itself by `pip install --no-build-isolation --editable .`, with a C++17 "
        "compiler (GCC or Clang)"
    )


def _load(name: str, advice: str) -> tuple[Any, str | None]:
    try:
        return importlib.import_module(f"icr_kernels.{name}"), None
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError):
            advice = _source_tree() or advice
        return None, f"the compiled extension icr_kernels.{name} is not usable ({error}); {advice}"


def _load_cuda() -> tuple[Any, str | None]:
    if torch.version.cuda is None:
        return None, _NO_CUDA
    build, error = _load(
        "_C_cuda", "install the CUDA toolkit (nvcc) and reinstall icr_kernels without build isolation to build it"
    )
    return build, error or _driver_error(*build.cuda_versions())


def _driver_error(driver: int, runtime: int) -> str | None:
    """Versions as CUDA counts them: 12080 is 12.8. The driver's is 0 where there is none, and so no GPU either."""
    if driver == 0 or driver // 1000 >= runtime // 1000:
        return None
    return (
        f"the CUDA kernels were built with CUDA {runtime // 1000} and need a driver for it, got one for CUDA "
        f"{driver // 1000}.{driver % 1000 // 10}; update the driver, or build icr_kernels with an older nvcc"
    )


def _load_autograd() -> tuple[Any, str | None]:
    """That of this very torch: another could not even be loaded safely."""
    prefix = "_C_autograd_"
    name = prefix + re.sub("[^0-9A-Za-z]", "_", torch.__version__)
    if importlib.util.find_spec(f"icr_kernels.{name}") is not None:
        return _load(name, "reinstall icr_kernels")
    others = sorted(path.name.split(".")[0] for path in Path(__file__).parent.glob(f"{prefix}*.so"))
    found = f"there is {', '.join(others)}" if others else "there is none"
    return None, (
        f"{name} is missing, {found}: reinstall icr_kernels without build isolation, beside torch {torch.__version__}, "
        "for calls with less overhead"
    )


cpu_build, CPU_ERROR = _load("_C", "install a C++17 compiler (GCC or Clang) and reinstall icr_kernels to build it")
cuda_build, CUDA_ERROR = _load_cuda()
autograd_build, AUTOGRAD_ERROR = _load_autograd()


def triton_interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors: slow, for debugging."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


# Earlier versions lack what the kernels are written with.
_OLDEST_TRITON = (3, 4)


def _triton_error() -> str | None:
    oldest = ".".join(map(str, _OLDEST_TRITON))
    if torch.version.hip is not None:
        return "the Triton kernels are for NVIDIA GPUs, this torch was built for AMD's"
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        if torch.version.cuda is None and not triton_interpreted():
            return _NO_CUDA
        return f"Triton is not installed; `pip install triton` (at least {oldest})"
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < _OLDEST_TRITON:
        return f"Triton {version} is too old; the kernels need at least {oldest}"
    return _source_tree()


TRITON_ERROR = _triton_error()
