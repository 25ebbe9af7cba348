"""What is done is forgotten: after ten thousand requests the engine holds what it held after the first."""

import asyncio
import gc
import random
import threading
from pathlib import Path

import pytest

from tests.support import make_model
from tiny_llm import SamplingParams
from tiny_llm.config import SchedulerConfig, Structured
from tiny_llm.config.serving import ServingConfig
from tiny_llm.engine.sequences import MAX_IDLE
from tiny_llm.engine.serving import Engine

SERVING = ServingConfig(kv_bytes=2**20, block_size=8, scheduler=SchedulerConfig(token_budget=512, max_sequences=64))
FORM = Structured("regex", "[0-9]{1,2}")
ROUNDS, EACH = 10, 1000
KINDS = ("whole", "whole", "whole", "half", "dropped", "refused", "form", "samples", "beams", "async")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), num_hidden_layers=1, max_position_embeddings=64)


def resident() -> int:
    """Bytes of this process's memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def ask(engine: Engine, rng: random.Random, tenant: str) -> None:
    """EACH mixed requests: whole, half read, dropped, refused, with forms, samples, beams, stops, from event loops."""
    streams = []
    for i in range(EACH):
        prompt = [rng.randrange(300) for _ in range(rng.randint(1, 20))]
        params = SamplingParams(max_tokens=rng.randint(1, 3), seed=i, logprobs=rng.choice((None, 1)))
        kind = rng.choice(KINDS)
        if kind == "refused":
            with pytest.raises(ValueError, match="logit_bias"):
                engine.stream(prompt, logit_bias={10**6: 1.0})
        elif kind == "form":
            streams.append(engine.stream(prompt, SamplingParams(max_tokens=3, seed=i, structured=FORM)))
        elif kind == "samples":
            streams.append(engine.stream(prompt, SamplingParams(max_tokens=2, seed=i, n=2, stop=("a",))))
        elif kind == "beams":
            streams.append(engine.stream(prompt, SamplingParams(max_tokens=2, beam_width=2)))
        elif kind == "dropped":
            engine.stream(prompt, params)
        elif kind == "half":
            next(engine.stream(prompt, params))
        elif kind == "async":
            streams.append(engine.astream(prompt, params))
        else:
            streams.append(engine.stream(prompt, params, tenant=f"{tenant}-{i}", priority=i % 3))

    async def read(some: list) -> None:
        for stream in some:
            async for _ in stream:
                pass

    asyncio.run(read([stream for stream in streams if hasattr(stream, "aclose")]))
    for stream in streams:
        if not hasattr(stream, "aclose"):
            assert list(stream)


def held(engine: Engine) -> dict[str, int]:
    """How much of each kind is there, with nothing under way."""
    loop, kinds = engine._loop, (asyncio.AbstractEventLoop, SamplingParams)
    gc.collect()
    there = gc.get_objects()
    return {
        "recipients": len(engine._worker.recipients),
        "orders": engine._worker.inbox.qsize(),
        "requests": len(loop.scheduler.sequences.requests) + len(loop.scheduler.waiting),
        "answers": len(loop._answers) + len(loop._left) + len(loop._beams),
        "forms": len(loop.runner.draw.forms.rules),
        "threads": threading.active_count(),
        **{kind.__name__: sum(isinstance(one, kind) for one in there) for kind in kinds},
    }


def test_ten_thousand_mixed_requests_leave_nothing_behind(path: Path) -> None:
    rng = random.Random(0)
    with Engine(path, serving=SERVING) as engine:
        sizes, memory = [], []
        for i in range(ROUNDS):
            ask(engine, rng, f"round {i}")
            engine.generate([[1]], max_tokens=1)  # behind all that was asked
            sizes.append(held(engine))
            memory.append(resident())
        loop = engine._loop
        assert loop.scheduler.blocks.num_available == loop.store.num_blocks
        loop.scheduler.check()
        assert len(loop.scheduler.waiting.counters) <= 3 * MAX_IDLE
    quiet = {"recipients": 0, "orders": 0, "requests": 0, "answers": 0, "forms": 0}
    for size in sizes:
        assert {name: size[name] for name in quiet} == quiet
        assert size["threads"] == sizes[0]["threads"] and size["AbstractEventLoop"] == sizes[0]["AbstractEventLoop"]
        assert size["SamplingParams"] <= sizes[0]["SamplingParams"] + 100
    assert memory[-1] - memory[ROUNDS // 2] < 16 * 2**20, [m >> 20 for m in memory]


def test_a_tenant_for_each_request_leaves_no_counter_for_each() -> None:
    from tests.engine.test_scheduler import Engine as Paper

    paper = Paper()
    for i in range(3 * MAX_IDLE):
        paper.add(str(i), [i % 50], max_tokens=1, tenant=f"tenant {i}")
        paper.step()
    paper.drain()
    assert len(paper.scheduler.waiting.counters) <= 2 * MAX_IDLE + 4
