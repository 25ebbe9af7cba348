"""Run many requests through a loop to their end in the calling thread, with a line of progress."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tiny_llm.cache.choose import slot_bytes
from tiny_llm.config import EngineConfig, SchedulerConfig
from tiny_llm.config.serving import ServingConfig
from tiny_llm.decode.text import Delta
from tiny_llm.engine.answers import Collected
from tiny_llm.engine.helper import bytes_beside
from tiny_llm.engine.loop import Loop
from tiny_llm.engine.request import Request
from tiny_llm.engine.speculation import Drafting
from tiny_llm.model.memory import available_bytes
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.model.tokenizer import Tokenizer


def kv_bytes_for(requests: Sequence[Request], limits: SchedulerConfig, block_size: int, block_bytes: int) -> int:
    """Return the bytes of KV memory for as many of these requests as may run at once, the longest ones."""
    blocks: list[int] = []
    for request in requests:
        longest = len(request.tokens) + request.params.max_tokens
        blocks += [-(-longest // block_size)] * request.num_sequences
    blocks.sort(reverse=True)
    return sum(blocks[: limits.max_sequences]) * block_bytes


def loop_for(
    model: Qwen3,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    engine: EngineConfig,
    drafting: Drafting | None = None,
) -> Loop:
    """Return a loop with just enough memory and slots for these requests."""
    config = ServingConfig()
    slots = max(config.scheduler.max_sequences, *(request.num_sequences for request in requests))
    config = replace(config, scheduler=replace(config.scheduler, max_sequences=slots))
    if engine.cache != "rotating":
        dtype = model.weights["norm"]["weight"].dtype
        beside = 0 if drafting is None else bytes_beside(drafting.helper, dtype.size)
        each = config.block_size * (slot_bytes(model.config, engine, dtype.size) + beside)
        need = kv_bytes_for(requests, config.scheduler, config.block_size, each)
        free = available_bytes()
        config = replace(config, kv_bytes=need if free is None else min(need, free // 2))
    return Loop(model, tokenizer, config, engine=engine, drafting=drafting)


def run_all(loop: Loop, requests: Sequence[Request], progress: bool = False) -> list[Collected]:
    """Run requests and return their answers, in the order of `requests`. Raises the first error of a request."""
    found = [Collected.of(request) for request in requests]
    line = ProgressLine(len(requests)) if progress else None
    done = 0
    for tokens, (one, _) in enumerate(run(loop, requests, found), 1):
        done += one.done
        if line:
            line.show(done, tokens)
    if line:
        line.end()
    return found


def run(loop: Loop, requests: Sequence[Request], collected: Sequence[Collected]) -> Iterator[tuple[Collected, Delta]]:
    """Run requests to their end. Yields each piece, with the item of `collected` that keeps it."""
    found = {}
    for request, one in zip(requests, collected, strict=True):
        one.begin = loop.clock()
        loop.add(request)
        found[request.id] = one
    while loop.has_work:
        for output in loop.step():
            one = found[output.request_id]
            one.note(output, loop.clock())
            delta = one.take(output)
            if delta is not None:
                yield one, delta


class ProgressLine:
    """A line of progress on the terminal, updated a few times a second."""

    WIDTH = 24

    def __init__(self, total: int):
        self.total, self.begin, self.shown = total, time.perf_counter(), 0.0

    def show(self, done: int, tokens: int) -> None:
        """Update the line, at most five times a second. `done` counts finished requests, `tokens` generated tokens."""
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
