"""Real servers for the tests: uvicorn in a thread, with pocket and random models behind it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import openai
import pytest

from tests.support import make_model
from tiny_llm.config import EngineConfig, SchedulerConfig
from tiny_llm.config.serving import ServingConfig
from tiny_llm.server.app import make_app
from tiny_llm.server.models import Models, ModelSpec
from tiny_llm.server.observe import Observer
from tiny_llm.server.run import bind, make_server, url_of
from tiny_llm.server.settings import ServerSettings
from tiny_llm.server.state import ServerState

SERVING = ServingConfig(kv_bytes=2**24, block_size=8, scheduler=SchedulerConfig(token_budget=256, max_sequences=16))
LOCAL = ServerSettings(port=0, drain_seconds=60)


class Running:
    """A server that runs in a thread."""

    def __init__(self, models: Models, settings: ServerSettings, observer: Observer):
        models.load_now()
        self.models = models
        self.app = make_app(models, settings, observer=observer)
        self.state: ServerState = self.app.state.server
        self.listener = bind(settings)
        self.url = url_of(self.listener)
        ready = threading.Event()
        self.server = make_server(self.app, ready.set)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],), daemon=True)
        self.thread.start()
        assert ready.wait(30)

    def client(self, **options: object) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, **options})

    def http(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)

    @property
    def unfinished(self) -> int:
        """The requests that the engines have not forgotten."""
        return sum(served.users for served in self.models.all)

    def wait_idle(self, seconds: float = 10) -> None:
        wait_for(lambda: self.unfinished == 0, seconds)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()
        self.listener.close()


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@contextmanager
def serving(
    *specs: ModelSpec,
    settings: ServerSettings = LOCAL,
    config: ServingConfig = SERVING,
    engine_config: EngineConfig | None = None,
    **options: object,
) -> Iterator[Running]:
    observer = Observer()
    watching = {"observe": observer.emit_of, "unloaded": observer.unloaded, **options}
    models = Models(specs, engine_config, config, **watching)
    running = Running(models, replace(settings, port=0), observer)
    try:
        yield running
    finally:
        running.close()


@pytest.fixture(scope="session")
def random_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "random", max_position_embeddings=2048)


@pytest.fixture(scope="session")
def other_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture(scope="session")
def pocket() -> Iterator[Running]:
    with serving(ModelSpec("pocket")) as running:
        yield running


@pytest.fixture(scope="session")
def tiny(random_path: Path) -> Iterator[Running]:
    """A random model, which never ends its answers by itself where `ignore_eos` is set."""
    with serving(ModelSpec("tiny", str(random_path))) as running:
        yield running
