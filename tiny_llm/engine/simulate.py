"""Simulate the scheduler without a model: a cost model gives the time of each step."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tiny_llm.engine.request import Request, Result, Sequence, SequenceId, Step
from tiny_llm.engine.scheduler import Scheduler


@dataclass(frozen=True)
class Cost:
    """A cost model in seconds: for each step, each token, and each earlier token that a token attends to."""

    step: float = 0.004
    token: float = 0.0002
    look: float = 2e-8

    def of(self, step: Step) -> float:
        looks = sum(s.length * s.start + s.length * (s.length + 1) // 2 for s in step.shares)
        return self.step + self.token * step.num_tokens + self.look * looks

    def most(self, token_budget: int, context: int) -> float:
        """Return the longest time of a step with this budget, where no sequence has more tokens than `context`."""
        return self.step + (self.token + self.look * context) * token_budget


@dataclass
class SimulatedAnswer:
    """The times of a sequence's tokens. `preempted` counts how often the sequence lost its blocks."""

    sequence: Sequence
    times: list[float] = field(default_factory=list)
    preempted: int = 0
    finished: float | None = None

    @property
    def first(self) -> float:
        """The time to first token (TTFT)."""
        return self.times[0] - self.sequence.request.arrival

    @property
    def gaps(self) -> list[float]:
        """The times between two tokens (inter-token latencies, ITL)."""
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


def babble(sequence: Sequence) -> int:
    """Return a next token without a model, as a function of the sequence alone."""
    return (7 * len(sequence.tokens) + 31 * sequence.index) % 1000


def simulate(
    scheduler: Scheduler,
    requests: Iterable[Request],
    cost: Cost | None = None,
    say: Callable[[Sequence], int] = babble,
    watch: Callable[[Step, float], None] | None = None,
) -> list[SimulatedAnswer]:
    """Serve `requests`, each from its arrival on, and return their answers. `watch` is called after every step.

    `say` returns a sequence's next token. Raises ValueError as `Scheduler.add` does.
    """
    cost, now = cost or Cost(), 0.0
    coming = sorted(requests, key=lambda r: r.arrival)[::-1]
    answers: dict[SequenceId, SimulatedAnswer] = {}
    while coming or scheduler.has_work:
        if not scheduler.has_work:
            now = max(now, coming[-1].arrival)
        while coming and coming[-1].arrival <= now:
            for sequence in scheduler.add(coming.pop(), now):
                answers[sequence.id] = SimulatedAnswer(sequence)
        step = scheduler.schedule(now)
        for sequence in scheduler.plan.preempted:
            answers[sequence.id].preempted += 1
        now += cost.of(step)
        if watch:
            watch(step, now)
        results = [Result((say(answers[s.sequence].sequence),) if s.wanted else ()) for s in step.shares]
        ended = scheduler.finish(step, results, now)
        for share in step.shares:
            if share.wanted:
                answers[share.sequence].times.append(now)
        for sequence in ended:
            answers[sequence.id].finished = now
    return list(answers.values())
