"""Sampling row by row in numpy."""

import mlx.core as mx
import numpy as np


def weights(logits, temperature):
    rows = np.array(logits) / np.array(temperature)
    return mx.array(np.exp(rows - rows.max(axis=-1, keepdims=True)))


def top_k(weights, k):
    rows = np.array(weights)
    for row, keep in zip(rows, np.array(k)[:, 0], strict=True):
        row[keep:] = 0
    return mx.array(rows)


def top_p(weights, p):
    rows = np.array(weights)
    for row, share in zip(rows, np.array(p)[:, 0], strict=True):
        total, held = row.sum(), 0.0
        for i in range(len(row)):
            if held >= share * total:
                row[i:] = 0
                break
            held += row[i]
    return mx.array(rows)


def min_p(weights, p):
    rows = np.array(weights)
    rows[rows < np.array(p)] = 0
    return mx.array(rows)


def penalize(logits, counts, in_prompt, repetition, presence, frequency):
    logits = mx.where((counts + in_prompt > 0) & (logits > 0), logits / repetition, logits)
    logits = mx.where((counts + in_prompt > 0) & (logits < 0), logits * repetition, logits)
    logits -= frequency * counts
    return mx.where(counts > 0, logits - presence, logits)


def inverse_cdf(weights, uniform):
    columns = []
    for row, dart in zip(np.array(weights), np.array(uniform)[:, 0], strict=True):
        columns.append(int(np.searchsorted(np.cumsum(row), dart * row.sum(), side="right")))
    return mx.array(columns, mx.uint32)
