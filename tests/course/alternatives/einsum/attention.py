"""Attention with einsum, repeated heads, and a softmax of its own."""

import mlx.core as mx


def causal_mask(num_queries, num_keys, window=None):
    last = num_keys - num_queries
    visible = mx.tri(num_queries, num_keys, last, dtype=mx.int32)
    if window is not None:
        visible -= mx.tri(num_queries, num_keys, last - window, dtype=mx.int32)
    return visible == 1


def scaled_dot_product_attention(q, k, v, scale, mask=None):
    scores = mx.einsum("...td,...sd->...ts", q.astype(mx.float32), k.astype(mx.float32)) * scale
    if mask is not None:
        scores += mx.where(mask, 0, -1e9)
    e = mx.exp(scores - scores.max(axis=-1, keepdims=True))
    out = mx.einsum("...ts,...sd->...td", e, v.astype(mx.float32)) / e.sum(axis=-1)[..., None]
    return out.astype(v.dtype)


def grouped_attention(q, k, v, scale, mask=None):
    share = q.shape[0] // k.shape[0]
    return scaled_dot_product_attention(q, mx.repeat(k, share, axis=0), mx.repeat(v, share, axis=0), scale, mask)


def causal_attention(q, k, v, scale, window=None):
    out = grouped_attention(q.transpose(1, 0, 2), k, v, scale, causal_mask(len(q), k.shape[1], window))
    return out.transpose(1, 0, 2)
