"""Attention for caches that need more than the causal one: with a mask of their own, over packed K and V, in pages.

Shapes: T queries of Hq heads, S slots of Hkv heads, D wide. `mx.quantize` packs keys and values, in groups along D;
group size and bits follow from the shapes.
"""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from tiny_llm.model.attention import causal_mask, grouped_attention

BLOCK = 256  # slots that are unpacked at a time
FEW_ROWS = 4  # up to so many query rows for a K/V head MLX's CPU product beats unpacking blocks (bench/cache.py)
LOWEST = -1e30  # the score of a slot that is masked


class Packed(NamedTuple):
    """Keys or values (Hkv, S, D) in few bits: x ≈ scale · code + bias, a scale and a bias for each group along D."""

    codes: mx.array  # (Hkv, S, D · bits / 32) uint32
    scales: mx.array  # (Hkv, S, D / group)
    biases: mx.array  # (Hkv, S, D / group)

    def layout(self, dim: int) -> tuple[int, int]:
        """Return (group size, bits). `dim`: D, the length of an unpacked row."""
        groups = self.scales.shape[-1]
        words = self.codes.shape[-1]
        return dim // groups, words * 32 // dim

    def unpacked(self, begin: int, end: int, dim: int) -> mx.array:
        """Return slots `begin` to `end` unpacked, (Hkv, end - begin, D)."""
        group_size, bits = self.layout(dim)
        codes = self.codes[:, begin:end]
        scales = self.scales[:, begin:end]
        biases = self.biases[:, begin:end]
        return mx.dequantize(codes, scales, biases, group_size=group_size, bits=bits)

    def product(self, x: mx.array, dim: int, transpose: bool) -> mx.array:
        """Multiply by the packed array as it is.

        x (Hkv, R, D) by its transpose: (Hkv, R, S). Without `transpose`, x (Hkv, R, S): (Hkv, R, D).
        """
        group_size, bits = self.layout(dim)
        return mx.quantized_matmul(
            x, self.codes, self.scales, self.biases, transpose=transpose, group_size=group_size, bits=bits
        )


class Mixture(NamedTuple):
    """Attention to a part of the slots: the highest score, and sums with e^(score - top) as the weight of a slot."""

    top: mx.array  # (Hkv, G, T, 1)
    total: mx.array  # (Hkv, G, T, 1), the sum of the weights
    mixed: mx.array  # (Hkv, G, T, D), the sum of the weighted values

    def plus(self, scores: mx.array, values: mx.array) -> "Mixture":
        """Add further slots: their scores (Hkv, G, T, S) and values (Hkv, 1, S, D)."""
        top = scores.max(axis=-1, keepdims=True)
        top = mx.maximum(self.top, top)
        kept = mx.exp(self.top - top)
        weights = mx.exp(scores - top)
        added = weights.sum(axis=-1, keepdims=True)
        total = self.total * kept + added
        added = weights.astype(values.dtype) @ values
        mixed = self.mixed * kept + added
        return Mixture(top, total, mixed)


class PagedOps(NamedTuple):
    """The operations of a paged pool on one back end; `kernels/paged_attention.py` has them.

    `decode(q, keys, values, pages, scale)` attends with one query for each sequence. `prefill(q, keys, values, tables,
    spans, scale, window, near)` attends with several queries of each sequence in one call, which may be trees by the
    words in `near`; None where the cache has to gather each sequence's slots. `copy_blocks(pool, sources)` returns
    copies of blocks. `reads_padding` says that `decode` reads on behind a sequence's end, up to the widest table of its
    group, and masks what it reads there.
    """

    decode: Callable[..., mx.array]
    prefill: Callable[..., mx.array] | None
    copy_blocks: Callable[[mx.array, mx.array], mx.array]
    reads_padding: bool


def masked_attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None) -> mx.array:
    """Compute attention to the slots where mask (T, S) is True, or to all slots without a mask.

    q (T, Hq, D), k and v (Hkv, S, D), result (T, Hq, D).
    """
    out = grouped_attention(q.swapaxes(0, 1), k, v, scale, mask)  # (Hq, T, D)
    return out.swapaxes(0, 1)


def packed_attention(
    q: mx.array, k: Packed, v: Packed, scale: float, window: int | None = None, mask: mx.array | None = None
) -> mx.array:
    """Compute causal attention over packed keys and values, unpacking `BLOCK` slots at a time.

    The queries q (T, Hq, D) stand at the last T of S slots; result (T, Hq, D). A `mask` (T, S) replaces the causal one.
    Method: the maximum and the sum of the softmax are carried from block to block, in float32 (arXiv:1805.02867).
    """
    num_queries, _, dim = q.shape
    num_kv_heads, num_slots, _ = k.codes.shape
    rows = _grouped(q * scale, num_kv_heads)  # (Hkv, G, T, D)
    if mask is None:
        mask = _mask(num_queries, num_slots, window)
    top = mx.full((*rows.shape[:-1], 1), LOWEST)
    so_far = Mixture(top, mx.zeros(top.shape), mx.zeros(rows.shape))
    for begin in range(0, num_slots, BLOCK):
        end = min(begin + BLOCK, num_slots)
        keys = k.unpacked(begin, end, dim)[:, None]  # (Hkv, 1, block, D)
        values = v.unpacked(begin, end, dim)[:, None]
        scores = rows @ keys.swapaxes(-1, -2)  # (Hkv, G, T, block)
        scores = scores.astype(mx.float32)
        if mask is not None:
            scores = mx.where(mask[:, begin:end], scores, LOWEST)
        so_far = so_far.plus(scores, values)
        mx.eval(*so_far)  # frees the unpacked block before the next is unpacked
    out = so_far.mixed / so_far.total
    return _ungrouped(out.astype(q.dtype))


def packed_attention_product(
    q: mx.array, k: Packed, v: Packed, scale: float, window: int | None = None, mask: mx.array | None = None
) -> mx.array:
    """Compute `packed_attention` by two products that read the packed arrays as they are; the same shapes."""
    num_queries, _, dim = q.shape
    num_kv_heads, num_slots, _ = k.codes.shape
    grouped = _grouped(q * scale, num_kv_heads)  # (Hkv, G, T, D)
    rows = grouped.reshape(num_kv_heads, -1, dim)  # (Hkv, G · T, D)
    scores = k.product(rows, dim, True)  # (Hkv, G · T, S)
    scores = scores.reshape(*grouped.shape[:3], num_slots)
    if mask is None:
        mask = _mask(num_queries, num_slots, window)
    if mask is not None:
        scores = mx.where(mask, scores, LOWEST)
    weights = mx.softmax(scores, axis=-1, precise=True)
    weights = weights.reshape(num_kv_heads, -1, num_slots)
    out = v.product(weights, dim, False)  # (Hkv, G · T, D)
    return _ungrouped(out.reshape(grouped.shape))


def packed_attention_cpu(
    q: mx.array, k: Packed, v: Packed, scale: float, window: int | None = None, mask: mx.array | None = None
) -> mx.array:
    """Compute `packed_attention` by the faster way on a CPU, where MLX's packed product unpacks again for each row."""
    num_queries, num_heads, _ = q.shape
    num_kv_heads = k.codes.shape[0]
    if num_queries * num_heads <= FEW_ROWS * num_kv_heads:
        return packed_attention_product(q, k, v, scale, window, mask)
    return packed_attention(q, k, v, scale, window, mask)


def _mask(num_queries: int, num_slots: int, window: int | None) -> mx.array | None:
    """Return the causal mask; None where a single query sees all slots."""
    if num_queries == 1 and window is None:
        return None
    return causal_mask(num_queries, num_slots, window)


def _grouped(q: mx.array, num_kv_heads: int) -> mx.array:
    """Put the heads that share a K/V head together: (T, Hq, D) → (Hkv, Hq/Hkv, T, D)."""
    length, _, dim = q.shape
    q = q.reshape(length, num_kv_heads, -1, dim)
    return q.transpose(1, 2, 0, 3)


def _ungrouped(out: mx.array) -> mx.array:
    """Undo `_grouped`: (Hkv, Hq/Hkv, T, D) → (T, Hq, D)."""
    _, _, length, dim = out.shape
    out = out.transpose(2, 0, 1, 3)
    return out.reshape(length, -1, dim)
