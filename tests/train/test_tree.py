"""Turns packed as a tree are learned as if each stood alone."""

import mlx.core as mx
import numpy as np
import pytest

from tests.train.examples import hf_config, weights_of
from tiny_llm.cache.recompute import RecomputeCache
from tiny_llm.config import ModelConfig
from tiny_llm.model.ops import PLAIN
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.train.batches import pack
from tiny_llm.train.differentiable import TRAINING, TreeAttention, cross_entropy
from tiny_llm.train.tree import grow

TURNS = [([5, 6, 7, 8], [20, 21, 3]), ([5, 6, 7, 9, 10], [20, 22, 23, 3]), ([5, 6, 7, 8, 20, 21, 3, 11], [24, 3])]


def test_a_shared_beginning_is_there_once() -> None:
    tree = grow(TURNS)
    assert tree.tokens.tolist() == [5, 6, 7, 8, 20, 21, 9, 10, 20, 22, 23, 3, 11, 24]
    assert tree.depths.tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 6, 7, 8]
    assert tree.parents.tolist() == [-1, 0, 1, 2, 3, 4, 2, 6, 7, 8, 9, 5, 11, 12]


def test_a_token_sees_its_ancestors_and_itself() -> None:
    seen = grow(TURNS).visible()
    assert np.flatnonzero(seen[10]).tolist() == [0, 1, 2, 6, 7, 8, 9, 10]
    assert not np.triu(seen, 1).any()


def test_a_word_of_the_model_stays_one_when_it_is_in_a_later_prompt() -> None:
    tree = grow(TURNS)
    learned = {(int(a), int(t)) for a, t, learn in zip(tree.at, tree.token, tree.learn, strict=True) if learn}
    assert learned == {(3, 20), (4, 21), (5, 3), (7, 20), (8, 22), (9, 23), (10, 3), (12, 24), (13, 3)}


def test_one_position_may_have_two_targets() -> None:
    tree = grow([([1, 2], [3, 9]), ([1, 2], [4, 9])])
    assert sorted(tree.token[tree.at == 1].tolist()) == [3, 4]


@pytest.mark.parametrize("layers", [1, 3])
def test_the_loss_is_that_of_the_turns_alone(layers: int) -> None:
    """Oracle: every turn by itself through the plain operations and the cache that keeps nothing."""
    config = ModelConfig.from_hf(hf_config(num_hidden_layers=layers), "test")
    weights = weights_of(config)
    for index, layer in enumerate(weights["layers"]):
        for name in ("o_proj", "down_proj"):
            layer[name]["weight"] = mx.random.normal(layer[name]["weight"].shape, key=mx.random.key(index)) * 0.2
    batch = pack([grow(TURNS), grow(TURNS[1:])], 20, 0.0, 0.2, np.random.default_rng(0))
    model = Qwen3(config, weights, TRAINING)
    x = model.hidden_states(batch.tokens, TreeAttention(batch.positions, batch.visible))
    losses = cross_entropy(model.logits(x[batch.at]), batch.targets)

    plain, expected = Qwen3(config, weights, PLAIN), {}
    for group in (TURNS, TURNS[1:]):
        for prompt, completion in group:
            text = prompt + completion
            logits = plain(mx.array(text), RecomputeCache(config, PLAIN))
            surprise = mx.logsumexp(logits, axis=-1, keepdims=True) - logits
            for place in range(len(prompt), len(text)):
                expected[len(group), tuple(text[: place + 1])] = surprise[place - 1, text[place]].item()
    assert sorted(losses.tolist()) == pytest.approx(sorted(expected.values()), abs=2e-4)


def test_a_share_of_the_prompt_is_learned_with_less_weight() -> None:
    batch = pack([grow(TURNS[:1])], 8, 1.0, 0.25, np.random.default_rng(0))
    assert batch.targets.tolist() == [6, 7, 8, 20, 21, 3]
    assert batch.weights.tolist() == [0.25, 0.25, 0.25, 1, 1, 1]
