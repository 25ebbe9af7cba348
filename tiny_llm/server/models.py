"""Engines by name: loaded when a request asks for them, unloaded when idle, all under one memory cap."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from tiny_llm.config import EngineConfig
from tiny_llm.config.fields import require
from tiny_llm.config.serving import ServingConfig
from tiny_llm.engine.events import Event
from tiny_llm.engine.llm import POCKET
from tiny_llm.engine.loading import choose_operations, dtype_of
from tiny_llm.engine.serving import Engine
from tiny_llm.model import hub, loader
from tiny_llm.model.source import open_source
from tiny_llm.server.errors import LOG, draining, no_model, unavailable

Emit = Callable[[Event], None]
CHECKS = 4  # checks for idle models in the time after which one is unloaded


@dataclass(frozen=True)
class ModelSpec:
    """A model that the server offers. `path`: a directory, GGUF file, hub name or alias; None for the one inside."""

    name: str
    path: str | None = None
    pinned: bool = False


@dataclass
class ServedModel:
    """A model and, while it is loaded, its engine. `users`: the requests that use the engine now."""

    spec: ModelSpec
    engine: Engine | None = None
    users: int = 0
    last_used: float = 0.0
    num_bytes: int = 0
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def max_context(self) -> int | None:
        """The tokens of a prompt and its answer; None while that is unknown, because the model was never loaded."""
        return None if self.engine is None else self.engine.llm.max_context


class Models:
    """The models of a server. All methods but `load` belong to one event loop.

    `observe` returns, for a model's name, the function that its engine calls with each event. `unloaded` is called with
    the name of a model whose engine was closed. `idle_seconds`: after which an unused model is unloaded, unless it is
    pinned. `memory_cap`: bytes of all loaded models together. Raises ValueError for names that are there twice.
    """

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        config: EngineConfig | None = None,
        serving: ServingConfig | None = None,
        *,
        observe: Callable[[str], Emit | None] = lambda name: None,
        unloaded: Callable[[str], None] = lambda name: None,
        idle_seconds: float | None = None,
        memory_cap: int | None = None,
    ):
        require(bool(specs), "models: expected at least one model, found none")
        self.config = config or EngineConfig()
        self.serving = serving or ServingConfig()
        self._observe, self._unloaded = observe, unloaded
        self._idle_seconds, self._memory_cap = idle_seconds, memory_cap
        self._served: dict[str, ServedModel] = {}
        for spec in specs:
            require(spec.name not in self._served, f"model: expected different names, found {spec.name!r} twice")
            self._served[spec.name] = ServedModel(spec)
        self._loading = asyncio.Lock()
        self._begun = self._ended = False

    @property
    def all(self) -> list[ServedModel]:
        return list(self._served.values())

    @property
    def first(self) -> ServedModel:
        return self.all[0]

    @property
    def is_ready(self) -> bool:
        """Whether the models that load at the start are loaded, and no engine has failed."""
        return self._begun and all(served.engine is None or served.engine.is_open for served in self.all)

    def failures(self, step_seconds: float) -> list[str]:
        """Say of each engine that has failed what is wrong: its thread has ended, or a step takes too long."""
        found = []
        for served in self.all:
            engine = served.engine
            if engine is None:
                continue
            if not engine.is_open:
                found.append(f"{served.name}: the engine's thread has ended")
            elif engine.stalled_seconds > step_seconds:
                found.append(f"{served.name}: the step under way takes longer than {step_seconds:g} seconds")
        return found

    def find(self, name: str) -> ServedModel:
        """Return a model. Raises ApiError 404 where there is none of that name."""
        served = self._served.get(name)
        if served is None:
            raise no_model(name, ", ".join(self._served))
        return served

    def load_now(self) -> None:
        """Load the first model and all pinned ones, in the calling thread, before an event loop runs."""
        for served in self.all:
            if served.spec.pinned or served is self.first:
                self._estimate(served)
                self._load(served, self._make_room(served))
        self._begun = True

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Engine]:
        """Within it the model is loaded. Raises ApiError 404, and 503 where it gets no engine."""
        served = self.find(name)
        served.users += 1
        try:
            while served.engine is None:  # the server may close an engine as soon as it is loaded
                await self._ready(served)
            assert served.engine is not None
            yield served.engine
        finally:
            served.users -= 1
            served.last_used = time.monotonic()

    async def _ready(self, served: ServedModel) -> None:
        """Load a model in another thread. Requests that ask for it meanwhile wait; models load one at a time.

        The load goes on where its request is cancelled: a thread can't be ended, and a second load of the same model
        would leave the first engine behind.
        """
        await asyncio.shield(asyncio.ensure_future(self._load_in_turn(served)))

    async def _load_in_turn(self, served: ServedModel) -> None:
        """Load a model unless it is loaded by then. Raises ApiError 503 after `close`, and where it can't load."""
        async with self._loading:
            if self._ended:
                raise draining()
            if served.engine is not None:
                return
            try:
                await asyncio.to_thread(self._estimate, served)
                await asyncio.to_thread(self._load, served, self._make_room(served))
            except (OSError, ValueError, RuntimeError, MemoryError) as error:  # a fault of the server, not of a client
                LOG.error("the model %s could not be loaded: %s", served.name, error)
                words = f"The model '{served.name}' could not be loaded; the server's log says why."
                raise unavailable(words, "model_load_failed") from error

    def _estimate(self, served: ServedModel) -> None:
        """Estimate a model's bytes, where a cap asks for them. Raises ValueError for a model that can never fit."""
        cap = self._memory_cap
        if cap is None or served.num_bytes:
            return
        size = estimate(served.spec.path, self.config, self.serving)
        require(
            size <= cap, f"model {served.name}: needs about {size} bytes, the memory cap is {cap}; raise --memory-cap"
        )
        served.num_bytes = size

    def _load(self, served: ServedModel, before: Sequence["Detached"]) -> None:
        """Load a model's engine, after closing the engines that make room for it."""
        for detached in before:
            self._close(detached)
        engine = Engine(served.spec.path, config=self.config, serving=self.serving, emit=self._observe(served.name))
        served.engine = engine
        served.last_used = time.monotonic()

    def _make_room(self, served: ServedModel) -> list["Detached"]:
        """Detach the engines of idle models, the one unused for longest first, until `served` fits under the cap.

        Raises ApiError 503 where the models that are in use or pinned leave too little room.
        """
        if self._memory_cap is None:
            return []
        loaded = sum(other.num_bytes for other in self.all if other.engine is not None)
        excess = loaded + served.num_bytes - self._memory_cap
        chosen: list[ServedModel] = []
        for other in sorted(filter(is_idle, self.all), key=lambda other: other.last_used):
            if excess > 0:
                chosen.append(other)
                excess -= other.num_bytes
        if excess > 0:
            words = f"The model '{served.name}' has no room beside the models in use; please try again."
            raise unavailable(words, "model_memory")
        return [detach(other) for other in chosen]

    async def unload_idle(self) -> None:
        """Unload models that nothing has used for `idle_seconds`, for ever."""
        limit = self._idle_seconds
        if limit is None:
            return
        while True:
            await asyncio.sleep(limit / CHECKS)
            now = time.monotonic()
            for served in self.all:
                if is_idle(served) and now - served.last_used >= limit:
                    await self._unload(served)

    async def _unload(self, served: ServedModel) -> None:
        """Close an idle model's engine. A request that comes meanwhile waits, and then loads the model again."""
        async with self._loading:
            if is_idle(served):  # a request may have come while another model was loaded
                await asyncio.to_thread(self._close, detach(served))

    async def close(self) -> None:
        """End all engines. Requests that still run fail, and no model is loaded any more."""
        self._ended = True
        async with self._loading:
            for served in self.all:
                if served.engine is not None:
                    await asyncio.to_thread(self._close, detach(served))

    def _close(self, detached: "Detached") -> None:
        """End an engine and free its memory."""
        detached.engines.pop().close()
        gc.collect()  # the engine's objects reference each other
        mx.clear_cache()
        self._unloaded(detached.name)


class Detached(NamedTuple):
    """The engine of a model that no request can find any more. Closing it takes it out of `engines`."""

    name: str
    engines: list[Engine]


def detach(served: ServedModel) -> Detached:
    """Take a model's engine away, so that the next request loads it again."""
    assert served.engine is not None
    detached = Detached(served.name, [served.engine])
    served.engine = None
    return detached


def is_idle(served: ServedModel) -> bool:
    """Return whether a model is loaded and may be unloaded."""
    return served.engine is not None and served.users == 0 and not served.spec.pinned


def spec_of(text: str, pins: Collection[str] = ()) -> ModelSpec:
    """Return the model of `--model name=path` or `--model path`, which is served under the path's last part.

    The models named in `pins` are pinned.
    """
    name, equals, path = text.partition("=")
    if not equals:
        name = Path(text).name if Path(text).exists() else text
        path = text
    require(bool(name.strip()) and bool(path.strip()), f"model: expected NAME=PATH or PATH, found {text!r}")
    return ModelSpec(name, path, name in pins)


def check_pins(pins: Collection[str], specs: Sequence[ModelSpec]) -> None:
    """Raise ValueError for the name of a pinned model that is not served."""
    names = [spec.name for spec in specs]
    for pin in pins:
        require(pin in names, f"pin: expected one of {', '.join(names)}, found {pin!r}")


def estimate(path: str | None, config: EngineConfig, serving: ServingConfig) -> int:
    """Return about how many bytes a model takes with its pool, from the files' headers. A hub model is downloaded."""
    source = open_source(POCKET if path is None else hub.resolve(path))
    shape = loader.load_config(source)
    dtype = dtype_of(config)
    context = shape.context(config.max_context)
    native = choose_operations(config, dtype).native
    found = loader.estimate_bytes(source, shape, dtype, context, native=native, expert_bytes=config.expert_bytes)
    slots = serving.scheduler.max_sequences * min(context, 4096)
    pool = serving.kv_bytes or slots * found.per_token
    return found.weights + found.working + pool
