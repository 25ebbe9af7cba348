"""The engine's thread: load the model, run the loop, and carry out orders that come from any thread.

MLX's arrays belong to the thread that built them, so only text and plain numbers leave the thread.
"""

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import mlx.core as mx

from tiny_llm.config.serving import ServingConfig
from tiny_llm.engine.answers import Collected
from tiny_llm.engine.embed import Vectors, join_vectors
from tiny_llm.engine.events import Event
from tiny_llm.engine.llm import LLM
from tiny_llm.engine.loop import Loop, Output
from tiny_llm.engine.request import Request

Deliver = Callable[[Output], None]
NEWEST = 0.1  # weight of the newest request in the mean time of a request
ENDED_EARLY = "the engine was closed before the answer was complete"


@dataclass(frozen=True)
class Add:
    """Order to the engine's thread: run a request."""

    request: Request


@dataclass(frozen=True)
class Leave:
    """Order to the engine's thread: cancel a request, because its reader was closed or dropped."""

    request_id: str


@dataclass(frozen=True)
class Embed:
    """Order to the engine's thread: compute the batches of an embedding, one batch between two steps.

    A text's vector has `width` numbers.
    """

    batches: Iterator[Vectors]
    width: int
    result: Future[Vectors] = field(default_factory=Future)
    parts: list[Vectors] = field(default_factory=list)


@dataclass(frozen=True)
class Close:
    """Order to the engine's thread: end."""


Order = Add | Leave | Embed | Close


@dataclass
class Recipient:
    """The destination of an unfinished request's outputs."""

    collected: Collected
    deliver: Deliver

    def hear(self, output: Output) -> None:
        """Record the time of an output, and deliver it."""
        self.collected.note(output, time.monotonic())
        self.deliver(output)


class Forecast(NamedTuple):
    """How many requests run and wait, and after how many seconds a new request would begin."""

    running: int
    waiting: int
    seconds: float


class ServiceTime:
    """The mean time from a request's admission to its end, in which later requests count more. 0 before the first."""

    def __init__(self) -> None:
        self.mean = 0.0
        self._weight = 1.0

    def note(self, seconds: float) -> None:
        """Take in the time of a request that has ended."""
        self.mean += (seconds - self.mean) * self._weight
        self._weight = max(self._weight / (1 + self._weight), NEWEST)


class FullError(RuntimeError):
    """The engine has as many unfinished requests as `max_requests` allows."""


class Worker:
    """A thread with a model and its loop. `make` makes the model in that thread; its errors are raised here.

    `recipients` has all unfinished requests, from the client's call on.
    """

    def __init__(self, make: Callable[[], LLM], config: ServingConfig, emit: Callable[[Event], None] | None):
        self._make, self._config, self._emit = make, config, emit
        self.inbox: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self.recipients: dict[str, Recipient] = {}
        self.is_open = True
        self.service = ServiceTime()
        self.turn_since: float | None = None  # when the order or step under way began; None while idle
        self._busy_since = 0.0  # when a request last came to an engine without unfinished requests
        self._gate = threading.RLock()  # makes "check that the worker is open, then put an order" one action
        self._embedding: deque[Embed] = deque()
        self._ready = threading.Event()
        self._fault: list[BaseException] = []
        self.thread = threading.Thread(target=self._work, name="tiny-llm engine", daemon=True)
        self.thread.start()
        self._ready.wait()
        if self._fault:
            self.thread.join()
            raise self._fault[0]

    def enter(self, collected: Collected, deliver: Deliver) -> None:
        """Register a request as unfinished. Raises FullError where `max_requests` are unfinished already."""
        limit = self._config.max_requests
        with self._gate:
            is_open = self.is_open
            count = len(self.recipients)
            if count == 0:
                self._busy_since = time.monotonic()
            if is_open and count < limit:
                self.recipients[collected.request_id] = Recipient(collected, deliver)
                return
        deliver(Output(collected.request_id, ended=True))  # so that dropping the reader cancels nothing
        if not is_open:
            raise self.closed()
        raise FullError(
            f"the engine has {count} unfinished requests, and max_requests allows {limit}: "
            "ask again when some have ended, or raise max_requests"
        )

    def put(self, order: Order) -> None:
        """Put an order into the thread's inbox. Raises RuntimeError where the engine is closed."""
        with self._gate:
            if not self.is_open:
                raise self.closed()
            self.is_open = not isinstance(order, Close)
            self.inbox.put(order)

    def leave(self, request_id: str) -> None:
        """Cancel a request without a reader. Takes no lock, because a reader may be dropped while a lock is held."""
        self.inbox.put(Leave(request_id))

    def abort(self, request_id: str) -> bool:
        """Cancel a request and deliver its end. Returns whether it was unfinished."""
        recipient = self.recipients.pop(request_id, None)
        if recipient is None:
            return False
        recipient.deliver(Output(request_id, ended=True))
        self.leave(request_id)
        return True

    def deliver(self, output: Output) -> None:
        """Give an output to its request's recipient, if the request is unfinished."""
        if output.ended:
            recipient = self.recipients.pop(output.request_id, None)
        else:
            recipient = self.recipients.get(output.request_id)
        if recipient is not None:
            recipient.hear(output)
            self._note_end(recipient.collected, output)

    def _note_end(self, collected: Collected, output: Output) -> None:
        """Take in the time of a request that ended with its answer."""
        if output.ended and output.delta is not None and collected.admitted is not None:
            self.service.note(time.monotonic() - collected.admitted)

    def forecast(self) -> Forecast:
        """Predict when a new request would begin, from the mean time of the requests that have ended.

        Any thread may call it; it takes the same time whatever the number of requests. Before any request has ended,
        the time since the engine is busy takes the place of the mean.
        """
        scheduler = self.loop.scheduler
        unfinished = len(self.recipients)
        arriving = max(0, unfinished - len(scheduler.sequences.requests))  # still tokenized, or in the inbox
        waiting = min(unfinished, len(scheduler.waiting) + arriving)
        running = unfinished - waiting
        has_slot = len(scheduler.running) < scheduler.config.max_sequences and unfinished < self._config.max_requests
        if not unfinished or (not waiting and has_slot):
            return Forecast(running, waiting, 0.0)
        mean = self.service.mean or time.monotonic() - self._busy_since
        return Forecast(running, waiting, mean * (waiting + 1) / max(1, running))

    def closed(self) -> RuntimeError:
        """Return the error for a call after the engine was closed."""
        after = f" after {self._fault[0]!r}" if self._fault else ""
        return self._because(f"the engine is closed{after}")

    def _because(self, words: str) -> RuntimeError:
        error = RuntimeError(words)
        error.__cause__ = self._fault[0] if self._fault else None
        return error

    def _work(self) -> None:
        """Run the engine's thread: load, then alternate between orders, steps and batches of embeddings."""
        try:
            self.llm: LLM = self._make()
            llm = self.llm
            parts = llm.model, llm.tokenizer, self._config, self._emit
            self.loop = Loop(*parts, engine=llm.engine_config, drafting=llm.drafting)
            self._ready.set()
            while self._read_inbox(self.loop):
                for output in self.loop.step():
                    self.deliver(output)
                self._embed_batch()
            self.loop.close()
        except BaseException as error:
            self._fault.append(error)
        finally:
            self._end()
            self._ready.set()
            mx.clear_streams()  # in case a debugger keeps the thread's locals, on which `clear_streams_at_end` relies

    def _read_inbox(self, loop: Loop) -> bool:
        """Carry out the orders in the inbox, waiting for one only while idle. Returns False after `Close`."""
        while True:
            is_idle = not loop.has_work and not self._embedding
            self.turn_since = None if is_idle else time.monotonic()
            try:
                order = self.inbox.get(block=is_idle)
            except queue.Empty:
                return True
            self.turn_since = time.monotonic()
            if isinstance(order, Close):
                return False
            if isinstance(order, Add):
                self._add(loop, order.request)
            elif isinstance(order, Embed):
                self._embedding.append(order)
            else:
                self.recipients.pop(order.request_id, None)
                loop.cancel(order.request_id)

    def _add(self, loop: Loop, request: Request) -> None:
        """Add a request to the loop, unless it was cancelled before. An error ends only this request."""
        if request.id not in self.recipients:
            return
        try:
            loop.add(request)
        except Exception as error:
            loop.cancel(request.id)
            self.deliver(Output(request.id, error=error, ended=True))

    def _embed_batch(self) -> None:
        """Compute one batch of the first embedding in the queue, and move the embedding to the queue's end."""
        if not self._embedding:
            return
        order = self._embedding.popleft()
        if order.result.cancelled():
            return
        try:
            part = next(order.batches, None)
            if part is not None:
                order.parts.append(part)
                self._embedding.append(order)
                return
            vectors = join_vectors(order.parts, order.width)
        except Exception as error:
            _answer(order.result.set_exception, error)
        else:
            _answer(order.result.set_result, vectors)

    def _end(self) -> None:
        """Answer all open requests and embeddings, because their callers would wait for ever."""
        with self._gate:
            self.is_open = False
        while not self.inbox.empty():
            order = self.inbox.get()
            if isinstance(order, Embed):
                self._embedding.append(order)
        for order in self._embedding:
            _answer(order.result.set_exception, self._because(ENDED_EARLY))
        self._embedding.clear()
        for name in list(self.recipients):
            self.deliver(Output(name, error=self._because(ENDED_EARLY), ended=True))


def _answer(settle: Callable[[Any], None], value: Any) -> None:
    with contextlib.suppress(InvalidStateError):  # the caller has cancelled the future
        settle(value)
