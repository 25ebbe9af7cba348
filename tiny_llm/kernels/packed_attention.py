"""`decode_attention` over keys and values that are packed to 4 or 8 bits a number, as `mx.quantize` packs rows."""

import mlx.core as mx

from tiny_llm.kernels.decode_attention import (
    CHUNK,
    CHUNK_OF_HEAD,
    SIMDGROUPS,
    Parts,
    check_heads,
    merge_attention,
    parts_like,
    parts_plain,
    splits_of,
)
from tiny_llm.kernels.launch import Kernel, On, expect, expect_float

PACKED_ATTENTION = Kernel(
    "packed_attention", "q k k_scales k_biases v v_scales v_biases lengths scale window S SPLITS", "parts tops sums"
)
BITS, GROUPS = (4, 8), (32, 64, 128)
Packed = tuple[mx.array, mx.array, mx.array]


def packed_attention(
    q: mx.array, k: Packed, v: Packed, lengths: mx.array, scale: float, window: int = 0, chunk: int = 0, on: On = None
) -> mx.array:
    """`decode_attention` with k and v as `mx.quantize` packs them: codes, scales and biases (B, Hkv, S, …).

    Codes are uint32, scales and biases of the dtype of q (B, H, D). Two launches, as there.
    """
    return merge_attention(*packed_parts(q, k, v, lengths, scale, window, chunk, on), q.dtype, on).reshape(q.shape)


def packed_parts(
    q: mx.array, k: Packed, v: Packed, lengths: mx.array, scale: float, window: int = 0, chunk: int = 0, on: On = None
) -> Parts:
    """The parts of `packed_attention`, as `decode_attention_parts` returns them. Reads the packed keys and values once
    for all query heads that share them. Raises ValueError for other shapes, bits and groups."""
    expect_float("packed_attention q", q)
    expect("packed_attention q", q, (None, None, None))
    bits, group = packing(q, k, v)
    (batch, heads, dim), (kv_heads, capacity) = q.shape, check_heads(q, k[0].shape[1:3])
    expect("packed_attention lengths", lengths, (batch,), mx.int32)
    chunk = chunk or max(CHUNK, CHUNK_OF_HEAD * (heads // kv_heads))
    splits = splits_of(capacity, window, chunk)
    words = dim * bits // 32
    parts, tops, sums = PACKED_ATTENTION(
        *(q, *k, *v, lengths, mx.array(scale, mx.float32), window, capacity, splits),
        plain=lambda: parts_plain(q, unpack(k, bits, group), unpack(v, bits, group), lengths, scale, window, chunk),
        like=parts_like(batch * heads, splits, dim),
        grid=(splits * SIMDGROUPS * 32, kv_heads, max(1, batch)),
        threadgroup=(SIMDGROUPS * 32, 1, 1),
        template={
            **{"T": q.dtype, "D": dim, "HEADS": heads // kv_heads, "KV_HEADS": kv_heads},
            **{"BITS": bits, "GROUP": group, "WIDTH": min(32, 1 << (words - 1).bit_length())},
            **{"CHUNK": chunk, "SIMDGROUPS": SIMDGROUPS},
        },
        on=on,
    )
    return parts, tops, sums


def packing(q: mx.array, k: Packed, v: Packed) -> tuple[int, int]:
    """(bits, group size) of both. Raises ValueError where the shapes make no such packing."""
    (batch, _, dim), (codes, scales, biases) = q.shape, k
    expect("packed_attention k", codes, (batch, None, None, None), mx.uint32)
    expect("packed_attention k's scales", scales, (*codes.shape[:3], None), q.dtype)
    bits, group = codes.shape[3] * 32 // dim, dim // max(1, scales.shape[3])
    if bits not in BITS or group not in GROUPS or (codes.shape[3] * 32, scales.shape[3] * group) != (bits * dim, dim):
        raise ValueError(f"packed_attention: {dim} dimensions, codes {codes.shape} and scales {scales.shape} make no "
                         "format of 4 or 8 bits in groups of 32, 64 or 128")  # fmt: skip
    for name, x, like in (("k's biases", biases, scales), ("v", v[0], codes), ("v's scales", v[1], scales),
                          ("v's biases", v[2], scales)):  # fmt: skip
        expect(f"packed_attention {name}", x, like.shape, like.dtype)
    return bits, group


def unpack(x: Packed, bits: int, group: int) -> mx.array:
    codes, scales, biases = x
    if not codes.size:
        return mx.zeros((*codes.shape[:-1], codes.shape[-1] * 32 // bits))
    wide = (codes, scales.astype(mx.float32), biases.astype(mx.float32))
    return mx.dequantize(*wide, group_size=group, bits=bits)
