"""1.1 Attention: who sees whom, and what comes of it. Four tokens by hand, then random ones against a loop."""

import mlx.core as mx
import numpy as np

from tests.week1.oracles import attend, normal
from tiny_llm.course.check import Checker, task


@task("w1.1.1")
def test_each_token_sees_itself_and_what_came_before(check: Checker) -> None:
    want = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    check(lambda m: m.causal_mask(4, 4), np.array(want, bool), axes="T S")


@task("w1.1.1")
def test_the_queries_are_the_last_positions(check: Checker) -> None:
    want = [[1, 1, 1, 0], [1, 1, 1, 1]]
    check(lambda m: m.causal_mask(2, 4), np.array(want, bool), axes="T S")


@task("w1.1.1")
def test_a_window_counts_the_token_itself(check: Checker) -> None:
    want = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    check(lambda m: m.causal_mask(4, 4, 2), np.array(want, bool), axes="T S")
    check(lambda m: m.causal_mask(1, 4, 3), np.array([[0, 1, 1, 1]], bool), axes="T S")


@task("w1.1.2")
def test_four_tokens(check: Checker) -> None:
    """Keys of length 2 along the axes, queries along the first: scores 0, 2 or -2, with scale 1/2 then 0, 1 or -1."""
    q = mx.array([[2.0, 0.0], [0.0, 2.0]])
    k = mx.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    v = mx.array([[1.0, 0.0], [2.0, 0.0], [3.0, 1.0], [4.0, 1.0]])
    e = np.exp([[1.0, 0, -1, 0], [0, 1, 0, -1]])
    want = e / e.sum(axis=-1, keepdims=True) @ np.array([[1, 0], [2, 0], [3, 1], [4, 1]])
    check(lambda m: m.scaled_dot_product_attention(q, k, v, 0.5), want, axes="T D")


@task("w1.1.2")
def test_a_masked_key_has_no_weight(check: Checker) -> None:
    q, k, v = (mx.array(normal(4, 2, seed=i)) for i in range(3))
    mask = np.tril(np.ones((4, 4), bool))
    want = attend(q, k, v, 0.7, mask)
    check(lambda m: m.scaled_dot_product_attention(q, k, v, 0.7, mx.array(mask)), want, axes="T D", terms=4)


@task("w1.1.2")
def test_any_axes_in_front(check: Checker) -> None:
    """(2, 3) independent attentions, more keys than queries, values of another width than keys."""
    q, k, v = (mx.array(normal(2, 3, *shape, seed=i)) for i, shape in enumerate([(5, 8), (7, 8), (7, 6)]))
    mask = np.tril(np.ones((5, 7), bool), 2)
    want = attend(q, k, v, 8**-0.5, mask)
    call = lambda m: m.scaled_dot_product_attention(q, k, v, 8**-0.5, mx.array(mask))  # noqa: E731
    check(call, want, axes="A B T D", terms=8)


@task("w1.1.2")
def test_half_precision_stays_so(check: Checker) -> None:
    q, k, v = (mx.array(normal(4, 8, seed=i)).astype(mx.float16) for i in range(3))
    want = attend(q, k, v, 8**-0.5)
    check(lambda m: m.scaled_dot_product_attention(q, k, v, 8**-0.5), want, axes="T D", dtype=mx.float16, terms=8)
