"""Load a model and generate text with it, for one caller: a prompt in, an answer out, whole or as a stream."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from tiny_llm.cache import disk
from tiny_llm.cache.choose import new_cache, slot_bytes, slots_at_most
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.config import EngineConfig, ModelConfig, SamplingParams
from tiny_llm.config.fields import require, shown
from tiny_llm.decode.text import Delta
from tiny_llm.engine.answers import Collected, completions_of, stats_of
from tiny_llm.engine.answers import Completion as Completion
from tiny_llm.engine.answers import Stats as Stats
from tiny_llm.engine.embed import Pooling, Vectors, embed
from tiny_llm.engine.helper import Helper, load_helper
from tiny_llm.engine.lesson import Lesson
from tiny_llm.engine.loading import choose_operations, dtype_of, load_model, load_tokenizer
from tiny_llm.engine.loop import Loop, Output
from tiny_llm.engine.offline import loop_for, run_all
from tiny_llm.engine.prompt import Prompt, RequestBuilder, encode_prompt, many
from tiny_llm.engine.rank import rank
from tiny_llm.engine.request import Request
from tiny_llm.engine.speculation import Drafting, SpeculationCounts
from tiny_llm.engine.store import whole_store
from tiny_llm.engine.threads import clear_streams_at_end
from tiny_llm.model import hub, loader
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.model.source import open_source
from tiny_llm.model.tokenizer import Tokenizer

MOST_ANSWERS = 128  # of a single prompt: SamplingParams allows no more
POCKET = hub.SHIPPED["pocket"]


def load(model: str | Path | None = None, *, config: EngineConfig | None = None, lesson: bool = False) -> "LLM":
    """Load a model directory, a GGUF file, a hub name or an alias such as "qwen3-0.6b"; None loads the model inside.

    `lesson`: answer single prompts by the plain loop of `decode.generate`, see `LLM`. Raises ValueError for an unknown
    model, broken files, and a model that does not fit into memory.
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
    source = open_source(path)
    shape = loader.load_config(source)
    context = shape.context(config.max_context)
    dtype = dtype_of(config)
    cache = partial(slot_bytes, shape, config), slots_at_most(config)
    ops = choose_operations(config, dtype)
    expected = context if config.max_context else min(context, 4096)
    experts = config.expert_bytes
    loader.check_memory(source, shape, dtype, expected, cache=cache, native=ops.native, expert_bytes=experts)
    qwen = load_model(source, shape, ops, dtype, experts)
    defaults = loader.load_generation_defaults(source, context)
    tokenizer = load_tokenizer(source, shape)
    helper = load_helper(config, qwen, tokenizer, path)
    return LLM(qwen, tokenizer, path=path, config=config, defaults=defaults, lesson=lesson, helper=helper)


class OvertakenError(RuntimeError):
    """A stream was read after a later stream had begun, or while another thread computed."""


class LLM:
    """A loaded model with its tokenizer, for one caller at a time.

    A call in one thread raises RuntimeError while another thread computes a step. A stream raises RuntimeError after a
    later stream has begun. The KV cache of the last request is kept, so the next request computes only the tokens after
    the common prefix: a chat does not compute its history again. `defaults` are the sampling settings of the model's
    generation_config.json. `lesson`: answer single prompts by the loop of `decode.generate` instead of the engine's,
    where it supports the request's settings. `helper`: the weights that the drafter needs beside the model.
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
        helper: Helper | None = None,
    ):
        self.model, self.tokenizer, self.path, self.engine_config = model, tokenizer, path, config
        inside = [name for name, place in hub.SHIPPED.items() if place == path]
        self.name = inside[0] if inside else path.name
        self.defaults = dict(defaults or {})
        self.max_context = model.config.context(config.max_context)
        self.builder = RequestBuilder(tokenizer, self.defaults, self.max_context, model.config.vocab_size)
        self.drafting = Drafting(helper)
        self._collected: Collected | None = None  # of the request that began last
        self._lesson = Lesson(model, tokenizer, config) if lesson else None
        self._loop: Loop | None = None  # for single prompts
        self._by_lesson = lesson  # the last request was answered by the lesson's loop
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
        """Return the token ids of a raw text, of chat messages under the model's template, or of ids as they are.

        A raw text gets the special tokens that the tokenizer adds, such as a beginning-of-text token; a rendered text
        does not. `template` holds the other arguments of `Tokenizer.render`: tools, and settings such as
        enable_thinking.
        """
        return encode_prompt(self.tokenizer, prompt, template).tokens

    def embed(self, texts: Sequence[str], pooling: Pooling = "last", *, normalize: bool = False) -> Vectors:
        """Return a vector for each text, (N, hidden): the final hidden state of its last token, or the mean of all.

        Raises ValueError naming an item that is not a text, is empty or has more tokens than the context.
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

    def rank(self, query: str, documents: Sequence[str], instruction: str | None = None) -> list[float]:
        """Return a score from 0 to 1 for each document: how well it answers the query.

        The prompts are those of Qwen3-Reranker, so that other models rank poorly.
        `instruction` says what the query is for; None is the one for a web search. Raises ValueError for a value that
        is not a text, a document that is too long, and a model whose vocabulary has no tokens for yes and no.
        """
        clear_streams_at_end()
        with self._working():
            return rank(
                self.model,
                self.tokenizer,
                query,
                documents,
                instruction,
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
        """Return the answer to a prompt, or a list of answers with n > 1, with beams, and for a list of prompts.

        The prompts of a list run side by side. Settings come from `params` or, without it, from `overrides` over the
        model's defaults. `progress` shows a line on stderr while a list of prompts runs.
        """
        if many(prompt):
            settings = self.builder.resolve(params, overrides)
            return self._all(cast(Sequence[Prompt], prompt), settings, template, progress)
        for _ in self.stream(cast(Prompt, prompt), params, template=template, **overrides):
            pass
        assert self._collected is not None
        completions = completions_of(self._collected)
        return completions if len(completions) > 1 else completions[0]

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        template: Mapping[str, Any] | None = None,
        **overrides: Any,
    ) -> Iterator[Delta]:
        """Yield the answer piece by piece; `last_stats` holds its figures from the first token on.

        With n > 1 the pieces of the answers alternate, each with its answer's index. Only one stream can be open: after
        another one has begun, the next read of this one raises RuntimeError.
        """
        settings = self.builder.resolve(params, overrides)
        request = self.builder.request(f"r{next(self._ids)}", prompt, settings, template)
        self._by_lesson = self._lesson is not None and self._lesson.can_answer(request)
        if self._lesson is not None and self._by_lesson:
            return self._collect(request, self._stepwise(self._lesson.outputs(request)))
        with self._working():
            self._single(request).check(request)
        return self._collect(request, self._run(request))

    def _collect(self, request: Request, outputs: Iterator[Output]) -> Iterator[Delta]:
        """Yield a request's deltas, and keep `last_stats` up to date."""
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
                raise OvertakenError(
                    "this stream was cancelled: a later one began, or the cache was saved or replaced; start it again"
                )

    def _stepwise(self, outputs: Iterator[Output]) -> Iterator[Output]:
        """Yield the lesson's outputs, each of which is computed while no other thread computes."""
        clear_streams_at_end()
        while True:
            with self._working():
                self._own()
                output = next(outputs, None)
            if output is None:
                return
            yield output

    def _own(self) -> None:
        """Drop the caches of another thread: MLX's arrays belong to the thread that made them."""
        if self._owner is not threading.current_thread():
            self._drop_loop()
            if self._lesson is not None:
                self._lesson.forget()
            self._owner = threading.current_thread()

    def _run(self, request: Request) -> Iterator[Output]:
        """Run a single request through the loop and yield its outputs. Closing early cancels the request."""
        clear_streams_at_end()
        with self._working():
            loop = self._single(request)
            if self._open is not None:
                loop.cancel(self._open)  # the stream that began before this one can't be read any more
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
            raise  # the stream stopped between two steps, when the loop is consistent
        except BaseException:
            self._drop_loop()  # a step may have been interrupted
            raise
        finally:
            if not ended and self._loop is loop and self._open == request.id:
                loop.cancel(request.id)

    @property
    def speculation(self) -> SpeculationCounts:
        """How many guesses were made and accepted in all requests so far."""
        return self.drafting.counts

    def _single(self, request: Request | None = None) -> Loop:
        """Return the loop for single prompts: each answer has a whole cache, and the last cache is kept.

        The loop gets slots for the answers of `request`, and computes its prompt in chunks of `prefill_chunk` tokens.
        """
        self._own()
        if self._loop is None:
            store = whole_store(self.model, self.engine_config, MOST_ANSWERS, self.max_context, kept=1)
            config = self.engine_config
            self._loop = Loop(self.model, self.tokenizer, engine=config, store=store, drafting=self.drafting)
        if request is not None:
            slots = request.num_sequences
            budget = max(self.engine_config.prefill_chunk, slots)
            self._loop.scheduler.set_limits(budget, slots)
        return self._loop

    def _all(
        self, prompts: Sequence[Prompt], params: SamplingParams, template: Mapping[str, Any] | None, progress: bool
    ) -> list[Completion]:
        """Answer many prompts side by side, in a store for this call alone."""
        requests = self.builder.requests(prompts, params, template)
        with self._working():
            loop = loop_for(self.model, self.tokenizer, requests, self.engine_config, self.drafting)
            collected = run_all(loop, requests, progress)
        return [completion for one in collected for completion in completions_of(one)]

    def forget(self) -> None:
        """Drop the caches of earlier requests. An open stream then raises RuntimeError."""
        self._turn += 1
        self._drop_loop()
        if self._lesson is not None:
            self._lesson.forget()

    def _drop_loop(self) -> None:
        self._loop = self._open = None

    def kept(self) -> tuple[ContiguousCache, list[int]]:
        """Return the kept cache of the last single prompt, and the tokens in it. An open stream is cancelled.

        Raises RuntimeError in another thread than the one that computed it.
        """
        if self._owner is not threading.current_thread():
            raise RuntimeError("the cache belongs to another thread, which computed it: ask for it there")
        if self._lesson is not None and self._by_lesson:
            return self._lesson.kept()
        loop = self._single()
        if self._open is not None:
            loop.cancel(self._open)
            self._turn += 1  # its stream does not go on
        return loop.kept_cache()

    def save_cache(self, path: Path) -> None:
        """Write the cache of the last single prompt to a file, for another process. Raises as `kept`, and OSError."""
        with self._working():
            cache, tokens = self.kept()
            disk.save(Path(path), cache, tokens, self.model.fingerprint)

    def load_cache(self, path: Path) -> int:
        """Read a cache that `save_cache` wrote, in the thread that will use it; return its number of tokens.

        Raises ValueError for an unfit file.
        """
        with self._working():
            cache = new_cache(self.config, self.model.ops, self.engine_config)
            tokens = disk.load(Path(path), cache, self.model.fingerprint)
            self.forget()
            self._single().keep_cache(tokens, cache)
            if self._lesson is not None:
                self._lesson.take_in(tokens, cache.fork())
        return cache.offset

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Hold the lock of the computing thread. Raises RuntimeError while another thread holds it."""
        if not self._work.acquire(blocking=False):
            raise OvertakenError(
                "this LLM computes for another thread: it serves one caller at a time; "
                "tiny_llm.engine.serving.Engine serves many"
            )
        try:
            yield
        finally:
            self._work.release()
