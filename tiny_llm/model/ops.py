"""The operations that a Qwen is made of, each as a readable function of plain MLX operations.

The model calls them through a table, `Ops`: PLAIN holds the functions of this file, and `fused.choose_ops` returns the
fastest twin of each for the current device. A weight is a dict of arrays, so that the model treats dense and quantized
weights, slices and shards alike:

    dense      {"weight": (out, in), "bias"?: (out,)}
    quantized  {"weight": packed, "scales": (out, in/group), "biases": (out, in/group), "bias"?: (out,)}
    in parts   {"parts": [weight, …]}, whose outputs stand side by side
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from tiny_llm.config import ModelConfig
from tiny_llm.model.attention import causal_attention
from tiny_llm.model.cached_attention import PagedOps, masked_attention, packed_attention
from tiny_llm.model.moe import chosen_experts
from tiny_llm.model.rope import apply_rope

Weight = dict[str, Any]


def quantization_of(w: Weight, width: int) -> tuple[int, int]:
    """Return (group size, bits) of a packed weight with unpacked rows of `width` numbers, computed from the shapes."""
    groups = w["scales"].shape[-1]
    words = w["weight"].shape[-1]
    return width // groups, words * 32 // width


def quantized_product(x: mx.array, w: Weight) -> mx.array:
    """Compute x Wᵀ for a packed weight. x (T, in), result (T, out)."""
    group_size, bits = quantization_of(w, x.shape[-1])
    scales = w["scales"]
    biases = w["biases"]
    return mx.quantized_matmul(x, w["weight"], scales, biases, group_size=group_size, bits=bits)


def linear(x: mx.array, w: Weight) -> mx.array:
    """Compute x Wᵀ + bias. x (T, in), result (T, out). A weight with "scales" is packed: see `quantized_product`."""
    if "parts" in w:
        outputs = [linear(x, part) for part in w["parts"]]
        return mx.concatenate(outputs, axis=-1)
    # TASK w1.4.1: the product, and a bias where there is one
    y = quantized_product(x, w) if "scales" in w else x @ w["weight"].T
    if "bias" in w:
        y = y + w["bias"]
    return y
    # END TASK


def embedding(tokens: mx.array, w: Weight, hidden_size: int) -> mx.array:
    """Return row `token` of the table for each token. tokens (T,), result (T, hidden_size)."""
    if "scales" in w:
        group_size, bits = quantization_of(w, hidden_size)
        packed = w["weight"][tokens]
        scales = w["scales"][tokens]
        biases = w["biases"][tokens]
        return mx.dequantize(packed, scales, biases, group_size=group_size, bits=bits)
    # TASK w1.5.1: a row for each token
    rows: mx.array = w["weight"][tokens]
    return rows
    # END TASK


def softmax(x: mx.array) -> mx.array:
    """Compute exp(x) / Σ exp(x) over the last axis, from x minus its maximum, so that nothing overflows."""
    # TASK w1.4.2: a row of weights that sum to 1
    top = x.max(axis=-1, keepdims=True)
    e = mx.exp(x - top)
    total = e.sum(axis=-1, keepdims=True)
    return e / total
    # END TASK


def silu(x: mx.array) -> mx.array:
    """Compute x · σ(x), element by element."""
    # TASK w1.4.3: x, gated by its own sigmoid
    return x / (1 + mx.exp(-x))
    # END TASK


def swiglu(gate_up: mx.array) -> mx.array:
    """Compute silu(gate) · up; gate_up (T, 2·I) holds gate and up side by side, result (T, I). (arXiv:2002.05202)"""
    # TASK w1.4.4: the gate decides how much of `up` passes
    gate, up = mx.split(gate_up, 2, axis=-1)
    return silu(gate) * up
    # END TASK


def rms_norm(x: mx.array, weight: mx.array, eps: float) -> mx.array:
    """Compute x / √(mean(x²) + eps) · weight over the last axis, in float32. (arXiv:1910.07467)"""
    # TASK w1.4.5: each token's vector to length √D, then the weights
    x32 = x.astype(mx.float32)
    mean_square = x32.square().mean(axis=-1, keepdims=True)
    scale = mx.rsqrt(mean_square + eps)
    normed = (x32 * scale).astype(x.dtype)
    return normed * weight
    # END TASK


# ANCHOR: table
class Ops(NamedTuple):
    """One implementation of every operation that the model and the caches use."""

    linear: Callable[[mx.array, Weight], mx.array]
    embedding: Callable[[mx.array, Weight, int], mx.array]
    rms_norm: Callable[[mx.array, mx.array, float], mx.array]
    rope: Callable[..., mx.array]
    swiglu: Callable[[mx.array], mx.array]
    attention: Callable[..., mx.array]
    compile: Callable[[Callable[..., Any]], Callable[..., Any]]
    masked_attention: Callable[..., mx.array] = masked_attention
    packed_attention: Callable[..., mx.array] = packed_attention
    experts: Callable[..., mx.array] = chosen_experts
    paged: PagedOps | None = None  # of a pool in full width; None: the plain twins
    paged_packed: PagedOps | None = None  # of a pool in few bits; None: the plain twins
    lay_out_mlp: Callable[[Weight, int, int], None] = lambda mlp, hidden, inner: None  # of an expert that is read later
    lay_out: Callable[[dict[str, Any], ModelConfig], None] = lambda weights, config: None  # as `linear` reads fastest
    model: Callable[..., Any] | None = None  # makes a `Qwen3` that goes with this table; None: `Qwen3` itself
    kernels: str | None = None  # the back end of our own kernels, where the table has them
    int8: bool = False  # products of few rows with packed weights round their activations to 8 bits

    @property
    def native(self) -> bool:
        """Whether the table has the CPU kernels, which read matrices in the files' own number formats."""
        return self.kernels == "cpu"


PLAIN = Ops(linear, embedding, rms_norm, apply_rope, swiglu, causal_attention, lambda function: function)
# ANCHOR_END: table
