"""What the system does with memory that a training step frees."""

import ctypes
import sys


def keep_memory() -> None:
    """Have glibc keep freed memory: giving it back and taking it again costs as much as the arithmetic of a step."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap never shrinks
        libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD at its limit: large arrays live in the heap, too
