"""Both savings at once: sinks and the newest tokens, their keys and values in few bits."""

from typing import Any

import mlx.core as mx

from tiny_llm.cache.base import Part, packed_layout
from tiny_llm.cache.quantized import group_size_for
from tiny_llm.cache.rotating import RotatingCache
from tiny_llm.config import ModelConfig
from tiny_llm.config.engine import check_packing
from tiny_llm.model.cached_attention import Packed
from tiny_llm.model.ops import Ops


class RotatingQuantizedCache(RotatingCache):
    """A `RotatingCache` with `bits` for each number, as in a `QuantizedCache`; `rotating` has its own settings."""

    KIND = "rotating quantized"
    SETTINGS = (*RotatingCache.SETTINGS, "bits", "group_size")

    def __init__(self, config: ModelConfig, ops: Ops, bits: int = 8, group_size: int | None = None, **rotating: int):
        check_packing(bits, group_size)
        super().__init__(config, ops, **rotating)
        self.bits = bits
        self.group_size = group_size_for(config.head_dim, group_size)

    def _keep(self, buffers: list[mx.array], layer: int, new: mx.array, slot: mx.array, seen: int) -> Packed:
        codes, scales, biases = mx.quantize(new, group_size=self.group_size, bits=self.bits)
        first = 3 * layer
        return Packed(
            self._put(buffers, first, codes, slot)[:, :seen],
            self._put(buffers, first + 1, scales, slot)[:, :seen],
            self._put(buffers, first + 2, biases, slot)[:, :seen],
        )

    def _look(
        self, q: mx.array, keys: Any, values: Any, scale: float, window: int | None, mask: mx.array | None
    ) -> mx.array:
        return self.ops.packed_attention(q, keys, values, scale, window, mask)

    @property
    def layout(self) -> tuple[Part, ...]:
        return packed_layout(self.config, self.bits, self.group_size)
