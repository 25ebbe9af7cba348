"""2.11 The same product on a CPU: LANES rows side by side, codes that stay at their place, a scale for each group.

Each product is compiled and run for every width of a vector that this machine has. Words of the block are read once,
those of other blocks not at all, and each array lies before memory that stops whoever goes on.
"""

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from tests.week1.oracles import f64, normal
from tiny_llm.course.check import Checker, task
from tiny_llm.course.native import CodedRows, widths


def matrix(rows: int, columns: int, bits: int, group: int, dtype: mx.Dtype = mx.float32, seed: int = 0) -> CodedRows:
    """Random codes of all sizes; scales and biases that differ from row to row and from group to group."""
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, columns))
    scales = 0.02 + 0.01 * np.abs(normal(rows, columns // group, seed=seed + 1))
    biases = -scales * 2 ** (bits - 1) + 0.1 * normal(rows, columns // group, seed=seed + 2)
    return CodedRows(codes, bits, mx.array(scales).astype(dtype), mx.array(biases).astype(dtype))


def one_scale(codes: NDArray[np.int64], bits: int = 4, scale: float = 1.0, bias: float = 0.0) -> CodedRows:
    """A single group, with the same scale and bias in all rows."""
    shape = (len(codes), 1)
    return CodedRows(codes, bits, mx.full(shape, scale), mx.full(shape, bias))


def product(w: CodedRows, block: int, x: NDArray[np.float32], lanes: int) -> NDArray[np.float64]:
    """Unpacked and multiplied in float64; rows that the block lacks give 0."""
    group = w.codes.shape[1] // w.scales.shape[1]
    dense = f64(w.scales).repeat(group, axis=1) * w.codes + f64(w.biases).repeat(group, axis=1)
    rows = dense[block * lanes : (block + 1) * lanes]
    want = np.zeros(lanes)
    want[: len(rows)] = rows @ x.astype(np.float64)
    return want


def check_all(check: Checker, w: CodedRows, block: int, x: NDArray[np.float32]) -> None:
    """On vectors of each width."""
    for lanes in widths():
        want = product(w, block, x, lanes)
        what = f"row_product<{w.bits}>, block {block}, {lanes} lanes"
        check(lambda m, n=lanes: m.row_product(w, block, x, n), want, axes="lane", what=what, terms=64)


@task("w2.11.1")
def test_a_column_by_hand(check: Checker) -> None:
    """Row r has the codes r, r + 1, … modulo 16, and x has one 1: at the first place of a word, in its middle, last."""
    codes = (np.arange(16)[:, None] + np.arange(32)) % 16
    for column in (0, 3, 7, 9, 31):
        check_all(check, one_scale(codes), 0, np.eye(32, dtype=np.float32)[column])


@task("w2.11.1")
def test_the_highest_code_in_every_place(check: Checker) -> None:
    """The last code's highest bit is the word's. Sums of powers of two, so that no code can stand in for another."""
    for bits in (4, 8):
        codes = np.full((16, 32), 2**bits - 1)
        check_all(check, one_scale(codes, bits, scale=0.5), 0, 2.0 ** np.arange(-16, 16, dtype=np.float32))


@task("w2.11.1")
def test_a_bias_meets_the_sum_of_x(check: Checker) -> None:
    codes = np.zeros((16, 64), np.int64)
    x = np.arange(1, 65, dtype=np.float32)
    check_all(check, one_scale(codes, scale=3.0, bias=2.0), 0, x)


@task("w2.11.1")
def test_a_scale_and_a_bias_for_each_group_and_row(check: Checker) -> None:
    """Every code is 1: a weight is scale + bias, which no two groups and no two rows have in common."""
    rows, groups = np.arange(16)[:, None], np.arange(3)
    w = CodedRows(
        np.ones((16, 96), np.int64),
        4,
        mx.array(1.0 + rows + 100 * groups, mx.float32),
        mx.array(0.25 * rows - 10 * groups**2, mx.float32),
    )
    check_all(check, w, 0, np.repeat([2.0, -1.0, 5.0], 32).astype(np.float32))


@task("w2.11.1")
def test_blocks_of_a_matrix(check: Checker) -> None:
    """40 rows of 160 columns: five blocks of 8 lanes, or three of 16, of which the last is half empty."""
    w, x = matrix(40, 160, 4, 32), normal(160, seed=9)
    for block in (0, 1, 2):
        check_all(check, w, block, x)


@task("w2.11.1")
def test_groups_and_formats(check: Checker) -> None:
    for bits, group, dtype in (
        (4, 64, mx.float16),
        (4, 128, mx.bfloat16),
        (8, 32, mx.bfloat16),
        (8, 64, mx.float32),
        (8, 128, mx.float16),
    ):
        check_all(check, matrix(32, 384, bits, group, dtype), 1, normal(384, seed=9))


@task("w2.11.1")
def test_a_long_row_is_summed_in_float32(check: Checker) -> None:
    """4,096 columns. In half precision the sums of a group alone would be off by more than is allowed."""
    for bits in (4, 8):
        check_all(check, matrix(16, 4096, bits, 64), 0, normal(4096, seed=9))


@task("w2.11.1")
def test_large_and_small_numbers(check: Checker) -> None:
    w, x = matrix(16, 128, 4, 32), normal(128, seed=9)
    for size in (1e-20, 1e20):
        check_all(check, w, 0, x * np.float32(size))
