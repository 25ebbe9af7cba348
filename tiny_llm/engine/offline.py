"""Many prompts at once in the calling thread: run requests through a loop to their end, with a line of progress."""

import sys
import time
from collections.abc import Iterator, Sequence

from tiny_llm.config import SchedulerConfig
from tiny_llm.decode.generate import Delta
from tiny_llm.engine.answers import Collected
from tiny_llm.engine.loop import Loop
from tiny_llm.engine.request import Request


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
    bar = ProgressLine(len(requests)) if progress else None
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


class ProgressLine:
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
