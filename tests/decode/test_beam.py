"""Beam search against looking at every continuation, and against a greedy loop."""

import itertools

import mlx.core as mx
import numpy as np
import pytest

from tests.model.parity import ours, prompt
from tests.support import make_model
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.cache.recompute import RecomputeCache
from tiny_llm.decode.beam import Beam, Search, beam_search
from tiny_llm.decode.generate import generate_naive
from tiny_llm.model.qwen3 import Qwen3

VOCAB = 268  # the smallest that the test tokenizer makes
PROMPT = prompt(9, VOCAB)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Qwen3:
    return ours(make_model(tmp_path_factory.mktemp("model"), vocab_size=VOCAB))


def search(model: Qwen3, **options) -> list[Beam]:
    return beam_search(model, PROMPT, ContiguousCache(model.config, model.ops, step=4), **options)


def logprobs(model: Qwen3, tokens: list[int]) -> np.ndarray:
    """(T, V) in float64."""
    logits = np.array(model(mx.array(tokens), RecomputeCache(model.config, model.ops)), np.float64)
    top = logits.max(axis=-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))


def total(model: Qwen3, tokens: tuple[int, ...]) -> float:
    rows = logprobs(model, [*PROMPT, *tokens])[len(PROMPT) - 1 : -1]
    return float(sum(row[token] for row, token in zip(rows, tokens, strict=True)))


def test_a_full_width_finds_the_best_of_all(model: Qwen3) -> None:
    """Two tokens, every one of the 268² continuations ranked by its exact log-probability."""
    first = logprobs(model, PROMPT)[-1]
    pairs = {}
    for a in range(VOCAB):
        second = logprobs(model, [*PROMPT, a])[-1]
        pairs |= {(a, b): first[a] + second[b] for b in range(VOCAB)}
    best = sorted(pairs, key=pairs.get, reverse=True)[:5]
    got = search(model, width=VOCAB, limit=2)
    assert [beam.tokens for beam in got[:5]] == best
    np.testing.assert_allclose([beam.logprob for beam in got[:5]], [pairs[pair] for pair in best], atol=1e-4)


def test_width_one_is_greedy(model: Qwen3) -> None:
    (beam,) = search(model, width=1, limit=8)
    assert list(beam.tokens) == generate_naive(model, PROMPT, 8)


def test_wider_is_no_less_likely_and_adds_up(model: Qwen3) -> None:
    """Forked caches stay apart: each beam's log-probability is that of its own text, computed whole."""
    beams = search(model, width=4, limit=7)
    assert len({beam.tokens for beam in beams}) == 4
    for beam in beams:
        assert beam.logprob == pytest.approx(total(model, beam.tokens), abs=1e-3)
    assert beams[0].logprob >= search(model, width=1, limit=7)[0].logprob - 1e-4


def test_stop_tokens_and_length_penalty(model: Qwen3) -> None:
    """A likely stop token ends a beam; rewarding length makes the longer beams win over it."""
    stop = int(np.argmax(logprobs(model, PROMPT)[-1]))
    short = search(model, width=3, limit=6, stops={stop}, length_penalty=0.0)
    assert short[0] == Beam((stop,), short[0].logprob, True)
    long = search(model, width=3, limit=6, stops={stop}, length_penalty=4.0)
    assert len(long[0].tokens) > 1
    for beams, penalty in ((short, 0.0), (long, 4.0)):
        scores = [beam.score(penalty) for beam in beams]
        assert scores == sorted(scores, reverse=True)
        for beam in beams:
            assert beam.finished == (beam.tokens[-1] == stop)
            assert stop not in beam.tokens[:-1]


def test_a_finished_beam_is_ranked_by_all_its_tokens() -> None:
    """The stop token counts: -3 over 3 tokens is as good as -1 over 1, and better than -2.2 over 2."""
    stop = 0
    rows = np.log(np.array([[1e-9, 0.5, 0.3, 0.2 - 1e-9]], np.float32))
    search = Search(width=2, limit=4, stops={stop}, length_penalty=1.0)
    search.advance(rows)
    ends = np.log(np.array([[0.4, 0.35, 0.15, 0.1], [0.1, 0.3, 0.3, 0.3]], np.float32))
    search.advance(ends)
    (finished,) = search.finished
    assert finished.tokens == (1, stop)
    assert finished.score(1.0) == pytest.approx(np.log(0.5 * 0.4) / 2)
    longer = Beam((1, 1, 1), np.log(0.5 * 0.4) * 1.4)  # over 3 tokens it is the better one, over fewer it is not
    search.live = [longer]
    assert search.best[0] is longer


def test_score() -> None:
    assert Beam((1, 2, 3, 4), -8.0).score(1.0) == -2.0
    assert Beam((1, 2, 3, 4), -8.0).score(0.5) == -4.0
    assert all(Beam(tokens, -1.0).score(0.0) == -1.0 for tokens in itertools.permutations((1, 2)))
