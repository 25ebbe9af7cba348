"""Recover from a step that failed: repair the pool, go on with a smaller batch, and grow it again after successes."""

import traceback

from tiny_llm.engine.request import Step
from tiny_llm.engine.runner import Runner
from tiny_llm.engine.scheduler import Scheduler
from tiny_llm.engine.store import Store

GOOD_STEPS = 16  # after a failure: steps until the batch may double
TRIES = 3  # failures of a request alone, without a new token in between, before it is given up


class Recovery:
    """Lowers the scheduler's limits after a failure, and finds the request that makes its steps fail."""

    def __init__(self, scheduler: Scheduler, runner: Runner, store: Store):
        self.scheduler, self.runner, self.store = scheduler, runner, store
        self._good = 0
        self._broken: tuple[str, int] | None = None  # a request that failed alone, and how many tokens it had
        self._tries = 0

    def after_success(self) -> None:
        """Double the limits after every GOOD_STEPS successful steps, up to the configured limits."""
        self._good += 1
        config, configured = self.scheduler.config, self.scheduler.configured
        if self._good % GOOD_STEPS == 0:
            sequences = min(configured.max_sequences, 2 * config.max_sequences)
            budget = max(sequences, min(configured.token_budget, 2 * config.token_budget))
            self.scheduler.lower_limits(budget, sequences)

    def after_failure(self, step: Step, error: Exception, now: float) -> str | None:
        """Halve the batch. Return the id of a request that has failed alone TRIES times, else None."""
        alive = [share for share in step.shares if self.scheduler.sequences.find(share.sequence) is not None]
        traceback.clear_frames(error.__traceback__)  # because the frames reference arrays of the failed step
        self._mend(step, now)
        self._good = 0
        if not alive:
            return None
        requests = {share.sequence.request for share in alive}
        name = alive[0].sequence.request
        group = self.scheduler.sequences.requests[name]
        smallest = len(alive) == 1 and (alive[0].length == 1 or not out_of_memory(error))
        one_search = len(requests) == 1 and group[0].request.searches  # beams run together: the batch can't shrink
        if smallest or one_search:
            broken = name, sum(len(sequence.tokens) for sequence in group)
            self._tries = self._tries + 1 if broken == self._broken else 1
            self._broken = broken
            return name if self._tries == TRIES else None
        config = self.scheduler.config
        sequences = max(1, min(config.max_sequences, len(alive)) // 2)
        budget = max(sequences, min(config.token_budget, step.num_tokens) // 2)
        self.scheduler.lower_limits(budget, sequences)
        return None

    def _mend(self, step: Step, now: float) -> None:
        """Repair scheduler and pool after a step that was interrupted."""
        self.runner.reset()
        if self.store.mend():
            self.scheduler.abandon(step, now)
        else:
            self.scheduler.preempt_all(now)
        if not self.scheduler.running:
            self.scheduler.ledger.forget()


def out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "alloc" in str(error).lower())
