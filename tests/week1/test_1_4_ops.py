"""1.4 Norm and MLP: the operations around attention, by hand and against float64."""

import mlx.core as mx
import numpy as np

from tests.week1.oracles import f64, normal, rms_norm, silu, softmax
from tiny_llm.course.check import Checker, task


@task("w1.4.1")
def test_a_product_by_hand(check: Checker) -> None:
    """Rows of the weight are outputs: (1, 2) gives 1·1 + 2·2 and 1·0 + 2·3."""
    x, w = mx.array([[1.0, 2.0], [0.0, 1.0]]), {"weight": mx.array([[1.0, 2.0], [0.0, 3.0]])}
    check(lambda m: m.linear(x, w), np.array([[5.0, 6.0], [2.0, 3.0]]), axes="T OUT")


@task("w1.4.1")
def test_with_a_bias(check: Checker) -> None:
    x, weight, bias = mx.array(normal(4, 8)), mx.array(normal(5, 8, seed=1)), mx.array(normal(5, seed=2))
    want = f64(x) @ f64(weight).T
    check(lambda m: m.linear(x, {"weight": weight}), want, axes="T OUT", terms=8)
    check(lambda m: m.linear(x, {"weight": weight, "bias": bias}), want + f64(bias), axes="T OUT", terms=8)


@task("w1.4.1")
def test_a_packed_weight(check: Checker) -> None:
    x, weight = mx.array(normal(4, 64)), mx.array(normal(6, 64, seed=1))
    packed, scales, biases = mx.quantize(weight, group_size=32, bits=8)
    unpacked = mx.dequantize(packed, scales, biases, group_size=32, bits=8)
    w = {"weight": packed, "scales": scales, "biases": biases}
    check(lambda m: m.linear(x, w), f64(x) @ f64(unpacked).T, axes="T OUT", terms=64)


@task("w1.4.2")
def test_a_row_by_hand(check: Checker) -> None:
    x = mx.array([[0.0, np.log(2), np.log(5), 0.0]])
    check(lambda m: m.softmax(x), np.array([[1, 2, 5, 1]]) / 9, axes="R C")


@task("w1.4.2")
def test_rows_far_apart(check: Checker) -> None:
    """exp(120) is infinite in float32, exp(-120) is 0; each row by itself is harmless."""
    x = mx.array([[120.0, 121.0, 119.0], [-120.0, -121.0, -120.0], [0.0, 1.0, 2.0]])
    check(lambda m: m.softmax(x), softmax(f64(x)), axes="R C", terms=16)


@task("w1.4.2")
def test_the_last_of_three_axes(check: Checker) -> None:
    x = mx.array(3 * normal(2, 4, 7))
    check(lambda m: m.softmax(x), softmax(f64(x)), axes="A R C", terms=7)


@task("w1.4.3")
def test_silu(check: Checker) -> None:
    x = mx.array([0.0, 1.0, -1.0, 4.0, -4.0, 30.0, -30.0])
    check(lambda m: m.silu(x), silu(f64(x)), axes="I")
    y = mx.array(3 * normal(4, 8))
    check(lambda m: m.silu(y), silu(f64(y)), axes="T I")


@task("w1.4.4")
def test_the_first_half_is_the_gate(check: Checker) -> None:
    """A gate of 0 lets nothing pass, one of 20 lets 20 times `up` pass, one of 1 lets 0.731 times `up` pass."""
    x = mx.array([[0.0, 20.0, 1.0, 3.0, 5.0, 2.0]])
    check(lambda m: m.swiglu(x), np.array([[0.0, 100.0, 2 / (1 + np.exp(-1))]]), axes="T I")


@task("w1.4.4")
def test_swiglu(check: Checker) -> None:
    x = mx.array(normal(4, 12))
    check(lambda m: m.swiglu(x), silu(f64(x[:, :6])) * f64(x[:, 6:]), axes="T I")


@task("w1.4.5")
def test_norm_by_hand(check: Checker) -> None:
    """(3, 4, 0, 0) has a mean square of 25/4, so it is divided by 2.5."""
    x, weight = mx.array([[3.0, 4.0, 0.0, 0.0]]), mx.array([1.0, 2.0, 1.0, 1.0])
    check(lambda m: m.rms_norm(x, weight, 0.0), np.array([[1.2, 3.2, 0.0, 0.0]]), axes="T D")


@task("w1.4.5")
def test_small_vectors(check: Checker) -> None:
    """Where eps weighs as much as the squares; a vector of zeros stays one."""
    x, weight = mx.array(1e-3 * normal(4, 8)), mx.array(normal(8, seed=1))
    check(lambda m: m.rms_norm(x, weight, 1e-6), rms_norm(f64(x), f64(weight), 1e-6), axes="T D", terms=8)
    check(lambda m: m.rms_norm(mx.zeros((1, 8)), weight, 1e-6), np.zeros((1, 8)), axes="T D")


@task("w1.4.5")
def test_norm_over_the_last_axis(check: Checker) -> None:
    """The norm of a head works on (T, H, D)."""
    x, weight = mx.array(normal(4, 3, 8)), mx.array(normal(8, seed=1))
    check(lambda m: m.rms_norm(x, weight, 1e-6), rms_norm(f64(x), f64(weight), 1e-6), axes="T H D", terms=8)


@task("w1.4.5")
def test_squares_that_half_precision_cannot_hold(check: Checker) -> None:
    """300² is beyond float16, whose largest number is 65504."""
    x, weight = mx.array(300 * normal(4, 8)).astype(mx.float16), mx.array(normal(8, seed=1)).astype(mx.float16)
    want = rms_norm(f64(x), f64(weight), 1e-6)
    check(lambda m: m.rms_norm(x, weight, 1e-6), want, axes="T D", dtype=mx.float16)
