"""Finished answers and their timing."""

from dataclasses import dataclass

import mlx.core as mx

from tiny_llm.decode.text import Delta, FinishReason, TokenLogprobs
from tiny_llm.engine.batch import Collected


@dataclass(frozen=True)
class Stats:
    """What one request took. Times in seconds, `peak_memory` in bytes."""

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    time_to_first_token: float
    decode_time: float
    peak_memory: int

    @property
    def prefill_tps(self) -> float:
        """Prompt tokens computed per second, up to the first token; 0 where the clock saw no time pass."""
        return _per_second(self.prompt_tokens - self.cached_tokens, self.time_to_first_token)

    @property
    def decode_tps(self) -> float:
        """Tokens per second after the first; 0 where there was only one, or the clock saw no time pass."""
        return _per_second(max(0, self.generated_tokens - 1), self.decode_time)


def _per_second(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


@dataclass(frozen=True)
class Completion:
    """One whole answer. `tokens` includes the stop token that ended it, `text` does not."""

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    index: int
    logprobs: list[TokenLogprobs] | None
    stats: Stats


def completions_of(collected: Collected) -> list[Completion]:
    """The answers to one of many requests, in their order."""
    stats = stats_of(collected)
    return [join(deltas, stats) for _, deltas in sorted(collected.answers.items())]


def stats_of(collected: Collected) -> Stats:
    first, last = collected.first - collected.begin, collected.last - collected.first
    prompt, cached = len(collected.request.tokens), collected.cached_tokens
    return Stats(prompt, cached, collected.num_tokens, first, last, mx.get_peak_memory())


def join(deltas: list[Delta], stats: Stats) -> Completion:
    """One answer of its pieces."""
    logprobs = [delta.logprobs for delta in deltas if delta.logprobs is not None]
    reason = deltas[-1].finish_reason
    assert reason is not None
    return Completion(
        "".join(delta.text for delta in deltas),
        [delta.token for delta in deltas if delta.token is not None],
        reason,
        deltas[-1].index,
        logprobs or None,
        stats,
    )
