"""Attention over keys and values that lie in blocks of a pool. (PagedAttention: arXiv:2309.06180)

A pool is (Hkv, num_blocks, block, D); a sequence's block table says which block holds its tokens 0 … block - 1, which
one the next, and so on.
"""

from functools import lru_cache
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from tiny_llm.model.fused import exp_nonpositive

MASKED = -1e30


class Pages(NamedTuple):
    """Where R sequences stand in a pool: `tables` (R, M) int32, all rows filled up, and `ends` (R,) int32, the
    number of keys that the last query of each sees at most. The rest is the same, ready for the twins' products."""

    tables: mx.array
    ends: mx.array
    places: mx.array  # (R, Hkv, M): flat block index: head * num_blocks + block
    rows: mx.array  # (R, Hkv, M): which group of query heads meets each, counted through as well
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
        """For a pool of this shape, (Hkv, num_blocks, block, D). `window`: the most keys that a query sees, or None."""
        heads, num_blocks, size, _ = pool
        rows, width = tables.shape
        head = np.arange(heads)[:, None]
        key = np.arange(width * size)
        visible = key < ends[:, None]
        if window is not None:
            visible &= key >= ends[:, None] - window
        return cls(
            mx.array(tables),
            mx.array(ends),
            mx.array((head * num_blocks + tables[:, None]).astype(np.uint32)),
            *_counted(rows, heads, width),
            mx.array(visible.reshape(rows, 1, width, 1, size)),
        )


@lru_cache(maxsize=64)
def _counted(rows: int, heads: int, width: int) -> tuple[mx.array, mx.array]:
    """`Pages.rows` and `Pages.each`, which follow from the shape alone."""
    each = np.arange(rows * heads * width, dtype=np.uint32).reshape(rows, heads, width)
    return mx.array(each // width), mx.array(each)


@mx.compile
def _weights(scores: mx.array, visible: mx.array, top: mx.array, scale: mx.array) -> mx.array:
    return mx.where(visible, exp_nonpositive((scores - top) * scale), 0.0)


@mx.compile
def _masked(scores: mx.array, visible: mx.array) -> mx.array:
    return mx.where(visible, scores, MASKED)


def paged_decode_plain(q: mx.array, keys: mx.array, values: mx.array, pages: Pages, scale: float) -> mx.array:
    """Attention of one query for each sequence, all of them in two products. q and result (R, H, D).

    `gather_mm` reads the blocks where they lie: three times as fast on a CPU as gathering them first.
    """
    heads, _, size, dim = keys.shape
    places = pages.places
    if q.dtype != mx.float32:  # MLX's CPU product by index knows no other type: take the blocks out
        flat = places.reshape(-1)
        keys, values = (x.reshape(-1, size, dim)[flat].astype(mx.float32) for x in (keys, values))
        places = pages.each
    queries = q.astype(mx.float32).reshape(q.shape[0] * heads, -1, dim)  # (R·Hkv, G, D)
    scores = mx.gather_mm(queries, keys.reshape(-1, size, dim).swapaxes(1, 2), pages.rows, places)  # (R, Hkv, M, G, B)
    e, total = softmax_parts(scores, pages, scale)
    each = mx.gather_mm(e, values.reshape(-1, size, dim), pages.each, places)  # (R, Hkv, M, G, D)
    return (each.sum(axis=2, keepdims=True) / total).reshape(q.shape).astype(q.dtype)


def softmax_parts(scores: mx.array, pages: Pages, scale: float) -> tuple[mx.array, mx.array]:
    """e^(scale (s - top)), 0 where nothing is visible, (R·Hkv·M, G, block), and their sums, (R, Hkv, 1, G, 1)."""
    top = _masked(scores, pages.visible).max(axis=(2, 4), keepdims=True)
    e = _weights(scores, pages.visible, top, mx.array(scale))
    return e.reshape(-1, *e.shape[3:]), e.sum(axis=(2, 4), keepdims=True)
