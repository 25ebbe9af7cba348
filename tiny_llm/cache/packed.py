"""A pool whose numbers are packed into 8 or 4 bits: two to six times as many tokens in the same memory.

Each slot's K and V are quantized on their way in, in groups along D, and used as they are: no copy in full width.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import mlx.core as mx

from tiny_llm.cache.paged import PagedPool, gathered
from tiny_llm.cache.quantized import group_size_for
from tiny_llm.config import ModelConfig
from tiny_llm.kernels.paged import Pages, softmax_parts
from tiny_llm.model.ops import Ops

Packed = tuple[mx.array, ...]  # words, scales, biases, as mx.quantize gives them


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
    ):
        self.form: dict[str, Any] = {"group_size": group_size_for(config.head_dim), "bits": bits}
        super().__init__(config, ops, num_blocks, block_size, dtype)
        self.on = "plain"  # the kernels read plain pages only

    def clear(self) -> None:
        self.packed: list[tuple[Packed, Packed]] = []
        for _ in range(self.config.num_hidden_layers):
            sides = (mx.quantize(mx.zeros(self.shape, self.dtype), **self.form) for _ in range(2))
            self.packed.append((tuple(next(sides)), tuple(next(sides))))
            mx.eval(self.packed)

    def write(self, layer: int, blocks: mx.array, slots: mx.array, k: mx.array, v: mx.array) -> None:
        for buffers, new in zip(self.packed[layer], (k, v), strict=True):
            for buffer, part in zip(buffers, mx.quantize(new.astype(self.dtype), **self.form), strict=True):
                buffer[:, blocks, slots] = part.swapaxes(0, 1)

    def blank(self, layer: int, blocks: mx.array) -> None:
        for buffer in self.packed[layer][1]:
            buffer[:, blocks] = 0

    def decode(self, layer: int, q: mx.array, pages: Pages, window: int | None) -> mx.array:
        heads, _, _, dim = self.shape
        (k, *k_scaling), (v, *v_scaling) = ([x.reshape(-1, *x.shape[2:]) for x in side] for side in self.packed[layer])
        queries = q.reshape(q.shape[0] * heads, -1, dim)
        where: dict[str, Any] = {"rhs_indices": pages.places, **self.form}
        product = cast(Callable[..., mx.array], mx.gather_qmm)
        scores = product(queries, k, *k_scaling, transpose=True, lhs_indices=pages.rows, **where)
        e, total = softmax_parts(scores.astype(mx.float32), pages, dim**-0.5)
        each = product(e.astype(q.dtype), v, *v_scaling, transpose=False, lhs_indices=pages.each, **where)
        return (each.sum(axis=2, keepdims=True) / total).reshape(q.shape).astype(q.dtype)

    def sequence(self, layer: int, table: Sequence[int], length: int) -> tuple[mx.array, mx.array]:
        def opened(side: Packed) -> mx.array:
            words, scales, biases = (gathered(part, table, length) for part in side)
            return mx.dequantize(words, scales, biases, **self.form)

        keys, values = self.packed[layer]
        return opened(keys), opened(values)

    @property
    def state(self) -> list[Any]:
        return [part for sides in self.packed for side in sides for part in side]
