"""Builds the extension icr_kernels._C; where there is no C++ compiler it installs without, and says so."""

import os
import shutil
from pathlib import Path

import torch
from setuptools import Extension, setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

# The oldest torch whose stable ABI the extension is built against, whatever torch builds it.
OLDEST_TORCH = "0x020a000000000000"

SOURCES = ["csrc/ops.cpp", *sorted(str(path) for path in Path("csrc/cpu").glob("*.cpp"))]
HEADERS = sorted(str(path) for path in Path("csrc").rglob("*.h"))


def compiler() -> str | None:
    """The C++ compiler that would be used, or None."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name.split()[0]):
            return name
    return None


def extensions() -> list[Extension]:
    if compiler() is None:
        print("icr_kernels: no C++ compiler (CXX, c++, g++, clang++) found; installing without the compiled kernels.")
        return []
    import pybind11

    flags = [
        "-std=c++17",
        "-O3",
        # Without these two no loop with a comparison is vectorised.
        "-fno-math-errno",
        "-fno-trapping-math",
        # The losses are long chains of dependent operations: scheduling them is worth a tenth of the time.
        "-fschedule-insns",
        "-fsched-pressure",
        "-g0",
        "-fvisibility=hidden",
        "-Wall",
        "-Wno-psabi",
        "-Wno-maybe-uninitialized",  # GCC 12 sees it in its own intrinsics
        f"-DTORCH_TARGET_VERSION={OLDEST_TORCH}",
    ]
    print(f"icr_kernels: building _C with {compiler()}, torch {torch.__version__}, pybind11 {pybind11.__version__}")
    return [
        CppExtension(
            "icr_kernels._C",
            SOURCES,
            depends=HEADERS,
            include_dirs=[pybind11.get_include()],
            extra_compile_args={"cxx": flags},
            extra_link_args=["-Wl,--exclude-libs,ALL"] if os.uname().sysname == "Linux" else [],
        )
    ]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExtension.with_options(no_python_abi_suffix=False)})
