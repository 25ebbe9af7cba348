"""The sequences of all unfinished requests: the waiting line, and the state of each sequence from start to end."""

from bisect import insort
from collections import defaultdict
from collections.abc import Collection, Mapping
from collections.abc import Sequence as Row
from heapq import heapify, heappop, heappush

from tiny_llm.engine.ledger import Ledger, Log
from tiny_llm.engine.radix import Match
from tiny_llm.engine.request import Admission, EndReason, PrefixMiss, Request, Sequence, SequenceId, State

Rank = tuple[float, int]
MAX_IDLE = 4096  # tenants without a waiting request whose counters are kept


class Sequences:
    """The only writer of sequences' states: a sequence waits, runs, may be preempted and wait again, and finishes.

    `running` is sorted by rank. `requests` has the unfinished requests with all their sequences. `admissions` and
    `take_ended` return the sequences that the runner must register before a step, and may forget.
    """

    def __init__(self, ledger: Ledger, log: Log, weights: Mapping[str, float]):
        self.ledger, self.log = ledger, log
        self.running: list[Sequence] = []
        self.waiting = Waiting(weights)
        self.requests: dict[str, list[Sequence]] = {}
        self._known: set[SequenceId] = set()  # to the runner
        self._ended: list[SequenceId] = []

    def find(self, sequence: SequenceId) -> Sequence | None:
        """Return the running sequence with this id; None where it has ended or was preempted."""
        group = self.requests.get(sequence.request, [])
        found = group[sequence.number] if group else None
        return found if found is not None and found.state is State.RUNNING else None

    def add(self, request: Request, rank: tuple[float, int]) -> list[Sequence]:
        """Add a new request to the waiting line, and return its sequences, which have consecutive ranks."""
        due, serial = rank
        sequences = [Sequence(request, i, (due, serial + i)) for i in range(request.num_sequences)]
        sequences[0].followers = sequences[1:]
        self.requests[request.id] = sequences
        self.waiting.push(sequences[0])
        self.log.tell("arrival", sequences[0], tokens=len(request.tokens))
        return sequences

    def wanted_blocks(self, sequence: Sequence) -> int:
        """Return the blocks that a waiting sequence needs, with the beams that are admitted together with it."""
        return sum(self.ledger.blocks.blocks_for(len(s.tokens)) for s in (sequence, *_begun(sequence)))

    def start(self, sequence: Sequence, found: Match) -> list[Sequence]:
        """Run a waiting sequence on the blocks of its prefix. Returns the sequences that start, beams included."""
        if sequence.admitted is None and found.reason:
            sequence.missed = PrefixMiss(self.ledger.known_tokens(sequence, found), found.reason)
        self.ledger.share(sequence, found)
        self._run(sequence, found.num_tokens, found.blocks, found.reason)
        if sequence.admitted is None:
            sequence.admitted = self.log.now
            self.waiting.charge(sequence.request.tenant, sequence.remaining)
        started = [sequence]
        for beam in _begun(sequence):
            sequence.followers.remove(beam)
            started += self.start(beam, self.ledger.match(beam))
        return started

    def fork(self, leader: Sequence) -> None:
        """Start the followers of a sequence whose prompt is computed, on its blocks without the prompt's last token."""
        if not leader.followers:
            return
        known = leader.num_prompt - 1
        shared = leader.block_table[: self.ledger.blocks.blocks_for(known)]
        for follower in leader.followers:
            self.ledger.share(follower, Match(shared, known, ""))
            self._run(follower, known, shared, f"continuation of {leader.index}")
            follower.admitted = self.log.now
        leader.followers = []

    def branch(self, request_id: str, beams: Row[tuple[Sequence, int]]) -> None:
        """Replace the beams of a search: each new beam takes a parent's tokens and blocks, and adds a token."""
        group = self.requests[request_id]
        texts = [[*parent.tokens, token] for parent, token in beams]
        parents = [parent for parent, _ in beams]
        self.ledger.branch(group, parents)
        for sequence, parent, tokens in zip(group, parents, texts, strict=False):
            sequence.tokens, known = tokens, len(tokens) - 1
            sequence.computed = known
            if sequence.state is State.WAITING:
                self._run(sequence, known, sequence.block_table, f"beam of {parent.index}")
                sequence.admitted = self.log.now
            elif parent is not sequence:
                note = f"beam of {parent.index}"
                self.log.tell("branch", sequence, 0, known, sequence.block_table, note)
            self.log.tell("token", sequence, known, 1)
            self.waiting.charge(sequence.request.tenant, 1)
        group[0].followers = group[len(beams) :]

    def append(self, sequence: Sequence, token: int) -> None:
        """Append a token. A stop token ends the sequence, and so does the last of its `max_tokens`."""
        request, tokens = sequence.request, sequence.tokens
        self.log.tell("token", sequence, len(tokens), 1)
        tokens.append(token)
        self.waiting.charge(request.tenant, 1)
        if token in request.stop_tokens:
            self.stop(sequence, "stop")
        elif len(tokens) - len(request.tokens) == request.params.max_tokens:
            self.stop(sequence, "length")

    def preempt(self, sequence: Sequence) -> list[Sequence]:
        """Move a running sequence back to the waiting line, and free its blocks. Returns the preempted sequences.

        Its tokens are computed again, except those whose blocks are still in the prefix tree then. All beams of a
        search are preempted together, because none can go on without the others.
        """
        group = [sequence]
        if sequence.request.searches:
            group = [s for s in self.requests[sequence.request.id] if s.state is State.RUNNING]
        for one in group:
            held, lost = self._take_out(one), one.computed
            one.state, one.computed = State.WAITING, 0
            self.log.tell("preempt", one, 0, lost, held)
        group[0].followers = group[1:] + group[0].followers
        self.waiting.push(group[0])
        return group

    def stop(self, sequence: Sequence, reason: EndReason) -> None:
        """End a sequence in any state. The result of its running step is ignored."""
        if sequence.state is State.FINISHED:
            return
        held = self._take_out(sequence) if sequence.state is State.RUNNING else []
        was_waiting = sequence.state is State.WAITING
        sequence.state, sequence.finish_reason = State.FINISHED, reason
        siblings = self.requests[sequence.request.id]
        if sequence in siblings[0].followers:
            siblings[0].followers.remove(sequence)
        elif was_waiting:
            self.waiting.cancelled(sequence)
        self.log.tell("finish", sequence, 0, len(sequence.output), held, reason)
        for follower in list(sequence.followers):
            self.stop(follower, reason)
        if all(s.state is State.FINISHED for s in siblings):
            self.requests.pop(sequence.request.id, None)

    def admissions(self, sequences: Collection[Sequence]) -> tuple[Admission, ...]:
        """Return the admissions of the sequences in the next step that the runner does not know yet."""
        known = self._known
        new = [sequence for sequence in sequences if sequence.id not in known]
        known.update(sequence.id for sequence in new)
        return tuple(map(_admission, new))

    def take_ended(self) -> tuple[SequenceId, ...]:
        """Return the sequences that the runner may forget: finished or preempted since the last call."""
        ended, self._ended = tuple(self._ended), []
        return ended

    def check(self) -> None:
        """Assert that states, `running` and the waiting line agree, for tests."""
        running: list[Sequence] = []
        waiting: list[Sequence] = []
        for group in self.requests.values():
            running += [s for s in group if s.state is State.RUNNING]
            waiting += [s for s in group if s.state is State.WAITING and s not in group[0].followers]
        running.sort(key=lambda s: s.rank)
        assert running == self.running, "`running` has not the running sequences by rank"
        assert len(self.waiting) == len(waiting), "`waiting` has not the waiting sequences"
        names = {s.id for s in running}
        assert self._known <= names, "the runner knows a sequence that is not running"

    def _run(self, sequence: Sequence, known: int, blocks: Row[int], note: str) -> None:
        sequence.state, sequence.cached = State.RUNNING, known
        insort(self.running, sequence, key=lambda s: s.rank)
        self.log.tell("admit", sequence, 0, known, blocks, note)

    def _take_out(self, sequence: Sequence) -> list[int]:
        """Remove a sequence from `running`, and return the blocks that it held."""
        held = self.ledger.release(sequence)
        self.running.remove(sequence)
        if sequence.id in self._known:
            self._known.remove(sequence.id)
            self._ended.append(sequence.id)
        return held


def _admission(sequence: Sequence) -> Admission:
    request = sequence.request
    return Admission(sequence.id, tuple(sequence.tokens), sequence.num_prompt, request.params, request.in_thought)


def _begun(sequence: Sequence) -> list[Sequence]:
    """Return the followers that already have output: the beams preempted together with the sequence."""
    return [follower for follower in sequence.followers if follower.output]


class Waiting:
    """The waiting line: the tenant with the fewest tokens served per weight goes first, within it the least rank.

    This is the virtual token counter of arXiv:2401.00588.
    """

    def __init__(self, weights: Mapping[str, float]):
        self.weights, self.size = dict(weights), 0
        self.counters: dict[str, float] = defaultdict(float)  # tokens served / weight
        self._lines: dict[str, list[tuple[Rank, Sequence]]] = {}
        self._heads: list[tuple[float, Rank, str]] = []  # counter, first rank and name of each waiting tenant
        self._now = 0.0  # the counter of the tenant served last
        self._cancelled = 0

    def __len__(self) -> int:
        return self.size

    def push(self, sequence: Sequence) -> None:
        """Add a sequence to the line. A tenant that was idle earns no credit for that time."""
        self.size += 1  # first, so that a sequence can be cancelled even if an error interrupts this call
        tenant = sequence.request.tenant
        if tenant not in self._lines:
            if len(self.counters) > 2 * (len(self._lines) + MAX_IDLE):
                self._forget_idle()
            self._lines[tenant] = []
            self.counters[tenant] = max(self.counters[tenant], self._now)
        heappush(self._lines[tenant], (sequence.rank, sequence))
        if self._lines[tenant][0][1] is sequence:
            heappush(self._heads, (self.counters[tenant], sequence.rank, tenant))

    def peek(self) -> Sequence | None:
        """Return the next sequence without removing it; None where none waits."""
        while self._heads:
            counter, rank, tenant = self._heads[0]
            line = self._lines.get(tenant, [])
            while line and line[0][1].state is not State.WAITING:
                heappop(line)
                self._cancelled -= 1
            if not line:
                heappop(self._heads)
                self._lines.pop(tenant, None)
            elif (counter, rank) == (self.counters[tenant], line[0][0]):
                self._now = max(self._now, counter)
                return line[0][1]
            else:  # the counter or the first rank has changed: sort the tenant in again
                heappop(self._heads)
                heappush(self._heads, (self.counters[tenant], line[0][0], tenant))
        return None

    def pop(self) -> Sequence:
        """Remove the next sequence from the line, and return it."""
        sequence = self.peek()
        assert sequence is not None, "no sequence waits"
        heappop(self._lines[sequence.request.tenant])
        self.size -= 1
        return sequence

    def cancelled(self, sequence: Sequence) -> None:
        """Count a waiting sequence as finished. Its entry is removed at the front, or when half of all are finished."""
        self.size -= 1
        self._cancelled += 1
        if self._cancelled > self.size + 16:
            self._cancelled = 0
            for line in self._lines.values():
                line[:] = [item for item in line if item[1].state is State.WAITING]
                heapify(line)

    def _forget_idle(self) -> None:
        """Drop the counters of idle tenants except the MAX_IDLE highest: a client may name a new one each time."""
        idle = [tenant for tenant in self.counters if tenant not in self._lines]
        idle.sort(key=self.counters.__getitem__)
        for tenant in idle[:-MAX_IDLE]:
            del self.counters[tenant]

    def charge(self, tenant: str, num_tokens: int) -> None:
        """Add tokens that a tenant was served to its counter."""
        self.counters[tenant] += num_tokens / self.weights.get(tenant, 1.0)
