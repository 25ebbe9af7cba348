"""Attention of many queries without their scores in memory: FlashAttention. (arXiv:2205.14135, 2307.08691)"""

from collections.abc import Iterator, Sequence

import mlx.core as mx

from tiny_llm.kernels.launch import Kernel, On, expect, expect_float

FLASH_ATTENTION = Kernel("flash_attention", "q k v tiles scale window S", "out")
SIMDGROUPS = 4
QUERIES = 8 * SIMDGROUPS  # of a tile
MAX_DIM = 256
Span = tuple[int, int]


def keys_for(dim: int) -> int:
    """Keys that a threadgroup holds at once: with their values 16 KB."""
    return 32 if dim <= 64 else 16 if dim <= 128 else 8


def tiles_of(spans: Sequence[Span]) -> Iterator[tuple[int, int, int, int]]:
    """Of each tile of up to 32 queries: its first row in q, its queries, the sequence's first key, the position of
    the first query there."""
    row = start = 0
    for new, total in spans:
        for done in range(0, new, QUERIES):
            yield row + done, min(QUERIES, new - done), start, total - new + done
        row, start = row + new, start + total


def flash_attention(
    q: mx.array, k: mx.array, v: mx.array, spans: Sequence[Span], scale: float, window: int = 0, on: On = None
) -> mx.array:
    """Causal softmax(q Kᵀ scale) V of several sequences in one flat row of tokens, in float32.

    q (T, H, D) has the new tokens of all sequences behind each other, k and v (Hkv, S, D) all their tokens; `spans`
    holds (new, all) of each, and its new tokens are its last. `window` (0: all) counts the keys that a query sees, its
    own the last. The result is like q. Reads q once and writes the result once; keys and values are read once for each
    head and tile of 32 queries that sees them. Raises ValueError for other shapes, and for D over 256.
    """
    expect_float("flash_attention q", q)
    expect("flash_attention q", q, (None, None, None))
    expect("flash_attention k", k, (None, None, q.shape[2]), q.dtype)
    expect("flash_attention v", v, k.shape, q.dtype)
    (tokens, heads, dim), (kv_heads, capacity) = q.shape, k.shape[:2]
    if not kv_heads or heads % kv_heads or not 1 <= dim <= MAX_DIM:
        raise ValueError(f"flash_attention: expected 1 to {MAX_DIM} dimensions and key-value heads that divide the "
                         f"query's, found {heads} heads of {dim} over {kv_heads}")  # fmt: skip
    if (sum(new for new, _ in spans), sum(total for _, total in spans)) != (tokens, capacity):
        raise ValueError(f"flash_attention: spans {list(spans)} do not add up to {tokens} queries and {capacity} keys")
    if window < 0 or any(not 0 <= new <= total for new, total in spans):
        raise ValueError(f"flash_attention: expected new tokens among all of a span and a window of at least 0, found "
                         f"{list(spans)} and {window}")  # fmt: skip
    tiles = list(tiles_of(spans))
    return FLASH_ATTENTION(
        *(q, k, v, mx.array(tiles, mx.int32).reshape(-1, 4), mx.array(scale, mx.float32), window, capacity),
        plain=lambda: [flash_plain(q, k, v, spans, scale, window)],
        like=[(q.shape, q.dtype)],
        grid=(max(1, len(tiles)) * SIMDGROUPS * 32, heads, 1),
        threadgroup=(SIMDGROUPS * 32, 1, 1),
        template={
            **{"T": q.dtype, "D": dim, "H": heads, "HEADS": heads // kv_heads},
            **{"BK": keys_for(dim), "SIMDGROUPS": SIMDGROUPS},
        },
        on=on,
    )[0]


def flash_plain(q: mx.array, k: mx.array, v: mx.array, spans: Sequence[Span], scale: float, window: int) -> mx.array:
    """The twin: each sequence by itself, its scores whole."""
    made, row, start = [q[:0]], 0, 0
    groups = q.shape[1] // k.shape[0]
    for new, total in spans:
        heads = q[row : row + new].astype(mx.float32).swapaxes(0, 1)  # (H, new, D)
        keys, values = (mx.repeat(x[:, start : start + total].astype(mx.float32), groups, 0) for x in (k, v))
        distance = mx.arange(total - new, total)[:, None] - mx.arange(total)
        visible = (distance >= 0) & (distance < (window or total))
        scores = mx.where(visible, scale * heads @ keys.swapaxes(1, 2), -mx.inf)
        made.append((mx.softmax(scores, axis=-1) @ values).swapaxes(0, 1).astype(q.dtype))
        row, start = row + new, start + total
    return mx.concatenate(made)
