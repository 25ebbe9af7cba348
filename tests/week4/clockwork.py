"""An event loop whose clock jumps where it would wait. So tests of time-outs are exact and quick."""

import asyncio
import selectors
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

MOST_TURNS = 20_000
BEGIN = 1000.0  # a clock that began at 0 would hide times that are taken for points in time


class StuckError(RuntimeError):
    """The code waits for something that never happens, or goes round without waiting."""


class JumpingSelector(selectors.SelectSelector):
    """Finds no file that is ready, so that only the clock can go on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = BEGIN
        self.turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        self.turns += 1
        if not ready and timeout is None:
            raise StuckError("this waits for something that never happens")
        if self.turns > MOST_TURNS:
            raise StuckError("this goes round and round without an end")
        if not ready and timeout is not None:
            self.now += timeout
        return ready


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on a clock of its own. Raises StuckError where it would never end."""
    selector = JumpingSelector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    loop.set_exception_handler(lambda loop, context: None)
    try:
        return loop.run_until_complete(main)
    finally:
        selector.turns = 0
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        with suppress(StuckError):
            loop.run_until_complete(_end_of(left))
        with suppress(StuckError):
            loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _end_of(tasks: set[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


def now() -> float:
    """Return the seconds since `run` began, to a microsecond."""
    return round(asyncio.get_running_loop().time() - BEGIN, 6)
