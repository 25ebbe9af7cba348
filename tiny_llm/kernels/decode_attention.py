"""Attention of one query for each sequence, split over the keys and merged. (flash-decoding, PyTorch blog, 2023)"""

import mlx.core as mx

from tiny_llm.kernels.launch import Kernel, On, expect, expect_float

DECODE_ATTENTION = Kernel("decode_attention", "q k v lengths scale window S SPLITS", "parts tops sums")
MERGE_ATTENTION = Kernel("merge_attention", "parts tops sums SPLITS", "out")
# keys per threadgroup: enough that writing partial results costs a few percent of the reads
CHUNK, CHUNK_OF_HEAD = 256, 64
SIMDGROUPS = 8
MAX_DIM, MAX_HEADS = 256, 16
Parts = tuple[mx.array, mx.array, mx.array]


def decode_attention(
    q: mx.array, k: mx.array, v: mx.array, lengths: mx.array, scale: float, window: int = 0, chunk: int = 0,
    on: On = None,
) -> mx.array:  # fmt: skip
    """softmax(q Kᵀ scale) V over the last `window` (0: all) of each sequence's `lengths` first keys, in float32.

    q (B, H, D), k and v (B, Hkv, S, D) of one dtype, lengths (B,) int32 of 1 to S; the result like q. Two launches:
    `decode_attention_parts`, `merge_attention`.
    """
    parts = decode_attention_parts(q, k, v, lengths, scale, window, chunk, on)
    return merge_attention(*parts, q.dtype, on).reshape(q.shape)


def decode_attention_parts(
    q: mx.array, k: mx.array, v: mx.array, lengths: mx.array, scale: float, window: int = 0, chunk: int = 0,
    on: On = None,
) -> Parts:  # fmt: skip
    """The parts of `decode_attention`, one for each `chunk` of keys (0: as many as suit the heads).

    Returns float32: Σ exp(s - top) v (B H, splits, D), top = max s (B H, splits) and Σ exp(s - top) (B H, splits); an
    empty part has a top of -inf. Reads keys and values once for all query heads that share them; a threadgroup takes
    one chunk of one key-value head. Raises ValueError for other shapes.
    """
    expect_float("decode_attention q", q)
    expect("decode_attention q", q, (None, None, None))
    (batch, heads, dim), (kv_heads, capacity) = q.shape, check_heads(q, k.shape[1:3] if k.ndim == 4 else (0, 0))
    expect("decode_attention k", k, (batch, kv_heads, capacity, dim), q.dtype)
    expect("decode_attention v", v, k.shape, q.dtype)
    expect("decode_attention lengths", lengths, (batch,), mx.int32)
    chunk = chunk or max(CHUNK, CHUNK_OF_HEAD * (heads // kv_heads))
    splits = splits_of(capacity, window, chunk)
    parts, tops, sums = DECODE_ATTENTION(
        *(q, k, v, lengths, mx.array(scale, mx.float32), window, capacity, splits),
        plain=lambda: parts_plain(q, k, v, lengths, scale, window, chunk),
        like=parts_like(batch * heads, splits, dim),
        grid=(splits * SIMDGROUPS * 32, kv_heads, max(1, batch)),
        threadgroup=(SIMDGROUPS * 32, 1, 1),
        template={
            **{"T": q.dtype, "D": dim, "HEADS": heads // kv_heads, "KV_HEADS": kv_heads},
            **{"CHUNK": chunk, "SIMDGROUPS": SIMDGROUPS},
        },
        on=on,
    )
    return parts, tops, sums


def check_heads(q: mx.array, shared: tuple[int, ...]) -> tuple[int, int]:
    """(Hkv, S) of the keys. Raises ValueError where they do not suit the queries."""
    (_, heads, dim), (kv_heads, capacity) = q.shape, shared
    if not kv_heads or heads % kv_heads or heads // kv_heads > MAX_HEADS or not 1 <= dim <= MAX_DIM or not capacity:
        raise ValueError(
            f"decode_attention: expected keys (B, Hkv, S, D) whose heads divide the query's, up to {MAX_HEADS} to one, "
            f"of up to {MAX_DIM} dimensions; found {heads} query heads of {dim} over {kv_heads} with {capacity} keys"
        )
    return kv_heads, capacity


def splits_of(capacity: int, window: int, chunk: int) -> int:
    if chunk < 1 or window < 0:
        raise ValueError(f"decode_attention: expected a chunk of at least 1 and a window of at least 0, found {chunk} "
                         f"and {window}")  # fmt: skip
    return -(-min(capacity, window or capacity) // chunk)


def parts_like(rows: int, splits: int, dim: int) -> list[tuple[tuple[int, ...], mx.Dtype]]:
    return [((rows, splits, dim), mx.float32), ((rows, splits), mx.float32), ((rows, splits), mx.float32)]


def parts_plain(
    q: mx.array, k: mx.array, v: mx.array, lengths: mx.array, scale: float, window: int, chunk: int
) -> list[mx.array]:
    """The twin: each part is a softmax over the keys that a mask leaves."""
    (batch, heads, dim), (_, kv_heads, capacity, _) = q.shape, k.shape
    grouped = q.astype(mx.float32).reshape(batch, kv_heads, heads // kv_heads, dim)
    scores = scale * grouped @ k.astype(mx.float32).swapaxes(2, 3)  # (B, Hkv, heads of a group, S)
    first = mx.maximum(lengths - window, 0) if window else mx.zeros_like(lengths)
    positions = mx.arange(capacity)
    at = positions - first[:, None]  # (B, S): from the first key that is seen
    split = mx.where((at >= 0) & (positions < lengths[:, None]), at // chunk, -1)[:, None, None]
    made = []
    for s in range(splits_of(capacity, window, chunk)):
        masked = mx.where(split == s, scores, -mx.inf)
        top = masked.max(-1, keepdims=True)
        p = mx.where(split == s, mx.exp(scores - top), 0.0)
        made.append((p @ v.astype(mx.float32), top[..., 0], p.sum(-1)))
    shapes = ((batch * heads, dim), (batch * heads,), (batch * heads,))
    return [mx.stack([x.reshape(s) for x in xs], axis=1) for xs, s in zip(zip(*made, strict=True), shapes, strict=True)]


def merge_plain(parts: mx.array, tops: mx.array, sums: mx.array) -> mx.array:
    factors = mx.exp(tops - tops.max(-1, keepdims=True))
    return (factors[..., None] * parts).sum(1) / (factors * sums).sum(1, keepdims=True)


def merge_attention(parts: mx.array, tops: mx.array, sums: mx.array, dtype: mx.Dtype, on: On = None) -> mx.array:
    """Σ exp(top_i - top) parts_i / Σ exp(top_i - top) sums_i of parts (R, splits, D): (R, D) of `dtype`.

    Reads the parts once; one simdgroup for each row. Raises ValueError for other shapes.
    """
    expect("merge_attention parts", parts, (None, None, None), mx.float32)
    rows, splits, dim = parts.shape
    expect("merge_attention tops", tops, (rows, splits), mx.float32)
    expect("merge_attention sums", sums, (rows, splits), mx.float32)
    return MERGE_ATTENTION(
        *(parts, tops, sums, splits),
        plain=lambda: [merge_plain(parts, tops, sums).astype(dtype)],
        like=[((rows, dim), dtype)],
        grid=(max(1, rows) * 32, 1, 1),
        threadgroup=(32, 1, 1),
        template={"T": dtype, "D": dim},
        on=on,
    )[0]
