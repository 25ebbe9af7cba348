"""A long run of `tiny-llm serve` under random clients: flat memory, and each answer the one of its solo run.

    python bench/server_soak.py [--minutes 60] [--clients 24] [--seed 0]

Clients stream, wait, read slowly and leave (tests/server/traffic.py), at a random two-layer model whose blocks also go
to the disk. Each minute prints what happened and the process's memory. It fails where an answer differs, a request
fails, or memory grows: after the first tenth of the run by more than a tenth and 32 MB.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx

from bench.servers import load
from tests.server.traffic import Traffic
from tests.support import make_model

MEGABYTE = 2**20
SAMPLES = 60  # of memory in a run
SHARE, SPARE = 0.1, 32 * MEGABYTE  # by which memory may grow


def resident_bytes(process: int) -> int:
    """The memory of a process that is not shared with files."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {process} says nothing of its memory")


async def soak(server: load.Server, minutes: float, clients: int, seed: int) -> list[int]:
    """Run the clients; return samples of the server's memory."""
    samples: list[int] = []
    end = time.monotonic() + 60 * minutes
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits) as http:
        traffic = Traffic(http, server.model, seed)
        await traffic.learn()

        async def watch() -> None:
            while time.monotonic() < end:
                await asyncio.sleep(60 * minutes / SAMPLES)
                samples.append(resident_bytes(server.process.pid))
                tally = traffic.tally
                print(
                    f"{tally.answered:,} answered, {tally.left:,} left, {tally.refused:,} refused, "
                    f"{len(tally.wrong)} wrong; {samples[-1] / MEGABYTE:.0f} MB",
                    flush=True,
                )

        await asyncio.gather(watch(), traffic.run(clients, lambda: time.monotonic() < end))
        assert traffic.tally.wrong == [], traffic.tally.wrong[:3]
        (left,) = (await http.get("/v1/loads")).json()["loads"]
        assert left["num_total_reqs"] == left["num_used_tokens"] == 0, f"something is left: {left}"
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="length of the run (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=24, help="clients at once (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the clients")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder) / "random", max_position_embeddings=2048)
        kept = ["--kv-bytes", "2MB", "--disk-folder", f"{folder}/blocks", "--max-requests", str(options.clients)]
        with load.ours(model, Path(folder) / "log", *kept) as server:
            samples = asyncio.run(soak(server, options.minutes, options.clients, options.seed))
    warm = samples[len(samples) // 10]
    most = max(samples[-3:])
    assert most <= warm * (1 + SHARE) + SPARE, f"memory grew from {warm:,} to {most:,} bytes"
    print(f"memory {warm / MEGABYTE:.0f} MB after a tenth, {most / MEGABYTE:.0f} MB at the end: no check failed")


if __name__ == "__main__":
    main()
