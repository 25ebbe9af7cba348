"""Logits of a model directory as mlx-lm computes them: the implementation that the engine is held against."""

from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model

from tiny_llm.model import fused, loader
from tiny_llm.model.qwen3 import Qwen3

ATOL, RTOL = 5e-5, 1e-4


def ours(path: Path, ops: str = "fused", dtype: mx.Dtype | None = mx.float32) -> Qwen3:
    config = loader.load_config(path)
    return Qwen3(config, loader.load_weights(path, config, dtype), fused.choose_ops(ops))


def peer(path: Path, dtype: mx.Dtype | None = mx.float32):
    """mlx-lm's model in evaluation, its dense weights converted."""
    model, _ = load_model(path)
    if dtype is not None:
        model.set_dtype(dtype)
    mx.eval(model.parameters())
    return model


def peer_logits(path: Path, tokens: list[int]) -> np.ndarray:
    """(T, V) float32."""
    return np.array(peer(path)(mx.array(tokens)[None])[0])


def close(got: mx.array, want: np.ndarray) -> None:
    np.testing.assert_allclose(np.array(got.astype(mx.float32)), want, rtol=RTOL, atol=ATOL)


def prompt(length: int, vocab_size: int = 300, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab_size, length).tolist()
