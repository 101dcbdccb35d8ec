"""Memory of a GPU, global or shared, as bytes that know whether they belong to anybody."""

from typing import Any

import numpy as np

# Where global memory begins: far from what a wrong offset would give.
GLOBAL = 0x7F00_0000_0000

Array = Any


class Fault(Exception):
    """The kernel did what a GPU would stop it for."""


class Memory:
    """Bytes at addresses, with gaps between what belongs to nobody: whoever reads there is told."""

    def __init__(self, base: int, size: int):
        self.base, self.used = base, 0
        self.bytes = np.zeros(size, np.uint8)
        self.is_there = np.zeros(size, bool)

    def reserve(self, size: int) -> int:
        """The address of so many new bytes."""
        at = self.used
        self.used += -(-size // 256) * 256 + 256
        if self.used > len(self.bytes):
            raise MemoryError(f"{size} bytes more than there are")
        self.is_there[at : at + size] = True
        return self.base + at

    def put(self, values: np.ndarray) -> int:
        """The address of a copy of them."""
        address = self.reserve(values.nbytes)
        self.view(address, values.nbytes)[:] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        return address

    def view(self, address: int, size: int) -> np.ndarray:
        return self.bytes[address - self.base : address - self.base + size]

    def places(self, address: Array, size: int) -> np.ndarray:
        at = np.asarray(address, np.uint64).astype(np.int64) - self.base
        if (at % size).any():
            raise Fault(f"an address of {size} bytes is not their multiple")
        is_inside = (at >= 0).all() and (at + size <= len(self.bytes)).all()
        if not is_inside or not (self.is_there[at] & self.is_there[at + size - 1]).all():
            raise Fault(f"{size} bytes at {hex(int(np.min(at)) + self.base)} or beyond belong to nobody")
        return at // size

    def load(self, address: Array, dtype: Any) -> np.ndarray:
        return self.bytes.view(dtype)[self.places(address, np.dtype(dtype).itemsize)]

    def store(self, address: Array, values: np.ndarray) -> None:
        self.bytes.view(values.dtype)[self.places(address, values.itemsize)] = values

    def load_words(self, address: Array, words: int) -> np.ndarray:
        return self.bytes.view(np.uint32).reshape(-1, words)[self.places(address, 4 * words)]

    def store_words(self, address: Array, values: np.ndarray) -> None:
        words = values.shape[-1]
        self.bytes.view(np.uint32).reshape(-1, words)[self.places(address, 4 * words)] = values
