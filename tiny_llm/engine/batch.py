"""Many prompts at once: requests through the loop, their pieces put together, with a line of progress."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tiny_llm.config import SchedulerConfig
from tiny_llm.decode.text import Delta
from tiny_llm.engine.loop import Loop, Output
from tiny_llm.engine.request import Request


@dataclass
class Collected:
    """What a request got so far: deltas by the number of the answer; times in seconds."""

    request: Request
    begin: float = field(default_factory=time.perf_counter)
    first: float = 0.0
    last: float = 0.0
    cached_tokens: int = 0
    answers: dict[int, list[Delta]] = field(default_factory=dict)
    error: Exception | None = None

    def take(self, output: Output) -> Delta | None:
        """Note an output; returns its piece of an answer. Raises what the request met."""
        self.last = time.perf_counter()
        if not self.first:
            self.first, self.cached_tokens = self.last, output.cached_tokens
        if output.error is not None:
            self.error = output.error
            raise output.error
        if output.delta is not None:
            self.answers.setdefault(output.delta.index, []).append(output.delta)
        return output.delta

    @property
    def done(self) -> bool:
        ended = sum(deltas[-1].finish_reason is not None for deltas in self.answers.values())
        return self.error is not None or ended == self.request.params.n

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.answers.values()))


def kv_bytes_for(requests: Sequence[Request], limits: SchedulerConfig, block_size: int, block_bytes: int) -> int:
    """Memory just large enough for as many of these requests as may run at once."""
    longest = (len(r.tokens) + r.params.max_tokens for r in requests for _ in range(r.num_sequences))
    blocks = sorted((-(-tokens // block_size) for tokens in longest), reverse=True)
    return sum(blocks[: limits.max_sequences]) * block_bytes


def run_all(loop: Loop, requests: Sequence[Request], progress: bool = False) -> list[Collected]:
    """Every request's answers, in the order of `requests`. Raises the first error that a request met."""
    found = {}
    for request in requests:
        loop.add(request)
        found[request.id] = Collected(request)
    bar = Progress(len(requests)) if progress else None
    while loop.has_work:
        for output in loop.step():
            found[output.request_id].take(output)
        if bar:
            bar.show(sum(one.done for one in found.values()), sum(one.num_tokens for one in found.values()))
    if bar:
        bar.end()
    return list(found.values())


def run_one(loop: Loop, collected: Collected) -> Iterator[Delta]:
    """A request's answers as they come. Raises what it meets."""
    loop.add(collected.request)
    while loop.has_work:
        for output in loop.step():
            delta = collected.take(output)
            if delta is not None:
                yield delta


class Progress:
    """One line on the terminal, written again a few times a second."""

    WIDTH = 24

    def __init__(self, total: int):
        self.total, self.begin, self.shown = total, time.perf_counter(), 0.0

    def show(self, done: int, tokens: int) -> None:
        """Write the line again, if it is time to: so many requests are done, so many tokens were generated."""
        now = time.perf_counter()
        if now - self.shown < 0.2 and done < self.total:
            return
        self.shown = now
        filled = done * self.WIDTH // max(1, self.total)
        bar = ("█" * filled).ljust(self.WIDTH, "░")
        rate = tokens / max(now - self.begin, 1e-9)
        line = f"{bar} {done}/{self.total} · {tokens:,} tokens · {rate:,.0f} tok/s"
        print(f"\r{line} ", end="", file=sys.stderr)

    def end(self) -> None:
        print(file=sys.stderr)
