"""Perplexity against a float64 computation on mlx-lm's logits, whole and in chunks."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.model.parity import ours, peer_logits, prompt
from tests.support import make_model
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.cache.recompute import RecomputeCache
from tiny_llm.quantize.perplexity import Text, perplexity


def oracle(path: Path, texts: list[Text]) -> float:
    """By the definition, in float64."""
    losses = []
    for tokens, start in texts:
        logits = peer_logits(path, list(tokens)).astype(np.float64)
        log_p = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        log_p -= logits.max(-1, keepdims=True)
        losses += [-log_p[i - 1, tokens[i]] for i in range(start, len(tokens))]
    return float(np.exp(np.mean(losses)))


TEXTS = [Text(prompt(12), 1), Text(prompt(7, seed=1), 5), Text(prompt(20, seed=2), 19), Text(prompt(5, seed=3), 5)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("chunk", [None, 1, 3, 4, 11, 100])
def test_it_is_that_of_the_definition(path: Path, chunk: int | None) -> None:
    model = ours(path)
    got = perplexity(model, TEXTS, lambda: ContiguousCache(model.config, model.ops), chunk)
    assert got == pytest.approx(oracle(path, TEXTS), rel=1e-4)


def test_each_text_counts_by_its_tokens(path: Path) -> None:
    """A mean over texts would weigh the token of a short one more."""
    model = ours(path, "plain")
    both = perplexity(model, TEXTS[:2], lambda: RecomputeCache(model.config, model.ops))
    assert both == pytest.approx(oracle(path, TEXTS[:2]), rel=1e-4)
    assert abs(both / oracle(path, TEXTS[:1]) - 1) > 1e-3


def test_an_even_distribution_has_the_size_of_the_vocabulary(path: Path) -> None:
    model = ours(path)
    head = model.weights["lm_head"]
    model.weights["lm_head"] = {"weight": mx.zeros_like(head["weight"])}
    got = perplexity(model, TEXTS, lambda: RecomputeCache(model.config, model.ops))
    assert got == pytest.approx(model.config.vocab_size, rel=1e-5)


@pytest.mark.parametrize("start", [0, -1, 6])
def test_a_start_outside_is_refused(path: Path, start: int) -> None:
    model = ours(path)
    with pytest.raises(ValueError, match=f"expected a start from 1 to its 5 tokens, found {start}"):
        perplexity(model, [Text(prompt(5), start)], lambda: RecomputeCache(model.config, model.ops))


@pytest.mark.parametrize("texts", [[], [Text([3], 1)]], ids=["no text", "nothing to predict"])
def test_nothing_to_predict_is_refused(path: Path, texts: list[Text]) -> None:
    model = ours(path)
    with pytest.raises(ValueError, match="at least one token to predict"):
        perplexity(model, texts, lambda: RecomputeCache(model.config, model.ops))
