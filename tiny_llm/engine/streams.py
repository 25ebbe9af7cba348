"""An answer on its way from the engine's thread to the thread or event loop that reads it.

The engine's thread references the reader's box, not the reader. So a dropped reader is collected at once, and cancels
its request.
"""

import asyncio
import contextlib
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from tiny_llm.decode.text import Delta
from tiny_llm.engine.batch import Collected
from tiny_llm.engine.loop import Output

Leave = Callable[[Collected], None]


class Stream(Iterator[Delta]):
    """The pieces of a request's answers, for a thread that waits for each.

    Closing or dropping it before the end cancels the request. Raises what the request met.
    """

    def __init__(self, collected: Collected, leave: Leave):
        self.collected, self._leave = collected, leave
        self._box: queue.SimpleQueue[Output | None] = queue.SimpleQueue()
        self.deliver = self._box.put  # for the engine's thread

    def __next__(self) -> Delta:
        while (output := self._box.get()) is not None:
            if output.ended:  # whoever reads on, in any thread, meets the same end
                self._box.put(output if output.error is not None else None)
            delta = self.collected.take(output)
            if delta is not None:
                return delta
        self._box.put(None)
        raise StopIteration

    def close(self) -> None:
        """Cancel the request, if it has not ended; who reads on meets the end."""
        self._box.put(None)
        self._leave(self.collected)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class AsyncStream(AsyncIterator[Delta]):
    """The same for an event loop, which it never blocks."""

    def __init__(self, collected: Collected, leave: Leave):
        self.collected, self._leave = collected, leave
        self._box = AsyncBox()
        self.deliver = self._box.put  # for the engine's thread

    async def __anext__(self) -> Delta:
        while (output := await self._box.get()) is not None:
            if output.ended:
                self._box.put(output if output.error is not None else None)
            delta = self.collected.take(output)
            if delta is not None:
                return delta
        self._box.put(None)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Cancel the request, if it has not ended; who reads on meets the end."""
        self._box.put(None)
        self._leave(self.collected)

    def __del__(self) -> None:
        self._leave(self.collected)


class AsyncBox:
    """A queue that any thread fills and tasks of any event loop read. It keeps nothing of a loop between reads."""

    def __init__(self) -> None:
        self._outputs: deque[Output | None] = deque()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._lock = threading.RLock()  # a reader may be collected, and closed, while its own thread holds it

    def put(self, output: Output | None) -> None:
        with self._lock:
            self._outputs.append(output)
            waiters, self._waiters = self._waiters, []
        for event_loop, future in waiters:
            with contextlib.suppress(RuntimeError):  # the event loop has ended: nobody waits any more
                event_loop.call_soon_threadsafe(_wake, future)

    async def get(self) -> Output | None:
        while True:
            with self._lock:
                if self._outputs:
                    return self._outputs.popleft()
                event_loop = asyncio.get_running_loop()
                future: asyncio.Future[None] = event_loop.create_future()
                self._waiters.append((event_loop, future))
            await future


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():  # the task that waited may have been cancelled
        future.set_result(None)
