"""Scaled dot-product attention with grouped query heads. (arXiv:1706.03762; GQA: arXiv:2305.13245)

Shapes: T queries, S keys (T ≤ S, the queries are the last T positions), Hq query heads, Hkv key/value heads, D wide.
"""

import mlx.core as mx


def causal_mask(num_queries: int, num_keys: int, window: int | None = None) -> mx.array:
    """True where query t may look: at key s ≤ its own position, and at most `window` keys (itself included) back.

    (T, S) bool. Query t stands at position S - T + t.
    """
    # TASK w1.1.1: who may look at whom
    # HINT 1: With 6 keys and 2 queries, at which positions do the queries stand?
    # HINT 2: Make a column of the queries' positions and a row of the keys'; comparing them broadcasts to (T, S).
    # HINT 3: key <= query, and where there is a window also key > query - window
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
    # HINT 1: Which axis of k must move so that q @ k gives one number for each query and key?
    # HINT 2: Put minus infinity where the mask is False: its exponential is 0. Softmax runs over the keys, the last
    #   axis; compute it in float32 and return to v's dtype for the last product.
    # HINT 3: scores = q kᵀ · scale → mx.where(mask, scores, -inf) → mx.softmax(…, axis=-1) → weights v
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
    # HINT 1: With 4 query heads and 2 K/V heads: which K/V head does query head 1 use, and which query head 2?
    # HINT 2: Give q an axis for the group and k and v an axis of length 1 at its place; the products broadcast over it.
    # HINT 3: q (Hkv, Hq/Hkv, T, D) with k[:, None] and v[:, None], then back to (Hq, T, D)
    num_heads, length, dim = q.shape
    q = q.reshape(k.shape[0], -1, length, dim)  # (Hkv, Hq/Hkv, T, D)
    out = scaled_dot_product_attention(q, k[:, None], v[:, None], scale, mask)
    return out.reshape(num_heads, length, dim)
    # END TASK


def causal_attention(q: mx.array, k: mx.array, v: mx.array, scale: float, window: int | None = None) -> mx.array:
    """What one sequence's last T tokens see of its S. q (T, Hq, D), k and v (Hkv, S, D), result (T, Hq, D)."""
    # TASK w1.3.2: the mask of the last T tokens, heads first and back
    # HINT 1: The model's q holds tokens first, (T, Hq, D). What does grouped_attention expect, and what is returned?
    # HINT 2: T and S for the mask stand in the shapes: q has T tokens, k and v have S.
    # HINT 3: mask = causal_mask(T, S, window); swap axes 0 and 1 of q, attend, swap back
    mask = causal_mask(q.shape[0], k.shape[1], window)
    return grouped_attention(q.swapaxes(0, 1), k, v, scale, mask).swapaxes(0, 1)
    # END TASK
