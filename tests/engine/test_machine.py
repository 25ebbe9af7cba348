"""Anything may happen in any order: after each step the blocks, tables, tree and contents agree."""

from collections import Counter
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.engine.fake import FakeRunner, FakeTier, advance, next_token, solo, solo_search
from tiny_llm.config import SamplingParams, SchedulerConfig
from tiny_llm.decode.acceptance import DraftTree
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.choosers import Beams
from tiny_llm.engine.events import KINDS, Event
from tiny_llm.engine.radix import RadixTree
from tiny_llm.engine.request import Request, Result, Step
from tiny_llm.engine.scheduler import Scheduler
from tiny_llm.engine.speculation import pruned, room

PREFIX = (1, 2, 3, 4, 1, 2, 3, 4, 1, 2)
STOPS = frozenset({0})
SEEN: Counter[str] = Counter()


class Engine(RuleBasedStateMachine):
    """Add, step, cancel, stop, abandon, evict, on a small pool, so that sharing and preemption are common."""

    @initialize(blocks=st.integers(8, 24), size=st.integers(1, 4), slots=st.integers(1, 6), tree=st.integers(0, 4))
    def begin(self, blocks: int, size: int, slots: int, tree: int) -> None:
        self.now, self.count = 0.0, 0
        self.events: list[Event] = []
        self.pool = BlockPool(blocks, size)
        config = SchedulerConfig(slots + 5, slots, 60, weights={"a": 3.0})
        self.scheduler = Scheduler(config, self.pool, RadixTree(self.pool) if tree else None, self.events.append)
        self.runner, self.beams = FakeRunner(self.pool), Beams()
        if tree > 2:
            assert self.scheduler.ledger.tree is not None
            self.scheduler.ledger.tree.tier = FakeTier(self.runner)

    @rule(
        shared=st.integers(0, len(PREFIX)),
        tail=st.lists(st.integers(0, 3), max_size=6),
        longest=st.integers(1, 24),
        n=st.integers(1, 3),
        beams=st.sampled_from((1, 1, 2, 4)),
        twins=st.integers(1, 3),
        priority=st.integers(-1, 1),
        tenant=st.sampled_from("ab"),
        deadline=st.none() | st.floats(0, 20),
    )
    def add(self, shared: int, tail: list[int], longest: int, n: int, beams: int, twins: int, **more: Any) -> None:
        prompt = (*PREFIX[:shared], *tail) or (5,)
        params = SamplingParams(max_tokens=longest, n=min(n, beams) if beams > 1 else n, beam_width=beams)
        fits = beams * self.pool.blocks_for(len(prompt) + longest - 1) <= self.pool.num_blocks
        n = beams if beams > 1 else n
        fits &= n <= self.scheduler.config.max_sequences and len(prompt) + longest <= 60
        for _ in range(twins):
            self.count += 1
            request = Request(f"r{self.count}", prompt, params, arrival=self.now, stop_tokens=STOPS, **more)
            try:
                self.scheduler.add(request, self.now)
                assert fits
                if beams > 1:
                    self.beams.add(request)
            except ValueError:
                assert not fits

    @precondition(lambda self: self.scheduler.has_work)
    @rule(times=st.integers(1, 6))
    def run(self, times: int) -> None:
        for _ in range(times):
            if self.scheduler.has_work:
                self.step()

    def step(self) -> None:
        self.now += 1
        step = self.scheduler.schedule(self.now)
        SEEN["preempted for room"] += len(self.scheduler.plan.preempted)
        assert 0 < step.num_tokens <= self.scheduler.config.token_budget
        assert len(self.scheduler.running) <= self.scheduler.config.max_sequences
        step = self.drafted(step)
        self.finish(step, self.runner.run(step))

    def drafted(self, step: Step) -> Step:
        """The step with drafts of all lengths behind some decodes, some right for a while and then wrong."""
        drafts = {}
        left = self.scheduler.config.token_budget - step.num_tokens
        for s in self.scheduler.decoding(step):
            chance = hash((s.id, len(s.tokens), self.now))
            length = min(chance % 5, left, room(s, 60))
            length = self.scheduler.reserve(s, length) if length > 0 else 0
            left -= length
            tokens = list(s.tokens)
            for number in range(length):
                wrong = (chance >> number) % 4 == 0
                tokens.append(next_token(tokens, s.index) ^ wrong)
            drafts[s.id] = pruned(DraftTree.chain(tokens[len(s.tokens) :]), STOPS, length)
        return self.scheduler.with_drafts(step, drafts)

    def finish(self, step: Step, results: list[Result]) -> None:
        for s in self.scheduler.finish(step, results, self.now):
            if s.finish_reason in ("stop", "length"):
                assert s.output == solo(s.request.tokens, s.request.params.max_tokens, s.index, STOPS)
        self.scheduler.check()
        for s, search in advance(self.beams, self.scheduler, step, results, self.now):
            SEEN["searched"] += 1
            assert search.best == solo_search(s.request)
        self.scheduler.check()

    @precondition(lambda self: self.scheduler.has_work)
    @rule(data=st.data())
    def interrupted_step(self, data: st.DataObject) -> None:
        """A request is cancelled while the device works."""
        step = self.drafted(self.scheduler.schedule(self.now))
        results = self.runner.run(step)
        self.cancel(data)
        self.finish(step, results)

    @precondition(lambda self: self.scheduler.has_work)
    @rule()
    def failed_step(self) -> None:
        step = self.drafted(self.scheduler.schedule(self.now))
        self.runner.learn(step)
        self.scheduler.abandon(step, self.now)

    @precondition(lambda self: self.scheduler.sequences.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.scheduler.sequences.requests)))
        assert self.scheduler.cancel(name, self.now)
        self.beams.forget(name)
        assert not self.scheduler.cancel(name, self.now)

    @precondition(lambda self: self.scheduler.sequences.requests)
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        """One continuation ends, as at a stop string; it may be any, in any state."""
        requests = self.scheduler.sequences.requests
        sequences = [s for name in sorted(requests) for s in requests[name]]
        drawn = [s for s in sequences if not s.request.searches]
        if drawn:
            self.scheduler.stop(data.draw(st.sampled_from(drawn)), "cancelled", self.now)

    @precondition(lambda self: self.scheduler.ledger.tree)
    @rule(count=st.integers(1, 5))
    def evict(self, count: int) -> None:
        assert self.scheduler.ledger.tree is not None
        expected = min(count, self.pool.num_evictable)
        assert len(self.scheduler.ledger.tree.evict(count)) == expected

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check()

    def teardown(self) -> None:
        """Whatever is left comes to its end, and every block with it."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(2000):
            if not self.scheduler.has_work:
                break
            self.step()
        assert not self.scheduler.sequences.requests, "something never ends"
        assert self.pool.num_available == self.pool.num_blocks
        SEEN.update(event.kind for event in self.events)


Engine.TestCase.settings = settings(
    max_examples=500, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


def test_any_order_of_calls() -> None:
    """Ten thousand steps, in which everything happened that can."""
    SEEN.clear()
    run_state_machine_as_test(Engine)
    assert SEEN["step"] >= 10_000, SEEN
    assert all(SEEN[kind] >= 30 for kind in KINDS | {"preempted for room", "searched"}), SEEN
