"""Random parameters: the sampler's distribution is the exact one, whatever is combined."""

from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.decode.sampling_oracle import exact, grid, many, shares, some_logits
from tiny_llm.config import SamplingParams
from tiny_llm.decode import draw
from tiny_llm.decode.sampler import Sampler

ROWS = 1024
VOCAB = 40
TOKENS = st.integers(0, VOCAB - 1)
TEXT = st.lists(TOKENS, max_size=6)


def or_off(off: float, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.just(off), values)


SETTINGS = st.builds(
    SamplingParams,
    temperature=or_off(1, st.floats(0, 4)),
    top_k=or_off(0, st.integers(1, VOCAB + 5)),
    top_p=or_off(1, st.floats(0, 1)),
    min_p=or_off(0, st.floats(0, 1)),
    repetition_penalty=or_off(1, st.floats(0.5, 2)),
    presence_penalty=or_off(0, st.floats(-2, 2)),
    frequency_penalty=or_off(0, st.floats(-2, 2)),
    logit_bias=st.dictionaries(TOKENS, st.floats(-5, 5), max_size=3),
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    SETTINGS,
    st.integers(0, 10**6),
    st.integers(0, VOCAB - 1),
    st.lists(TOKENS, max_size=6),
    st.lists(TOKENS, max_size=6),
)
def test_any_parameters_give_the_exact_distribution(
    params: SamplingParams, seed: int, masked: int, prompt: list[int], output: list[int]
) -> None:
    """Kept tokens and their shares, away from ties and thresholds."""
    logits = some_logits(1, VOCAB, seed)[0]
    logits[np.random.default_rng(seed).permutation(VOCAB)[:masked]] = -np.inf
    want = exact(logits, params, prompt, output)
    assume(want.margin > 1e-4)
    with mock.patch.object(draw, "uniforms", grid(ROWS)):
        got = shares(many(params, logits, ROWS, prompt, output), VOCAB)
    assert not got[want.probabilities == 0].any()
    np.testing.assert_allclose(got, want.probabilities, atol=1.2 / ROWS)
    assert (got[want.probabilities > 1.5 / ROWS] > 0).all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(SETTINGS, min_size=1, max_size=6), st.integers(0, 10**6))
def test_any_batch_equals_its_rows_alone(batch: list[SamplingParams], seed: int) -> None:
    prompts = [[row, row + 1, 3] for row in range(len(batch))]
    together = Sampler(batch, VOCAB, prompts, seeds=range(len(batch)))
    alone = [Sampler([p], VOCAB, [prompt], seeds=[i]) for i, (p, prompt) in enumerate(zip(batch, prompts, strict=True))]
    for step in range(3):
        logits = mx.array(some_logits(len(batch), VOCAB, seed + step))
        want = [one(logits[i : i + 1], [step]).tokens.item() for i, one in enumerate(alone)]
        assert together(logits, [step] * len(batch)).tokens.tolist() == want
