"""Softmax in one pass. (arXiv:1805.02867)"""

import mlx.core as mx

from tiny_llm.kernels.launch import Kernel, On, expect_array, expect_float
from tiny_llm.model.ops import softmax as softmax_plain

SOFTMAX = Kernel("softmax", "x width", "out")
MAX_THREADS, HELD, MAX_HELD = 1024, 4, 16


def softmax(x: mx.array, on: On = None) -> mx.array:
    """exp(x - max) / Σ exp(x - max) over the last axis, in float32. x (rows, width), result like x.

    One threadgroup for each row. Reads a row once where it is at most 16,384 wide, twice beyond; writes it once.
    Raises ValueError for other shapes and for empty rows.
    """
    expect_float("softmax x", x)
    expect_array("softmax x", x, (None, None))
    rows, width = x.shape
    if not width:
        raise ValueError(f"softmax: expected rows of at least one element, found {x.shape}")
    threads = min(MAX_THREADS, -(-width // HELD // 32) * 32)
    held = -(-width // threads)
    return SOFTMAX(
        *(x, width),
        plain=lambda: [softmax_plain(x.astype(mx.float32)).astype(x.dtype)],
        like=[(x.shape, x.dtype)],
        grid=(max(1, rows) * threads, 1, 1),
        threadgroup=(threads, 1, 1),
        template={"T": x.dtype, "THREADS": threads, "EACH": held if held <= MAX_HELD else 0},
        on=on,
    )[0]
