"""A long random run of the scheduler, with an integrity check after every step and every answer held against its solo
run: what tests/engine/test_machine.py does in small.

    python bench/soak.py [--steps 1000000] [--seed 0]

Prints what happened and how often. A failure is an AssertionError after a line with the world's seed; give that to
--seed, and it is the first world of the run.
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.engine.fake import FakeRunner, FakeTier, advance, solo, solo_search
from tiny_llm.config import SamplingParams, SchedulerConfig
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.choosers import Beams
from tiny_llm.engine.events import Event
from tiny_llm.engine.kept import Kept
from tiny_llm.engine.radix import RadixTree
from tiny_llm.engine.request import Request, Step
from tiny_llm.engine.scheduler import Scheduler

STOPS = frozenset({0})
REQUESTS = 60  # in each world


class World:
    """One engine of random size with a random load."""

    def __init__(self, seed: int, seen: Counter[str]):
        self.random, self.seen, self.now = Random(seed), seen, 0.0
        pool = BlockPool(self.random.randrange(8, 60), self.random.randrange(1, 6))
        slots = self.random.randrange(1, 8)
        config = SchedulerConfig(slots + self.random.randrange(20), slots, weights={"a": 3.0})
        tree = RadixTree(pool) if self.random.random() < 0.7 else None
        tiered = tree and self.random.random() < 0.4
        kept = None
        if self.random.random() < 0.2:  # a whole cache for each sequence, some kept for later ones
            limit = self.random.randrange(1, 4)
            pool, tree = BlockPool(2 * slots + limit, 80), None
            kept = Kept(pool, limit, lambda block, tokens: (7 * block + tokens) % 5 > 0)
        self.pool, self.scheduler = pool, Scheduler(config, pool, tree, self.count, kept)
        self.runner, self.beams = FakeRunner(pool), Beams()
        if tree and tiered:
            tree.tier = FakeTier(self.runner)
        self.prefix = [self.random.randrange(3) for _ in range(20)]

    def count(self, event: Event) -> None:
        self.seen[event.kind] += 1

    def add(self, name: str) -> None:
        random = self.random
        tail = [random.randrange(3) for _ in range(random.randrange(8))]
        prompt = (*self.prefix[: random.randrange(len(self.prefix))], *tail) or (1,)
        beams = random.choice((1, 1, 1, 1, 2, 4))
        n = 1 if beams > 1 else random.choice((1, 1, 1, 2, 3))
        params = SamplingParams(max_tokens=random.randrange(1, 30), n=n, beam_width=beams)
        who = {"priority": random.randrange(-2, 3), "tenant": random.choice("abc")}
        deadline = self.now + random.uniform(-5, 20) if random.random() < 0.2 else None
        request = Request(name, prompt, params, arrival=self.now, deadline=deadline, stop_tokens=STOPS, **who)
        try:
            self.scheduler.add(request, self.now)
        except ValueError:
            self.seen["refused"] += 1
            return
        if request.searches:
            self.beams.add(request)

    def step(self) -> None:
        random, scheduler = self.random, self.scheduler
        self.now += random.uniform(0, 2)
        step = scheduler.schedule(self.now)
        assert 0 < step.num_tokens <= scheduler.config.token_budget
        failed = random.random() < 0.01
        results = [] if failed else self.runner.run(step)
        if random.random() < 0.02:
            name = random.choice(list(scheduler.sequences.requests))
            self.seen["cancelled under way"] += scheduler.cancel(name, self.now)
            self.beams.forget(name)
        if failed:
            self.seen["abandoned"] += 1
            self.runner.learn(step)
            self.abandon(step)
        else:
            for s in scheduler.finish(step, results, self.now):
                if s.finish_reason != "cancelled":
                    assert s.output == solo(s.request.tokens, s.request.params.max_tokens, s.index, STOPS)
            for s, search in advance(self.beams, self.scheduler, step, results, self.now):
                self.seen["searched"] += 1
                assert search.best == solo_search(s.request)
        if scheduler.ledger.kept and random.random() < 0.005:
            scheduler.ledger.kept.forget()
        if scheduler.ledger.tree and random.random() < 0.01:
            scheduler.ledger.tree.evict(random.randrange(4))
        scheduler.check()

    def abandon(self, step: Step) -> None:
        """What follows a failed step; of whole caches nothing is left then."""
        scheduler = self.scheduler
        if scheduler.ledger.kept is None:
            scheduler.abandon(step, self.now)
            return
        scheduler.preempt_all(self.now)
        scheduler.ledger.forget()

    def run(self) -> None:
        to_come = REQUESTS
        while to_come or self.scheduler.has_work:
            for _ in range(min(to_come, self.random.choice((0, 0, 0, 1, 3)))):
                to_come -= 1
                self.add(str(to_come))
            if self.scheduler.has_work:
                self.step()
        assert not self.scheduler.sequences.requests and self.pool.num_available == self.pool.num_blocks, (
            "something is left"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000, help="engine steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first world")
    options = parser.parse_args()
    seen: Counter[str] = Counter()
    seed, begin = options.seed, time.perf_counter()
    while seen["step"] < options.steps:
        try:
            World(seed, seen).run()
        except BaseException:
            print(f"failed in the world of seed {seed}", file=sys.stderr)
            raise
        seed += 1
    print(f"{seed - options.seed} worlds, {time.perf_counter() - begin:.0f} s: no check failed")
    print(", ".join(f"{kind} {count:,}" for kind, count in seen.most_common()))


if __name__ == "__main__":
    main()
