"""A grown model computes what the trained one did, and all of its new weights can learn."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.train.examples import hf_config
from tiny_llm.config import ModelConfig
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.train.batches import TrainingBatch, repeated
from tiny_llm.train.differentiable import TRAINING, TreeAttention, cross_entropy
from tiny_llm.train.grow import can_grow, grown, trained_places
from tiny_llm.train.optimizer import Optimizer, flatten
from tiny_llm.train.weights_io import TrainedWeights, random_weights


def shape(layers: int, mlp: int, **more: Any) -> ModelConfig:
    return ModelConfig.from_hf(hf_config(num_hidden_layers=layers, intermediate_size=mlp, **more), "test")


def trained(config: ModelConfig) -> TrainedWeights:
    """Weights none of which is zero or like another layer's."""
    rng = np.random.default_rng(0)
    weights = random_weights(config, seed=1, qk_gain=1.7, embedding_std=0.05)
    for layer in weights["layers"]:
        for part in layer.values():
            noise = rng.normal(0, 0.05, part["weight"].shape)
            part["weight"] = part["weight"] + mx.array(noise.astype(np.float32))
    return weights


def fresh(config: ModelConfig) -> TrainedWeights:
    return random_weights(config, seed=7, qk_gain=1.7, embedding_std=0.05)


def batch_of(config: ModelConfig) -> TrainingBatch:
    return repeated(6.0, 64.0, config.vocab_size, 128, np.random.default_rng(0))


def logits(config: ModelConfig, weights: TrainedWeights, batch: TrainingBatch) -> mx.array:
    model = Qwen3(config, weights, TRAINING)
    hidden = model.hidden_states(batch.tokens, TreeAttention(batch.positions, batch.visible))
    return model.logits(hidden)


GROWTH = [((4, 128), (6, 256)), ((4, 128), (7, 128)), ((2, 128), (2, 384)), ((1, 128), (3, 256)), ((3, 128), (3, 128))]


@pytest.mark.parametrize(("before", "after"), GROWTH)
def test_a_grown_model_gives_the_same_logits(before: tuple[int, int], after: tuple[int, int]) -> None:
    small, large = shape(*before), shape(*after)
    weights = trained(small)
    bigger = grown(weights, fresh(large))
    assert len(bigger["layers"]) == large.num_hidden_layers
    expected_shapes = {name: array.shape for name, array in flatten(fresh(large)).items()}
    assert {name: array.shape for name, array in flatten(bigger).items()} == expected_shapes
    batch = batch_of(small)
    expected = logits(small, weights, batch)
    np.testing.assert_allclose(logits(large, bigger, batch), expected, atol=1e-5)
    assert mx.abs(expected).max().item() > 0.1


def test_all_new_weights_learn() -> None:
    """Gradients reach the zero matrices in the first step, and what stands before them from the second on."""
    small, large = shape(2, 128), shape(3, 256)
    weights = grown(trained(small), fresh(large))
    batch = batch_of(large)

    def loss(weights: TrainedWeights) -> mx.array:
        at = logits(large, weights, batch)[batch.at]
        return cross_entropy(at, batch.targets).mean()

    gradients = mx.grad(loss)(weights)
    new = trained_places(2, 3).index(1) + 1  # layers are trained, trained, new
    assert mx.abs(gradients["layers"][new]["o_proj"]["weight"]).max().item() > 0
    assert mx.abs(gradients["layers"][new]["down_proj"]["weight"]).max().item() > 0
    assert mx.abs(gradients["layers"][0]["down_proj"]["weight"][:, 128:]).max().item() > 0

    optimizer = Optimizer(large, muon_rate=0.01, adam_rate=1e-3, clip=1.0)
    stepped, _ = optimizer.update(weights, gradients, 1.0)
    gradients = mx.grad(loss)(stepped)
    assert all(mx.abs(gradient).max().item() > 0 for gradient in flatten(gradients["layers"][new]).values())
    gate, up = mx.split(gradients["layers"][0]["gate_up_proj"]["weight"], 2)
    assert mx.abs(gate[128:]).max().item() > 0 and mx.abs(up[128:]).max().item() > 0


@pytest.mark.parametrize(
    ("trained_layers", "total", "places"),
    [(4, 4, [0, 1, 2, 3]), (4, 6, [0, 1, 3, 4]), (4, 7, [0, 1, 3, 5]), (1, 3, [0]), (4, 8, [0, 2, 4, 6])],
)
def test_new_layers_stand_behind_equal_groups(trained_layers: int, total: int, places: list[int]) -> None:
    assert trained_places(trained_layers, total) == places


def test_only_more_layers_and_a_wider_mlp_can_be_grown() -> None:
    small = shape(2, 128)
    assert can_grow(small, small) and can_grow(small, shape(3, 256))
    assert not can_grow(small, shape(1, 256)) and not can_grow(shape(2, 256), shape(3, 128))
    assert not can_grow(small, shape(3, 256, hidden_size=256))
    assert not can_grow(small, shape(3, 256, num_key_value_heads=2))
