"""The cache that keeps nothing: each step brings the whole sequence again. Slow and simple, so it is the oracle."""

from typing import Any

import mlx.core as mx

from tiny_llm.config import ModelConfig
from tiny_llm.model.ops import Ops


class RecomputeCache:
    """Causal attention over the tokens of the step alone."""

    offset = 0

    # ANCHOR: recompute
    def __init__(self, config: ModelConfig, ops: Ops):
        self.config = config
        self.ops = ops

    def begin(self, num_tokens: int) -> mx.array:
        return mx.arange(num_tokens)

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        keys = k.swapaxes(0, 1)  # (Hkv, T, D)
        values = v.swapaxes(0, 1)
        scale = self.config.head_dim**-0.5
        return self.ops.attention(q, keys, values, scale, self.config.window_of(layer))
        # ANCHOR_END: recompute

    def open_buffers(self, num_tokens: int) -> None:
        """Return None: there are no buffers."""

    @property
    def trimmable(self) -> int:
        return 0

    def trim(self, num_tokens: int) -> None:
        """Do nothing, because nothing is kept."""

    def fork(self) -> "RecomputeCache":
        return self

    @property
    def nbytes(self) -> int:
        return 0

    @property
    def state(self) -> list[Any]:
        return []
