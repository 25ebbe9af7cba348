"""A model with experts that is made of a dense one: which neurons and layers it keeps."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from tests.train.examples import hf_config, weights_of
from tiny_llm.config import ModelConfig
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.train.batches import repeated
from tiny_llm.train.differentiable import EVALUATION, TreeAttention
from tiny_llm.train.divide import can_divide, divided, kept_places
from tiny_llm.train.optimizer import flatten
from tiny_llm.train.weights_io import TrainedWeights


def dense(**more: Any) -> ModelConfig:
    return ModelConfig.from_hf(hf_config(**{"num_hidden_layers": 2, "intermediate_size": 128, **more}), "test")


def sparse(experts: int, chosen: int, size: int, layers: int = 2, **more: Any) -> ModelConfig:
    settings = {"num_experts": experts, "num_experts_per_tok": chosen, "moe_intermediate_size": size}
    settings |= {"num_hidden_layers": layers, "intermediate_size": size, "norm_topk_prob": True, **more}
    return ModelConfig.from_hf(hf_config("qwen3_moe", **settings), "test")


def trained(config: ModelConfig) -> TrainedWeights:
    keys = iter(mx.random.split(mx.random.key(0), 50))
    return tree_map(lambda w: w + 0.05 * mx.random.normal(w.shape, key=next(keys)), weights_of(config))


def logits(config: ModelConfig, weights: TrainedWeights) -> np.ndarray:
    batch = repeated(6.0, 64.0, config.vocab_size, 64, np.random.default_rng(0))
    model = Qwen3(config, weights, EVALUATION)
    hidden = model.hidden_states(batch.tokens, TreeAttention(batch.positions, batch.visible))
    return np.array(model.logits(hidden))


@pytest.mark.parametrize(("experts", "size"), [(1, 128), (2, 64), (4, 32), (128, 1)])
def test_with_every_expert_chosen_the_logits_are_the_dense_models(experts: int, size: int) -> None:
    """With equal shares, which a router of zeros gives."""
    whole, parts = dense(), sparse(experts, experts, size)
    assert can_divide(whole, parts)
    weights, fresh = trained(whole), weights_of(parts)
    for layer in fresh["layers"]:
        layer["router"]["weight"] = mx.zeros_like(layer["router"]["weight"])
    made = divided(weights, fresh, experts)
    shapes = {name: array.shape for name, array in flatten(fresh).items()}
    assert {name: array.shape for name, array in flatten(made).items()} == shapes
    np.testing.assert_allclose(logits(parts, made), logits(whole, weights), atol=2e-4)


def test_the_strongest_neurons_stay_and_are_dealt_out_in_turn() -> None:
    whole, parts = dense(), sparse(4, 2, 16)
    weights = trained(whole)
    layer = weights["layers"][1]
    strengths = mx.arange(128.0)[::-1] * mx.where(mx.arange(128) % 2 == 0, 1.0, 0.0) + 0.01
    layer["down_proj"]["weight"] = mx.ones((128, 128)) * strengths
    gate, _ = mx.split(layer["gate_up_proj"]["weight"], 2)
    layer["gate_up_proj"]["weight"] = mx.concatenate([gate, mx.ones((128, 128))])
    experts = divided(weights, weights_of(parts), 2)["layers"][1]["experts"]
    found = np.array(experts["down_proj"]["weight"][:, 0])  # (E, size)
    strongest = np.sort(np.array(strengths))[::-1][:64]
    np.testing.assert_allclose(found, 2 * strongest.reshape(16, 4).T)
    np.testing.assert_array_equal(np.array(experts["gate_up_proj"]["weight"][0, 0]), np.array(gate[0]))


@pytest.mark.parametrize(
    ("trained_layers", "total", "places"),
    [(6, 5, [0, 1, 2, 3, 5]), (6, 6, [0, 1, 2, 3, 4, 5]), (4, 1, [0]), (3, 2, [0, 2])],
)
def test_first_and_last_layers_stay(trained_layers: int, total: int, places: list[int]) -> None:
    assert kept_places(trained_layers, total) == places


@pytest.mark.parametrize(
    "parts",
    [
        sparse(4, 2, 48),
        sparse(4, 2, 16, layers=3),
        sparse(4, 2, 16, hidden_size=256),
        sparse(4, 2, 16, mlp_only_layers=[0]),
        dense(),
    ],
    ids=["neurons", "layers", "hidden", "dense layer", "dense"],
)
def test_what_does_not_fit_is_not_divided(parts: ModelConfig) -> None:
    assert can_divide(dense(), sparse(4, 2, 16))
    assert not can_divide(dense(), parts)
    assert not can_divide(sparse(4, 2, 16), sparse(4, 2, 16))
