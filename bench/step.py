"""Where the host's time goes in a step of the engine, by what is done in it.

    python bench/step.py [--json] [--rounds 5] [--large]

Microseconds of a decode step, median of all steps: `build` makes the graph of the next step while the device computes,
`wait` is what is left of the device's time then, and the rest is what stands between two steps of the device, except
`text`, which runs while the next one is computed. One sequence on a whole cache, and 1, 8 and 32 on a pool of pages.
"""

import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.decode import SHAPES
from tests.support import make_model
from tiny_llm import LLM, SamplingParams, load
from tiny_llm.config import EngineConfig, SchedulerConfig
from tiny_llm.config.serving import ServingConfig
from tiny_llm.engine.loop import Loop
from tiny_llm.engine.request import Request
from tiny_llm.engine.store import whole_store

STEPS = 200


class Watch:
    """Adds up the time of some functions in each step."""

    def __init__(self) -> None:
        self.now: dict[str, float] = defaultdict(float)
        self.steps: list[dict[str, float]] = []

    def on(self, owner: Any, method: str, name: str) -> None:
        """Time a method of an object under this name."""
        function: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            result = function(*args, **options)
            self.now[name] += time.perf_counter() - begin
            return result

        setattr(owner, method, timed)

    def end_step(self, seconds: float) -> None:
        """Take in what a step took, the time outside the watched functions included."""
        self.now["other"] = seconds - sum(self.now.values())
        self.now["whole"] = seconds
        self.steps.append(dict(self.now))
        self.now.clear()


def loop_for(llm: LLM, sequences: int, whole: bool) -> Loop:
    limits = SchedulerConfig(max_sequences=sequences)
    if whole:
        store = whole_store(llm.model, EngineConfig(), sequences, llm.max_context, kept=1)
        return Loop(llm.model, llm.tokenizer, ServingConfig(scheduler=limits), store=store)
    return Loop(llm.model, llm.tokenizer, ServingConfig(2**28, scheduler=limits))


def measure(llm: LLM, sequences: int, whole: bool) -> dict[str, float]:
    """Median microseconds of each part of a decode step."""
    loop, watch = loop_for(llm, sequences, whole), Watch()
    params = SamplingParams(temperature=0.0, max_tokens=STEPS + 50, ignore_eos=True)
    for number in range(sequences):
        loop.add(Request(str(number), tuple((i * 7919 + number) % 2000 for i in range(64)), params))
    while loop.scheduler.waiting or any(s.remaining > 1 for s in loop.scheduler.running):
        loop.step()
    for _ in range(10):
        loop.step()
    watch.on(loop, "_prepare", "build")
    watch.on(loop.runner, "read", "wait")
    watch.on(loop.scheduler, "finish", "finish")
    watch.on(loop.scheduler, "schedule", "schedule")
    watch.on(loop.runner, "launch", "launch")
    watch.on(loop, "_texts", "text")
    for _ in range(STEPS):
        begin = time.perf_counter()
        loop.step()
        watch.end_step(time.perf_counter() - begin)
    names = watch.steps[0]
    return {name: 1e6 * statistics.median(step[name] for step in watch.steps) for name in names}


if __name__ == "__main__":
    shape = SHAPES["small (4 × 256)"]
    with tempfile.TemporaryDirectory() as folder:
        llm = load(make_model(Path(folder), **shape, max_position_embeddings=2048))
        for sequences, whole in ((1, True), (1, False), (8, False), (32, False)):
            print(sequences, whole, {k: round(v) for k, v in measure(llm, sequences, whole).items()})
