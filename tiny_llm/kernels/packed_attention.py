"""`decode_attention` over keys and values that are packed to 4 or 8 bits a number, as `mx.quantize` packs rows."""

import mlx.core as mx

from tiny_llm.kernels.decode_attention import (
    SIMDGROUPS,
    Parts,
    check_heads,
    chunk_for,
    merge_attention,
    parts_like,
    parts_plain,
    splits_of,
)
from tiny_llm.kernels.launch import Kernel, On, expect_array, expect_float

PACKED_ATTENTION = Kernel(
    "packed_attention", "q k k_scales k_biases v v_scales v_biases lengths scale window S SPLITS", "parts tops sums"
)
BITS = (4, 8)
GROUPS = (32, 64, 128)
Quantized = tuple[mx.array, mx.array, mx.array]  # codes, scales and biases


def packed_attention(
    q: mx.array,
    k: Quantized,
    v: Quantized,
    lengths: mx.array,
    scale: float,
    window: int = 0,
    chunk: int = 0,
    on: On = None,
) -> mx.array:
    """Compute `decode_attention` with k and v as `mx.quantize` packs them: codes, scales and biases (B, Hkv, S, …).

    Codes are uint32, scales and biases of the dtype of q (B, H, D). Two launches, as there.
    """
    parts = packed_parts(q, k, v, lengths, scale, window, chunk, on)
    return merge_attention(*parts, q.dtype, on).reshape(q.shape)


def packed_parts(
    q: mx.array,
    k: Quantized,
    v: Quantized,
    lengths: mx.array,
    scale: float,
    window: int = 0,
    chunk: int = 0,
    on: On = None,
) -> Parts:
    """Compute the parts of `packed_attention`, as `decode_attention_parts` returns them.

    Reads the packed keys and values once for all query heads that share them. Raises ValueError for other shapes, bits
    and groups.
    """
    bits, group = packing(q, k, v)
    batch, heads, dim = q.shape
    kv_heads, capacity = check_heads(q, k[0].shape[1:3])
    expect_array("packed_attention lengths", lengths, (batch,), mx.int32)
    heads_each = heads // kv_heads
    chunk = chunk or chunk_for(heads_each)
    splits = splits_of(capacity, window, chunk)
    words = dim * bits // 32

    def plain() -> list[mx.array]:
        keys = unpack(k, bits, group)
        values = unpack(v, bits, group)
        return parts_plain(q, keys, values, lengths, scale, window, chunk)

    parts, tops, sums = PACKED_ATTENTION(
        q,
        *k,
        *v,
        lengths,
        mx.array(scale, mx.float32),
        window,
        capacity,
        splits,
        plain=plain,
        like=parts_like(batch * heads, splits, dim),
        grid=(splits * SIMDGROUPS * 32, kv_heads, max(1, batch)),
        threadgroup=(SIMDGROUPS * 32, 1, 1),
        template={
            "T": q.dtype,
            "D": dim,
            "HEADS": heads_each,
            "KV_HEADS": kv_heads,
            "BITS": bits,
            "GROUP": group,
            "WIDTH": min(32, 1 << (words - 1).bit_length()),
            "CHUNK": chunk,
            "SIMDGROUPS": SIMDGROUPS,
        },
        on=on,
    )
    return parts, tops, sums


def packing(q: mx.array, k: Quantized, v: Quantized) -> tuple[int, int]:
    """Return (bits, group size) of both. Raise ValueError where the shapes make no such packing."""
    expect_float("packed_attention q", q)
    expect_array("packed_attention q", q, (None, None, None))
    batch, _, dim = q.shape
    codes, scales, biases = k
    expect_array("packed_attention k", codes, (batch, None, None, None), mx.uint32)
    expect_array("packed_attention k's scales", scales, (*codes.shape[:3], None), q.dtype)
    stored = codes.shape[3] * 32  # bits of a row
    bits = stored // dim
    group = dim // max(1, scales.shape[3])
    whole = stored == bits * dim and scales.shape[3] * group == dim
    if bits not in BITS or group not in GROUPS or not whole:
        raise ValueError(
            f"packed_attention: {dim} dimensions, codes {codes.shape} and scales {scales.shape} make no format of 4 or "
            "8 bits in groups of 32, 64 or 128"
        )
    expect_array("packed_attention k's biases", biases, scales.shape, scales.dtype)
    expect_array("packed_attention v", v[0], codes.shape, codes.dtype)
    expect_array("packed_attention v's scales", v[1], scales.shape, scales.dtype)
    expect_array("packed_attention v's biases", v[2], scales.shape, scales.dtype)
    return bits, group


def unpack(x: Quantized, bits: int, group: int) -> mx.array:
    """Return the numbers of packed rows in float32."""
    codes, scales, biases = x
    if not codes.size:
        return mx.zeros((*codes.shape[:-1], codes.shape[-1] * 32 // bits))
    scales = scales.astype(mx.float32)
    biases = biases.astype(mx.float32)
    return mx.dequantize(codes, scales, biases, group_size=group, bits=bits)
