"""Clients of a server under load: patient, leaving and slow ones. Each answer is held against its solo run."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx

from bench.servers.load import Streamed, take

PROMPTS = 12
ATTEMPTS = 400  # of a request that the server refuses because its queue is full
PATIENCE = 0.2  # seconds until a refused request is sent again


@dataclass
class Tally:
    """What the clients saw. `wrong` are the answers that differ from their solo runs."""

    answered: int = 0
    left: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)


def body_of(model: str, number: int) -> dict[str, Any]:
    """The request number `number` of PROMPTS: they share the begin of their prompts, and differ in length."""
    words = "tell me what the quick brown fox did " + "and then " * (number % 4) + f"on day {number}"
    return {
        "model": model,
        "messages": [{"role": "user", "content": words}],
        "max_tokens": 4 + 3 * (number % 7),
        "temperature": 0,
        "ignore_eos": True,
    }


class Traffic:
    """Random clients of one server. `solo` are the answers to the prompts, asked one after another."""

    def __init__(self, http: httpx.AsyncClient, model: str, seed: int = 0):
        self.http, self.model, self.random = http, model, Random(seed)
        self.solo: list[str] = []
        self.tally = Tally()

    async def learn(self) -> None:
        """Ask each prompt alone."""
        for number in range(PROMPTS):
            self.solo.append(await self._whole(body_of(self.model, number)))

    async def run(self, clients: int, goes_on: Callable[[], bool]) -> None:
        """Let so many clients send one request after another while `goes_on`."""

        async def client() -> None:
            while goes_on():
                await self._one()

        await asyncio.gather(*(client() for _ in range(clients)))

    async def _one(self) -> None:
        number = self.random.randrange(PROMPTS)
        ways: list[Callable[[dict[str, Any]], Awaitable[str | None]]] = [self._whole, self._streamed]
        ways += [self._slow, self._leaving]
        (way,) = self.random.choices(ways, weights=(4, 8, 1, 3))
        text = await way(body_of(self.model, number))
        if text is None:
            self.tally.left += 1
            return
        self.tally.answered += 1
        if text != self.solo[number]:
            self.tally.wrong.append(f"{number}: {text!r}")

    async def _whole(self, body: dict[str, Any]) -> str:
        for _ in range(ATTEMPTS):
            response = await self.http.post("/v1/chat/completions", json=body)
            if not await self._is_refused(response):
                return response.json()["choices"][0]["message"]["content"] or ""
        raise AssertionError("the server was full for too long")

    async def _streamed(self, body: dict[str, Any], pause: float = 0.0, leave_after: int | None = None) -> str | None:
        for _ in range(ATTEMPTS):
            found = Streamed(0.0)
            async with self.http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
                if await self._is_refused(response):
                    continue
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        take(found, json.loads(line.removeprefix("data: ")))
                    if leave_after is not None and len(found.pieces) >= leave_after:
                        return None
                    await asyncio.sleep(pause)
            return found.text
        raise AssertionError("the server was full for too long")

    async def _slow(self, body: dict[str, Any]) -> str | None:
        return await self._streamed(body, pause=0.02)

    async def _leaving(self, body: dict[str, Any]) -> str | None:
        return await self._streamed(body, leave_after=self.random.randrange(4))

    async def _is_refused(self, response: httpx.Response) -> bool:
        """Return whether the queue was full, after a pause. Raises httpx.HTTPStatusError for another error."""
        if response.status_code != 429:
            response.raise_for_status()
            return False
        assert int(response.headers["retry-after"]) >= 1
        self.tally.refused += 1
        await asyncio.sleep(PATIENCE)
        return True
