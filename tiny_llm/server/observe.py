"""Join metrics, traces, log and audit log to the app: one observer of the engines' events and of all responses."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tiny_llm.engine.answers import AsyncStream
from tiny_llm.engine.events import Event
from tiny_llm.server.ask import Ask
from tiny_llm.server.audit import AuditEntry, AuditLog
from tiny_llm.server.logs import Logs, about
from tiny_llm.server.metrics import Metrics
from tiny_llm.server.tracing import Asked, Tracing

# asked every few seconds: not in the logs
PROBES = frozenset({"/health", "/ready", "/live", "/metrics", "/version", "/server_info", "/v1/loads"})
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OPERATIONS = {"/v1/completions": "text_completion", "/v1/embeddings": "embeddings"}  # of the others it is chat
NOT_FOUND = "unmatched"  # the route of a path that no route has
USAGE = "usage"  # the key in a request's state


class AskedStream(Protocol):
    """An Ask, and the stream of its answers."""

    ask: Ask
    stream: AsyncStream


@dataclass
class Usage:
    """What an HTTP request used, for its line in the logs."""

    model: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    finish_reason: str = ""


class Observer:
    """Tells metrics, traces, log and audit log what happens. The last three are optional.

    `Models(observe=observer.emit_of)` gives each engine its callback. The app calls `finished` when a request has its
    answers, or has lost its client, and `unloaded` when an engine was closed. `ObservedApp` is the middleware.
    """

    def __init__(
        self,
        metrics: Metrics | None = None,
        tracing: Tracing | None = None,
        logs: Logs | None = None,
        audit: AuditLog | None = None,
    ):
        self.metrics = metrics or Metrics()
        self.tracing, self.logs, self.audit = tracing, logs, audit

    def emit_of(self, model_name: str) -> Callable[[Event], None]:
        """Return the function that a model's engine calls with each event."""
        count = self.metrics.of(model_name).event
        if self.tracing is None:
            return count
        note = self.tracing.of(model_name).event

        def emit(event: Event) -> None:
            count(event)
            note(event)

        return emit

    def unloaded(self, model_name: str) -> None:
        """Take in that a model's engine was closed."""
        self.metrics.of(model_name).closed()

    def used(
        self, scope: Scope, model: str, prompt: int, cached: int = 0, generated: int = 0, reason: str = ""
    ) -> None:
        """Add to what an HTTP request used, which its line in the logs shows."""
        usage = scope.setdefault("state", {}).setdefault(USAGE, Usage())
        usage.model = model
        usage.prompt_tokens += prompt
        usage.cached_tokens += cached
        usage.generated_tokens += generated
        usage.finish_reason = reason

    def asked(self, request: HTTPConnection, asks: Sequence[Ask]) -> None:
        """Log the prompts of a request, where that is allowed."""
        if self.logs is not None and self.logs.prompts:
            with about(str(request.scope["state"].get("request_id", ""))):
                for ask in asks:
                    self.logs.prompt(ask.prompt)

    def finished(self, request: HTTPConnection, asked: Sequence[AskedStream]) -> None:
        """Count the times of a request's answers, and send their spans."""
        for one in asked:
            stats = one.stream.stats
            reason = one.stream.finish_reason or "cancelled"
            self.metrics.of(one.ask.model).finished(stats)
            tokens = (stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens)
            self.used(request.scope, one.ask.model, *tokens, reason)
            if self.tracing is not None:
                self._trace(self.tracing, request, one)

    def _trace(self, tracing: Tracing, request: HTTPConnection, one: AskedStream) -> None:
        collected = one.stream.collected
        operation = OPERATIONS.get(route_of(request.scope), "chat")
        asked = Asked(operation, one.ask.settings, request.headers, collected.begin)
        lasts = [deltas[-1] for deltas in collected.answers.values() if deltas]
        reasons = [last.finish_reason or "cancelled" for last in lasts]
        error = type(collected.error).__name__ if collected.error is not None else ""
        name = str(request.scope["state"].get("request_id", ""))
        traces = tracing.of(one.ask.model)
        traces.finished(one.stream.request_id, asked, one.stream.stats, reasons, name, error)

    def responded(self, scope: Scope, status: int, seconds: float, error: BaseException | None = None) -> None:
        """Count a response, and write its line into the logs. A probe that succeeds has no line."""
        route, method = route_of(scope), scope["method"] if scope["method"] in METHODS else "other"
        self.metrics.answered(route, method, status)
        if route in PROBES and status < 400:
            return
        state = scope["state"]
        usage = state.get(USAGE) or Usage()
        request = str(state.get("request_id", ""))
        key = getattr(state.get("key"), "name", "")
        client = (scope.get("client") or ("",))[0]
        if self.logs is not None:
            told = {name: value for name, value in vars(usage).items() if value}
            with about(request):
                if error is not None:
                    self.logs.failed("request failed", error)
                self.logs.answered(route, status, seconds, **told)
        if self.audit is not None:
            entry = AuditEntry(
                request, client, key, method, route, status=status, seconds=round(seconds, 4), **vars(usage)
            )
            self.audit.write(entry)

    def close(self) -> None:
        """Send the spans that are left, and close the audit log."""
        if self.tracing is not None:
            self.tracing.close()
        if self.audit is not None:
            self.audit.close()


class ObservedApp:
    """ASGI middleware around all others: tells an observer of each response, whoever made it."""

    def __init__(self, app: ASGIApp, observer: Observer):
        self.app, self.observer = app, observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope.setdefault("state", {})
        begin = time.monotonic()
        status = 500  # unless a response begins
        failed: BaseException | None = None

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            failed = error
            raise
        finally:
            self.observer.responded(scope, status, time.monotonic() - begin, failed)


def route_of(scope: Scope) -> str:
    """Return the pattern of the route that a request reached: never the path, which a client chooses."""
    return getattr(scope.get("route"), "path", NOT_FOUND)
