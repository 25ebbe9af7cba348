"""4.1 An API over the engine: events, a client that is gone, the end of a stream, and a stream that is silent."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

from tests.week4.clockwork import now, run
from tiny_llm.course.check import Checker, task
from tiny_llm.server.errors import GoneError
from tiny_llm.server.settings import ServerSettings

COMMENT = b": keep-alive\n\n"


@task("w4.1.1")
def test_an_event_by_hand(check: Checker) -> None:
    check(
        lambda m: m.event({"a": 1, "b": [2, 3]}), b'data: {"a":1,"b":[2,3]}\n\n', what='event of {"a": 1, "b": [2, 3]}'
    )
    check(
        lambda m: m.event({"a": 1}, "ping"),
        b'event: ping\ndata: {"a":1}\n\n',
        what='event of {"a": 1} with the name ping',
    )


@task("w4.1.1")
def test_text_in_an_event(check: Checker) -> None:
    """A line break in a text is escaped, because it would end the line. Letters are written as they are."""
    rows = {
        "a line break": ({"t": "a\n\nb"}, b'data: {"t":"a\\n\\nb"}\n\n'),
        "a carriage return": ({"t": "a\rb"}, b'data: {"t":"a\\rb"}\n\n'),
        "letters beyond ASCII": ({"t": "größer 字"}, 'data: {"t":"größer 字"}\n\n'.encode()),
        "half a surrogate pair": ({"t": "a\ud83db"}, b'data: {"t":"a?b"}\n\n'),
        "a quotation mark": ({"t": 'say "x"'}, b'data: {"t":"say \\"x\\""}\n\n'),
        "an empty object": ({}, b"data: {}\n\n"),
    }
    for name, (data, want) in rows.items():
        check(lambda m, data=data: m.event(data), want, what=f"event with {name}")


def received(stream: bytes) -> list[tuple[str, Any]]:
    """Read a stream as a browser does: blocks of lines, each a field."""
    found = []
    for block in stream.decode().split("\n\n")[:-1]:
        name, data = "message", []
        for line in block.split("\n"):
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                data.append(value)
        found.append((name, json.loads("\n".join(data))))
    return found


@task("w4.1.1")
def test_a_client_reads_all_events(check: Checker) -> None:
    data = [{"index": i, "text": text} for i, text in enumerate(("a: b", "\n", "data: x\n\n", "", "\u2028", "}"))]
    want = [("message" if i % 2 else "delta", each) for i, each in enumerate(data)]
    check(
        lambda m: received(b"".join(m.event(each, None if i % 2 else "delta") for i, each in enumerate(data))),
        want,
        what="six events, as a client reads them",
    )


class Client:
    """The server's side of a connection: says when the client is gone, and records what is sent to it.

    `gone`: the time at which it closes the connection. `pause`: the seconds that it takes to read a message. `stops`:
    the number of messages with a body after which it reads no more.
    """

    def __init__(self, gone: float | None = None, pause: float = 0.0, stops: int | None = None):
        self._gone, self._pause, self._stops = gone, pause, stops
        self.sent: list[tuple[float, bytes]] = []
        self.begun: list[float] = []
        self.ended = False

    async def receive(self) -> dict[str, Any]:
        if self._gone is None:
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(max(0.0, (self._gone or 0.0) - now()))
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.begun.append(now())
            return
        if self._stops is not None and len(self.sent) >= self._stops:
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(self._pause)
        if message.get("more_body"):
            self.sent.append((now(), message["body"]))
        else:
            self.ended = True


class Work:
    """Something that takes `seconds`, and then fails where `fails`. Where it is cancelled it takes `ending` to end."""

    def __init__(self, seconds: float, fails: bool = False, ending: float = 0.0):
        self.seconds, self.fails, self.ending = seconds, fails, ending
        self.cancelled_at: float | None = None

    async def __call__(self) -> str:
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            await asyncio.sleep(self.ending)
            self.cancelled_at = now()
            raise
        if self.fails:
            raise ValueError("the work failed")
        return "done"


def waited(m: Any, work: Work, gone: float | None = None, seconds: Sequence[float | None] = (None,)) -> list[Any]:
    """For each wait: what was found, and when. Then: is the task done, at once and later; when was it cancelled."""

    async def main() -> list[Any]:
        presence = m.Presence(Client(gone))
        job = asyncio.ensure_future(work())
        found: list[Any] = []
        for limit in seconds:
            try:
                found += [await presence.first(job, limit), now()]
            except GoneError:  # noqa: PERF203
                found += ["gone", now()]
        presence.close()
        found.append(job.done())
        await asyncio.sleep(0.5)
        found.append(job.done())
        job.cancel()
        await asyncio.gather(job, presence.gone, return_exceptions=True)
        return [*found, work.cancelled_at]

    return list(run(main()))


@task("w4.1.2")
def test_the_task_is_done_first(check: Checker) -> None:
    check(
        lambda m: waited(m, Work(3), seconds=[10]),
        [True, 3.0, True, True, None],
        what="a task of 3 s, for at most 10 s",
    )
    check(lambda m: waited(m, Work(30)), [True, 30.0, True, True, None], what="a task of 30 s, for any time")
    check(
        lambda m: waited(m, Work(3, fails=True), gone=9, seconds=[10]),
        [True, 3.0, True, True, None],
        what="a task that fails after 3 s",
    )


@task("w4.1.2")
def test_the_clock_is_first(check: Checker) -> None:
    """The task goes on, and a second wait finds it."""
    check(
        lambda m: waited(m, Work(5), seconds=[2, 2, 2]),
        [False, 2.0, False, 4.0, True, 5.0, True, True, None],
        what="three waits of 2 s for a task of 5 s",
    )


@task("w4.1.2")
def test_the_client_is_gone_first(check: Checker) -> None:
    """The task is cancelled at once, and has ended when the error is raised."""
    check(
        lambda m: waited(m, Work(5), gone=3),
        ["gone", 3.0, True, True, 3.0],
        what="a client that is gone after 3 s of 5",
    )
    check(
        lambda m: waited(m, Work(5, ending=1), gone=3, seconds=[4]),
        ["gone", 4.0, True, True, 4.0],
        what="a task that needs a second to end",
    )
    check(
        lambda m: waited(m, Work(50), gone=3, seconds=[2, 4]),
        [False, 2.0, "gone", 3.0, True, True, 3.0],
        what="a client that is gone in the second wait",
    )


@task("w4.1.2")
def test_the_client_is_gone_and_the_task_is_done(check: Checker) -> None:
    """Nobody is there for the result."""
    check(lambda m: waited(m, Work(3), gone=3), ["gone", 3.0, True, True, None], what="both after 3 s")
    check(
        lambda m: waited(m, Work(3, fails=True), gone=3),
        ["gone", 3.0, True, True, None],
        what="both after 3 s, a failure",
    )
    check(
        lambda m: waited(m, Work(9), gone=2, seconds=[1, 4, 4]),
        [False, 1.0, "gone", 2.0, "gone", 2.0, True, True, 2.0],
        what="a wait after the client is gone",
    )


class Stream:
    """Makes events at some times. `ending`: the seconds that its end takes. Records when it was closed."""

    def __init__(self, times: Sequence[float], ending: float = 0.0):
        self.times, self.ending = times, ending
        self.closed_at: float | None = None

    async def events(self) -> AsyncGenerator[bytes, None]:
        try:
            for number, at in enumerate(self.times):
                await asyncio.sleep(max(0.0, at - now()))
                yield b"%d" % number
        finally:
            await asyncio.sleep(self.ending)
            self.closed_at = now()


def settings(comment: float = 10.0, write: float = 60.0) -> ServerSettings:
    return ServerSettings(comment_seconds=comment, write_seconds=write)


async def respond(
    m: Any, client: Client, stream: Stream, limits: ServerSettings, cancelled: float | None
) -> tuple[float, float | None]:
    """Send a stream to a client. Return when the response ended, and when the stream had been closed by then.

    `cancelled`: when the server cancels the response. Raises an error of the response, or of its watch.
    """
    response = await m.open_stream(client, stream.events(), limits)
    watch, errors = response.watch, list[Exception]()

    async def watched(send: Any) -> None:
        try:
            await watch(send)
        except Exception as error:
            errors.append(error)
            raise

    response.watch = watched
    job = asyncio.ensure_future(response({}, client.receive, client.send))
    await asyncio.wait({job}, timeout=None if cancelled is None else cancelled - now())
    found = await cancel(job), now(), stream.closed_at
    if errors:
        raise errors[0]
    return found[1:]


async def cancel(job: "asyncio.Future[None]") -> None:
    """Cancel a job and wait for its end. Raises its error."""
    job.cancel()
    with suppress(asyncio.CancelledError):
        await job


def served(
    m: Any, client: Client, stream: Stream, limits: ServerSettings | None = None, cancelled: float | None = None
) -> dict[str, Any]:
    """What was sent, whether the end was, when the events were closed and the response ended, and what goes on then.

    "late" is the number of messages that are sent later, "left" that of tasks that go on.
    """

    async def main() -> dict[str, Any]:
        done, closed = await respond(m, client, stream, limits or settings(), cancelled)
        for _ in range(5):
            await asyncio.sleep(0)
        left = len(asyncio.all_tasks()) - 1
        await asyncio.sleep(60)
        texts = [data for _, data in client.sent if data != COMMENT]
        late = sum(at > done for at, _ in client.sent)
        return {"sent": texts, "end": client.ended, "closed": closed, "done": done, "late": late, "left": left}

    return dict(run(main()))


def want(sent: int, end: bool, closed: float, done: float | None = None) -> dict[str, Any]:
    return {
        "sent": [b"%d" % number for number in range(sent)],
        "end": end,
        "closed": closed,
        "done": closed if done is None else done,
        "late": 0,
        "left": 0,
    }


@task("w4.1.3")
def test_a_stream_ends_by_itself(check: Checker) -> None:
    check(lambda m: served(m, Client(), Stream([1, 2, 3])), want(3, True, 3.0), what="three events in three seconds")
    check(lambda m: served(m, Client(), Stream([])), want(0, True, 0.0), what="no event")
    check(
        lambda m: served(m, Client(gone=9), Stream([1, 2, 3])),
        want(3, True, 3.0),
        what="a client that is gone after the end",
    )


@task("w4.1.3")
def test_the_client_of_a_stream_is_gone(check: Checker) -> None:
    """The events are closed at that moment, which ends the request in the engine."""
    check(
        lambda m: served(m, Client(gone=2.5), Stream([1, 2, 3, 4])),
        want(2, False, 2.5),
        what="four events, the client is gone after two",
    )
    check(
        lambda m: served(m, Client(gone=2.5, stops=1), Stream([1, 2, 3, 4])),
        want(1, False, 2.5),
        what="a client that reads one event, and is gone later",
    )
    check(
        lambda m: served(m, Client(gone=2.5), Stream([1, 2, 3, 4], ending=0.25)),
        want(2, False, 2.75),
        what="events that take a moment to close",
    )


@task("w4.1.3")
def test_the_client_is_gone_before_the_first_event(check: Checker) -> None:
    """The response has begun, with comments, and still waits for the first event."""
    check(lambda m: served(m, Client(gone=33), Stream([80, 81])), want(0, False, 33.0), what="gone during the prefill")


@task("w4.1.3")
def test_the_client_does_not_read(check: Checker) -> None:
    """`watch` ends, and so does the response."""

    def call(m: Any) -> list[Any]:
        found = served(m, Client(stops=1), Stream([1, 2, 3, 4]), settings(write=8))
        return [found["sent"], found["end"], 10 <= found["done"] <= 14, found["closed"] == found["done"], found["left"]]

    check(
        call, [[b"0"], False, True, True, 0], what="sent; its end; after 8 to 12 s more? events closed then? tasks left"
    )


@task("w4.1.3")
def test_the_server_cancels_a_stream(check: Checker) -> None:
    check(
        lambda m: served(m, Client(), Stream([1, 2, 30]), cancelled=5),
        want(2, False, 5.0),
        what="a response that is cancelled after 5 s",
    )
    check(
        lambda m: served(m, Client(), Stream([90]), cancelled=25),
        want(0, False, 25.0),
        what="a response that is cancelled before its first event",
    )


def writes(client: Client, stream: Stream, limits: ServerSettings) -> Callable[[Any], tuple[list[float], list[bytes]]]:
    """The times between all that is written from the response's begin on, and all that was written."""

    def call(m: Any) -> tuple[list[float], list[bytes]]:
        served(m, client, stream, limits)
        times = [*client.begun, *(at for at, _ in client.sent)]
        gaps = [round(after - before, 6) for before, after in pairwise(times)]
        return gaps, [data for _, data in client.sent]

    return call


@task("w4.1.4")
def test_a_silent_stream(check: Checker) -> None:
    """The first event comes after 92.5 s, the next 45.5 s later. Writes are 5 to 10 s apart, but for the events."""

    def call(m: Any) -> list[Any]:
        gaps, written = writes(Client(), Stream([92.5, 138]), settings(comment=10))(m)
        beside = [gap for gap, data in zip(gaps, written, strict=True) if data == COMMENT]
        events = [data for data in written if data != COMMENT]
        return [max(10.0, *gaps), min(5.0, *beside) if beside else None, events]

    check(
        call, [10.0, 5.0, [b"0", b"1"]], what="longest gap, or 10 s; shortest gap before a comment, or 5 s; the events"
    )


@task("w4.1.4")
def test_a_busy_stream_needs_no_comment(check: Checker) -> None:
    times = [number * 2 for number in range(1, 60)]
    call = writes(Client(), Stream(times), settings(comment=10))
    check(lambda m: COMMENT in call(m)[1], False, what="comments between events that are 2 s apart?")


@task("w4.1.4")
def test_a_client_that_reads_slowly_is_kept(check: Checker) -> None:
    """Each write takes 3 s of the 4 that are allowed, and all comes."""
    check(
        lambda m: served(m, Client(pause=3), Stream([1, 2, 3, 40]), settings(comment=10, write=4))["sent"],
        [b"0", b"1", b"2", b"3"],
        what="events to a client that takes 3 s for each",
    )


def dropped(stops: int, times: Sequence[float], limits: ServerSettings, least: float, most: float) -> Any:
    """Whether the response to a client that stops reading ends between two times, else when it ends."""

    def call(m: Any) -> str:
        done = served(m, Client(stops=stops), Stream(times), limits, cancelled=1000)["done"]
        return "in time" if least <= done <= most else f"after {done:g} s"

    return call


@task("w4.1.4")
def test_a_client_that_does_not_read_is_dropped(check: Checker) -> None:
    """A write waits from 2 s on, and may wait for 8 s."""
    for comment, write in ((10, 8), (4, 60), (600, 4)):
        call = dropped(1, [1, 2, 3], settings(comment, write), 2 + write, 2 + 1.5 * write)
        check(call, "in time", what=f"end, {write} to {1.5 * write:g} s after the write began at 2 s")


@task("w4.1.4")
def test_a_comment_may_wait_for_the_client_too(check: Checker) -> None:
    """The client reads nothing from the begin on. The first that waits is a comment."""
    call = dropped(0, [500], settings(comment=10, write=20), 35, 50)
    check(call, "in time", what="end, 20 to 30 s after the first comment began, at 15 to 20 s")


class Counting(Client):
    """Counts the writes that are begun."""

    def __init__(self, stops: int):
        super().__init__(stops=stops)
        self.writes = 0

    async def send(self, message: dict[str, Any]) -> None:
        self.writes += message["type"] == "http.response.body"
        await super().send(message)


@task("w4.1.4")
def test_no_comment_comes_while_a_write_waits(check: Checker) -> None:
    def call(m: Any) -> int:
        client = Counting(stops=1)
        served(m, client, Stream([1, 2, 3]), settings(comment=4, write=60), cancelled=1000)
        return client.writes

    check(call, 2, what="writes that were begun: the one that was read and the one that waits")
