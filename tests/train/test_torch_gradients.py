"""PyTorch's gradients in bfloat16 against MLX's in float32, where PyTorch is installed."""

import sys
from importlib import import_module
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from tests.train.examples import CONFIG, Repeating, hf_config
from tiny_llm.config import ModelConfig
from tiny_llm.train import optimizer
from tiny_llm.train.optimizer import flatten


def test_without_pytorch_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "tiny_llm.train.torch_gradients", raising=False)
    with pytest.raises(ValueError, match=r"torch is not installed: pip install \"tiny-llm\[train\]\""):
        import_module("tiny_llm.train.torch_gradients")


def test_gradients_are_mlx_s_to_bfloat16(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[train]'")
    plain, fast = Repeating(tmp_path), Repeating(tmp_path)
    import_module("tiny_llm.train.torch_gradients").use_torch(fast)
    keys = iter(mx.random.split(mx.random.key(0), 20))
    noisy = tree_map(lambda w: w + 0.05 * mx.random.normal(w.shape, key=next(keys)), plain.weights)
    plain.weights = fast.weights = noisy  # at first whole matrices are zero, and so are their gradients
    batch = plain.batch(np.random.default_rng(1))
    (loss, answers), gradients = plain.differentiate(plain.weights, batch)
    (their_loss, their_answers), theirs = fast.differentiate(fast.weights, batch)
    assert abs(loss.item() - their_loss.item()) < 0.01 and abs(answers.item() - their_answers.item()) < 0.01
    for name, gradient in flatten(gradients).items():
        error = mx.linalg.norm(gradient - flatten(theirs)[name]) / mx.linalg.norm(gradient)
        assert error.item() < 0.06, name


def test_orthogonal_matrices_are_mlx_s_to_bfloat16() -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[train]'")
    from tiny_llm.train.torch_gradients import orthogonal

    for shape in ((2, 24, 64), (3, 64, 24)):
        g = mx.random.normal(shape, key=mx.random.key(0))
        want = optimizer.orthogonal(g)
        error = mx.linalg.norm(orthogonal(g) - want) / mx.linalg.norm(want)
        assert error.item() < 0.05, shape


def test_another_model_is_refused() -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[train]'")
    from tiny_llm.train.torch_gradients import TorchGradients

    TorchGradients(CONFIG)
    with pytest.raises(ValueError, match="gradients: torch knows Qwen3 with tied embeddings"):
        TorchGradients(ModelConfig.from_hf(hf_config(tie_word_embeddings=False), "test"))
