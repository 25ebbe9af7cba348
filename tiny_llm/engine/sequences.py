"""The sequences of all unfinished requests: the line in which they wait, and their changes from start to end."""

from bisect import insort
from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Sequence as Row
from heapq import heapify, heappop, heappush

from tiny_llm.engine.ledger import Ledger, Log
from tiny_llm.engine.radix import Match
from tiny_llm.engine.request import Admission, EndReason, Request, Sequence, SequenceId, State

Rank = tuple[float, int]
MAX_IDLE = 4096  # tenants without a waiting request whose counters are kept


class Sequences:
    """Every sequence waits, runs, perhaps waits again after a preemption, and finishes once.

    `running` is sorted by rank. `requests` has the unfinished requests with all their sequences. The runner is told of
    a sequence before its first share, and when it ends or loses its blocks: `admissions` and `take_ended`.
    """

    def __init__(self, ledger: Ledger, log: Log, weights: Mapping[str, float]):
        self.ledger, self.log = ledger, log
        self.running: list[Sequence] = []
        self.waiting = Waiting(weights)
        self.requests: dict[str, list[Sequence]] = {}
        self._known: set[SequenceId] = set()  # to the runner
        self._ended: list[SequenceId] = []

    def find(self, sequence: SequenceId) -> Sequence | None:
        """The running sequence of this name; None where it has ended meanwhile."""
        group = self.requests.get(sequence.request, [])
        found = group[sequence.number] if group else None
        return found if found is not None and found.state is State.RUNNING else None

    def add(self, request: Request, rank: tuple[float, int]) -> list[Sequence]:
        """Let a new request wait; its sequences follow each other in rank."""
        due, serial = rank
        sequences = [Sequence(request, i, (due, serial + i)) for i in range(request.num_sequences)]
        sequences[0].followers = sequences[1:]
        self.requests[request.id] = sequences
        self.waiting.push(sequences[0])
        self.log.tell("arrival", sequences[0], tokens=len(request.tokens))
        return sequences

    def wanted_blocks(self, sequence: Sequence) -> int:
        """How many blocks a waiting sequence will fill, with the beams that start beside it."""
        return sum(self.ledger.blocks.blocks_for(len(s.tokens)) for s in (sequence, *_begun(sequence)))

    def start(self, sequence: Sequence, found: Match) -> list[Sequence]:
        """Let a waiting sequence run on the blocks found for it; returns all that run now, its beams included."""
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
        """The prompt is computed: its other continuations go on from the token before its last, on the same blocks."""
        known = leader.num_prompt - 1
        shared = leader.block_table[: self.ledger.blocks.blocks_for(known)]
        for follower in leader.followers:
            self.ledger.share(follower, Match(shared, known, ""))
            self._run(follower, known, shared, f"continuation of {leader.index}")
            follower.admitted = self.log.now
        leader.followers = []

    def branch(self, request_id: str, beams: Row[tuple[Sequence, int]]) -> None:
        """A search goes on: each of its next beams has a computed beam's tokens and blocks, and one token more."""
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
        """Add a token; a stop token ends the sequence, and so does the last token that it may have."""
        self.log.tell("token", sequence, len(sequence.tokens), 1)
        sequence.tokens.append(token)
        self.waiting.charge(sequence.request.tenant, 1)
        if token in sequence.request.stop_tokens:
            self.stop(sequence, "stop")
        elif len(sequence.tokens) - sequence.num_prompt == sequence.request.params.max_tokens:
            self.stop(sequence, "length")

    def preempt(self, sequence: Sequence) -> list[Sequence]:
        """Send a sequence back to wait; what it had is computed again, unless the tree still knows it by then.

        The beams of a search go together, since none gets on without the others. Returns all that went.
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
        """End a sequence, in whatever state it is; its step under way, if any, no longer counts."""
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

    def admissions(self, sequences: Row[Sequence]) -> tuple[Admission, ...]:
        """What the runner must be told of sequences that have a share in the next step, and that it does not know."""
        known = self._known
        new = [sequence for sequence in sequences if sequence.id not in known]
        known.update(sequence.id for sequence in new)
        return tuple(map(_admission, new))

    def take_ended(self) -> tuple[SequenceId, ...]:
        """The sequences that the runner knows and that have ended or lost their blocks since the last call."""
        ended, self._ended = tuple(self._ended), []
        return ended

    def check(self) -> None:
        """Assert that states, the running ones and the waiting line agree; for tests."""
        running: list[Sequence] = []
        waiting: list[Sequence] = []
        for group in self.requests.values():
            running += [s for s in group if s.state is State.RUNNING]
            waiting += [s for s in group if s.state is State.WAITING and s not in group[0].followers]
        running.sort(key=lambda s: s.rank)
        assert running == self.running, "running is not who runs, by rank"
        assert len(self.waiting) == len(waiting), "waiting is not who waits"
        names = {s.id for s in running}
        assert self._known <= names, "the runner knows a sequence that does not run"

    def _run(self, sequence: Sequence, known: int, blocks: Row[int], note: str) -> None:
        sequence.state, sequence.cached = State.RUNNING, known
        insort(self.running, sequence, key=lambda s: s.rank)
        self.log.tell("admit", sequence, 0, known, blocks, note)

    def _take_out(self, sequence: Sequence) -> list[int]:
        """Remove a sequence from the running ones; returns the blocks that it held."""
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
    """Followers that already have output: beams preempted together with it."""
    return [follower for follower in sequence.followers if follower.output]


class Waiting:
    """Sequences that wait, by tenant (the virtual token counter of arXiv:2401.00588)."""

    def __init__(self, weights: Mapping[str, float]):
        self.weights, self.size = weights, 0
        self.counters: dict[str, float] = defaultdict(float)  # tokens served / weight
        self._lines: dict[str, list[tuple[Rank, Sequence]]] = {}
        self._heads: list[tuple[float, Rank, str]] = []  # each tenant that waits, with its counter and its first rank
        self._now = 0.0  # the counter of the tenant served last
        self._cancelled = 0

    def __len__(self) -> int:
        return self.size

    def push(self, sequence: Sequence) -> None:
        """Join the line. A tenant that was idle earns no credit for that time."""
        self.size += 1  # first: a sequence that is half in the line can be cancelled like any other
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
        """Who is next."""
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
            else:  # served or changed since: back to its proper place
                heappop(self._heads)
                heappush(self._heads, (self.counters[tenant], line[0][0], tenant))
        return None

    def pop(self) -> Sequence:
        """Take out the one that `peek` shows."""
        sequence = self.peek()
        assert sequence is not None, "nobody waits"
        heappop(self._lines[sequence.request.tenant])
        self.size -= 1
        return sequence

    def cancelled(self, sequence: Sequence) -> None:
        """A waiting sequence has finished; its entry goes when it comes up, or when half of all are such."""
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
        """The tenant was served."""
        self.counters[tenant] += num_tokens / self.weights.get(tenant, 1.0)
