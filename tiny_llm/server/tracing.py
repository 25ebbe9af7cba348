"""One OpenTelemetry span for each request, by the GenAI semantic conventions, sent by OTLP over HTTP.

The engine's thread keeps the few events of a request that a span shows. The span itself is made when the request has
ended, with the times at which things happened. So a request costs nothing more than these notes until its end, and
it makes no difference which thread sees it first. Without `--otlp` nothing of this file runs.
"""

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tiny_llm.config.fields import require
from tiny_llm.engine.answers import Stats
from tiny_llm.engine.events import Event

MAX_CHUNKS = 64  # chunks of a prompt that a span shows; `first_token` says how many there were
MAX_EVENTS = 120  # events of a span; OpenTelemetry drops the oldest ones above 128
MAX_ENDED = 1024  # requests that ended without a call of `finished`, whose notes are kept
MAX_INTEGER = 2**63 - 1  # of OTLP; a larger number would lose the whole batch of spans
SETTINGS = {  # the settings that have an attribute, and its name
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "max_tokens": "max_tokens",
    "seed": "seed",
    "stop": "stop_sequences",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "n": "choice.count",
}
PROVIDER = "tiny_llm"
INSTALL = "--otlp: the package opentelemetry is missing; install it: pip install 'tiny-llm[otel]'"

Attributes = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What a span tells of a request, known when it arrives.

    `operation` is chat, text_completion or embeddings. `settings` are the settings of decoding that the request gives,
    by the names of SamplingParams. `headers` are those of the HTTP request, with lower-case names: `traceparent` makes
    the span a part of the caller's trace. `begin` is the arrival on the monotonic clock.
    """

    operation: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    begin: float = field(default_factory=time.monotonic)


@dataclass
class SpanNotes:
    """The events of an unfinished request that its span shows: time, name and attributes of each."""

    happened: list[tuple[float, str, Attributes]] = field(default_factory=list)
    chunks: int = 0
    has_token: bool = False


class Tracing:
    """The spans of all models. Raises ValueError for an address that is not one, and where the extra is missing.

    `url` is the collector's: http://localhost:4318, or with a path of its own. The variables OTEL_SERVICE_NAME,
    OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER and OTEL_EXPORTER_OTLP_HEADERS work as OpenTelemetry defines them.
    """

    def __init__(self, url: str):
        endpoint = _endpoint(url)
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ValueError(INSTALL) from error
        resource = Resource({"service.name": "tiny-llm"}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("tiny_llm")
        self._models: dict[str, ModelTraces] = {}

    def of(self, model_name: str) -> "ModelTraces":
        """Return the traces of a model."""
        return self._models.setdefault(model_name, ModelTraces(model_name, self._tracer))

    def close(self) -> None:
        """Send the spans that are left, and stop. A collector that does not answer delays this by some seconds."""
        self._provider.shutdown()


class ModelTraces:
    """The spans of one model's requests. `event` is for `Engine(emit=…)`, `finished` for the server."""

    def __init__(self, model_name: str, tracer: Any):
        self.model_name, self._tracer = model_name, tracer
        self._notes: dict[str, SpanNotes] = {}
        self._ended: OrderedDict[str, SpanNotes] = OrderedDict()  # by the engine, and not yet by the server

    def event(self, event: Event) -> None:
        """Note an event of the engine, in the engine's thread. Takes O(1) time."""
        kind = event.kind
        if kind == "pool":  # a new engine: the requests of a former one are lost
            self._notes.clear()
            self._ended.clear()
        elif kind == "arrival":
            notes = self._notes[event.request] = SpanNotes()
            notes.happened.append((event.time, "queued", {"prompt_tokens": event.tokens}))
        elif kind in ("admit", "chunk", "token", "preempt", "finish"):
            notes_of_request = self._notes.get(event.request)
            if notes_of_request is not None:
                self._note(notes_of_request, event)
                if kind == "finish":
                    self._end(event.request, notes_of_request)

    def _note(self, notes: SpanNotes, event: Event) -> None:
        at, place = event.time, {"sequence": event.sequence}
        if len(notes.happened) >= MAX_EVENTS:
            return
        if event.kind == "admit":
            notes.happened.append((at, "admitted", {**place, "cached_tokens": event.tokens}))
        elif event.kind == "preempt":
            notes.happened.append((at, "preempted", {**place, "tokens": event.tokens}))
        elif event.kind == "chunk" and not notes.has_token:
            notes.chunks += 1
            if notes.chunks <= MAX_CHUNKS:
                notes.happened.append((at, "chunk", {"step": event.step, "start": event.start, "tokens": event.tokens}))
        elif event.kind == "token" and not notes.has_token:
            notes.has_token = True
            notes.happened.append((at, "first_token", {"chunks": notes.chunks}))
        elif event.kind == "finish":
            notes.happened.append((at, "finished", {**place, "reason": event.note, "tokens": event.tokens}))

    def _end(self, request: str, notes: SpanNotes) -> None:
        """Keep the notes of a request that has ended until `finished` comes, at most MAX_ENDED of them."""
        self._ended[request] = notes
        if len(self._ended) > MAX_ENDED:
            oldest, _ = self._ended.popitem(last=False)
            self._notes.pop(oldest, None)

    def finished(
        self,
        request_id: str,
        asked: Asked,
        stats: Stats | None = None,
        reasons: Sequence[str] = (),
        response_id: str = "",
        error: str = "",
    ) -> None:
        """Send the span of a request that has ended. `request_id` is the engine's, "" for a request that it never got.

        `reasons` are the answers' finish reasons, in the API's words. `error` is the error's type, and makes the span
        one of a failed request.
        """
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        to_wall = time.time() - time.monotonic()  # the clocks drift apart over days, so each span compares them anew
        notes = self._notes.pop(request_id, None) or SpanNotes()
        self._ended.pop(request_id, None)
        attributes = {**_asked(asked, self.model_name), **_answered(self.model_name, stats, reasons, response_id)}
        span = self._tracer.start_span(
            f"{asked.operation} {self.model_name}",
            context=TraceContextTextMapPropagator().extract(asked.headers),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=_nanoseconds(asked.begin + to_wall),
        )
        for at, name, found in list(notes.happened):
            span.add_event(name, found, _nanoseconds(at + to_wall))
        if error:
            span.set_attribute("error.type", error)
            span.set_status(StatusCode.ERROR)
        span.end(_nanoseconds(time.monotonic() + to_wall))


def _endpoint(url: str) -> str:
    """Return the address to which spans are posted."""
    try:
        parts = urlsplit(url)
        ok = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        ok = False
    require(ok, f"--otlp: expected the address of a collector like http://localhost:4318, found {url!r:.100}")
    return url if parts.path not in ("", "/") else f"{url.rstrip('/')}/v1/traces"


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def _asked(asked: Asked, model_name: str) -> Attributes:
    """Return the attributes of the request, with the settings that it gives and OpenTelemetry knows."""
    found: Attributes = {
        "gen_ai.operation.name": asked.operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": model_name,
    }
    for name, attribute in SETTINGS.items():
        value = asked.settings.get(name)
        if value is None or (name == "seed" and value > MAX_INTEGER):
            continue
        found[f"gen_ai.request.{attribute}"] = list(value) if name == "stop" else value
    return found


def _answered(model_name: str, stats: Stats | None, reasons: Sequence[str], response_id: str) -> Attributes:
    """Return the attributes of the answer: identity, usage, and the times in seconds, under vLLM's names."""
    found: Attributes = {"gen_ai.response.model": model_name}
    if response_id:
        found["gen_ai.response.id"] = response_id
    if reasons:
        found["gen_ai.response.finish_reasons"] = list(reasons)
    if stats is None:
        return found
    found["gen_ai.usage.input_tokens"] = stats.prompt_tokens
    found["gen_ai.usage.output_tokens"] = stats.generated_tokens
    if stats.generated_tokens:
        first = stats.time_to_first_token
        found["gen_ai.latency.time_in_queue"] = stats.queue_time
        found["gen_ai.latency.time_to_first_token"] = first
        found["gen_ai.latency.time_in_model_prefill"] = first - stats.queue_time
        found["gen_ai.latency.time_in_model_decode"] = stats.decode_time
        found["gen_ai.latency.e2e"] = first + stats.decode_time
    return found
