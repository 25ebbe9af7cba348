"""The scheduler, one behaviour at a time; anything in any order is in test_machine, time in test_clock."""

import sys
from typing import Any

import pytest

from tests.engine.fake import FakeRunner, solo
from tiny_llm.config import SamplingParams, SchedulerConfig
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.events import Event
from tiny_llm.engine.radix import RadixTree
from tiny_llm.engine.request import Request, Sequence, State, Step
from tiny_llm.engine.scheduler import Scheduler


class Engine:
    """A scheduler with a runner and a log."""

    def __init__(self, num_blocks: int = 64, size: int = 4, tree: bool = True, **settings: Any):
        self.pool, self.events, self.now = BlockPool(num_blocks, size), list[Event](), 0.0
        config = SchedulerConfig(**{"token_budget": 16, "max_sequences": 4, **settings})
        self.scheduler = Scheduler(config, self.pool, RadixTree(self.pool) if tree else None, self.events.append)
        self.runner = FakeRunner(self.pool)

    def add(self, name: str, prompt: range | list[int], max_tokens: int = 4, n: int = 1, **more: Any) -> list[Sequence]:
        params = SamplingParams(max_tokens=max_tokens, n=n)
        return self.scheduler.add(Request(name, tuple(prompt), params, arrival=self.now, **more), self.now)

    def step(self) -> Step:
        self.now += 1
        step = self.scheduler.schedule(self.now)
        self.scheduler.finish(step, self.runner.run(step), self.now)
        self.scheduler.check()
        for s in self.scheduler.running:
            assert len(s.block_table) == self.pool.blocks_for(s.computed), "less than a block a sequence stands empty"
        return step

    def preempted(self) -> list[Sequence]:
        """Those who gave way in the next step."""
        self.step()
        return self.scheduler.plan.preempted

    def drain(self) -> None:
        while self.scheduler.has_work:
            self.step()


def shares(step: Step) -> list[tuple[str, int, int]]:
    return [(share.sequence.request, share.start, share.length) for share in step.shares]


def test_a_step_is_decodes_first_then_chunks_up_to_the_budget() -> None:
    engine = Engine(tree=False)
    engine.add("a", range(5))
    assert shares(engine.step()) == [("a", 0, 5)]
    engine.add("b", range(100, 130))
    assert shares(engine.step()) == [("a", 5, 1), ("b", 0, 15)]
    engine.add("c", range(200, 203))
    assert shares(engine.step()) == [("a", 6, 1), ("c", 0, 3), ("b", 15, 12)]
    assert shares(engine.step()) == [("a", 7, 1), ("c", 3, 1), ("b", 27, 3)]


def test_a_new_request_joins_at_once_and_an_ended_one_makes_room_at_once() -> None:
    """No batch waits for its longest member."""
    engine = Engine(max_sequences=2)
    engine.add("a", range(3), max_tokens=9)
    engine.add("b", range(10, 13), max_tokens=1)
    engine.add("c", range(20, 23), max_tokens=1)
    assert [name for name, *_ in shares(engine.step())] == ["b", "a"]
    assert [name for name, *_ in shares(engine.step())] == ["a", "c"]


@pytest.mark.parametrize("tree", [True, False])
def test_continuations_share_the_prompt_and_copy_on_write(tree: bool) -> None:
    engine = Engine(tree=tree)
    sequences = engine.add("a", range(10), max_tokens=6, n=3)
    first, second = engine.step(), engine.step()
    assert shares(first) == [("a", 0, 10)]
    assert shares(second) == [("a", 10, 1), ("a", 9, 1), ("a", 9, 1)]
    assert len(second.copies) == 2, "the last of three writes where the others read before"
    tables = [s.block_table for s in sequences]
    assert tables[0][:2] == tables[1][:2] == tables[2][:2]
    assert len({table[2] for table in tables}) == 3
    engine.drain()
    assert [s.output for s in sequences] == [solo(range(10), 6, i) for i in range(3)]


def test_a_finished_answer_is_the_next_prompts_prefix() -> None:
    engine = Engine()
    (first,) = engine.add("a", range(8), max_tokens=5)
    engine.drain()
    (second,) = engine.add("b", [*first.tokens, *range(70, 76)])
    engine.step()
    assert second.cached == 12  # 13 tokens, of which the last was never computed
    assert [e.note for e in engine.events if e.kind == "admit"] == ["first request", "new from token 12"]


def test_when_blocks_run_out_the_last_in_rank_gives_way_and_loses_nothing() -> None:
    engine = Engine(num_blocks=6, tree=False)
    (a,), (b,) = engine.add("a", range(6), max_tokens=15), engine.add("b", range(50, 56), max_tokens=15)
    preempted = [s for _ in range(40) if engine.scheduler.has_work for s in engine.preempted()]
    assert preempted and set(preempted) == {b}
    assert a.output == solo(range(6), 15) and b.output == solo(range(50, 56), 15)


@pytest.mark.parametrize(("num_blocks", "beside", "found_later"), [(9, 20, 4), (10, 16, 12)])
def test_what_was_cached_is_told_of_the_last_admission(num_blocks: int, beside: int, found_later: int) -> None:
    """A sequence that lost its blocks and is admitted again found what that admission says: less, or more."""
    engine = Engine(num_blocks=num_blocks)
    engine.add("first", range(8), max_tokens=1)
    engine.drain()
    (shared,) = engine.add("shared", [*range(8), *range(60, 66)], max_tokens=12)
    (other,) = engine.add("other", range(100, 112), max_tokens=beside, priority=5)
    preempted = [s for _ in range(60) if engine.scheduler.has_work for s in engine.preempted()]
    assert shared in preempted and other not in preempted
    admitted = [e.tokens for e in engine.events if e.kind == "admit" and e.request == "shared"]
    assert admitted == [8, found_later] and shared.cached == found_later


def test_prompts_that_hold_each_others_blocks_do_not_deadlock() -> None:
    """Promised blocks went to decodes; with all blocks held by unfinished prompts the last one gives way."""
    engine = Engine(num_blocks=8, tree=False, token_budget=6)
    engine.add("a", range(3), max_tokens=12)
    engine.step()
    engine.add("b", range(100, 112), max_tokens=4)
    engine.add("c", range(200, 210), max_tokens=4)
    engine.drain()
    finished = {e.request: e.note for e in engine.events if e.kind == "finish"}
    assert finished == dict.fromkeys("abc", "length")


def test_continuations_of_a_prompt_that_fills_the_pool() -> None:
    """Each has to copy the last block and none is free: both gave way, and a step came that was empty."""
    engine = Engine(num_blocks=10, size=2)
    sequences = engine.add("a", range(20), max_tokens=1, n=3)
    while engine.scheduler.has_work:
        assert engine.step().shares
    assert [s.output for s in sequences] == [solo(range(20), 1, i) for i in range(3)]


@pytest.mark.parametrize("when", ["waiting", "prompt", "decode", "finished"])
def test_cancelled_in_any_state(when: str) -> None:
    engine = Engine()
    sequences = engine.add("a", range(30), max_tokens=3, n=2)
    for _ in range({"waiting": 0, "prompt": 1, "decode": 3, "finished": 9}[when]):
        if engine.scheduler.has_work:
            engine.step()
    assert engine.scheduler.cancel("a", engine.now) == (when != "finished")
    assert not engine.scheduler.cancel("nobody", engine.now)
    engine.scheduler.check()
    assert all(s.state is State.FINISHED for s in sequences) and not engine.scheduler.has_work
    assert engine.pool.num_available == engine.pool.num_blocks


def test_a_continuation_stopped_before_it_began_does_not_begin() -> None:
    engine = Engine()
    sequences = engine.add("a", range(6), max_tokens=2, n=3)
    engine.scheduler.stop(sequences[1], "stop", 0.0)
    engine.drain()
    assert [len(s.output) for s in sequences] == [2, 0, 2]
    assert [s.finish_reason for s in sequences] == ["length", "stop", "length"]


def test_many_cancelled_requests_leave_no_heap_behind() -> None:
    engine = Engine(max_sequences=1)
    for i in range(2000):
        engine.add(str(i), [i])
        engine.scheduler.cancel(str(i), 0.0)
    assert sum(map(len, engine.scheduler.waiting._lines.values())) < 40
    engine.add("last", [1])
    engine.drain()


def test_a_step_that_failed_is_done_again_by_half() -> None:
    engine = Engine()
    sequences = [s for i in range(4) for s in engine.add(str(i), range(100 * i, 100 * i + 3))]
    step = engine.scheduler.schedule(1.0)
    engine.runner.learn(step)
    engine.scheduler.abandon(step, 1.0)
    engine.scheduler.check()
    assert [s.state for s in sequences] == [State.RUNNING] * 2 + [State.WAITING] * 2
    engine.drain()
    assert [s.output for s in sequences] == [solo(range(100 * i, 100 * i + 3), 4) for i in range(4)]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (
            {"prompt": range(300)},
            "300 tokens with max_tokens 4: needs 76 blocks of 4 tokens, the pool has 64",
        ),
        ({"prompt": range(3), "n": 5}, r"n: expected at most max_sequences \(4\), found 5"),
        ({"prompt": []}, "prompt: expected at least one token"),
        ({"prompt": [1], "priority": 11}, "priority: expected an integer from -10 to 10, found 11"),
        ({"prompt": [1], "deadline": float("nan")}, "deadline: expected a time in seconds, found nan"),
        ({"prompt": [1], "name": "there"}, "request 'there' is under way already"),
    ],
)
def test_what_can_never_run_is_refused_with_the_numbers(request_: dict[str, Any], words: str) -> None:
    engine = Engine()
    engine.add("there", [1])
    with pytest.raises(ValueError, match=words):
        engine.add(**{"name": "new", **request_})
    engine.drain()


def test_a_request_may_fill_the_whole_pool() -> None:
    engine = Engine(num_blocks=4)
    (s,) = engine.add("a", range(10), max_tokens=7)  # 16 computed tokens, the last one is only said
    engine.drain()
    assert len(s.output) == 7
    with pytest.raises(ValueError, match="needs 5 blocks"):
        engine.add("b", range(10), max_tokens=8)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"token_budget": 3},
            r"token_budget: expected at least max_sequences \(4\), .*, found 3",
        ),
        ({"max_sequences": 0}, "max_sequences: expected an integer of at least 1, found 0"),
        ({"patience": -1.0}, "patience: expected seconds from 0 up, found -1.0"),
        ({"weights": {"a": 0.0}}, "weights: expected a number above 0 for 'a', found 0.0"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Engine(**settings)


def calls_in_steps(queued: int) -> int:
    """How many functions run in 50 steps while this many requests wait."""
    engine, calls = Engine(max_sequences=2), 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    for i in range(queued):
        engine.add(str(i), [i, i + 1], max_tokens=3, tenant=f"t{i % 100}")
    for _ in range(50):
        sys.setprofile(count)
        step = engine.scheduler.schedule(0.0)
        sys.setprofile(None)
        engine.scheduler.finish(step, engine.runner.run(step), 0.0)
    return calls


def test_a_step_costs_the_same_however_many_wait() -> None:
    assert calls_in_steps(5000) < 1.2 * calls_in_steps(200)
