"""The serving engine: one thread loads the model and runs the loop; requests come from any thread or event loop.

MLX's arrays belong to the thread that built them, so what leaves the engine's thread is text and plain numbers.
"""

import atexit
import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx

from tiny_llm.config import EngineConfig, SamplingParams
from tiny_llm.config.fields import require, shown
from tiny_llm.config.serving import ServingConfig
from tiny_llm.engine.answers import AsyncStream, Collected, Completion, Stream, completions_of
from tiny_llm.engine.events import Event
from tiny_llm.engine.llm import LLM, load
from tiny_llm.engine.loop import Loop, Output
from tiny_llm.engine.offline import ProgressLine
from tiny_llm.engine.prompt import Prompt, many
from tiny_llm.engine.request import Request, check_priority, check_seconds, check_tenant

Deliver = Callable[[Output], None]
Reader = TypeVar("Reader", Stream, AsyncStream)


@dataclass(frozen=True)
class Add:
    """Order to the engine's thread: run a request and deliver what it gives."""

    request: Request
    deliver: Deliver


@dataclass(frozen=True)
class Leave:
    """Order to the engine's thread: nobody reads this request any more."""

    request_id: str


@dataclass(frozen=True)
class Close:
    """Order to the engine's thread: end."""


class Engine:
    """A model for many requests at once. Use it in a `with` block, or `close` it; at exit it closes itself.

    `emit` is called in the engine's thread with each event of the scheduler. Raises what `load` raises.

    Methods that take a prompt also take `options`: those of `LLM.stream`, and of the request `priority` (-10 to 10),
    `tenant`, and `deadline`, the seconds from now in which its answer should begin. A value of the wrong kind, and what
    can never run, raise ValueError in the call, with the numbers.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        config: EngineConfig | None = None,
        serving: ServingConfig | None = None,
        emit: Callable[[Event], None] | None = None,
    ):
        require(emit is None or callable(emit), f"emit: expected a function of an event, found {shown(emit)}")
        ok = serving is None or isinstance(serving, ServingConfig)
        require(ok, f"serving: expected ServingConfig, found {shown(serving)}")
        self._make: Callable[[], LLM] = lambda: load(model, config=config)
        self._serving, self._emit = serving, emit
        self._inbox: queue.SimpleQueue[Add | Leave | Close] = queue.SimpleQueue()
        self._gate = threading.RLock()  # an order is put while the gate is open, or not at all
        self._is_open = True
        self._listeners: dict[str, Deliver] = {}
        self._ids, self._process = itertools.count(), os.getpid()
        self._ready = threading.Event()
        self._fault: list[BaseException] = []
        self._thread = threading.Thread(target=self._work, name="tiny-llm engine", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._fault:
            self._thread.join()
            raise self._fault[0]
        atexit.register(self.close)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> Stream:
        """The answer as it comes; closing or dropping the stream early cancels the request."""
        return self._send(Stream, prompt, params, options)

    def astream(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> AsyncStream:
        """`stream` for an event loop, which it never blocks while it waits."""
        return self._send(AsyncStream, prompt, params, options)

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | None = None, progress: bool = False, **options: Any
    ) -> list[list[Completion]]:
        """The n answers to each prompt, one call for all. With `progress` a line on stderr says how far it is.

        Raises the first error that a request met; the others are then cancelled.
        """
        if not many(prompts) and prompts != []:
            raise ValueError(f"prompts: expected a list of prompts, found one: {shown(prompts)}")
        streams: list[Stream] = []
        bar = ProgressLine(len(prompts)) if progress else None
        try:
            streams.extend(self.stream(prompt, params, **options) for prompt in prompts)
            for done, stream in enumerate(streams, 1):
                for _ in stream:
                    if bar:
                        bar.show(done - stream.collected.done, sum(s.collected.num_tokens for s in streams[:done]))
        finally:
            for stream in streams:
                stream.close()
            if bar:
                bar.end()
        return [completions_of(stream.collected) for stream in streams]

    async def agenerate(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> list[Completion]:
        """The n answers to a prompt, for an event loop."""
        stream = self.astream(prompt, params, **options)
        try:
            async for _ in stream:
                pass
        finally:
            await stream.aclose()
        return completions_of(stream.collected)

    def close(self) -> None:
        """End the engine's thread; a request that is under way gets a RuntimeError. A second call does nothing."""
        if os.getpid() != self._process:
            return  # a forked copy, in which the thread does not run
        self._put(Close())
        if threading.current_thread() is not self._thread:  # `emit` may close the engine that calls it
            self._thread.join()
        atexit.unregister(self.close)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(
        self, reader: type[Reader], prompt: Prompt, params: SamplingParams | None, options: dict[str, Any]
    ) -> Reader:
        """Hand a request to the engine's thread; what gives its answer."""
        request = self._request(prompt, params, options)
        stream = reader(Collected(request), self._leave)
        if not self._put(Add(request, stream.deliver)):
            raise self._closed()
        return stream

    def _request(self, prompt: Prompt, params: SamplingParams | None, options: Mapping[str, Any]) -> Request:
        """What the caller asks, checked. Raises ValueError for what can never run."""
        if not self._is_open:
            raise self._closed()
        if threading.current_thread() is self._thread:
            raise RuntimeError("emit can't ask the engine that calls it: the engine's thread would wait for itself")
        if os.getpid() != self._process:
            raise RuntimeError("the engine belongs to another process: make one in the process that was forked")
        now = time.monotonic()
        rest = dict(options)
        priority, tenant = rest.pop("priority", Request.priority), rest.pop("tenant", Request.tenant)
        deadline, template = rest.pop("deadline", None), rest.pop("template", None)
        priority, tenant = check_priority(priority), check_tenant(tenant)
        if deadline is not None:
            deadline = now + check_seconds("deadline", deadline)
        settings = self._builder.resolve(params, rest)
        request = self._builder.request(f"r{next(self._ids)}", prompt, settings, template)
        request = replace(request, arrival=now, priority=priority, tenant=tenant, deadline=deadline)
        self._loop.check(request)
        return request

    def _put(self, order: Add | Leave | Close) -> bool:
        """Give an order to the engine's thread; False where that has ended."""
        with self._gate:
            if self._is_open:
                self._inbox.put(order)
            self._is_open = self._is_open and not isinstance(order, Close)
            return self._is_open

    def _closed(self) -> RuntimeError:
        error = RuntimeError(f"the engine is closed{f' after {self._fault[0]!r}' if self._fault else ''}")
        error.__cause__ = self._fault[0] if self._fault else None
        return error

    def _leave(self, collected: Collected) -> None:
        """Nobody reads this request any more."""
        if not collected.done:
            self._put(Leave(collected.request.id))

    def _work(self) -> None:
        """The engine's thread."""
        try:
            self.llm: LLM = self._make()
            self._builder = self.llm.builder
            config = self.llm.serving_config(self._serving)
            self._loop = Loop(self.llm.model, self.llm.tokenizer, config, self._emit)
            self._ready.set()
            while self._read_inbox(self._loop):
                for output in self._loop.step():
                    self._deliver(output)
            self._loop.close()
        except BaseException as error:
            self._fault.append(error)
        finally:
            self._end()
            self._ready.set()
            mx.clear_streams()  # also where a debugger keeps what `clear_streams_at_end` waits for

    def _read_inbox(self, loop: Loop) -> bool:
        """Do what has been asked, waiting only where there is nothing else to do; False when it is time to end."""
        while True:
            try:
                order = self._inbox.get(block=not loop.has_work)
            except queue.Empty:
                return True
            if isinstance(order, Close):
                return False
            if isinstance(order, Add):
                self._add(loop, order)
            else:
                self._listeners.pop(order.request_id, None)
                loop.cancel(order.request_id)

    def _add(self, loop: Loop, order: Add) -> None:
        """Whatever goes wrong with a request that comes goes wrong for that request alone."""
        self._listeners[order.request.id] = order.deliver
        try:
            loop.add(order.request)
        except Exception as error:
            loop.cancel(order.request.id)
            self._deliver(Output(order.request.id, error=error, ended=True))

    def _deliver(self, output: Output) -> None:
        listener = self._listeners.get(output.request_id)
        if output.ended:
            self._listeners.pop(output.request_id, None)
        if listener is not None:
            listener(output)

    def _end(self) -> None:
        """Answer all that is still asked: nobody may wait for a thread that has ended."""
        with self._gate:
            self._is_open = False
        while not self._inbox.empty():
            order = self._inbox.get()
            if isinstance(order, Add):
                self._listeners[order.request.id] = order.deliver
        for name in list(self._listeners):
            error = RuntimeError("the engine was closed before the answer was complete")
            error.__cause__ = self._fault[0] if self._fault else None
            self._deliver(Output(name, error=error, ended=True))
