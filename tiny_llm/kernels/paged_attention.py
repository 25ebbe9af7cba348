"""Attention over a pool's blocks as kernels: one query for each sequence, or many. (arXiv:2309.06180)"""

from collections.abc import Sequence

import mlx.core as mx

from tiny_llm.kernels.decode_attention import (
    CHUNK,
    CHUNK_OF_HEAD,
    MAX_HEADS,
    SIMDGROUPS,
    Parts,
    merge_attention,
    parts_like,
    parts_plain,
    splits_of,
)
from tiny_llm.kernels.flash_attention import MAX_DIM, Span, flash_plain, keys_for, tiles_of
from tiny_llm.kernels.flash_attention import SIMDGROUPS as OF_A_TILE
from tiny_llm.kernels.launch import Kernel, On, expect, expect_float

PAGED_DECODE = Kernel("paged_decode", "q keys values tables lengths scale window M SPLITS", "parts tops sums")
PAGED_PREFILL = Kernel("paged_prefill", "q keys values tables tiles scale window M", "out")


def paged_decode(
    q: mx.array, keys: mx.array, values: mx.array, tables: mx.array, lengths: mx.array, scale: float,
    window: int = 0, chunk: int = 0, on: On = None,
) -> mx.array:  # fmt: skip
    """softmax(q Kᵀ scale) V over the last `window` (0: all) of each sequence's `lengths` first keys, in float32.

    q and result (R, H, D); keys and values (Hkv, N, block, D) of its dtype; tables (R, M) int32, each row's blocks in
    order; lengths (R,) int32 of 1 to M · block. Two launches: `paged_decode_parts`, `merge_attention`.
    """
    parts = paged_decode_parts(q, keys, values, tables, lengths, scale, window, chunk, on)
    return merge_attention(*parts, q.dtype, on).reshape(q.shape)


def paged_decode_parts(
    q: mx.array, keys: mx.array, values: mx.array, tables: mx.array, lengths: mx.array, scale: float,
    window: int = 0, chunk: int = 0, on: On = None,
) -> Parts:  # fmt: skip
    """The parts of `paged_decode`, as `decode_attention_parts` returns them.

    Reads each key and value once for all query heads that share it, and its block's number beside it; a threadgroup
    takes one chunk of one key-value head. Raises ValueError for other shapes.
    """
    heads_each = check_pool("paged_decode", q, keys, values, tables)
    (rows, heads, dim), (kv_heads, num_blocks, size, _) = q.shape, keys.shape
    expect("paged_decode tables", tables, (rows, None), mx.int32)
    expect("paged_decode lengths", lengths, (rows,), mx.int32)
    chunk = chunk or max(CHUNK, CHUNK_OF_HEAD * heads_each)
    splits = splits_of(tables.shape[1] * size, window, chunk)

    def plain() -> list[mx.array]:
        k, v = (taken(pool, tables).swapaxes(0, 1) for pool in (keys, values))
        return parts_plain(q, k, v, lengths, scale, window, chunk)

    parts, tops, sums = PAGED_DECODE(
        *(q, keys, values, tables, lengths, mx.array(scale, mx.float32), window, tables.shape[1], splits),
        plain=plain,
        like=parts_like(rows * heads, splits, dim),
        grid=(splits * SIMDGROUPS * 32, kv_heads, max(1, rows)),
        threadgroup=(SIMDGROUPS * 32, 1, 1),
        template={
            **{"T": q.dtype, "D": dim, "HEADS": heads_each, "KV_HEADS": kv_heads, "N": num_blocks, "BLOCK": size},
            **{"CHUNK": chunk, "SIMDGROUPS": SIMDGROUPS},
        },
        on=on,
    )
    return parts, tops, sums


def paged_prefill(
    q: mx.array, keys: mx.array, values: mx.array, tables: mx.array, spans: Sequence[Span], scale: float,
    window: int = 0, on: On = None,
) -> mx.array:  # fmt: skip
    """Causal softmax(q Kᵀ scale) V of the new tokens of several sequences in one flat row, in float32.

    q and result (T, H, D); keys and values (Hkv, N, block, D) of its dtype; tables (R, M) int32; `spans` holds
    (new, all) of each sequence, whose new tokens are its last. Reads q once; keys and values once for each head and
    tile of 32 queries that sees them. Raises ValueError for other shapes.
    """
    heads_each = check_pool("paged_prefill", q, keys, values, tables)
    (tokens, heads, dim), (_, num_blocks, size, _) = q.shape, keys.shape
    expect("paged_prefill tables", tables, (len(spans), None), mx.int32)
    longest = tables.shape[1] * size
    if sum(new for new, _ in spans) != tokens or window < 0 or any(not 0 <= a <= b <= longest for a, b in spans):
        raise ValueError(f"paged_prefill: expected {tokens} new tokens in all, of sequences of up to {longest}, and a "
                         f"window of at least 0; found {list(spans)} and {window}")  # fmt: skip
    tiles = list(tiles_of_pages(spans))

    def plain() -> list[mx.array]:
        rows = zip(tables, spans, strict=True)
        cut = [(table[None], total) for table, (_, total) in rows]
        k, v = (mx.concatenate([taken(pool, t)[:, 0, :n] for t, n in cut], axis=1) for pool in (keys, values))
        return [flash_plain(q, k, v, spans, scale, window)]

    tile_rows = mx.array(tiles, mx.int32).reshape(-1, 4)
    return PAGED_PREFILL(
        *(q, keys, values, tables, tile_rows, mx.array(scale, mx.float32), window, tables.shape[1]),
        plain=plain,
        like=[(q.shape, q.dtype)],
        grid=(max(1, len(tiles)) * OF_A_TILE * 32, heads, 1),
        threadgroup=(OF_A_TILE * 32, 1, 1),
        template={
            **{"T": q.dtype, "D": dim, "H": heads, "HEADS": heads_each, "N": num_blocks, "BLOCK": size},
            **{"BK": keys_for(dim), "SIMDGROUPS": OF_A_TILE},
        },
        on=on,
    )[0]


def tiles_of_pages(spans: Sequence[Span]) -> list[tuple[int, int, int, int]]:
    """Of each tile of up to 32 queries: its first row in q, its queries, its sequence, its first query's position."""
    found, row = [], 0
    for sequence, span in enumerate(spans):
        found += [(row + first, count, sequence, position) for first, count, _, position in tiles_of([span])]
        row += span[0]
    return found


def taken(pool: mx.array, tables: mx.array) -> mx.array:
    """Every sequence's blocks behind each other: pool (Hkv, N, block, D), tables (R, M) → (Hkv, R, M · block, D)."""
    rows, width = tables.shape
    return pool[:, tables].reshape(pool.shape[0], rows, width * pool.shape[2], pool.shape[3])


def check_pool(name: str, q: mx.array, keys: mx.array, values: mx.array, tables: mx.array) -> int:
    """How many query heads share a key-value head. Raises ValueError where the arrays do not suit each other."""
    expect_float(f"{name} q", q)
    expect(f"{name} q", q, (None, None, None))
    expect(f"{name} keys", keys, (None, None, None, q.shape[2]), q.dtype)
    expect(f"{name} values", values, keys.shape, q.dtype)
    (_, heads, dim), (kv_heads, num_blocks, size, _) = q.shape, keys.shape
    fits = kv_heads and heads % kv_heads == 0 and heads // kv_heads <= MAX_HEADS and 1 <= dim <= MAX_DIM
    expect(f"{name} tables", tables, (None, None), mx.int32)
    if not fits or not num_blocks * size * tables.shape[1]:
        raise ValueError(f"{name}: expected up to {MAX_HEADS} query heads of up to {MAX_DIM} dimensions for each "
                         f"key-value head, and blocks; found {heads} of {dim} over {kv_heads}, a pool of {num_blocks} "
                         f"blocks of {size}, tables {tables.shape}")  # fmt: skip
    return heads // kv_heads
