"""Event streams: events as they come, comments while there are none, and an end when the client is gone."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Message, Receive, Scope, Send

from tiny_llm.server.errors import GoneError
from tiny_llm.server.settings import ServerSettings

COMMENT = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
Events = AsyncGenerator[bytes, None]
Done = TypeVar("Done")
Item = TypeVar("Item")


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """Return a server-sent event with a JSON object. `name`: its type, in APIs that name their events."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {text}\n\n".encode("utf-8", "replace")


class Presence:
    """Waits for the client to close its connection, while something else is awaited."""

    def __init__(self, request: Request):
        self.gone = asyncio.ensure_future(_gone(request.receive))

    async def first(self, task: "asyncio.Future[Any]", seconds: float | None = None) -> bool:
        """Wait until a task is done, for at most `seconds`; return whether it is. Raises GoneError."""
        await asyncio.wait({task, self.gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if self.gone.done():
            await end(task)
            raise GoneError
        return task.done()

    def close(self) -> None:
        self.gone.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def end(task: "asyncio.Future[Any]") -> None:
    """Cancel a task and wait until it has ended."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task


class EventStream(Response):
    """A response that sends events while they are made.

    The generator `events` is closed when it ends, when the client is gone, and when the client has read nothing for
    `write_seconds`. After `comment_seconds` without an event `comment` is sent, so that no proxy closes the connection.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        first: "asyncio.Future[bytes | None]",
        events: Events,
        presence: Presence,
        settings: ServerSettings,
        comment: bytes,
    ):
        super().__init__()
        del self.headers["content-length"]
        self.headers["x-accel-buffering"] = "no"  # nginx would collect events
        self._first, self._events, self._presence = first, events, presence
        self._settings, self._comment = settings, comment
        self._sending: float | None = None  # since when a write waits for the client
        self._wrote = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._clock = asyncio.get_running_loop().time
        pump = asyncio.ensure_future(self._pump(send))
        watch = asyncio.ensure_future(self._watch(send))
        try:
            await asyncio.wait({pump, watch, self._presence.gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (pump, watch, self._first):
                await end(task)
            self._presence.close()
            await self._events.aclose()

    async def _pump(self, send: Send) -> None:
        """Send all events, and the end."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        data = await self._first
        if data is not None:
            await self._write(send, data)
            async for data in self._events:
                await self._write(send, data)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send: Send, data: bytes) -> None:
        message: Message = {"type": "http.response.body", "body": data, "more_body": True}
        self._sending = self._clock()
        await send(message)
        self._sending = None
        self._wrote = self._clock()

    async def _watch(self, send: Send) -> None:
        """Send comments while no event comes. Return where a write has waited for `write_seconds`."""
        pause = self._settings.comment_seconds
        limit = self._settings.write_seconds
        self._wrote = self._clock()
        while True:
            await asyncio.sleep(min(pause, limit) / 2)
            now = self._clock()
            if self._sending is not None:
                if now - self._sending > limit:
                    return
            elif now - self._wrote >= pause / 2:
                await self._write(send, self._comment)


async def open_stream(
    request: Request, events: Events, settings: ServerSettings, comment: bytes = COMMENT
) -> EventStream:
    """Return the response for events. An error before the first event is raised, so that it sets the status.

    `comment` is what the stream sends while no event comes. After `comment_seconds` without an event the response
    begins all the same. Raises GoneError.
    """
    presence = Presence(request)
    first = asyncio.ensure_future(_next(events))
    try:
        if await presence.first(first, settings.comment_seconds):
            first.result()
    except BaseException:
        presence.close()
        await end(first)
        await events.aclose()
        raise
    return EventStream(first, events, presence, settings, comment)


async def _next(items: AsyncGenerator[Item, None]) -> Item | None:
    async for item in items:
        return item
    return None


async def with_start(items: AsyncGenerator[Item, None], seconds: float) -> AsyncGenerator[Item | None, None]:
    """Yield the items, and before them None: when the first item is there, or after `seconds` without one.

    So an API whose stream opens with an event of its own can send it before a long prompt is computed, and an error
    that comes sooner is raised before any event.
    """
    first = asyncio.ensure_future(_next(items))
    try:
        await asyncio.wait({first}, timeout=seconds)
        if first.done():
            first.result()
        yield None
        item = await first
        if item is not None:
            yield item
        async for item in items:
            yield item
    finally:
        if not first.done():
            await end(first)


async def while_present(request: Request, work: Coroutine[Any, Any, Done]) -> Done:
    """Return the result of a coroutine. Where the client closes its connection, cancel it and raise GoneError."""
    presence = Presence(request)
    task = asyncio.ensure_future(work)
    try:
        await presence.first(task)
        return task.result()
    finally:
        presence.close()
        if not task.done():
            await end(task)
