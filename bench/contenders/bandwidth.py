"""How fast this machine reads memory: the bound of every decoded token."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

MEGABYTES = 512  # far more than any processor's cache
ROUNDS = 8


def bandwidth(threads: int) -> float:
    """Return the GB/s at which some threads read one large array together, the best of some rounds."""
    parts = np.array_split(np.ones(MEGABYTES << 17, np.int64), threads)  # 2^17 numbers of 8 bytes are a megabyte
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(ROUNDS):
            begin = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, parts))  # NumPy lets go of the interpreter's lock meanwhile
            best = max(best, (MEGABYTES << 20) / (time.perf_counter() - begin) / 1e9)
    return best
