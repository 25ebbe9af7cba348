"""Qwen2, Qwen2.5 and Qwen3, dense: one file, from token ids to logits.

The model knows neither masks nor cache kinds. A step is a flat row of tokens, and each layer is two functions
around the cache: `project` makes queries, keys and values, `cache.attend` does what depends on other tokens,
`finish` does the rest. Both are free of state, so they are compiled once and serve all layers.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import mlx.core as mx

from tiny_llm.config import ModelConfig
from tiny_llm.model.ops import Ops
from tiny_llm.model.rope import Rope, Rotation

Weights = Mapping[str, Any]


# ANCHOR: attends
class Attends(Protocol):
    """What the model asks of a cache."""

    def begin(self, num_tokens: int) -> mx.array:
        """Open a step of T tokens and say where they stand: positions (T,) int32."""

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """Keep k and v (T, Hkv, D); what each query (T, Hq, D) sees of all it may see, (T, Hq, D)."""
        # ANCHOR_END: attends


class Qwen3:
    """A decoder-only transformer. `weights` is the tree that `loader.load_weights` returns."""

    # ANCHOR: init
    def __init__(self, config: ModelConfig, weights: Weights, ops: Ops):
        self.config, self.weights, self.ops = config, weights, ops
        self.rope = Rope(config.rope, config.head_dim)
        self._project = ops.compile(self.project)
        self._finish = ops.compile(self.finish)
        # ANCHOR_END: init

    def __call__(self, tokens: mx.array, cache: Attends, rows: mx.array | slice | None = None) -> mx.array:
        """Logits after the tokens (T,), for all of them or only for `rows`: (T or rows, vocab)."""
        x = self.hidden_states(tokens, cache)
        return self.logits(x if rows is None else x[rows])

    def hidden_states(self, tokens: mx.array, cache: Attends) -> mx.array:
        """The last layer's output, before the final norm: (T, hidden)."""
        # TASK w1.5.4: through all layers
        rotation = self.rope.at(cache.begin(tokens.shape[0]))
        x = self.ops.embedding(tokens, self.weights["embed_tokens"], self.config.hidden_size)
        for i, layer in enumerate(self.weights["layers"]):
            q, k, v = self._project(x, layer, rotation)
            x = self._finish(x, cache.attend(i, q, k, v), layer)
        return x
        # END TASK

    def logits(self, x: mx.array) -> mx.array:
        """x (R, hidden) → (R, vocab), by the head or, tied, by the embedding table itself."""
        # TASK w1.5.5: the final norm and the head
        head = self.weights["embed_tokens" if self.config.tie_word_embeddings else "lm_head"]
        return self.ops.linear(self._norm(x, self.weights["norm"]), head)
        # END TASK

    def project(self, x: mx.array, layer: Weights, rotation: Rotation) -> tuple[mx.array, mx.array, mx.array]:
        """x (T, hidden) → rotated queries (T, Hq, D), rotated keys and values (T, Hkv, D)."""
        # TASK w1.5.2: norm, q k v, heads, norms of the heads, rotation
        c = self.config
        qkv = self.ops.linear(self._norm(x, layer["input_layernorm"]), layer["qkv_proj"])
        qkv = qkv.reshape(x.shape[0], -1, c.head_dim)  # (T, Hq + 2 Hkv, D)
        q, k, v = mx.split(qkv, [c.num_attention_heads, c.num_attention_heads + c.num_key_value_heads], axis=1)
        if c.qk_norm:
            q, k = self._norm(q, layer["q_norm"]), self._norm(k, layer["k_norm"])
        return self.ops.rope(q, rotation), self.ops.rope(k, rotation), v
        # END TASK

    def finish(self, x: mx.array, attended: mx.array, layer: Weights) -> mx.array:
        """Residual, norm, MLP, residual. x (T, hidden), attended (T, Hq, D) → (T, hidden)."""
        # TASK w1.5.3: output projection and MLP, each added to what came in
        x = x + self.ops.linear(attended.reshape(x.shape[0], -1), layer["o_proj"])
        h = self._norm(x, layer["post_attention_layernorm"])
        h = self.ops.swiglu(self.ops.linear(h, layer["gate_up_proj"]))
        return x + self.ops.linear(h, layer["down_proj"])
        # END TASK

    def _norm(self, x: mx.array, w: Weights) -> mx.array:
        return self.ops.rms_norm(x, w["weight"], self.config.rms_norm_eps)
