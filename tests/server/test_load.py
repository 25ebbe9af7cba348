"""Clients that vanish, read slowly or wait long, and a server that ends."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.server.conftest import LOCAL, SERVING, Running, serving, wait_for
from tiny_llm.config import SchedulerConfig
from tiny_llm.engine.events import Event
from tiny_llm.server.models import ModelSpec

MESSAGES = [{"role": "user", "content": "hello there"}]
LONG = {"model": "tiny", "messages": MESSAGES, "max_tokens": 1900, "ignore_eos": True}


class Log:
    """The events of all engines, as they come."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def of(self, name: str):
        return self.events.append

    def steps_of_unfinished(self) -> int:
        """Steps that were computed after the last request had arrived."""
        return sum(event.kind == "step" for event in self.events)

    @property
    def finished(self) -> list[str]:
        return [event.note for event in self.events if event.kind == "finish"]


def post(path: str, body: dict[str, object]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    return head.encode() + b"\r\n\r\n" + data


def connect(running: Running) -> socket.socket:
    return socket.create_connection(running.listener.getsockname()[:2], timeout=20)


@pytest.mark.parametrize("stream", [True, False])
def test_a_vanished_client_frees_its_blocks(random_path: Path, stream: bool) -> None:
    log = Log()
    with serving(ModelSpec("tiny", str(random_path)), observe=log.of) as running:
        connection = connect(running)
        connection.sendall(post("/v1/chat/completions", {**LONG, "stream": stream}))
        wait_for(lambda: sum(event.kind == "token" for event in log.events) > 5)
        connection.close()
        wait_for(lambda: bool(log.finished), 5)
        running.wait_idle()
        tokens = sum(event.kind == "token" for event in log.events)
        assert log.finished == ["cancelled"] and tokens < 1900
        time.sleep(0.2)
        assert sum(event.kind == "token" for event in log.events) == tokens  # nothing computes any more


def test_clients_that_vanish_at_random_leave_nothing(random_path: Path) -> None:
    async def ask(client: httpx.AsyncClient, number: int) -> None:
        body = {**LONG, "stream": number % 2 == 0, "max_tokens": 300, "n": 1 + number % 3}
        with suppress(asyncio.TimeoutError, httpx.HTTPError):
            await asyncio.wait_for(client.post("/v1/chat/completions", json=body), number * 0.02)

    async def ask_all(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            await asyncio.gather(*(ask(client, number) for number in range(24)))

    with serving(ModelSpec("tiny", str(random_path))) as running:
        asyncio.run(ask_all(running.url))
        running.wait_idle()
        with running.http() as http:
            answer = http.post("/v1/chat/completions", json={**LONG, "max_tokens": 8}).json()
            assert answer["usage"]["completion_tokens"] == 8


def test_a_slow_reader_stalls_nobody_and_is_dropped(random_path: Path) -> None:
    settings = replace(LOCAL, write_seconds=1.0)
    with serving(ModelSpec("tiny", str(random_path)), settings=settings) as running:
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        slow.connect(running.listener.getsockname()[:2])
        slow.sendall(
            post("/v1/chat/completions", {**LONG, "stream": True, "n": 8, "logprobs": True, "top_logprobs": 20})
        )
        wait_for(lambda: running.unfinished == 1)
        with running.http() as http:
            begin = time.monotonic()
            answer = http.post("/v1/chat/completions", json={**LONG, "max_tokens": 20})
            assert answer.status_code == 200 and time.monotonic() - begin < 10
        running.wait_idle(30)
        slow.close()


def test_comments_keep_a_silent_stream_open(random_path: Path) -> None:
    settings = replace(LOCAL, comment_seconds=0.1)
    config = replace(SERVING, scheduler=SchedulerConfig(token_budget=16, max_sequences=1))
    served = serving(ModelSpec("tiny", str(random_path)), settings=settings, config=config)
    short = {**LONG, "stream": True, "max_tokens": 2}
    with served as running, running.http() as http, running.http() as other:
        first = other.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True})
        with first as before, http.stream("POST", "/v1/chat/completions", json=short) as second:
            lines = before.iter_lines()  # a dropped iterator would close the connection
            next(lines)
            assert next(second.iter_lines()) == ": keep-alive"  # it waits behind the first one


def test_a_drain_lets_running_requests_end(random_path: Path) -> None:
    with serving(ModelSpec("tiny", str(random_path))) as running, running.http() as http:
        with http.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True, "max_tokens": 600}) as stream:
            lines = stream.iter_lines()
            next(lines)
            running.server.handle_exit(signal.SIGTERM, None)
            wait_for(lambda: running.state.drain.begun)
            with running.http() as late:
                refused = late.post("/v1/chat/completions", json=LONG)
                assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
                assert refused.json()["error"] == {
                    "message": "The server is shutting down; please try again at another one.",
                    "type": "server_error",
                    "param": None,
                    "code": "draining",
                }
                assert late.get("/health").status_code == 503
            rest = [line for line in lines if line]
            assert rest[-1] == "data: [DONE]" and '"finish_reason":"length"' in rest[-2]
        running.thread.join(10)
        assert not running.thread.is_alive()


def start(*options: str) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "tiny_llm", "serve", "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return process, line.split(" at ")[1].partition("/v1 ")[0]


def test_sigterm_ends_the_process_after_its_requests(random_path: Path) -> None:
    process, url = start("--model", f"tiny={random_path}")
    body = {**LONG, "max_tokens": 400, "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert rest[-1] == "data: [DONE]" and '"finish_reason":"length"' in rest[-2]
    assert out == "" and "Traceback" not in err


def test_a_second_signal_ends_at_once(random_path: Path) -> None:
    process, url = start("--model", f"tiny={random_path}", "--drain-seconds", "100")
    body = {**LONG, "stream": True, "n": 8}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx.get(f"{url}/health").status_code == 503)
        process.send_signal(signal.SIGTERM)
        last = [line for line in lines if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "cancelled"
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0 and "Traceback" not in err


def test_a_port_in_use_is_told(tiny: Running) -> None:
    port = tiny.listener.getsockname()[1]
    command = [sys.executable, "-m", "tiny_llm", "serve", "--port", str(port)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"error: host 127.0.0.1, port {port}: can't listen there" in done.stderr and done.stderr.count("\n") <= 2


def test_an_error_behind_the_first_comment_is_an_event(random_path: Path) -> None:
    """Regression: where a queued request failed after comments had begun, its stream broke off without a word."""
    settings = replace(LOCAL, comment_seconds=0.1, request_seconds=1.0)
    scheduler = SchedulerConfig(token_budget=256, max_sequences=1)
    config = replace(SERVING, scheduler=scheduler)
    with serving(ModelSpec("tiny", str(random_path)), settings=settings, config=config) as running:
        first = connect(running)
        first.sendall(post("/v1/chat/completions", {**LONG, "stream": True, "priority": 0}))
        wait_for(lambda: running.unfinished == 1)
        with running.http() as client:
            found = client.post("/v1/chat/completions", json={**LONG, "stream": True})
        first.close()
        events = found.text.split("\n\n")
        assert found.status_code == 200 and events[0] == ": keep-alive"
        error = json.loads(events[-2].removeprefix("data: "))
        assert error["error"]["code"] == "answer_timeout"
        running.wait_idle()
