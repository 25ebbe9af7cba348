"""Many requests at once against `mlx_lm.batch_generate` with the same BLAS, on a random Qwen3 of 4 layers × 256.

    python bench/serving.py [--json] [--rounds 3]

Both write greedily from the same weights in float32, and must write the same but for near ties. tok/s: higher is
better; ms and MB: lower. The mix has the shape of nano-vllm's benchmark (256 requests, 100 to 1,024 tokens in and out),
an eighth as long. "beside a long prompt": eight requests write while one of 2,000 tokens comes in. Waste is what the
caches hold beyond the tokens that stand in them, at the worst step.
"""

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_llm  # noqa: F401  activates the BLAS for both  # isort: skip

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, batch_generate
from mlx_lm.tokenizer_utils import load as load_tokenizer
from mlx_lm.utils import load_model

from bench.common import arguments, race, race_many, report
from bench.decode import SHAPES
from tests.support import make_model
from tiny_llm import SamplingParams, _blas, load
from tiny_llm.cache.choose import slot_bytes
from tiny_llm.config import EngineConfig, SchedulerConfig
from tiny_llm.config.serving import ServingConfig
from tiny_llm.engine.llm import LLM
from tiny_llm.engine.loop import Loop
from tiny_llm.engine.offline import run_all
from tiny_llm.engine.request import Request

Job = tuple[list[int], int]  # prompt, tokens to write
BLOCK = 32
LIMITS = SchedulerConfig(token_budget=256, max_sequences=32)
WIDE = SchedulerConfig(token_budget=512, max_sequences=64)
LONG, BESIDE, WRITTEN = 2000, 8, 72


def loop_of(llm: LLM, slots: int, limits: SchedulerConfig = LIMITS, **settings: bool) -> Loop:
    """A serving engine whose pool has room for `slots` tokens."""
    size = -(-slots // BLOCK) * BLOCK * slot_bytes(llm.config, EngineConfig(), 4)
    return Loop(llm.model, llm.tokenizer, ServingConfig(size, BLOCK, scheduler=limits, **settings))


def request(name: object, job: Job) -> Request:
    return Request(str(name), tuple(job[0]), SamplingParams(temperature=0.0, max_tokens=job[1], ignore_eos=True))


def ours(llm: LLM, jobs: Sequence[Job], limits: SchedulerConfig = LIMITS) -> list[list[int]]:
    loop = loop_of(llm, limits.max_sequences * (BLOCK + max(len(prompt) + count for prompt, count in jobs)), limits)
    found = run_all(loop, [request(i, job) for i, job in enumerate(jobs)])
    return [[delta.token for delta in one.answers[0]] for one in found]


def peer(model, tokenizer, jobs: Sequence[Job], limits: SchedulerConfig = LIMITS) -> list[list[int]]:
    prompts, counts = (list(side) for side in zip(*jobs, strict=True))
    size = limits.max_sequences  # of the batch that decodes
    return batch_generate(
        model, tokenizer, prompts, max_tokens=counts, return_token_ids=True, completion_batch_size=size
    ).token_ids


def speed(run: Callable[[], Sequence[Sequence[int]]]) -> Callable[[], float]:
    def measure() -> float:
        begin = time.perf_counter()
        return sum(map(len, run())) / (time.perf_counter() - begin)

    return measure


def make_jobs(count: int, low: int, high: int, seed: int = 0) -> list[Job]:
    rng = random.Random(seed)
    draw = lambda: rng.randint(low, high)  # noqa: E731
    return [([rng.randrange(2000) for _ in range(draw())], draw()) for _ in range(count)]


def stall_jobs() -> tuple[list[Job], Job, Job]:
    """Who writes, who comes with a long prompt, and who comes right after it."""
    return (
        [(job[0], WRITTEN) for job in make_jobs(BESIDE, 32, 32)],
        make_jobs(1, LONG, LONG, 1)[0],
        make_jobs(1, 32, 32, 2)[0],
    )


def gaps(times: Sequence[Sequence[float]], asked: float, late: Sequence[float]) -> tuple[float, float, float, float]:
    """Milliseconds: p50, p99 and longest of the times between tokens, and the first token of who came late."""
    between = [b - a for row in times for a, b in pairwise(row)]
    cuts = statistics.quantiles(between, n=100, method="inclusive")
    return cuts[49] * 1e3, cuts[98] * 1e3, max(between) * 1e3, (late[0] - asked) * 1e3


def our_gaps(llm: LLM) -> tuple[float, float, float, float]:
    beside, long, late = stall_jobs()
    loop = loop_of(llm, 2 * LONG + 10 * (WRITTEN + 96))
    for i, job in enumerate(beside):
        loop.add(request(i, job))
    times: dict[str, list[float]] = {str(i): [] for i in (*range(BESIDE), "late", "long")}
    asked = 0.0
    while loop.has_work:
        if not asked and len(times["0"]) == 32:
            loop.add(request("long", (long[0], 1)))
            loop.add(request("late", (late[0], 8)))
            asked = time.perf_counter()
        for output in loop.step():
            times[output.request_id].append(time.perf_counter())
    return gaps([times[str(i)] for i in range(BESIDE)], asked, times["late"])


def peer_gaps(model) -> tuple[float, float, float, float]:
    beside, long, late = stall_jobs()
    engine = BatchGenerator(model)
    first = engine.insert([prompt for prompt, _ in beside], [count for _, count in beside])
    times: dict[int, list[float]] = {uid: [] for uid in first}
    asked, uids = 0.0, []
    while True:
        if not asked and len(times[first[0]]) == 32:
            uids = engine.insert([long[0], late[0]], [1, 8])
            times |= {uid: [] for uid in uids}
            asked = time.perf_counter()
        responses = engine.next_generated()
        if not responses:
            break
        for response in responses:
            times[response.uid].append(time.perf_counter())
    engine.close()
    return gaps([times[uid] for uid in first], asked, times[uids[1]])


def shared_prefix(llm: LLM) -> dict[str, float]:
    """First-token times behind a prefix of 1,000 tokens that is new, and known; and the share of tokens found."""
    prefix = make_jobs(1, 1000, 1000, 3)[0][0]
    loop, cold, warm, found = loop_of(llm, 20000), [], [], 0
    for turn in range(8):
        new = [(token + turn // 2 * 7) % 2000 for token in prefix] if turn % 2 == 0 else new  # noqa: F821
        one = run_all(loop, [request(f"{turn}", ([*new, turn, 5, 6, 7], 2))])[0]
        (warm if turn % 2 else cold).append(one.first - one.begin)
        found += one.cached_tokens
    first, again = statistics.median(cold) * 1e3, statistics.median(warm) * 1e3
    return {"cold_ms": round(first, 1), "warm_ms": round(again, 1), "times": round(first / again, 1),
            "hit_rate": round(found / (8 * (len(prefix) + 4)), 3)}  # fmt: skip


def waste(llm: LLM, model, jobs: Sequence[Job]) -> tuple[float, float]:
    """The most MB that each side held beyond the tokens that it had computed, over a run."""
    slot = slot_bytes(llm.config, EngineConfig(), 4)
    loop, worst = loop_of(llm, 32 * 300, prefix_cache=False), 0
    for i, job in enumerate(jobs):
        loop.add(request(i, job))
    while loop.has_work:
        loop.step()
        worst = max(worst, sum(len(s.block_table) * BLOCK - s.computed for s in loop.scheduler.running))
    engine, peers = BatchGenerator(model), 0
    uids = engine.insert([prompt for prompt, _ in jobs], [count for _, count in jobs])
    held = {uid: len(prompt) for uid, (prompt, _) in zip(uids, jobs, strict=True)}
    while responses := engine.next_generated():
        for response in responses:
            held[response.uid] += 1
        live = sum(held[response.uid] for response in responses if response.finish_reason is None)
        peers = max(peers, engine.prompt_cache_nbytes - live * slot)
    engine.close()
    return worst * slot / 1e6, peers / 1e6


def bytes_beyond(llm: LLM) -> dict[str, int]:
    """What a decoding step of 8 allocates at its peak, beside the pool's size: a copy of the pool would show."""
    loop = loop_of(llm, 1 << 17)
    for i, job in enumerate(make_jobs(8, 64, 64)):
        loop.add(request(i, (job[0], 40)))
    for _ in range(10):
        loop.step()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    for _ in range(20):
        loop.step()
    return {"pool_bytes": loop.store.nbytes, "step_bytes": mx.get_peak_memory() - before}


def main() -> None:
    options = arguments(__doc__, rounds=3)
    with tempfile.TemporaryDirectory() as folder:
        shape = {"max_position_embeddings": 4096, "tie_word_embeddings": True, **SHAPES["small (4 × 256)"]}
        path = make_model(Path(folder), **shape)
        llm, model, tokenizer = load(path), load_model(path)[0], load_tokenizer(path)
        tokenizer._eos_token_ids = set()
        mix = make_jobs(256, 12, 128)
        equal = sum(a == b for a, b in zip(ours(llm, mix), peer(model, tokenizer, mix), strict=True))
        assert equal >= 0.97 * len(mix), f"only {equal} of {len(mix)} answers are the same"
        rows = []
        for limits in (LIMITS, WIDE):
            name = f"256 requests, {limits.max_sequences} at a time"
            sides = (
                speed(lambda limits=limits: ours(llm, mix, limits)),
                speed(lambda limits=limits: peer(model, tokenizer, mix, limits)),
            )
            rows.append(race(name, "tok/s", *sides, options.rounds, warm=False))
        for size in (1, 8, 32):
            jobs = [(prompt, 64) for prompt, _ in make_jobs(size, 64, 64)]
            rows.append(race(f"batch {size}, 64 in, 64 out", "tok/s", speed(lambda jobs=jobs: ours(llm, jobs)),
                             speed(lambda jobs=jobs: peer(model, tokenizer, jobs)), options.rounds + 2))  # fmt: skip
        cases = [
            ("between tokens beside a long prompt, p50", "ms"),
            ("the same, p99", "ms"),
            ("the same, longest", "ms"),
            ("first token of who comes after it", "ms"),
        ]
        rows += race_many(cases, lambda: our_gaps(llm), lambda: peer_gaps(model), options.rounds)
        wasted = waste(llm, model, mix[:64])
        facts = {
            "equal": f"{equal}/{len(mix)}",
            "shared_prefix": shared_prefix(llm),
            "waste_mb": [round(x, 2) for x in wasted],
        }
        blas = _blas.status()
        report(
            rows, options.json, **facts, **bytes_beyond(llm), mlx=mx.__version__, blas=blas.name, threads=blas.threads
        )


if __name__ == "__main__":
    main()
