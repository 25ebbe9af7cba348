"""2.8 Matrix kernels and split-K: one read of W for many rows, tiles of simdgroup matrices, sums of the splits."""

import mlx.core as mx
import numpy as np

from tests.week1.oracles import f64, normal
from tests.week2.test_2_7_matvec import packed, product
from tiny_llm.course.check import Checker, task

CODES = mx.array([[0x76543210, 0xFEDCBA98] * 2], mx.uint32)  # 0 to 15, twice
ONE, ZERO = mx.ones((1, 1)), mx.zeros((1, 1))


def units(*columns: int) -> mx.array:
    """Rows of 32 numbers, each with a single 1."""
    return mx.array(np.eye(32, dtype=np.float32)[list(columns)])


def rows_of(rows: int, outputs: int, columns: int, bits: int = 4, dtype: mx.Dtype = mx.float32):
    _, *weight = packed(outputs, columns, bits, 32, dtype)
    return mx.array(normal(rows, columns, seed=2)).astype(dtype), *weight


@task("w2.8.1")
def test_two_rows_by_hand(check: Checker) -> None:
    """The first row picks code 3, the second code 8."""
    check(lambda m: m.quantized_rows(units(3, 8), CODES, ONE, ZERO), np.array([[3.0], [8.0]]), axes="M N")


@task("w2.8.1")
def test_three_rows_and_more_columns_than_a_step(check: Checker) -> None:
    """352 columns: the second step of 256 begins within the same tile."""
    arguments = rows_of(3, 19, 352)
    check(lambda m: m.quantized_rows(*arguments), product(*arguments), axes="M N", terms=352)


@task("w2.8.1")
def test_sixteen_rows_in_half_precision(check: Checker) -> None:
    arguments = rows_of(16, 3, 96, 8, mx.float16)
    check(lambda m: m.quantized_rows(*arguments), product(*arguments), axes="M N", terms=4, dtype=mx.float16)


@task("w2.8.2")
def test_one_tile_by_hand(check: Checker) -> None:
    want = np.array([[[3.0], [8.0], [15.0]]])
    check(lambda m: m.quantized_tiles(units(3, 8, 31), CODES, ONE, ZERO), want, axes="S M N")


@task("w2.8.2")
def test_tiles_that_are_not_full(check: Checker) -> None:
    """35 rows and 40 outputs on tiles of 32: four of them, three with spare rows or columns."""
    arguments = rows_of(35, 40, 64)
    check(lambda m: m.quantized_tiles(*arguments), product(*arguments)[None], axes="S M N", terms=64)


@task("w2.8.2")
def test_two_splits_of_k(check: Checker) -> None:
    x, *weight = rows_of(18, 20, 96)
    halves = [mx.where(mx.arange(96) // 64 == s, x, 0.0) for s in range(2)]
    want = np.stack([product(half, *weight) for half in halves])
    check(lambda m: m.quantized_tiles(x, *weight, 2), want, axes="S M N", terms=64)


@task("w2.8.3")
def test_three_splits_by_hand(check: Checker) -> None:
    parts = mx.array([[[1.0, 2.0, 3.0]], [[10.0, 20.0, 30.0]], [[100.0, 200.0, 300.0]]])
    check(lambda m: m.split_sum(parts, mx.float32), np.array([[111.0, 222.0, 333.0]]), axes="M N")


@task("w2.8.3")
def test_a_sum_is_rounded_once(check: Checker) -> None:
    """In float16 2048 + 0.75 is 2048 again, forty times over; the sum is 2078."""
    parts = mx.concatenate([mx.full((1, 2, 3), 2048.0), mx.full((40, 2, 3), 0.75)])
    check(lambda m: m.split_sum(parts, mx.float16), np.full((2, 3), 2078.0), axes="M N", dtype=mx.float16)


@task("w2.8.3")
def test_more_elements_than_a_group(check: Checker) -> None:
    parts = mx.array(normal(3, 33, 9))
    check(lambda m: m.split_sum(parts, mx.float32), f64(parts).sum(0), axes="M N", terms=3)
