"""Catalogued mistakes: each is put in the code's place, and the check that is named beside it must notice."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np
import pytest

from tests.decode import sampling_checks as checks
from tiny_llm.decode import distribution, draw
from tiny_llm.decode.history import History
from tiny_llm.decode.sampler import Sampler

weights, largest, top_k, top_p = distribution.weights, distribution.largest, distribution.top_k, distribution.top_p
bias, penalize, start = distribution.bias, distribution.penalize, History.start
draw_one, uniforms, keys = draw.draw, draw.uniforms, draw.stream_keys
Array = mx.array


def raw_top_p(weights: Array, p: Array) -> Array:
    return weights * (mx.cumsum(weights, -1) <= p * mx.sum(weights, -1, keepdims=True))


def searchsorted(weights: Array, uniform: Array) -> Array:
    total = mx.sum(weights, -1, keepdims=True)
    return mx.sum(mx.cumsum(weights, -1) < uniform * total, -1).astype(mx.uint32)


def max_of_everything(logits: Array, temperature: Array) -> Array:
    return mx.power(2.0, (logits - mx.max(logits)) * (distribution.LOG2_E / temperature))


def with_unrenormalised_top_p() -> dict[str, Any]:
    held: list[Array] = []

    def hold(w: Array, k: Array) -> Array:
        held[:] = [w]
        return top_k(w, k)

    def cut(w: Array, p: Array) -> Array:
        return w * (top_p(held[0], p) > 0) if held and held[0].shape == w.shape else top_p(w, p)

    return {"top_k": hold, "top_p": cut}


def with_late_temperature() -> dict[Any, dict[str, Any]]:
    held: list[Array] = []

    def ignore(logits: Array, temperature: Array) -> Array:
        held[:] = [temperature]
        return weights(logits, mx.array(1.0))

    return {
        distribution: {"weights": ignore},
        draw: {"draw": lambda w, u: draw_one(w ** (1 / held[0]), u)},
    }


def largest_of_few_blocks(logits: Array, k: int) -> tuple[Array, Array]:
    """Too few blocks are searched: the k largest may have a block each."""
    if logits.shape[1] % distribution.BLOCK or k < 2:
        return largest(logits, k)
    best = mx.argmax(mx.max(logits.reshape(len(logits), -1, distribution.BLOCK), axis=-1), axis=-1)[:, None]
    outside = mx.abs(mx.arange(logits.shape[1]) // distribution.BLOCK - best.astype(mx.int32)) > k // 2
    return largest(mx.where(outside, -mx.inf, logits), k)


def penalize_with(**changes: Callable[..., Array]) -> Callable[..., Array]:
    def changed(logits: Array, counts: Array, in_prompt: Array, r: Array, p: Array, f: Array) -> Array:
        values = {"logits": logits, "counts": counts, "in_prompt": in_prompt, "r": r, "p": p, "f": f}
        new = {name: change(**values) for name, change in changes.items()}
        return penalize(*{**values, **new}.values())

    return changed


def always_divide(logits: Array, counts: Array, in_prompt: Array, r: Array, p: Array, f: Array) -> Array:
    logits = mx.where((counts + in_prompt) > 0, logits / r, logits)
    return logits - counts * f - (counts > 0) * p


def outputs_with_prompts(params: Any, prompts: Any, outputs: Any, vocab: int) -> Any:
    return start(params, prompts, [[*a, *b] for a, b in zip(prompts, outputs, strict=True)], vocab)


def only_new_slot(history: History, new: Array) -> History:
    token = new.astype(mx.int32)[:, None]
    return history._replace(
        tokens=mx.concatenate([history.tokens, token], axis=1),
        counts=mx.concatenate([history.counts, mx.ones(token.shape)], axis=1),
        in_prompt=mx.concatenate([history.in_prompt, mx.zeros(token.shape)], axis=1),
    )


MISTAKES: dict[str, tuple[Callable[[], None], dict[Any, dict[str, Any]]]] = {  # the check, and what it is run with
    "temperature multiplies": (
        checks.techniques_follow_the_exact_distribution,
        {distribution: {"weights": lambda x, t: weights(x, 1 / t)}},
    ),
    "temperature forgotten": (
        checks.techniques_follow_the_exact_distribution,
        {distribution: {"weights": lambda x, t: weights(x, mx.array(1.0))}},
    ),
    "temperature after the truncations": (
        checks.techniques_follow_the_exact_distribution,
        with_late_temperature(),
    ),
    "the largest logit of the whole batch subtracted": (
        checks.greedy_ways_agree_and_stay_finite,
        {distribution: {"weights": max_of_everything}},
    ),
    "softmax without subtracting the maximum": (
        checks.greedy_ways_agree_and_stay_finite,
        {distribution: {"weights": lambda x, t: mx.exp(x / t)}},
    ),
    "top-k keeps one more": (
        checks.techniques_follow_the_exact_distribution,
        {distribution: {"top_k": lambda w, k: top_k(w, k + 1)}},
    ),
    "top-k keeps one less": (
        checks.techniques_follow_the_exact_distribution,
        {distribution: {"top_k": lambda w, k: top_k(w, k - 1)}},
    ),
    "top-k of the batch's first row": (
        checks.rows_do_not_depend_on_neighbours,
        {distribution: {"top_k": lambda w, k: top_k(w, k[:1])}},
    ),
    "top-p without the token that crosses it": (
        checks.techniques_follow_the_exact_distribution,
        {distribution: {"top_p": raw_top_p}},
    ),
    "top-p keeps one more": (
        checks.techniques_follow_the_exact_distribution,
        {distribution: {"top_p": lambda w, p: w * (mx.pad(top_p(w, p), [(0, 0), (1, 0)])[:, :-1] + top_p(w, p) > 0)}},
    ),
    "top-p not on what top-k left": (
        checks.techniques_follow_the_exact_distribution,
        {distribution: with_unrenormalised_top_p()},
    ),
    "top-p forgotten": (
        checks.techniques_follow_the_exact_distribution,
        {distribution: {"top_p": lambda w, p: w}},
    ),
    "min-p absolute": (
        checks.techniques_follow_the_exact_distribution,
        {distribution: {"min_p": lambda w, p: w * (w / mx.sum(w, -1, keepdims=True) >= p)}},
    ),
    "min-p forgotten": (
        checks.techniques_follow_the_exact_distribution,
        {distribution: {"min_p": lambda w, p: w}},
    ),
    "top-k searched in too few blocks": (
        checks.largest_is_the_sorted_prefix,
        {distribution: {"largest": largest_of_few_blocks}},
    ),
    "searchsorted on the cumulative sum": (
        checks.extreme_uniforms_draw_possible_tokens,
        {draw: {"inverse_cdf": searchsorted}},
    ),
    "one cumulative sum over the vocabulary": (
        checks.small_masses_are_not_lost,
        {distribution: {"mass_before": lambda w: mx.cumsum(w, axis=-1, inclusive=False)}},
    ),
    "one number for block and token": (
        checks.random_draws_follow_the_exact_distribution,
        {draw: {"draw": lambda w, u: draw_one(w, mx.concatenate([u[:, :1], u[:, :1]], -1))}},
    ),
    "the same key for all rows": (
        checks.rows_do_not_depend_on_neighbours,
        {draw: {"uniforms": lambda k, p: uniforms(k[:1].repeat(len(k)), p)}},
    ),
    "the same numbers at all positions": (
        checks.random_draws_follow_the_exact_distribution,
        {draw: {"uniforms": lambda k, p: uniforms(k, np.zeros_like(p))}},
    ),
    "numbers by the place in the batch": (
        checks.seed_and_position_decide,
        {draw: {"uniforms": lambda k, p: uniforms(k, np.arange(len(k)))}},
    ),
    "seed plus position": (
        checks.streams_are_independent,
        {
            draw: {
                "stream_keys": lambda seeds, samples: np.array(seeds, np.uint64) + np.array(samples, np.uint64),
                "uniforms": lambda k, p: uniforms(np.zeros_like(k), k + np.asarray(p).astype(np.uint64)),
            }
        },
    ),
    "seeds of 32 bits": (
        checks.seed_and_position_decide,
        {draw: {"stream_keys": lambda a, b: keys([s & 0xFFFFFFFF for s in a], b)}},
    ),
    "samples share their seed's numbers": (
        checks.seed_and_position_decide,
        {draw: {"stream_keys": lambda a, b: keys(a, [0] * len(b))}},
    ),
    "repetition always divides": (
        checks.techniques_follow_the_exact_distribution,
        {distribution: {"penalize": always_divide}},
    ),
    "repetition forgets the prompt": (
        checks.techniques_follow_the_exact_distribution,
        {distribution: {"penalize": penalize_with(in_prompt=lambda in_prompt, **_: 0 * in_prompt)}},
    ),
    "repetition once per occurrence": (
        checks.techniques_follow_the_exact_distribution,
        {distribution: {"penalize": penalize_with(r=lambda r, counts, **_: r ** mx.maximum(counts, 1))}},
    ),
    "presence once per occurrence": (
        checks.techniques_follow_the_exact_distribution,
        {distribution: {"penalize": penalize_with(f=lambda f, p, **_: f + p, p=lambda p, **_: 0 * p)}},
    ),
    "frequency only once": (
        checks.techniques_follow_the_exact_distribution,
        {distribution: {"penalize": penalize_with(p=lambda f, p, **_: f + p, f=lambda f, **_: 0 * f)}},
    ),
    "presence and frequency count the prompt": (
        checks.techniques_follow_the_exact_distribution,
        {History: {"start": outputs_with_prompts}},
    ),
    "counts not updated": (
        checks.penalties_match_the_oracle_step_by_step,
        {History: {"append": lambda history, new: history}},
    ),
    "a repeated token starts at one again": (
        checks.penalties_match_the_oracle_step_by_step,
        {History: {"append": only_new_slot}},
    ),
    "bias forgotten": (
        checks.techniques_follow_the_exact_distribution,
        {distribution: {"bias": lambda logits, tokens, values: logits}},
    ),
    "bias of the batch's first row": (
        checks.rows_do_not_depend_on_neighbours,
        {distribution: {"bias": lambda x, t, v: bias(x, t[:1], v[:1])}},
    ),
    "log-probabilities of the penalised logits": (
        checks.logprobs_are_of_the_raw_logits,
        {Sampler: {"_report": lambda s, x, t, report=Sampler._report: report(s, s._adjust(x), t)}},
    ),
    "log-probabilities without the normaliser": (
        checks.logprobs_are_of_the_raw_logits,
        {distribution: {"log_softmax_total": lambda x: mx.zeros((len(x), 1))}},
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_noticed(mistake: str) -> None:
    check, changes = MISTAKES[mistake]
    with ExitStack() as patches:
        for target, replaced in changes.items():
            patches.enter_context(mock.patch.multiple(target, **replaced))
        with pytest.raises(AssertionError):
            check()
