"""Decide which sequences compute which tokens in the next step: pure policy, without arrays or a clock of its own.

schedule   one token for every decoding sequence, then admissions, then prompt chunks, up to `token_budget`
finish     take in a step's results: append tokens, keep full blocks for later requests, end finished sequences
"""

import json
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Row
from dataclasses import dataclass, field, replace

from tiny_llm.config import SchedulerConfig
from tiny_llm.config.fields import require
from tiny_llm.course import NotDone
from tiny_llm.decode.acceptance import DraftTree
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.events import Event
from tiny_llm.engine.kept import Kept
from tiny_llm.engine.ledger import Ledger, Log, check_request
from tiny_llm.engine.radix import Match, RadixTree
from tiny_llm.engine.request import (
    EndReason,
    Request,
    Result,
    Sequence,
    SequenceId,
    Share,
    State,
    Step,
    computed_after,
    verification,
)
from tiny_llm.engine.sequences import Sequences, Waiting


@dataclass
class Plan:
    """A step while it is scheduled: the sequences that compute in it with their shares, and what happened for it."""

    number: int
    entries: dict[Sequence, Share] = field(default_factory=dict)
    admitted: list[Sequence] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(share.length for share in self.entries.values())


class Scheduler:
    """Continuous batching over a pool of blocks (Orca, OSDI 2022) with chunked prefill (arXiv:2308.16369).

    `running` is sorted by rank: the sequence that was due first is served first and preempted last. A step looks at the
    running sequences and at the first waiting one, whose prompt it looks up; how many wait makes no difference. Only
    the `ledger` writes block tables, and only `sequences` changes the state of a sequence.
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
        self.config = self.configured = config  # `config` is the lower one for a while after a step that failed
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

    def set_limits(self, token_budget: int, max_sequences: int) -> None:
        """Schedule the next steps within other limits. Running sequences go on."""
        limits = replace(self.configured, token_budget=token_budget, max_sequences=max_sequences)
        self.config = self.configured = limits

    def lower_limits(self, token_budget: int, max_sequences: int) -> None:
        """Schedule within smaller limits for a while, after a step that failed."""
        self.config = replace(self.config, token_budget=token_budget, max_sequences=max_sequences)

    def restore_limits(self) -> None:
        """Schedule within the configured limits again."""
        self.config = self.configured

    def add(self, request: Request, now: float) -> list[Sequence]:
        """Add a request to the waiting line, and return its sequences. Raises ValueError if it can never run."""
        require(request.id not in self.sequences.requests, f"id: request {request.id!r} is under way already")
        check_request(request, self.configured, self.blocks)
        self.log.now = now
        self.arrivals += 1
        rank = due_time(request, self.config), self.arrivals * 1024  # more than a request has sequences: ranks differ
        return self.sequences.add(request, rank)

    def schedule(self, now: float) -> Step:
        """Schedule the next step. The previous step must be finished.

        It is empty where no sequence runs and the first waiting one does not fit within the lowered limits.
        """
        plan = self._new_plan(now)
        # YOUR CODE (w3.2.2): a step
        raise NotDone("w3.2.2")

    def finish(self, step: Step, results: Row[Result], now: float) -> list[Sequence]:
        """Take in the results of a step, one for each share.

        Returns the sequences that end by a stop token or their length; `stop` ends a sequence for another reason, such
        as a stop string.
        """
        self.log.now = now
        in_use = self.blocks.num_blocks - self.blocks.num_available
        self.log.tell("step", None, in_use, step.num_tokens)
        ended = []
        # YOUR CODE (w3.1.4): take in the results
        raise NotDone("w3.1.4")
        return ended

    def decoding(self, step: Step) -> list[Sequence]:
        """Return the sequences of a step that compute the last of their tokens, in the order of the shares."""
        found = [self.sequences.find(share.sequence) for share in step.shares if share.wanted and share.length == 1]
        return [sequence for sequence in found if sequence is not None and not sequence.request.searches]

    def reserve(self, sequence: Sequence, limit: int) -> int:
        """Give a sequence that decodes blocks for up to `limit` drafted tokens, and return their number."""
        return self.ledger.extend_draft(sequence, limit)

    def with_drafts(self, step: Step, drafts: Mapping[SequenceId, DraftTree]) -> Step:
        """Return a step that verifies these drafts, for which blocks are reserved."""
        shares = []
        for share in step.shares:
            draft = drafts.get(share.sequence)
            if draft is not None and len(draft):
                sequence = self.sequences.find(share.sequence)
                assert sequence is not None
                share = verification(share, draft, self.ledger.view(sequence, share.end + len(draft)))
            shares.append(share)
        return replace(step, shares=tuple(shares))

    def _decode(self, plan: Plan) -> None:
        """Schedule one token for every sequence with one token to compute, best rank first."""
        # YOUR CODE (w3.1.2): one token for each decoding sequence
        raise NotDone("w3.1.2")

    def _admit(self, plan: Plan) -> None:
        """Admit waiting sequences in order while slots are free and available blocks cover the whole prompt.

        The blocks that running sequences still need for their prompts do not count as available.
        """
        if not self.waiting:
            return
        # YOUR CODE (w3.1.3): admit sequences that fit
        raise NotDone("w3.1.3")

    def _prefill(self, plan: Plan) -> None:
        """Give prompts the rest of the token budget: half to the oldest prompt, the rest to the shortest first."""
        if len(plan.entries) == len(self.running):
            return  # every running sequence decodes
        # YOUR CODE (w3.2.1): the rest of the budget
        raise NotDone("w3.2.1")

    def _distinct(self, prompts: list[Sequence]) -> list[Sequence]:
        """Share blocks that other sequences have just computed; of several about to compute the same block, keep one.

        Beams that wait for the other beams of their search are left out.
        """
        prompts = [sequence for sequence in prompts if sequence.remaining]
        if self.ledger.tree is None or not prompts:
            return prompts
        distinct: dict[object, Sequence] = {}
        size, limit = self.blocks.block_size, self.blocks.num_blocks
        if any(sequence.remaining == 1 for sequence in self.running):  # loading delays their next tokens
            limit = -(-self.config.token_budget // size)
        for sequence in prompts:
            read = self.ledger.restore(sequence, limit)
            limit -= len(read.blocks)
            if read.more:
                continue  # the next step loads more blocks
            table, at = sequence.block_table, sequence.computed
            whole = at == len(table) * size and at + size < len(sequence.tokens)
            following = (table[-1] if table else None, *sequence.keys[at : at + size])
            distinct.setdefault(following if whole else id(sequence), sequence)
        return list(distinct.values())

    def stop(self, sequence: Sequence, reason: EndReason, now: float) -> None:
        """End a sequence in any state. The result of its running step is ignored."""
        self.log.now = now
        self.sequences.stop(sequence, reason)

    def end(self, request_id: str, reason: EndReason, now: float) -> Sequence:
        """End all sequences of an unfinished request; returns its first."""
        group = list(self.sequences.requests[request_id])
        for sequence in group:
            self.stop(sequence, reason, now)
        return group[0]

    def cancel(self, request_id: str, now: float) -> bool:
        """Cancel all sequences of a request. Returns whether the request was unfinished."""
        sequences = self.sequences.requests.get(request_id, [])
        for sequence in list(sequences):
            self.stop(sequence, "cancelled", now)
        return bool(sequences)

    def branch(self, request_id: str, beams: Row[tuple[Sequence, int]], now: float) -> None:
        """Replace the beams of a search: each new beam extends one of the old beams by a token."""
        self.log.now = now
        self.sequences.branch(request_id, beams)

    def preempt_all(self, now: float) -> None:
        """Preempt every running sequence: all K and V are lost."""
        self.log.now = now
        while self.running:
            self.sequences.preempt(self.running[-1])

    def abandon(self, step: Step, now: float) -> None:
        """After a step that failed: preempt the lower-ranked half of its sequences.

        Also preempt every sequence with a copy-on-write target of the step, because it may be half written.
        """
        self.log.now = now
        targets = {target for _, target in step.copies}
        found = (self.sequences.find(share.sequence) for share in step.shares)
        alive = sorted((sequence for sequence in found if sequence is not None), key=lambda s: s.rank)
        for i, sequence in enumerate(alive):
            worse = i > 0 and 2 * i >= len(alive)
            if sequence.state is State.RUNNING and (worse or targets & set(sequence.block_table)):
                self.sequences.preempt(sequence)  # and with it the other beams of its search

    def check(self) -> None:
        """Assert that blocks, tables, tree and states agree, for tests. Takes O(blocks + tokens)."""
        self.sequences.check()
        self.ledger.check(self.running)

    def _new_plan(self, now: float) -> Plan:
        """Begin the plan of the next step."""
        self.steps += 1
        self.log.now, self.log.step = now, self.steps
        self.ledger.begin_step()
        self.plan = Plan(self.steps)
        return self.plan

    def _enter(self, sequence: Sequence, limit: int, plan: Plan) -> int:
        """Plan up to `limit` next tokens of a sequence. Returns their number, 0 where no block is available."""
        length = self.ledger.extend(sequence, limit)
        if length:
            plan.entries[sequence] = self._share(sequence, length)
        return length

    def _preempt(self, sequence: Sequence, plan: Plan) -> None:
        """Preempt a sequence and the other beams of its search, and take them out of the plan."""
        gone = self.sequences.preempt(sequence)
        plan.preempted += gone
        for one in gone:
            plan.entries.pop(one, None)

    def _start(self, found: Match, plan: Plan) -> None:
        """Admit the first waiting sequence with the kept blocks of its prefix."""
        plan.admitted += self.sequences.start(self.waiting.pop(), found)

    def _step(self, plan: Plan) -> Step:
        """Turn the plan into a step, which is plain data."""
        shares = tuple(plan.entries.values())
        admitted = self.sequences.admissions(plan.entries)
        return Step(plan.number, shares, tuple(self.ledger.copies), admitted, self.sequences.take_ended())

    def _share(self, sequence: Sequence, length: int) -> Share:
        """Make the share of a sequence's next tokens, which have blocks already."""
        start, tokens = sequence.computed, sequence.tokens
        end = start + length
        wanted = int(end == len(tokens))  # a prompt's last token, or a decode
        return Share(sequence.id, start, tuple(tokens[start:end]), wanted, self.ledger.view(sequence, end))

    def _tell_verified(self, sequence: Sequence, share: Share, result: Result) -> None:
        """Emit an event for a draft that was verified."""
        draft = share.draft
        if draft.tokens:
            note = json.dumps([draft.tokens, draft.parents], separators=(",", ":"))
            self.log.tell("verify", sequence, share.start + 1, len(draft.tokens), result.kept, note)

    def _append(self, sequence: Sequence, tokens: Row[int]) -> None:
        """Append the tokens of a result, up to a token that ends the sequence."""
        before = sequence.computed - len(tokens)  # K and V before the first of them
        for number, token in enumerate(tokens, 1):
            if sequence.state is State.RUNNING:
                sequence.computed = before + number
                self.sequences.append(sequence, token)
        if sequence.state is State.RUNNING:
            self.ledger.trim(sequence)


def due_time(request: Request, config: SchedulerConfig) -> float:
    """Return the time at which a request is due; the smallest due time goes first.

    A due time never changes, so newcomers can't overtake a waiting request for ever. It is `patience` after the
    arrival, or the deadline if that is sooner, but not before the arrival. Each level of priority makes it earlier by
    `priority_seconds`.
    """
    # YOUR CODE (w3.1.1): when a request is due
    raise NotDone("w3.1.1")
