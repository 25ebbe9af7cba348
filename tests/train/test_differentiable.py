"""Values and derivatives of the training operations against MLX's own, in float32."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from tiny_llm.model import ops
from tiny_llm.train.differentiable import HIDDEN, attend_rows, cross_entropy, logsumexp, softmax, swiglu

Function = Callable[[mx.array], mx.array]


def random(*shape: int, seed: int = 0, scale: float = 3.0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32) * scale)


@pytest.mark.parametrize(
    ("fast", "plain"),
    [
        (softmax, lambda x: mx.softmax(x, axis=-1)),
        (swiglu, ops.swiglu),
        (logsumexp, lambda x: mx.logsumexp(x, axis=-1)),
    ],
)
def test_value_and_derivative_are_those_of_the_plain_operation(fast: Function, plain: Function) -> None:
    x = random(7, 24)
    slope = random(*plain(x).shape, seed=1)
    np.testing.assert_allclose(fast(x), plain(x), atol=2e-5, rtol=2e-5)
    (got,), (expected,) = (mx.vjp(f, [x], [slope])[1] for f in (fast, plain))
    np.testing.assert_allclose(got, expected, atol=5e-5, rtol=1e-4)


def test_softmax_gives_nothing_to_hidden_scores() -> None:
    scores = mx.array([[0.5, HIDDEN, 1.5]])
    assert softmax(scores)[0, 1].item() < 1e-12


def test_cross_entropy_is_the_surprise_at_the_target() -> None:
    logits, targets = random(5, 40), mx.array([0, 39, 7, 7, 20])
    probabilities = np.exp(np.array(logits, np.float64))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    expected = -np.log(probabilities[np.arange(5), np.array(targets)])
    np.testing.assert_allclose(cross_entropy(logits, targets), expected, atol=2e-5)


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (1, 9), (300, 300), (130, 260)])
def test_rows_attend_to_what_is_not_hidden(queries: int, keys: int) -> None:
    """Oracle: float64, one query at a time. Lengths on both sides of the tile's."""
    rows, heads, groups, dim = 2, 2, 3, 8
    q, k, v = (
        random(rows * n, h, dim, seed=n + h, scale=1)
        for n, h in ((queries, heads * groups), (keys, heads), (keys, heads))
    )
    rng = np.random.default_rng(3)
    behind = np.arange(keys)[None] > np.arange(keys - queries, keys)[:, None]
    unseen = (rng.random((rows, queries, keys)) < 0.4) | behind
    unseen[:, np.arange(queries), np.arange(keys - queries, keys)] = False
    k, v = (x.reshape(rows, keys, heads, dim) for x in (k, v))
    got = np.array(attend_rows(q, k, v, mx.array(np.where(unseen, HIDDEN, 0).astype(np.float32))))
    for row, query, head in [(0, 0, 0), (1, queries - 1, 5), (1, queries // 2, 2), (0, queries - 1, 3)]:
        seen = ~unseen[row, query]
        keys_seen, values = (np.array(x, np.float64)[row, seen, head // groups] for x in (k, v))
        scores = keys_seen @ np.array(q, np.float64)[row * queries + query, head] / dim**0.5
        weights = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(got[row * queries + query, head], weights @ values, atol=2e-5)
