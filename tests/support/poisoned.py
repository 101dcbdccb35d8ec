"""Where the C library can do it, memory comes poisoned: an element that a kernel forgets to write is this byte, and not
the 0 or the right result of an earlier call that it might be by chance. `test_determinism.py` holds that this reaches
torch."""

import ctypes
import platform

POISON = 0x7F
M_PERTURB, M_MMAP_THRESHOLD = -6, -3


def poison_memory() -> None:
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_PERTURB, POISON ^ 0xFF)
        # Large blocks would come from the kernel as zeros otherwise.
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
