"""Llama, Qwen2, Qwen2.5 and Qwen3, dense or with experts: one file, from token ids to logits.

The model knows neither masks nor cache kinds. A step is a flat row of tokens, and each layer is two functions
around the cache: `project` computes queries, keys and values, `cache.attend` lets the tokens see each other, `finish`
computes the rest. `project` and `finish` keep no state, so they are compiled once and used for all layers.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import mlx.core as mx

from tiny_llm.config import ModelConfig
from tiny_llm.course import NotDone
from tiny_llm.model.fingerprint import fingerprint
from tiny_llm.model.moe import mixture
from tiny_llm.model.ops import Ops
from tiny_llm.model.rope import Rope, Rotation
from tiny_llm.model.step_buffers import StepBuffers

Weights = Mapping[str, Any]


class Attends(Protocol):
    """The part of a cache that the model calls."""

    def begin(self, num_tokens: int) -> mx.array:
        """Open a step of T tokens and return their positions, (T,) int32."""

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """Store k and v (T, Hkv, D) and return the attention of the queries (T, Hq, D) to all they may see."""

    def open_buffers(self, num_tokens: int) -> StepBuffers | None:
        """Open a step of T tokens, in place of `begin`, and return the buffers of all layers.

        The operation that computes all layers writes K and V into the buffers, and `StepBuffers.replace` then takes the
        place of `attend`. Return None, and open no step, where this step needs `begin` and `attend`.
        """


class Qwen3:
    """A decoder-only transformer. `weights`: the tree that `loader.load_weights` returns."""

    def __init__(self, config: ModelConfig, weights: Weights, ops: Ops):
        self.config = config
        self.weights = weights
        self.ops = ops
        self.rope = Rope(config.rope, config.head_dim)
        self._project = ops.compile(self.project)
        self._finish = ops.compile(self.finish)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the model, which its saved caches carry. The loader sets it before it lays the weights out."""
        return fingerprint(self.config, self.weights)

    def __call__(self, tokens: mx.array, cache: Attends, rows: mx.array | slice | None = None) -> mx.array:
        """Return the logits after each of the tokens (T,), or only after the tokens at `rows`: (T or rows, vocab)."""
        x = self.hidden_states(tokens, cache)
        if rows is not None:
            x = x[rows]
        return self.logits(x)

    def hidden_states(self, tokens: mx.array, cache: Attends) -> mx.array:
        """Return the last layer's output, before the final norm: (T, hidden)."""
        # YOUR CODE (w1.5.4): through all layers
        raise NotDone("w1.5.4")

    def logits(self, x: mx.array) -> mx.array:
        """Return the logits (R, vocab) of x (R, hidden), from the head or, if tied, from the embedding table."""
        # YOUR CODE (w1.5.5): the final norm and the head
        raise NotDone("w1.5.5")

    def layer_outputs(self, tokens: mx.array, cache: Attends, taps: Sequence[int]) -> tuple[mx.array, mx.array]:
        """Return the last layer's output (T, hidden), and the outputs of the layers `taps` side by side (T, F)."""
        last = self.config.num_hidden_layers - 1
        if list(taps) == [last]:
            x = self.hidden_states(tokens, cache)
            return x, x
        rotation = self.rope.at(cache.begin(tokens.shape[0]))
        x = self.ops.embedding(tokens, self.weights["embed_tokens"], self.config.hidden_size)
        found = {}
        for i, layer in enumerate(self.weights["layers"]):
            q, k, v = self._project(x, layer, rotation)
            x = self._finish(x, cache.attend(i, q, k, v), layer)
            if i in taps:
                found[i] = x
        return x, mx.concatenate([found[tap] for tap in taps], axis=1)

    def final_norm(self, x: mx.array) -> mx.array:
        """Return x (R, hidden) under the final norm, which `logits` computes first."""
        return self._norm(x, self.weights["norm"])

    def unembed(self, x: mx.array) -> mx.array:
        """Return the logits (R, vocab) of x (R, hidden), normed already."""
        name = "embed_tokens" if self.config.tie_word_embeddings else "lm_head"
        return self.ops.linear(x, self.weights[name])

    def embed(self, tokens: mx.array) -> mx.array:
        """Return the embeddings of tokens (T,), (T, hidden)."""
        return self.ops.embedding(tokens, self.weights["embed_tokens"], self.config.hidden_size)

    def project(self, x: mx.array, layer: Weights, rotation: Rotation) -> tuple[mx.array, mx.array, mx.array]:
        """Return rotated queries (T, Hq, D), rotated keys and plain values (T, Hkv, D) of x (T, hidden)."""
        # YOUR CODE (w1.5.2): norm, q k v, heads, norms of the heads, rotation
        raise NotDone("w1.5.2")

    def finish(self, x: mx.array, attended: mx.array, layer: Weights) -> mx.array:
        """Add the attention's output to x, then the MLP's. x (T, hidden), attended (T, Hq, D), result (T, hidden)."""
        if "experts" in layer:
            return self._finish_with_experts(x, attended, layer)
        # YOUR CODE (w1.5.3): output projection and MLP, each added to its input
        raise NotDone("w1.5.3")

    def _finish_with_experts(self, x: mx.array, attended: mx.array, layer: Weights) -> mx.array:
        flat = attended.reshape(x.shape[0], -1)
        x = x + self.ops.linear(flat, layer["o_proj"])
        normed = self._norm(x, layer["post_attention_layernorm"])
        return x + self.mixture(normed, layer)

    def mixture(self, x: mx.array, layer: Weights) -> mx.array:
        """Return what the experts of a layer add, (T, hidden). x (T, hidden), normed."""
        assert self.config.moe
        return mixture(x, layer, self.config.moe, self.ops)

    def _norm(self, x: mx.array, w: Weights) -> mx.array:
        return self.ops.rms_norm(x, w["weight"], self.config.rms_norm_eps)
