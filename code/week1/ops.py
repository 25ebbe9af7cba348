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
from tiny_llm.course import NotDone
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
    # YOUR CODE (w1.4.1): the product, and a bias where there is one
    raise NotDone("w1.4.1")


def embedding(tokens: mx.array, w: Weight, hidden_size: int) -> mx.array:
    """Return row `token` of the table for each token. tokens (T,), result (T, hidden_size)."""
    if "scales" in w:
        group_size, bits = quantization_of(w, hidden_size)
        packed = w["weight"][tokens]
        scales = w["scales"][tokens]
        biases = w["biases"][tokens]
        return mx.dequantize(packed, scales, biases, group_size=group_size, bits=bits)
    # YOUR CODE (w1.5.1): a row for each token
    raise NotDone("w1.5.1")


def softmax(x: mx.array) -> mx.array:
    """Compute exp(x) / Σ exp(x) over the last axis, from x minus its maximum, so that nothing overflows."""
    # YOUR CODE (w1.4.2): a row of weights that sum to 1
    raise NotDone("w1.4.2")


def silu(x: mx.array) -> mx.array:
    """Compute x · σ(x), element by element."""
    # YOUR CODE (w1.4.3): x, gated by its own sigmoid
    raise NotDone("w1.4.3")


def swiglu(gate_up: mx.array) -> mx.array:
    """Compute silu(gate) · up; gate_up (T, 2·I) holds gate and up side by side, result (T, I). (arXiv:2002.05202)"""
    # YOUR CODE (w1.4.4): the gate decides how much of `up` passes
    raise NotDone("w1.4.4")


def rms_norm(x: mx.array, weight: mx.array, eps: float) -> mx.array:
    """Compute x / √(mean(x²) + eps) · weight over the last axis, in float32. (arXiv:1910.07467)"""
    # YOUR CODE (w1.4.5): each token's vector to length √D, then the weights
    raise NotDone("w1.4.5")


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
