"""Two `tiny-llm serve` behind SMG, the SGLang line's router: nothing is lost while one is drained and one is killed.

    pip install smg
    python bench/router.py [--smg smg] [--clients 8] [--seconds 10]

Clients send requests through the router without a break, whole and streamed ones in turn, and hold each answer against
its solo run. Meanwhile the first server is drained (SIGTERM) and started again, and then the second one is killed
(SIGKILL). No request may fail, except the streams that the killed server had begun: a router can't take these back, and
they are counted as broken and sent again.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx

from bench.servers import load
from tests.server.traffic import PROMPTS, Traffic, body_of
from tests.support import make_model

MODEL = "bench"
START_SECONDS = 120
ROUTER = ["--policy", "round_robin", "--health-check-interval-secs", "1", "--health-failure-threshold", "1"]
ROUTER += ["--health-success-threshold", "1", "--retry-max-retries", "8", "--disable-tokenizer-autoload"]


class Servers:
    """The processes, by port."""

    def __init__(self, model: Path, folder: Path):
        self.model, self.folder = model, folder
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, port: int) -> None:
        """Start a server and wait until it is ready."""
        command = [sys.executable, "-m", "tiny_llm", "serve", "--port", str(port), "--model", f"{MODEL}={self.model}"]
        with (self.folder / f"{port}.log").open("ab") as log:
            self.processes[port] = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(f"http://127.0.0.1:{port}/ready")

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


def wait_for(url: str) -> None:
    """Wait until a URL answers 200. Raises RuntimeError."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"{url} does not answer")


@contextmanager
def routing(smg: str, ports: list[int], log: Path) -> Iterator[str]:
    """Run the router until the block ends; its URL."""
    port, metrics = load.free_port(), load.free_port()
    urls = [f"http://127.0.0.1:{each}" for each in ports]
    command = [smg, "launch", "--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics)]
    with log.open("wb") as file:
        process = subprocess.Popen([*command, "--worker-urls", *urls, *ROUTER], stdout=file, stderr=file)
    try:
        wait_for(f"http://127.0.0.1:{port}/readiness")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


class Clients:
    """Clients that send requests until `ended`, and count what became of them."""

    def __init__(self, http: httpx.AsyncClient, solo: list[str]):
        self.http, self.solo = http, solo
        self.seen: Counter[str] = Counter()
        self.faults: list[str] = []
        self.ended = False

    async def run(self, number: int) -> None:
        while not self.ended:
            number += 1
            body = body_of(MODEL, number % PROMPTS)
            found = await (self._whole(body) if number % 2 else self._streamed(body))
            if found is None:
                self.seen["broken streams, sent again"] += 1
            elif found == self.solo[number % PROMPTS]:
                self.seen["answers"] += 1
            else:
                self.faults.append(f"{number % PROMPTS}: {found!r}")

    async def _whole(self, body: dict[str, Any]) -> str:
        response = await self.http.post("/v1/chat/completions", json=body)
        if response.status_code != 200:
            return f"status {response.status_code}: {response.text[:200]}"
        return response.json()["choices"][0]["message"]["content"] or ""

    async def _streamed(self, body: dict[str, Any]) -> str | None:
        found = load.Streamed(time.perf_counter())
        ok = False
        try:
            async with self.http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
                if response.status_code != 200:
                    return f"status {response.status_code}: {(await response.aread())[:200]!r}"
                async for line in response.aiter_lines():
                    ok = ok or line == "data: [DONE]"
                    if line.startswith("data: {"):
                        load.take(found, json.loads(line.removeprefix("data: ")))
        except (httpx.TransportError, RuntimeError):
            return None
        return found.text if ok else None


async def watch(url: str, servers: Servers, clients: int, seconds: float) -> Clients:
    first, second = servers.processes
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        traffic = Traffic(http, MODEL)
        await traffic.learn()
        found = Clients(http, traffic.solo)
        tasks = [asyncio.ensure_future(found.run(number)) for number in range(clients)]
        await asyncio.sleep(seconds / 4)
        servers.processes[first].send_signal(signal.SIGTERM)
        await asyncio.to_thread(servers.processes[first].wait, START_SECONDS)
        print(f"drained: exit status {servers.processes[first].returncode}; {dict(found.seen)}", flush=True)
        assert not found.seen["broken streams, sent again"], "the drain broke a stream"
        await asyncio.sleep(seconds / 4)
        await asyncio.to_thread(servers.start, first)
        await asyncio.sleep(seconds / 4 + 3)  # the router finds it
        os.kill(servers.processes[second].pid, signal.SIGKILL)
        print(f"killed: {dict(found.seen)}", flush=True)
        await asyncio.sleep(seconds / 4)
        found.ended = True
        await asyncio.gather(*tasks)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smg", default="smg", help="the router's program (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=8, help="clients at once (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="about the length (default: %(default)s)")
    options = parser.parse_args()
    smg = shutil.which(options.smg)
    if smg is None:
        parser.error(f"--smg: no program {options.smg!r} found; install it with pip install smg")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = Servers(make_model(folder / "random", max_position_embeddings=2048), folder)
        stack.callback(servers.end)
        ports = [load.free_port(), load.free_port()]
        for port in ports:
            servers.start(port)
        url = stack.enter_context(routing(smg, ports, folder / "smg.log"))
        found = asyncio.run(watch(url, servers, options.clients, options.seconds))
    print(", ".join(f"{count:,} {name}" for name, count in found.seen.items()), f"{len(found.faults)} lost or wrong")
    assert not found.faults, found.faults[:3]


if __name__ == "__main__":
    main()
