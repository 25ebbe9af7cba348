"""One server under many clients: floods, clients that leave, slow ones, and connections that say nothing."""

import asyncio
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path

import httpx
import pytest

from tests.server.conftest import SERVING, Running, serving
from tests.server.traffic import Tally, Traffic, body_of
from tiny_llm.server.models import ModelSpec

QUEUE = 20  # unfinished requests that the server takes


@pytest.fixture(scope="module")
def busy(random_path: Path) -> Iterator[Running]:
    with serving(ModelSpec("tiny", str(random_path)), config=replace(SERVING, max_requests=QUEUE)) as running:
        yield running


async def send(url: str, clients: int, requests: int) -> Tally:
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as http:
        traffic = Traffic(http, "tiny", seed=clients)
        await traffic.learn()
        sent = count()
        await traffic.run(clients, lambda: next(sent) < requests)
        return traffic.tally


@pytest.mark.parametrize(("clients", "requests"), [(1, 12), (8, 60), (64, 160), (256, 300)])
def test_each_answer_is_that_of_its_solo_run(busy: Running, clients: int, requests: int) -> None:
    tally = asyncio.run(send(busy.url, clients, requests))
    assert tally.wrong == []
    assert tally.answered + tally.left == requests and tally.answered > tally.left > 0
    busy.wait_idle(60)
    with busy.http() as http:
        (load,) = http.get("/v1/loads").json()["loads"]
    assert load["num_total_reqs"] == load["num_used_tokens"] == 0


async def flood(url: str, requests: int) -> list[httpx.Response]:
    """Send long requests at once; return the responses that came, and leave the others."""
    body = {**body_of("tiny", 0), "max_tokens": 1900}
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=httpx.Limits(max_connections=requests)) as http:
        tasks = [asyncio.ensure_future(http.post("/v1/chat/completions", json=body)) for _ in range(requests)]
        done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return [task.result() for task in done]


def test_a_flood_is_refused_and_leaves_nothing(busy: Running) -> None:
    for response in asyncio.run(flood(busy.url, 3 * QUEUE)):
        assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["code"] == "queue_full"
    busy.wait_idle(60)


def test_a_thousand_idle_connections_are_held(busy: Running) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2500:
        pytest.skip(f"this machine allows {hard} open files to a process, 2,500 are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2500), hard))
    with ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection(busy.listener.getsockname()[:2])) for _ in range(1000)]
        with busy.http() as http:
            assert http.get("/health").status_code == 200
        for connection in (held[0], held[500], held[999]):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(64).startswith(b"HTTP/1.1 200")
