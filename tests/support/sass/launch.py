"""Launches of compiled kernels."""

import ctypes
from typing import Any

import numpy as np

from . import control, conversions, floats, integers, lanes, transfers  # noqa: F401, they register instructions
from .cubin import PARAMETERS, Kernel
from .machine import Machine
from .memory import Memory
from .operations import decoded
from .structs import Structs


def packed(structs: Structs, kernel: Kernel, arguments: tuple[Any, ...]) -> bytes:
    """The parameters of a kernel as they lie in its constant bank."""
    data = b""
    for kind, given in zip(kernel.parameters, arguments, strict=True):
        value = structs.made(kind, given)
        data += bytes(-len(data) % ctypes.alignment(value)) + bytes(value)
    assert len(data) == kernel.parameter_bytes, f"{kernel.name}: {len(data)} bytes, not {kernel.parameter_bytes}"
    return data


def run(
    structs: Structs, kernel: Kernel, memory: Memory, arguments: tuple[Any, ...], blocks: int, threads: int
) -> Machine:
    """Runs a kernel, with its arguments as mappings and numbers, over a memory that they point into."""
    variables = memory.reserve(kernel.globals_bytes)
    addresses = np.array([variables + at for at in kernel.globals_at], np.uint64).tobytes()
    banks = {0: bytes(PARAMETERS) + packed(structs, kernel, arguments), 2: kernel.tables, 4: addresses}
    machine = Machine([decoded(each) for each in kernel.code], memory, banks, kernel.shared_bytes)
    machine.launch(blocks, threads)
    return machine
