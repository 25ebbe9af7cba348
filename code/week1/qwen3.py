"""Qwen2, Qwen2.5 and Qwen3, dense: one file, from token ids to logits.

The model knows neither masks nor cache kinds. A step is a flat row of tokens, and each layer is two functions
around the cache: `project` makes queries, keys and values, `cache.attend` does what depends on other tokens,
`finish` does the rest. Both are free of state, so they are compiled once and serve all layers.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import mlx.core as mx

from tiny_llm.config import ModelConfig
from tiny_llm.course import NotDone
from tiny_llm.model.ops import Ops
from tiny_llm.model.rope import Rope, Rotation

Weights = Mapping[str, Any]


class Attends(Protocol):
    """What the model asks of a cache."""

    def begin(self, num_tokens: int) -> mx.array:
        """Open a step of T tokens and say where they stand: positions (T,) int32."""

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """Keep k and v (T, Hkv, D); what each query (T, Hq, D) sees of all it may see, (T, Hq, D)."""


class Qwen3:
    """A decoder-only transformer. `weights` is the tree that `loader.load_weights` returns."""

    def __init__(self, config: ModelConfig, weights: Weights, ops: Ops):
        self.config, self.weights, self.ops = config, weights, ops
        self.rope = Rope(config.rope, config.head_dim)
        self._project = ops.compile(self.project)
        self._finish = ops.compile(self.finish)

    def __call__(self, tokens: mx.array, cache: Attends, rows: mx.array | slice | None = None) -> mx.array:
        """Logits after the tokens (T,), for all of them or only for `rows`: (T or rows, vocab)."""
        x = self.hidden_states(tokens, cache)
        return self.logits(x if rows is None else x[rows])

    def hidden_states(self, tokens: mx.array, cache: Attends) -> mx.array:
        """The last layer's output, before the final norm: (T, hidden)."""
        # YOUR CODE (w1.5.4): through all layers
        raise NotDone("w1.5.4")

    def logits(self, x: mx.array) -> mx.array:
        """x (R, hidden) → (R, vocab), by the head or, tied, by the embedding table itself."""
        # YOUR CODE (w1.5.5): the final norm and the head
        raise NotDone("w1.5.5")

    def project(self, x: mx.array, layer: Weights, rotation: Rotation) -> tuple[mx.array, mx.array, mx.array]:
        """x (T, hidden) → rotated queries (T, Hq, D), rotated keys and values (T, Hkv, D)."""
        # YOUR CODE (w1.5.2): norm, q k v, heads, norms of the heads, rotation
        raise NotDone("w1.5.2")

    def finish(self, x: mx.array, attended: mx.array, layer: Weights) -> mx.array:
        """Residual, norm, MLP, residual. x (T, hidden), attended (T, Hq, D) → (T, hidden)."""
        # YOUR CODE (w1.5.3): output projection and MLP, each added to what came in
        raise NotDone("w1.5.3")

    def _norm(self, x: mx.array, w: Weights) -> mx.array:
        return self.ops.rms_norm(x, w["weight"], self.config.rms_norm_eps)
