"""Serve many callers, in any thread or event loop, with one model that runs in a thread of its own."""

import asyncio
import atexit
import contextlib
import itertools
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from tiny_llm.config import EngineConfig, SamplingParams
from tiny_llm.config.fields import is_finite, require, shown
from tiny_llm.config.serving import ServingConfig
from tiny_llm.engine.answers import AsyncStream, Collected, Completion, Stream, completions_of
from tiny_llm.engine.embed import Pooling, Vectors, check_pooling, embed_batches, encode_texts
from tiny_llm.engine.events import Event
from tiny_llm.engine.llm import load
from tiny_llm.engine.loop import Output
from tiny_llm.engine.offline import ProgressLine
from tiny_llm.engine.prompt import Prompt, Terms, many
from tiny_llm.engine.rank import rank_batches, rank_input, scores_of
from tiny_llm.engine.request import check_tenant
from tiny_llm.engine.worker import Add, Close, Deliver, Embed, Forecast, Worker
from tiny_llm.engine.worker import FullError as FullError

Reader = TypeVar("Reader", Stream, AsyncStream)
PROMPT_THREADS = 2  # for the prompts of event loops, which must not block on the tokenizer


class Engine:
    """A model for many requests at once. Use it in a `with` block, or `close` it; at exit it closes itself.

    `emit` is called in the engine's thread with each event of the scheduler. Raises the errors of `load`.

    Methods that take a prompt also take `options`: those of `LLM.stream`, and the request's `priority` (-10 to 10),
    `tenant`, `salt` (requests with different salts share no cached prefix) and `deadline`, the seconds from now within
    which its answer should begin. A value of the wrong kind and a request that can never run raise ValueError. A call
    that would make more unfinished requests than `ServingConfig.max_requests` raises FullError and changes nothing.
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
        ok = model is None or isinstance(model, str | Path)
        require(ok, f"model: expected a path or a name, which the engine loads itself, found {shown(model)}")
        ok = serving is None or isinstance(serving, ServingConfig)
        require(ok, f"serving: expected ServingConfig, found {shown(serving)}")
        self._serving = serving or ServingConfig()
        self._worker = Worker(lambda: load(model, config=config), self._serving, emit)
        self.llm, self._loop = self._worker.llm, self._worker.loop
        blocks = self._loop.scheduler.blocks
        self._builder = replace(self.llm.builder, pool_tokens=blocks.num_blocks * blocks.block_size)
        self._ids, self._process = itertools.count(), os.getpid()
        self._prompt_threads = ThreadPoolExecutor(PROMPT_THREADS, thread_name_prefix="tiny-llm prompts")
        atexit.register(self.close)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> Stream:
        """Return a stream of the answer's pieces. Closing or dropping the stream early cancels the request."""
        terms = self._terms(params, options)
        stream = self._open(terms, Stream)
        self._send(stream.collected, prompt, terms)
        return stream

    def astream(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> AsyncStream:
        """Return a stream for an event loop, without blocking it: another thread tokenizes the prompt.

        The call raises ValueError for `params` and options of the wrong kind, and FullError. The first read of the
        stream raises the errors of the prompt, such as a prompt that is too long.
        """
        return self._astream(prompt, self._terms(params, options))

    def _astream(self, prompt: Prompt, terms: Terms, bounded: bool = True) -> AsyncStream:
        stream = self._open(terms, AsyncStream, bounded)
        try:
            self._prompt_threads.submit(self._send_later, stream.collected, prompt, terms)
        except RuntimeError:  # the engine was closed meanwhile
            raise self._worker.closed() from None
        return stream

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | None = None, progress: bool = False, **options: Any
    ) -> list[list[Completion]]:
        """Return the n answers to each prompt of a list. `progress` shows a line on stderr.

        At most `max_requests` prompts are unfinished at once; the next prompt is sent when an earlier one has ended.
        Raises the first error of a request, and FullError where the requests of other callers leave no room; the other
        requests are then cancelled.
        """
        if not many(prompts) and list(prompts) != []:
            raise ValueError(f"prompts: expected a list of prompts, found one: {shown(prompts)}")
        terms = self._terms(params, options)
        outputs: queue.SimpleQueue[Output] = queue.SimpleQueue()
        waiting = deque(prompts)
        found: dict[str, Collected] = {}
        line = ProgressLine(len(prompts)) if progress else None
        done = tokens = 0
        try:
            self._hand_in(waiting, terms, outputs.put, found)
            while done < len(found):
                output = outputs.get()
                collected = found.get(output.request_id)
                if collected is None or collected.done:
                    continue  # the request was refused, or aborted while the output was delivered
                tokens += collected.take(output) is not None
                if output.ended:
                    collected.finish_reason = collected.finish_reason or "cancelled"
                    done += 1
                    self._hand_in(waiting, terms, outputs.put, found)
                if line:
                    line.show(done, tokens)
        finally:
            for collected in found.values():
                self.abort(collected.request_id)
            if line:
                line.end()
        return [completions_of(collected) for collected in found.values()]

    def _hand_in(self, waiting: deque[Prompt], terms: Terms, deliver: Deliver, found: dict[str, Collected]) -> None:
        """Send the requests of waiting prompts while the engine has room, and add each to `found`."""
        while waiting:
            collected = self._new(terms)
            try:
                self._worker.enter(collected, deliver)
            except FullError:
                if all(one.done for one in found.values()):
                    raise
                return
            try:
                self._send(collected, waiting.popleft(), terms)
            except ValueError as error:
                raise ValueError(f"prompts[{len(found)}]: {error}") from error
            found[collected.request_id] = collected

    async def agenerate(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> list[Completion]:
        """Return the n answers to a prompt, without blocking the event loop."""
        stream = self._astream(prompt, self._terms(params, options), bounded=False)
        try:
            async for _ in stream:
                pass
        finally:
            await stream.aclose()
        return completions_of(stream.collected)

    def embed(self, texts: Sequence[str], pooling: Pooling = "last", *, normalize: bool = False) -> Vectors:
        """Return a vector for each text, as `LLM.embed` does. Between two steps the engine computes one batch of texts.

        The call blocks until the result is there; from an event loop run it by `asyncio.to_thread`.
        """
        return self._wait(self._embed_order(texts, pooling, normalize))

    async def aembed(self, texts: Sequence[str], pooling: Pooling = "last", *, normalize: bool = False) -> Vectors:
        """Return a vector for each text without blocking the event loop. Cancelling ends the work at its next batch."""
        order = await asyncio.to_thread(self._embed_order, texts, pooling, normalize)
        return await self._await(order)

    def rank(self, query: str, documents: Sequence[str], instruction: str | None = None) -> list[float]:
        """Return a score for each document, as `LLM.rank` does. The engine computes it as it does `embed`."""
        return scores_of([self._wait(self._rank_order(query, documents, instruction))])

    async def arank(self, query: str, documents: Sequence[str], instruction: str | None = None) -> list[float]:
        """Return a score for each document without blocking the event loop, as `aembed` does."""
        order = await asyncio.to_thread(self._rank_order, query, documents, instruction)
        return scores_of([await self._await(order)])

    def _embed_order(self, texts: Sequence[str], pooling: Pooling, normalize: bool) -> Embed:
        self._check_caller()
        check_pooling(pooling, normalize)
        rows = encode_texts(self.llm.tokenizer, texts, self._loop.max_context)
        budget = self._loop.scheduler.configured.token_budget
        batches = embed_batches(self.llm.model, rows, pooling, normalize=normalize, token_budget=budget)
        return Embed(batches, self.llm.config.hidden_size)

    def _rank_order(self, query: str, documents: Sequence[str], instruction: str | None) -> Embed:
        self._check_caller()
        given = rank_input(self.llm.tokenizer, query, documents, instruction, self._loop.max_context)
        budget = self._loop.scheduler.configured.token_budget
        return Embed(rank_batches(self.llm.model, given, budget), 1)

    def _wait(self, order: Embed) -> Vectors:
        """Let the engine's thread carry out an order between its steps, and wait for the result."""
        self._worker.put(order)
        try:
            return order.result.result()
        finally:
            order.result.cancel()  # takes effect only where the caller was interrupted

    async def _await(self, order: Embed) -> Vectors:
        """Wait for the result of an order in an event loop. The order is cancelled where the caller is."""
        self._worker.put(order)
        vectors: Vectors = await asyncio.wrap_future(order.result)
        return vectors

    def forecast(self) -> Forecast:
        """Return how many requests run and wait, and the seconds until a new request would begin. Any thread may call.

        The seconds come from the mean time of the requests so far: a server's `Retry-After`.
        """
        return self._worker.forecast()

    def abort(self, request_id: str) -> bool:
        """Cancel a request, from any thread. Returns whether it was unfinished.

        The request's reader gets the pieces delivered before, and then the end. The finish reason of the request, and
        of each of its unfinished answers, is "cancelled".
        """
        return self._worker.abort(request_id)

    @property
    def stalled_seconds(self) -> float:
        """For how long the step under way has run; 0 while the engine is idle. Any thread may ask."""
        since = self._worker.turn_since
        return 0.0 if since is None else max(0.0, time.monotonic() - since)

    def set_weight(self, tenant: str, weight: float) -> None:
        """Set a tenant's share of the tokens beside other tenants' from now on. Any thread may call it."""
        ok = is_finite(weight) and weight > 0
        require(ok, f"weight: expected a number above 0, found {shown(weight)}")
        self._loop.scheduler.waiting.weights[check_tenant(tenant)] = weight

    @property
    def is_open(self) -> bool:
        """Whether the engine takes requests: it was not closed, and its thread has not failed."""
        return self._worker.is_open

    def close(self) -> None:
        """End the engine's threads. Unfinished requests get a RuntimeError. A second call does nothing."""
        if os.getpid() != self._process:
            return  # this is a forked process, in which the threads do not run
        with contextlib.suppress(RuntimeError):  # raised where the engine is closed already
            self._worker.put(Close())
        self._prompt_threads.shutdown(wait=False, cancel_futures=True)
        if threading.current_thread() is self._worker.thread:
            return  # `emit` closes the engine that calls it: the thread is waited for at exit
        self._worker.thread.join()
        atexit.unregister(self.close)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _terms(self, params: SamplingParams | None, options: Mapping[str, Any]) -> Terms:
        """Return the checked settings of a call."""
        self._check_caller()
        return self._builder.terms(params, options, time.monotonic())

    def _check_caller(self) -> None:
        """Raise RuntimeError where the engine is closed, or the caller is its own thread or another process."""
        if not self._worker.is_open:
            raise self._worker.closed()
        if threading.current_thread() is self._worker.thread:
            raise RuntimeError("emit can't ask the engine that calls it: the engine's thread would wait for itself")
        if os.getpid() != self._process:
            raise RuntimeError("the engine belongs to another process: make one in the process that was forked")

    def _open(self, terms: Terms, reader: type[Reader], bounded: bool = True) -> Reader:
        """Register a new request as unfinished, and return its reader.

        A search gives all its tokens at its end, which is no fault of the reader; nor is a reader of the engine's own.
        """
        most = terms.params.n * terms.params.max_tokens
        searches = terms.params.beam_width > 1
        limit = self._serving.max_unread if bounded and not searches else most
        stream = reader(self._new(terms), self._worker.leave, limit)
        self._worker.enter(stream.collected, stream.deliver)
        return stream

    def _new(self, terms: Terms) -> Collected:
        params = terms.params
        return Collected(f"r{next(self._ids)}", params.n, begin=terms.arrival, searches=params.beam_width > 1)

    def _send(self, collected: Collected, prompt: Prompt, terms: Terms) -> None:
        """Hand a request to the engine's thread. Raises ValueError for a prompt that can never run."""
        try:
            order = self._order(collected, prompt, terms)
            self._worker.put(order)
        except BaseException:
            self.abort(collected.request_id)
            raise

    def _send_later(self, collected: Collected, prompt: Prompt, terms: Terms) -> None:
        """Send a request from a thread of the pool. Errors are delivered to the reader."""
        try:
            order = self._order(collected, prompt, terms)
            self._worker.put(order)
        except Exception as error:
            self._worker.deliver(Output(collected.request_id, error=error, ended=True))

    def _order(self, collected: Collected, prompt: Prompt, terms: Terms) -> Add:
        request = self._builder.served(collected.request_id, prompt, terms)
        self._loop.check(request)
        collected.prompt_tokens = len(request.tokens)
        collected.in_thought = request.in_thought
        return Add(request)
