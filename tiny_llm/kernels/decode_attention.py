"""Attention of one query for each sequence, split over the keys and merged. (flash-decoding, PyTorch blog, 2023)"""

import mlx.core as mx

from tiny_llm.kernels.launch import Kernel, On, expect_array, expect_float

DECODE_ATTENTION = Kernel("decode_attention", "q k v lengths scale window S SPLITS", "parts tops sums")
MERGE_ATTENTION = Kernel("merge_attention", "parts tops sums SPLITS", "out")
# keys per threadgroup, at least and for each query head: enough that writing partial results costs a few percent of
# the reads
CHUNK, CHUNK_OF_HEAD = 256, 64
SIMDGROUPS = 8
MAX_DIM, MAX_HEADS = 256, 16
Parts = tuple[mx.array, mx.array, mx.array]


def decode_attention(
    q: mx.array, k: mx.array, v: mx.array, lengths: mx.array, scale: float, window: int = 0, chunk: int = 0,
    on: On = None,
) -> mx.array:  # fmt: skip
    """Compute softmax(q Kᵀ scale) V of one query for each sequence, in float32.

    A query sees the last `window` (0: all) of its sequence's `lengths` first keys. q (B, H, D), k and v (B, Hkv, S, D)
    of one dtype, lengths (B,) int32 of 1 to S; the result is like q. Two launches: `decode_attention_parts`,
    `merge_attention`.
    """
    parts = decode_attention_parts(q, k, v, lengths, scale, window, chunk, on)
    return merge_attention(*parts, q.dtype, on).reshape(q.shape)


def decode_attention_parts(
    q: mx.array, k: mx.array, v: mx.array, lengths: mx.array, scale: float, window: int = 0, chunk: int = 0,
    on: On = None,
) -> Parts:  # fmt: skip
    """Compute the parts of `decode_attention`, one for each `chunk` of keys (0: as many as suit the heads).

    Returns float32: Σ exp(s - top) v (B H, splits, D), top = max s (B H, splits) and Σ exp(s - top) (B H, splits); an
    empty part has a top of -inf. Reads keys and values once for all query heads that share them; a threadgroup takes
    one chunk of one key-value head. Raises ValueError for other shapes.
    """
    expect_float("decode_attention q", q)
    expect_array("decode_attention q", q, (None, None, None))
    batch, heads, dim = q.shape
    kv_heads, capacity = check_heads(q, k.shape[1:3] if k.ndim == 4 else (0, 0))
    expect_array("decode_attention k", k, (batch, kv_heads, capacity, dim), q.dtype)
    expect_array("decode_attention v", v, k.shape, q.dtype)
    expect_array("decode_attention lengths", lengths, (batch,), mx.int32)
    heads_each = heads // kv_heads
    chunk = chunk or chunk_for(heads_each)
    splits = splits_of(capacity, window, chunk)
    parts, tops, sums = DECODE_ATTENTION(
        q,
        k,
        v,
        lengths,
        mx.array(scale, mx.float32),
        window,
        capacity,
        splits,
        plain=lambda: parts_plain(q, k, v, lengths, scale, window, chunk),
        like=parts_like(batch * heads, splits, dim),
        grid=(splits * SIMDGROUPS * 32, kv_heads, max(1, batch)),
        threadgroup=(SIMDGROUPS * 32, 1, 1),
        template={
            "T": q.dtype,
            "D": dim,
            "HEADS": heads_each,
            "KV_HEADS": kv_heads,
            "CHUNK": chunk,
            "SIMDGROUPS": SIMDGROUPS,
        },
        on=on,
    )
    return parts, tops, sums


def check_heads(q: mx.array, shared: tuple[int, ...]) -> tuple[int, int]:
    """Return (Hkv, S) of the keys. Raise ValueError where they do not fit the queries."""
    _, heads, dim = q.shape
    kv_heads, capacity = shared
    fits = kv_heads > 0 and heads % kv_heads == 0 and heads <= MAX_HEADS * kv_heads
    if not fits or not 1 <= dim <= MAX_DIM or not capacity:
        raise ValueError(
            f"decode_attention: expected keys (B, Hkv, S, D) whose heads divide the query's, up to {MAX_HEADS} to one, "
            f"of up to {MAX_DIM} dimensions; found {heads} query heads of {dim} over {kv_heads} with {capacity} keys"
        )
    return kv_heads, capacity


def chunk_for(heads_each: int) -> int:
    """Return how many keys a threadgroup takes where so many query heads share a key-value head."""
    return max(CHUNK, CHUNK_OF_HEAD * heads_each)


def splits_of(capacity: int, window: int, chunk: int) -> int:
    """Return the number of chunks that cover the keys a query may see. Raise ValueError for a bad chunk or window."""
    if chunk < 1 or window < 0:
        raise ValueError(
            f"decode_attention: expected a chunk of at least 1 and a window of at least 0, found {chunk} and {window}"
        )
    seen = min(capacity, window or capacity)
    return -(-seen // chunk)


def parts_like(rows: int, splits: int, dim: int) -> list[tuple[tuple[int, ...], mx.Dtype]]:
    """Return shapes and dtypes of the parts."""
    return [((rows, splits, dim), mx.float32), ((rows, splits), mx.float32), ((rows, splits), mx.float32)]


def parts_plain(
    q: mx.array, k: mx.array, v: mx.array, lengths: mx.array, scale: float, window: int, chunk: int
) -> list[mx.array]:
    """Compute the twin's parts: each is a softmax over the keys that a mask leaves."""
    batch, heads, dim = q.shape
    _, kv_heads, capacity, _ = k.shape
    k = k.astype(mx.float32)
    v = v.astype(mx.float32)
    grouped = q.astype(mx.float32).reshape(batch, kv_heads, heads // kv_heads, dim)
    scores = scale * grouped @ k.swapaxes(2, 3)  # (B, Hkv, heads of a group, S)
    split = _split_of_keys(lengths, capacity, window, chunk)[:, None, None]  # (B, 1, 1, S)
    rows = batch * heads
    parts, tops, sums = [], [], []
    for number in range(splits_of(capacity, window, chunk)):
        mine = split == number
        masked = mx.where(mine, scores, -mx.inf)
        top = masked.max(-1, keepdims=True)
        e = mx.where(mine, mx.exp(scores - top), 0.0)
        mixed = e @ v
        total = e.sum(-1)
        parts.append(mixed.reshape(rows, dim))
        tops.append(top.reshape(rows))
        sums.append(total.reshape(rows))
    return [mx.stack(parts, axis=1), mx.stack(tops, axis=1), mx.stack(sums, axis=1)]


def _split_of_keys(lengths: mx.array, capacity: int, window: int, chunk: int) -> mx.array:
    """Return the number of the chunk to which each key belongs, -1 for a key that is not seen, (B, S)."""
    first = mx.maximum(lengths - window, 0) if window else mx.zeros_like(lengths)
    positions = mx.arange(capacity)
    behind = positions - first[:, None]  # from the first key that is seen
    seen = (behind >= 0) & (positions < lengths[:, None])
    return mx.where(seen, behind // chunk, -1)


def merge_attention(parts: mx.array, tops: mx.array, sums: mx.array, dtype: mx.Dtype, on: On = None) -> mx.array:
    """Compute Σ exp(top_i - top) parts_i / Σ exp(top_i - top) sums_i of parts (R, splits, D): (R, D) of `dtype`.

    Reads the parts once; one simdgroup for each row. Raises ValueError for other shapes.
    """
    expect_array("merge_attention parts", parts, (None, None, None), mx.float32)
    rows, splits, dim = parts.shape
    expect_array("merge_attention tops", tops, (rows, splits), mx.float32)
    expect_array("merge_attention sums", sums, (rows, splits), mx.float32)
    return MERGE_ATTENTION(
        parts,
        tops,
        sums,
        splits,
        plain=lambda: [merge_plain(parts, tops, sums).astype(dtype)],
        like=[((rows, dim), dtype)],
        grid=(max(1, rows) * 32, 1, 1),
        threadgroup=(32, 1, 1),
        template={"T": dtype, "D": dim},
        on=on,
    )[0]


def merge_plain(parts: mx.array, tops: mx.array, sums: mx.array) -> mx.array:
    """Compute the twin of `merge_attention`, in float32."""
    factors = mx.exp(tops - tops.max(-1, keepdims=True))
    mixed = (factors[..., None] * parts).sum(1)
    return mixed / (factors * sums).sum(1, keepdims=True)
