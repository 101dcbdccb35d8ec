"""The backends, in the order they are tried: records that know what keeps them from running.

The same sentence is a debug message when the automatic choice passes a backend over, and the error when that backend
was asked for by name.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from . import native

logger = logging.getLogger("icr_kernels")


@dataclass(frozen=True)
class Backend:
    """``obstacle(device_type)`` says why tensors of that device cannot be run here, or None. ``operators`` holds the
    five functions that `autograd` calls; the reference has none: PyTorch differentiates it."""

    name: str
    what: str
    devices: tuple[str, ...]
    obstacle: Callable[[str], str | None]
    operators: Any = None


def _cpu_obstacle(device: str) -> str | None:
    if device != "cpu":
        return f"backend 'cpu' runs tensors on cpu, got tensors on {device}"
    return native.LOAD_ERROR


def _reference_obstacle(device: str) -> str | None:
    return None


BACKENDS = (
    Backend("cpu", "C++, SIMD", ("cpu",), _cpu_obstacle, native),
    Backend("reference", "pure PyTorch", ("any",), _reference_obstacle),
)

BY_NAME = {backend.name: backend for backend in BACKENDS}


def choose(name: str | None, device: str) -> Backend:
    """The backend of that name, or the first that can run tensors of the device."""
    if name is not None:
        if name not in BY_NAME:
            raise ValueError(f"backend: expected one of {', '.join(BY_NAME)} or None, got {name!r}")
        reason = BY_NAME[name].obstacle(device)
        if reason is not None:
            raise RuntimeError(reason)
        return BY_NAME[name]
    for backend in BACKENDS:
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
