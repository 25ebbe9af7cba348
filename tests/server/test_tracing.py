"""Spans of requests, as a receiver of OTLP over HTTP gets them from the real exporter."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.server.observed import GREEDY, REPEATING, new_engine
from tests.server.receiver import plain, receiving
from tests.support import make_model
from tiny_llm.engine.answers import Stats
from tiny_llm.engine.events import Event
from tiny_llm.server.tracing import MAX_CHUNKS, MAX_ENDED, MAX_EVENTS, Asked, Tracing

STATS = Stats(10, 4, 6, time_to_first_token=0.3, decode_time=1.5, peak_memory=0, queue_time=0.1)
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def names_of(span) -> list[str]:
    return [event.name for event in span.events]


def test_a_request_gives_one_span_with_what_happened_to_it(path: Path) -> None:
    params = replace(GREEDY, temperature=0.5, seed=3, stop=("never",), top_k=7, n=2)
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
    with receiving() as received:
        tracing = Tracing(received.url)
        traces = tracing.of("pocket")
        with new_engine(path, traces.event) as engine:
            names = ("temperature", "top_k", "max_tokens", "stop", "seed", "n")
            settings = {name: getattr(params, name) for name in names}
            asked = Asked("chat", settings, headers)
            stream = engine.stream(REPEATING * 4, params)
            assert list(stream)
            traces.finished(stream.request_id, asked, stream.stats, ["length", "length"], "chatcmpl-1")
        tracing.close()
    (span,) = received.spans
    assert received.paths == ["/v1/traces"]
    assert received.resources[0]["service.name"] == "tiny-llm"
    assert span.name == "chat pocket" and span.kind == 2  # a server's
    assert (span.trace_id.hex(), span.parent_span_id.hex(), span.trace_state) == (TRACE, PARENT, "vendor=1")
    found = plain(span.attributes)
    latency = {name: found.pop(name) for name in list(found) if name.startswith("gen_ai.latency.")}
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "tiny_llm",
        "gen_ai.request.model": "pocket",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_k": 7,
        "gen_ai.request.max_tokens": 12,
        "gen_ai.request.stop_sequences": ["never"],
        "gen_ai.request.seed": 3,
        "gen_ai.request.choice.count": 2,
        "gen_ai.response.model": "pocket",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.finish_reasons": ["length", "length"],
        "gen_ai.usage.input_tokens": 96,
        "gen_ai.usage.output_tokens": 24,
    }
    stats = stream.stats
    assert latency == {
        "gen_ai.latency.time_in_queue": stats.queue_time,
        "gen_ai.latency.time_to_first_token": stats.time_to_first_token,
        "gen_ai.latency.time_in_model_prefill": stats.time_to_first_token - stats.queue_time,
        "gen_ai.latency.time_in_model_decode": stats.decode_time,
        "gen_ai.latency.e2e": stats.time_to_first_token + stats.decode_time,
    }
    names = names_of(span)  # a prompt of 96 tokens takes two steps of 64
    assert names[:4] == ["queued", "admitted", "chunk", "chunk"]
    assert sorted(names[4:]) == ["admitted", "finished", "finished", "first_token"]
    chunks = [plain(event.attributes) for event in span.events if event.name == "chunk"]
    assert [(chunk["start"], chunk["tokens"]) for chunk in chunks] == [(0, 64), (64, 32)]
    times = [span.start_time_unix_nano, *(event.time_unix_nano for event in span.events), span.end_time_unix_nano]
    assert times == sorted(times)
    assert abs(times[-1] / 1e9 - time.time()) < 60


def test_requests_of_two_models_with_the_same_id_stay_apart() -> None:
    with receiving() as received:
        tracing = Tracing(received.url + "/v1/traces")
        for name, tokens in (("a", 5), ("b", 7)):
            tracing.of(name).event(Event(time.monotonic(), "arrival", request="r0", tokens=tokens))
        for name in ("a", "b"):
            tracing.of(name).finished("r0", Asked("text_completion"), STATS)
        tracing.close()
    assert received.paths == ["/v1/traces"]
    found = {span.name: plain(span.events[0].attributes)["prompt_tokens"] for span in received.spans}
    assert found == {"text_completion a": 5, "text_completion b": 7}
    assert len({span.trace_id for span in received.spans}) == 2


def test_preemption_and_failure_show() -> None:
    with receiving() as received:
        tracing = Tracing(received.url)
        traces = tracing.of("m")
        now = time.monotonic()
        for kind, number in (
            ("arrival", 30),
            ("admit", 0),
            ("chunk", 30),
            ("token", 1),
            ("preempt", 30),
            ("admit", 28),
        ):
            traces.event(Event(now, kind, request="r0", tokens=number))
        traces.event(Event(now, "finish", request="r0", tokens=1, note="error"))
        traces.finished("r0", Asked("chat"), STATS, ["error"], error="MemoryError")
        traces.finished("", Asked("chat"), error="context_length_exceeded")  # refused before the engine saw it
        tracing.close()
    failed, refused = received.spans
    assert names_of(failed) == ["queued", "admitted", "chunk", "first_token", "preempted", "admitted", "finished"]
    assert plain(failed.events[4].attributes) == {"sequence": 0, "tokens": 30}
    assert plain(failed.attributes)["error.type"] == "MemoryError" and failed.status.code == 2
    assert names_of(refused) == [] and plain(refused.attributes)["error.type"] == "context_length_exceeded"
    assert "gen_ai.usage.input_tokens" not in plain(refused.attributes)


@pytest.mark.parametrize("header", ["", "nonsense", f"00-{'0' * 32}-{PARENT}-01", "00-" + "f" * 5000, "é\x00"])
def test_a_bad_traceparent_begins_a_trace_of_its_own(header: str) -> None:
    with receiving() as received:
        tracing = Tracing(received.url)
        tracing.of("m").finished("r0", Asked("chat", headers={"traceparent": header}), STATS)
        tracing.close()
    (span,) = received.spans
    assert not span.parent_span_id and span.trace_id.hex() != "0" * 32


def test_a_caller_that_does_not_sample_gets_no_span() -> None:
    with receiving() as received:
        tracing = Tracing(received.url)
        tracing.of("m").finished("r0", Asked("chat", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"}), STATS)
        tracing.close()
    assert received.spans == []


def test_a_seed_beyond_63_bits_loses_no_batch() -> None:
    """OTLP's integers have 64 bits with a sign; the exporter failed for every span of the batch."""
    with receiving() as received:
        tracing = Tracing(received.url)
        tracing.of("m").finished("r0", Asked("chat", {"seed": 2**64 - 1}), STATS)
        tracing.of("m").finished("r1", Asked("chat", {"seed": 1, "top_p": None}), STATS)
        tracing.close()
    assert [plain(span.attributes).get("gen_ai.request.seed") for span in received.spans] == [None, 1]


def test_notes_do_not_grow_without_bound() -> None:
    traces = Tracing("http://127.0.0.1:9").of("m")
    for number in range(MAX_ENDED + 50):
        traces.event(Event(0.0, "arrival", request=f"r{number}", tokens=5))
        for step in range(MAX_CHUNKS + 30 if number == 0 else 0):
            traces.event(Event(0.0, "chunk", step, f"r{number}", tokens=1))
        if number == 0:
            assert len(traces._notes["r0"].happened) == 1 + MAX_CHUNKS
            for _ in range(200):
                traces.event(Event(0.0, "preempt", request="r0"))
            assert len(traces._notes["r0"].happened) == MAX_EVENTS
        traces.event(Event(0.0, "finish", request=f"r{number}", note="stop"))
    assert len(traces._notes) == MAX_ENDED
    traces.event(Event(0.0, "token", request="unknown"))
    traces.event(Event(0.0, "pool"))
    assert not traces._notes


def test_a_collector_that_is_away_costs_no_request() -> None:
    tracing = Tracing("http://127.0.0.1:9")
    traces = tracing.of("m")
    begin = time.monotonic()
    for number in range(100):
        traces.finished(f"r{number}", Asked("chat"), STATS)
    assert time.monotonic() - begin < 1


@pytest.mark.parametrize(
    "url", ["", "localhost:4318", "ftp://a", "http://", "http://a:port", "http://[::1", "http://a:99999"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="--otlp: expected the address of a collector like http://.*, found"):
        Tracing(url)


def test_without_the_extra_tracing_is_refused_and_nothing_else_needs_it() -> None:
    code = """
import sys
sys.modules["opentelemetry"] = None
from tiny_llm.server import metrics, tracing
try:
    tracing.Tracing("http://localhost:4318")
except ValueError as error:
    print(error)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == (
        "--otlp: the package opentelemetry is missing; install it: pip install 'tiny-llm[otel]'"
    )
