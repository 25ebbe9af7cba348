"""2.7 The quantized matvec kernel: codes out of words, a scale for a group, and the columns of a row over 32 lanes."""

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from tests.kernels.oracles import dequantized
from tests.week1.oracles import f64, normal
from tiny_llm.course.check import Checker, task

Packed = tuple[mx.array, mx.array, mx.array, mx.array]


def packed(rows: int, columns: int, bits: int, group: int, dtype: mx.Dtype = mx.float32) -> Packed:
    """x of one row, and a random W of `rows`."""
    w = mx.array(normal(rows, columns, seed=1)).astype(dtype)
    return mx.array(normal(1, columns)).astype(dtype), *mx.quantize(w, group_size=group, bits=bits)


def product(x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array) -> NDArray[np.float64]:
    return f64(x) @ dequantized(np.array(weight), f64(scales), f64(biases), x.shape[1]).T


@task("w2.7.1")
def test_one_group_by_hand(check: Checker) -> None:
    """The codes 0 to 15 twice, scale 1, bias 0; x has one 1, first at column 3, then at column 8, then 5 of them."""
    weight = mx.array([[0x76543210, 0xFEDCBA98] * 2], mx.uint32)
    ones, zeros = mx.ones((1, 1)), mx.zeros((1, 1))
    for columns, want in (([3], 3.0), ([8], 8.0), ([0, 1, 2, 15, 31], 33.0)):
        x = mx.array([[1.0 if c in columns else 0.0 for c in range(32)]])
        check(lambda m, x=x: m.quantized_matvec(x, weight, ones, zeros), np.array([[want]]), axes="M N")


@task("w2.7.1")
def test_random_codes_of_four_bits(check: Checker) -> None:
    arguments = packed(3, 96, 4, 32)
    check(lambda m: m.quantized_matvec(*arguments), product(*arguments), axes="M N", terms=96)


@task("w2.7.1")
def test_three_bits_cross_the_words(check: Checker) -> None:
    """32 codes of 3 bits in three words: the eleventh has two bits in the first and one in the second."""
    arguments = packed(3, 96, 3, 32)
    check(lambda m: m.quantized_matvec(*arguments), product(*arguments), axes="M N", terms=96)


@task("w2.7.2")
def test_a_scale_and_a_bias_for_each_group(check: Checker) -> None:
    """Two groups of 32: every code is 1, so that a weight is scale + bias, 2 + 10 and 3 + 20; x is 1, then 1/2."""
    weight = mx.full((1, 8), 0x11111111, mx.uint32)
    scales, biases = mx.array([[2.0, 3.0]]), mx.array([[10.0, 20.0]])
    x = mx.concatenate([mx.ones((1, 32)), mx.full((1, 32), 0.5)], axis=1)
    check(lambda m: m.quantized_matvec(x, weight, scales, biases), np.array([[32 * 12.0 + 16 * 23.0]]), axes="M N")


@task("w2.7.2")
def test_more_columns_than_a_step_and_rows_that_do_not_fill_a_group(check: Checker) -> None:
    """4 bits: 32 lanes take 256 columns in a step; 352 end within the second. 19 rows, 16 to two simdgroups."""
    arguments = packed(19, 352, 4, 32)
    check(lambda m: m.quantized_matvec(*arguments), product(*arguments), axes="M N", terms=352)


@task("w2.7.2")
def test_eight_bits_in_half_precision(check: Checker) -> None:
    arguments = packed(5, 192, 8, 64, mx.float16)
    check(lambda m: m.quantized_matvec(*arguments), product(*arguments), axes="M N", terms=4, dtype=mx.float16)
