"""The backends, in the order they are tried: records that know what keeps them from running.

The same sentence is a debug message when the automatic choice passes a backend over, and the error when that backend
was asked for by name.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import builds, operators
from .operators import Operators

logger = logging.getLogger("icr_kernels")


@dataclass(frozen=True)
class Backend:
    """``obstacle(device_type)`` says why tensors of that device cannot be run here, or None. ``devices`` are those
    whose tensors it is chosen for unasked. The reference has no ``operators``: PyTorch differentiates it."""

    name: str
    what: str
    devices: tuple[str, ...]
    obstacle: Callable[[str], str | None]
    operators: Operators | None = None


def _wrong_device(name: str, runs: str, device: str) -> str | None:
    return None if device == runs else f"backend {name!r} runs tensors on {runs}, got tensors on {device}"


def _cuda_obstacle(device: str) -> str | None:
    return _wrong_device("cuda", "cuda", device) or builds.CUDA_ERROR


def _triton_obstacle(device: str) -> str | None:
    runs = "cpu" if builds.triton_interpreted() else "cuda"
    return _wrong_device("triton", runs, device) or builds.TRITON_ERROR


def _cpu_obstacle(device: str) -> str | None:
    return _wrong_device("cpu", "cpu", device) or builds.CPU_ERROR


def _reference_obstacle(device: str) -> str | None:
    return None


BACKENDS = (
    Backend("cuda", "hand-written CUDA", ("cuda",), _cuda_obstacle, operators.compiled),
    Backend("triton", "Triton", ("cuda",), _triton_obstacle, operators.triton),
    Backend("cpu", "C++, SIMD", ("cpu",), _cpu_obstacle, operators.compiled),
    Backend("reference", "pure PyTorch", ("any",), _reference_obstacle),
)

BY_NAME = {backend.name: backend for backend in BACKENDS}

_BY_DEVICE = {
    device: tuple(backend for backend in BACKENDS if device in backend.devices or "any" in backend.devices)
    for device in ("cpu", "cuda")
}


def device_type(tensor: torch.Tensor) -> str:
    """``tensor.device.type``, whose string takes longer to make than many a check."""
    return "cpu" if tensor.is_cpu else "cuda" if tensor.is_cuda else tensor.device.type


def named(name: str) -> Backend:
    """The backend of that name, whether or not it can run here."""
    if not isinstance(name, str) or name not in BY_NAME:
        raise ValueError(f"backend: expected one of {', '.join(BY_NAME)} or None, got {name!r}")
    return BY_NAME[name]


def choose(name: str | None, device: str) -> Backend:
    """The backend of that name, or the first that can run tensors of the device."""
    if name is not None:
        backend = named(name)
        reason = backend.obstacle(device)
        if reason is not None:
            raise RuntimeError(reason)
        return backend
    for backend in _BY_DEVICE.get(device, (BY_NAME["reference"],)):
        reason = backend.obstacle(device)
        if reason is None:
            break
        if not torch.compiler.is_compiling():
            logger.debug("passing over backend %r: %s", backend.name, reason)
    return backend


def available_backends() -> list[str]:
    """Names of the backends that can run on this machine, in the order they are tried."""
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return [backend.name for backend in BACKENDS if any(backend.obstacle(device) is None for device in devices)]


def backend_for(tensor_or_device: torch.Tensor | torch.device | str) -> str:
    """Name of the backend that a call without ``backend=`` takes for a tensor, or for tensors on a device."""
    if isinstance(tensor_or_device, torch.Tensor):
        tensor_or_device = tensor_or_device.device
    return choose(None, torch.device(tensor_or_device).type).name
