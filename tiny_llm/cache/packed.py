"""A pool whose numbers are packed into 8 or 4 bits: two to six times as many tokens in the same memory.

Each slot's K and V are quantized when they are written, in groups along D. Attention reads them as they are, without a
copy in full width.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import mlx.core as mx

from tiny_llm.cache.paged import PagedPool, gathered
from tiny_llm.cache.quantized import group_size_for
from tiny_llm.config import ModelConfig
from tiny_llm.kernels.paged_attention import PACKED_TWINS
from tiny_llm.model.cached_attention import Packed
from tiny_llm.model.ops import Ops


class PackedPool(PagedPool):
    """A `PagedPool` of `bits` for each number; `packed[layer]` holds the keys and the values."""

    held = ("packed",)

    def __init__(
        self,
        config: ModelConfig,
        ops: Ops,
        num_blocks: int,
        block_size: int,
        dtype: mx.Dtype = mx.float32,
        bits: int = 8,
        group_size: int | None = None,
    ):
        self.bits = bits
        self.group_size = group_size_for(config.head_dim, group_size)
        super().__init__(config, ops, num_blocks, block_size, dtype)
        self.paged = ops.paged_packed or PACKED_TWINS
        self.slices = False  # three arrays hold the keys, three the values

    def _clear(self) -> None:
        self.packed: list[tuple[Packed, Packed]] = []
        for _ in range(self.config.num_hidden_layers):
            keys = self._pack(mx.zeros(self.shape, self.dtype))
            values = self._pack(mx.zeros(self.shape, self.dtype))
            mx.eval(keys, values)
            self.packed.append((keys, values))

    def _pack(self, x: mx.array) -> Packed:
        return Packed(*mx.quantize(x, group_size=self.group_size, bits=self.bits))

    def write(self, layer: int, blocks: mx.array, slots: mx.array, k: mx.array, v: mx.array) -> None:
        for buffers, new in zip(self.packed[layer], (k, v), strict=True):
            parts = self._pack(new.astype(self.dtype))
            for buffer, part in zip(buffers, parts, strict=True):
                buffer[:, blocks, slots] = part.swapaxes(0, 1)

    def blank(self, layer: int, blocks: mx.array) -> None:
        _, values = self.packed[layer]
        for buffer in values:
            buffer[:, blocks] = 0

    def buffers(self, layer: int) -> tuple[Packed, Packed]:
        return self.packed[layer]

    def sequence(self, layer: int, table: Sequence[int], length: int) -> tuple[mx.array, mx.array]:
        keys, values = self.packed[layer]
        return self._unpacked(keys, table, length), self._unpacked(values, table, length)

    def _unpacked(self, packed: Packed, table: Sequence[int], length: int) -> mx.array:
        """Return the first `length` slots of a sequence in full width, (Hkv, length, D)."""
        found = Packed(*(gathered(part, table, length) for part in packed))
        return found.unpacked(0, length, self.config.head_dim)

    def replace_buffers(self, buffers: list[mx.array]) -> None:
        layers = len(self.packed)
        parts = iter(buffers)
        keys = [Packed(*islice(parts, 3)) for _ in range(layers)]
        values = [Packed(*islice(parts, 3)) for _ in range(layers)]
        self.packed = list(zip(keys, values, strict=True))

    @property
    def state(self) -> list[Any]:
        keys = [part for layer_keys, _ in self.packed for part in layer_keys]
        values = [part for _, layer_values in self.packed for part in layer_values]
        return keys + values
