"""`python -m icr_kernels info`: what is installed, what can run, and what keeps the rest from it."""

import importlib.metadata
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from . import __version__, builds
from .backends import BACKENDS


def report() -> str:
    """Versions, machine, backends and the compiled extension, one fact a line."""
    facts = [*_versions(), *_machine(), *_extensions(), *_backends()]
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in facts)


def _versions() -> Iterator[tuple[str, str]]:
    yield "icr_kernels", __version__
    yield "python", platform.python_version()
    yield "torch", torch.__version__
    yield "triton", _installed("triton") or "not installed"


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine() -> Iterator[tuple[str, str]]:
    yield "cpu", f"{cpu_name()}, {torch.get_num_threads()} threads used by torch"
    yield "gpu", torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use"


def cpu_name() -> str:
    """The processor's name; with its family and model where a virtual machine calls every generation by one name."""
    cpuinfo = Path("/proc/cpuinfo")
    first = cpuinfo.read_text().partition("\n\n")[0] if cpuinfo.exists() else ""
    facts = {name.strip(): text.strip() for name, _, text in (line.partition(":") for line in first.splitlines())}
    name = facts.get("model name") or platform.processor() or platform.machine()
    if not re.search(r"\d", name) and "cpu family" in facts and "model" in facts:
        name += f" (family {facts['cpu family']}, model {facts['model']})"
    return name


def _extensions() -> Iterator[tuple[str, str]]:
    build = builds.cpu_build
    if build is None:
        yield "C++ extension", f"none: {builds.CPU_ERROR}"
    else:
        yield "C++ extension", f"compiled with {build.compiler()}"
        yield "  instruction sets", f"{', '.join(build.instruction_sets())}; in use here: {build.instruction_set()}"
        yield "  losses", ", ".join(name for name, _ in build.losses())
        yield "  penalties", ", ".join(name for name, _ in build.penalties())
    build = builds.cuda_build
    if build is None:
        yield "CUDA extension", f"none: {builds.CUDA_ERROR}"
    else:
        yield "CUDA extension", f"compiled with nvcc {build.compiler()}"
        yield "  architectures", ", ".join(build.architectures())
    yield "autograd extension", f"no: {builds.AUTOGRAD_ERROR}" if builds.autograd_build is None else "in use"


def _backends() -> Iterator[tuple[str, str]]:
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    for backend in BACKENDS:
        runs_on = [device for device in devices if backend.obstacle(device) is None]
        if runs_on:
            state = f"yes, on {' and '.join(runs_on)}"
        else:
            state = f"no: {backend.obstacle(backend.devices[0]) or 'torch can use no GPU'}"
        yield f"backend {backend.name}", f"{state} ({backend.what})"
