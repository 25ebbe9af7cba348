"""The "Measure" tables of week 3: the scheduler on a simulated clock, beside a bound that no policy can beat.

    python bench/week3.py [--chapter 3.1] [--code mine] [--json] [--write]

As bench/week1.py does it. The clock is `engine.simulate`'s: a step takes 4 ms, and 0.2 ms more for each token. So the
figures are the same on every machine, and with your code they are its own.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.week1 import Count, Makers, main  # noqa: E402
from tiny_llm.config import SamplingParams, SchedulerConfig  # noqa: E402

if TYPE_CHECKING:
    from tiny_llm.engine.request import Request
    from tiny_llm.engine.simulate import Answer

STEP, TOKEN, SLOTS, MS = 0.004, 0.0002, 8, "milliseconds"


def serve(requests: "list[Request]", budget: int = 64, tree: bool = False, slots: int = SLOTS) -> "list[Answer]":
    from tiny_llm.engine import blocks, radix, scheduler, simulate  # not before the learner's files are in place

    pool = blocks.BlockPool(8000, 16)
    config = SchedulerConfig(budget, slots, 20_000)
    engine = scheduler.Scheduler(config, pool, radix.RadixTree(pool) if tree else None)
    return simulate.simulate(engine, requests, simulate.Cost(STEP, TOKEN, 0.0))


def ask(name: int, length: int, output: int, arrival: float = 0.0, shared: int = 0) -> "Request":
    from tiny_llm.engine.request import Request

    tokens = (*range(shared), *range(10_000 * (name + 1), 10_000 * (name + 1) + length - shared))
    return Request(str(name), tokens, SamplingParams(max_tokens=output), arrival=arrival)


def many() -> "list[Request]":
    """64 requests at once: short prompts, answers of 4 to 200 tokens."""
    random = Random(0)
    return [ask(i, 16, random.choice((4, 10, 20, 40, 200))) for i in range(64)]


def in_batches(requests: "list[Request]") -> tuple[float, float]:
    """Static batching: eight at a time, each batch as long as its longest answer. Last and mean end, in seconds."""
    now, ends = 0.0, list[float]()
    for i in range(0, len(requests), SLOTS):
        batch = requests[i : i + SLOTS]
        outputs = [r.params.max_tokens for r in batch]
        now += STEP + TOKEN * sum(len(r.tokens) for r in batch)
        now += sum(STEP + TOKEN * SLOTS for _ in range(max(outputs) - 1))
        ends += [now] * len(batch)
    return now, sum(ends) / len(ends)


def batching() -> Iterator[Count]:
    requests = many()
    tokens = sum(len(r.tokens) for r in requests)
    decodes = sum(r.params.max_tokens - 1 for r in requests)
    least = TOKEN * (tokens + decodes) + STEP * decodes / SLOTS
    longest = max(r.params.max_tokens for r in requests) * (STEP + TOKEN)

    def ends() -> list[float]:
        return [a.finished or 0.0 for a in serve(requests)]

    yield Count("static batches of 8, the last answer", lambda: in_batches(requests)[0] * 1e3, least * 1e3, MS)
    yield Count("continuous on 8 slots, the last answer", lambda: max(ends()) * 1e3, least * 1e3, MS)
    yield Count("continuous on 64 slots, the last answer", lambda: wide(requests) * 1e3, longest * 1e3, MS)
    mean = sum(r.params.max_tokens for r in requests) / len(requests) * (STEP + TOKEN)
    yield Count("static batches of 8, mean answer", lambda: in_batches(requests)[1] * 1e3, mean * 1e3, MS)
    yield Count("continuous on 8 slots, mean answer", lambda: sum(ends()) / len(requests) * 1e3, mean * 1e3, MS)


def wide(requests: "list[Request]") -> float:
    return max(a.finished or 0.0 for a in serve(requests, slots=64))


def budgets() -> Iterator[Count]:
    """One that decodes, and a prompt of 4,000 tokens that comes in between."""
    requests = [ask(0, 8, 100), ask(1, 4000, 4, arrival=0.05)]
    decode = (STEP + TOKEN) * 1e3
    prompt = (STEP + TOKEN * 4000) * 1e3
    for budget in (64, 256, 1024, 5000):
        yield Count(f"longest gap, budget {budget}", lambda b=budget: max(serve(requests, b)[0].gaps) * 1e3, decode, MS)
        yield Count(f"long prompt, budget {budget}", lambda b=budget: serve(requests, b)[1].first * 1e3, prompt, MS)


def prefixes() -> Iterator[Count]:
    """32 requests with the same first 1,000 tokens, one after the other or all at once."""
    apart = [ask(i, 1020, 4, arrival=2.0 * i, shared=1000) for i in range(32)]
    at_once = [ask(i, 1020, 4, shared=1000) for i in range(32)]
    cold, warm = ((STEP + TOKEN * n) * 1e3 for n in (1020, 20))
    yield Count("first token, nothing known", lambda: serve(apart, 256)[1].first * 1e3, cold, MS)
    yield Count("first token, prefix known", lambda: serve(apart, 256, tree=True)[1].first * 1e3, warm, MS)
    least = (TOKEN * (1000 + 32 * 20)) * 1e3
    yield Count("32 at once, without a tree", lambda: last_first(serve(at_once, 256)) * 1e3, least, MS)
    yield Count("32 at once, with a tree", lambda: last_first(serve(at_once, 256, tree=True)) * 1e3, least, MS)


def last_first(answers: "list[Answer]") -> float:
    """When the last one's first token comes."""
    return max(answer.first for answer in answers)


MAKERS: Makers = {"3.1": batching, "3.2": budgets, "3.5": prefixes}


if __name__ == "__main__":
    main(MAKERS, __doc__)
