"""RMSNorm, alone and fused with the residual sum before it. (arXiv:1910.07467)"""

import mlx.core as mx

from tiny_llm.kernels.launch import Kernel, On, expect_array, expect_float
from tiny_llm.model.ops import rms_norm as rms_norm_plain

RMS_NORM = Kernel("rms_norm", "x weight eps rows rows_each", "out")
RESIDUAL_RMS_NORM = Kernel("residual_rms_norm", "x residual weight eps rows rows_each", "sum out")
MAX_THREADS, HELD = 1024, 4  # elements of a row that a thread holds, while the threads suffice
MAX_HELD = 16
GROUPS = 32  # from here on a group takes several rows, which share its copy of the weight


def shape_of_work(name: str, rows: int, width: int) -> tuple[int, int, int]:
    """(threads of a group, elements that each holds, rows of each group). Raises ValueError for a row too wide."""
    if not 1 <= width <= MAX_THREADS * MAX_HELD:
        raise ValueError(f"{name}: expected rows of 1 to {MAX_THREADS * MAX_HELD} elements, found {width}")
    threads = min(MAX_THREADS, -(-width // HELD // 32) * 32)
    return threads, -(-width // threads), max(1, min(GROUPS, rows // GROUPS))


def rms_norm(x: mx.array, weight: mx.array, eps: float, on: On = None) -> mx.array:
    """x / √(mean(x²) + eps) · weight over the last axis, in float32. x (rows, D), weight (D,) of one dtype.

    Reads x once and the weight once for each threadgroup, writes the result once. A threadgroup takes one row, and
    up to 32 where there are many. Raises ValueError for other shapes, and for D over 16,384.
    """
    expect_float("rms_norm x", x)
    expect_array("rms_norm x", x, (None, None))
    rows, width = x.shape
    expect_array("rms_norm weight", weight, (width,), x.dtype)
    threads, held, rows_each = shape_of_work("rms_norm", rows, width)
    return RMS_NORM(
        *(x, weight, mx.array(eps, mx.float32), rows, rows_each),
        plain=lambda: [rms_norm_plain(x, weight, eps)],
        like=[(x.shape, x.dtype)],
        grid=(max(1, -(-rows // rows_each)) * threads, 1, 1),
        threadgroup=(threads, 1, 1),
        template={"T": x.dtype, "D": width, "THREADS": threads, "EACH": held},
        on=on,
    )[0]


def residual_rms_norm(
    x: mx.array, residual: mx.array, weight: mx.array, eps: float, on: On = None
) -> tuple[mx.array, mx.array]:
    """(x + residual, the RMSNorm of that sum). x, residual (rows, D), weight (D,) of one dtype.

    Reads each once (the weight once for each threadgroup), writes both results once: the two operations apart would
    read the sum again. Raises ValueError for other shapes, and for D over 16,384.
    """
    expect_float("residual_rms_norm x", x)
    expect_array("residual_rms_norm x", x, (None, None))
    rows, width = x.shape
    expect_array("residual_rms_norm residual", residual, x.shape, x.dtype)
    expect_array("residual_rms_norm weight", weight, (width,), x.dtype)
    threads, held, rows_each = shape_of_work("residual_rms_norm", rows, width)
    total, out = RESIDUAL_RMS_NORM(
        *(x, residual, weight, mx.array(eps, mx.float32), rows, rows_each),
        plain=lambda: [x + residual, rms_norm_plain(x + residual, weight, eps)],
        like=[(x.shape, x.dtype), (x.shape, x.dtype)],
        grid=(max(1, -(-rows // rows_each)) * threads, 1, 1),
        threadgroup=(threads, 1, 1),
        template={"T": x.dtype, "D": width, "THREADS": threads, "EACH": held},
        on=on,
    )
    return total, out
