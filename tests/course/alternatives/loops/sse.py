"""By hand."""

import asyncio
import json

from tiny_llm.server.errors import GoneError


def event(data, name=None):
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    text = "".join("?" if 0xD800 <= ord(letter) <= 0xDFFF else letter for letter in text)
    if name is None:
        return b"data: " + text.encode() + b"\n\n"
    return b"event: " + name.encode() + b"\ndata: " + text.encode() + b"\n\n"


class Presence:
    async def first(self, task, seconds=None):
        clock = asyncio.get_running_loop()
        until = None if seconds is None else clock.time() + seconds
        while not task.done() and not self.gone.done():
            left = None if until is None else until - clock.time()
            if left is not None and left <= 0:
                return False
            await asyncio.wait([task, self.gone], timeout=left, return_when="FIRST_COMPLETED")
        if self.gone.done():
            task.cancel()
            await asyncio.wait([task])
            raise GoneError
        return True


class EventStream:
    async def __call__(self, scope, receive, send):
        self._clock = asyncio.get_running_loop().time
        tasks = [asyncio.create_task(self._pump(send)), asyncio.create_task(self.watch(send)), self._first]
        try:
            while not (tasks[0].done() or tasks[1].done() or self._presence.gone.done()):
                waited = [*tasks[:2], self._presence.gone]
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in reversed(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._presence.gone.cancel()
            await self._events.aclose()

    async def watch(self, send):
        pause = self._settings.comment_seconds
        limit = self._settings.write_seconds
        self._wrote = self._clock()
        while True:
            now = self._clock()
            if self._sending is None:
                due = self._wrote + pause * 0.8
                if now >= due:
                    try:
                        await asyncio.wait_for(self._write(send, self._comment), timeout=limit)
                    except asyncio.TimeoutError:
                        break
                    continue
            else:
                due = self._sending + limit * 1.01
                if now >= due:
                    break
            await asyncio.sleep(min(due - now, limit / 3))
