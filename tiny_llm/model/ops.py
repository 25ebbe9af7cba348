"""The operations that a Qwen is made of, each as a readable function of plain MLX operations.

`Ops` is the table through which the model calls them: PLAIN holds the functions of this file, `fused.FUSED` the
fastest twin of each on the current device. A weight is a dict of arrays, so that a dense and a quantized one, a
slice and a shard look the same from outside:

    dense      {"weight": (out, in), "bias"?: (out,)}
    quantized  {"weight": packed, "scales": (out, in/group), "biases": (out, in/group), "bias"?: (out,)}
    in parts   {"parts": [weight, …]}, whose outputs stand side by side
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from tiny_llm.model.attention import causal_attention
from tiny_llm.model.rope import apply_rope

Weight = dict[str, Any]


def quantization_of(w: Weight, width: int) -> tuple[int, int]:
    """(group size, bits) of a packed weight whose unpacked rows are `width` long: both follow from the shapes."""
    return width // w["scales"].shape[-1], w["weight"].shape[-1] * 32 // width


def linear(x: mx.array, w: Weight) -> mx.array:
    """y = x Wᵀ + bias. x (T, in), result (T, out)."""
    if "parts" in w:
        return mx.concatenate([linear(x, part) for part in w["parts"]], axis=-1)
    y: mx.array
    if "scales" in w:
        group_size, bits = quantization_of(w, x.shape[-1])
        y = mx.quantized_matmul(x, w["weight"], w["scales"], w["biases"], group_size=group_size, bits=bits)
    else:
        y = x @ w["weight"].T
    return y + w["bias"] if "bias" in w else y


def embedding(tokens: mx.array, w: Weight, hidden_size: int) -> mx.array:
    """Row `token` of the table for each token. tokens (T,), result (T, hidden_size)."""
    rows: mx.array = w["weight"][tokens]
    if "scales" not in w:
        return rows
    group_size, bits = quantization_of(w, hidden_size)
    return mx.dequantize(rows, w["scales"][tokens], w["biases"][tokens], group_size=group_size, bits=bits)


def softmax(x: mx.array) -> mx.array:
    """exp(x) / Σ exp(x) over the last axis, shifted by the maximum so that nothing overflows."""
    e = mx.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def silu(x: mx.array) -> mx.array:
    """x · σ(x), element by element."""
    return x / (1 + mx.exp(-x))


def swiglu(gate_up: mx.array) -> mx.array:
    """silu(gate) · up, where gate_up (T, 2·I) holds gate and up side by side; result (T, I). (arXiv:2002.05202)"""
    gate, up = mx.split(gate_up, 2, axis=-1)
    return silu(gate) * up


def rms_norm(x: mx.array, weight: mx.array, eps: float) -> mx.array:
    """x / √(mean(x²) + eps) · weight over the last axis, in float32. (arXiv:1910.07467)"""
    x32 = x.astype(mx.float32)
    scale = mx.rsqrt(x32.square().mean(axis=-1, keepdims=True) + eps)
    return (x32 * scale).astype(x.dtype) * weight


class Ops(NamedTuple):
    """One implementation of every operation that the model and the caches use."""

    linear: Callable[[mx.array, Weight], mx.array]
    embedding: Callable[[mx.array, Weight, int], mx.array]
    rms_norm: Callable[[mx.array, mx.array, float], mx.array]
    rope: Callable[..., mx.array]
    swiglu: Callable[[mx.array], mx.array]
    attention: Callable[..., mx.array]
    compile: Callable[[Callable[..., Any]], Callable[..., Any]]


PLAIN = Ops(linear, embedding, rms_norm, apply_rope, swiglu, causal_attention, lambda function: function)
