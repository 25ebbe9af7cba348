"""Beam search: keep the `width` likeliest continuations instead of drawing one."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from tiny_llm.cache.base import KVCache
from tiny_llm.decode.generate import LAST, prefill
from tiny_llm.model.qwen3 import Qwen3


@dataclass(frozen=True)
class Beam:
    """A continuation, its log-probability, and whether a stop token ended it."""

    tokens: tuple[int, ...]
    logprob: float
    finished: bool = False

    def score(self, length_penalty: float) -> float:
        """What beams are ranked by: log-probability / length ** length_penalty. (arXiv:1609.08144 without its shift)"""
        return self.logprob / float(len(self.tokens) ** length_penalty)


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
    """The `width` best continuations of at most `limit` tokens, best first.

    Each step extends every live beam by its likeliest tokens and keeps the `width` likeliest of all. It ends when no
    live beam scores above the worst finished one. A beam's cache is a fork of its parent's.
    """

    def rank(beam: Beam) -> float:
        return -beam.score(length_penalty)

    live = [(Beam((), 0.0), cache)]
    logprobs = [_log_softmax(prefill(model, prompt, cache, prefill_chunk))]
    finished: list[Beam] = []
    for step in range(limit):
        candidates: list[tuple[Beam, KVCache]] = []
        count = min(width + len(stops), model.config.vocab_size)  # enough if every stop token is among them
        for (beam, held), row in zip(live, logprobs, strict=True):
            candidates += [(longer, held) for longer in extend(beam, row, count, stops)]
        candidates.sort(key=lambda item: -item[0].logprob)
        finished = sorted(finished + [beam for beam, _ in candidates[:width] if beam.finished], key=rank)[:width]
        live = [(beam, held.fork()) for beam, held in candidates if not beam.finished][:width]
        if not live or step == limit - 1:
            break
        if len(finished) == width and rank(min((beam for beam, _ in live), key=rank)) >= rank(finished[-1]):
            break
        logprobs = [_log_softmax(model(mx.array([beam.tokens[-1]]), held, LAST)) for beam, held in live]
    return sorted(finished + [beam for beam, _ in live], key=rank)[:width]


def extend(beam: Beam, logprobs: npt.NDArray[np.float32], count: int, stops: Collection[int]) -> list[Beam]:
    """The beam longer by each of its `count` likeliest next tokens, in any order. logprobs (V,) of the next token.

    A token in `stops` finishes the beam, of which it is then the last token.
    """
    # TASK w1.7.7: a beam's likeliest continuations
    # HINT 1: A continuation's probability is a product. What is its log-probability?
    # HINT 2: np.argpartition(-logprobs, count - 1)[:count] finds the `count` largest without sorting all.
    # HINT 3: Beam((*beam.tokens, token), beam.logprob + logprobs[token], token in stops) for each of them
    likeliest: list[int] = np.argpartition(-logprobs, count - 1)[:count].tolist()
    return [Beam((*beam.tokens, t), beam.logprob + float(logprobs[t]), t in stops) for t in likeliest]
    # END TASK


def _log_softmax(logits: mx.array) -> npt.NDArray[np.float32]:
    """(1, V) → (V,), read back."""
    row = logits[0].astype(mx.float32)
    return np.array(row - mx.logsumexp(row))
