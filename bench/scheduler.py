"""What a scheduling step costs in Python, by how many requests wait and how many run.

    python bench/scheduler.py [--json] [--rounds 5]

A step is `schedule` and `finish` without a model, in time of the processor, which other load changes little. The book
draws book/figures/data/scheduler.json, which is what --json printed.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import arguments, race, report
from tiny_llm.config import SamplingParams, SchedulerConfig
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.radix import RadixTree
from tiny_llm.engine.request import Request, Result
from tiny_llm.engine.scheduler import Scheduler

STEPS = 200


def step_time(waiting: int, running: int) -> Callable[[], float]:
    """Mean microseconds of a step in which `running` sequences decode while `waiting` requests wait."""

    def measure() -> float:
        pool = BlockPool(running * 32 + 64, 16)
        scheduler = Scheduler(SchedulerConfig(1024, running), pool, RadixTree(pool))
        for i in range(running + waiting):
            tokens = tuple(range(i, i + 20))
            scheduler.add(Request(str(i), tokens, SamplingParams(max_tokens=400), tenant=f"t{i % 8}"), 0.0)
        while len(scheduler.running) < running or any(s.remaining > 1 for s in scheduler.running):
            one(scheduler)
        begin = time.process_time()
        for _ in range(STEPS):
            one(scheduler)
        return (time.process_time() - begin) / STEPS * 1e6

    return measure


def one(scheduler: Scheduler) -> None:
    step = scheduler.schedule(0.0)
    scheduler.finish(step, [Result((7 * share.end % 1000,) if share.wanted else ()) for share in step.shares], 0.0)


def main() -> None:
    options = arguments(__doc__ or "", rounds=5)
    rows = [
        race(f"{waiting:,} waiting, {running} running", "µs", step_time(waiting, running), rounds=options.rounds)
        for running in (1, 8, 32, 128)
        for waiting in (10, 100, 1_000, 10_000)
    ]
    report(rows, options.json, steps=STEPS)


if __name__ == "__main__":
    main()
