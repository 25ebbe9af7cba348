"""Scaled dot-product attention with grouped query heads. (arXiv:1706.03762; GQA: arXiv:2305.13245)

Shapes: T queries, S keys (T ≤ S, the queries are the last T positions), Hq query heads, Hkv key/value heads, D wide.
"""

import mlx.core as mx

from tiny_llm.course import NotDone


def causal_mask(num_queries: int, num_keys: int, window: int | None = None) -> mx.array:
    """True where query t may look: at key s ≤ its own position, and at most `window` keys (itself included) back.

    (T, S) bool. Query t stands at position S - T + t.
    """
    # YOUR CODE (w1.1.1): who may look at whom
    raise NotDone("w1.1.1")


def scaled_dot_product_attention(
    q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None = None
) -> mx.array:
    """softmax(q kᵀ · scale) v with masked scores at -inf. q (…, T, D), k and v (…, S, D), result (…, T, D)."""
    # YOUR CODE (w1.1.2): scores, mask, softmax, weighted sum
    raise NotDone("w1.1.2")


def grouped_attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None = None) -> mx.array:
    """Attention where Hq / Hkv neighbouring query heads share one K/V head (MHA: 1 each, MQA: all share one).

    q (Hq, T, D), k and v (Hkv, S, D), result (Hq, T, D).
    """
    # YOUR CODE (w1.3.1): heads in groups, a K/V head for each group
    raise NotDone("w1.3.1")


def causal_attention(q: mx.array, k: mx.array, v: mx.array, scale: float, window: int | None = None) -> mx.array:
    """What one sequence's last T tokens see of its S. q (T, Hq, D), k and v (Hkv, S, D), result (T, Hq, D)."""
    # YOUR CODE (w1.3.2): the mask of the last T tokens, heads first and back
    raise NotDone("w1.3.2")
