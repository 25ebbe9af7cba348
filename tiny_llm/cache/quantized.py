"""A contiguous cache whose keys and values take 8 or 4 bits each: a group of neighbours along D shares scale and bias.

A token is packed when it is appended and never unpacked as a whole again: `ops.packed_attention` reads codes.
"""

import mlx.core as mx

from tiny_llm.cache.base import Part, no_slots, packed_layout
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.cache.memory import STEP
from tiny_llm.config import ModelConfig
from tiny_llm.config.engine import check_packing
from tiny_llm.config.fields import require
from tiny_llm.config.model import GROUP_SIZES
from tiny_llm.model.cached_attention import Packed
from tiny_llm.model.ops import Ops

PREFERRED = (64, 32)  # group sizes; the first that divides head_dim is taken


def group_size_for(head_dim: int, wanted: int | None = None) -> int:
    """Return the group size for heads `head_dim` wide: `wanted`, or one that fits. Raises ValueError without one."""
    possible = [size for size in GROUP_SIZES if head_dim % size == 0]
    require(
        bool(possible),
        f"cache: expected a head_dim that is a multiple of {min(GROUP_SIZES)} to keep keys and values in few bits, "
        f"found the model's {head_dim}; take the contiguous or the rotating cache and leave kv_bits and kv_group_size "
        "out",
    )
    sizes = " or ".join(map(str, possible))
    require(
        wanted is None or wanted in possible,
        f"kv_group_size: expected {sizes} with the model's head_dim ({head_dim}), found {wanted}; "
        "set that or leave it out",
    )
    if wanted is not None:
        return wanted
    return next(size for size in PREFERRED if size in possible)


class QuantizedCache(ContiguousCache):
    """The KV cache of one sequence with `bits` for each number; three buffers hold a layer's keys, three its values."""

    KIND = "quantized"
    SETTINGS = ("bits", "group_size")

    def __init__(self, config: ModelConfig, ops: Ops, bits: int = 8, group_size: int | None = None, step: int = STEP):
        check_packing(bits, group_size)
        super().__init__(config, ops, step)
        self.bits = bits
        self.group_size = group_size_for(config.head_dim, group_size)

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """Append k and v (T, Hkv, D); return what q (T, Hq, D) sees of the whole sequence, (T, Hq, D)."""
        keys = self._pack(self.keys, layer, k)
        values = self._pack(self.values, layer, v)
        scale = self.config.head_dim**-0.5
        return self.ops.packed_attention(q, keys, values, scale, self.config.window_of(layer))

    def attend_masked(self, layer: int, q: mx.array, k: mx.array, v: mx.array, mask: mx.array) -> mx.array:
        keys = self._pack(self.keys, layer, k)
        values = self._pack(self.values, layer, v)
        return self.ops.packed_attention(q, keys, values, self.config.head_dim**-0.5, mask=mask)

    def _pack(self, buffers: list[mx.array], layer: int, new: mx.array) -> Packed:
        """Append new (T, Hkv, D) packed; return all that is there now."""
        codes, scales, biases = mx.quantize(new, group_size=self.group_size, bits=self.bits)
        first = 3 * layer
        if first == len(buffers):  # the first step
            buffers += [no_slots(codes), no_slots(scales), no_slots(biases)]
        return Packed(
            self.write(buffers, first, codes),
            self.write(buffers, first + 1, scales),
            self.write(buffers, first + 2, biases),
        )

    @property
    def layout(self) -> tuple[Part, ...]:
        return packed_layout(self.config, self.bits, self.group_size)
