"""2.2 Your first Metal kernel: each thread its element, and a sum over a row that many threads take together."""

import mlx.core as mx
import numpy as np

from tests.week1.oracles import f64, normal, rms_norm
from tiny_llm.course.check import Checker, task


@task("w2.2.1")
def test_four_elements_by_hand(check: Checker) -> None:
    x, y = mx.array([1.0, 2.0, 3.0, 4.0]), mx.array([10.0, 20.0, 30.0, 40.0])
    check(lambda m: m.axpby(x, y, 2.0, 0.5), np.array([7.0, 14.0, 21.0, 28.0]), axes="I")


@task("w2.2.1")
def test_a_second_group_that_is_not_full(check: Checker) -> None:
    x, y = mx.array(normal(300)), mx.array(normal(300, seed=1))
    check(lambda m: m.axpby(x, y, 2.5, -0.75), 2.5 * f64(x) - 0.75 * f64(y), axes="I")


@task("w2.2.1")
def test_half_precision_is_rounded_once(check: Checker) -> None:
    """1000 x - 1000 y of nearly equal numbers: in float32 about 1, in float16 each product is off by up to 0.25."""
    x = mx.array(1 + np.arange(64) / 1024, mx.float32).astype(mx.float16)
    y = mx.array(np.array(x.astype(mx.float32)) - 1 / 1024, mx.float32).astype(mx.float16)
    want = 1000 * (f64(x) - f64(y))
    check(lambda m: m.axpby(x, y, 1000.0, -1000.0), want, axes="I", dtype=mx.float16)


def normed(rows: int, width: int, eps: float = 1e-6, dtype: mx.Dtype = mx.float32):
    """Arguments of rms_norm, and what it should give."""
    x, weight = (mx.array(normal(*shape, seed=i)).astype(dtype) for i, shape in enumerate([(rows, width), (width,)]))
    return (x, weight, eps), rms_norm(f64(x), f64(weight), eps)


@task("w2.2.2")
def test_one_simdgroup_by_hand(check: Checker) -> None:
    """The squares of (3, -4, 0, 0) add up to 25, so that the root of their mean is 2.5."""
    x = mx.array([[3.0, -4.0, 0.0, 0.0]])
    check(lambda m: m.rms_norm(x, mx.ones(4), 1e-6), np.array([[1.2, -1.6, 0, 0]]), axes="R D")


@task("w2.2.2")
def test_three_simdgroups_and_a_row_after_the_other(check: Checker) -> None:
    """96 threads for a row of 300; 64 rows make two for each threadgroup, which use the same places."""
    arguments, want = normed(64, 300)
    check(lambda m: m.rms_norm(*arguments), want, axes="R D", terms=300)


@task("w2.2.3")
def test_two_rows_by_hand(check: Checker) -> None:
    """A root mean square of 2.5 and one of 25; then each column has its weight. 28 of the 32 threads have no column."""
    x, weight = mx.array([[3.0, -4.0, 0.0, 0.0], [30.0, 40.0, 0.0, 0.0]]), mx.array([1.0, 2.0, 3.0, 4.0])
    want = np.array([[1.2, -3.2, 0, 0], [1.2, 3.2, 0, 0]])
    check(lambda m: m.rms_norm(x, weight, 1e-6), want, axes="R D")


@task("w2.2.3")
def test_epsilon_keeps_small_rows_small(check: Checker) -> None:
    """A mean of 1 and an epsilon of 3 give a root of 2; zeros stay zeros."""
    x = mx.array([[1.0, -1.0, 1.0, -1.0], [0.0, 0.0, 0.0, 0.0]])
    check(lambda m: m.rms_norm(x, mx.ones(4), 3.0), np.array([[0.5, -0.5, 0.5, -0.5], [0] * 4]), axes="R D")


@task("w2.2.3")
def test_a_width_that_does_not_fill_its_threads(check: Checker) -> None:
    """300 columns on 96 threads: each has three or four."""
    arguments, want = normed(65, 300)
    check(lambda m: m.rms_norm(*arguments), want, axes="R D", terms=300)


@task("w2.2.3")
def test_bfloat16_is_summed_in_float32(check: Checker) -> None:
    arguments, want = normed(3, 300, dtype=mx.bfloat16)
    check(lambda m: m.rms_norm(*arguments), want, axes="R D", terms=4, dtype=mx.bfloat16)
