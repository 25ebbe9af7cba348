"""1.5 The model: embedding, both halves of a layer, all layers, the head; against the same in float64."""

from typing import Any

import mlx.core as mx
import numpy as np

from tests.week1 import tiny
from tests.week1.oracles import f64, normal
from tiny_llm.course.check import Checker, task

X = mx.array(normal(4, tiny.HIDDEN))
TREES = {config.model_type: (config, tiny.weights(config)) for config in (tiny.QWEN3, tiny.QWEN2)}


def model(m: Any, kind: str = "qwen3") -> Any:
    config, tree = TREES[kind]
    return m.Qwen3(config, tree, tiny.Ops)


@task("w1.5.1")
def test_a_row_for_each_token(check: Checker) -> None:
    table = mx.array([[0.0, 1.0, 2.0], [10.0, 11.0, 12.0], [20.0, 21.0, 22.0]])
    want = np.array([[20.0, 21, 22], [0, 1, 2], [20, 21, 22], [10, 11, 12]])
    check(lambda m: m.embedding(mx.array([2, 0, 2, 1]), {"weight": table}, 3), want, axes="T D")


@task("w1.5.1")
def test_one_token_of_a_large_table(check: Checker) -> None:
    table = mx.array(normal(50, 8))
    check(lambda m: m.embedding(mx.array([49]), {"weight": table}, 8), f64(table[49:]), axes="T D")


def projections(check: Checker, kind: str, start: int) -> None:
    """q, k and v of four tokens from position `start` on."""
    _, tree = TREES[kind]
    layer, positions = tree["layers"][0], np.arange(start, start + 4)
    for i, want in enumerate(tiny.project(f64(X), layer, positions)):

        def call(m: Any, i: int = i) -> mx.array:
            made = model(m, kind)
            return made.project(X, layer, made.rope.at(mx.array(positions)))[i]

        check(call, want, axes="T H D", what=f"{'qkv'[i]} of {kind}", terms=16)


@task("w1.5.2")
def test_queries_keys_and_values(check: Checker) -> None:
    projections(check, "qwen3", 0)


@task("w1.5.2")
def test_without_head_norms_with_a_bias(check: Checker) -> None:
    """Qwen2 has biases instead of norms for the heads."""
    projections(check, "qwen2", 5)


@task("w1.5.3")
def test_finish(check: Checker) -> None:
    attended, layer = mx.array(normal(4, tiny.HEADS, tiny.DIM, seed=1)), TREES["qwen3"][1]["layers"][0]
    want = tiny.finish(f64(X), f64(attended), layer)
    check(lambda m: model(m).finish(X, attended, layer), want, axes="T D", terms=64)


@task("w1.5.4")
def test_all_layers(check: Checker) -> None:
    tokens = [3, 1, 22, 1]
    want = tiny.hidden_states(tokens, TREES["qwen3"][1], 0)
    check(lambda m: model(m).hidden_states(mx.array(tokens), tiny.Cache()), want, axes="T D", terms=256)


@task("w1.5.4")
def test_behind_a_cache(check: Checker) -> None:
    """Where the tokens stand is the cache's to say: here at positions 7 to 9."""
    tokens = [3, 1, 22]
    want = tiny.hidden_states(tokens, TREES["qwen2"][1], 7)
    check(lambda m: model(m, "qwen2").hidden_states(mx.array(tokens), tiny.Cache(7)), want, axes="T D", terms=256)


@task("w1.5.5")
def test_logits_by_the_head(check: Checker) -> None:
    tree = TREES["qwen3"][1]
    want = tiny.linear(tiny.norm(f64(X), tree["norm"]), tree["lm_head"])
    check(lambda m: model(m).logits(X), want, axes="R V", terms=16)


@task("w1.5.5")
def test_logits_by_the_embedding_table(check: Checker) -> None:
    tree = TREES["qwen2"][1]
    want = tiny.linear(tiny.norm(f64(X), tree["norm"]), tree["embed_tokens"])
    check(lambda m: model(m, "qwen2").logits(X), want, axes="R V", terms=16)
