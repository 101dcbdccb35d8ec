"""The backend `emulated`: the CUDA sources on an emulated device (`cpp/emulation`), over CPU tensors.

Every test that runs over the backends runs over it as well, so the kernels are held to all that the others are.
"""

import shutil
from pathlib import Path

from torch.utils.cpp_extension import load

from icr_kernels import backends, builds, operators

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "support" / "cpp" / "emulation"
NAME = "emulated"


def register():
    """Compiles the emulation where that is out of date, makes the backend known, and returns its device."""
    import pybind11

    build = ROOT / "build" / "emulated"
    build.mkdir(parents=True, exist_ok=True)
    family = operators.Operators(f"{NAME}_", defers_count=("cpu",))
    module = load(
        name="_emulated",
        sources=[str(FOLDER / "operators.cpp"), str(FOLDER / "emulation.cpp")],
        extra_include_paths=[str(FOLDER), pybind11.get_include()],
        extra_cflags=["-O1", "-g1", "-fdata-sections", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"],
        extra_ldflags=[f"-Wl,-T,{FOLDER / 'shared.ld'}"],
        build_directory=str(build),
    )
    if builds.autograd_build is not None:
        builds.autograd_build.add_backend(NAME, False, False, module.direct)
    backends.BY_NAME[NAME] = backends.Backend(NAME, "CUDA emulated", ("cpu",), _obstacle, family)
    return module


def _obstacle(device: str) -> str | None:
    return None if device == "cpu" else f"backend {NAME!r} runs tensors on cpu, got tensors on {device}"


def compiler() -> str | None:
    """What the emulation is compiled with."""
    return shutil.which("g++")
