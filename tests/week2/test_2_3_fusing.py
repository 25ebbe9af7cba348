"""2.3 Fusing the small operations: SwiGLU in one pass, and the residual's sum with the norm behind it."""

import mlx.core as mx
import numpy as np

from tests.week1.oracles import f64, normal, rms_norm, silu
from tiny_llm.course.check import Checker, task


@task("w2.3.1")
def test_the_first_half_is_the_gate(check: Checker) -> None:
    """A gate of 0 lets nothing pass, one of 20 lets 20 times `up` pass, one of 1 lets 0.731 times `up` pass."""
    x = mx.array([[0.0, 20.0, 1.0, 3.0, 5.0, 2.0]])
    check(lambda m: m.swiglu(x), np.array([[0.0, 100.0, 2 / (1 + np.exp(-1))]]), axes="T I")


@task("w2.3.1")
def test_several_rows(check: Checker) -> None:
    """7 rows of 2 · 45: 315 elements, so that the second group of 256 threads is not full."""
    x = mx.array(2 * normal(7, 90))
    gate, up = np.split(f64(x), 2, axis=1)
    check(lambda m: m.swiglu(x), silu(gate) * up, axes="T I")


@task("w2.3.1")
def test_half_precision_is_rounded_once(check: Checker) -> None:
    """e^11 is 60 thousand, which float16 just holds; e^12 it does not. silu(-12) · 1000 is -0.0737."""
    x = mx.array([[-12.0, -11.0, 1000.0, 1000.0]]).astype(mx.float16)
    gate, up = np.split(f64(x), 2, axis=1)
    check(lambda m: m.swiglu(x), silu(gate) * up, axes="T I", dtype=mx.float16)


@task("w2.3.2")
def test_two_numbers_by_hand(check: Checker) -> None:
    """(1, 2, 0, 0) + (2, -6, 0, 0) = (3, -4, 0, 0), whose root mean square is 2.5."""
    x, residual = mx.array([[1.0, 2.0, 0.0, 0.0]]), mx.array([[2.0, -6.0, 0.0, 0.0]])
    weight = mx.array([1.0, 2.0, 3.0, 4.0])
    want = np.array([[3.0, -4.0, 0, 0]])
    check(lambda m: m.residual_rms_norm(x, residual, weight, 1e-6)[0], want, axes="R D", what="sum")
    want = np.array([[1.2, -3.2, 0, 0]])
    check(lambda m: m.residual_rms_norm(x, residual, weight, 1e-6)[1], want, axes="R D", what="out")


@task("w2.3.2")
def test_many_rows(check: Checker) -> None:
    """300 columns on 96 threads, and two or three rows for each threadgroup; an epsilon that can be seen."""
    x, residual, weight = (mx.array(normal(*s, seed=i)) for i, s in enumerate([(67, 300), (67, 300), (300,)]))
    total = f64(x) + f64(residual)
    check(lambda m: m.residual_rms_norm(x, residual, weight, 0.5)[0], total, axes="R D", what="sum")
    want = rms_norm(total, f64(weight), 0.5)
    check(lambda m: m.residual_rms_norm(x, residual, weight, 0.5)[1], want, axes="R D", what="out", terms=300)


@task("w2.3.2")
def test_half_precision_norms_what_it_wrote(check: Checker) -> None:
    x, residual, weight = (mx.array(normal(*s, seed=i)) for i, s in enumerate([(2, 40), (2, 40), (40,)]))
    x, residual, weight = (a.astype(mx.float16) for a in (x, residual, weight))
    total = f64(x + residual)
    check(lambda m: m.residual_rms_norm(x, residual, weight, 1e-6)[0], total, axes="R D", what="sum", dtype=mx.float16)
    want = rms_norm(total, f64(weight), 1e-6)
    check(lambda m: m.residual_rms_norm(x, residual, weight, 1e-6)[1], want, axes="R D", what="out", dtype=mx.float16)
