"""`load` a model and ask it: text, chat messages or token ids in, text out, whole or as a stream."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from tiny_llm.cache import disk
from tiny_llm.cache.choose import new_cache, slot_bytes, slots_at_most
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.cache.whole import WholeCaches
from tiny_llm.config import EngineConfig, ModelConfig, SamplingParams, SchedulerConfig
from tiny_llm.config.fields import require, shown
from tiny_llm.config.serving import ServingConfig
from tiny_llm.decode.text import Delta
from tiny_llm.engine.answers import Collected, completions_of, join, stats_of
from tiny_llm.engine.answers import Completion as Completion
from tiny_llm.engine.answers import Stats as Stats
from tiny_llm.engine.embed import Pooling, Vectors, embed
from tiny_llm.engine.lesson import Lesson
from tiny_llm.engine.loading import dtype_of, load_model, load_tokenizer
from tiny_llm.engine.loop import Loop, Output
from tiny_llm.engine.offline import kv_bytes_for, run_all
from tiny_llm.engine.prompt import Prompt, RequestBuilder, encode_prompt, many
from tiny_llm.engine.request import Request
from tiny_llm.engine.store import whole_store
from tiny_llm.engine.threads import clear_streams_at_end
from tiny_llm.model import hub, loader
from tiny_llm.model.fingerprint import fingerprint
from tiny_llm.model.memory import available_bytes
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.model.tokenizer import Tokenizer

MOST_ANSWERS = 128  # of a single prompt: SamplingParams allows no more
POCKET = Path(__file__).parent.parent / "pocket" / "weights" / "target"


def load(model: str | Path | None = None, *, config: EngineConfig | None = None, lesson: bool = False) -> "LLM":
    """Load a model directory, a hub name or an alias such as "qwen3-0.6b"; without one, the model that ships inside.

    `lesson`: answer single prompts by the plain loop of `decode.generate`, see `LLM`.

    Raises ValueError where there is no such model, its files are broken or memory will not do.
    """
    require(config is None or isinstance(config, EngineConfig), f"config: expected EngineConfig, found {shown(config)}")
    clear_streams_at_end()
    config = config or EngineConfig()
    if model is None and not (POCKET / "config.json").exists():
        raise ValueError(
            "no model named, and none ships with this version: name a model directory, a hub name or an alias, "
            "such as --model qwen3-0.6b (`tiny-llm models list` shows them)"
        )
    path = POCKET if model is None else hub.resolve(str(model))
    shape = loader.load_config(path)
    context = shape.context(config.max_context)
    dtype = dtype_of(config)
    cache = partial(slot_bytes, shape, config), slots_at_most(config)
    loader.check_memory(path, shape, dtype, context if config.max_context else min(context, 4096), cache=cache)
    qwen = load_model(path, shape, config, dtype)
    defaults = loader.load_generation_defaults(path, context)
    tokenizer = load_tokenizer(path, shape)
    return LLM(qwen, tokenizer, path=path, config=config, defaults=defaults, lesson=lesson)


class OvertakenError(RuntimeError):
    """A stream goes on although a later one has begun, or another thread computes."""


class LLM:
    """A loaded model with its tokenizer, for one caller at a time: a thread that asks while another one's step is
    computed gets a RuntimeError, and so does a stream when a later one has begun.

    The KV cache of the last request is kept: the next one computes only what differs from it, so that a chat does not
    read its history again. `defaults` are the sampling settings of the model's generation_config.json. `lesson`:
    answer single prompts by the loop of `decode.generate` instead of the engine's, as far as it goes.
    """

    def __init__(
        self,
        model: Qwen3,
        tokenizer: Tokenizer,
        *,
        path: Path,
        config: EngineConfig,
        defaults: Mapping[str, Any] | None = None,
        lesson: bool = False,
    ):
        self.model, self.tokenizer, self.path, self.engine_config = model, tokenizer, path, config
        self.name = "pocket" if path == POCKET else path.name
        self.defaults = dict(defaults or {})
        self.max_context = model.config.context(config.max_context)
        self.builder = RequestBuilder(tokenizer, self.defaults, self.max_context, model.config.vocab_size)
        self._collected: Collected | None = None  # of the request that began last
        self._lesson = Lesson(model, tokenizer, config) if lesson else None
        self._loop: Loop | None = None  # for single prompts
        self._store: WholeCaches | None = None  # of that loop
        self._open: str | None = None  # the request of the stream that began last
        self._ids = count()
        self._turn = 0  # counts the streams that have begun
        self._owner = threading.current_thread()  # the thread in which the loop was made
        self._work = threading.Lock()

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def last_stats(self) -> Stats | None:
        """The figures of the last request of a single prompt, from its first token on."""
        return None if self._collected is None else stats_of(self._collected)

    def encode(self, prompt: Prompt, template: Mapping[str, Any] | None = None) -> list[int]:
        """Token ids of a raw text, of chat messages under the model's template, or of ids as they are.

        A raw text gets what the tokenizer adds to texts, such as a beginning-of-text token; a rendered one does not.
        `template` holds what `Tokenizer.render` takes beside messages: tools and settings such as enable_thinking.
        """
        return encode_prompt(self.tokenizer, prompt, template).tokens

    def embed(self, texts: Sequence[str], pooling: Pooling = "last", *, normalize: bool = False) -> Vectors:
        """Return a vector for each text, (N, hidden): the final hidden state of its last token, or the mean of all.

        Raises ValueError naming the text that is none, is empty or has more tokens than the context.
        """
        clear_streams_at_end()
        with self._working():
            return embed(
                self.model,
                self.tokenizer,
                texts,
                pooling,
                normalize=normalize,
                max_context=self.max_context,
                token_budget=self.engine_config.prefill_chunk,
            )

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        template: Mapping[str, Any] | None = None,
        progress: bool = False,
        **overrides: Any,
    ) -> Completion | list[Completion]:
        """The answer to a prompt; a list of them with n > 1 or beams, and for a list of prompts, run side by side.

        Settings come from `params` or, without it, from `overrides` over the model's defaults. `progress` shows a line
        on stderr while a list of prompts runs.
        """
        if many(prompt):
            settings = self.builder.resolve(params, overrides)
            return self._all(cast(Sequence[Prompt], prompt), settings, template, progress)
        answers: dict[int, list[Delta]] = {}
        for delta in self.stream(cast(Prompt, prompt), params, template=template, **overrides):
            answers.setdefault(delta.index, []).append(delta)
        assert self.last_stats is not None
        completions = [join(deltas, self.last_stats) for deltas in answers.values()]
        return completions if len(completions) > 1 else completions[0]

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        template: Mapping[str, Any] | None = None,
        **overrides: Any,
    ) -> Iterator[Delta]:
        """The answer as it comes; `last_stats` holds its figures from the first token on.

        With n > 1 the answers come side by side, each with its own index. One stream at a time: when another begins,
        the next step of this one raises RuntimeError.
        """
        settings = self.builder.resolve(params, overrides)
        request = self.builder.request(f"r{next(self._ids)}", prompt, settings, template)
        if self._lesson is not None and self._lesson.can_answer(request):
            return self._collect(request, self._lesson.outputs(request))
        with self._working():
            self._single(request).check(request)
        return self._collect(request, self._run(request))

    def _collect(self, request: Request, outputs: Iterator[Output]) -> Iterator[Delta]:
        """A request's deltas, with `last_stats` kept up to date."""
        self._turn += 1
        turn = self._turn
        collected = Collected.of(request)
        mx.reset_peak_memory()
        for output in outputs:
            collected.note(output, time.monotonic())
            delta = collected.take(output)
            self._collected = collected
            if delta is not None:
                yield delta
            if turn != self._turn:
                raise OvertakenError("another stream of this LLM has begun: it gives one answer at a time")

    def _run(self, request: Request) -> Iterator[Output]:
        """What the loop gives a single request; closing it early cancels the request."""
        clear_streams_at_end()
        with self._working():
            loop = self._single(request)
            if self._open is not None:
                loop.cancel(self._open)  # of a stream that nobody will read on
            loop.add(request)
            self._open = request.id
        ended = False
        try:
            while not ended:
                with self._working():
                    outputs = loop.step()
                for output in outputs:
                    ended = output.ended
                    yield output
        except (GeneratorExit, OvertakenError):
            raise  # between two steps: the loop is whole
        except BaseException:
            self.forget()  # a step may have ended half-way
            raise
        finally:
            if not ended and self._loop is loop and self._open == request.id:
                loop.cancel(request.id)

    def _single(self, request: Request | None = None) -> Loop:
        """The loop for single prompts: a whole cache for each answer, the last one kept for the next request.

        It has slots for as many answers as `request` asks for, and takes its prompt in chunks of `prefill_chunk`.
        """
        if self._owner is not threading.current_thread():
            self.forget()  # its arrays belong to the other thread
        if self._loop is None:
            self._store = whole_store(self.model, self.engine_config, MOST_ANSWERS, self.max_context, kept=1)
            self._loop = Loop(self.model, self.tokenizer, engine=self.engine_config, store=self._store)
            self._owner = threading.current_thread()
        if request is not None:
            slots = request.num_sequences
            budget = max(self.engine_config.prefill_chunk, slots)
            self._loop.scheduler.set_limits(SchedulerConfig(token_budget=budget, max_sequences=slots))
        return self._loop

    def _all(
        self, prompts: Sequence[Prompt], params: SamplingParams, template: Mapping[str, Any] | None, progress: bool
    ) -> list[Completion]:
        """The answers to many prompts side by side, in a store for this call alone."""
        requests = [self.builder.request(str(i), prompt, params, template) for i, prompt in enumerate(prompts)]
        with self._working():
            collected = run_all(self._many(requests), requests, progress)
        return [completion for one in collected for completion in completions_of(one)]

    def _many(self, requests: Sequence[Request]) -> Loop:
        """A loop with memory and slots just enough for these."""
        config = ServingConfig()
        slots = max(config.scheduler.max_sequences, *(request.num_sequences for request in requests))
        config = replace(config, scheduler=replace(config.scheduler, max_sequences=slots))
        if self.engine_config.cache != "rotating":
            dtype = self.model.weights["norm"]["weight"].dtype
            each = config.block_size * slot_bytes(self.config, self.engine_config, dtype.size)
            need = kv_bytes_for(requests, config.scheduler, config.block_size, each)
            free = available_bytes()
            config = replace(config, kv_bytes=need if free is None else min(need, free // 2))
        return Loop(self.model, self.tokenizer, config, engine=self.engine_config)

    def forget(self) -> None:
        """Drop what is kept of earlier requests; an open stream does not go on."""
        self._loop = self._store = self._open = None

    def kept(self) -> tuple[ContiguousCache, list[int]]:
        """The cache that is kept of the last request, with the tokens in it. An open stream is cancelled."""
        loop = self._single()
        if self._open is not None:
            loop.cancel(self._open)
        kept, store = loop.scheduler.ledger.kept, self._store
        assert kept is not None and store is not None
        if not kept.texts:
            return store.make(), []
        block, tokens = next(reversed(kept.texts.items()))
        cache = store.caches[block]
        cache.trim(cache.offset - len(tokens))
        return cache, list(tokens)

    @cached_property
    def fingerprint(self) -> str:
        """What tells this model's saved caches from others'."""
        return fingerprint(self.config, self.model.weights)

    def save_cache(self, path: Path) -> None:
        """Write what is computed of the last request, so that another process need not. Raises OSError."""
        with self._working():
            cache, tokens = self.kept()
            disk.save(Path(path), cache, tokens, self.fingerprint)

    def load_cache(self, path: Path) -> int:
        """Go on from what `save_cache` wrote; returns its tokens. Raises ValueError where the file won't do."""
        with self._working():
            cache = new_cache(self.config, self.model.ops, self.engine_config)
            tokens = disk.load(Path(path), cache, self.fingerprint)
            self.forget()
            kept = self._single().scheduler.ledger.kept
            assert kept is not None and self._store is not None
            if tokens:
                self._store.put(kept.take_in(tokens), cache)
            self._turn += 1  # a stream that is open does not go on
        return cache.offset

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Keep other threads out while one computes. Raises RuntimeError where another does."""
        if not self._work.acquire(blocking=False):
            raise OvertakenError(
                "this LLM computes for another thread: it serves one caller at a time; "
                "tiny_llm.engine.serving.Engine serves many"
            )
        try:
            yield
        finally:
            self._work.release()
