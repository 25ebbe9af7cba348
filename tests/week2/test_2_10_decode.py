"""2.10 Decode attention: a running softmax over the keys, in parts that are merged."""

import math

import mlx.core as mx
import numpy as np

from tests.kernels.oracles import attention_parts, merged
from tests.week1.oracles import f64, normal
from tiny_llm.course.check import Checker, task


def given(heads: int, kv_heads: int, dim: int, lengths: list[int], spread: float = 1.0):
    batch, most = len(lengths), max(lengths)
    shapes = ((batch, heads, dim), (batch, kv_heads, most, dim), (batch, kv_heads, most, dim))
    q, k, v = (mx.array(normal(*shape, seed=i)) for i, shape in enumerate(shapes))
    return spread * q, k, v, mx.array(lengths, mx.int32)


def attention(q: mx.array, k: mx.array, v: mx.array, lengths: mx.array, scale: float, window: int = 0):
    parts = attention_parts(f64(q), f64(k), f64(v), lengths.tolist(), scale, window, 10**6)
    return merged(*parts, None).reshape(q.shape)


@task("w2.10.1")
def test_two_keys_by_hand(check: Checker) -> None:
    """Scores 0 and ln 3 weigh 1/4 and 3/4: of the values 0 and 4 that is 3."""
    q, k, v = mx.ones((1, 1, 1)), mx.array([[[[0.0], [math.log(3)]]]]), mx.array([[[[0.0], [4.0]]]])
    lengths = mx.array([2], mx.int32)
    check(lambda m: m.decode_attention(q, k, v, lengths, 1.0), np.array([[[3.0]]]), axes="B H D")


@task("w2.10.1")
def test_maxima_that_grow(check: Checker) -> None:
    """Eight simdgroups take turns, so each sees several of 37 keys; scores of up to 150 overflow without a maximum."""
    q, k, v, lengths = given(2, 1, 40, [37], spread=8.0)
    want = attention(q, k, v, lengths, 1.0)
    check(lambda m: m.decode_attention(q, k, v, lengths, 1.0), want, axes="B H D", terms=40)


@task("w2.10.1")
def test_lengths_windows_and_chunks(check: Checker) -> None:
    q, k, v, lengths = given(4, 2, 8, [33, 5])
    want = attention(q, k, v, lengths, 0.5, 20)
    check(lambda m: m.decode_attention(q, k, v, lengths, 0.5, 20, 8), want, axes="B H D", terms=33)


@task("w2.10.2")
def test_two_parts_by_hand(check: Checker) -> None:
    """Maxima 0 and ln 3: the second part counts three times. (1 · 2 + 3 · 9) / (1 · 1 + 3 · 3) = 2.9."""
    parts, tops, sums = mx.array([[[2.0], [9.0]]]), mx.array([[0.0, math.log(3)]]), mx.array([[1.0, 3.0]])
    check(lambda m: m.merge_attention(parts, tops, sums, mx.float32), np.array([[2.9]]), axes="R D")


@task("w2.10.2")
def test_more_parts_than_lanes(check: Checker) -> None:
    parts, tops, sums = (mx.array(normal(*s, seed=i)) for i, s in enumerate([(2, 40, 33), (2, 40), (2, 40)]))
    sums = mx.exp(sums)
    want = merged(f64(parts), f64(tops), f64(sums), None)
    check(lambda m: m.merge_attention(parts, tops, sums, mx.float32), want, axes="R D", terms=40)


@task("w2.10.2")
def test_an_empty_part_weighs_nothing(check: Checker) -> None:
    parts, tops, sums = mx.array([[[3.0], [0.0]]]), mx.array([[1.0, -math.inf]]), mx.array([[1.5, 0.0]])
    check(lambda m: m.merge_attention(parts, tops, sums, mx.float32), np.array([[2.0]]), axes="R D")
