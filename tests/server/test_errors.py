"""Each error's exact status and body, and what the openai client makes of it."""

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.server.conftest import LOCAL, SERVING, Running, serving, wait_for
from tiny_llm.server.models import ModelSpec

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 4}
INVALID = "invalid_request_error"


@pytest.fixture(scope="module")
def http(tiny: Running):
    with tiny.http() as client:
        yield client


def error(message: str, kind: str = INVALID, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def raw(running: Running, data: bytes) -> bytes:
    """Send bytes to the server and read all that it answers."""
    host, port = running.listener.getsockname()[:2]
    with socket.create_connection((host, port), timeout=20) as connection:
        connection.sendall(data)
        answer = b""
        try:
            while chunk := connection.recv(65_536):
                answer += chunk
        except ConnectionResetError:
            pass
        return answer


NO_ROOM = (
    "prompt: 9014 tokens leave no room for an answer in the context of 2048; shorten the prompt or raise --max-context "
    "as far as the model allows"
)
NO_TOOLS = "tool_choice: expected tools to choose from, found none; set tools or leave this out"
LONG = [{"role": "user", "content": "the quick brown fox " * 1000}]
RED = [{"role": "user", "content": "a", "colour": "red"}]


@pytest.mark.parametrize(
    ("fields", "status", "message", "param", "code"),
    [
        ({"model": "gpt"}, 404, "The model 'gpt' does not exist; this server has tiny.", None, "model_not_found"),
        ({"model": None}, 400, "Invalid value for 'model': Input should be a valid string, found null.", "model", None),
        ({"foo": 1}, 400, "Unknown parameter: 'foo'.", "foo", "unknown_parameter"),
        (
            *({"messages": RED}, 400, "Unknown parameter: 'messages[0].colour'."),
            *("messages[0].colour", "unknown_parameter"),
        ),
        (
            *({"temperature": -1}, 400),
            "Invalid value for 'temperature': Input should be greater than or equal to 0, found -1.",
            *("temperature", None),
        ),
        (
            *({"max_tokens": "4"}, 400),
            "Invalid value for 'max_tokens': Input should be a valid integer, found \"4\".",
            *("max_tokens", None),
        ),
        (
            *({"logit_bias": {"999999": 1}}, 400),
            "logit_bias: expected token ids from 0 to 319, the model's vocabulary, found 999999",
            *("logit_bias", None),
        ),
        ({"tool_choice": "required"}, 400, NO_TOOLS, "tool_choice", None),
        ({"messages": LONG}, 400, NO_ROOM, "messages", "context_length_exceeded"),
    ],
)
def test_faulty_requests(
    http: httpx.Client, fields: dict[str, Any], status: int, message: str, param: str | None, code: str | None
) -> None:
    for stream in (False, True):
        answer = http.post("/v1/chat/completions", json={**CHAT, **fields, "stream": stream})
        assert (answer.status_code, answer.json()) == (status, error(message, param=param, code=code))


@pytest.mark.parametrize("stop", [["x"] * 10_000, ["x" * 10_000], [""], 5])
def test_stop_strings_are_bounded(http: httpx.Client, stop: object) -> None:
    answer = http.post("/v1/chat/completions", json={**CHAT, "stop": stop})
    assert (answer.status_code, answer.json()["error"]["param"].partition("[")[0]) == (400, "stop")
    assert len(answer.text) < 500


def test_missing_fields(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json={"model": "tiny"})
    expected = error("Missing required parameter: 'messages'.", param="messages", code="missing_required_parameter")
    assert (answer.status_code, answer.json()) == (400, expected)
    answer = http.post("/v1/chat/completions")
    expected = error("body: expected a JSON object, found nothing; send Content-Type: application/json.")
    assert (answer.status_code, answer.json()) == (400, expected)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"model": "\xff"}', "body: expected JSON in UTF-8, found the byte 0xff at 11."),
        (b"[" * 10_000 + b"]" * 10_000, "body: expected at most 100 levels of lists and objects, found more."),
        (b"[" * 500 + b"]" * 500, "body: expected at most 100 levels of lists and objects, found more."),
        (b'{"temperature": NaN}', "body: expected JSON, found something else: JSON has no number NaN."),
        (b'{"temperature": 1e400}', "body: expected JSON, found something else: the number 1e400 is too large."),
        (b'{"seed": ' + b"9" * 5000 + b"}", "body: expected JSON, found something else: Exceeds the limit"),
        (b"{", "body: expected JSON, found something else: "),
    ],
)
def test_json_that_is_none(http: httpx.Client, body: bytes, words: str) -> None:
    answer = http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(words)
    assert answer.json()["error"]["type"] == INVALID


def test_half_a_character_is_refused(http: httpx.Client) -> None:
    body = b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}'
    answer = http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "messages[0]"


def test_a_schema_that_nothing_fits(http: httpx.Client) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nothing"}}}
    answer = http.post("/v1/chat/completions", json={**CHAT, "response_format": form})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "structured"


def test_a_schema_that_never_ends(http: httpx.Client) -> None:
    """The grammar allows endless texts; max_tokens ends them."""
    schema = {"$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}}, "$ref": "#/$defs/a"}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    answer = http.post("/v1/chat/completions", json={**CHAT, "response_format": form})
    if answer.status_code == 200:
        assert answer.json()["choices"][0]["finish_reason"] == "length"
    else:
        assert answer.status_code == 400


def test_unknown_paths_and_methods(http: httpx.Client) -> None:
    answer = http.get("/v1/nothing")
    assert (answer.status_code, answer.json()) == (404, error("Not Found: GET /v1/nothing"))
    answer = http.get("/v1/chat/completions")
    assert (answer.status_code, answer.json()) == (405, error("Method Not Allowed: GET /v1/chat/completions"))
    assert answer.headers["allow"] == "POST"


def test_bodies_that_are_too_large(random_path: Path) -> None:
    settings = replace(LOCAL, max_body=1000, body_seconds=0.5)
    expected = error("body: expected at most 1000 bytes, found more; shorten the request.", code="request_too_large")
    with serving(ModelSpec("tiny", str(random_path)), settings=settings) as running, running.http() as http:
        answer = http.post("/v1/chat/completions", content=b" " * 2000)
        assert (answer.status_code, answer.json()) == (413, expected)

        def chunks():
            for _ in range(20):
                yield b" " * 100

        answer = http.post("/v1/chat/completions", content=chunks(), headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()) == (413, expected)
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{"
        answered = raw(running, head)
        assert b"408" in answered.splitlines()[0] and b"request_timeout" in answered


def test_headers_of_a_megabyte(tiny: Running) -> None:
    answered = raw(tiny, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 2**20 + b"\r\n\r\n")
    assert answered == b"" or b" 400 " in answered.splitlines()[0]


def test_smuggled_requests_are_refused(tiny: Running) -> None:
    """A proxy may read the length in another way than the server, and pass a second request unseen."""
    inner = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\n"
    both = head + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    two = head + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde"
    strange = head + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"
    for outer in (both, two, strange):
        answered = raw(tiny, outer + inner)
        assert answered.count(b"HTTP/1.1 ") == 1
        assert answered.split()[1] in (b"400", b"501")


def test_the_client_gets_its_own_exceptions(tiny: Running) -> None:
    client = tiny.client()
    chat = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as not_found:
        chat(**{**CHAT, "model": "gpt"})
    assert not_found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        chat(**{**CHAT, "messages": [{"role": "user", "content": "the quick brown fox " * 1000}]})
    assert bad.value.code == "context_length_exceeded"
    tool = {"type": "function", "function": {"name": "f"}}
    assert chat(**CHAT, tools=[tool]).choices


def test_a_full_queue(random_path: Path) -> None:
    config = replace(SERVING, max_requests=1)
    long = {**CHAT, "max_tokens": 1500, "ignore_eos": True, "stream": True}
    with serving(ModelSpec("tiny", str(random_path)), config=config) as running, running.http() as http:
        with http.stream("POST", "/v1/chat/completions", json=long) as first:
            lines = first.iter_lines()  # a dropped iterator would close the connection
            next(lines)
            second = http.post("/v1/chat/completions", json=CHAT)
            assert second.status_code == 429
            wait = second.headers["retry-after"]
            assert int(wait) >= 1
            message = f"The queue is full. Please try again in {wait}s."
            assert second.json() == error(message, "overloaded", code="queue_full")
            with pytest.raises(openai.RateLimitError):
                running.client().chat.completions.create(**CHAT)
        wait_for(lambda: http.post("/v1/chat/completions", json=CHAT).status_code == 200)


def test_an_answer_that_takes_too_long(random_path: Path) -> None:
    settings = replace(LOCAL, request_seconds=0.3)
    expected = error(
        "The answer took longer than the 0.3 seconds that the server allows; ask for fewer tokens.",
        "timeout",
        code="answer_timeout",
    )
    long = {**CHAT, "max_tokens": 2000, "n": 8, "ignore_eos": True}
    with serving(ModelSpec("tiny", str(random_path)), settings=settings) as running, running.http() as http:
        answer = http.post("/v1/chat/completions", json=long)
        assert (answer.status_code, answer.json()) == (504, expected)
        answer = http.post("/v1/chat/completions", json={**long, "stream": True})
        assert answer.status_code == 200
        last = answer.text.strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: ")) == expected


def test_a_failure_of_the_server_is_a_whole_response(tiny: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: it had no request id and no security headers, and the next request on its connection was reset."""
    monkeypatch.setattr("tiny_llm.server.routes.models.model_object", lambda model: 1 / 0)
    with tiny.http() as client:
        for path in ("/v1/models", "/v1/models", "/health"):
            answer = client.get(path)
            assert answer.headers["x-request-id"].startswith("req_") and "x-frame-options" in answer.headers
        failed = client.get("/v1/models")
    assert answer.status_code == 200 and failed.status_code == 500
    assert failed.json() == error(
        "The server had an error while processing your request; its log says more.", kind="server_error"
    )


TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options", "expected stream to be true, too"),
        ({"max_completion_tokens": 5}, "max_tokens", "either this or max_completion_tokens"),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            *("response_format", "either this or structured_outputs"),
        ),
        ({"tools": [TOOL, TOOL]}, "tools", "expected different names, found 'f' twice"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs", "tools is a field of its own"),
    ],
)
def test_no_option_is_dropped_silently(pocket: Running, fields: dict[str, Any], param: str, words: str) -> None:
    with pocket.http() as client:
        answer = client.post("/v1/chat/completions", json={**CHAT, "model": "pocket", **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {"prompt": "a", "tools": [TOOL]}, "tools"),
        ("/tokenize", {"messages": CHAT["messages"], "chat_template_kwargs": {"add_generation_prompt": 1}}, None),
        ("/detokenize", {"tokens": [320]}, "tokens"),
        ("/v1/completions", {"model": "tiny", "prompt": ["a"] * 1025}, "prompt"),
    ],
)
def test_other_routes_refuse_too(http: httpx.Client, path: str, body: dict[str, Any], param: str | None) -> None:
    """Regression: some failed with 500, or with 429 for ever; others were answered without what they asked for."""
    answer = http.post(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == (param or "chat_template_kwargs")
