"""Scaled dot-product attention with grouped query heads. (arXiv:1706.03762; GQA: arXiv:2305.13245)

Shapes: T queries, S keys (T ≤ S, the queries are the last T positions), Hq query heads, Hkv key/value heads, D wide.
"""

import mlx.core as mx

from tiny_llm.course import NotDone


def causal_mask(num_queries: int, num_keys: int, window: int | None = None) -> mx.array:
    """Return which keys each query may see, (T, S) bool: those up to its own, or only the last `window` of them.

    Query t stands at position S - T + t, and its own key is the last of the window.
    """
    # YOUR CODE (w1.1.1): which keys each query may see
    raise NotDone("w1.1.1")


def scaled_dot_product_attention(
    q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None = None
) -> mx.array:
    """Compute softmax(q kᵀ · scale) v; where the mask is False, the score is -inf.

    q (…, T, D), k and v (…, S, D), mask (T, S) bool, result (…, T, D).
    """
    # YOUR CODE (w1.1.2): scores, mask, softmax, weighted sum
    raise NotDone("w1.1.2")


def grouped_attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None = None) -> mx.array:
    """Compute attention in which Hq / Hkv neighbouring query heads share one K/V head.

    MHA: each query head has a K/V head of its own; MQA: all share one.
    q (Hq, T, D), k and v (Hkv, S, D), mask (T, S) bool, result (Hq, T, D).
    """
    # YOUR CODE (w1.3.1): heads in groups, a K/V head for each group
    raise NotDone("w1.3.1")


def causal_attention(q: mx.array, k: mx.array, v: mx.array, scale: float, window: int | None = None) -> mx.array:
    """Compute the attention of a sequence's last T tokens to all its S tokens up to each of them.

    With a window, a token sees only the last `window` tokens. q (T, Hq, D), k and v (Hkv, S, D), result (T, Hq, D).
    """
    # YOUR CODE (w1.3.2): the mask of the last T tokens, heads first and back
    raise NotDone("w1.3.2")
