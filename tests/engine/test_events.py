"""The event log: complete enough to play the pool again from it, written and read without loss, drawn and traced."""

import contextlib
import json
from pathlib import Path
from random import Random

import pytest

from tests.engine.fake import FakeRunner, FakeTier, advance
from tiny_llm.cli import main
from tiny_llm.config import SamplingParams, SchedulerConfig
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.choosers import Beams
from tiny_llm.engine.events import KINDS, Event, JsonLines, read
from tiny_llm.engine.radix import RadixTree
from tiny_llm.engine.request import Request
from tiny_llm.engine.scheduler import Scheduler
from tiny_llm.views import pages, radix, replay, schedule
from tiny_llm.views.trace import chrome_trace


@pytest.fixture(scope="module")
def events() -> list[Event]:
    return replay.demo(num_blocks=13, token_budget=16)


@pytest.mark.parametrize("seed", range(6))
def test_the_log_tells_every_table_and_the_whole_tree(seed: int) -> None:
    """Played again after each step it gives the scheduler's own tables, and the tree's nodes with their parents."""
    random, again, seen = Random(seed), replay.Replay(), list[Event]()
    pool = BlockPool(random.randrange(12, 24), 2)
    tree = RadixTree(pool)
    scheduler, runner = Scheduler(SchedulerConfig(9, 4), pool, tree, seen.append), FakeRunner(pool)
    beams, tree.tier, kinds = Beams(), FakeTier(runner) if seed % 2 else None, set()
    for i in range(150):
        if i < 100 and random.random() < 0.5:
            prompt = (*[1] * random.randrange(6), *[random.randrange(3) for _ in range(random.randrange(1, 5))])
            n, longest = random.choice((1, 2, 3)), random.randrange(1, 9)
            params = SamplingParams(max_tokens=longest, n=n, beam_width=n if random.random() < 0.4 else 1)
            one = Request(str(i), prompt, params, arrival=float(i))
            with contextlib.suppress(ValueError):  # beams may need more than the pool
                scheduler.add(one, float(i))
                if one.searches:
                    beams.add(one)
        step = scheduler.schedule(float(i))
        results = runner.run(step)
        scheduler.finish(step, results, float(i))
        advance(beams, scheduler, step, results, float(i))
        if scheduler.sequences.requests and random.random() < 0.1:
            name = random.choice(list(scheduler.sequences.requests))
            scheduler.cancel(name, float(i))
            beams.forget(name)
        while seen:
            kinds.add(seen[0].kind)
            again.apply(seen.pop(0))
        assert again.tables == {(s.request.id, s.index): s.block_table for s in scheduler.running}
        assert again.tree == {b: node.parent.block if node.parent else -1 for b, node in tree.nodes.items()}
    assert {"branch", "load"} - kinds == (set() if seed % 2 else {"load"})


def test_a_log_is_read_as_it_was_written(events: list[Event], tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with path.open("w", encoding="utf-8") as stream:
        for event in events:
            JsonLines(stream)(event)
    assert read(path) == events
    assert {e.kind for e in events} == KINDS - {"share", "load", "branch", "verify"}
    assert "blocks" not in json.loads(Event(1.0, "step").line())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "log.jsonl, line 2: expected JSON"),
        ("[]", "line 2: expected an object"),
        ('{"time": 1.0, "kind": "nap"}', "line 2: expected a time and a known kind"),
        ('{"kind": "step"}', "line 2: expected a time and a known kind"),
        ('{"time": 1.0, "kind": "step", "who": 1}', "line 2: unknown field 'who'"),
        ('{"time": "now", "kind": "step"}', "line 2: time: unexpected value 'now'"),
        ('{"time": 1.0, "kind": "chunk", "blocks": ["a"]}', "line 2: blocks: expected numbers"),
    ],
)
def test_a_damaged_log_is_refused_with_its_line(line: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(Event(0.0, "pool").line() + "\n" + line + "\n")
    with pytest.raises(ValueError, match=words):
        read(path)


def test_an_empty_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").touch()
    with pytest.raises(ValueError, match="expected events, found an empty file"):
        read(tmp_path / "log.jsonl")


def test_the_trace_has_every_chunk_and_every_wait(events: list[Event]) -> None:
    rows = json.loads(chrome_trace(events))["traceEvents"]
    slices = [row for row in rows if row["ph"] == "X"]
    assert sum(row["name"] != "waits" for row in slices) == sum(e.kind == "chunk" for e in events)
    assert sum(row["name"] == "waits" for row in slices) == sum(e.kind in ("arrival", "preempt") for e in events)
    assert all(row["dur"] >= 0 and row["ts"] >= 0 for row in slices)
    names = {row["args"]["name"] for row in rows if row["name"] == "thread_name"}
    assert names == {"A", "B", "C", "D", "D #1", "E"}
    assert max(row["args"]["sequences"] for row in rows if row["name"] == "running") == 3


def test_the_pictures_say_what_is_in_the_log(events: list[Event]) -> None:
    timeline = schedule.draw("s", events).svg()
    assert timeline.count("computes") == sum(e.kind == "chunk" for e in events)
    assert "Preempted: " in schedule.words(events)
    shown = pages.frames(events, 3, 5)
    assert [page.title for page in shown] == [f"Step {i}: the pool and the tables" for i in (3, 4, 5)]
    assert "A: 0, 1, " in shown[0].alt
    assert "A: 0 of 12 tokens (first request); B: 8 of 10 tokens" in radix.draw("r", events).alt


def test_a_large_pool_is_drawn_as_far_as_it_is_used() -> None:
    (page,) = pages.frames(replay.demo(num_blocks=4000), 3, 3)
    assert "without 3968 blocks that are never used" in page.svg()
    assert page.svg().count(": free") < 40


def test_lanes_are_never_shared_and_reused(events: list[Event]) -> None:
    lanes = schedule.lanes(events)
    by_step: dict[int, list[int]] = {}
    for (_, step), lane in lanes.items():
        by_step.setdefault(step, []).append(lane)
    assert all(len(used) == len(set(used)) for used in by_step.values())
    assert max(lanes.values()) < 5


@pytest.mark.parametrize("view", ["schedule", "pages", "radix"])
def test_the_commands(view: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, out = tmp_path / "log.jsonl", tmp_path / "out.html"
    log.write_text("".join(e.line() + "\n" for e in replay.demo()), encoding="utf-8")
    assert main(["viz", view, "--log", str(log), "--out", str(out)]) == 0
    with_log = out.read_text(encoding="utf-8")
    assert main(["viz", view, "--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8") == with_log, "the simulated load is the same each time"
    assert ('id="on"' in with_log) == (view == "pages")
    assert main(["viz", view, "--log", str(log), *(["--step"] if view == "radix" else ["--first"]), "999"]) == 2
    assert "expected" in capsys.readouterr().err


def test_a_trace_beside_the_picture(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path / "out.svg"), "--trace", str(tmp_path / "trace.json")]
    assert main(["viz", "schedule", *arguments]) == 0
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
