"""Attention, plain and fused, against a loop over heads and queries in float64."""

import mlx.core as mx
import numpy as np
import pytest

from tiny_llm.model import attention, fused

FORMS = {"plain": attention.causal_attention, "cpu": fused.attention_cpu, "gpu": fused.attention_gpu}


def oracle(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, window: int | None) -> np.ndarray:
    """q (T, Hq, D), k and v (Hkv, S, D): one query and one head at a time, by the definition."""
    length, heads, _ = q.shape
    kv_heads, keys, _ = k.shape
    out = np.zeros(q.shape)
    for t in range(length):
        place = keys - length + t
        begin = 0 if window is None else max(0, place - window + 1)
        for h in range(heads):
            group = h // (heads // kv_heads)
            scores = k[group, begin : place + 1].astype(np.float64) @ q[t, h] * scale
            weights = np.exp(scores - scores.max())
            out[t, h] = weights / weights.sum() @ v[group, begin : place + 1]
    return out


def inputs(length: int, keys: int, heads: int, kv_heads: int, dim: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(length * 1000 + keys)
    shapes = ((length, heads, dim), (kv_heads, keys, dim), (kv_heads, keys, dim))
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("window", [None, 1, 7, 1000])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 4, 2, 32),  # first token
        (1, 300, 4, 4, 32),  # a decode step, MHA
        (1, 700, 8, 1, 64),  # MQA, enough scores for the vectorised exp
        (5, 5, 7, 7, 80),  # odd heads, odd head_dim
        (5, 37, 6, 2, 32),  # a chunk behind a cache
        (fused.QUERY_TILE, fused.QUERY_TILE, 2, 1, 16),
        (fused.QUERY_TILE + 1, fused.QUERY_TILE + 1, 2, 1, 16),
        (2 * fused.QUERY_TILE - 1, 2 * fused.QUERY_TILE + 9, 4, 2, 16),
    ],
)
def test_causal_attention(form: str, window: int | None, shape: tuple[int, ...]) -> None:
    q, k, v = inputs(*shape)
    scale = shape[-1] ** -0.5
    got = FORMS[form](mx.array(q), mx.array(k), mx.array(v), scale, window)
    np.testing.assert_allclose(np.array(got), oracle(q, k, v, scale, window), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("form", FORMS)
def test_far_scores_do_not_leak(form: str) -> None:
    """One key far ahead of all others takes everything, also where exp would underflow; scale 1, scores to 400."""
    q, k, v = inputs(1, 600, 8, 1, 64)
    k[0, 17] = q[0, 0] * 6
    got = FORMS[form](mx.array(q), mx.array(k), mx.array(v), 1.0)
    np.testing.assert_allclose(np.array(got), oracle(q, k, v, 1.0, None), rtol=1e-4, atol=2e-5)


def test_masks() -> None:
    """Four tokens by hand."""
    causal = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert attention.causal_mask(4, 4).tolist() == np.array(causal, bool).tolist()
    assert attention.causal_mask(2, 4).tolist() == np.array(causal[2:], bool).tolist()
    sliding = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert attention.causal_mask(4, 4, 2).tolist() == np.array(sliding, bool).tolist()


def test_without_a_mask_everything_is_seen() -> None:
    q, k, v = inputs(3, 3, 2, 2, 8)
    got = attention.grouped_attention(mx.array(q).swapaxes(0, 1), mx.array(k), mx.array(v), 0.3)
    want = np.stack([oracle(q[t : t + 1], k, v, 0.3, None)[0] for t in range(3)])
    np.testing.assert_allclose(np.array(got.swapaxes(0, 1)), want, rtol=1e-4, atol=1e-5)
