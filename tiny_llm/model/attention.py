"""Scaled dot-product attention with grouped query heads. (arXiv:1706.03762; GQA: arXiv:2305.13245)

Shapes: T queries, S keys (T ≤ S, the queries are the last T positions), Hq query heads, Hkv key/value heads, D wide.
"""

import mlx.core as mx


def causal_mask(num_queries: int, num_keys: int, window: int | None = None) -> mx.array:
    """True where query t may look: at key s ≤ its own position, and at most `window` keys (itself included) back.

    (T, S) bool. Query t stands at position S - T + t.
    """
    # TASK w1.1.1: who may look at whom
    query = mx.arange(num_keys - num_queries, num_keys)[:, None]
    key = mx.arange(num_keys)[None]
    visible = key <= query
    return visible if window is None else visible & (key > query - window)
    # END TASK


def scaled_dot_product_attention(
    q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None = None
) -> mx.array:
    """softmax(q kᵀ · scale) v with masked scores at -inf. q (…, T, D), k and v (…, S, D), result (…, T, D)."""
    # TASK w1.1.2: scores, mask, softmax, weighted sum
    scores = (q * scale) @ k.swapaxes(-1, -2)  # (…, T, S)
    if mask is not None:
        scores = mx.where(mask, scores, -mx.inf)
    return mx.softmax(scores.astype(mx.float32), axis=-1).astype(v.dtype) @ v
    # END TASK


def grouped_attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None = None) -> mx.array:
    """Attention where Hq / Hkv neighbouring query heads share one K/V head (MHA: 1 each, MQA: all share one).

    q (Hq, T, D), k and v (Hkv, S, D), result (Hq, T, D).
    """
    # TASK w1.3.1: heads in groups, a K/V head for each group
    num_heads, length, dim = q.shape
    q = q.reshape(k.shape[0], -1, length, dim)  # (Hkv, Hq/Hkv, T, D)
    out = scaled_dot_product_attention(q, k[:, None], v[:, None], scale, mask)
    return out.reshape(num_heads, length, dim)
    # END TASK


def causal_attention(q: mx.array, k: mx.array, v: mx.array, scale: float, window: int | None = None) -> mx.array:
    """What one sequence's last T tokens see of its S. q (T, Hq, D), k and v (Hkv, S, D), result (T, Hq, D)."""
    # TASK w1.3.2: the mask of the last T tokens, heads first and back
    mask = causal_mask(q.shape[0], k.shape[1], window)
    return grouped_attention(q.swapaxes(0, 1), k, v, scale, mask).swapaxes(0, 1)
    # END TASK
