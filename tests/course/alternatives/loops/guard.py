"""The time that is left goes down."""

import asyncio

from tiny_llm.server import errors


class Body:
    async def receive(self):
        message = None
        if not self._whole:
            now = asyncio.get_event_loop().time()
            if self._deadline is None:
                self._deadline = now + self._settings.body_seconds
            try:
                message = await asyncio.wait_for(self._receive(), timeout=self._deadline - now)
            except asyncio.TimeoutError as error:
                raise errors.too_slow(self._settings.body_seconds) from error
            if "body" in message:
                self._size += len(message["body"])
            if self._size > self._settings.max_body:
                raise errors.too_large(self._settings.max_body)
            if not message.get("more_body"):
                self._whole = True
        else:
            message = await self._receive()
        return message
