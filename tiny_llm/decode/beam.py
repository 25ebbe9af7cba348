"""Beam search: keep the `width` likeliest continuations instead of drawing one."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from tiny_llm.cache.base import KVCache
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
        """Return log-probability / length ** length_penalty, which ranks beams (arXiv:1609.08144, no shift)."""
        return self.logprob / float(len(self.tokens) ** length_penalty)


@dataclass
class Search:
    """The state of a beam search between two steps of the model: its live beams, and the best beams that have ended.

    Each step extends every live beam by its likeliest tokens and keeps the `width` likeliest continuations. The search
    ends after `limit` tokens, or when no live beam scores above the worst finished one.
    """

    width: int
    limit: int
    stops: Collection[int] = ()
    length_penalty: float = 1.0
    live: list[Beam] = field(default_factory=lambda: [Beam((), 0.0)])
    finished: list[Beam] = field(default_factory=list)

    def advance(self, logprobs: Sequence[Logprobs]) -> list[int]:
        """Extend the beams by one token, given the log-probabilities of each live beam's next token.

        Returns for each beam that is live now the number of the live beam that it extends; an empty list ends the
        search.
        """
        candidates = self._candidates(logprobs)
        ended = [beam for beam, _ in candidates[: self.width] if beam.finished]
        self.finished = sorted(self.finished + ended, key=self._rank)[: self.width]
        unfinished = [(beam, parent) for beam, parent in candidates if not beam.finished]
        kept = unfinished[: self.width]
        self.live = [beam for beam, _ in kept]
        if self._is_over():
            return []
        return [parent for _, parent in kept]

    def _candidates(self, logprobs: Sequence[Logprobs]) -> list[tuple[Beam, int]]:
        """Extend each live beam by its likeliest tokens. → (longer beam, number of its parent), likeliest first."""
        vocab_size = len(logprobs[0])
        count = self.width + len(self.stops)  # leaves `width` tokens even where every stop token is among them
        count = min(count, vocab_size)
        candidates: list[tuple[Beam, int]] = []
        for parent, (beam, row) in enumerate(zip(self.live, logprobs, strict=True)):
            extensions = extend(beam, row, count, self.stops)
            candidates += [(longer, parent) for longer in extensions]
        candidates.sort(key=lambda candidate: -candidate[0].logprob)
        return candidates

    def _is_over(self) -> bool:
        """Return whether no live beam can still change the result."""
        if not self.live:
            return True
        if len(self.live[0].tokens) == self.limit:
            return True
        if len(self.finished) < self.width:
            return False
        best_live = min(map(self._rank, self.live))
        worst_finished = self._rank(self.finished[-1])
        return best_live >= worst_finished

    @property
    def best(self) -> list[Beam]:
        """The `width` best continuations, best first."""
        return sorted(self.finished + self.live, key=self._rank)[: self.width]

    def _rank(self, beam: Beam) -> float:
        """Return a sort key that puts the best beam first."""
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
    """Find the `width` best continuations of at most `limit` tokens, best first. Each beam has a cache of its own.

    Raises ArithmeticError where the model's logits are not finite.
    """
    search = Search(width, limit, stops, length_penalty)
    caches = [cache]
    logits = prefill(model, prompt, cache, prefill_chunk)
    logprobs = [_finite_logprobs(logits[0])]
    while parents := search.advance(logprobs):
        caches = [caches[parent].fork() for parent in parents]
        steps = []  # the logits of all beams, before the first is read: the device computes while the host goes on
        for beam, own in zip(search.live, caches, strict=True):
            last = mx.array([beam.tokens[-1]])
            steps.append(model(last, own, LAST))
        logprobs = [_finite_logprobs(logits[0]) for logits in steps]
    return search.best


def deltas_of_beams(beams: Sequence[Beam], tokenizer: Tokenizer) -> Iterator[Delta]:
    """Yield the whole answers, best first. A search has no text to show before its end.

    The last delta of each answer has all of its text; the others have a token each.
    """
    for index, beam in enumerate(beams):
        *tokens, last = beam.tokens
        shown = tokens if beam.finished else [*tokens, last]
        text = tokenizer.decode(shown)
        for token in tokens:
            yield Delta("", token, index)
        yield Delta(text, last, index, "stop" if beam.finished else "length")


def extend(beam: Beam, logprobs: Logprobs, count: int, stops: Collection[int]) -> list[Beam]:
    """Extend a beam by each of its `count` likeliest next tokens, in any order. logprobs (V,) are of the next token.

    A token in `stops` finishes the beam and is its last token.
    """
    # TASK w1.7.7: a beam's likeliest continuations
    likeliest: list[int] = np.argpartition(-logprobs, count - 1)[:count].tolist()
    return [Beam((*beam.tokens, t), beam.logprob + float(logprobs[t]), t in stops) for t in likeliest]
    # END TASK


def log_softmax(logits: mx.array) -> Logprobs:
    """Compute the log-probabilities of logits (V,), and read them back from the device. → (V,)."""
    row = logits.astype(mx.float32)
    return np.array(row - mx.logsumexp(row))


def all_finite(logprobs: Logprobs) -> bool:
    """Return whether log-probabilities are all finite. NaN or infinity among the logits makes all of them NaN."""
    return bool(np.isfinite(logprobs.max()))


def _finite_logprobs(logits: mx.array) -> Logprobs:
    """Compute `log_softmax`. Raises ArithmeticError where the logits are not finite."""
    logprobs = log_softmax(logits)
    if not all_finite(logprobs):
        raise ArithmeticError(NOT_FINITE)
    return logprobs
