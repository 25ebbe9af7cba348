"""Kernels that go element by element: nothing is shared between threads."""

import mlx.core as mx

from tiny_llm.kernels.launch import Kernel, On, expect_array, expect_float
from tiny_llm.model.ops import swiglu as swiglu_plain

AXPBY = Kernel("axpby", "x y a b n", "out")
SWIGLU = Kernel("swiglu", "gate_up width n", "out")
THREADS = 256


def axpby_plain(x: mx.array, y: mx.array, a: float, b: float) -> mx.array:
    return (a * x.astype(mx.float32) + b * y.astype(mx.float32)).astype(x.dtype)


def axpby(x: mx.array, y: mx.array, a: float, b: float, on: On = None) -> mx.array:
    """a x + b y, computed in float32. x, y and the result have one shape and dtype.

    Reads x and y once, writes the result once; one thread for each element. Raises ValueError for other shapes.
    """
    expect_float("axpby x", x)
    expect_array("axpby y", y, x.shape, x.dtype)
    return AXPBY(
        *(x.reshape(-1), y.reshape(-1), mx.array(a, mx.float32), mx.array(b, mx.float32), x.size),
        plain=lambda: [axpby_plain(x, y, a, b).reshape(-1)],
        like=[((x.size,), x.dtype)],
        grid=(max(1, x.size), 1, 1),
        threadgroup=(THREADS, 1, 1),
        template={"T": x.dtype},
        on=on,
    )[0].reshape(x.shape)


def swiglu(gate_up: mx.array, on: On = None) -> mx.array:
    """silu(gate) · up. gate_up (T, 2 I) holds gate and up side by side; result (T, I). (arXiv:2002.05202)

    Reads and writes everything once; one thread for each element of the result. Raises ValueError for an odd width.
    """
    expect_float("swiglu gate_up", gate_up)
    expect_array("swiglu gate_up", gate_up, (None, None))
    rows, both = gate_up.shape
    if both % 2:
        raise ValueError(f"swiglu: gate and up make an even width, found {gate_up.shape}")
    width = both // 2
    return SWIGLU(
        *(gate_up, width, rows * width),
        plain=lambda: [swiglu_plain(gate_up.astype(mx.float32)).astype(gate_up.dtype)],
        like=[((rows, width), gate_up.dtype)],
        grid=(max(1, rows * width), 1, 1),
        threadgroup=(THREADS, 1, 1),
        template={"T": gate_up.dtype},
        on=on,
    )[0]
