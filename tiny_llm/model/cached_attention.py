"""Attention as caches need it beside the causal one: under a mask of their own, over packed keys and values, in pages.

Shapes: T queries of Hq heads, S slots of Hkv heads, D wide. A packed array is group-affine along D, as `mx.quantize`
makes it; group size and bits follow from the shapes.
"""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from tiny_llm.model.attention import causal_mask, grouped_attention

BLOCK = 256  # slots that are unpacked at a time
FEW_ROWS = 4  # of queries on a K/V head: up to here MLX's CPU product beats unpacking blocks (bench/cache.py)


class Packed(NamedTuple):
    """Keys or values (Hkv, S, D) in few bits: x ≈ scale · code + bias, one scale and bias for each group along D."""

    codes: mx.array  # (Hkv, S, D · bits / 32) uint32
    scales: mx.array  # (Hkv, S, D / group)
    biases: mx.array  # (Hkv, S, D / group)

    def layout(self, dim: int) -> tuple[int, int]:
        """(group size, bits)."""
        return dim // self.scales.shape[-1], self.codes.shape[-1] * 32 // dim

    def unpacked(self, begin: int, end: int, dim: int) -> mx.array:
        """Slots `begin` to `end` as numbers, (Hkv, end - begin, D)."""
        group_size, bits = self.layout(dim)
        codes, scales, biases = (array[:, begin:end] for array in self)
        return mx.dequantize(codes, scales, biases, group_size=group_size, bits=bits)

    def product(self, x: mx.array, dim: int, transpose: bool) -> mx.array:
        """x (Hkv, R, D) times the transposed array, (Hkv, R, S); or x (Hkv, R, S) times the array, (Hkv, R, D)."""
        group_size, bits = self.layout(dim)
        return mx.quantized_matmul(
            x, self.codes, self.scales, self.biases, transpose=transpose, group_size=group_size, bits=bits
        )


class PagedOps(NamedTuple):
    """The operations of a paged pool on one back end; `kernels/paged_attention.py` has them.

    `decode(q, keys, values, pages, scale)` attends with one query for each sequence. `prefill(q, keys, values, tables,
    spans, scale, window)` attends with several queries of each sequence in one call; None where the cache has to gather
    each sequence's slots. `copy_blocks(pool, sources)` returns copies of blocks. `reads_padding` says that `decode`
    reads on behind a sequence's end, up to the widest table of its group, and masks what it reads there.
    """

    decode: Callable[..., mx.array]
    prefill: Callable[..., mx.array] | None
    copy_blocks: Callable[[mx.array, mx.array], mx.array]
    reads_padding: bool


def masked_attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None) -> mx.array:
    """Attention where mask (T, S) is True, or everywhere. q (T, Hq, D), k and v (Hkv, S, D), result (T, Hq, D)."""
    return grouped_attention(q.swapaxes(0, 1), k, v, scale, mask).swapaxes(0, 1)


def packed_attention(
    q: mx.array, k: Packed, v: Packed, scale: float, window: int | None = None, mask: mx.array | None = None
) -> mx.array:
    """Causal attention over packed keys and values, `BLOCK` slots of which are unpacked at a time.

    Maximum and sum of the softmax are carried from block to block (arXiv:1805.02867), in float32. q (T, Hq, D) stands
    at the last T of S slots; result (T, Hq, D). A mask (T, S), where there is one, says instead who sees what.
    """
    num_queries, num_slots = q.shape[0], k.codes.shape[1]
    rows = _grouped(q * scale, k.codes.shape[0])
    mask = _mask(num_queries, num_slots, window) if mask is None else mask
    top = mx.full((*rows.shape[:-1], 1), -1e30)
    total, mixed = mx.zeros(top.shape), mx.zeros(rows.shape)
    for begin in range(0, num_slots, BLOCK):
        end = min(begin + BLOCK, num_slots)
        keys, values = k.unpacked(begin, end, q.shape[-1]), v.unpacked(begin, end, q.shape[-1])
        scores = (rows @ keys[:, None].swapaxes(-1, -2)).astype(mx.float32)  # (Hkv, G, T, block)
        if mask is not None:
            scores = mx.where(mask[:, begin:end], scores, -1e30)
        before, top = top, mx.maximum(top, scores.max(axis=-1, keepdims=True))
        weights, kept = mx.exp(scores - top), mx.exp(before - top)
        total = total * kept + weights.sum(axis=-1, keepdims=True)
        mixed = mixed * kept + weights.astype(values.dtype) @ values[:, None]
        mx.eval(top, total, mixed)  # so that one block at a time exists
    return _ungrouped((mixed / total).astype(q.dtype))


def packed_attention_product(
    q: mx.array, k: Packed, v: Packed, scale: float, window: int | None = None, mask: mx.array | None = None
) -> mx.array:
    """`packed_attention` by two products that read the packed form as it is. Shapes as there."""
    num_queries, _, dim = q.shape
    rows = _grouped(q * scale, k.codes.shape[0])
    shape = rows.shape
    scores = k.product(rows.reshape(shape[0], -1, dim), dim, True).reshape(*shape[:3], -1)  # (Hkv, G, T, S)
    mask = _mask(num_queries, scores.shape[-1], window) if mask is None else mask
    if mask is not None:
        scores = mx.where(mask, scores, -1e30)
    weights = mx.softmax(scores, axis=-1, precise=True).reshape(shape[0], -1, scores.shape[-1])
    return _ungrouped(v.product(weights, dim, False).reshape(shape))


def packed_attention_cpu(
    q: mx.array, k: Packed, v: Packed, scale: float, window: int | None = None, mask: mx.array | None = None
) -> mx.array:
    """The faster of both on a CPU, whose product with a packed matrix takes as long for each row as for the first."""
    few = q.shape[0] * q.shape[1] <= FEW_ROWS * k.codes.shape[0]
    attend: Callable[..., mx.array] = packed_attention_product if few else packed_attention
    return attend(q, k, v, scale, window, mask)


def _mask(num_queries: int, num_slots: int, window: int | None) -> mx.array | None:
    return causal_mask(num_queries, num_slots, window) if num_queries > 1 or window is not None else None


def _grouped(q: mx.array, num_kv_heads: int) -> mx.array:
    """(T, Hq, D) → (Hkv, Hq/Hkv, T, D)."""
    return q.reshape(q.shape[0], num_kv_heads, -1, q.shape[2]).transpose(1, 2, 0, 3)


def _ungrouped(out: mx.array) -> mx.array:
    """(Hkv, Hq/Hkv, T, D) → (T, Hq, D)."""
    return out.transpose(2, 0, 1, 3).reshape(out.shape[2], -1, out.shape[3])
