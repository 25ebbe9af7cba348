"""What sampling should do, in numpy float64, one row at a time and in loops; and the tools to compare with it."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from tiny_llm.config import SamplingParams
from tiny_llm.decode.sampler import Sampler

Floats = npt.NDArray[np.float64]


def penalized(logits: Any, params: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> Floats:
    x = np.array(logits, np.float64)
    for token, bias in params.logit_bias.items():
        x[token] += bias
    for token in {*prompt, *output}:
        r = params.repetition_penalty
        x[token] = x[token] / r if x[token] > 0 else x[token] * r
    for token, count in Counter(output).items():
        x[token] -= count * params.frequency_penalty + params.presence_penalty
    return x


def softmax(x: Floats) -> Floats:
    e = np.exp(x - x.max())
    return np.asarray(e / e.sum())


@dataclass
class Exact:
    """The distribution of the next token, and how near it is to being another: the least distance of a decision."""

    probabilities: Floats
    margin: float


def exact(logits: Any, params: SamplingParams, prompt: Sequence[int] = (), output: Sequence[int] = ()) -> Exact:
    x = penalized(logits, params, prompt, output)
    order = np.argsort(-x, kind="stable")
    gaps = -np.diff(x[order][np.isfinite(x[order])])
    margin = float(gaps.min()) if len(gaps) else 1.0
    if params.temperature == 0:
        return Exact(np.eye(len(x))[order[0]], margin)
    p = softmax((x - x.max()) / params.temperature)  # x / 1e-320 alone would overflow
    kept = list(order)
    if params.top_k:
        kept = kept[: params.top_k]
    share, nucleus = p[kept].sum(), []
    mass = 0.0
    for token in kept:
        if nucleus and mass / share >= params.top_p:
            break
        nucleus.append(token)
        mass += p[token]
        if params.top_p < 1 and p[token] > 0:
            margin = min(margin, abs(mass / share - params.top_p))
    if params.min_p:
        margin = min(margin, np.abs(p[nucleus] / p.max() - params.min_p).min())
        nucleus = [token for token in nucleus if p[token] / p.max() >= params.min_p]
    q = np.zeros_like(p)
    q[nucleus] = p[nucleus] / p[nucleus].sum()
    return Exact(q, margin)


def many(
    params: SamplingParams, logits: Any, rows: int, prompt: Sequence[int] = (), output: Sequence[int] = ()
) -> npt.NDArray[np.int64]:
    """Draw `rows` times from one row of logits, at as many positions of one seed."""
    vocab = len(logits)
    seeds = [params.seed or 7] * rows
    sampler = Sampler([params] * rows, vocab, [prompt] * rows, outputs=[output] * rows, seeds=seeds)
    return np.array(sampler(mx.broadcast_to(mx.array(logits, mx.float32), (rows, vocab)), range(rows)).tokens, np.int64)


def chi_square(tokens: npt.NDArray[np.int64], probabilities: Floats) -> float:
    """Pearson's statistic as a standard normal deviate (Wilson and Hilferty); infinite if the impossible happened.

    Tokens expected fewer than 10 times are pooled.
    """
    observed = np.bincount(tokens, minlength=len(probabilities)).astype(np.float64)
    if observed[probabilities == 0].any():
        return math.inf
    expected = probabilities * len(tokens)
    rare = expected < 10
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    freedom = len(expected) - 1
    if freedom == 0:
        return 0.0
    statistic = ((observed - expected) ** 2 / expected).sum()
    spread = 2 / (9 * freedom)
    return float(((statistic / freedom) ** (1 / 3) - 1 + spread) / math.sqrt(spread))


def grid(rows: int) -> Callable[..., mx.array]:
    """A stand-in for `draw.uniforms`: evenly spaced numbers, so that counts equal probabilities to 1 / rows.

    Where a draw uses both numbers (over a block, then inside it), they form a square.
    """
    side = math.isqrt(rows)
    assert side * side == rows
    first = (np.arange(rows) + 0.5) / rows
    return lambda keys, positions: mx.array(np.stack([first, first * side % 1], 1).astype(np.float32))


def shares(tokens: npt.NDArray[np.int64], vocab: int) -> Floats:
    return np.bincount(tokens, minlength=vocab) / len(tokens)


def some_logits(rows: int, vocab: int, seed: int = 0, scale: float = 2.0) -> npt.NDArray[np.float32]:
    return (np.random.default_rng(seed).normal(size=(rows, vocab)) * scale).astype(np.float32)
