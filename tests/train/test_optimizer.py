"""Muon against the singular value decomposition, Adam against MLX's own."""

from typing import Any

import mlx.core as mx
import mlx.optimizers
import numpy as np
import pytest
from mlx.utils import tree_map

from tests.train.examples import CONFIG, weights_of
from tiny_llm.train.optimizer import DECAY, Optimizer, flatten, orthogonal


def gradients_like(weights: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return tree_map(lambda w: mx.array(rng.normal(size=w.shape).astype(np.float32)), weights)


def matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Random directions with lengths from 1 down to a tenth."""
    rng, rank = np.random.default_rng(seed), min(rows, columns)
    left, right = (np.linalg.qr(rng.normal(size=(n, rank)))[0] for n in (rows, columns))
    return (left * np.linspace(1, 0.1, rank)) @ right.T


@pytest.mark.parametrize("shape", [(64, 64), (96, 32), (32, 96)])
def test_orthogonal_keeps_directions_and_evens_lengths(shape: tuple[int, int]) -> None:
    originals = np.stack([matrix(*shape), 7 * matrix(*shape, seed=1)]).astype(np.float32)
    for got, original in zip(np.array(orthogonal(mx.array(originals))), originals, strict=True):
        u, _, vt = np.linalg.svd(original, full_matrices=False)
        inside = u.T @ got @ vt.T  # diagonal where the directions are kept
        lengths = np.diag(inside)
        assert lengths.min() > 0.6
        assert lengths.max() < 1.3
        np.testing.assert_allclose(inside, np.diag(lengths), atol=2e-3)


def test_matrices_in_one_weight_are_turned_apart() -> None:
    """A huge gradient of the queries must not drown that of the keys and values."""
    optimizer, weights = Optimizer(CONFIG, muon_rate=1.0, adam_rate=0.0, clip=1e9), weights_of()
    gradients = gradients_like(weights, 0)
    gradients["layers"][0]["qkv_proj"]["weight"] = mx.array(
        np.concatenate([matrix(128, 128), matrix(64, 128), matrix(64, 128, 1)]).astype(np.float32)
    )
    q = CONFIG.num_attention_heads * CONFIG.head_dim
    rows = mx.where(mx.arange(q + 128)[:, None] < q, 1000.0, 1.0)
    gradients["layers"][0]["qkv_proj"]["weight"] *= rows
    new, _ = optimizer.update(weights, gradients, 1.0)
    change = np.array(new["layers"][0]["qkv_proj"]["weight"] - weights["layers"][0]["qkv_proj"]["weight"])
    for part in (change[:q], change[q : q + 64], change[q + 64 :]):
        lengths = np.linalg.svd(part, compute_uv=False)
        scale = max(1.0, part.shape[0] / part.shape[1]) ** 0.5
        assert lengths.min() > 0.4 * scale
        assert lengths.max() < 1.3 * scale


def test_adam_is_mlx_adamw() -> None:
    optimizer, weights = Optimizer(CONFIG, muon_rate=0.0, adam_rate=1e-2, clip=1e9), weights_of()
    reference = mlx.optimizers.AdamW(1e-2, betas=[0.9, 0.95], weight_decay=DECAY, bias_correction=True)
    expected = {"embed": weights["embed_tokens"]["weight"], "norm": weights["norm"]["weight"]}
    for step in range(3):
        gradients = gradients_like(weights, step)
        weights, _ = optimizer.update(weights, gradients, 1.0)
        given = {"embed": gradients["embed_tokens"]["weight"], "norm": gradients["norm"]["weight"]}
        expected = reference.apply_gradients(given, expected)
    np.testing.assert_allclose(weights["embed_tokens"]["weight"], expected["embed"], atol=1e-5)
    np.testing.assert_allclose(weights["norm"]["weight"], expected["norm"], atol=1e-5)


def test_gradients_are_clipped_by_their_common_norm() -> None:
    weights = weights_of()
    gradients = gradients_like(weights, 0)
    total = np.sqrt(sum(float((np.array(g, np.float64) ** 2).sum()) for g in flatten(gradients).values()))
    small = tree_map(lambda g: g * (0.5 / total), gradients)
    clipped, loose = Optimizer(CONFIG, 0.0, 1e-2, clip=0.5), Optimizer(CONFIG, 0.0, 1e-2, clip=1e9)
    _, norm = clipped.update(weights, gradients, 1.0)
    loose.update(weights, small, 1.0)
    assert norm.item() == pytest.approx(total, rel=1e-4)
    name = "adam.first.embed_tokens.weight"
    np.testing.assert_allclose(clipped.state[name], loose.state[name], rtol=1e-3, atol=1e-9)
