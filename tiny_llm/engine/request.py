"""What the scheduler handles: requests as they come, and the sequences that answer them."""

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from tiny_llm.config import SamplingParams
from tiny_llm.config.fields import require

FinishReason = Literal["stop", "length", "cancelled", "error"]
PRIORITIES = 10


class State(Enum):
    """A sequence waits, runs (and may be sent back to wait), and finishes once."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True)
class Request:
    """What a client asks: `params.n` continuations of the prompt `tokens`.

    `arrival` and `deadline` (when the answer should begin) are seconds on the scheduler's clock. `priority` is from
    -10 to 10, higher goes first. `tenant` is whose share of the engine it uses. `stop_tokens` are the ids that end an
    answer. `head` is how many of the first tokens come before the user's own words (system prompt, tools, settings of
    the chat template); it only serves to tell why a prefix was not found. Raises ValueError for a value out of range.
    """

    id: str
    tokens: tuple[int, ...]
    params: SamplingParams = SamplingParams()  # noqa: RUF009 (frozen)
    priority: int = 0
    deadline: float | None = None
    tenant: str = "default"
    arrival: float = 0.0
    stop_tokens: frozenset[int] = frozenset()
    head: int = 0

    def __post_init__(self) -> None:
        require(len(self.tokens) > 0, "prompt: expected at least one token, found none")
        ok = isinstance(self.priority, int) and abs(self.priority) <= PRIORITIES
        require(ok, f"priority: expected an integer from -{PRIORITIES} to {PRIORITIES}, found {self.priority!r}")
        for name, value in (("arrival", self.arrival), ("deadline", self.deadline)):
            require(value is None or math.isfinite(value), f"{name}: expected a time in seconds, found {value!r}")

    @property
    def searches(self) -> bool:
        """Whether it asks for the likeliest answers (beam search) instead of drawn ones."""
        return self.params.beam_width > 1

    @property
    def num_sequences(self) -> int:
        """Continuations under way at once."""
        return self.params.beam_width if self.searches else self.params.n


@dataclass(eq=False)
class Sequence:
    """One continuation of a request.

    `tokens` are the prompt and what came after. K and V of the first `computed` of them stand in the blocks of
    `block_table`; `cached` of these were found there when the sequence was last admitted. `rank` orders sequences, the
    least first. `followers` are the request's other continuations while they wait for this one's prompt; of a beam
    search those, too, that wait with it after a preemption.
    """

    request: Request
    index: int = 0
    rank: tuple[float, int] = (0.0, 0)
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    cached: int = 0
    block_table: list[int] = field(default_factory=list)
    state: State = State.WAITING
    admitted: float | None = None
    finish_reason: FinishReason | None = None
    followers: list["Sequence"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokens = self.tokens or list(self.request.tokens)

    @property
    def num_prompt(self) -> int:
        return len(self.request.tokens)

    @property
    def output(self) -> list[int]:
        """The tokens generated so far."""
        return self.tokens[self.num_prompt :]

    @property
    def remaining(self) -> int:
        """Tokens whose K and V are still to be computed: 1 for a sequence that decodes, more for a prompt.

        0 for a beam that waits for the others of its search.
        """
        return len(self.tokens) - self.computed
