"""Who computes what in the next step: pure policy, no arrays, a function of the calls and of the clock passed in.

schedule   decodes first, then who waits, then chunks of prompts: one ragged batch of at most `token_budget` tokens
finish     the batch's tokens are here: append, share what was computed, end what has ended
"""

from collections.abc import Sequence as Row

from tiny_llm.config import SchedulerConfig
from tiny_llm.config.fields import require
from tiny_llm.engine.admission import check_request
from tiny_llm.engine.lifecycle import Lifecycle, Step
from tiny_llm.engine.request import Request, Sequence, State


class Scheduler(Lifecycle):
    """Continuous batching over a pool of blocks (Orca, OSDI 2022) with chunked prefill (arXiv:2308.16369).

    `running` is sorted by rank: who was due first is served first and preempted last. A step costs O(running), however
    many wait. What a sequence goes through (started, forked, preempted, stopped) is in `lifecycle`.
    """

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, request: Request, now: float) -> list[Sequence]:
        """Let a request wait; returns its sequences. Raises ValueError, with the numbers, for what can never run."""
        require(request.id not in self.requests, f"id: request {request.id!r} is under way already")
        check_request(request, self.limits, self.blocks)
        self.arrivals += 1
        serial, due = self.arrivals * 1024, due_time(request, self.config)
        sequences = [Sequence(request, i, (due, serial + i)) for i in range(request.num_sequences)]
        sequences[0].followers = sequences[1:]
        self.requests[request.id] = sequences
        self.waiting.push(sequences[0])
        self._tell(now, "arrival", sequences[0], tokens=len(request.tokens))
        return sequences

    def schedule(self, now: float) -> Step:
        """The next step; it is empty only where nothing is left to do. The step before must be finished."""
        # TASK w3.2.2: a step
        # HINT 1: In which order do decodes, newcomers and prompts take their shares, so that a long prompt delays
        #   nobody's token?
        # HINT 2: After the three parts the step may be empty though somebody runs: prompts that hold all blocks between
        #   them. Then the last in rank gives way, and the prompts try again, until something can run.
        # HINT 3: step = Step(number); _decode, _admit, _prefill; while somebody runs and there are no entries: _preempt
        #   the last, _prefill
        self.steps += 1
        step = Step(self.steps)
        self._decode(step, now)
        self._admit(step, now)
        self._prefill(step, now)
        while self.running and not step.entries:  # prompts hold each other's blocks: the last one gives way
            self._preempt(self.running[-1], step, now)
            self._prefill(step, now)
        return step
        # END TASK

    def finish(self, step: Step, sampled: Row[int | None], now: float) -> list[Sequence]:
        """Take in what a step computed: for each entry the token sampled, None where it samples none.

        Returns the sequences that ended; `stop` ends others, such as at a stop string.
        """
        # TASK w3.1.4: take in what was computed
        # HINT 1: A chunk that is not a prompt's last computes K and V, and gives no token. What changes for its
        #   sequence?
        # HINT 2: `computed` moves on for each entry; a chunk's whole blocks are kept for others (`_keep`); an entry
        #   that samples lets the other continuations begin (`_fork`), then gets its token (`_append`, which ends it
        #   where it has to). Who was cancelled while the step ran is passed over.
        # HINT 3: for each entry and token: skip unless RUNNING; computed = start + length; _keep if longer than 1; if
        #   it samples _fork and _append. Return the sequences of the entries that are FINISHED.
        self._tell(now, "step", tokens=step.num_tokens)
        for entry, token in zip(step.entries, sampled, strict=True):
            sequence = entry.sequence
            if sequence.state is not State.RUNNING:
                continue  # cancelled under way
            sequence.computed = entry.start + entry.length
            if entry.length > 1:
                self._keep(sequence, now)
            if entry.samples:
                assert token is not None, "this entry samples"
                self._fork(sequence, now)
                self._append(sequence, token, now)
        return [entry.sequence for entry in step.entries if entry.sequence.state is State.FINISHED]
        # END TASK

    def _decode(self, step: Step, now: float) -> None:
        """One token for every sequence with only one to compute, best rank first."""
        # TASK w3.1.2: one token for each that decodes
        # HINT 1: Which sequences have exactly one token to compute? In which order do they stand in `self.running`?
        # HINT 2: self._enter(sequence, 1, step, now) gives 0 where no block is left. Then the last of `self.running`
        #   gives way, and it is tried again. Preempting changes `self.running`, so go over a copy of it; and a sequence
        #   may be preempted before its turn, or be the last one itself.
        # HINT 3: while it is RUNNING and has 1 remaining: leave the loop if _enter gives 1, otherwise _preempt the last
        for sequence in list(self.running):
            while sequence.state is State.RUNNING and sequence.remaining == 1:
                if self._enter(sequence, 1, step, now):
                    break
                self._preempt(self.running[-1], step, now)  # perhaps the sequence itself
        # END TASK

    def _admit(self, step: Step, now: float) -> None:
        """Let in who waits, in turn, while there are slots, and blocks for the whole prompt beside those promised."""
        # TASK w3.1.3: let in who fits
        # HINT 1: What may a newcomer not take: a slot that is not there, and blocks that somebody else will need. Who
        #   will?
        # HINT 2: Prompts under way were promised all their blocks, and hold only some (`owed`). Of the found blocks
        #   those that nobody reads are counted among the available ones until they are shared (`idle`). And each
        #   sequence that runs should find a block more when it grows, unless nobody runs. While somebody gives way and
        #   others go on, nobody comes in.
        # HINT 3: while somebody waits: count the slots, and return if they are too many; _find; need = _wanted - those
        #   found; return if need + idle + owed + growth are more than num_available; otherwise _start it, with its need
        #   owed from then on
        if step.preempted and self.running:
            return
        owed = sum(self.blocks.blocks_for(len(s.tokens)) - len(s.block_table) for s in self.running)
        slots = sum(1 + len(s.followers) for s in self.running)
        while (sequence := self.waiting.peek()) is not None:
            slots += 1 + len(sequence.followers)
            if slots > self.config.max_sequences:
                return
            found = self._find(sequence)
            need = self._wanted(sequence) - len(found.blocks)
            idle = sum(self.blocks.writable(block) for block in found.blocks)  # evictable until they are shared
            growth = slots if self.running else 0  # a block more for each sequence
            if need + idle + owed + growth > self.blocks.num_available:
                return
            self._start(self.waiting.pop(), found, step, now)
            owed += need
        # END TASK

    def _prefill(self, step: Step, now: float) -> None:
        """Prompts get what the decodes left of the budget: half goes to the eldest, the rest to the shortest first."""
        # TASK w3.2.1: the rest of the budget
        # HINT 1: How much of the budget is left when the decodes have entered? Who is to have it, if one prompt is very
        #   long?
        # HINT 2: Those who run and are not in the step are the prompts, in the order of rank; `_distinct` leaves out
        #   who would compute what another computes. Reserve half (rounded up) of what is left for the first, or what it
        #   needs. The others go by what remains to them, the least first, within the other half; then the first gets
        #   all that is left. `_enter` says how much it took.
        # HINT 3: reserved = min(first.remaining, (left + 1) // 2); for each other, sorted by remaining: left -=
        #   _enter(it, left - reserved, …); _enter(first, left, …)
        left = self.config.token_budget - step.num_tokens
        entered = {id(entry.sequence) for entry in step.entries}
        prompts = self._distinct([s for s in self.running if id(s) not in entered], now)
        if not prompts:
            return
        reserved = min(prompts[0].remaining, (left + 1) // 2)
        for sequence in sorted(prompts[1:], key=lambda s: s.remaining):
            left -= self._enter(sequence, left - reserved, step, now)
        self._enter(prompts[0], left, step, now)
        # END TASK

    def _distinct(self, prompts: list[Sequence], now: float) -> list[Sequence]:
        """Share what others have computed by now, and leave out who would compute the same block as another.

        Beams that wait for others of their search have nothing to compute.
        """
        prompts = [sequence for sequence in prompts if sequence.remaining]
        if self.tree is None or not prompts:
            return prompts
        distinct: dict[object, Sequence] = {}
        size, limit = self.blocks.block_size, self.blocks.num_blocks
        if any(sequence.remaining == 1 for sequence in self.running):  # reading must not delay their tokens for long
            limit = -(-self.config.token_budget // size)
        for sequence in prompts:
            read = self._look_up(sequence, limit, now)
            limit -= len(read.blocks)
            if read.more:
                continue  # it reads on in the next step
            table, at = sequence.block_table, sequence.computed
            whole = at == len(table) * size and at + size < len(sequence.tokens)
            following = (table[-1] if table else None, *sequence.tokens[at : at + size])
            distinct.setdefault(following if whole else id(sequence), sequence)
        return list(distinct.values())


def due_time(request: Request, config: SchedulerConfig) -> float:
    """When a request should be running. The least goes first: who waits gets older, and no newcomer passes for ever.

    `patience` after its arrival, or at its deadline if that is sooner, but not before it came; each level of priority
    makes it earlier by `priority_seconds`.
    """
    # TASK w3.1.1: when a request is due
    # HINT 1: Who came at 0 with patience 10 is due at 10. Who came at 5 with a deadline at 7?
    # HINT 2: The deadline only ever makes it earlier, and a deadline before the arrival counts as the arrival:
    #   otherwise anybody could pass all others by naming a time long ago.
    # HINT 3: min(arrival + patience, max(deadline, arrival)) - priority * priority_seconds
    due = request.arrival + config.patience
    if request.deadline is not None:
        due = min(due, max(request.deadline, request.arrival))
    return due - request.priority * config.priority_seconds
    # END TASK
