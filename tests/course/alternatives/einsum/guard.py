"""With a timer of the event loop's wait in place of wait_for."""

import asyncio

from tiny_llm.server import errors


class Body:
    async def receive(self):
        if self._whole:
            return await self._receive()
        clock = asyncio.get_running_loop().time
        limit, seconds = self._settings.max_body, self._settings.body_seconds
        self._deadline = self._deadline or clock() + seconds
        waiting = asyncio.ensure_future(self._receive())
        done, _ = await asyncio.wait({waiting}, timeout=self._deadline - clock())
        if not done:
            waiting.cancel()
            raise errors.too_slow(seconds)
        message = waiting.result()
        self._size = sum((self._size, len(message.get("body") or b"")))
        if limit < self._size:
            raise errors.too_large(limit)
        self._whole = message.get("more_body") is not True
        return message
