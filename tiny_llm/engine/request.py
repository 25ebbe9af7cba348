"""What the scheduler handles: requests as they come, and the sequences that answer them."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, NamedTuple

from tiny_llm.config import SamplingParams
from tiny_llm.config.fields import is_finite, is_integer, require, shown

FinishReason = Literal["stop", "length", "cancelled", "error"]
PRIORITIES = 10
MAX_TENANT = 256  # characters


class SequenceId(NamedTuple):
    """A sequence's name in steps and logs: its request's id, and its number among the request's continuations."""

    request: str
    number: int


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
    the chat template); it only serves to tell why a prefix was not found. `in_thought`: the prompt ends inside a
    thought that the answer closes with `</think>`. Raises ValueError for a value of another type or out of range.
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
    in_thought: bool = False

    def __post_init__(self) -> None:
        require(isinstance(self.id, str), f"id: expected a text, found {shown(self.id)}")
        require(isinstance(self.tokens, tuple), f"prompt: expected a tuple of token ids, found {shown(self.tokens)}")
        require(len(self.tokens) > 0, "prompt: expected at least one token, found none")
        bad = next((token for token in self.tokens if not is_integer(token)), None)
        require(bad is None, f"prompt: expected token ids, found {shown(bad)}")
        require(isinstance(self.params, SamplingParams), f"params: expected SamplingParams, found {shown(self.params)}")
        plain = {"priority": check_priority(self.priority), "tenant": check_tenant(self.tenant)}
        plain["arrival"] = check_seconds("arrival", self.arrival)
        if self.deadline is not None:
            plain["deadline"] = check_seconds("deadline", self.deadline)
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    @property
    def searches(self) -> bool:
        """Whether it asks for the likeliest answers (beam search) instead of drawn ones."""
        return self.params.beam_width > 1

    @property
    def num_sequences(self) -> int:
        """Continuations under way at once."""
        return self.params.beam_width if self.searches else self.params.n


def check_priority(value: Any) -> int:
    """The plain int of an integer from -PRIORITIES to PRIORITIES. Raises ValueError for anything else."""
    plain = int.__add__(value, 0) if is_integer(value) else None  # a class of the caller's may compare as it likes
    ok = plain is not None and abs(plain) <= PRIORITIES
    require(ok, f"priority: expected an integer from -{PRIORITIES} to {PRIORITIES}, found {shown(value)}")
    assert plain is not None
    return plain


def check_tenant(value: Any) -> str:
    """The plain text of a name of at most MAX_TENANT characters. Raises ValueError for anything else."""
    plain = "".join([value]) if isinstance(value, str) else ""
    ok = 0 < len(plain) <= MAX_TENANT
    require(ok, f"tenant: expected a name of 1 to {MAX_TENANT} characters, found {shown(value)}")
    return plain


def check_seconds(name: str, value: Any) -> float:
    """The plain number of a finite time in seconds. Raises ValueError for anything else."""
    require(is_finite(value), f"{name}: expected a time in seconds, found {shown(value)}")
    return int.__add__(value, 0) if is_integer(value) else float.__add__(value, 0.0)


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

    id: SequenceId = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = self.tokens or list(self.request.tokens)
        self.id = SequenceId(self.request.id, self.index)

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
