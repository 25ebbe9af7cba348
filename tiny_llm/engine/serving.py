"""The serving engine: one thread loads the model and runs the loop; requests come from any thread or event loop.

MLX's arrays belong to the thread that built them, so what leaves the engine's thread is text and plain numbers.
"""

import asyncio
import contextlib
import itertools
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny_llm.config import EngineConfig, SamplingParams
from tiny_llm.config.serving import ServingConfig
from tiny_llm.decode.generate import Delta
from tiny_llm.engine.batch import Collected, Progress
from tiny_llm.engine.completion import Completion, completions_of
from tiny_llm.engine.events import Event
from tiny_llm.engine.llm import LLM, Prompt, load, many
from tiny_llm.engine.loop import Loop, Output

Deliver = Callable[[Output], None]
OF_REQUEST = ("priority", "tenant", "deadline")


class Engine:
    """A model for many requests at once. Use it in a `with` block, or `close` it.

    `emit` is called in the engine's thread with each event of the scheduler. Raises what `load` raises.

    Methods that take a prompt also take `options`: those of `LLM.stream`, and of the request `priority` (-10 to 10),
    `tenant`, and `deadline`, the seconds from now in which its answer should begin. What can never run raises
    ValueError, with the numbers.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        config: EngineConfig | None = None,
        serving: ServingConfig | None = None,
        emit: Callable[[Event], None] | None = None,
    ):
        self._make: Callable[[], LLM] = lambda: load(model, config=config)
        self._serving, self._emit = serving, emit
        self._inbox: queue.SimpleQueue[Callable[[Loop], None] | None] = queue.SimpleQueue()
        self._listeners: dict[str, Deliver] = {}
        self._ids, self._closed = itertools.count(), False
        self._ready, self._fault = threading.Event(), list[BaseException]()
        self._thread = threading.Thread(target=self._work, name="tiny-llm engine", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._fault:
            raise self._fault[0]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> Iterator[Delta]:
        """The answer as it comes; leaving it early cancels the request."""
        box: queue.SimpleQueue[Output] = queue.SimpleQueue()
        return self._pieces(self._send(prompt, params, options, box.put), box)

    def _pieces(self, collected: Collected, box: "queue.SimpleQueue[Output]") -> Iterator[Delta]:
        try:
            while not collected.done:
                if (delta := taken(collected, box.get())) is not None:
                    yield delta
        finally:
            self._leave(collected)

    async def astream(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Any
    ) -> AsyncIterator[Delta]:
        """`stream` for an event loop, which it never blocks."""
        here, box = asyncio.get_running_loop(), asyncio.Queue[Output]()
        collected = self._send(prompt, params, options, lambda output: _post(here, box, output))
        try:
            while not collected.done:
                if (delta := taken(collected, await box.get())) is not None:
                    yield delta
        finally:
            self._leave(collected)

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | None = None, progress: bool = False, **options: Any
    ) -> list[list[Completion]]:
        """The n answers to each prompt, one call for all. With `progress` a line on stderr says how far it is.

        Raises the first error that a request met; the others are then cancelled.
        """
        if prompts and not many(prompts):
            raise ValueError(f"prompts: expected a list of prompts, found one: {prompts!s:.80}")
        boxes: list[queue.SimpleQueue[Output]] = [queue.SimpleQueue() for _ in prompts]
        jobs: list[Collected] = []
        bar = Progress(len(prompts)) if progress else None
        try:
            for prompt, box in zip(prompts, boxes, strict=True):
                jobs.append(self._send(prompt, params, options, box.put))
            for done, (job, box) in enumerate(zip(jobs, boxes, strict=True), 1):
                for _ in self._pieces(job, box):
                    if bar:
                        bar.show(done - job.done, sum(other.num_tokens for other in jobs[:done]))
        finally:
            for job in jobs:
                self._leave(job)
            if bar:
                bar.end()
        return [completions_of(job) for job in jobs]

    async def agenerate(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> list[Completion]:
        """The n answers to a prompt, for an event loop."""
        here, box = asyncio.get_running_loop(), asyncio.Queue[Output]()
        collected = self._send(prompt, params, options, lambda output: _post(here, box, output))
        try:
            while not collected.done:
                taken(collected, await box.get())
        finally:
            self._leave(collected)
        return completions_of(collected)

    def close(self) -> None:
        """Stop the thread; whoever still waits gets a RuntimeError."""
        if not self._closed:
            self._closed = True
            self._inbox.put(None)
            self._thread.join()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(
        self, prompt: Prompt, params: SamplingParams | None, options: dict[str, Any], deliver: Deliver
    ) -> Collected:
        """Hand a request to the engine's thread."""
        if self._closed or self._fault:
            raise RuntimeError(f"the engine is closed{f' after {self._fault[0]!r}' if self._fault else ''}")
        mine = {name: options[name] for name in OF_REQUEST if name in options}
        rest = {name: value for name, value in options.items() if name not in (*OF_REQUEST, "template")}
        now = time.monotonic()
        if mine.get("deadline") is not None:
            mine["deadline"] += now
        settings = self.llm.resolve(params, rest)
        request = self.llm.request(f"r{next(self._ids)}", prompt, settings, options.get("template"))
        request = replace(request, arrival=now, **mine)

        def add(loop: Loop) -> None:
            self._listeners[request.id] = deliver
            try:
                loop.add(request)
            except ValueError as error:
                self._deliver(Output(request.id, error=error))

        self._inbox.put(add)
        return Collected(request)

    def _leave(self, collected: Collected) -> None:
        """Nobody listens to this request any more."""
        name = collected.request.id

        def forget(loop: Loop) -> None:
            self._listeners.pop(name, None)
            loop.cancel(name)

        if not collected.done:
            self._inbox.put(forget)

    def _deliver(self, output: Output) -> None:
        if (listener := self._listeners.get(output.request_id)) is not None:
            if output.error is not None:
                del self._listeners[output.request_id]
            listener(output)

    def _work(self) -> None:
        """The engine's thread."""
        try:
            self.llm: LLM = self._make()
            loop = Loop(self.llm.model, self.llm.tokenizer, self.llm.serving_config(self._serving), self._emit)
            self._ready.set()
            while self._read_inbox(loop):
                for output in loop.step():
                    self._deliver(output)
            loop.close()
        except BaseException as error:
            self._fault.append(error)
        finally:
            self._ready.set()
            cause = self._fault[0] if self._fault else None
            for name in list(self._listeners):
                closed = RuntimeError("the engine was closed before the answer was complete")
                closed.__cause__ = cause
                self._deliver(Output(name, error=closed))

    def _read_inbox(self, loop: Loop) -> bool:
        """Do what has been asked, waiting only where there is nothing else to do; False when it is time to end."""
        while True:
            try:
                order = self._inbox.get(block=not loop.has_work)
            except queue.Empty:
                return True
            if order is None:
                return False
            order(loop)


def taken(collected: Collected, output: Output) -> Delta | None:
    """Note an output; its piece of the answer. Raises what the request met."""
    collected.take(output)
    if output.error is not None:
        raise output.error
    return output.delta


def _post(here: asyncio.AbstractEventLoop, box: "asyncio.Queue[Output]", output: Output) -> None:
    with contextlib.suppress(RuntimeError):  # the event loop has ended: nobody is left to hear it
        here.call_soon_threadsafe(box.put_nowait, output)
