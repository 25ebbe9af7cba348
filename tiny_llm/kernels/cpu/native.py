"""The table of operations with the CPU kernels in it, and the model that does a whole step as one of them.

`lay_out` puts a model's matrices into the order in which the kernels read them. A weight is then {"cpu": matrix}, and a
layer has {"cpu": layer} beside its weights. All activations are float32.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, cast

import mlx.core as mx

from tiny_llm.config import ModelConfig
from tiny_llm.config.fields import require
from tiny_llm.kernels.paged_attention import PACKED_TWINS, TWINS, Pages
from tiny_llm.model.cached_attention import Packed
from tiny_llm.model.ops import Ops, Weight, quantization_of
from tiny_llm.model.places import Placed
from tiny_llm.model.qwen3 import Attends, Qwen3
from tiny_llm.model.rope import Rotation

STACKED_TOKENS = 64  # of a step whose layers are one operation; with more, what is between layers takes no time


def with_native(ops: Ops, module: Any, int8: bool) -> Ops:
    """Return `ops` with the CPU kernels of the compiled `module`.

    `int8` rounds activations to 8 bits in products of up to 32 rows with packed weights.
    """

    def linear(x: mx.array, w: Weight) -> mx.array:
        product: mx.array = w["cpu"].product(x, int8)
        return product

    def attention(q: mx.array, k: mx.array, v: mx.array, scale: float, window: int | None = None) -> mx.array:
        found: mx.array = module.attend(q, [k, v], scale, window or 0, None)
        return found

    def masked_attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None) -> mx.array:
        if mask is None:
            mask = mx.ones((q.shape[0], k.shape[1]), mx.bool_)
        found: mx.array = module.attend(q, [k, v], scale, 0, mask)
        return found

    def packed_attention(
        q: mx.array, k: Packed, v: Packed, scale: float, window: int | None = None, mask: mx.array | None = None
    ) -> mx.array:
        found: mx.array = module.attend(q, [*k, *v], scale, window or 0, mask)
        return found

    def decode(q: mx.array, keys: mx.array, values: mx.array, pages: Pages, scale: float) -> mx.array:
        found: mx.array = module.attend_pages(q, [keys, values], pages.tables, pages.ends, scale, pages.window)
        return found

    def packed_decode(q: mx.array, keys: Packed, values: Packed, pages: Pages, scale: float) -> mx.array:
        found: mx.array = module.attend_pages(q, [*keys, *values], pages.tables, pages.ends, scale, pages.window)
        return found

    return ops._replace(
        linear=linear,
        embedding=embedding,
        rms_norm=module.norm,
        attention=attention,
        masked_attention=masked_attention,
        packed_attention=packed_attention,
        paged=TWINS._replace(decode=decode, reads_padding=False),
        paged_packed=PACKED_TWINS._replace(decode=packed_decode, reads_padding=False),
        lay_out=lambda weights, config: lay_out(weights, config, module, int8),
        keeps_16_bits=True,
        model=partial(NativeQwen3, module=module),
        kernels="cpu",
    )


class NativeQwen3(Qwen3):
    """A `Qwen3` whose layers are one operation in steps of few tokens, over a cache that tells its buffers."""

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
        place = getattr(cache, "place", None)
        places = place(count) if place and count <= STACKED_TOKENS else None
        if places is None:
            return super().hidden_states(tokens, cache)
        x = self.ops.embedding(tokens, self.weights["embed_tokens"], self.config.hidden_size)
        rotation = self.rope.at(places.positions)
        y: mx.array
        y, written = self._stack.run(
            x,
            rotation.cos,
            rotation.sin,
            places.slots,
            places.ends,
            places.tables,
            places.mask,
            places.block_size,
            places.buffers,
        )
        cast(Placed, cache).take_in(written)
        return y


def embedding(tokens: mx.array, w: Weight, hidden_size: int) -> mx.array:
    """Compute `ops.embedding`."""
    rows: mx.array = w["cpu"].rows(tokens.astype(mx.int32))
    return rows


def project(x: mx.array, layer: Mapping[str, Any], rotation: Rotation) -> tuple[mx.array, mx.array, mx.array]:
    """Compute `Qwen3.project`."""
    found: tuple[mx.array, mx.array, mx.array] = layer["cpu"].project(x, rotation.cos, rotation.sin)
    return found


def finish(x: mx.array, attended: mx.array, layer: Mapping[str, Any]) -> mx.array:
    """Compute `Qwen3.finish`."""
    found: mx.array = layer["cpu"].finish(x, attended)
    return found


def lay_out(weights: dict[str, Any], config: ModelConfig, module: Any, int8: bool) -> None:
    """Lay out all matrices of a model, in place and in the order in which a step reads them."""
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
    """Yield a layer's matrices."""
    for name in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"):
        yield from layer[name].get("parts", [layer[name]])


def matrix(weight: Weight, columns: int, module: Any, arena: Any) -> Any:
    """Return a weight in the kernels' order; its own arrays are dropped. `columns`: the length of an unpacked row."""
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
