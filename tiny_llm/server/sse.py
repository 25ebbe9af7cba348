"""Event streams: events as they come, comments while there are none, and an end when the client is gone."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Message, Receive, Scope, Send

from tiny_llm.server.errors import ApiError, GoneError, api_error
from tiny_llm.server.settings import ServerSettings

COMMENT = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
Events = AsyncGenerator[bytes, None]
ErrorEvent = Callable[[ApiError], bytes]
Done = TypeVar("Done")
Yielded = TypeVar("Yielded")


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """Return a server-sent event with a JSON object, in UTF-8. `name`: its type, in APIs that name their events.

    A line `event: name`, if there is a name, a line `data: …` with the JSON text on this one line, and an empty line.
    The JSON text has no spaces between its parts. Half a surrogate pair, which UTF-8 can't hold, becomes "?".
    """
    # TASK w4.1.1: one object as an event
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {text}\n\n".encode("utf-8", "replace")
    # END TASK


def openai_event(error: ApiError) -> bytes:
    return event(error.body)


class Presence:
    """Waits for the client to close its connection, while something else is awaited."""

    def __init__(self, request: Request):
        self.gone = asyncio.ensure_future(_gone(request.receive))

    async def first(self, task: "asyncio.Future[Any]", seconds: float | None = None) -> bool:
        """Wait until a task is done, for at most `seconds`, None for any time; return whether it is done.

        A task that is not done goes on. Its result, or its error, is left to the caller. Where the client is gone the
        task is ended, and GoneError raised.
        """
        # TASK w4.1.2: the task, the client or the clock, whichever comes first
        await asyncio.wait({task, self.gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if self.gone.done():
            await end(task)
            raise GoneError
        return task.done()
        # END TASK

    def close(self) -> None:
        self.gone.cancel()


async def _gone(receive: Receive) -> None:
    """Wait until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def end(task: "asyncio.Future[Any]") -> None:
    """Cancel a task and wait until it has ended."""
    while not task.done():  # `wait_for` of Python 3.11 and earlier loses a cancellation that comes with its result
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({task}, timeout=5)
    if not task.cancelled():
        task.exception()  # an error that nobody reads would be logged


class EventStream(Response):
    """A response that sends events while they are made.

    The generator `events` is closed when it ends, when the client is gone, and when the client has read nothing for
    `write_seconds`. After `comment_seconds` without an event `comment` is sent, so that no proxy closes the connection.
    `first` is a task that waits for the first event. It is None where there are no events. `error_event` makes the last
    event of an error that comes too late for a status.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        first: "asyncio.Future[bytes | None]",
        events: Events,
        presence: Presence,
        settings: ServerSettings,
        comment: bytes = COMMENT,
        error_event: ErrorEvent = openai_event,
    ):
        super().__init__()
        del self.headers["content-length"]
        self.headers["x-accel-buffering"] = "no"  # nginx would collect events
        self._first, self._events, self._presence = first, events, presence
        self._settings, self._comment, self._error_event = settings, comment, error_event
        self._sending: float | None = None  # since when a write waits for the client
        self._wrote = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run `_pump` and `watch` until one of them is done, or the client is gone. Then end all, whatever happened.

        Nothing of the response goes on afterwards: no task runs, `first` neither, and the events are closed.
        """
        self._clock = asyncio.get_running_loop().time
        # TASK w4.1.3: the first end is the end of all
        pump = asyncio.ensure_future(self._pump(send))
        watch = asyncio.ensure_future(self.watch(send))
        try:
            await asyncio.wait({pump, watch, self._presence.gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (pump, watch, self._first):
                await end(task)
            self._presence.close()
            await self._events.aclose()
        # END TASK

    async def _pump(self, send: Send) -> None:
        """Send all events, and the end."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._all_events()) as events:
            async for data in events:
                await self._write(send, data)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    # ANCHOR: events
    async def _all_events(self) -> Events:
        """Yield the events. An error becomes the last one, because the status is sent already."""
        try:
            data = await self._first
            if data is not None:
                yield data
                async for data in self._events:
                    yield data
        except Exception as error:
            yield self._error_event(api_error(error))

    # ANCHOR_END: events

    async def _write(self, send: Send, data: bytes) -> None:
        """Send data. `_sending` is the time since when a write waits, `_wrote` that of the last one's end."""
        message: Message = {"type": "http.response.body", "body": data, "more_body": True}
        self._sending = self._clock()
        await send(message)
        self._sending = None
        self._wrote = self._clock()

    async def watch(self, send: Send) -> None:
        """Send a comment where nothing is written. Return where a write, or a comment, has waited for `write_seconds`.

        Two writes are at most `comment_seconds` apart. A comment comes at the earliest after half of that time, and not
        while a write waits: the client is slow then, and not forgotten. It may be noticed half of `write_seconds` late.
        """
        pause = self._settings.comment_seconds
        limit = self._settings.write_seconds
        self._wrote = self._clock()
        # TASK w4.1.4: comments for a silent stream, an end for a client that does not read
        while True:
            await asyncio.sleep(min(pause, limit) / 2)
            now = self._clock()
            if self._sending is not None:
                if now - self._sending > limit:
                    return
            elif now - self._wrote >= pause / 2:
                try:
                    await asyncio.wait_for(self._write(send, self._comment), limit)
                except asyncio.TimeoutError:
                    return
        # END TASK


async def open_stream(
    request: Request,
    events: Events,
    settings: ServerSettings,
    comment: bytes = COMMENT,
    error_event: ErrorEvent = openai_event,
) -> EventStream:
    """Return the response for events. An error before the first event is raised, so that it sets the status.

    `comment` is what the stream sends while no event comes. After `comment_seconds` without an event the response
    begins all the same; `error_event` makes an event of an error that comes later. Raises GoneError.
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
    return EventStream(first, events, presence, settings, comment, error_event)


async def _next(items: AsyncGenerator[Yielded, None]) -> Yielded | None:
    async for item in items:
        return item
    return None


async def with_start(items: AsyncGenerator[Yielded, None], seconds: float) -> AsyncGenerator[Yielded | None, None]:
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
