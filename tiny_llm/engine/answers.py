"""The answers to a request: pieces as they arrive, finished completions with their timing, and streams to read.

The engine's thread references a stream's box, not the stream. So a dropped stream is collected at once, and cancels
its request.
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import mlx.core as mx

from tiny_llm.decode.text import Delta, TokenLogprobs
from tiny_llm.engine.loop import Output
from tiny_llm.engine.request import EndReason, PrefixMiss, Request


@dataclass(frozen=True)
class Stats:
    """Counts, times and memory of one request. Times are in seconds, `peak_memory` is in bytes.

    `peak_memory` is that of MLX's arrays; the CPU kernels hold weights beside them, see `kernels.cpu.build.held_bytes`.
    `queue_time` lasts from the request's arrival to its admission and is part of `time_to_first_token`.
    `inter_token_time` and `longest_gap` are the mean and the longest time between two tokens of one answer.
    `prefix_miss` says where the prompt left the cached prefixes and why; None where all of it was found.
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    time_to_first_token: float
    decode_time: float
    peak_memory: int
    queue_time: float = 0.0
    inter_token_time: float = 0.0
    longest_gap: float = 0.0
    prefix_miss: PrefixMiss | None = None

    @property
    def prefill_tps(self) -> float:
        """Prompt tokens computed per second until the first token; 0 where no time passed on the clock."""
        return _per_second(self.prompt_tokens - self.cached_tokens, self.time_to_first_token)

    @property
    def decode_tps(self) -> float:
        """Tokens per second after the first token; 0 for a single token, or where no time passed on the clock."""
        return _per_second(max(0, self.generated_tokens - 1), self.decode_time)


def _per_second(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


@dataclass(frozen=True)
class Completion:
    """One whole answer. `tokens` includes the stop token that ended it, `text` does not."""

    text: str
    tokens: list[int]
    finish_reason: EndReason
    index: int
    logprobs: list[TokenLogprobs] | None
    stats: Stats


@dataclass
class Collected:
    """The outputs of a request so far: the pieces of each of its `num_answers` answers, and their times.

    Times are seconds on the monotonic clock. `note` times an output in the thread that makes it, `take` keeps it in
    the thread that reads it. `in_thought`: the prompt has opened a thought, in which each answer begins.
    `finish_reason` is that of the last answer to end, "cancelled" where the request was cancelled before, "error" where
    it failed, and None until the end has been read.
    """

    request_id: str
    num_answers: int
    prompt_tokens: int = 0
    in_thought: bool = False
    searches: bool = False  # a search gives all its tokens at its end, so the times between them mean nothing
    begin: float = field(default_factory=time.monotonic)
    admitted: float | None = None
    first: float | None = None
    last: float | None = None
    cached_tokens: int = 0
    prefix_miss: PrefixMiss | None = None
    gaps: int = 0  # times between two tokens of one answer: their number, sum and maximum
    sum_of_gaps: float = 0.0
    longest_gap: float = 0.0
    answers: dict[int, list[Delta]] = field(default_factory=dict)
    finish_reason: EndReason | None = None
    error: Exception | None = None
    _ended: int = 0
    _latest: dict[int, float] = field(default_factory=dict)  # the time of each answer's last token

    @classmethod
    def of(cls, request: Request) -> "Collected":
        """Make an empty record for a request."""
        return cls(request.id, request.params.n, len(request.tokens), request.searches)

    def note(self, output: Output, now: float) -> None:
        """Record the time `now` at which an output was made."""
        if output.delta is None:
            return
        if self.first is None:
            self.first = now
            self.admitted = output.admitted
            self.cached_tokens = output.cached_tokens
            self.prefix_miss = output.miss
        elif self.searches:
            return
        before = self._latest.get(output.delta.index)
        if before is not None:
            gap = now - before
            self.gaps += 1
            self.sum_of_gaps += gap
            self.longest_gap = max(self.longest_gap, gap)
        self._latest[output.delta.index] = now
        self.last = now

    def take(self, output: Output) -> Delta | None:
        """Keep an output's piece of an answer and return it. Raises the error with which the request failed."""
        if output.error is not None:
            self.error = output.error
            self.finish_reason = "error"
            raise output.error
        delta = output.delta
        if delta is None:
            return None
        self.answers.setdefault(delta.index, []).append(delta)
        if delta.finish_reason is not None:
            self._ended += 1
            if self._ended == self.num_answers:
                self.finish_reason = delta.finish_reason
        return delta

    @property
    def done(self) -> bool:
        return self.finish_reason is not None

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.answers.values()))


def completions_of(collected: Collected) -> list[Completion]:
    """Return a request's answers in order. An answer that was cut off has the finish reason "cancelled"."""
    stats = stats_of(collected)
    completions = []
    for index in range(collected.num_answers):
        deltas = collected.answers.get(index, [Delta("", index=index)])
        completions.append(join(deltas, stats))
    return completions


def stats_of(collected: Collected) -> Stats:
    """Return a request's figures so far. The time of an event that has not happened yet is 0."""
    begin = collected.begin
    admitted = begin if collected.admitted is None else collected.admitted
    first = begin if collected.first is None else collected.first
    last = first if collected.last is None else collected.last
    return Stats(
        collected.prompt_tokens,
        collected.cached_tokens,
        collected.num_tokens,
        first - begin,
        last - first,
        mx.get_peak_memory(),
        admitted - begin,
        collected.sum_of_gaps / max(1, collected.gaps),
        collected.longest_gap,
        collected.prefix_miss,
    )


def join(deltas: list[Delta], stats: Stats) -> Completion:
    """Join the pieces of one answer."""
    logprobs = [delta.logprobs for delta in deltas if delta.logprobs is not None]
    last = deltas[-1]
    return Completion(
        "".join(delta.text for delta in deltas),
        [delta.token for delta in deltas if delta.token is not None],
        last.finish_reason or "cancelled",
        last.index,
        logprobs or None,
        stats,
    )


class UnreadError(RuntimeError):
    """The reader of a request left too many tokens unread."""


class Box:
    """A queue of one request's outputs that the engine's thread fills and any thread or event loop reads.

    The queue holds at most `max_unread` outputs. One more makes it drop them all, call `leave` and give readers an
    UnreadError. All readers get the same end. Between reads the queue references no event loop.
    """

    def __init__(self, max_unread: int, leave: Callable[[], object]):
        self.max_unread, self._leave = max_unread, leave
        self._outputs: deque[Output] = deque()
        self._end: Output | None = None
        self._changed = threading.Condition()  # reentrant: a signal handler may close a stream that waits
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    @property
    def ended(self) -> bool:
        """Whether no more outputs will come."""
        return self._end is not None

    @property
    def cancelled(self) -> bool:
        """Whether the end came without a last piece or an error."""
        end = self._end
        return end is not None and end.delta is None and end.error is None

    def put(self, output: Output) -> None:
        """Add an output. After the end, do nothing."""
        overrun = False
        with self._changed:
            if self._end is not None:
                return
            if output.delta is not None and len(self._outputs) == self.max_unread:
                overrun = True
                output = self._overrun(output.request_id)
                self._outputs.clear()
            if output.delta is not None:
                self._outputs.append(output)
            if output.ended:
                self._end = output
            self._changed.notify_all()
            waiters, self._waiters = self._waiters, []
        for event_loop, future in waiters:
            with contextlib.suppress(RuntimeError):  # the event loop was closed, and its tasks with it
                event_loop.call_soon_threadsafe(_wake, future)
        if overrun:
            self._leave()

    def _overrun(self, request_id: str) -> Output:
        words = (
            f"the reader of request {request_id!r} left more than {self.max_unread} tokens unread, as many as "
            "max_unread allows: the request was cancelled; read faster or raise max_unread"
        )
        return Output(request_id, error=UnreadError(words), ended=True)

    def get(self) -> Output | None:
        """Wait for the next output and return it; None at the end. After an error, return the error's output again."""
        with self._changed:
            while not self._outputs and self._end is None:
                self._changed.wait()
            return self._next()

    async def aget(self) -> Output | None:
        """Wait for the next output as `get` does, without blocking the event loop."""
        while True:
            with self._changed:
                if self._outputs or self._end is not None:
                    return self._next()
                event_loop = asyncio.get_running_loop()
                future: asyncio.Future[None] = event_loop.create_future()
                self._waiters.append((event_loop, future))
            await future

    def _next(self) -> Output | None:
        if self._outputs:
            return self._outputs.popleft()
        assert self._end is not None
        return None if self._end.error is None else self._end


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():  # the task that waited may have been cancelled
        future.set_result(None)


class AnswerReader:
    """A reader of a request's answers. Closing or dropping it before the end cancels the request.

    `leave` is called with the request's id, from any thread. It must take no lock, because the garbage collector may
    drop a reader in a thread that holds one.
    """

    def __init__(self, collected: Collected, leave: Callable[[str], object], max_unread: int):
        self.collected, self._leave = collected, leave
        name = collected.request_id
        self._box = Box(max_unread, lambda: leave(name))
        self.deliver = self._box.put  # for the engine's thread

    @property
    def request_id(self) -> str:
        """The name under which `Engine.abort` and the engine's events know the request."""
        return self.collected.request_id

    @property
    def finish_reason(self) -> EndReason | None:
        """Why the request ended, as in `Collected`; None until the end has been read."""
        return self.collected.finish_reason

    @property
    def stats(self) -> Stats:
        """The request's figures so far."""
        return stats_of(self.collected)

    def _taken(self, output: Output | None) -> Delta | None:
        """Keep an output. At the end of a cancelled request, set the finish reason "cancelled"."""
        if output is not None:
            return self.collected.take(output)
        if self._box.cancelled:
            self.collected.finish_reason = "cancelled"
        return None

    def _close(self) -> None:
        if not self._box.ended:
            self._leave(self.request_id)
            self._box.put(Output(self.request_id, ended=True))

    def __del__(self) -> None:
        if not self._box.ended:
            self._leave(self.request_id)


class Stream(AnswerReader, Iterator[Delta]):
    """An iterator over the pieces of a request's answers. Raises the error with which the request failed.

    Closing or dropping the stream before the end cancels the request. A request that was cancelled, here or by
    `Engine.abort`, ends after the pieces that were delivered before, with the `finish_reason` "cancelled".
    """

    def __next__(self) -> Delta:
        output = self._box.get()
        delta = self._taken(output)
        if delta is None:
            raise StopIteration
        return delta

    def close(self) -> None:
        """Cancel the request if it has not ended. Later reads find the end."""
        self._close()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncStream(AnswerReader, AsyncIterator[Delta]):
    """A `Stream` for an event loop, which it does not block. The first read raises the errors of the prompt."""

    async def __anext__(self) -> Delta:
        output = await self._box.aget()
        delta = self._taken(output)
        if delta is None:
            raise StopAsyncIteration
        return delta

    async def aclose(self) -> None:
        """Cancel the request if it has not ended. Later reads find the end."""
        self._close()
