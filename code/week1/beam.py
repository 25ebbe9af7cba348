"""Beam search: keep the `width` likeliest continuations instead of drawing one."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from tiny_llm.cache.base import KVCache
from tiny_llm.course import NotDone
from tiny_llm.decode.generate import LAST, prefill
from tiny_llm.decode.text import NOT_FINITE, Delta
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.model.tokenizer import Tokenizer

Logprobs = npt.NDArray[np.float32]  # (V,) log-probabilities of the next token


@dataclass(frozen=True)
class Beam:
    """A continuation, its log-probability, and whether a stop token ended it."""

    tokens: tuple[int, ...]
    logprob: float
    finished: bool = False

    def score(self, length_penalty: float) -> float:
        """What beams are ranked by: log-probability / length ** length_penalty. (arXiv:1609.08144 without its shift)"""
        return self.logprob / float(len(self.tokens) ** length_penalty)


@dataclass
class Search:
    """A beam search between two steps of the model: the beams that live, and the best that have ended.

    Each step extends every live beam by its likeliest tokens and keeps the `width` likeliest of all. It ends after
    `limit` tokens, or when no live beam scores above the worst finished one.
    """

    width: int
    limit: int
    stops: Collection[int] = ()
    length_penalty: float = 1.0
    live: list[Beam] = field(default_factory=lambda: [Beam((), 0.0)])
    finished: list[Beam] = field(default_factory=list)

    def advance(self, logprobs: Sequence[Logprobs]) -> list[int]:
        """Take in each live beam's next log-probabilities; for each beam that lives now the number of the one that it
        extends, none when the search is over."""
        candidates: list[tuple[Beam, int]] = []
        count = min(self.width + len(self.stops), len(logprobs[0]))  # enough if every stop token is among them
        for parent, (beam, row) in enumerate(zip(self.live, logprobs, strict=True)):
            candidates += [(longer, parent) for longer in extend(beam, row, count, self.stops)]
        candidates.sort(key=lambda item: -item[0].logprob)
        ended = [beam for beam, _ in candidates[: self.width] if beam.finished]
        self.finished = sorted(self.finished + ended, key=self._rank)[: self.width]
        going = [(beam, parent) for beam, parent in candidates if not beam.finished][: self.width]
        self.live = [beam for beam, _ in going]
        if not self.live or len(self.live[0].tokens) == self.limit:
            return []
        if len(self.finished) == self.width and min(map(self._rank, self.live)) >= self._rank(self.finished[-1]):
            return []
        return [parent for _, parent in going]

    @property
    def best(self) -> list[Beam]:
        """The `width` best continuations, best first."""
        return sorted(self.finished + self.live, key=self._rank)[: self.width]

    def _rank(self, beam: Beam) -> float:
        return -beam.score(self.length_penalty)


def beam_search(
    model: Qwen3,
    prompt: Sequence[int],
    cache: KVCache,
    *,
    width: int,
    limit: int,
    stops: Collection[int] = (),
    length_penalty: float = 1.0,
    prefill_chunk: int = 2048,
) -> list[Beam]:
    """The `width` best continuations of at most `limit` tokens, best first, each computed in a cache of its own.

    Raises ArithmeticError where the model's logits are not finite.
    """
    search, caches = Search(width, limit, stops, length_penalty), [cache]
    logprobs = [_finite(log_softmax(row)) for row in prefill(model, prompt, cache, prefill_chunk)]
    while parents := search.advance(logprobs):
        caches = [caches[parent].fork() for parent in parents]
        steps = [model(mx.array([b.tokens[-1]]), held, LAST) for b, held in zip(search.live, caches, strict=True)]
        logprobs = [_finite(log_softmax(logits[0])) for logits in steps]
    return search.best


def deltas_of_beams(beams: Sequence[Beam], tokenizer: Tokenizer) -> Iterator[Delta]:
    """Whole answers, best first: a search has nothing to show before its end."""
    for index, beam in enumerate(beams):
        text = tokenizer.decode(list(beam.tokens[:-1] if beam.finished else beam.tokens))
        *tokens, last = beam.tokens
        yield from (Delta("", token, index) for token in tokens)
        yield Delta(text, last, index, "stop" if beam.finished else "length")


def extend(beam: Beam, logprobs: Logprobs, count: int, stops: Collection[int]) -> list[Beam]:
    """The beam longer by each of its `count` likeliest next tokens, in any order. logprobs (V,) of the next token.

    A token in `stops` finishes the beam, of which it is then the last token.
    """
    # YOUR CODE (w1.7.7): a beam's likeliest continuations
    raise NotDone("w1.7.7")


def log_softmax(logits: mx.array) -> Logprobs:
    """(V,), read back."""
    row = logits.astype(mx.float32)
    return np.array(row - mx.logsumexp(row))


def all_finite(logprobs: Logprobs) -> bool:
    """Whether a step's log-probabilities are numbers: NaN or infinity among the logits makes all of them NaN."""
    return bool(np.isfinite(logprobs.max()))


def _finite(logprobs: Logprobs) -> Logprobs:
    if not all_finite(logprobs):
        raise ArithmeticError(NOT_FINITE)
    return logprobs
