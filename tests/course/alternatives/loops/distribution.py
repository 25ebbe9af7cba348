"""Distributions row by row in Python."""

import mlx.core as mx


def weights(logits, temperature):
    rows = []
    for row, divisor in zip(logits, temperature, strict=True):
        rows.append(mx.exp((row - row.max()) / divisor))
    return mx.stack(rows)


def top_k(weights, k):
    rows = weights.tolist()
    for row, keep in zip(rows, k.tolist(), strict=True):
        for i in range(int(keep[0]), len(row)):
            row[i] = 0.0
    return mx.array(rows)


def top_p(weights, p):
    rows = weights.tolist()
    for row, share in zip(rows, p.tolist(), strict=True):
        total, held = sum(row), 0.0
        for i, weight in enumerate(row):
            if held >= share[0] * total:
                row[i] = 0.0
            held += weight
    return mx.array(rows)


def min_p(weights, p):
    rows = []
    for row, least in zip(weights.tolist(), p.tolist(), strict=True):
        rows.append([weight if weight >= least[0] else 0.0 for weight in row])
    return mx.array(rows)


def penalize(logits, counts, in_prompt, repetition, presence, frequency):
    logits = mx.where((counts + in_prompt > 0) & (logits > 0), logits / repetition, logits)
    logits = mx.where((counts + in_prompt > 0) & (logits < 0), logits * repetition, logits)
    logits -= frequency * counts
    return mx.where(counts > 0, logits - presence, logits)
