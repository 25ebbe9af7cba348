"""1.7 Sampling: each technique on rows whose result can be seen at a glance, then on random ones."""

from typing import Any

import mlx.core as mx
import numpy as np

from tests.week1.oracles import Array, f64, normal
from tiny_llm.course.check import Checker, task


def column(*values: float) -> mx.array:
    return mx.array(values)[:, None]


def descending(rows: int, columns: int) -> mx.array:
    """Weights as they come: the likeliest first, which weighs 1."""
    w = -np.sort(-np.exp(2 * normal(rows, columns)), axis=-1)
    return mx.array(w / w[:, :1])


@task("w1.7.1")
def test_weights_by_hand(check: Checker) -> None:
    """Logits ln 1, ln 2, ln 4: each twice the one before. At temperature 1/2 the ratios are squared."""
    logits = mx.array(np.log([[1.0, 2.0, 4.0, 1.0]] * 2), mx.float32)
    want = np.array([[0.25, 0.5, 1, 0.25], [0.0625, 0.25, 1, 0.0625]])
    check(lambda m: m.weights(logits, column(1, 0.5)), want, axes="R V", terms=4)


@task("w1.7.1")
def test_large_logits_and_masked_tokens(check: Checker) -> None:
    logits = mx.array([[1000.0, 999.0, -mx.inf, 998.0], [-1000.0, -1001.0, -1000.0, -mx.inf]])
    want = np.exp([[0, -1, -np.inf, -2], [0, -0.5, 0, -np.inf]])
    check(lambda m: m.weights(logits, column(1, 2)), want, axes="R V", terms=4)


@task("w1.7.1")
def test_random_weights(check: Checker) -> None:
    logits = mx.array(4 * normal(3, 20))
    x = (f64(logits) - f64(logits).max(axis=-1, keepdims=True)) / np.array([[0.6], [1.0], [1.7]])
    check(lambda m: m.weights(logits, column(0.6, 1, 1.7)), np.exp(x), axes="R V", terms=64)


@task("w1.7.2")
def test_top_k(check: Checker) -> None:
    w = mx.array([[1.0, 0.5, 0.25, 0.125]] * 4)
    want = np.array([[1, 0.5, 0.25, 0.125]]) * np.tril(np.ones((4, 4)))
    check(lambda m: m.top_k(w, mx.array([[1], [2], [3], [4]])), want, axes="R C")


@task("w1.7.3")
def test_top_p_by_hand(check: Checker) -> None:
    """Shares 1/2, 1/4, 1/8, 1/8: exactly p is enough, and whoever crosses it stays."""
    w = mx.array([[1.0, 0.5, 0.25, 0.25]] * 5)
    kept = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    check(lambda m: m.top_p(w, column(0.5, 0.51, 0.75, 0.8, mx.inf)), f64(w) * kept, axes="R C")


@task("w1.7.3")
def test_top_p_of_what_is_left(check: Checker) -> None:
    """Shares are of the row's own total, also where top-k has cut tokens off."""
    w, p = descending(3, 12) * (mx.arange(12) < 7), np.array([[0.3], [0.8], [0.95]])
    share = f64(w) / f64(w).sum(axis=-1, keepdims=True)
    want = np.zeros(w.shape)
    for row in range(3):
        count = 1 + int((np.cumsum(share[row]) < p[row]).sum())
        want[row, :count] = f64(w)[row, :count]
    check(lambda m: m.top_p(w, mx.array(p, mx.float32)), want, axes="R C")


@task("w1.7.4")
def test_min_p(check: Checker) -> None:
    w = mx.array([[1.0, 0.5, 0.25, 0.125], [0.25, 1.0, 0.5, 0.0]])
    want = np.array([[1, 0.5, 0.25, 0], [0, 1, 0.5, 0]])
    check(lambda m: m.min_p(w, column(0.25, 0.3)), want, axes="R C")
    check(lambda m: m.min_p(w, column(0, 1)), np.array([[1, 0.5, 0.25, 0.125], [0, 1, 0, 0]]), axes="R C")


def penalized(
    logits: Array, counts: Array, prompt: Array, repetition: float, presence: float, frequency: float
) -> Array:
    """One row, one token after the other."""
    out = logits.copy()
    for i, logit in enumerate(logits):
        if counts[i] or prompt[i]:
            out[i] = logit / repetition if logit > 0 else logit * repetition
        if counts[i]:
            out[i] -= presence + frequency * counts[i]
    return out


@task("w1.7.5")
def test_penalties(check: Checker) -> None:
    """Tokens: unseen, in the prompt, once in the output, three times, in both; with logits of both signs."""
    logits = mx.array([[2.0, 2.0, 2.0, 2.0, 2.0], [-2.0, -2.0, -2.0, -2.0, -2.0]] * 2)
    counts = mx.array([[0.0, 0, 1, 3, 2]] * 4)
    prompt = mx.array([[0.0, 1, 0, 0, 1]] * 4)
    settings = [(2.0, 0.0, 0.0), (2.0, 0.0, 0.0), (1.0, 0.5, 0.25), (1.25, 0.5, 0.125)]
    want = np.stack([penalized(*map(f64, rows), *s) for *rows, s in zip(logits, counts, prompt, settings, strict=True)])
    columns = [column(*values) for values in zip(*settings, strict=True)]
    check(lambda m: m.penalize(logits, counts, prompt, *columns), want, axes="R C")


@task("w1.7.6")
def test_draws_by_hand(check: Checker) -> None:
    """Weights 1, 1/2, 1/4, 1/4 on a line of length 2: the borders are at the shares 0, 1/2, 3/4 and 7/8."""
    w = mx.array([[1.0, 0.5, 0.25, 0.25]] * 7)
    uniform = column(0.75, 0, 0.49, 0.5, 0.74, 0.875, 0.99)
    check(lambda m: m.inverse_cdf(w, uniform), np.array([2, 0, 0, 1, 1, 3, 3]), axes="R")


@task("w1.7.6")
def test_a_token_without_weight_is_never_drawn(check: Checker) -> None:
    w = mx.array([[0.0, 1.0, 0.0, 1.0, 0.0]] * 4)
    check(lambda m: m.inverse_cdf(w, column(0, 0.4999, 0.5, 1 - 2.0**-24)), np.array([1, 1, 3, 3]), axes="R")


@task("w1.7.6")
def test_random_draws(check: Checker) -> None:
    """Darts thrown well inside a column's share hit that column."""
    w = descending(12, 12)
    edges = np.cumsum(f64(w), axis=-1)
    middle = (edges - f64(w) / 2)[np.arange(12), np.arange(12)] / edges[:, -1]
    check(lambda m: m.inverse_cdf(w, mx.array(middle[:, None], mx.float32)), np.arange(12), axes="R")


def beams(m: Any, logprobs: Array, count: int, stops: set[int]) -> list[tuple[tuple[int, ...], float, bool]]:
    """The extensions of the beam (7, 7) of log-probability -1, in order of their tokens."""
    made = m.extend(m.Beam((7, 7), -1.0), logprobs, count, stops)
    return sorted((tuple(map(int, beam.tokens)), round(float(beam.logprob), 4), bool(beam.finished)) for beam in made)


@task("w1.7.7")
def test_a_beams_continuations(check: Checker) -> None:
    logprobs = np.array([-3.0, -0.5, -4.0, -1.5, -2.5], np.float32)
    want = [((7, 7, 1), -1.5, False), ((7, 7, 3), -2.5, True), ((7, 7, 4), -3.5, False)]
    check(lambda m: beams(m, logprobs, 3, {3, 0}), want)


@task("w1.7.7")
def test_all_tokens(check: Checker) -> None:
    logprobs = normal(6) - 5
    want = [((7, 7, t), round(float(logprobs[t]) - 1, 4), t == 5) for t in range(6)]
    check(lambda m: beams(m, logprobs, 6, {5}), want)
