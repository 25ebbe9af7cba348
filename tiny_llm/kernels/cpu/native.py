"""The table of operations with the CPU kernels in it, and the model that computes a whole step as one operation.

`lay_out` copies a model's matrices into the order in which the kernels read them. A weight is then {"cpu": Matrix}, and
a layer has {"cpu": DecoderLayer} beside its weights. All activations are float32.

Shapes: T tokens, Hq heads of queries and Hkv of keys and values, D numbers of a head, S slots, R sequences.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import mlx.core as mx

from tiny_llm.config import ModelConfig
from tiny_llm.config.fields import require
from tiny_llm.kernels.paged_attention import PACKED_TWINS, TWINS, Pages
from tiny_llm.model.cached_attention import Packed
from tiny_llm.model.ops import Ops, Weight, quantization_of
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
        model=partial(NativeQwen3, module=module),
        kernels="cpu",
        int8=int8,
    )


class NativeQwen3(Qwen3):
    """A `Qwen3` on laid-out weights, which computes all layers as one operation where the cache opens its buffers."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Any], ops: Ops, module: Any):
        super().__init__(config, weights, ops)
        self._project = project
        self._finish = finish
        layers = [layer["cpu"] for layer in weights["layers"]]
        windows = [config.window_of(i) or 0 for i in range(len(layers))]
        self._stack = module.LayerStack(layers, windows, config.head_dim**-0.5)

    def hidden_states(self, tokens: mx.array, cache: Attends) -> mx.array:
        """Return the last layer's output, before the final norm: (T, hidden)."""
        count = tokens.shape[0]
        buffers = cache.open_buffers(count) if count <= STACKED_TOKENS else None
        if buffers is None:
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


def lay_out(weights: dict[str, Any], config: ModelConfig, module: Any, int8: bool) -> None:
    """Replace each matrix in `weights` by its copy for the kernels, in the order in which a step reads the matrices.

    A matrix's own arrays are dropped as soon as it is copied. Raises ValueError for `int8` without packed weights.
    """
    require(
        not int8 or any("scales" in part for layer in weights["layers"] for part in matrices_of(layer)),
        "activations: int8 is for packed weights, and this model's are dense; leave it out, or quantize the model",
    )
    arena = module.Arena()
    hidden = config.hidden_size
    columns = {
        "qkv_proj": hidden,
        "o_proj": config.num_attention_heads * config.head_dim,
        "gate_up_proj": hidden,
        "down_proj": config.intermediate_size,
    }
    for layer in weights["layers"]:
        for name, width in columns.items():
            layer[name] = {"cpu": matrix(layer[name], width, module, arena)}
        layer["cpu"] = module.DecoderLayer(
            arena=arena,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            dim=config.head_dim,
            eps=config.rms_norm_eps,
            int8=int8,
            qkv=layer["qkv_proj"]["cpu"],
            o=layer["o_proj"]["cpu"],
            gate_up=layer["gate_up_proj"]["cpu"],
            down=layer["down_proj"]["cpu"],
            input_norm=layer["input_layernorm"]["weight"],
            post_norm=layer["post_attention_layernorm"]["weight"],
            q_norm=layer["q_norm"]["weight"] if config.qk_norm else None,
            k_norm=layer["k_norm"]["weight"] if config.qk_norm else None,
        )
    for name in ("embed_tokens", "lm_head"):
        if name in weights:
            weights[name] = {"cpu": matrix(weights[name], hidden, module, arena)}


def matrices_of(layer: Mapping[str, Any]) -> Iterator[Weight]:
    """Yield a layer's matrices before they are laid out; of a matrix in parts, each part."""
    for name in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"):
        yield from layer[name].get("parts", [layer[name]])


def matrix(weight: Weight, columns: int, module: Any, arena: Any) -> Any:
    """Return the `Matrix` of a weight (rows, columns), and empty the weight, so that its arrays are freed.

    `columns` is the length of an unpacked row. Parts become one matrix, their outputs side by side.
    """
    if "parts" in weight:
        first, *others = [matrix(part, columns, module, arena) for part in weight["parts"]]
        for other in others:
            first.join(other)
        return first
    arrays = {name: mx.contiguous(array) for name, array in weight.items()}
    bias = arrays.get("bias")
    if "scales" in arrays:
        _, bits = quantization_of(weight, columns)
        arrays["biases"] = arrays["biases"].astype(arrays["scales"].dtype)
        mx.eval(arrays)
        made = module.Matrix(arena, arrays["weight"], arrays["scales"], arrays["biases"], bias, columns, bits)
    else:
        mx.eval(arrays)
        made = module.Matrix(arena, arrays["weight"], bias)
    del arrays, bias
    weight.clear()
    mx.clear_cache()
    return made


def laid_out_bytes(weights: Mapping[str, Any]) -> int:
    """Return the bytes of the laid-out matrices that a decode step reads: all but an embedding table that is no head.

    A token reads one row of such a table.
    """
    matrices = [layer[name] for layer in weights["layers"] for name in layer if name.endswith("_proj")]
    matrices.append(weights.get("lm_head", weights["embed_tokens"]))
    total = 0
    for weight in matrices:
        total += weight["cpu"].nbytes
    return total
