"""What a sequence goes through, one method for each change, with its blocks: started, grown, shared, forked, preempted,
stopped. Here is how; `scheduler` decides who and when.
"""

from bisect import insort
from collections.abc import Callable
from collections.abc import Sequence as Row
from dataclasses import dataclass, field
from typing import NamedTuple

from tiny_llm.config import SchedulerConfig
from tiny_llm.config.fields import require
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.events import Event
from tiny_llm.engine.radix import Match, RadixTree
from tiny_llm.engine.request import FinishReason, Request, Sequence, State
from tiny_llm.engine.waiting import Waiting


class Entry(NamedTuple):
    """A sequence's share of a step: tokens[start : start + length]; `samples` where its last token's logits count."""

    sequence: Sequence
    start: int
    length: int
    samples: bool


@dataclass
class Step:
    """One forward pass. `copies` are pairs of blocks (source, target) to copy before it, in this order."""

    number: int
    entries: list[Entry] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(entry.length for entry in self.entries)


class Lifecycle:
    """The sequences of all unfinished requests, the blocks they hold, and the changes they go through.

    `running` is sorted by rank. `emit` is told what happens.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        blocks: BlockPool,
        tree: RadixTree | None = None,
        emit: Callable[[Event], None] | None = None,
    ):
        self.config, self.blocks, self.tree, self.emit = config, blocks, tree, emit
        self.running: list[Sequence] = []
        self.waiting = Waiting(config.weights)
        self.requests: dict[str, list[Sequence]] = {}  # the unfinished ones with all their sequences
        self.steps = self.arrivals = 0
        settings = f"token_budget {config.token_budget}, max_sequences {config.max_sequences}"
        self._tell(0.0, "pool", None, blocks.block_size, blocks.num_blocks, note=settings)

    def _refuse(self, request: Request) -> None:
        """Raise ValueError, with the numbers, for a request that could never run."""
        params, config = request.params, self.config
        require(request.id not in self.requests, f"id: request {request.id!r} is under way already")
        n, longest = params.n, len(request.tokens) + params.max_tokens
        require(n <= config.max_sequences, f"n: expected at most max_sequences ({config.max_sequences}), found {n}")
        what = f"prompt of {len(request.tokens)} tokens with max_tokens {params.max_tokens}"
        require(
            longest <= config.max_context,
            f"{what}: {longest} tokens are more than the context of {config.max_context}; "
            "shorten the prompt or lower max_tokens",
        )
        need, pool = self.blocks.blocks_for(longest - 1), self.blocks  # the last token is never computed
        require(
            need <= pool.num_blocks,
            f"{what}: needs {need} blocks of {pool.block_size} tokens, the pool has {pool.num_blocks}; "
            "shorten the prompt, lower max_tokens or give the pool more memory",
        )

    def _find(self, sequence: Sequence) -> Match:
        """What the tree knows of a sequence that waits."""
        return self.tree.match(sequence.tokens, head=sequence.request.head) if self.tree else Match([], 0, "")

    def _start(self, sequence: Sequence, found: Match, step: Step, now: float) -> None:
        """Let a waiting sequence run on the blocks found for it."""
        self._share(sequence, found)
        sequence.state, sequence.cached = State.RUNNING, found.num_tokens
        insort(self.running, sequence, key=lambda s: s.rank)
        step.admitted.append(sequence)
        if sequence.admitted is None:
            sequence.admitted = now
            self.waiting.charge(sequence.request.tenant, sequence.remaining)
        self._tell(now, "admit", sequence, 0, found.num_tokens, found.blocks, found.reason)

    def _share(self, sequence: Sequence, found: Match) -> None:
        for block in found.blocks:
            self.blocks.share(block)
        sequence.block_table += found.blocks
        sequence.computed += found.num_tokens

    def _fork(self, leader: Sequence, now: float) -> None:
        """The prompt is computed: its other continuations go on from the token before its last, on the same blocks."""
        known = leader.num_prompt - 1
        shared = leader.block_table[: self.blocks.blocks_for(known)]
        for follower in leader.followers:
            self._share(follower, Match(shared, known, ""))
            follower.state, follower.cached, follower.admitted = State.RUNNING, known, now
            insort(self.running, follower, key=lambda s: s.rank)
            self._tell(now, "admit", follower, 0, known, shared, f"continuation of {leader.index}")
        leader.followers = []

    def _append(self, sequence: Sequence, token: int, now: float) -> None:
        self._tell(now, "token", sequence, len(sequence.tokens), 1)
        sequence.tokens.append(token)
        self.waiting.charge(sequence.request.tenant, 1)
        if token in sequence.request.stop_tokens:
            self.stop(sequence, "stop", now)
        elif len(sequence.tokens) - sequence.num_prompt == sequence.request.params.max_tokens:
            self.stop(sequence, "length", now)

    def _keep(self, sequence: Sequence, now: float) -> None:
        """Let others find the whole blocks that are computed."""
        if self.tree is None:
            return
        whole, size = sequence.computed // self.blocks.block_size, self.blocks.block_size
        known = sum(block in self.tree.nodes for block in sequence.block_table[:whole])
        sequence.block_table = self.tree.insert(sequence.tokens[: whole * size], sequence.block_table)
        if whole > known:
            above = sequence.block_table[known - 1] if known else -1
            kept = (above, *sequence.block_table[known:whole])
            self._tell(now, "keep", sequence, known * size, (whole - known) * size, kept)

    def _release(self, sequence: Sequence, now: float) -> list[int]:
        """Out of the running ones; returns the blocks that it held."""
        self._keep(sequence, now)
        held, sequence.block_table = sequence.block_table, []
        for block in held:
            self.blocks.free(block)
        self.running.remove(sequence)
        return held

    def _preempt(self, sequence: Sequence, step: Step, now: float) -> None:
        """Back to the waiting line; what it had is computed again, unless the tree still knows it by then."""
        held, lost = self._release(sequence, now), sequence.computed
        sequence.state, sequence.computed = State.WAITING, 0
        self.waiting.push(sequence)
        step.preempted.append(sequence)
        self._tell(now, "preempt", sequence, 0, lost, held)

    def stop(self, sequence: Sequence, reason: FinishReason, now: float) -> None:
        """End a sequence, in whatever state it is; its step under way, if any, no longer counts."""
        if sequence.state is State.FINISHED:
            return
        held = self._release(sequence, now) if sequence.state is State.RUNNING else []
        waited, sequence.state, sequence.finish_reason = sequence.state is State.WAITING, State.FINISHED, reason
        siblings = self.requests[sequence.request.id]
        if sequence in siblings[0].followers:
            siblings[0].followers.remove(sequence)
        elif waited:
            self.waiting.cancelled(sequence)
        self._tell(now, "finish", sequence, 0, len(sequence.output), held, reason)
        for follower in list(sequence.followers):
            self.stop(follower, reason, now)
        if all(s.state is State.FINISHED for s in siblings):
            self.requests.pop(sequence.request.id, None)

    def cancel(self, request_id: str, now: float) -> bool:
        """End all sequences of a request; returns whether it was unfinished."""
        sequences = self.requests.get(request_id, [])
        for sequence in sequences:
            self.stop(sequence, "cancelled", now)
        return bool(sequences)

    def abandon(self, step: Step, now: float) -> None:
        """A step failed (out of memory): forget it, and let the worse half of its sequences wait.

        So do all whose blocks were to be copied: nobody knows what these hold.
        """
        targets = {target for _, target in step.copies}
        alive = [e.sequence for e in step.entries if e.sequence.state is State.RUNNING]
        alive.sort(key=lambda s: s.rank)
        for i, sequence in enumerate(alive):
            if (2 * i >= len(alive) and i) or targets & set(sequence.block_table):
                self._preempt(sequence, Step(step.number), now)

    # ANCHOR: enter
    def _enter(self, sequence: Sequence, limit: int, step: Step, now: float) -> int:
        """Give a sequence blocks for its next tokens and a place in the step.

        Returns how many tokens: at most `limit`, and as many as there are blocks for.
        """
        table, start, size = sequence.block_table, sequence.computed, self.blocks.block_size
        copies = [i for i in range(start // size, len(table)) if not self.blocks.writable(table[i])]
        room = (len(table) + self.blocks.num_available - len(copies)) * size - start
        length = min(sequence.remaining, limit, room)
        if length <= 0:
            return 0
        for i in copies:
            source, table[i] = table[i], self._allocate(step, now)
            self.blocks.free(source)
            step.copies.append((source, table[i]))
            self._tell(now, "copy", sequence, blocks=step.copies[-1])
        held = len(table)
        while len(table) < self.blocks.blocks_for(start + length):
            table.append(self._allocate(step, now))
        step.entries.append(Entry(sequence, start, length, length == sequence.remaining))
        self._tell(now, "chunk", sequence, start, length, table[held:])
        return length
        # ANCHOR_END: enter

    def _allocate(self, step: Step, now: float) -> int:
        if not self.blocks.num_free and self.tree:
            self._tell(now, "evict", blocks=self.tree.evict(1))
        return self.blocks.allocate()

    def check(self) -> None:
        """Assert that blocks, tables, tree and states agree; for tests, O(blocks + tokens)."""
        tree, size = self.tree, self.blocks.block_size
        everyone = [s for sequences in self.requests.values() for s in sequences]
        running = [s for s in everyone if s.state is State.RUNNING]
        assert sorted(running, key=lambda s: s.rank) == self.running, "running is not who runs, by rank"
        assert len(self.waiting) == sum(
            s.state is State.WAITING and s not in s_all[0].followers for s_all in self.requests.values() for s in s_all
        ), "waiting is not who waits"
        self.blocks.check([s.block_table for s in running], tree.nodes if tree else ())
        for s in running:
            assert len(set(s.block_table)) == len(s.block_table), "a block is twice in a table"
            assert 0 <= s.computed < len(s.tokens) and s.computed <= len(s.block_table) * size
            for i, block in enumerate(s.block_table):
                if tree and block in tree.nodes:
                    assert tree.path(block) == s.tokens[: (i + 1) * size], "tree and table disagree"
        if tree:
            tree.check()

    def _tell(
        self,
        now: float,
        kind: str,
        sequence: Sequence | None = None,
        start: int = 0,
        tokens: int = 0,
        blocks: Row[int] = (),
        note: str = "",
    ) -> None:
        if self.emit:
            whose = (sequence.request.id, sequence.index) if sequence else ("", 0)
            self.emit(Event(now, kind, self.steps, *whose, start, tokens, tuple(blocks), note))
