"""Weights that training begins with, and how they are written."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.train.examples import CONFIG, hf_config, weights_of
from tiny_llm.config import ModelConfig
from tiny_llm.model.directory import load_config
from tiny_llm.model.loader import load_weights
from tiny_llm.train.optimizer import flatten
from tiny_llm.train.weights_io import save_model


def test_the_engine_reads_what_was_saved(tmp_path: Path) -> None:
    shape = hf_config(num_hidden_layers=3)
    weights = weights_of(ModelConfig.from_hf(shape, "test"))
    params = save_model(tmp_path, weights, shape, (5, 6))
    loaded = flatten(load_weights(tmp_path, load_config(tmp_path), mx.float32))
    assert loaded.keys() == flatten(weights).keys()
    for name, array in flatten(weights).items():
        np.testing.assert_allclose(loaded[name], array, rtol=2**-8, atol=1e-6)
    assert params == sum(array.size for array in loaded.values())
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [5, 6] and generation["pad_token_id"] == 6


def test_weights_are_a_function_of_the_seed() -> None:
    one, two = flatten(weights_of()), flatten(weights_of())
    assert all(mx.array_equal(one[name], two[name]) for name in one)


def test_a_fresh_layer_adds_nothing() -> None:
    (layer,) = weights_of()["layers"]
    assert not layer["o_proj"]["weight"].any() and not layer["down_proj"]["weight"].any()
    assert layer["qkv_proj"]["weight"].shape == (256, CONFIG.hidden_size)


@pytest.mark.parametrize("change", [{"tie_word_embeddings": False}, {"attention_bias": True}])
def test_a_shape_that_training_cannot_write_is_refused(tmp_path: Path, change: dict[str, bool]) -> None:
    shape = hf_config(**change)
    with pytest.raises(ValueError, match="training makes Qwen3 with tied embeddings and no biases, found"):
        weights_of(ModelConfig.from_hf(shape, "test"))
    with pytest.raises(ValueError, match="training makes Qwen3 with tied embeddings and no biases, found"):
        save_model(tmp_path, weights_of(), shape, (5, 6))
    assert not list(tmp_path.iterdir())
