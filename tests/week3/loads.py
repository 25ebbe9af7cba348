"""Small loads for the scheduler under test, and what it does with them, as lines that can be read."""

from typing import Any

from tiny_llm.config import SamplingParams, SchedulerConfig
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.radix import RadixTree
from tiny_llm.engine.request import Request, Result, Share, Step


def request(name: str, tokens: list[int] | range, max_tokens: int = 4, n: int = 1, **more: Any) -> Request:
    return Request(name, tuple(tokens), SamplingParams(max_tokens=max_tokens, n=n), **more)


def engine(m: Any, num_blocks: int = 50, size: int = 4, tree: bool = False, **settings: int) -> Any:
    """A scheduler of the module under test."""
    pool = BlockPool(num_blocks, size)
    config = SchedulerConfig(**{"token_budget": 16, "max_sequences": 4, **settings})
    return m.Scheduler(config, pool, RadixTree(pool) if tree else None)


def told(step: Step) -> str:
    """`A[4:5] B[0:8]`: the shares with their parts of the sequences."""
    return " ".join(f"{s.sequence.request}{s.sequence.number or ''}[{s.start}:{s.end}]" for s in step.shares)


def result(share: Share, token: int) -> Result:
    """What a share gives: nothing for a chunk."""
    return Result((token,), (None,)) if share.wanted else Result()


def run(scheduler: Any, steps: int) -> list[str]:
    """What each of the next steps does, `| out: C` where C gives way; every token is its place in the sequence."""
    lines = []
    for i in range(steps):
        step = scheduler.schedule(float(i))
        out = [s.request.id for s in scheduler.plan.preempted]
        lines.append(told(step) + (f" | out: {' '.join(out)}" if out else ""))
        scheduler.finish(step, [result(share, share.end) for share in step.shares], float(i))
    return lines
