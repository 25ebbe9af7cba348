"""With other tools of asyncio."""

import asyncio
import contextlib
import json

from tiny_llm.server.errors import GoneError
from tiny_llm.server.sse import end


def event(data, name=None):
    encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
    lines = [b"data: " + encoder.encode(data).encode("utf-8", errors="replace"), b"", b""]
    if name is not None:
        lines.insert(0, b"event: " + name.encode())
    return b"\n".join(lines)


class Presence:
    async def first(self, task, seconds=None):
        woken = asyncio.Event()
        watched = (task, self.gone)
        for each in watched:
            each.add_done_callback(lambda _: woken.set())
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(woken.wait(), seconds)
        if not self.gone.done():
            return task.done()
        await end(task)
        raise GoneError()


class EventStream:
    async def __call__(self, scope, receive, send):
        self._clock = asyncio.get_running_loop().time
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._events.aclose)
            stack.callback(self._presence.close)
            stack.push_async_callback(end, self._first)
            running = []
            for work in (self._pump, self.watch):
                task = asyncio.create_task(work(send))
                stack.push_async_callback(end, task)
                running.append(task)
            await asyncio.wait([*running, self._presence.gone], return_when=asyncio.FIRST_COMPLETED)

    async def watch(self, send):
        pause = self._settings.comment_seconds
        limit = self._settings.write_seconds
        self._wrote = self._clock()
        tick = min(pause, limit) / 8
        while True:
            await asyncio.sleep(tick)
            since = self._sending
            if since is not None and self._clock() > since + limit:
                return
            if since is None and self._clock() > self._wrote + 0.75 * pause:
                comment = asyncio.ensure_future(self._write(send, self._comment))
                _, waiting = await asyncio.wait({comment}, timeout=limit)
                if waiting:
                    await end(comment)
                    return
