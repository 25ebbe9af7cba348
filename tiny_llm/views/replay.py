"""An event log played again: who holds which block, and what the prefix tree knows, after each step."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tiny_llm.config import SamplingParams, SchedulerConfig
from tiny_llm.engine import events as log
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.events import Event
from tiny_llm.engine.radix import RadixTree
from tiny_llm.engine.request import Request
from tiny_llm.engine.scheduler import Scheduler
from tiny_llm.engine.simulate import simulate
from tiny_llm.views.svg import AMBER, BLUE, GREEN, RED

Whose = tuple[str, int]
COLOURS = (BLUE, AMBER, GREEN, RED, "#a855f7", "#14b8a6", "#ec4899", "#84cc16")


@dataclass
class Replay:
    """The pool as the events so far tell it: each sequence's block table, and each kept block's parent (or -1)."""

    num_blocks: int = 0
    block_size: int = 1
    tables: dict[Whose, list[int]] = field(default_factory=dict)
    tree: dict[int, int] = field(default_factory=dict)

    def apply(self, e: Event) -> None:
        whose = (e.request, e.sequence)
        if e.kind == "pool":
            self.num_blocks, self.block_size = e.tokens, e.start
        elif e.kind in ("admit", "branch"):
            self.tables[whose] = list(e.blocks)
        elif e.kind in ("share", "load", "chunk"):
            self.tables[whose] += e.blocks
        elif e.kind == "copy":
            table = self.tables[whose]
            table[table.index(e.blocks[0])] = e.blocks[1]
        elif e.kind == "keep":
            first = e.start // self.block_size
            self.tables[whose][first : first + len(e.blocks) - 1] = e.blocks[1:]
            self.tree.update(zip(e.blocks[1:], e.blocks, strict=False))
        elif e.kind in ("preempt", "finish"):
            self.tables.pop(whose, None)
        elif e.kind == "evict":
            for block in e.blocks:
                del self.tree[block]

    def holders(self) -> dict[int, list[Whose]]:
        """The sequences that hold each block in use; none where only the tree does."""
        found: dict[int, list[Whose]] = {block: [] for block in self.tree}
        for whose, table in self.tables.items():
            for block in table:
                found.setdefault(block, []).append(whose)
        return found


def steps(events: Iterable[Event]) -> Iterator[tuple[Event, Replay]]:
    """The state of the pool at the end of each step: before what ends with it is given back."""
    replay = Replay()
    for event in events:
        if event.kind == "step":
            yield event, replay
        replay.apply(event)


def colours(events: Iterable[Event]) -> dict[str, str]:
    """A colour for each request, in the order of their coming."""
    names = dict.fromkeys(event.request for event in events if event.request)
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def label(whose: Whose) -> str:
    """A for A's first sequence, A.1 for the second."""
    return whose[0] + (f".{whose[1]}" if whose[1] else "")


def load(path: Path | None, num_blocks: int = 22, token_budget: int = 8) -> list[Event]:
    """The events of a log, or without one of a small load on a simulated clock."""
    return log.read(path) if path else demo(num_blocks, token_budget)


def demo(num_blocks: int = 22, token_budget: int = 8) -> list[Event]:
    """Five requests: A and B begin alike, C is long, D wants two answers, E asks for A's prompt again."""
    found: list[Event] = []
    pool = BlockPool(num_blocks, 4)
    config = SchedulerConfig(token_budget, min(5, token_budget), 200)
    prompts = {"A": range(12), "B": [*range(8), 50, 51], "C": range(100, 130), "D": range(200, 206), "E": range(12)}
    arrivals = {"A": 0.0, "B": 0.004, "C": 0.008, "D": 0.03, "E": 0.06}
    outputs = {"A": 5, "B": 9, "C": 4, "D": 6, "E": 3}
    requests = [
        Request(
            name,
            tuple(tokens),
            SamplingParams(max_tokens=outputs[name], n=2 if name == "D" else 1),
            arrival=arrivals[name],
        )
        for name, tokens in prompts.items()
    ]
    simulate(Scheduler(config, pool, RadixTree(pool), found.append), requests)
    return found
