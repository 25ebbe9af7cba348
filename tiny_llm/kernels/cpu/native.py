"""The table of operations with the CPU kernels in it, and the model that computes a whole step as one operation.

The weights are those that `layout.lay_out` leaves. All activations are float32.

Shapes: T tokens, Hq heads of queries and Hkv of keys and values, D numbers of a head, S slots, R sequences.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import mlx.core as mx

from tiny_llm.config import ModelConfig
from tiny_llm.kernels.cpu.layout import is_complete, lay_out, lay_out_later
from tiny_llm.kernels.paged_attention import PACKED_TWINS, TWINS, Pages
from tiny_llm.model.cached_attention import Packed
from tiny_llm.model.ops import Ops, Weight
from tiny_llm.model.qwen3 import Attends, Qwen3
from tiny_llm.model.rope import Rotation

STACKED_TOKENS = 64  # the most tokens of a step whose layers are one operation; a longer step gains nothing by it
INT8_ROWS = 32  # the most rows of a product with 8-bit activations


def with_native(ops: Ops, module: Any, int8: bool) -> Ops:
    """Return `ops` with the operations of the compiled `module` of CPU kernels in place of its own.

    `int8` rounds activations to 8 bits in products of up to INT8_ROWS rows with packed weights.
    """

    def linear(x: mx.array, w: Weight) -> mx.array:
        """Compute x Wᵀ + bias. x (T, in), result (T, out)."""
        product: mx.array = w["cpu"].product(x, int8)
        return product

    def attention(q: mx.array, k: mx.array, v: mx.array, scale: float, window: int | None = None) -> mx.array:
        """Compute causal attention. q (T, Hq, D), k and v (Hkv, S, D), result (T, Hq, D)."""
        attended: mx.array = module.attend(q, [k, v], scale, window or 0, None)
        return attended

    def masked_attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None) -> mx.array:
        """Compute attention to the slots where mask (T, S) is True, or to all slots without a mask."""
        if mask is None:
            mask = mx.ones((q.shape[0], k.shape[1]), mx.bool_)
        attended: mx.array = module.attend(q, [k, v], scale, 0, mask)
        return attended

    def packed_attention(
        q: mx.array, k: Packed, v: Packed, scale: float, window: int | None = None, mask: mx.array | None = None
    ) -> mx.array:
        """Compute `attention` over packed keys and values. A mask (T, S) replaces the causal one."""
        attended: mx.array = module.attend(q, [*k, *v], scale, window or 0, mask)
        return attended

    def decode(q: mx.array, keys: mx.array, values: mx.array, pages: Pages, scale: float) -> mx.array:
        """Compute the attention of one query for each sequence. q (R, Hq, D), keys and values a pool's buffers."""
        attended: mx.array = module.attend_pages(q, [keys, values], pages.tables, pages.ends, scale, pages.window)
        return attended

    def packed_decode(q: mx.array, keys: Packed, values: Packed, pages: Pages, scale: float) -> mx.array:
        """Compute `decode` over a packed pool's buffers."""
        attended: mx.array = module.attend_pages(q, [*keys, *values], pages.tables, pages.ends, scale, pages.window)
        return attended

    return ops._replace(
        linear=linear,
        embedding=embedding,
        rms_norm=module.norm,
        attention=attention,
        masked_attention=masked_attention,
        packed_attention=packed_attention,
        paged=TWINS._replace(decode=decode, reads_padding=False),
        paged_packed=PACKED_TWINS._replace(decode=packed_decode, reads_padding=False),
        lay_out=partial(lay_out, module=module, int8=int8),
        lay_out_mlp=partial(lay_out_later, module=module),
        model=partial(NativeQwen3, module=module),
        kernels="cpu",
        int8=int8,
    )


class NativeQwen3(Qwen3):
    """A `Qwen3` on laid-out weights, which computes all layers as one operation where the cache opens its buffers.

    With experts that are read from files it computes layer by layer.
    """

    def __init__(self, config: ModelConfig, weights: Mapping[str, Any], ops: Ops, module: Any):
        super().__init__(config, weights, ops)
        self._project = project
        self._stack = None
        if is_complete(weights):
            self._finish = finish
            layers = [layer["cpu"] for layer in weights["layers"]]
            windows = [config.window_of(i) or 0 for i in range(len(layers))]
            self._stack = module.LayerStack(layers, windows, config.head_dim**-0.5)

    def hidden_states(self, tokens: mx.array, cache: Attends) -> mx.array:
        """Return the last layer's output, before the final norm: (T, hidden)."""
        count = tokens.shape[0]
        buffers = cache.open_buffers(count) if self._stack and count <= STACKED_TOKENS else None
        if self._stack is None or buffers is None:
            return super().hidden_states(tokens, cache)
        x = self.ops.embedding(tokens, self.weights["embed_tokens"], self.config.hidden_size)
        rotation = self.rope.at(buffers.positions)
        y: mx.array
        y, written = self._stack.run(
            x,
            rotation.cos,
            rotation.sin,
            buffers.slots,
            buffers.ends,
            buffers.tables,
            buffers.mask,
            buffers.block_size,
            buffers.arrays,
        )
        buffers.replace(written)
        return y


def embedding(tokens: mx.array, w: Weight, hidden_size: int) -> mx.array:
    """Return row `token` of the table for each token. tokens (T,), result (T, hidden_size)."""
    rows: mx.array = w["cpu"].rows(tokens.astype(mx.int32))
    return rows


def project(x: mx.array, layer: Mapping[str, Any], rotation: Rotation) -> tuple[mx.array, mx.array, mx.array]:
    """Return rotated queries (T, Hq, D), rotated keys and plain values (T, Hkv, D) of x (T, hidden)."""
    projected: tuple[mx.array, mx.array, mx.array] = layer["cpu"].project(x, rotation.cos, rotation.sin)
    return projected


def finish(x: mx.array, attended: mx.array, layer: Mapping[str, Any]) -> mx.array:
    """Add the attention's output to x, then the MLP's. x (T, hidden), attended (T, Hq, D), result (T, hidden)."""
    finished: mx.array = layer["cpu"].finish(x, attended)
    return finished
