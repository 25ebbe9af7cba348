"""With a table of powers in place of shifts."""

import mlx.core as mx


def mask_logits(logits, bits):
    tokens = mx.arange(logits.shape[1])
    words = mx.take(bits, tokens // 32, axis=1).astype(mx.int64)
    powers = mx.power(mx.array(2, mx.int64), (tokens % 32).astype(mx.int64))
    odd = mx.remainder(mx.floor_divide(words, powers), 2)
    return mx.where(odd == 0, mx.array(float("-inf"), logits.dtype), logits)
