"""Several models in one process: on demand, unloaded when idle, pinned, under one memory cap."""

import asyncio
import threading
import time
from pathlib import Path

import openai
import pytest

from tests.server.conftest import SERVING, Running, serving, wait_for
from tiny_llm.config import EngineConfig
from tiny_llm.server.errors import ApiError
from tiny_llm.server.models import Models, ModelSpec, ServedModel, check_pins, estimate, spec_of

CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


def ask(running: Running, model: str) -> str:
    found = running.client().chat.completions.create(model=model, temperature=0, **CHAT)
    assert found.model == model
    return found.choices[0].message.content or ""


def test_two_models_are_loaded_on_demand(random_path: Path, other_path: Path) -> None:
    specs = ModelSpec("a", str(random_path)), ModelSpec("b", str(other_path))
    with serving(*specs) as running:
        a, b = running.models.all
        assert a.engine is not None and b.engine is None
        listed = {model.id: model.model_extra for model in running.client().models.list()}
        assert listed["a"]["max_model_len"] == 2048 and listed["a"]["loaded"] and not listed["b"]["loaded"]
        assert running.client().models.retrieve("b").owned_by == "tiny-llm"
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(ask(running, "b"))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(answers)) == 1 and len(answers) == 4  # one load served all four
        with pytest.raises(openai.NotFoundError):
            running.client().models.retrieve("c")


def test_an_idle_model_is_unloaded_and_a_pinned_one_is_not(random_path: Path, other_path: Path) -> None:
    specs = ModelSpec("a", str(random_path), pinned=True), ModelSpec("b", str(other_path))
    with serving(*specs, idle_seconds=0.3) as running:
        a, b = running.models.all
        first = ask(running, "b")
        wait_for(lambda: b.engine is None, 20)
        time.sleep(0.5)
        assert a.engine is not None
        assert ask(running, "b") == first


def test_a_request_never_gets_an_engine_that_is_being_closed(
    random_path: Path, other_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = ModelSpec("a", str(random_path)), ModelSpec("b", str(other_path))
    closing, going_on = threading.Event(), threading.Event()
    told: list[str] = []
    with serving(*specs, idle_seconds=0.2, unloaded=told.append) as running:
        first = ask(running, "b")
        _, b = running.models.all
        assert b.engine is not None
        old, close = b.engine, b.engine.close

        def slow_close() -> None:
            closing.set()
            assert going_on.wait(60)
            close()

        monkeypatch.setattr(old, "close", slow_close)
        assert closing.wait(60)
        answers: list[str] = []
        client = threading.Thread(target=lambda: answers.append(ask(running, "b")))
        client.start()  # while the old engine is being closed
        wait_for(lambda: b.users == 1, 30)
        going_on.set()
        client.join(60)
        assert answers == [first] and b.engine is not old and "b" in told


def test_a_load_goes_on_without_the_client_that_began_it(random_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = Models([ModelSpec("a", str(random_path))], serving=SERVING)
    loads: list[str] = []
    load = models._load

    def counted(served: ServedModel, before: object) -> None:
        loads.append(served.name)
        time.sleep(0.2)
        load(served, before)

    monkeypatch.setattr(models, "_load", counted)

    async def use() -> None:
        async with models.use("a") as engine:
            assert engine.is_open

    async def begin_and_leave() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(use(), 0.05)
        assert models.first.users == 0
        await use()
        await models.close()
        with pytest.raises(ApiError, match="shutting down"):
            await use()

    asyncio.run(begin_and_leave())
    assert loads == ["a"] and models.first.engine is None


def test_a_cap_holds_for_all_models_together(random_path: Path, other_path: Path) -> None:
    one = max(estimate(str(path), EngineConfig(), SERVING) for path in (random_path, other_path))
    specs = ModelSpec("a", str(random_path)), ModelSpec("b", str(other_path))
    with serving(*specs, memory_cap=int(one * 1.5)) as running:
        a, b = running.models.all
        ask(running, "b")
        assert a.engine is None and b.engine is not None
        body = {**CHAT, "model": "b", "max_tokens": 400, "ignore_eos": True, "stream": True}
        with running.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            refused = http.post("/v1/chat/completions", json={**CHAT, "model": "a"})
            assert refused.status_code == 503 and refused.json()["error"]["code"] == "model_memory"
            assert "retry-after" in refused.headers
        running.wait_idle()
        ask(running, "a")
        assert a.engine is not None and b.engine is None


def test_a_model_larger_than_the_cap_is_told_at_the_start(random_path: Path) -> None:
    models = Models([ModelSpec("a", str(random_path))], serving=SERVING, memory_cap=1000)
    with pytest.raises(ValueError, match="model a: needs about [0-9]+ bytes, the memory cap is 1000; raise"):
        models.load_now()


def test_a_model_that_fails_to_load_is_no_end(random_path: Path, tmp_path: Path) -> None:
    with serving(ModelSpec("a", str(random_path)), ModelSpec("b", str(tmp_path))) as running:
        with pytest.raises(openai.InternalServerError, match="could not be loaded; the server's log") as error:
            ask(running, "b")
        assert error.value.code == "model_load_failed" and str(tmp_path) not in str(error.value.body)
        assert isinstance(ask(running, "a"), str)


def test_names_of_models(tmp_path: Path) -> None:
    assert spec_of("a=qwen3-0.6b") == ModelSpec("a", "qwen3-0.6b")
    assert spec_of("qwen3-0.6b", ["qwen3-0.6b"]) == ModelSpec("qwen3-0.6b", "qwen3-0.6b", pinned=True)
    assert spec_of(str(tmp_path)).name == tmp_path.name
    for text in ("=", "a=", "", " "):
        with pytest.raises(ValueError, match="expected NAME=PATH or PATH"):
            spec_of(text)
    with pytest.raises(ValueError, match="pin: expected one of a, found 'b'"):
        check_pins(["b"], [ModelSpec("a")])
    with pytest.raises(ValueError, match="found 'a' twice"):
        Models([ModelSpec("a"), ModelSpec("a")])


def test_models_of_another_event_loop(random_path: Path) -> None:
    """`use` counts its users, also where the caller fails."""
    models = Models([ModelSpec("a", str(random_path))], serving=SERVING)

    async def fail() -> None:
        async with models.use("a"):
            assert models.first.users == 1
            raise KeyError

    with pytest.raises(KeyError):
        asyncio.run(fail())
    assert models.first.users == 0
    asyncio.run(models.close())
    assert models.first.engine is None
