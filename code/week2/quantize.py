"""Group-affine quantization: w ≈ scale · value + bias, with one scale and one bias for `group_size` weights of a row.

Values of 2, 3, 4, 6 or 8 bits follow each other, lowest bit first, as one row of bits that is cut into words of 32:

    4 bits   word 0: v0 v1 v2 v3 v4 v5 v6 v7
    3 bits   word 0: v0 v1 … v9 and two bits of v10   word 1: the third bit of v10, v11 …   word 2: … v31

The results are bit-equal to those of mx.quantize and mx.dequantize (github.com/ml-explore/mlx, quantized.cpp), so
every program that reads MLX's files reads the files written here.
"""

from collections.abc import Iterable

import mlx.core as mx

from tiny_llm.config.model import GROUP_SIZES, QUANTIZED_BITS
from tiny_llm.course import NotDone
from tiny_llm.model.ops import Ops, Weight, quantization_of

WORD = 32  # bits
SMALLEST = 1e-7  # the smallest size of a scale: in a group of equal weights the span is 0


def check_format(group_size: int, bits: int) -> None:
    """Raise ValueError for bits or a group size that the format lacks."""
    if bits not in QUANTIZED_BITS:
        raise ValueError(f"bits: expected {either(QUANTIZED_BITS)}, found {bits}")
    if group_size not in GROUP_SIZES:
        raise ValueError(f"group size: expected {either(GROUP_SIZES)}, found {group_size}")


def check_fit(columns: int, group_size: int, bits: int, name: str = "weight") -> None:
    """Raise ValueError for bits or a group size that the format lacks, and for one that does not divide `columns`."""
    check_format(group_size, bits)
    if columns % group_size == 0:
        return
    fitting = [size for size in GROUP_SIZES if columns % size == 0]
    remedy = f"take {either(fitting)}" if fitting else "leave this layer dense"
    raise ValueError(f"{name}: expected a group size that divides its rows of {columns}, found {group_size}: {remedy}")


def either(numbers: Iterable[int]) -> str:
    """Return the numbers as an error lists them: "2 or 3 or 4"."""
    return " or ".join(map(str, numbers))


def quantize_groups(w: mx.array, group_size: int, bits: int) -> tuple[mx.array, mx.array, mx.array]:
    """Return the values, scales and biases of a matrix w (rows, columns) of float32, float16 or bfloat16.

    Values 0 … 2^bits - 1 are (rows, columns) uint32; scales and biases (rows, columns / group_size) have w's dtype.
    A group's bias is its lowest or highest weight, whichever is farther from zero: that weight has value 0. The scale
    is adjusted so that zero is a whole number of steps from it.
    """
    # YOUR CODE (w2.6.1): a scale, a bias and the nearest value for each weight
    raise NotDone("w2.6.1")


def pack(values: mx.array, bits: int) -> mx.array:
    """Pack values (rows, columns) uint32 below 2^bits into words (rows, columns · bits / 32) uint32."""
    # YOUR CODE (w2.6.2): one row of bits, cut into words
    raise NotDone("w2.6.2")


def unpack(packed: mx.array, bits: int) -> mx.array:
    """Return the values (rows, columns) uint32 that `pack` packed into words (rows, columns · bits / 32)."""
    # YOUR CODE (w2.6.3): the way back
    raise NotDone("w2.6.3")


def dequantize(packed: mx.array, scales: mx.array, biases: mx.array, group_size: int, bits: int) -> mx.array:
    """Compute scale · value + bias, (rows, columns), in the scales' dtype."""
    # YOUR CODE (w2.6.4): weights again
    raise NotDone("w2.6.4")


def quantized_linear(x: mx.array, w: Weight) -> mx.array:
    """Compute x Wᵀ + bias for a packed weight {"weight", "scales", "biases", "bias"?}. x (T, in), result (T, out)."""
    # YOUR CODE (w2.6.5): unpack, then multiply
    raise NotDone("w2.6.5")


def quantized_embedding(tokens: mx.array, w: Weight, hidden_size: int) -> mx.array:
    """Return row `token` of a packed table for each token. tokens (T,), result (T, hidden_size)."""
    group_size, bits = quantization_of(w, hidden_size)
    packed = w["weight"][tokens]
    scales = w["scales"][tokens]
    biases = w["biases"][tokens]
    return dequantize(packed, scales, biases, group_size, bits)


def quantize(w: mx.array, group_size: int, bits: int) -> Weight:
    """Quantize a matrix (rows, columns) to {"weight", "scales", "biases"}. Raises ValueError as `check_fit` does."""
    check_fit(w.shape[-1], group_size, bits)
    values, scales, biases = quantize_groups(w, group_size, bits)
    packed = pack(values, bits)
    return {"weight": packed, "scales": scales, "biases": biases}


def unfused(ops: Ops) -> Ops:
    """Return the table `ops` with this file's functions for packed weights, in place of MLX's kernels."""

    def linear(x: mx.array, w: Weight) -> mx.array:
        if "parts" in w:
            outputs = [linear(x, part) for part in w["parts"]]
            return mx.concatenate(outputs, axis=-1)
        if "scales" in w:
            return quantized_linear(x, w)
        return ops.linear(x, w)

    def embedding(tokens: mx.array, w: Weight, hidden_size: int) -> mx.array:
        if "scales" in w:
            return quantized_embedding(tokens, w, hidden_size)
        return ops.embedding(tokens, w, hidden_size)

    return ops._replace(linear=linear, embedding=embedding)
