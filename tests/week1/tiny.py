"""A two-layer Qwen in numpy, written from the definition, and the operations that the model under test runs on.

The operations are the tests' own, so that a mistake in an earlier chapter does not show in a later one.
"""

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from tests.week1 import oracles
from tests.week1.oracles import Array, f64, normal
from tiny_llm.config import ModelConfig, RopeConfig

HIDDEN, INNER, HEADS, KV_HEADS, DIM, VOCAB, THETA, EPS = 12, 20, 4, 2, 8, 23, 100.0, 1e-5
QWEN3 = ModelConfig(
    "qwen3", HIDDEN, 2, INNER, HEADS, KV_HEADS, DIM, VOCAB, 64, EPS, RopeConfig(THETA), False, False, True
)
QWEN2 = replace(QWEN3, model_type="qwen2", qkv_bias=True, qk_norm=False, tie_word_embeddings=True)


def weights(config: ModelConfig) -> dict[str, Any]:
    """Random weights of a size at which each of them moves the result."""
    seeds = iter(range(1000))

    def matrix(rows: int, columns: int) -> dict[str, mx.array]:
        return {"weight": mx.array(normal(rows, columns, seed=next(seeds)) / np.float32(columns**0.5))}

    def norm(size: int) -> dict[str, mx.array]:
        return {"weight": mx.array(1 + np.float32(0.3) * normal(size, seed=next(seeds)))}

    def layer() -> dict[str, Any]:
        made = {
            "input_layernorm": norm(HIDDEN),
            "qkv_proj": matrix((HEADS + 2 * KV_HEADS) * DIM, HIDDEN),
            "o_proj": matrix(HIDDEN, HEADS * DIM),
            "post_attention_layernorm": norm(HIDDEN),
            "gate_up_proj": matrix(2 * INNER, HIDDEN),
            "down_proj": matrix(HIDDEN, INNER),
        }
        if config.qk_norm:
            made |= {"q_norm": norm(DIM), "k_norm": norm(DIM)}
        if config.qkv_bias:
            made["qkv_proj"]["bias"] = mx.array(normal((HEADS + 2 * KV_HEADS) * DIM, seed=next(seeds)))
        return made

    head = {} if config.tie_word_embeddings else {"lm_head": matrix(VOCAB, HIDDEN)}
    return {"embed_tokens": matrix(VOCAB, HIDDEN), "layers": [layer(), layer()], "norm": norm(HIDDEN), **head}


class Ops:
    """A table of operations in numpy, for the model under test. A rotation is told by its positions alone."""

    @staticmethod
    def linear(x: mx.array, w: dict[str, mx.array]) -> mx.array:
        return mx.array(linear(f64(x), w), mx.float32)

    @staticmethod
    def embedding(tokens: mx.array, w: dict[str, mx.array], hidden_size: int) -> mx.array:
        return w["weight"][tokens]

    @staticmethod
    def rms_norm(x: mx.array, weight: mx.array, eps: float) -> mx.array:
        return mx.array(oracles.rms_norm(f64(x), f64(weight), eps), mx.float32)

    @staticmethod
    def rope(x: mx.array, rotation: Any) -> mx.array:
        return mx.array(rope(f64(x), np.array(rotation.positions)), mx.float32)

    @staticmethod
    def swiglu(gate_up: mx.array) -> mx.array:
        return mx.array(swiglu(f64(gate_up)), mx.float32)

    @staticmethod
    def compile(function: Any) -> Any:
        return function


class Cache:
    """Holds `start` tokens, of which nothing is known but their number. See `attend` for what it gives."""

    def __init__(self, start: int = 0):
        self.offset = start

    def begin(self, num_tokens: int) -> mx.array:
        self.offset += num_tokens
        return mx.arange(self.offset - num_tokens, self.offset)

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return mx.array(attend(layer, f64(q), f64(k), f64(v)), mx.float32)


def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
    """Causal attention over the step's own tokens, (i + 1)-fold in layer i. (T, H, D) each.

    The query itself is added: attention sees only distances, and here positions must show.
    """
    share, mask = q.shape[1] // k.shape[1], np.tril(np.ones((len(q), len(q)), bool))
    heads = [oracles.attend(q[:, h], k[:, h // share], v[:, h // share], DIM**-0.5, mask) for h in range(q.shape[1])]
    return (layer + 1) * np.stack(heads, axis=1) + q


def linear(x: Array, w: dict[str, mx.array]) -> Array:
    return x @ f64(w["weight"]).T + (f64(w["bias"]) if "bias" in w else 0)


def rope(x: Array, positions: Any) -> Array:
    return oracles.turn(x, oracles.angles(positions, DIM, THETA))


def swiglu(x: Array) -> Array:
    return oracles.silu(x[:, :INNER]) * x[:, INNER:]


def norm(x: Array, w: dict[str, mx.array]) -> Array:
    return oracles.rms_norm(x, f64(w["weight"]), EPS)


def project(x: Array, layer: dict[str, Any], positions: Any) -> tuple[Array, Array, Array]:
    rows = linear(norm(x, layer["input_layernorm"]), layer["qkv_proj"])
    heads = np.stack([rows[:, h * DIM : (h + 1) * DIM] for h in range(HEADS + 2 * KV_HEADS)], axis=1)
    q, k, v = heads[:, :HEADS], heads[:, HEADS : HEADS + KV_HEADS], heads[:, HEADS + KV_HEADS :]
    if "q_norm" in layer:
        q, k = norm(q, layer["q_norm"]), norm(k, layer["k_norm"])
    return rope(q, positions), rope(k, positions), v


def finish(x: Array, attended: Array, layer: dict[str, Any]) -> Array:
    x = x + linear(attended.reshape(len(x), -1), layer["o_proj"])
    return x + linear(
        swiglu(linear(norm(x, layer["post_attention_layernorm"]), layer["gate_up_proj"])), layer["down_proj"]
    )


def hidden_states(tokens: list[int], tree: dict[str, Any], start: int) -> Array:
    x, positions = f64(tree["embed_tokens"]["weight"])[tokens], np.arange(start, start + len(tokens))
    for i, layer in enumerate(tree["layers"]):
        x = finish(x, attend(i, *project(x, layer, positions)), layer)
    return x
