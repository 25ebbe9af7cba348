"""Who computes what in the next step: pure policy, no arrays, a function of the calls and of the clock passed in.

schedule   decodes first, then who waits, then chunks of prompts: one ragged batch of at most `token_budget` tokens
finish     the batch's tokens are here: append, share what was computed, end what has ended
"""

from collections.abc import Sequence as Row

from tiny_llm.config import SchedulerConfig
from tiny_llm.config.fields import require
from tiny_llm.course import NotDone
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
        # YOUR CODE (w3.2.2): a step
        raise NotDone("w3.2.2")

    def finish(self, step: Step, sampled: Row[int | None], now: float) -> list[Sequence]:
        """Take in what a step computed: for each entry the token sampled, None where it samples none.

        Returns the sequences that ended; `stop` ends others, such as at a stop string.
        """
        # YOUR CODE (w3.1.4): take in what was computed
        raise NotDone("w3.1.4")

    def _decode(self, step: Step, now: float) -> None:
        """One token for every sequence with only one to compute, best rank first."""
        # YOUR CODE (w3.1.2): one token for each that decodes
        raise NotDone("w3.1.2")

    def _admit(self, step: Step, now: float) -> None:
        """Let in who waits, in turn, while there are slots, and blocks for the whole prompt beside those promised."""
        # YOUR CODE (w3.1.3): let in who fits
        raise NotDone("w3.1.3")

    def _prefill(self, step: Step, now: float) -> None:
        """Prompts get what the decodes left of the budget: half goes to the eldest, the rest to the shortest first."""
        # YOUR CODE (w3.2.1): the rest of the budget
        raise NotDone("w3.2.1")

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
    # YOUR CODE (w3.1.1): when a request is due
    raise NotDone("w3.1.1")
