"""2.6 Quantization: groups on a ladder, bits in words, and the layer that computes with them, by the definition."""

import mlx.core as mx
import numpy as np

from tests.week1.oracles import f64, normal
from tiny_llm.course.check import Checker, task

BITS = (2, 3, 4, 6, 8)


def ladder(group: np.ndarray, bits: int) -> tuple[float, float, list[int]]:
    """Scale, bias and values of one group, one weight at a time."""
    low, high = float(group.min()), float(group.max())
    if low == high == 0:
        return 0.0, 0.0, [0] * len(group)
    edge = low if abs(low) > abs(high) else high
    step = (high - low) / (2**bits - 1) * (1 if edge == low else -1)
    scale = edge / round(edge / step) if round(edge / step) else step
    return scale, edge, [min(2**bits - 1, round((float(w) - edge) / scale)) for w in group]


def quantized(w: np.ndarray, group_size: int, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, scales and biases of a matrix."""
    groups = [ladder(group, bits) for group in f64(w).reshape(-1, group_size)]
    scales, biases = (np.array([group[i] for group in groups]).reshape(len(w), -1) for i in (0, 1))
    return np.array([group[2] for group in groups], np.uint32).reshape(w.shape), scales, biases


def stream(values: np.ndarray, bits: int) -> np.ndarray:
    """Words of a matrix, through one text of zeros and ones for each row."""
    texts = ["".join(f"{v:0{bits}b}"[::-1] for v in row) for row in values.tolist()]
    return np.array([[int(t[i : i + 32][::-1], 2) for i in range(0, len(t), 32)] for t in texts], np.uint32)


def check_groups(check: Checker, w: mx.array, group_size: int, bits: int) -> None:
    values, scales, biases = quantized(f64(w), group_size, bits)
    dtype = w.dtype
    check(lambda m: m.quantize_groups(w, group_size, bits)[2], biases, axes="R G", what="biases", dtype=dtype)
    check(lambda m: m.quantize_groups(w, group_size, bits)[1], scales, axes="R G", what="scales", dtype=dtype)
    check(lambda m: m.quantize_groups(w, group_size, bits)[0], values, axes="R C", what="values")


@task("w2.6.1")
def test_four_weights_by_hand(check: Checker) -> None:
    """-1 to 2 in three steps of 1, from 2 downwards."""
    w = mx.array([[2.0, 1.2, -1.0, 0.1]])
    check(lambda m: m.quantize_groups(w, 4, 2)[2], np.array([[2.0]]), axes="R G", what="biases")
    check(lambda m: m.quantize_groups(w, 4, 2)[1], np.array([[-1.0]]), axes="R G", what="scales")
    check(lambda m: m.quantize_groups(w, 4, 2)[0], np.array([[0, 1, 3, 2]], np.uint32), axes="R C", what="values")


@task("w2.6.1")
def test_zero_has_a_value(check: Checker) -> None:
    """-1.6 to 0.8: steps of 0.8 fit twice into 1.6, so that 0 is value 2. With 2 to -0.7 they must be stretched."""
    check_groups(check, mx.array([[-1.6, 0.8, 0.1, -0.5], [2.0, -0.7, 0.0, 1.0], [1.0, 0.0, 0.3, 0.9]]), 4, 2)


@task("w2.6.1")
def test_each_group_has_its_own_ladder(check: Checker) -> None:
    w = normal(3, 128) * np.repeat(np.float32([0.1, 1, 10, 0.5]), 32)
    check_groups(check, mx.array(w), 32, 4)
    check_groups(check, mx.array(w), 64, 3)


@task("w2.6.1")
def test_a_group_of_zeros(check: Checker) -> None:
    w = mx.array(np.concatenate([np.zeros((1, 32), np.float32), normal(1, 32)], axis=1))
    check(lambda m: m.quantize_groups(w, 32, 4)[0], quantized(f64(w), 32, 4)[0], axes="R C", what="values")


@task("w2.6.1")
def test_half_precision(check: Checker) -> None:
    """Scales and biases are rounded to it only when all is computed."""
    check_groups(check, mx.array(normal(4, 256)).astype(mx.bfloat16), 64, 8)


@task("w2.6.2")
def test_eight_values_of_four_bits_by_hand(check: Checker) -> None:
    """A hexadecimal digit is four bits, and the last one is the lowest; the other three words are zeros."""
    values = mx.array([[1, 2, 3, 4, 5, 6, 7, 8] + [0] * 24], dtype=mx.uint32)
    check(lambda m: m.pack(values, 4), np.array([[0x87654321, 0, 0, 0]], np.uint32), axes="R W")


@task("w2.6.2")
def test_a_value_across_two_words(check: Checker) -> None:
    """The eleventh value of 3 bits has two of them in the first word and one in the second."""
    values = mx.array([[0] * 10 + [5] + [0] * 21], dtype=mx.uint32)
    check(lambda m: m.pack(values, 3), np.array([[1 << 30, 1, 0]], np.uint32), axes="R W")


@task("w2.6.2")
def test_packing_all_bits(check: Checker) -> None:
    for bits in BITS:
        values = np.random.default_rng(bits).integers(0, 2**bits, (3, 96), np.uint32)
        check(lambda m, v=values, b=bits: m.pack(mx.array(v), b), stream(values, bits), axes="R W", what=f"{bits} bits")


@task("w2.6.3")
def test_a_word_by_hand(check: Checker) -> None:
    packed = mx.array([[0x87654321, 0, 0, 0]], dtype=mx.uint32)
    check(lambda m: m.unpack(packed, 4), np.array([[1, 2, 3, 4, 5, 6, 7, 8] + [0] * 24], np.uint32), axes="R C")


@task("w2.6.3")
def test_unpacking_all_bits(check: Checker) -> None:
    for bits in BITS:
        values = np.random.default_rng(bits).integers(0, 2**bits, (3, 96), np.uint32)
        words = mx.array(stream(values, bits))
        check(lambda m, w=words, b=bits: m.unpack(w, b), values, axes="R C", what=f"{bits} bits")


@task("w2.6.4")
def test_two_groups_by_hand(check: Checker) -> None:
    """Groups of 16, values 0 1 2 3 over and over: the first are 2 - v, the second 10 + 5 v."""
    packed = mx.array([[0x32103210] * 4], dtype=mx.uint32)
    scales, biases = mx.array([[-1.0, 5.0]]), mx.array([[2.0, 10.0]])
    want = np.array([[2.0, 1, 0, -1] * 4 + [10, 15, 20, 25] * 4])
    check(lambda m: m.dequantize(packed, scales, biases, 16, 4), want, axes="R C")


@task("w2.6.4")
def test_weights_of_all_bits(check: Checker) -> None:
    for bits, dtype in zip(BITS, (mx.float32, mx.bfloat16, mx.float32, mx.float16, mx.float32), strict=True):
        values, scales, biases = quantized(normal(3, 128, seed=bits), 32, bits)
        scale, bias = mx.array(scales).astype(dtype), mx.array(biases).astype(dtype)
        words = mx.array(stream(values, bits))
        want = np.repeat(f64(scale), 32, axis=1) * values + np.repeat(f64(bias), 32, axis=1)
        arguments = (words, scale, bias, 32, bits)
        check(lambda m, a=arguments: m.dequantize(*a), want, axes="R C", what=f"{bits} bits", dtype=dtype)


def packed_layer(rows: int, columns: int, group_size: int, bits: int) -> tuple[dict[str, mx.array], np.ndarray]:
    """A packed weight, and the dense one that it stands for."""
    values, scales, biases = quantized(normal(rows, columns, seed=bits), group_size, bits)
    arrays = {"scales": mx.array(scales, mx.float32), "biases": mx.array(biases, mx.float32)}
    dense = np.repeat(f64(arrays["scales"]), group_size, axis=1) * values
    return {"weight": mx.array(stream(values, bits)), **arrays}, dense + np.repeat(
        f64(arrays["biases"]), group_size, axis=1
    )


@task("w2.6.5")
def test_a_packed_layer(check: Checker) -> None:
    """More outputs than inputs, and fewer."""
    for rows, columns, group_size, bits in ((7, 64, 32, 4), (70, 64, 64, 8), (5, 128, 32, 3)):
        w, dense = packed_layer(rows, columns, group_size, bits)
        x = mx.array(normal(3, columns))
        check(lambda m, x=x, w=w: m.quantized_linear(x, w), f64(x) @ dense.T, axes="T OUT", terms=columns)


@task("w2.6.5")
def test_a_packed_layer_with_a_bias(check: Checker) -> None:
    w, dense = packed_layer(6, 64, 32, 4)
    x, bias = mx.array(normal(3, 64)), mx.array(normal(6, seed=9))
    want = f64(x) @ dense.T + f64(bias)
    check(lambda m: m.quantized_linear(x, w | {"bias": bias}), want, axes="T OUT", terms=64)
