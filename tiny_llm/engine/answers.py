"""The answers to a request: the pieces as they arrive, finished completions with their timing, and streams to read.

The engine's thread references a stream's box, not the stream. So a dropped stream is collected at once, and cancels
its request.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import mlx.core as mx

from tiny_llm.decode.generate import Delta, FinishReason, TokenLogprobs
from tiny_llm.engine.loop import Output
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


Leave = Callable[[Collected], None]


class Stream(Iterator[Delta]):
    """The pieces of a request's answers, for a thread that waits for each.

    Closing or dropping it before the end cancels the request. Raises what the request met.
    """

    def __init__(self, collected: Collected, leave: Leave):
        self.collected, self._leave = collected, leave
        self._box: queue.SimpleQueue[Output | None] = queue.SimpleQueue()
        self.deliver = self._box.put  # for the engine's thread

    def __next__(self) -> Delta:
        while (output := self._box.get()) is not None:
            if output.ended:  # whoever reads on, in any thread, meets the same end
                self._box.put(output if output.error is not None else None)
            delta = self.collected.take(output)
            if delta is not None:
                return delta
        self._box.put(None)
        raise StopIteration

    def close(self) -> None:
        """Cancel the request, if it has not ended; who reads on meets the end."""
        self._box.put(None)
        self._leave(self.collected)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class AsyncStream(AsyncIterator[Delta]):
    """The same for an event loop, which it never blocks."""

    def __init__(self, collected: Collected, leave: Leave):
        self.collected, self._leave = collected, leave
        self._box = AsyncBox()
        self.deliver = self._box.put  # for the engine's thread

    async def __anext__(self) -> Delta:
        while (output := await self._box.get()) is not None:
            if output.ended:
                self._box.put(output if output.error is not None else None)
            delta = self.collected.take(output)
            if delta is not None:
                return delta
        self._box.put(None)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Cancel the request, if it has not ended; who reads on meets the end."""
        self._box.put(None)
        self._leave(self.collected)

    def __del__(self) -> None:
        self._leave(self.collected)


class AsyncBox:
    """A queue that any thread fills and tasks of any event loop read. It keeps nothing of a loop between reads."""

    def __init__(self) -> None:
        self._outputs: deque[Output | None] = deque()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._lock = threading.RLock()  # a reader may be collected, and closed, while its own thread holds it

    def put(self, output: Output | None) -> None:
        with self._lock:
            self._outputs.append(output)
            waiters, self._waiters = self._waiters, []
        for event_loop, future in waiters:
            with contextlib.suppress(RuntimeError):  # the event loop has ended: nobody waits any more
                event_loop.call_soon_threadsafe(_wake, future)

    async def get(self) -> Output | None:
        while True:
            with self._lock:
                if self._outputs:
                    return self._outputs.popleft()
                event_loop = asyncio.get_running_loop()
                future: asyncio.Future[None] = event_loop.create_future()
                self._waiters.append((event_loop, future))
            await future


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():  # the task that waited may have been cancelled
        future.set_result(None)
