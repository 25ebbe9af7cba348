"""The model's table of operations with kernels in it: `--kernels` runs them in the real model."""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx

from tiny_llm.config import EngineConfig
from tiny_llm.kernels.decode_attention import MAX_HEADS, decode_attention
from tiny_llm.kernels.elementwise import swiglu
from tiny_llm.kernels.flash_attention import flash_attention
from tiny_llm.kernels.launch import choose
from tiny_llm.kernels.matmul import quantized_matmul
from tiny_llm.kernels.norm import rms_norm
from tiny_llm.kernels.packed_attention import packed_attention
from tiny_llm.kernels.rope import rope
from tiny_llm.model.cached_attention import Packed
from tiny_llm.model.ops import Ops, Weight
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.model.rope import Rotation


def with_kernels(ops: Ops, name: str) -> Ops:
    """`ops` with our kernels on the back end `name`; raises ValueError as `choose` does, and in a step where heads are
    wider than 256.

    Kernels are the norm, the rotation, the gate, products with packed weights and attention. Three things stay with
    `ops`, for which there is none: dense products, the embedding, attention under a mask of a cache's own (a rotating
    one beyond its window). Keys and values come as a slice of the cache's buffer, which MLX copies for a launch; the
    kernels of a paged pool read theirs in place. The simulator needs values, which a compiled function has not: with it
    nothing is compiled.
    """
    on = choose(name)

    def norm(x: mx.array, weight: mx.array, eps: float) -> mx.array:
        return rms_norm(x.reshape(-1, x.shape[-1]), weight.astype(x.dtype), eps, on).reshape(x.shape)

    def turn(x: mx.array, rotation: Rotation) -> mx.array:
        return rope(x, rotation.cos, rotation.sin, on=on)

    def gate(gate_up: mx.array) -> mx.array:
        return swiglu(gate_up, on)

    def linear(x: mx.array, w: Weight) -> mx.array:
        if "parts" in w:
            return mx.concatenate([linear(x, part) for part in w["parts"]], axis=-1)
        if "scales" not in w:
            return ops.linear(x, w)
        y = quantized_matmul(x, w["weight"], w["scales"].astype(x.dtype), w["biases"].astype(x.dtype), on)
        return y + w["bias"] if "bias" in w else y

    table = attending(ops, on)._replace(linear=linear, rms_norm=norm, rope=turn, swiglu=gate, kernels=on)
    return table._replace(compile=lambda function: function) if on == "sim" else table


def attending(ops: Ops, on: str) -> Ops:
    """`ops` with the attention kernels: FlashAttention for several queries, decode attention for one."""

    def attention(q: mx.array, k: mx.array, v: mx.array, scale: float, window: int | None = None) -> mx.array:
        if q.shape[0] == 1 and q.shape[1] <= MAX_HEADS * k.shape[0]:
            lengths = mx.array([k.shape[1]], mx.int32)
            return decode_attention(q, k[None], v[None], lengths, scale, window or 0, on=on)
        return flash_attention(q, k, v, [(q.shape[0], k.shape[1])], scale, window or 0, on)

    def packed(
        q: mx.array, k: Packed, v: Packed, scale: float, window: int | None = None, mask: mx.array | None = None
    ) -> mx.array:
        if mask is not None:
            return ops.packed_attention(q, k, v, scale, window, mask)
        slots, dim = k.codes.shape[1], q.shape[2]
        if q.shape[0] == 1 and q.shape[1] <= MAX_HEADS * k.codes.shape[0]:
            keys, values = ((x.codes[None], x.scales[None], x.biases[None]) for x in (k, v))
            return packed_attention(q, keys, values, mx.array([slots], mx.int32), scale, window or 0, on=on)
        return attention(q, k.unpacked(0, slots, dim), v.unpacked(0, slots, dim), scale, window)

    return ops._replace(attention=attention, packed_attention=packed)


def in_words(model: Qwen3, engine: EngineConfig) -> str:
    """What runs where, such as `kernels on sim: norm, rotation, gate, attention · MLX's operations: embedding`."""
    table = () if model.config.tie_word_embeddings else ("embed_tokens",)
    packed = {kind for name, weight in model.weights.items() if name not in table for kind in matrices_packed(weight)}
    ours = ["norm", "rotation", "gate", "attention", *(["packed products"] if True in packed else [])]
    theirs = ["embedding", *(["dense products"] if False in packed else [])]
    if engine.cache == "rotating":
        theirs.append("attention beyond the window")
    return f"kernels on {engine.kernels}: {', '.join(ours)} · MLX's operations: {', '.join(theirs)}"


def matrices_packed(weights: Any) -> Iterator[bool]:
    """Of each matrix in a tree of weights, whether it is packed."""
    if isinstance(weights, dict) and "weight" in weights:
        yield from ["scales" in weights] * (weights["weight"].ndim == 2)
    elif isinstance(weights, (dict, list)):
        for part in weights.values() if isinstance(weights, dict) else weights:
            yield from matrices_packed(part)
