"""Scaled dot-product attention with grouped query heads. (arXiv:1706.03762; GQA: arXiv:2305.13245)

Shapes: T queries, S keys (T ≤ S, the queries are the last T positions), Hq query heads, Hkv key/value heads, D wide.
"""

import mlx.core as mx


def causal_mask(num_queries: int, num_keys: int, window: int | None = None) -> mx.array:
    """Return which keys each query may see, (T, S) bool: those up to its own, or only the last `window` of them.

    Query t stands at position S - T + t, and its own key is the last of the window.
    """
    # TASK w1.1.1: which keys each query may see
    query = mx.arange(num_keys - num_queries, num_keys)[:, None]
    key = mx.arange(num_keys)[None]
    visible = key <= query
    if window is not None:
        visible = visible & (key > query - window)
    return visible
    # END TASK


def scaled_dot_product_attention(
    q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None = None
) -> mx.array:
    """Compute softmax(q kᵀ · scale) v; where the mask is False, the score is -inf.

    q (…, T, D), k and v (…, S, D), mask (T, S) bool, result (…, T, D).
    """
    # TASK w1.1.2: scores, mask, softmax, weighted sum
    scores = (q * scale) @ k.swapaxes(-1, -2)  # (…, T, S)
    if mask is not None:
        scores = mx.where(mask, scores, -mx.inf)
    weights = mx.softmax(scores.astype(mx.float32), axis=-1)
    return weights.astype(v.dtype) @ v
    # END TASK


def grouped_attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None = None) -> mx.array:
    """Compute attention in which Hq / Hkv neighbouring query heads share one K/V head.

    MHA: each query head has a K/V head of its own; MQA: all share one.
    q (Hq, T, D), k and v (Hkv, S, D), mask (T, S) bool, result (Hq, T, D).
    """
    # TASK w1.3.1: heads in groups, a K/V head for each group
    num_heads, length, dim = q.shape
    num_kv_heads = k.shape[0]
    q = q.reshape(num_kv_heads, -1, length, dim)  # (Hkv, Hq/Hkv, T, D)
    out = scaled_dot_product_attention(q, k[:, None], v[:, None], scale, mask)
    return out.reshape(num_heads, length, dim)
    # END TASK


def causal_attention(q: mx.array, k: mx.array, v: mx.array, scale: float, window: int | None = None) -> mx.array:
    """Compute the attention of a sequence's last T tokens to all its S tokens up to each of them.

    With a window, a token sees only the last `window` tokens. q (T, Hq, D), k and v (Hkv, S, D), result (T, Hq, D).
    """
    # TASK w1.3.2: the mask of the last T tokens, heads first and back
    num_queries = q.shape[0]
    num_keys = k.shape[1]
    mask = causal_mask(num_queries, num_keys, window)
    out = grouped_attention(q.swapaxes(0, 1), k, v, scale, mask)  # (Hq, T, D)
    return out.swapaxes(0, 1)
    # END TASK
