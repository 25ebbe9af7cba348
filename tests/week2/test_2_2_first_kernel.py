"""2.2 Your first Metal kernel: each thread its element, and a sum over a row that many threads take together."""

import mlx.core as mx
import numpy as np

from tests.week1.oracles import f64, normal
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
