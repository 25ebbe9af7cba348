"""Which sequences compute which tokens in the next step: pure policy, no arrays, a function of the calls and the clock.

schedule   one token for every decoding sequence, then admissions, then prompt chunks, up to `token_budget`
finish     take in a step's results: append tokens, keep blocks for others, end what has ended
"""

from collections.abc import Callable
from collections.abc import Sequence as Row
from dataclasses import dataclass, field
from typing import NamedTuple

from tiny_llm.config import SchedulerConfig
from tiny_llm.config.fields import require
from tiny_llm.course import NotDone
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.events import Event
from tiny_llm.engine.kept import Kept
from tiny_llm.engine.ledger import Ledger, Log, check_request
from tiny_llm.engine.radix import Match, RadixTree
from tiny_llm.engine.request import EndReason, Request, Result, Sequence, Share, State, Step, computed_after
from tiny_llm.engine.sequences import Sequences, Waiting


class Entry(NamedTuple):
    """A running sequence that computes its next `length` tokens, from position `start` on."""

    sequence: Sequence
    start: int
    length: int


@dataclass
class Plan:
    """A step while it is made: its entries, and what had to happen for them."""

    number: int
    entries: list[Entry] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(entry.length for entry in self.entries)


class Scheduler:
    """Continuous batching over a pool of blocks (Orca, OSDI 2022) with chunked prefill (arXiv:2308.16369).

    `running` is sorted by rank: what was due first is served first and preempted last. A step costs O(running), however
    many wait. The `ledger` alone writes block tables, `sequences` alone moves sequences from state to state.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        blocks: BlockPool,
        tree: RadixTree | None = None,
        emit: Callable[[Event], None] | None = None,
        kept: Kept | None = None,
    ):
        self.blocks = blocks
        self.set_limits(config)  # `config` is lowered below `configured` for a while after a step that failed
        self.log = Log(emit)
        self.ledger = Ledger(blocks, tree, self.log, kept)
        self.sequences = Sequences(self.ledger, self.log, config.weights)
        self.steps = self.arrivals = 0
        self.plan = Plan(0)  # of the last step
        settings = f"token_budget {config.token_budget}, max_sequences {config.max_sequences}"
        self.log.tell("pool", None, blocks.block_size, blocks.num_blocks, note=settings)

    @property
    def running(self) -> list[Sequence]:
        """The running sequences, best rank first."""
        return self.sequences.running

    @property
    def waiting(self) -> Waiting:
        """The sequences that wait for slots and blocks."""
        return self.sequences.waiting

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def set_limits(self, config: SchedulerConfig) -> None:
        """Plan the next steps by other settings; the sequences that are running go on."""
        self.config = self.configured = config

    def add(self, request: Request, now: float) -> list[Sequence]:
        """Let a request wait; returns its sequences. Raises ValueError, with the numbers, for what can never run."""
        require(request.id not in self.sequences.requests, f"id: request {request.id!r} is under way already")
        check_request(request, self.configured, self.blocks)
        self.log.now = now
        self.arrivals += 1
        return self.sequences.add(request, (due_time(request, self.config), self.arrivals * 1024))

    def schedule(self, now: float) -> Step:
        """The next step; it is empty only where nothing is left to do. The step before must be finished."""
        plan = self._new_plan(now)
        # YOUR CODE (w3.2.2): a step
        raise NotDone("w3.2.2")

    def finish(self, step: Step, results: Row[Result], now: float) -> list[Sequence]:
        """Take in what a step computed, one result for each share.

        Returns the sequences that ended; `stop` ends others, such as at a stop string.
        """
        self.log.now = now
        self.log.tell("step", tokens=step.num_tokens)
        ended = []
        # YOUR CODE (w3.1.4): take in what was computed
        raise NotDone("w3.1.4")
        return ended

    def _decode(self, plan: Plan) -> None:
        """One token for every sequence with only one to compute, best rank first."""
        # YOUR CODE (w3.1.2): one token for each that decodes
        raise NotDone("w3.1.2")

    def _admit(self, plan: Plan) -> None:
        """Admit waiting sequences in order while slots are free and blocks cover the whole prompt.

        Blocks count as free that no running sequence has been promised.
        """
        if not self.waiting:
            return
        # YOUR CODE (w3.1.3): let in who fits
        raise NotDone("w3.1.3")

    def _prefill(self, plan: Plan) -> None:
        """Give prompts what the decodes left of the budget: half to the eldest, the rest to the shortest first."""
        if len(plan.entries) == len(self.running):
            return  # each has a place: none is a prompt
        # YOUR CODE (w3.2.1): the rest of the budget
        raise NotDone("w3.2.1")

    def _distinct(self, prompts: list[Sequence]) -> list[Sequence]:
        """Reuse blocks that others have just computed; of several sequences about to compute the same block, keep one.

        Beams that wait for others of their search have nothing to compute.
        """
        prompts = [sequence for sequence in prompts if sequence.remaining]
        if self.ledger.tree is None or not prompts:
            return prompts
        distinct: dict[object, Sequence] = {}
        size, limit = self.blocks.block_size, self.blocks.num_blocks
        if any(sequence.remaining == 1 for sequence in self.running):  # reading must not delay their tokens for long
            limit = -(-self.config.token_budget // size)
        for sequence in prompts:
            read = self.ledger.restore(sequence, limit)
            limit -= len(read.blocks)
            if read.more:
                continue  # it reads on in the next step
            table, at = sequence.block_table, sequence.computed
            whole = at == len(table) * size and at + size < len(sequence.tokens)
            following = (table[-1] if table else None, *sequence.tokens[at : at + size])
            distinct.setdefault(following if whole else id(sequence), sequence)
        return list(distinct.values())

    def stop(self, sequence: Sequence, reason: EndReason, now: float) -> None:
        """End a sequence, in whatever state it is; its step under way, if any, no longer counts."""
        self.log.now = now
        self.sequences.stop(sequence, reason)

    def cancel(self, request_id: str, now: float) -> bool:
        """End all sequences of a request; returns whether it was unfinished."""
        sequences = self.sequences.requests.get(request_id, [])
        for sequence in list(sequences):
            self.stop(sequence, "cancelled", now)
        return bool(sequences)

    def branch(self, request_id: str, beams: Row[tuple[Sequence, int]], now: float) -> None:
        """A search goes on: each of its next beams extends a computed beam by one token."""
        self.log.now = now
        self.sequences.branch(request_id, beams)

    def abandon(self, step: Step, now: float) -> None:
        """A step failed: preempt its lower-ranked half, and every sequence whose copy-on-write target may be half
        written."""
        self.log.now = now
        targets = {target for _, target in step.copies}
        found = (self.sequences.find(share.sequence) for share in step.shares)
        alive = sorted((sequence for sequence in found if sequence is not None), key=lambda s: s.rank)
        for i, sequence in enumerate(alive):
            worse = i > 0 and 2 * i >= len(alive)
            if sequence.state is State.RUNNING and (worse or targets & set(sequence.block_table)):
                self.sequences.preempt(sequence)  # perhaps others of its search, too

    def check(self) -> None:
        """Assert that blocks, tables, tree and states agree; for tests, O(blocks + tokens)."""
        self.sequences.check()
        self.ledger.check(self.running)

    def _new_plan(self, now: float) -> Plan:
        """Begin the next step."""
        self.steps += 1
        self.log.now, self.log.step = now, self.steps
        self.ledger.begin_step()
        self.plan = Plan(self.steps)
        return self.plan

    def _enter(self, sequence: Sequence, limit: int, plan: Plan) -> int:
        """Give a sequence blocks for its next tokens and a place in the plan; returns how many tokens, 0 without
        blocks."""
        length = self.ledger.extend(sequence, limit)
        if length:
            plan.entries.append(Entry(sequence, sequence.computed, length))
        return length

    def _preempt(self, sequence: Sequence, plan: Plan) -> None:
        """Send a sequence back to wait, with the other beams of its search, and take them out of the plan."""
        gone = self.sequences.preempt(sequence)
        plan.preempted += gone
        plan.entries = [entry for entry in plan.entries if entry.sequence not in gone]

    def _start(self, found: Match, plan: Plan) -> None:
        """Let the first waiting sequence run on the blocks found for it."""
        plan.admitted += self.sequences.start(self.waiting.pop(), found)

    def _step(self, plan: Plan) -> Step:
        """The plan as plain data."""
        shares = tuple(map(self._share, plan.entries))
        admitted = self.sequences.admissions([entry.sequence for entry in plan.entries])
        return Step(plan.number, shares, tuple(self.ledger.copies), admitted, self.sequences.take_ended())

    def _share(self, entry: Entry) -> Share:
        sequence, start, length = entry
        end = start + length
        wanted = int(end == len(sequence.tokens))  # a prompt's last token, or a decode
        tokens = tuple(sequence.tokens[start:end])
        return Share(sequence.id, start, tokens, wanted, self.ledger.view(sequence, end))

    def _append(self, sequence: Sequence, tokens: Row[int]) -> None:
        """Add the tokens of a result, up to one that ends the sequence."""
        for token in tokens:
            if sequence.state is State.RUNNING:
                self.sequences.append(sequence, token)
        if sequence.state is State.RUNNING:
            self.ledger.trim(sequence)


def due_time(request: Request, config: SchedulerConfig) -> float:
    """When a request should be running. Smallest due time first: it never changes, so newcomers can't overtake a
    waiting request for ever.

    `patience` after its arrival, or at its deadline if that is sooner, but not before it came; each level of priority
    makes it earlier by `priority_seconds`.
    """
    # YOUR CODE (w3.1.1): when a request is due
    raise NotDone("w3.1.1")
