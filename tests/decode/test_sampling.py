"""Sampling against exact distributions, and its edges."""

import math
import sys
from collections.abc import Callable, Sequence
from types import FrameType, ModuleType
from unittest import mock

import mlx.core as mx
import pytest

from tests.decode.sampling_checks import CHECKS
from tests.decode.sampling_oracle import some_logits
from tiny_llm.config import SamplingParams
from tiny_llm.decode import distribution, draw
from tiny_llm.decode.sampler import Sampler


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_sampling(check: Callable[[], None]) -> None:
    check()


def test_call_evaluates_nothing() -> None:
    """The engine queues the next step before this one's tokens are read, so a call may only build a graph."""
    vocab = 2_000_000
    params = [SamplingParams(temperature=0.6, top_k=20, top_p=0.95, logprobs=3, frequency_penalty=0.5, seed=1)]
    sampler = Sampler(params, vocab, [[1, 2]])
    before = mx.get_active_memory()
    out = sampler(mx.random.normal((1, vocab)), [0])
    out = sampler(mx.random.normal((1, vocab)) + out.tokens[0], [1])
    assert mx.get_active_memory() - before < vocab
    mx.eval(out.tokens)


@pytest.mark.parametrize(
    ("params", "unused"),
    [
        (SamplingParams(temperature=0), ["weights", "largest"]),
        (SamplingParams(), ["largest", "top_k", "top_p", "min_p"]),
        (SamplingParams(min_p=0.1, top_k=300), ["largest", "top_k", "top_p"]),
        (SamplingParams(top_k=20), ["top_p", "min_p"]),
    ],
)
def test_stages_that_no_row_uses_are_skipped(params: SamplingParams, unused: list[str]) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("an unused stage ran")

    sampler = Sampler([params] * 3, 300, [[1]] * 3)
    unused = [*unused, "penalize", "bias", "log_softmax_total"]
    with mock.patch.multiple(distribution, **dict.fromkeys(unused, fail)):
        mx.eval(sampler(mx.array(some_logits(3, 300)), [0, 1, 2]).tokens)


def functions_of(module: ModuleType, action: Callable[[], object]) -> set[str]:
    """The names of the module's functions that run in `action`."""
    called = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename == module.__file__:
            called.add(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(before)
    return called


@pytest.mark.parametrize(
    "greedy",
    [
        SamplingParams(temperature=0),
        SamplingParams(top_k=1),
        SamplingParams(top_p=0.0),
        SamplingParams(temperature=0, repetition_penalty=1.3, logit_bias={3: 1.0}, logprobs=2),
    ],
)
def test_greedy_rows_need_no_random_numbers(greedy: SamplingParams) -> None:
    def sample(params: list[SamplingParams]) -> None:
        rows = len(params)
        sampler = Sampler(params, 300, [[1, 2]] * rows)
        logits = mx.array(some_logits(rows, 300))
        mx.eval(sampler(logits, range(rows)).tokens)
        mx.eval(sampler.select([0])(logits[:1], [rows]).tokens)

    assert functions_of(draw, lambda: sample([greedy] * 3)) == set()
    mixed = functions_of(draw, lambda: sample([greedy, SamplingParams(), greedy]))
    assert mixed >= {"stream_keys", "uniforms", "draw"}


def test_a_greedy_selection_of_a_mixed_batch_draws_nothing() -> None:
    logits = mx.array(some_logits(3, 300))
    mixed = Sampler([SamplingParams(temperature=0), SamplingParams(seed=1), SamplingParams(top_k=1)], 300)
    greedy = mixed.select([2, 0])
    assert functions_of(draw, lambda: mx.eval(greedy(logits[:2], [0, 1]).tokens)) == set()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "params",
    [
        [SamplingParams(temperature=0)] * 3,
        [SamplingParams(seed=1)] * 3,
        [SamplingParams(temperature=0), SamplingParams(top_k=20, seed=1), SamplingParams(top_p=0.9, seed=2)],
    ],
)
def test_rows_whose_logits_are_not_finite_are_told(params: list[SamplingParams], bad: float) -> None:
    """Minus infinity only excludes a token."""
    for spoilt in range(3):
        logits = some_logits(3, 300)
        logits[:, 10:20] = -math.inf
        logits[spoilt, 7] = bad
        finite = Sampler(params, 300)(mx.array(logits), [0, 1, 2]).finite
        assert finite.tolist() == [row != spoilt for row in range(3)]


def run(sampler: Sampler, rows: Sequence[int], steps: range) -> list[list[int]]:
    """Tokens of `steps` steps; row i gets the logits of sequence rows[i]."""
    return [sampler(mx.array(some_logits(4, 50, seed=s)[rows]), [s] * len(rows)).tokens.tolist() for s in steps]


@pytest.mark.parametrize("kind", ["plain", "penalized"])
@pytest.mark.parametrize("rows", [[2, 0], [3], [1, 1, 0], [0, 1, 2, 3]])
def test_selected_rows_go_on_as_before(rows: list[int], kind: str) -> None:
    """After some steps a selection goes on as those rows do in the whole batch; the rest is untouched."""
    penalty = {"frequency_penalty": 0.8, "repetition_penalty": 1.2} if kind == "penalized" else {}
    params = [SamplingParams(temperature=t, seed=9, logit_bias={3: t}, **penalty) for t in (0, 0.5, 1, 2)]
    whole = Sampler(params, 50, [[1], [2, 2, 6], [], [3, 4, 5]], samples=range(4))
    run(whole, range(4), range(3))
    part = whole.select(rows)
    after = run(part, rows, range(3, 8))
    assert [[step[row] for row in rows] for step in run(whole, range(4), range(3, 8))] == after


def test_a_sequence_resumes_with_its_output() -> None:
    params = SamplingParams(seed=3, repetition_penalty=1.4, presence_penalty=0.5, frequency_penalty=0.4)
    straight = Sampler([params], 50, [[7, 8, 8]])
    first = [tokens[0] for tokens in run(straight, [0], range(6))]
    resumed = Sampler([params], 50, [[7, 8, 8]], outputs=[first])
    assert run(resumed, [0], range(6, 12)) == run(straight, [0], range(6, 12))


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_half_precision_logits_are_sampled_in_float32(dtype: mx.Dtype) -> None:
    params = [
        SamplingParams(temperature=0.7, top_p=0.9, min_p=0.02, repetition_penalty=1.1, logprobs=2, seed=s)
        for s in range(200)
    ]
    logits = mx.array(some_logits(200, 300)).astype(dtype)
    half, full = (Sampler(params, 300, [[1, 2]] * 200)(x, [0] * 200) for x in (logits, logits.astype(mx.float32)))
    assert half.tokens.tolist() == full.tokens.tolist()
    assert half.logprobs is not None and full.logprobs is not None
    assert half.logprobs.tolist() == full.logprobs.tolist()


def test_seed_none_draws_a_fresh_one() -> None:
    logits = mx.array(some_logits(1, 1000, scale=0.1).repeat(40, 0))
    first, second = (Sampler([SamplingParams()] * 40, 1000)(logits, [0] * 40).tokens.tolist() for _ in range(2))
    assert first != second and len(set(first)) > 20


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sampler([], 10), "params: expected one for each row, found none"),
        (lambda: Sampler([SamplingParams()], 10, [[1], [2]]), "prompts: expected one for each of the 1 rows, found 2"),
        (lambda: Sampler([SamplingParams()], 10, seeds=[]), "seeds: expected one for each of the 1 rows, found 0"),
        (
            lambda: Sampler([SamplingParams(logit_bias={10: 1.0})], 10),
            "logit_bias: expected token ids from 0 to 9, found 10",
        ),
        (
            lambda: Sampler([SamplingParams(repetition_penalty=2)], 10, [[-1]]),
            "prompt and output: expected token ids from 0 to 9, found -1",
        ),
    ],
)
def test_wrong_arguments_are_named(make: Callable[[], Sampler], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
