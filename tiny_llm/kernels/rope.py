"""Rotary position embeddings. (arXiv:2104.09864)"""

import mlx.core as mx

from tiny_llm.kernels.launch import Kernel, On, expect_array, expect_float

ROPE = Kernel("rope", "x cosine sine tokens heads", "out")
PAIRS, TOKENS = 64, 4  # threads of a group in each direction


def rope_plain(x: mx.array, cosine: mx.array, sine: mx.array, halves: bool = True) -> mx.array:
    """The twin: both pairings, as slices."""
    a, b = mx.split(x.astype(mx.float32), 2, axis=-1) if halves else (x[..., ::2], x[..., 1::2])
    cos, sin = cosine[:, None], sine[:, None]  # (T, 1, D/2)
    left, right = a * cos - b * sin, b * cos + a * sin
    turned = mx.concatenate([left, right], axis=-1) if halves else mx.stack([left, right], axis=-1).reshape(x.shape)
    return turned.astype(x.dtype)


def rope(x: mx.array, cosine: mx.array, sine: mx.array, halves: bool = True, on: On = None) -> mx.array:
    """Turn each pair of x (T, H, D) by its angle, in float32. cosine and sine (T, D/2) float32; result like x.

    `halves`: a pair is (i, i + D/2), as in the Hugging Face weights; else (2i, 2i + 1). Reads and writes everything
    once; one thread for each pair of a token, which goes over the heads. Raises ValueError for other shapes.
    """
    expect_float("rope x", x)
    expect_array("rope x", x, (None, None, None))
    tokens, heads, dim = x.shape
    if dim % 2 or not dim:
        raise ValueError(f"rope: pairs need an even number of dimensions, found {dim}")
    expect_array("rope cosine", cosine, (tokens, dim // 2), mx.float32)
    expect_array("rope sine", sine, (tokens, dim // 2), mx.float32)
    return ROPE(
        *(x, cosine, sine, tokens, heads),
        plain=lambda: [rope_plain(x, cosine, sine, halves)],
        like=[(x.shape, x.dtype)],
        grid=(dim // 2, max(1, tokens), 1),
        threadgroup=(PAIRS, TOKENS, 1),
        template={"T": x.dtype, "D": dim, "HALVES": halves},
        on=on,
    )[0]
