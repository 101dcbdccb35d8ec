"""Builds the extensions icr_kernels._C (C++, CPU) and icr_kernels._C_cuda (CUDA), which serve any torch, and
icr_kernels._C_autograd_*, which serves the torch that builds it: its version is in the name, and `icr_kernels.builds`
imports only what has the name of the torch that runs.

Without a C++ compiler it installs without any, without nvcc or with a torch without CUDA it installs without the
second, and says so. Whether a GPU is present makes no difference. ICR_KERNELS_CUDA=0 leaves the second out;
ICR_KERNELS_CUDA=1 builds it or fails, with a torch without CUDA too. TORCH_CUDA_ARCH_LIST chooses the GPU
architectures.
"""

import itertools
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build import build

NEEDED = "pip install 'setuptools>=77' ninja 'pybind11>=2.12' 'torch>=2.10'"
try:
    import pybind11
    import torch
    from torch.utils import cpp_extension
except ImportError as error:
    raise SystemExit(f"icr_kernels: without build isolation the build needs {error.name}: {NEEDED}") from None
for module, oldest in ((setuptools, (77,)), (pybind11, (2, 12)), (torch, (2, 10))):
    if tuple(map(int, re.findall(r"\d+", module.__version__)[: len(oldest)])) < oldest:
        wanted = f"{module.__name__} {'.'.join(map(str, oldest))} or newer"
        raise SystemExit(f"icr_kernels: the build needs {wanted}, got {module.__version__}: {NEEDED}")

# The oldest torch whose stable ABI the extensions are built against, whatever torch builds them.
OLDEST_TORCH = "0x020a000000000000"

ARCHITECTURES = "8.0 8.6 8.9 9.0 10.0 12.0"

CPU_SOURCES = ["csrc/ops.cpp", *sorted(str(path) for path in Path("csrc/cpu").glob("*.cpp"))]
CUDA_SOURCES = sorted(str(path) for path in Path("csrc/cuda").glob("*.cpp"))
KERNEL_FLAGS = ["-std=c++17", "-O3"]
# Some without multiply-adds that the compiler fuses as it likes, differently from kernel to kernel. A pair has the same
# value, to the bit, in the matrix, as the best of its row and as the best of its column; an assignment has PyTorch's.
KERNELS = {
    "csrc/cuda/kernels.cu": [],
    "csrc/cuda/pairwise.cu": ["-fmad=false"],
    "csrc/cuda/selection.cu": ["-fmad=false"],
    "csrc/cuda/assignment.cu": ["-fmad=false"],
    "csrc/cuda/detection.cu": [],
}
HEADERS = sorted(str(path) for path in Path("csrc").rglob("*.h"))
KERNEL_HEADERS = [path for path in HEADERS if not path.startswith("csrc/cpu/")]

PLAIN_FLAGS = ["-O3", "-g0", "-fvisibility=hidden", "-Wall"]
COMPILER_FLAGS = ["-std=c++17", *PLAIN_FLAGS, f"-DTORCH_TARGET_VERSION={OLDEST_TORCH}"]
CPU_FLAGS = [
    # Without these two no loop with a comparison is vectorised.
    "-fno-math-errno",
    "-fno-trapping-math",
    # The losses are long chains of dependent operations: scheduling them is worth a tenth of the time.
    "-fschedule-insns",
    "-fsched-pressure",
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",  # GCC 12 sees it in its own intrinsics
]
LAUNCHERS = ("ccache", "sccache", "distcc", "icecc")
LINKER_FLAGS = ["-Wl,--exclude-libs,ALL"] if sys.platform == "linux" else []


def say(message: str) -> None:
    print(f"icr_kernels: {message}")


def compiler() -> list[str]:
    """The C++ compiler that is used, with its launcher and options, as CXX names them; empty where there is none."""
    chosen = os.environ.get("CXX", "").split()
    for words in [chosen] if chosen else [["c++"], ["g++"], ["clang++"]]:
        if all(shutil.which(word) for word in (words[0], without_launcher(words)[0])):
            return words
    if chosen:
        raise SystemExit(f"CXX: expected a C++ compiler that is on the path, got {os.environ['CXX']!r}")
    return []


def without_launcher(words: list[str]) -> list[str]:
    return words[1:] if len(words) > 1 and Path(words[0]).name in LAUNCHERS else words


def nvcc() -> str | None:
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for candidate in (*(str(home / "bin" / "nvcc") for home in homes), "nvcc", "/usr/local/cuda/bin/nvcc"):
        if found := shutil.which(candidate):
            return found
    return None


def ask(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return result.stdout + result.stderr


def architecture_flags(nvcc: str) -> tuple[list[str], list[str]]:
    """Flags for the architectures of TORCH_CUDA_ARCH_LIST ("8.0 9.0+PTX", "Hopper"), which torch reads, or for those of
    the list above that this nvcc knows with PTX of the newest; and what the build then has code for."""
    chosen = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if not chosen:
        known = ask(nvcc, "--list-gpu-code").split()
        chosen = " ".join(a for a in ARCHITECTURES.split() if f"sm_{a.replace('.', '')}" in known) + "+PTX"
        os.environ["TORCH_CUDA_ARCH_LIST"] = chosen
    try:
        flags = cpp_extension._get_cuda_arch_flags()
    except (ValueError, IndexError):  # the second: "native" where there is no GPU
        raise SystemExit(
            f"TORCH_CUDA_ARCH_LIST: expected versions such as '8.0 9.0+PTX' or names such as 'Hopper', got {chosen!r}"
        ) from None
    names = (flag.rpartition("=")[2] for flag in flags)
    return flags, sorted(names, key=lambda name: (int(re.sub(r"\D", "", name)), name.startswith("compute")))


def cpu_extension() -> Extension:
    say(f"building _C with {' '.join(compiler())}, torch {torch.__version__}, pybind11 {pybind11.__version__}")
    return cpp_extension.CppExtension(
        "icr_kernels._C",
        CPU_SOURCES,
        depends=HEADERS,
        include_dirs=[pybind11.get_include()],
        extra_compile_args={"cxx": COMPILER_FLAGS + CPU_FLAGS},
        extra_link_args=LINKER_FLAGS,
    )


# Of this torch and no other.
AUTOGRAD = f"_C_autograd_{re.sub('[^0-9A-Za-z]', '_', torch.__version__)}"


def autograd_extension() -> Extension:
    """Against all of libtorch, whose headers are written in C++20."""
    return cpp_extension.CppExtension(
        f"icr_kernels.{AUTOGRAD}",
        ["csrc/autograd.cpp"],
        depends=["csrc/direct.h", "csrc/task.h"],
        extra_compile_args={"cxx": ["-std=c++20", *PLAIN_FLAGS]},
        extra_link_args=LINKER_FLAGS,
    )


def cuda_extension() -> Extension | None:
    wish = os.environ.get("ICR_KERNELS_CUDA", "")
    found = nvcc()
    if wish == "0" or (wish != "1" and torch.version.cuda is None):
        say("no CUDA kernels: " + ("ICR_KERNELS_CUDA=0" if wish == "0" else "this torch was built without CUDA"))
        return None
    if found is None:
        reason = "no nvcc found in CUDA_HOME, on the path or in /usr/local/cuda"
        if wish == "1":
            raise SystemExit(f"ICR_KERNELS_CUDA=1: {reason}")
        say(f"no CUDA kernels: {reason}; CUDA tensors will run through Triton")
        return None
    version = re.search(r"V(\d+)\.(\d+)\.\d+", ask(found, "--version"))
    assert version is not None
    if torch.version.cuda is not None and int(torch.version.cuda.partition(".")[0]) < int(version[1]):
        say(
            f"note: kernels of nvcc {version[1]} need a driver for CUDA {version[1]}, newer than this torch does (CUDA "
            f"{torch.version.cuda}); another nvcc can be named by CUDA_HOME"
        )
    top = re.search(r"TOP=(\S+)", ask(found, "--dryrun", "-x", "cu", "-E", os.devnull))
    assert top is not None
    toolkit = Path(top[1])
    flags, names = architecture_flags(found)
    say(f"building _C_cuda with nvcc {version[0]} for {', '.join(names)}")
    extension = cpp_extension.CppExtension(
        "icr_kernels._C_cuda",
        CUDA_SOURCES,
        depends=[*HEADERS, *KERNELS],
        include_dirs=[pybind11.get_include(), str(toolkit / "include")],
        library_dirs=[str(toolkit / "lib64"), str(toolkit / "lib")],
        # The runtime within: one file serves whatever CUDA version torch was built with.
        libraries=["cudart_static", "dl", "rt", "pthread"],
        define_macros=[
            ("USE_CUDA", None),
            ("ICR_KERNELS_NVCC", f'"{version[0][1:]}"'),
            ("ICR_KERNELS_ARCHITECTURES", ",".join(f'"{name}"' for name in names)),
        ],
        extra_compile_args={"cxx": COMPILER_FLAGS},
        # A CUDA torch, which knows the current stream, is found through libtorch, whatever torch this is built beside.
        extra_link_args=[*LINKER_FLAGS, "-Wl,--no-as-needed", "-ltorch"],
    )
    extension.nvcc = [found, *flags]
    if os.environ.get("CXX"):
        extension.nvcc += ["-ccbin", without_launcher(compiler())[0]]
    return extension


class Build(cpp_extension.BuildExtension):
    """Compiles the kernels first: they know nothing of torch, so nvcc need not."""

    def finalize_options(self):
        super().finalize_options()
        if self.editable_mode:
            # Not the folder that setuptools throws away afterwards: what has not changed need not be compiled again.
            ordinary = build(self.distribution)
            ordinary.ensure_finalized()
            self.build_temp = ordinary.build_temp

    def build_extensions(self):
        self.remove_those_of_another_torch()
        for extension in self.extensions:
            if hasattr(extension, "nvcc"):
                with ThreadPoolExecutor() as pool:
                    results = pool.map(self.compile_kernels, itertools.repeat(extension.nvcc), KERNELS)
                    extension.extra_objects = list(results)
        super().build_extensions()

    def remove_those_of_another_torch(self):
        """What an earlier build has left here calls the other extensions, which are about to be new."""
        is_here = self.inplace or self.editable_mode
        for folder in (Path(self.build_lib), *([Path()] if is_here else [])):
            for path in folder.glob("icr_kernels/_C_autograd_*"):
                if path.name.partition(".")[0] != AUTOGRAD:
                    path.unlink()

    def compile_kernels(self, nvcc: list[str], source: str) -> str:
        output = Path(self.build_temp).absolute() / Path(source).with_suffix(".o")
        output.parent.mkdir(parents=True, exist_ok=True)
        record = output.with_suffix(".command")
        command = [
            *nvcc,
            *(*KERNEL_FLAGS, *KERNELS[source], "--threads", "0", "-Xcompiler", "-fPIC,-fvisibility=hidden"),
            *("-c", source, "-o", str(output)),
        ]
        newest = max(Path(path).stat().st_mtime for path in (source, *KERNEL_HEADERS))
        if output.exists() and output.stat().st_mtime > newest and record.read_text() == " ".join(command):
            return str(output)
        say("compiling the CUDA kernels, " + " ".join(command))
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(result.stdout, end="")  # at once, because others are being compiled too
        result.check_returncode()
        record.write_text(" ".join(command))
        return str(output)


def extensions() -> list[Extension]:
    found = compiler()
    if not found:
        say("no C++ compiler (CXX, c++, g++, clang++) found; installing without the compiled kernels.")
        return []
    if os.environ.get("CXX") and hasattr(cpp_extension, "_wrap_compiler"):
        # From 2.13 on torch takes CXX for one word and puts a launcher before it by itself.
        os.environ["CXX"] = " ".join(without_launcher(found))
    cuda = cuda_extension()
    return [cpu_extension(), autograd_extension(), *([] if cuda is None else [cuda])]


setup(ext_modules=extensions(), cmdclass={"build_ext": Build.with_options(no_python_abi_suffix=False)})
