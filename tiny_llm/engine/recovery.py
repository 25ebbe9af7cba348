"""After a step that failed: put the pool in order, go on with a smaller batch, and grow it again when steps succeed."""

from dataclasses import replace

import mlx.core as mx

from tiny_llm.cache.paged import PagedPool
from tiny_llm.engine.lifecycle import Entry, Step
from tiny_llm.engine.request import State
from tiny_llm.engine.runner import Runner
from tiny_llm.engine.scheduler import Scheduler

GOOD_STEPS = 16  # after a failure: steps until the batch may double
TRIES = 3  # steps that a request may break alone without getting on; one failure may be chance


class Recovery:
    """Lowers the scheduler's limits after a failure, and finds the request that breaks each of its steps."""

    def __init__(self, scheduler: Scheduler, runner: Runner, pool: PagedPool):
        self.scheduler, self.runner, self.pool = scheduler, runner, pool
        self._good = 0
        self._broken: tuple[str, int] | None = None  # a request that failed alone, and how many tokens it had
        self._tries = 0

    def after_success(self) -> None:
        """Double the limits after every GOOD_STEPS steps, up to the configured ones."""
        self._good += 1
        config, limits = self.scheduler.config, self.scheduler.limits
        if config != limits and self._good % GOOD_STEPS == 0:
            fewer = min(limits.max_sequences, 2 * config.max_sequences)
            budget = max(fewer, min(limits.token_budget, 2 * config.token_budget))
            self.scheduler.config = replace(config, max_sequences=fewer, token_budget=budget)

    def after_failure(self, step: Step, error: Exception, now: float) -> str | None:
        """Halve the batch. Returns a request that can't be cut smaller and fails alone, again and again: give it up."""
        alive = [entry for entry in step.entries if entry.sequence.state is State.RUNNING]
        self._mend(step, now)
        self._good = 0
        if not alive:
            return None
        first = alive[0].sequence.request
        smallest = len(alive) == 1 and (alive[0].length == 1 or not out_of_memory(error))
        one_search = first.searches and len({entry.sequence.request.id for entry in alive}) == 1  # beams go together
        if smallest or one_search:
            broken = first.id, sum(len(sequence.tokens) for sequence in self.scheduler.requests[first.id])
            self._tries = self._tries + 1 if broken == self._broken else 1
            self._broken = broken
            return first.id if self._tries == TRIES else None
        config = self.scheduler.config
        fewer = max(1, min(config.max_sequences, len(alive)) // 2)
        budget = max(fewer, min(config.token_budget, step.num_tokens) // 2)
        self.scheduler.config = replace(config, max_sequences=fewer, token_budget=budget)
        return None

    def _mend(self, step: Step, now: float) -> None:
        """Put scheduler and pool in order after a step that ended half-way."""
        self.runner.reset()
        try:
            mx.eval(self.pool.state)
        except Exception:  # the writes themselves can't be done: everything is computed again
            self.pool.clear()
            running = [Entry(sequence, 0, 0, False) for sequence in self.scheduler.running]
            step = Step(step.number, running, [(0, block) for block in range(self.pool.num_blocks)])
        self.scheduler.abandon(step, now)
        if self.scheduler.tree and not self.scheduler.running:
            self.scheduler.tree.forget()


def out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "alloc" in str(error).lower())
