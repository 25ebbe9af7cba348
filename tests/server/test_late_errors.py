"""An error that comes when the stream has begun is an event in the form of its API."""

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest
from starlette.requests import Request

from tests.server.conftest import LOCAL
from tiny_llm.server.errors import unavailable
from tiny_llm.server.routes.messages import PING, error_event
from tiny_llm.server.sse import COMMENT, open_stream, openai_event

SCOPE: dict[str, Any] = {"type": "http", "method": "POST", "path": "/", "headers": []}


async def events(count: int) -> AsyncGenerator[bytes, None]:
    """Yield `count` events, then fail."""
    await asyncio.sleep(0.1)
    for _ in range(count):
        yield b"data: {}\n\n"
    raise unavailable("The model has no room in memory.", "no_memory")


async def sent(count: int, *form: Any) -> bytes:
    """Return what a client gets whose stream fails after `count` events."""
    bodies: list[bytes] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        bodies.append(message.get("body", b""))

    settings = replace(LOCAL, comment_seconds=0.01)  # the response begins before the first event
    request = Request(SCOPE, receive)
    response = await open_stream(request, events(count), settings, *form)
    await response(SCOPE, receive, send)
    return b"".join(bodies)


def last_event(data: bytes) -> str:
    """The last event but pings and comments."""
    found = [each for each in data.decode().split("\n\n") if "data: " in each and each != PING.decode().strip()]
    return found[-1]


@pytest.mark.parametrize("count", [0, 2])
def test_a_late_error_has_the_form_of_its_api(count: int) -> None:
    name, data = last_event(asyncio.run(sent(count, PING, error_event))).split("\n")
    assert name == "event: error"
    body = json.loads(data.removeprefix("data: "))
    assert body["type"] == "error" and body["error"]["type"] == "overloaded_error"
    body = json.loads(last_event(asyncio.run(sent(count, COMMENT, openai_event))).removeprefix("data: "))
    assert (body["error"]["code"], body["error"]["type"]) == ("no_memory", "server_error")
