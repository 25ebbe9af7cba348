"""What a sequence goes through, one method for each change, with its blocks: started, grown, shared, forked, preempted,
stopped. Here is how; `scheduler` decides who and when.
"""

from bisect import insort
from collections.abc import Callable
from collections.abc import Sequence as Row

from tiny_llm.config import SchedulerConfig
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.events import Event
from tiny_llm.engine.radix import Match, RadixTree, Restored
from tiny_llm.engine.request import FinishReason, Sequence, State
from tiny_llm.engine.step import Entry as Entry
from tiny_llm.engine.step import Step as Step
from tiny_llm.engine.waiting import Waiting


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
        self.limits = config  # `config` may be lowered for a while, after a step that failed
        self.running: list[Sequence] = []
        self.waiting = Waiting(config.weights)
        self.requests: dict[str, list[Sequence]] = {}  # the unfinished ones with all their sequences
        self.steps = self.arrivals = 0
        self._copies: tuple[int, list[tuple[int, int]]] = (0, [])  # of which step, and these
        settings = f"token_budget {config.token_budget}, max_sequences {config.max_sequences}"
        self._tell(0.0, "pool", None, blocks.block_size, blocks.num_blocks, note=settings)

    def _find(self, sequence: Sequence) -> Match:
        """What the tree knows of a sequence that waits."""
        return self.tree.match(sequence.tokens, head=sequence.request.head) if self.tree else Match([], 0, "")

    def _wanted(self, sequence: Sequence) -> int:
        """How many blocks a waiting sequence will fill, with those that start beside it."""
        return sum(self.blocks.blocks_for(len(s.tokens)) for s in (sequence, *_begun(sequence)))

    def _start(self, sequence: Sequence, found: Match, step: Step, now: float) -> None:
        """Let a waiting sequence run on the blocks found for it."""
        self._share(sequence, found)
        sequence.state, sequence.cached = State.RUNNING, found.num_tokens
        insort(self.running, sequence, key=lambda s: s.rank)
        step.admitted.append(sequence)
        self._tell(now, "admit", sequence, 0, found.num_tokens, found.blocks, found.reason)
        if sequence.admitted is None:
            sequence.admitted = now
            self.waiting.charge(sequence.request.tenant, sequence.remaining)
        for beam in _begun(sequence):
            sequence.followers.remove(beam)
            self._start(beam, self._find(beam), step, now)

    def _look_up(self, sequence: Sequence, limit: int, now: float) -> Restored:
        """Behind a whole block, share what the tree knows by now, and read back up to `limit` blocks that it lost."""
        size, tree = self.blocks.block_size, self.tree
        if tree is None or sequence.computed != len(sequence.block_table) * size:
            return Restored([])
        found = tree.match(sequence.tokens, sequence.block_table)
        if found.blocks:
            self._tell(now, "share", sequence, sequence.computed, found.num_tokens, found.blocks)
            self._share(sequence, found)
        step, copies = self._copies
        taken = {block for pair in copies for block in pair} if step == self.steps else set[int]()
        begin, limit = sequence.computed, min(limit, max(0, self.blocks.num_available - len(taken)))
        read = tree.restore(sequence.tokens, begin, limit, lambda: self._allocate(now), taken)
        if read.blocks or read.fault:
            tokens = len(read.blocks) * size
            sequence.block_table += read.blocks
            sequence.computed, sequence.cached = begin + tokens, sequence.cached + tokens
            self._tell(now, "load", sequence, begin, tokens, read.blocks, read.fault)
            self._keep(sequence, now)
        return read

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

    def branch(self, request_id: str, beams: Row[tuple[Sequence, int]], now: float) -> None:
        """A search goes on: each of its next beams has a computed beam's tokens and blocks, and one token more."""
        group = self.requests[request_id]
        made = [(parent, [*parent.tokens, token], list(parent.block_table)) for parent, token in beams]
        for block in [block for _, _, table in made for block in table]:
            self.blocks.share(block)
        for block in [block for sequence in group for block in sequence.block_table]:
            self.blocks.free(block)
        for sequence, (parent, tokens, table) in zip(group, made, strict=False):
            known, sequence.tokens, sequence.block_table = len(tokens) - 1, tokens, table
            sequence.computed = known
            if sequence.state is State.WAITING:
                sequence.state, sequence.cached, sequence.admitted = State.RUNNING, known, now
                insort(self.running, sequence, key=lambda s: s.rank)
                self._tell(now, "admit", sequence, 0, known, table, f"beam of {parent.index}")
            elif parent is not sequence:
                self._tell(now, "branch", sequence, 0, known, table, f"beam of {parent.index}")
            self._tell(now, "token", sequence, known, 1)
            self.waiting.charge(sequence.request.tenant, 1)
        group[0].followers = group[len(made) :]

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
        """Back to the waiting line; what it had is computed again, unless the tree still knows it by then.

        The beams of a search go together, since none gets on without the others.
        """
        group = [sequence]
        if sequence.request.searches:
            group = [s for s in self.requests[sequence.request.id] if s.state is State.RUNNING]
            step.entries[:] = [entry for entry in step.entries if entry.sequence not in group]
        for one in group:
            held, lost = self._release(one, now), one.computed
            one.state, one.computed = State.WAITING, 0
            step.preempted.append(one)
            self._tell(now, "preempt", one, 0, lost, held)
        group[0].followers = group[1:] + group[0].followers
        self.waiting.push(group[0])

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
            worse = (2 * i >= len(alive) and i) or targets & set(sequence.block_table)
            if worse and sequence.state is State.RUNNING:  # not gone with another beam
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
            source, table[i] = table[i], self._allocate(now)
            self.blocks.free(source)
            step.copies.append((source, table[i]))
            self._copies = step.number, step.copies
            self._tell(now, "copy", sequence, blocks=step.copies[-1])
        held = len(table)
        while len(table) < self.blocks.blocks_for(start + length):
            table.append(self._allocate(now))
        samples = length == sequence.remaining and not sequence.request.searches
        step.entries.append(Entry(sequence, start, length, samples))
        self._tell(now, "chunk", sequence, start, length, table[held:])
        return length
        # ANCHOR_END: enter

    def _allocate(self, now: float) -> int:
        if not self.blocks.num_free and self.tree:
            evicted = self.tree.evict(1)
            self._tell(now, "evict", blocks=evicted, note=self.tree.tier.trouble if self.tree.tier else "")
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
            assert 0 <= s.computed < len(s.tokens) + s.request.searches and s.computed <= len(s.block_table) * size
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


def _begun(sequence: Sequence) -> list[Sequence]:
    """Of those that wait with it the beams that were under way already."""
    return [follower for follower in sequence.followers if follower.output]
