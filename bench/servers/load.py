"""Clients of a server: streamed chats, with the time of each piece, and the processes that serve them."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

TICKS = os.sysconf("SC_CLK_TCK")
START_SECONDS, ATTEMPTS = 600, 50


@dataclass
class Streamed:
    """A streamed answer as its client saw it. Times are seconds on one clock; `pieces` are those with text."""

    begin: float
    pieces: list[float] = field(default_factory=list)
    tokens: int = 0
    text: str = ""
    refused: int = 0

    @property
    def first(self) -> float:
        return self.pieces[0] - self.begin

    @property
    def gaps(self) -> list[float]:
        return [b - a for a, b in pairwise(self.pieces)]


@dataclass(frozen=True)
class Server:
    """A server's process."""

    url: str
    process: subprocess.Popen
    model: str
    seconds: float  # from its start to its first answer to a request for the list of models

    def threads(self) -> tuple[float, float]:
        """Return the processor seconds of the first thread, in which the event loop runs, and of all others."""
        first, others = 0.0, 0.0
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            seconds = (int(fields[11]) + int(fields[12])) / TICKS
            if int(task.name) == self.process.pid:
                first += seconds
            else:
                others += seconds
        return first, others


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def started(command: Sequence[str], port: int, model: str, log: Path) -> Iterator[Server]:
    """Run a server until the block ends. Raises RuntimeError with the end of its log where it does not start."""
    url = f"http://127.0.0.1:{port}"
    begin = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        while not answers(url):
            if process.poll() is not None or time.perf_counter() - begin > START_SECONDS:
                raise RuntimeError(f"{command[0]} does not serve: {log.read_text()[-500:]}")
            time.sleep(0.01)
        yield Server(url, process, model, time.perf_counter() - begin)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/v1/models", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def ours(model: Path | None, log: Path, *options: str) -> Any:
    port = free_port()
    named = ["--model", f"bench={model}"] if model else []
    command = [sys.executable, "-m", "tiny_llm", "serve", "--port", str(port), *named, *options]
    return started(command, port, "bench" if model else "pocket", log)


def mlx_lm(model: Path, log: Path) -> Any:
    port = free_port()
    code = "import tiny_llm, sys; from mlx_lm.server import main; main()"  # tiny_llm: the same BLAS for both
    command = [sys.executable, "-c", code, "--model", str(model), "--port", str(port), "--log-level", "ERROR"]
    return started(command, port, str(model), log)


async def chat(
    client: httpx.AsyncClient, server: Server, messages: Sequence[Mapping[str, str]], max_tokens: int
) -> Streamed:
    """Stream an answer to its end. A connection that is refused is tried again, and the time until then counts."""
    body = {
        "model": server.model,
        "messages": list(messages),
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    found = Streamed(time.perf_counter())
    url = f"{server.url}/v1/chat/completions"
    while not await read(client, url, body, found):
        await asyncio.sleep(0.05)
    return found


async def read(client: httpx.AsyncClient, url: str, body: dict[str, Any], found: Streamed) -> bool:
    """Read a streamed answer. Return False where the connection was refused."""
    try:
        async with client.stream("POST", url, json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    take(found, json.loads(line.removeprefix("data: ")))
        return True
    except httpx.TransportError:
        if found.pieces:
            raise
        found.refused += 1
        if found.refused > ATTEMPTS:
            raise
        return False


def take(found: Streamed, chunk: dict[str, Any]) -> None:
    """Take in an event."""
    if "error" in chunk:
        raise RuntimeError(chunk["error"])
    usage = chunk.get("usage")
    if usage:
        found.tokens = usage["completion_tokens"]
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") or {}
        text = delta.get("content") or delta.get("reasoning") or ""
        if text:
            found.pieces.append(time.perf_counter())
            found.text += text


async def at_once(
    server: Server, talks: Sequence[Sequence[Mapping[str, str]]], max_tokens: int, clients: int
) -> list[Streamed]:
    """Answer all talks, so many at a time, each over a connection of its own."""
    limits = httpx.Limits(max_connections=clients)
    turn = asyncio.Semaphore(clients)
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:

        async def one(talk: Sequence[Mapping[str, str]]) -> Streamed:
            async with turn:
                return await chat(client, server, talk, max_tokens)

        return list(await asyncio.gather(*map(one, talks)))
