"""A column at a time."""

import mlx.core as mx


def mask_logits(logits, bits):
    columns = []
    for token in range(logits.shape[1]):
        bit = bits[:, token // 32] & mx.array(1 << token % 32, mx.uint32).view(mx.int32)
        columns.append(mx.where(bit != 0, logits[:, token], mx.array(-mx.inf, logits.dtype)))
    return mx.stack(columns, axis=1)
