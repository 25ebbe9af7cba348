"""Beams and the second place of blocks in the scheduler: what anything in any order rarely comes to."""

from tests.engine.fake import FakeRunner, FakeTier, advance, solo_search
from tiny_llm.config import SamplingParams, SchedulerConfig
from tiny_llm.decode.beam import Beam
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.choosers import Beams
from tiny_llm.engine.events import Event
from tiny_llm.engine.radix import RadixTree
from tiny_llm.engine.request import Request, Step
from tiny_llm.engine.scheduler import Scheduler

SEARCH = Request("s", tuple(range(100, 108)), SamplingParams(max_tokens=4, beam_width=3))


class Engine:
    """A scheduler whose requests may search, with a runner and a log."""

    def __init__(self, num_blocks: int, tree: bool = True, token_budget: int = 32):
        self.pool, self.events = BlockPool(num_blocks, 4), list[Event]()
        config = SchedulerConfig(token_budget, 8)
        self.scheduler = Scheduler(config, self.pool, RadixTree(self.pool) if tree else None, self.events.append)
        self.runner, self.beams, self.found = FakeRunner(self.pool), Beams(), dict[str, list[Beam]]()

    def add(self, request: Request) -> None:
        self.scheduler.add(request, 0.0)
        if request.searches:
            self.beams.add(request)

    def step(self) -> Step:
        step = self.scheduler.schedule(0.0)
        results = self.runner.run(step)
        self.scheduler.finish(step, results, 0.0)
        for sequence, search in advance(self.beams, self.scheduler, step, results, 0.0):
            self.found[sequence.request.id] = search.best
        self.scheduler.check()
        return step

    def drain(self) -> None:
        while self.scheduler.has_work:
            self.step()


def test_beams_share_what_they_have_in_common() -> None:
    engine = Engine(64, tree=False)
    engine.add(SEARCH)
    engine.step()  # the prompt, two blocks
    assert len(engine.scheduler.running) == 3 and engine.pool.num_free == 62
    second = engine.step()  # each beam writes into a block of its own
    assert [len(e.blocks) for e in engine.events if (e.kind, e.step) == ("chunk", second.number)] == [1, 1, 1]
    engine.drain()
    assert engine.found["s"] == solo_search(SEARCH) and engine.pool.num_free == 64
    assert not {"preempt", "evict"} & {e.kind for e in engine.events}


def test_beams_come_back_together_or_not_yet() -> None:
    """There would be room for one of three, which could do nothing by itself."""
    engine = Engine(13, tree=False)
    engine.add(Request("other", tuple(range(17)), SamplingParams(max_tokens=5)))
    engine.step()
    engine.add(SEARCH)
    engine.step()
    engine.step()
    failed = engine.scheduler.schedule(0.0)
    engine.runner.learn(failed)
    engine.scheduler.abandon(failed, 0.0)
    assert [s.request.id for s in engine.scheduler.running] == ["other"]
    while any(s.request.id == "other" for s in engine.scheduler.running):
        engine.step()
        assert not engine.scheduler.plan.admitted
    engine.step()
    assert [s.index for s in engine.scheduler.plan.admitted] == [0, 1, 2]
    engine.drain()
    assert engine.found["s"] == solo_search(SEARCH)


def test_what_was_evicted_is_read_back_behind_what_is_left() -> None:
    engine = Engine(16)
    tree = engine.scheduler.ledger.tree
    assert tree
    tree.tier = FakeTier(engine.runner)
    prompt = tuple(range(22))
    engine.add(Request("first", prompt, SamplingParams(max_tokens=1)))
    engine.drain()
    assert len(tree.evict(3)) == 3  # of five whole blocks
    engine.add(Request("second", prompt, SamplingParams(max_tokens=1)))
    engine.drain()
    kinds = {e.kind: (e.start, e.tokens) for e in engine.events if e.request == "second"}
    assert (kinds["admit"], kinds["load"], kinds["chunk"]) == ((0, 8), (8, 12), (20, 2))


def test_reading_back_delays_nobody_for_long() -> None:
    """Beside one that decodes, a long prompt is read a budget's worth a step; by itself at once."""
    engine, long = Engine(64, token_budget=8), tuple(range(102))
    tree = engine.scheduler.ledger.tree
    assert tree
    tree.tier = FakeTier(engine.runner, lost=1000)
    for name, others in (("first", 0), ("alone", 0), ("beside", 1)):
        if others:
            engine.add(Request("decodes", (7, 7), SamplingParams(max_tokens=30)))
            engine.step()
        engine.add(Request(name, long, SamplingParams(max_tokens=1)))
        engine.drain()
        tree.evict(64)
    read = {"alone": list[int](), "beside": list[int]()}
    for event in engine.events:
        if event.kind == "load":
            read[event.request].append(event.tokens)
    assert read == {"alone": [100], "beside": [8] * 12 + [4]}
    assert [e.tokens for e in engine.events if e.kind == "chunk" and e.request == "beside"] == [2]
    tokens = [e.step for e in engine.events if e.kind == "token" and e.request == "decodes"]
    assert tokens == [*range(tokens[0], tokens[0] + 30)]  # one in each step


def test_what_can_not_be_read_back_is_computed() -> None:
    engine = Engine(16)
    tree = engine.scheduler.ledger.tree
    assert tree
    tree.tier = FakeTier(engine.runner, lost=2)
    for name in ("first", "second"):
        engine.add(Request(name, tuple(range(22)), SamplingParams(max_tokens=1)))
        engine.drain()
        tree.evict(16)
    (load,) = (e for e in engine.events if e.kind == "load")
    assert (load.start, load.tokens, load.note) == (0, 4, "damaged")
    assert [e.tokens for e in engine.events if e.kind == "chunk"] == [22, 18]


def test_a_block_to_be_copied_is_not_read_over() -> None:
    """Blocks are read back at once, copies are made when the step runs: a copy's source was free for reading into."""
    engine, long = Engine(16, token_budget=64), tuple(range(33))
    tree = engine.scheduler.ledger.tree
    assert tree
    tree.tier = FakeTier(engine.runner, lost=1000)
    engine.add(Request("first", long, SamplingParams(max_tokens=1)))
    engine.drain()
    tree.evict(16)
    engine.add(Request("other", tuple(range(200, 232)), SamplingParams(max_tokens=1)))
    engine.add(Request("two", tuple(range(100, 108)), SamplingParams(max_tokens=1, n=2)))
    engine.step()
    engine.add(Request("again", long, SamplingParams(max_tokens=1)))
    step = engine.step()
    ((source, _),) = step.copies
    assert (source,) in [e.blocks for e in engine.events if (e.kind, e.step) == ("evict", step.number)]
    (load,) = (e for e in engine.events if (e.kind, e.request) == ("load", "again"))
    assert load.tokens == 32 and source not in load.blocks, "it was to be had, and is spared"
    engine.drain()
