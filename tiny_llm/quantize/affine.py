"""Group-affine quantization: w ≈ scale · value + bias, a scale and a bias for each `group_size` weights of a row.

Values of 2, 3, 4, 6 or 8 bits stand one behind the other, lowest bit first, as one row of bits cut into words of 32:

    4 bits   word 0: v0 v1 v2 v3 v4 v5 v6 v7
    3 bits   word 0: v0 v1 … v9 and two bits of v10   word 1: the third bit of v10, v11 …   word 2: … v31

All of it is bit-equal to mx.quantize and mx.dequantize (github.com/ml-explore/mlx, quantized.cpp), so that a file
written here is read by every program that reads MLX's.
"""

import mlx.core as mx

from tiny_llm.config.fields import require
from tiny_llm.config.model import GROUP_SIZES, QUANTIZED_BITS
from tiny_llm.model.ops import Ops, Weight, quantization_of

WORD = 32  # bits
SMALLEST = 1e-7  # a scale's size at least: a group of equal weights has no span


def check_format(group_size: int, bits: int) -> None:
    """Raises ValueError for bits or a group size that the format lacks."""
    known = " or ".join(map(str, QUANTIZED_BITS))
    require(bits in QUANTIZED_BITS, f"bits: expected {known}, found {bits}")
    known = " or ".join(map(str, GROUP_SIZES))
    require(group_size in GROUP_SIZES, f"group size: expected {known}, found {group_size}")


def check_fit(columns: int, group_size: int, bits: int, name: str = "weight") -> None:
    """Raises ValueError for bits or a group size that the format lacks, or that do not fit rows of `columns`."""
    check_format(group_size, bits)
    fitting = [size for size in GROUP_SIZES if columns % size == 0]
    remedy = f"take {' or '.join(map(str, fitting))}" if fitting else "leave this layer dense"
    require(
        columns % group_size == 0,
        f"{name}: expected a group size that divides its rows of {columns}, found {group_size}: {remedy}",
    )


def quantize_groups(w: mx.array, group_size: int, bits: int) -> tuple[mx.array, mx.array, mx.array]:
    """Values 0 … 2^bits - 1 (rows, columns) uint32, scales and biases (rows, columns / group_size) in w's dtype.

    The end of a group that is farther from zero becomes its bias, value 0; the scale is such that zero has a value of
    its own. w (rows, columns) of float32, float16 or bfloat16.
    """
    # TASK w2.6.1: a scale, a bias and the nearest value for each weight
    top = 2**bits - 1
    groups = w.astype(mx.float32).reshape(*w.shape[:-1], -1, group_size)
    low, high = groups.min(axis=-1, keepdims=True), groups.max(axis=-1, keepdims=True)
    step = mx.maximum((high - low) / top, SMALLEST)
    upwards = mx.abs(low) > mx.abs(high)
    edge, scale = mx.where(upwards, low, high), mx.where(upwards, step, -step)
    rungs = mx.round(edge / scale)  # from the edge to zero
    scale = mx.where(rungs == 0, scale, edge / rungs)
    bias = mx.where(rungs == 0, 0.0, edge)
    values = mx.clip(mx.round((groups - bias) / scale), 0, top).astype(mx.uint32)
    return values.reshape(w.shape), scale[..., 0].astype(w.dtype), bias[..., 0].astype(w.dtype)
    # END TASK


def pack(values: mx.array, bits: int) -> mx.array:
    """Values (rows, columns) uint32 below 2^bits as words (rows, columns · bits / 32) uint32."""
    # TASK w2.6.2: one row of bits, cut into words
    stream = (values[..., None] >> mx.arange(bits, dtype=mx.uint32)) & 1  # (rows, columns, bits)
    stream = stream.reshape(*values.shape[:-1], -1, WORD)
    return (stream << mx.arange(WORD, dtype=mx.uint32)).sum(axis=-1)
    # END TASK


def unpack(packed: mx.array, bits: int) -> mx.array:
    """The values (rows, columns) uint32 of words (rows, columns · bits / 32): what `pack` was given."""
    # TASK w2.6.3: the way back
    stream = (packed[..., None] >> mx.arange(WORD, dtype=mx.uint32)) & 1  # (rows, words, 32)
    stream = stream.reshape(*packed.shape[:-1], -1, bits)
    return (stream << mx.arange(bits, dtype=mx.uint32)).sum(axis=-1)
    # END TASK


def dequantize(packed: mx.array, scales: mx.array, biases: mx.array, group_size: int, bits: int) -> mx.array:
    """scale · value + bias: (rows, columns) in the scales' dtype, which the arithmetic is done in as well."""
    # TASK w2.6.4: weights again
    values = unpack(packed, bits).astype(scales.dtype)
    groups = values.reshape(*scales.shape, group_size)
    return (scales[..., None] * groups + biases[..., None]).reshape(values.shape)
    # END TASK


def quantized_linear(x: mx.array, w: Weight) -> mx.array:
    """y = x Wᵀ + bias for a packed weight {"weight", "scales", "biases"[, "bias"]}. x (T, in), result (T, out)."""
    # TASK w2.6.5: unpack, then multiply
    group_size, bits = quantization_of(w, x.shape[-1])
    y = x @ dequantize(w["weight"], w["scales"], w["biases"], group_size, bits).T
    return y + w["bias"] if "bias" in w else y
    # END TASK


def quantized_embedding(tokens: mx.array, w: Weight, hidden_size: int) -> mx.array:
    """Row `token` of a packed table for each token. tokens (T,), result (T, hidden_size)."""
    group_size, bits = quantization_of(w, hidden_size)
    return dequantize(w["weight"][tokens], w["scales"][tokens], w["biases"][tokens], group_size, bits)


def quantize(w: mx.array, group_size: int, bits: int) -> Weight:
    """A matrix (rows, columns) as {"weight", "scales", "biases"}. Raises ValueError as `check_fit`."""
    check_fit(w.shape[-1], group_size, bits)
    values, scales, biases = quantize_groups(w, group_size, bits)
    return {"weight": pack(values, bits), "scales": scales, "biases": biases}


def unfused(ops: Ops) -> Ops:
    """The table with this file's functions for packed weights, in the place of MLX's kernels."""

    def linear(x: mx.array, w: Weight) -> mx.array:
        if "parts" in w:
            return mx.concatenate([linear(x, part) for part in w["parts"]], axis=-1)
        return quantized_linear(x, w) if "scales" in w else ops.linear(x, w)

    def embedding(tokens: mx.array, w: Weight, hidden_size: int) -> mx.array:
        return (quantized_embedding if "scales" in w else ops.embedding)(tokens, w, hidden_size)

    return ops._replace(linear=linear, embedding=embedding)
