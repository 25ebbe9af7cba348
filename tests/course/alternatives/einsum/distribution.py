"""Distributions with where."""

import mlx.core as mx


def weights(logits, temperature):
    scaled = logits / temperature
    return mx.exp(scaled - scaled.max(axis=-1, keepdims=True))


def top_k(weights, k):
    return mx.where(mx.arange(weights.shape[1])[None] >= k, 0.0, weights)


def top_p(weights, p):
    total = weights.sum(axis=-1, keepdims=True)
    before = mx.cumsum(weights, axis=-1) - weights
    return mx.where(before >= p * total, 0.0, weights)


def min_p(weights, p):
    return mx.where(weights < p, 0.0, weights)


def penalize(logits, counts, in_prompt, repetition, presence, frequency):
    written = counts > 0
    factor = mx.where(logits > 0, 1 / repetition, repetition)
    logits = mx.where(written | (in_prompt > 0), logits * factor, logits)
    return logits - mx.where(written, presence + frequency * counts, 0)
