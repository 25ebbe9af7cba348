"""2.9 FlashAttention: a mask and an online softmax over tiles of keys, and an output that shrinks as maxima grow."""

import math

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from tests.kernels.oracles import causal_attention
from tests.week1.oracles import f64, normal
from tiny_llm.course.check import Checker, task

Spans = list[tuple[int, int]]


def given(
    heads: int, kv_heads: int, dim: int, spans: Spans, spread: float = 1.0
) -> tuple[mx.array, mx.array, mx.array]:
    tokens, keys = sum(new for new, _ in spans), sum(total for _, total in spans)
    shapes = ((tokens, heads, dim), (kv_heads, keys, dim), (kv_heads, keys, dim))
    q, k, v = (mx.array(normal(*shape, seed=i)) for i, shape in enumerate(shapes))
    return spread * q, k, v


def attention(
    q: mx.array, k: mx.array, v: mx.array, spans: Spans, scale: float, window: int = 0
) -> NDArray[np.float64]:
    return np.asarray(causal_attention(f64(q), f64(k), f64(v), spans, scale, window))


@task("w2.9.1")
def test_three_tokens_by_hand(check: Checker) -> None:
    """Scores of 0: the mean of what each token sees. Values 3, 6, 9 give 3, 4.5, 6; with a window of 2 the last 7.5."""
    q, k = mx.zeros((3, 1, 1)), mx.ones((1, 3, 1))
    v = mx.array([[[3.0], [6.0], [9.0]]])
    for window, last in ((0, 6.0), (2, 7.5)):
        want = np.array([[[3.0]], [[4.5]], [[last]]])
        check(lambda m, w=window: m.flash_attention(q, k, v, [(3, 3)], 1.0, w), want, axes="T H D")


@task("w2.9.1")
def test_a_weight_of_three_quarters(check: Checker) -> None:
    """Scores 0 and ln 3 weigh 1/4 and 3/4."""
    q, k = mx.ones((1, 1, 1)), mx.array([[[0.0], [math.log(3)]]])
    v = mx.array([[[0.0], [4.0]]])
    check(lambda m: m.flash_attention(q, k, v, [(1, 2)], 1.0), np.array([[[3.0]]]), axes="T H D")


@task("w2.9.1")
def test_more_keys_than_a_tile(check: Checker) -> None:
    """70 keys are three tiles of 32, and large scores bring new maxima in each. Then a window of 33."""
    q, k, v = given(1, 1, 8, [(40, 70)], spread=3.0)
    for window in (0, 33):
        want = attention(q, k, v, [(40, 70)], 1.0, window)
        check(lambda m, w=window: m.flash_attention(q, k, v, [(40, 70)], 1.0, w), want, axes="T H D", terms=70)


@task("w2.9.1")
def test_rows_that_see_nothing_of_the_first_keys(check: Checker) -> None:
    """72 dimensions take 16 keys at a time. With a window of 3 the first 16 are before what query 20 sees."""
    q, k, v = given(1, 1, 72, [(24, 24)])
    want = attention(q, k, v, [(24, 24)], 0.1, 3)
    check(lambda m: m.flash_attention(q, k, v, [(24, 24)], 0.1, 3), want, axes="T H D", terms=72)


@task("w2.9.2")
def test_values_are_mixed(check: Checker) -> None:
    """Nine tokens with equal scores see the mean of 0, 1, …: half of their position."""
    q, k = mx.zeros((9, 1, 2)), mx.ones((1, 9, 2))
    v = mx.array([[[float(i), 10.0 * i] for i in range(9)]])
    want = np.array([[[i / 2, 5.0 * i]] for i in range(9)])
    check(lambda m: m.flash_attention(q, k, v, [(9, 9)], 1.0), want, axes="T H D")


@task("w2.9.2")
def test_two_tiles_of_keys_and_wide_heads(check: Checker) -> None:
    q, k, v = given(1, 1, 20, [(40, 70)], spread=3.0)
    check(lambda m: m.flash_attention(q, k, v, [(40, 70)], 1.0), attention(q, k, v, [(40, 70)], 1.0), axes="T H D",
          terms=70)  # fmt: skip


@task("w2.9.2")
def test_ragged_sequences_with_shared_heads(check: Checker) -> None:
    """A prompt of 11, a chunk of 5 after 12 tokens, a single new token: in one row. Two query heads to a key head."""
    spans = [(11, 11), (5, 17), (1, 3)]
    q, k, v = given(2, 1, 8, spans)
    check(lambda m: m.flash_attention(q, k, v, spans, 0.5), attention(q, k, v, spans, 0.5), axes="T H D", terms=17)
