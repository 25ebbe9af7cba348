"""Attention over keys and values in blocks of a pool: kernels and plain twins. (PagedAttention: arXiv:2309.06180)

A pool is (Hkv, num_blocks, block, D); a sequence's block table says which block holds its tokens 0 … block - 1, which
block the next, and so on.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple, cast

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from tiny_llm.kernels.copy_blocks import copied_blocks_plain
from tiny_llm.kernels.decode_attention import (
    MAX_HEADS,
    SIMDGROUPS,
    Parts,
    chunk_for,
    merge_attention,
    parts_like,
    parts_plain,
    splits_of,
)
from tiny_llm.kernels.flash_attention import MAX_DIM, Extent, flash_plain, keys_for, tiles_of
from tiny_llm.kernels.flash_attention import SIMDGROUPS as OF_A_TILE
from tiny_llm.kernels.launch import Kernel, On, expect_array, expect_float
from tiny_llm.model.cached_attention import Packed, PagedOps
from tiny_llm.model.fused import exp_nonpositive

PAGED_DECODE = Kernel("paged_decode", "q keys values tables lengths scale window M SPLITS", "parts tops sums")
PAGED_PREFILL = Kernel("paged_prefill", "q keys values tables tiles scale window M near", "out")
MASKED = -1e30


class Pages(NamedTuple):
    """Where R sequences stand in a pool, and what the last query of each sees.

    The kernel reads `tables`, `ends` and `window`; the other fields are the same, ready for the twins' products.
    """

    tables: mx.array  # (R, M) int32: each row's blocks in order, short rows padded
    ends: mx.array  # (R,) int32: keys up to the last query of each sequence, itself included
    window: int  # the most keys that a query sees; 0: all
    places: mx.array  # (R, Hkv, M): flat block index: head * num_blocks + block
    rows: mx.array  # (R, Hkv, M): flat index of the group of query heads that meets each block
    each: mx.array  # (R, Hkv, M): 0, 1, 2, …
    visible: mx.array  # (R, 1, M, 1, block): keys that the last query sees

    @classmethod
    def of(
        cls,
        tables: npt.NDArray[np.int32],
        ends: npt.NDArray[np.int32],
        pool: tuple[int, ...],
        window: int | None = None,
    ) -> "Pages":
        """Build the pages of a pool of this shape, (Hkv, num_blocks, block, D); a `window` of None means all keys."""
        heads, num_blocks, size, _ = pool
        count, width = tables.shape
        head = np.arange(heads)[:, None]
        places = head * num_blocks + tables[:, None]
        key = np.arange(width * size)
        visible = key < ends[:, None]
        if window is not None:
            visible &= key >= ends[:, None] - window
        rows, each = _counted(count, heads, width)
        return cls(
            mx.array(tables),
            mx.array(ends),
            window or 0,
            mx.array(places.astype(np.uint32)),
            rows,
            each,
            mx.array(visible.reshape(count, 1, width, 1, size)),
        )


@lru_cache(maxsize=64)
def _counted(rows: int, heads: int, width: int) -> tuple[mx.array, mx.array]:
    """Return `Pages.rows` and `Pages.each`, which follow from the shape alone."""
    each = np.arange(rows * heads * width, dtype=np.uint32).reshape(rows, heads, width)
    return mx.array(each // width), mx.array(each)


def paged_decode(
    q: mx.array, keys: mx.array, values: mx.array, tables: mx.array, lengths: mx.array, scale: float,
    window: int = 0, chunk: int = 0, on: On = None,
) -> mx.array:  # fmt: skip
    """Compute softmax(q Kᵀ scale) V of one query for each sequence, over the blocks in its table, in float32.

    A query sees the last `window` (0: all) of its sequence's `lengths` first keys. q and result (R, H, D); keys and
    values (Hkv, N, block, D) of its dtype; tables (R, M) int32, each row's blocks in order; lengths (R,) int32 of 1 to
    M · block. Two launches: `paged_decode_parts`, `merge_attention`.
    """
    parts = paged_decode_parts(q, keys, values, tables, lengths, scale, window, chunk, on)
    return merge_attention(*parts, q.dtype, on).reshape(q.shape)


def paged_decode_parts(
    q: mx.array, keys: mx.array, values: mx.array, tables: mx.array, lengths: mx.array, scale: float,
    window: int = 0, chunk: int = 0, on: On = None,
) -> Parts:  # fmt: skip
    """Compute the parts of `paged_decode`, as `decode_attention_parts` returns them.

    Reads each key and value once for all query heads that share it, and its block's number beside it; a threadgroup
    takes one chunk of one key-value head. Raises ValueError for other shapes.
    """
    heads_each = check_pool("paged_decode", q, keys, values, tables)
    rows, heads, dim = q.shape
    kv_heads, num_blocks, size, _ = keys.shape
    width = tables.shape[1]
    expect_array("paged_decode tables", tables, (rows, None), mx.int32)
    expect_array("paged_decode lengths", lengths, (rows,), mx.int32)
    chunk = chunk or chunk_for(heads_each)
    splits = splits_of(width * size, window, chunk)

    def plain() -> list[mx.array]:
        k = taken(keys, tables).swapaxes(0, 1)
        v = taken(values, tables).swapaxes(0, 1)
        return parts_plain(q, k, v, lengths, scale, window, chunk)

    parts, tops, sums = PAGED_DECODE(
        q,
        keys,
        values,
        tables,
        lengths,
        mx.array(scale, mx.float32),
        window,
        width,
        splits,
        plain=plain,
        like=parts_like(rows * heads, splits, dim),
        grid=(splits * SIMDGROUPS * 32, kv_heads, max(1, rows)),
        threadgroup=(SIMDGROUPS * 32, 1, 1),
        template={
            "T": q.dtype,
            "D": dim,
            "HEADS": heads_each,
            "KV_HEADS": kv_heads,
            "N": num_blocks,
            "BLOCK": size,
            "CHUNK": chunk,
            "SIMDGROUPS": SIMDGROUPS,
        },
        on=on,
    )
    return parts, tops, sums


def paged_decode_plain(q: mx.array, keys: mx.array, values: mx.array, pages: Pages, scale: float) -> mx.array:
    """Compute attention of one query for each sequence, all of them in two products. q and result (R, H, D).

    `gather_mm` reads the blocks where they lie: three times as fast on a CPU as gathering them first.
    """
    heads, _, size, dim = keys.shape
    keys = keys.reshape(-1, size, dim)
    values = values.reshape(-1, size, dim)
    places = pages.places
    if q.dtype != mx.float32:  # MLX's CPU product by index knows no other type: take the blocks out
        flat = places.reshape(-1)
        keys = keys[flat].astype(mx.float32)
        values = values[flat].astype(mx.float32)
        places = pages.each
    queries = q.astype(mx.float32).reshape(q.shape[0] * heads, -1, dim)  # (R·Hkv, G, D)
    scores = mx.gather_mm(queries, keys.swapaxes(1, 2), pages.rows, places)  # (R, Hkv, M, G, block)
    e, total = softmax_parts(scores, pages, scale)
    each = mx.gather_mm(e, values, pages.each, places)  # (R, Hkv, M, G, D)
    mixed = each.sum(axis=2, keepdims=True)
    return (mixed / total).reshape(q.shape).astype(q.dtype)


def paged_decode_packed(q: mx.array, keys: Packed, values: Packed, pages: Pages, scale: float) -> mx.array:
    """Compute `paged_decode_plain` over a pool in few bits: its arrays are (Hkv, num_blocks, block, …)."""
    dim = q.shape[2]
    heads, _, size, _ = keys.codes.shape
    group_size, bits = keys.layout(dim)

    def product(x: mx.array, packed: Packed, rows: mx.array, transpose: bool) -> mx.array:
        blocks = (part.reshape(-1, size, part.shape[3]) for part in packed)
        times = cast(Callable[..., mx.array], mx.gather_qmm)
        layout = {"group_size": group_size, "bits": bits, "transpose": transpose}
        return times(x, *blocks, lhs_indices=rows, rhs_indices=pages.places, **layout)

    queries = q.reshape(q.shape[0] * heads, -1, dim)  # (R·Hkv, G, D)
    scores = product(queries, keys, pages.rows, True)  # (R, Hkv, M, G, block)
    e, total = softmax_parts(scores.astype(mx.float32), pages, scale)
    each = product(e.astype(q.dtype), values, pages.each, False)  # (R, Hkv, M, G, D)
    mixed = each.sum(axis=2, keepdims=True)
    return (mixed / total).reshape(q.shape).astype(q.dtype)


def softmax_parts(scores: mx.array, pages: Pages, scale: float) -> tuple[mx.array, mx.array]:
    """Return e^(scale (s - top)), 0 where a key is not visible, (R·Hkv·M, G, block), and the sums (R, Hkv, 1, G, 1)."""
    masked = _masked(scores, pages.visible)
    top = masked.max(axis=(2, 4), keepdims=True)
    e = _weights(scores, pages.visible, top, mx.array(scale))
    total = e.sum(axis=(2, 4), keepdims=True)
    return e.reshape(-1, *e.shape[3:]), total


@mx.compile
def _masked(scores: mx.array, visible: mx.array) -> mx.array:
    return mx.where(visible, scores, MASKED)


@mx.compile
def _weights(scores: mx.array, visible: mx.array, top: mx.array, scale: mx.array) -> mx.array:
    return mx.where(visible, exp_nonpositive((scores - top) * scale), 0.0)


def paged_prefill(
    q: mx.array, keys: mx.array, values: mx.array, tables: mx.array, spans: Sequence[Extent], scale: float,
    window: int = 0, near: mx.array | None = None, on: On = None,
) -> mx.array:  # fmt: skip
    """Compute causal softmax(q Kᵀ scale) V of the new tokens of several sequences in one flat row, in float32.

    q and result (T, H, D); keys and values (Hkv, N, block, D) of its dtype; tables (R, M) int32; `spans` holds
    (new, all) of each sequence, whose new tokens are its last. With `near`, (T,) uint64, the new tokens may be trees:
    bit d of near[t] says whether query t sees the token d slots before its own; it sees all that are further away.
    Reads q once; keys and values once for each head and tile of 32 queries that sees them. Raises ValueError for other
    shapes.
    """
    heads_each = check_pool("paged_prefill", q, keys, values, tables)
    tokens, heads, dim = q.shape
    _, num_blocks, size, _ = keys.shape
    width = tables.shape[1]
    expect_array("paged_prefill tables", tables, (len(spans), None), mx.int32)
    check_spans(spans, tokens, width * size, window)
    tiles = tiles_of_pages(spans)
    if near is not None:
        expect_array("paged_prefill near", near, (tokens,), mx.uint64)

    def plain() -> list[mx.array]:
        k = mx.concatenate(_filled(keys, tables, spans), axis=1)
        v = mx.concatenate(_filled(values, tables, spans), axis=1)
        return [flash_plain(q, k, v, spans, scale, window, near)]

    return PAGED_PREFILL(
        q,
        keys,
        values,
        tables,
        mx.array(tiles, mx.int32).reshape(-1, 4),
        mx.array(scale, mx.float32),
        window,
        width,
        mx.zeros((1,), mx.uint64) if near is None else near,
        plain=plain,
        like=[(q.shape, q.dtype)],
        grid=(max(1, len(tiles)) * OF_A_TILE * 32, heads, 1),
        threadgroup=(OF_A_TILE * 32, 1, 1),
        template={
            "T": q.dtype,
            "D": dim,
            "H": heads,
            "HEADS": heads_each,
            "N": num_blocks,
            "BLOCK": size,
            "BK": keys_for(dim),
            "SIMDGROUPS": OF_A_TILE,
            "TREE": near is not None,
        },
        on=on,
    )[0]


def tiles_of_pages(spans: Sequence[Extent]) -> list[tuple[int, int, int, int]]:
    """Return of each tile of up to 32 queries: first row in q, queries, sequence, position of the first query."""
    found = []
    row = 0
    for sequence, span in enumerate(spans):
        for first, count, _, position in tiles_of([span]):
            found.append((row + first, count, sequence, position))
        row += span[0]
    return found


def taken(pool: mx.array, tables: mx.array) -> mx.array:
    """Gather every sequence's blocks: pool (Hkv, N, block, D), tables (R, M) → (Hkv, R, M · block, D)."""
    heads, _, size, dim = pool.shape
    rows, width = tables.shape
    return pool[:, tables].reshape(heads, rows, width * size, dim)


def _filled(pool: mx.array, tables: mx.array, spans: Sequence[Extent]) -> list[mx.array]:
    """Return each sequence's tokens in their order, (Hkv, all, D)."""
    blocks = taken(pool, tables)
    return [blocks[:, row, :total] for row, (_, total) in enumerate(spans)]


def check_spans(spans: Sequence[Extent], tokens: int, longest: int, window: int) -> None:
    """Raise ValueError where sequences do not bring `tokens` new tokens, or are longer than their tables."""
    added = sum(new for new, _ in spans)
    fits = all(0 <= new <= total <= longest for new, total in spans)
    if added != tokens or window < 0 or not fits:
        raise ValueError(
            f"paged_prefill: expected {tokens} new tokens in all, of sequences of up to {longest}, and a window of at "
            f"least 0; found {list(spans)} and {window}"
        )


def check_pool(name: str, q: mx.array, keys: mx.array, values: mx.array, tables: mx.array) -> int:
    """Return how many query heads share a key-value head. Raise ValueError where the arrays do not fit each other."""
    expect_float(f"{name} q", q)
    expect_array(f"{name} q", q, (None, None, None))
    expect_array(f"{name} keys", keys, (None, None, None, q.shape[2]), q.dtype)
    expect_array(f"{name} values", values, keys.shape, q.dtype)
    expect_array(f"{name} tables", tables, (None, None), mx.int32)
    _, heads, dim = q.shape
    kv_heads, num_blocks, size, _ = keys.shape
    shared = kv_heads > 0 and heads % kv_heads == 0 and heads <= MAX_HEADS * kv_heads
    held = 1 <= dim <= MAX_DIM
    slots = num_blocks * size * tables.shape[1]
    if not shared or not held or not slots:
        raise ValueError(
            f"{name}: expected up to {MAX_HEADS} query heads of up to {MAX_DIM} dimensions for each key-value head, "
            f"and blocks; found {heads} of {dim} over {kv_heads}, a pool of {num_blocks} blocks of {size}, "
            f"tables {tables.shape}"
        )
    return heads // kv_heads


TWINS = PagedOps(paged_decode_plain, None, copied_blocks_plain, reads_padding=True)
PACKED_TWINS = PagedOps(paged_decode_packed, None, copied_blocks_plain, reads_padding=True)
