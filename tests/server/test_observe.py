"""The observer: one request is seen by metrics, trace, log and audit log alike, whoever answers it."""

import asyncio
import io
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.server.observed import REPEATING, new_engine
from tests.server.receiver import plain, receiving
from tests.support import make_model
from tiny_llm.engine.answers import AnswerReader
from tiny_llm.server import logs
from tiny_llm.server.audit import AuditLog
from tiny_llm.server.logs import Logs
from tiny_llm.server.observe import ObservedApp, Observer
from tiny_llm.server.tracing import Tracing

SECRET = "my private question"


@pytest.fixture(autouse=True)
def loggers_as_before():
    names = (logs.NAME, "uvicorn", "uvicorn.error", "uvicorn.access")
    before = [(logging.getLogger(n), logging.getLogger(n).handlers, logging.getLogger(n).propagate) for n in names]
    yield
    for logger, handlers, propagate in before:
        logger.handlers, logger.propagate = handlers, propagate


@dataclass
class Ask:
    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class OneAnswer:
    ask: Ask
    stream: AnswerReader


async def send_nothing(message: Mapping[str, Any]) -> None:
    pass


async def receive() -> dict[str, Any]:
    return {"type": "http.disconnect"}


def call(observer: Observer, app: Any, method: str = "POST") -> None:
    scope = {"type": "http", "method": method, "path": f"/{SECRET}", "client": ("127.0.0.1", 5), "state": {}}
    asyncio.run(ObservedApp(app, observer)(scope, receive, send_nothing))


def responding(status: int, route: str | None = "/v1/chat/completions") -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["state"] |= {"request_id": "req_1", "key": SimpleNamespace(name="laptop", hash="c0ffee")}
        if route is not None:
            scope["route"] = SimpleNamespace(path=route)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return app


def counted(observer: Observer) -> list[str]:
    return [line for line in observer.metrics.render().decode().splitlines() if line.startswith("http_requests_total")]


def test_one_request_is_seen_by_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    stream = io.StringIO()
    with receiving() as received:
        observer = Observer(None, Tracing(received.url), Logs(stream), AuditLog(tmp_path / "audit"))
        with new_engine(make_model(tmp_path / "model"), observer.emit_of("pocket")) as engine:
            settings = {"max_tokens": 5, "temperature": 0.0, "ignore_eos": True, "n": 2}

            async def app(scope: Any, receive: Any, send: Any) -> None:
                await responding(200)(scope, receive, send)
                answer = engine.astream(REPEATING, None, **settings)
                async for _ in answer:
                    pass
                request = SimpleNamespace(scope=scope, headers={"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"})
                observer.finished(request, [OneAnswer(Ask("pocket", settings), answer)])

            call(observer, app)
        observer.unloaded("pocket")
        observer.close()
    (span,) = received.spans
    attributes = plain(span.attributes)
    assert (span.name, span.trace_id.hex(), attributes["gen_ai.request.max_tokens"]) == ("chat pocket", "a" * 32, 5)
    assert attributes["gen_ai.response.finish_reasons"] == ["length", "length"]
    assert (attributes["gen_ai.response.id"], attributes["gen_ai.usage.output_tokens"]) == ("req_1", 10)
    assert span.events[0].name == "queued"
    model = observer.metrics.of("pocket")
    assert (model.generated_tokens, sum(model.first_token.counts), model.ended["length"]) == (10, 1, 1)
    assert counted(observer) == [
        'http_requests_total{handler="/v1/chat/completions",method="POST",status="200"} 1.0',
    ]
    logged, audited = json.loads(stream.getvalue()), json.loads((tmp_path / "audit").read_text())
    for line in (logged, audited):
        assert (line["request_id"], line["route"], line["status"]) == ("req_1", "/v1/chat/completions", 200)
        assert (line["model"], line["prompt_tokens"], line["generated_tokens"]) == ("pocket", 24, 10)
        assert line["seconds"] > 0
    assert (audited["key_id"], audited["client"], audited["finish_reason"]) == ("laptop", "127.0.0.1", "length")


def test_an_abandoned_request_ends_as_cancelled(tmp_path: Path) -> None:
    observer = Observer(audit=AuditLog(tmp_path / "audit"))
    with new_engine(make_model(tmp_path / "model"), observer.emit_of("m")) as engine:

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await responding(200)(scope, receive, send)
            answer = engine.astream(REPEATING, None, max_tokens=300, ignore_eos=True)
            await answer.__anext__()
            await answer.aclose()
            request = SimpleNamespace(scope=scope, headers={})
            observer.finished(request, [OneAnswer(Ask("m"), answer)])

        call(observer, app)
    assert json.loads((tmp_path / "audit").read_text())["finish_reason"] == "cancelled"
    model = observer.metrics.of("m")
    assert model.ended["abort"] == 1 and not model.unfinished


def test_what_a_client_chooses_is_in_no_label_and_no_line(tmp_path: Path) -> None:
    stream = io.StringIO()
    observer = Observer(logs=Logs(stream), audit=AuditLog(tmp_path / "audit"))
    call(observer, responding(404, None), method="BREW" * 1000)
    assert counted(observer) == ['http_requests_total{handler="unmatched",method="other",status="404"} 1.0']
    written = stream.getvalue() + (tmp_path / "audit").read_text()
    assert "unmatched" in written and SECRET not in written and "BREW" not in written and "c0ffee" not in written


def test_an_app_that_fails_is_a_500_with_its_place_and_without_its_message(tmp_path: Path) -> None:
    stream = io.StringIO()
    observer = Observer(logs=Logs(stream))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError(SECRET)

    with pytest.raises(KeyError):
        call(observer, app)
    failed, answered = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (failed["error"], answered["status"]) == ("KeyError", 500)
    assert failed["where"][-1].startswith("test_observe.py") and SECRET not in stream.getvalue()


@pytest.mark.parametrize(("route", "status", "lines"), [("/metrics", 200, 0), ("/health", 503, 1), ("/ready", 200, 0)])
def test_a_probe_has_a_line_only_when_it_fails(route: str, status: int, lines: int, tmp_path: Path) -> None:
    stream = io.StringIO()
    observer = Observer(logs=Logs(stream), audit=AuditLog(tmp_path / "audit"))
    call(observer, responding(status, route), method="GET")
    assert len(stream.getvalue().splitlines()) == len((tmp_path / "audit").read_text().splitlines()) == lines
    assert len(counted(observer)) == 1


def test_without_traces_the_engine_calls_the_metrics_alone() -> None:
    observer = Observer()
    assert observer.emit_of("m") == observer.metrics.of("m").event


def test_other_scopes_pass() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    asyncio.run(ObservedApp(app, Observer())({"type": "lifespan"}, receive, send_nothing))
    assert seen == ["lifespan"]
