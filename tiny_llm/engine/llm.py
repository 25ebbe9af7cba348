"""`load` a model and ask it: text, chat messages or token ids in, text out, whole or as a stream."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from tiny_llm.cache import disk
from tiny_llm.cache.choose import block_nbytes, new_cache, slot_bytes, slots_at_most
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.config import EngineConfig, ModelConfig, SamplingParams, context_within
from tiny_llm.config.fields import require, shown
from tiny_llm.config.sampling import check_token_ids
from tiny_llm.config.serving import ServingConfig
from tiny_llm.decode.beam import stream_beams
from tiny_llm.decode.generate import Delta, check_prompt, stop_tokens, stream
from tiny_llm.engine.batch import Collected, kv_bytes_for, run_all, run_one
from tiny_llm.engine.completion import Completion as Completion
from tiny_llm.engine.completion import Stats as Stats
from tiny_llm.engine.completion import completions_of, join, stats_of
from tiny_llm.engine.loading import dtype_of, load_model, load_tokenizer
from tiny_llm.engine.loop import Loop
from tiny_llm.engine.prompt import Prepared, Prompt, head_of, many, prepare
from tiny_llm.engine.request import Request
from tiny_llm.engine.threads import clear_streams_at_end
from tiny_llm.model import hub, loader
from tiny_llm.model.fingerprint import fingerprint
from tiny_llm.model.memory import available_bytes
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.model.tokenizer import Tokenizer

POCKET = Path(__file__).parent.parent / "pocket" / "weights" / "target"


def load(model: str | Path | None = None, *, config: EngineConfig | None = None) -> "LLM":
    """Load a model directory, a hub name or an alias such as "qwen3-0.6b"; without one, the model that ships inside.

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
    return LLM(qwen, tokenizer, path=path, config=config, defaults=defaults, max_context=context)


class OvertakenError(RuntimeError):
    """A stream goes on although a later one has taken its cache."""


class LLM:
    """A loaded model with its tokenizer, for one caller at a time: a thread that asks while another one's step is
    computed gets a RuntimeError, and so does a stream when a later one has begun.

    The KV cache of the last request is kept: the next one computes only what differs from it, so that a chat
    does not read its history again. `defaults` are the sampling settings of the model's generation_config.json.
    """

    def __init__(
        self,
        model: Qwen3,
        tokenizer: Tokenizer,
        *,
        path: Path,
        config: EngineConfig,
        defaults: Mapping[str, Any] | None = None,
        max_context: int | None = None,
    ):
        self.model, self.tokenizer, self.path, self.engine_config = model, tokenizer, path, config
        self.name = "pocket" if path == POCKET else path.name
        self.defaults = dict(defaults or {})
        self.max_context = model.config.context(max_context)
        self.last_stats: Stats | None = None
        self._turn = 0  # counts the streams that took the kept cache
        self._owner = threading.current_thread()  # the thread whose steps the kept cache may still wait for
        self._work = threading.Lock()
        self._cache, self._cached = self._new_cache(), list[int]()

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    def encode(self, prompt: Prompt, template: Mapping[str, Any] | None = None) -> list[int]:
        """Token ids of a raw text, of chat messages under the model's template, or of ids as they are.

        A raw text gets what the tokenizer adds to texts, such as a beginning-of-text token; a rendered one does not.
        `template` holds what `Tokenizer.render` takes beside messages: tools and settings such as enable_thinking.
        """
        return prepare(self.tokenizer, prompt, template).tokens

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
            return self._all(cast(Sequence[Prompt], prompt), self.resolve(params, overrides), template, progress)
        answers: dict[int, list[Delta]] = {}
        for delta in self.stream(cast(Prompt, prompt), params, template=template, **overrides):
            answers.setdefault(delta.index, []).append(delta)
        assert self.last_stats is not None
        completions = [join(deltas, self.last_stats) for deltas in answers.values()]
        return completions if len(completions) > 1 else completions[0]

    def _all(
        self, prompts: Sequence[Prompt], params: SamplingParams, template: Mapping[str, Any] | None, progress: bool
    ) -> list[Completion]:
        """Many prompts through the serving engine's loop, in this thread and with a pool for this call alone."""
        requests = [self.request(str(i), prompt, params, template) for i, prompt in enumerate(prompts)]
        with self._working():
            collected = run_all(self._loop(requests), requests, progress)
        return [completion for one in collected for completion in completions_of(one)]

    def _loop(self, requests: Sequence[Request]) -> Loop:
        """A serving engine with a pool and slots just enough for these."""
        config = self.serving_config()
        slots = max(config.scheduler.max_sequences, *(request.num_sequences for request in requests))
        limits = replace(config.scheduler, max_sequences=slots)
        dtype = self.model.weights["norm"]["weight"].dtype
        each = block_nbytes(self.config, config.block_size, dtype)
        need = kv_bytes_for(requests, limits, config.block_size, each)
        free = available_bytes()
        room = need if free is None else min(need, free // 2)
        return Loop(self.model, self.tokenizer, replace(config, scheduler=limits, kv_bytes=room))

    def request(
        self, name: str, prompt: Prompt, params: SamplingParams, template: Mapping[str, Any] | None = None
    ) -> Request:
        """A prompt as the serving engine takes it. Raises ValueError as `stream` does.

        `max_tokens` beyond what the context leaves room for are not asked for: the answer then ends with "length".
        """
        prepared = prepare(self.tokenizer, prompt, template, self.max_context)
        tokens = prepared.tokens
        self._check(tokens, params)
        params = replace(params, max_tokens=min(params.max_tokens, self.max_context - len(tokens)))
        return Request(
            name,
            tuple(tokens),
            params,
            stop_tokens=stop_tokens(self.tokenizer, params),
            head=head_of(self.tokenizer, prompt, template),
            in_thought=prepared.in_thought,
        )

    def _check(self, tokens: Sequence[int], params: SamplingParams) -> None:
        """Raise ValueError for what no step could run."""
        check_prompt(tokens, self.max_context, self.config.vocab_size)
        check_token_ids(params, self.config.vocab_size)

    def serving_config(self, config: ServingConfig | None = None) -> ServingConfig:
        """The serving engine's settings for this model. Raises ValueError for a cache that it does not know."""
        config, kind = config or ServingConfig(), self.engine_config.cache
        if kind != "contiguous":
            raise ValueError(
                f"cache: requests side by side, and answers of a given form, keep all tokens; found the {kind} cache"
            )
        context = context_within(config.scheduler.max_context, self.max_context)
        return replace(config, scheduler=replace(config.scheduler, max_context=context))

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        template: Mapping[str, Any] | None = None,
        **overrides: Any,
    ) -> Iterator[Delta]:
        """The answer as it comes; `last_stats` holds its figures from the first token on.

        One answer at a time: when another stream begins, the next step of this one raises RuntimeError.
        """
        params = self.resolve(params, overrides)
        if params.structured is not None:
            request = self.request("alone", prompt, params, template)
            with self._working():
                loop = self._loop([request])
                loop.check(request)
            return self._alone(loop, request)
        prepared = prepare(self.tokenizer, prompt, template, self.max_context)
        self._check(prepared.tokens, params)
        return self._timed(prepared, params)

    def _alone(self, loop: Loop, request: Request) -> Iterator[Delta]:
        """An answer of a given form: only the serving engine's loop knows how."""
        collected = Collected(request)
        for delta in self._stepwise(run_one(loop, collected)):
            self.last_stats = stats_of(collected)
            yield delta

    def resolve(self, params: SamplingParams | None, overrides: Mapping[str, Any]) -> SamplingParams:
        """The settings of a request. Raises ValueError for unknown names and for both forms at once."""
        if params is None:
            return SamplingParams.resolve(overrides, self.defaults)
        require(isinstance(params, SamplingParams), f"params: expected SamplingParams, found {shown(params)}")
        if overrides:
            raise ValueError(f"{', '.join(overrides)}: expected either a SamplingParams or single settings, found both")
        return params

    def _timed(self, prepared: Prepared, params: SamplingParams) -> Iterator[Delta]:
        """Run a request, keeping the figures and what the cache holds up to date."""
        clear_streams_at_end()
        self._turn += 1
        turn, tokens = self._turn, prepared.tokens
        with self._working():
            cached = self._reuse(tokens)
            cache = self._cache
        mx.reset_peak_memory()
        begin, first, count = time.perf_counter(), 0.0, 0
        try:
            for delta in self._stepwise(self._answers(prepared, params, cache)):
                now = time.perf_counter()
                first = first or now
                if delta.token is not None:
                    count += 1
                    if delta.index == params.n - 1:
                        self._cached.append(delta.token)
                self.last_stats = Stats(len(tokens), cached, count, first - begin, now - first, mx.get_peak_memory())
                yield delta
                if turn != self._turn:
                    raise OvertakenError("another stream of this LLM has begun: its cache holds one answer at a time")
        except (GeneratorExit, OvertakenError):
            raise  # the caller has heard enough, between two steps: the cache is whole
        except BaseException as error:
            self._cache, self._cached = self._new_cache(), []  # a step may have ended half-way
            if isinstance(error, RuntimeError) and "allocate" in str(error):
                raise MemoryError(
                    f"out of memory at {len(tokens) + count} tokens ({error}): use a smaller or quantized model, "
                    "a shorter prompt or a smaller --max-context"
                ) from error
            raise

    def _reuse(self, tokens: list[int]) -> int:
        """Trim the cache to what it shares with the prompt, at least one token less; returns how much that is."""
        agreed = 0
        if self._owner is not threading.current_thread():  # a step may wait in a stream of the other thread's
            self._cache, self._cached, self._owner = self._new_cache(), [], threading.current_thread()
        limit = min(len(tokens) - 1, len(self._cached), self._cache.offset)
        while agreed < limit and tokens[agreed] == self._cached[agreed]:
            agreed += 1
        if self._cache.offset - agreed > self._cache.trimmable:
            agreed = 0  # what stood in the window then is gone
        self._cache.trim(self._cache.offset - agreed)
        self._cached = list(tokens)
        return agreed

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

    def _stepwise(self, deltas: Iterator[Delta]) -> Iterator[Delta]:
        """The same, each step of which is computed while no other thread computes."""
        while True:
            with self._working():
                delta = next(deltas, None)
            if delta is None:
                return
            yield delta

    def _answers(self, prepared: Prepared, params: SamplingParams, cache: ContiguousCache) -> Iterator[Delta]:
        chunk = self.engine_config.prefill_chunk
        what = self.model, self.tokenizer, prepared.tokens, params, cache
        if params.beam_width > 1:
            return stream_beams(*what, prefill_chunk=chunk, max_context=self.max_context)
        return stream(*what, in_thought=prepared.in_thought, prefill_chunk=chunk, max_context=self.max_context)

    def _new_cache(self) -> ContiguousCache:
        return new_cache(self.config, self.model.ops, self.engine_config)

    @cached_property
    def fingerprint(self) -> str:
        """What tells this model's saved caches from others'."""
        return fingerprint(self.config, self.model.weights)

    def save_cache(self, path: Path) -> None:
        """Write what is computed of the last request, so that another process need not. Raises OSError."""
        with self._working():
            disk.save(Path(path), self._cache, self._cached, self.fingerprint)

    def load_cache(self, path: Path) -> int:
        """Go on from what `save_cache` wrote; returns its tokens. Raises ValueError where the file won't do."""
        with self._working():
            cache = self._new_cache()
            self._cached = disk.load(Path(path), cache, self.fingerprint)
            self._cache, self._owner = cache, threading.current_thread()
            self._turn += 1  # a stream that is open does not go on
        return cache.offset
