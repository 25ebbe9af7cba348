"""Attention query by query and head by head."""

import mlx.core as mx


def causal_mask(num_queries, num_keys, window=None):
    rows = []
    for t in range(num_queries):
        place = num_keys - num_queries + t
        first = 0 if window is None else place - window + 1
        rows.append([first <= s <= place for s in range(num_keys)])
    return mx.array(rows)


def scaled_dot_product_attention(q, k, v, scale, mask=None):
    rows = []
    for t in range(q.shape[-2]):
        scores = (q[..., t : t + 1, :] * k).astype(mx.float32).sum(axis=-1) * scale
        if mask is not None:
            scores = mx.where(mask[t], scores, -mx.inf)
        share = mx.softmax(scores, axis=-1)[..., None]
        rows.append((share * v.astype(mx.float32)).sum(axis=-2))
    return mx.stack(rows, axis=-2).astype(v.dtype)


def grouped_attention(q, k, v, scale, mask=None):
    heads = []
    for h in range(q.shape[0]):
        group = h * k.shape[0] // q.shape[0]
        heads.append(scaled_dot_product_attention(q[h], k[group], v[group], scale, mask))
    return mx.stack(heads)


def causal_attention(q, k, v, scale, window=None):
    mask = causal_mask(q.shape[0], k.shape[1], window)
    share = q.shape[1] // k.shape[0]
    heads = [
        scaled_dot_product_attention(q[:, h], k[h // share], v[h // share], scale, mask) for h in range(q.shape[1])
    ]
    return mx.stack(heads, axis=1)
