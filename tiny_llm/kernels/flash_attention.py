"""Attention of many queries without their scores in memory: FlashAttention. (arXiv:2205.14135, 2307.08691)"""

from collections.abc import Iterator, Sequence

import mlx.core as mx

from tiny_llm.kernels.launch import Kernel, On, expect_array, expect_float

FLASH_ATTENTION = Kernel("flash_attention", "q k v tiles scale window S", "out")
SIMDGROUPS = 4
QUERIES = 8 * SIMDGROUPS  # of a tile
MAX_DIM = 256
Extent = tuple[int, int]  # (new, all): how many tokens a sequence brings, and how many it then has


def flash_attention(
    q: mx.array, k: mx.array, v: mx.array, spans: Sequence[Extent], scale: float, window: int = 0, on: On = None
) -> mx.array:
    """Compute causal softmax(q Kᵀ scale) V of several sequences in one flat row of tokens, in float32.

    q (T, H, D) has the new tokens of all sequences behind each other, k and v (Hkv, S, D) all their tokens; `spans`
    holds (new, all) of each, and its new tokens are its last. `window` (0: all) counts the keys that a query sees, its
    own the last. The result is like q. Reads q once and writes the result once; keys and values are read once for each
    head and tile of 32 queries that sees them. Raises ValueError for other shapes, and for D over 256.
    """
    check_shapes(q, k, v)
    check_spans(spans, q.shape[0], k.shape[1], window)
    _, heads, dim = q.shape
    kv_heads, capacity, _ = k.shape
    tiles = list(tiles_of(spans))
    return FLASH_ATTENTION(
        q,
        k,
        v,
        mx.array(tiles, mx.int32).reshape(-1, 4),
        mx.array(scale, mx.float32),
        window,
        capacity,
        plain=lambda: [flash_plain(q, k, v, spans, scale, window)],
        like=[(q.shape, q.dtype)],
        grid=(max(1, len(tiles)) * SIMDGROUPS * 32, heads, 1),
        threadgroup=(SIMDGROUPS * 32, 1, 1),
        template={
            "T": q.dtype,
            "D": dim,
            "H": heads,
            "HEADS": heads // kv_heads,
            "BK": keys_for(dim),
            "SIMDGROUPS": SIMDGROUPS,
        },
        on=on,
    )[0]


def check_shapes(q: mx.array, k: mx.array, v: mx.array) -> None:
    """Raise ValueError where keys and values do not fit the queries, or heads are too wide."""
    expect_float("flash_attention q", q)
    expect_array("flash_attention q", q, (None, None, None))
    expect_array("flash_attention k", k, (None, None, q.shape[2]), q.dtype)
    expect_array("flash_attention v", v, k.shape, q.dtype)
    _, heads, dim = q.shape
    kv_heads = k.shape[0]
    if not kv_heads or heads % kv_heads or not 1 <= dim <= MAX_DIM:
        raise ValueError(
            f"flash_attention: expected 1 to {MAX_DIM} dimensions and key-value heads that divide the query's, "
            f"found {heads} heads of {dim} over {kv_heads}"
        )


def check_spans(spans: Sequence[Extent], tokens: int, capacity: int, window: int) -> None:
    """Raise ValueError where the spans are not of so many queries and keys, or the window is negative."""
    queries = sum(new for new, _ in spans)
    keys = sum(total for _, total in spans)
    if queries != tokens or keys != capacity:
        raise ValueError(f"flash_attention: spans {list(spans)} do not add up to {tokens} queries and {capacity} keys")
    if window < 0 or any(not 0 <= new <= total for new, total in spans):
        raise ValueError(
            f"flash_attention: expected new tokens among all of a span and a window of at least 0, "
            f"found {list(spans)} and {window}"
        )


def keys_for(dim: int) -> int:
    """Return how many keys a threadgroup holds at once: with their values 16 KB."""
    if dim <= 64:
        return 32
    return 16 if dim <= 128 else 8


def tiles_of(spans: Sequence[Extent]) -> Iterator[tuple[int, int, int, int]]:
    """Yield of each tile of up to 32 queries: first row in q, queries, the sequence's first key, and the position of
    the first query in its sequence."""
    row = start = 0
    for new, total in spans:
        for done in range(0, new, QUERIES):
            count = min(QUERIES, new - done)
            yield row + done, count, start, total - new + done
        row += new
        start += total


def flash_plain(
    q: mx.array, k: mx.array, v: mx.array, spans: Sequence[Extent], scale: float, window: int,
    near: mx.array | None = None,
) -> mx.array:  # fmt: skip
    """Compute the twin: each sequence by itself, its scores whole. `near` as in `paged_prefill`."""
    groups = q.shape[1] // k.shape[0]
    made = [q[:0]]
    row = start = 0
    for new, total in spans:
        queries = q[row : row + new].astype(mx.float32).swapaxes(0, 1)  # (H, new, D)
        keys = k[:, start : start + total].astype(mx.float32)
        values = v[:, start : start + total].astype(mx.float32)
        keys = mx.repeat(keys, groups, 0)  # (H, total, D)
        values = mx.repeat(values, groups, 0)
        positions = mx.arange(total - new, total)
        distance = positions[:, None] - mx.arange(total)
        visible = (distance >= 0) & (distance < (window or total))
        if near is not None:
            words = near[row : row + new, None]
            bits = words >> mx.clip(distance, 0, 63).astype(mx.uint64)
            visible &= (distance > 63) | ((bits & 1) == 1)
        scores = scale * queries @ keys.swapaxes(1, 2)  # (H, new, total)
        scores = mx.where(visible, scores, -mx.inf)
        attended = mx.softmax(scores, axis=-1) @ values
        made.append(attended.swapaxes(0, 1).astype(q.dtype))
        row += new
        start += total
    return mx.concatenate(made)
