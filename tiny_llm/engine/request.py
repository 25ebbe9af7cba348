"""The nouns of the engine: requests, the sequences that answer them, and the steps that compute these.

A step is plain data: it can be logged, replayed, predicted, and sent to another process.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tiny_llm.cache.view import View
from tiny_llm.config import SamplingParams, Structured
from tiny_llm.config.fields import is_finite, is_integer, require, shown

if TYPE_CHECKING:
    from tiny_llm.decode.text import TokenLogprobs

EndReason = Literal["stop", "length", "cancelled", "error"]
PRIORITIES = 10
MAX_TENANT = 256  # characters
UNKNOWN = -1  # stands for a token that the step before is still sampling


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
    finish_reason: EndReason | None = None
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


class Share(NamedTuple):
    """A sequence's part of a step: `tokens` at the positions from `start` on.

    `wanted` is how many of its last rows need logits: 0 for a chunk, 1 for a decode and for the end of a prompt, k + 1
    to verify k drafted tokens. `parents` is the tree of a draft: for each token the one before it, by its number in the
    share; None for a plain row.
    """

    sequence: SequenceId
    start: int
    tokens: tuple[int, ...]
    wanted: int
    view: View
    parents: tuple[int, ...] | None = None

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def end(self) -> int:
        """The position behind its last token."""
        return self.start + len(self.tokens)

    @property
    def scattered(self) -> bool:
        """Whether positions and slots differ, or the tokens make a tree."""
        view = self.view
        return view.first != self.start or view.held is not None or self.parents is not None


class Admission(NamedTuple):
    """What the runner must know of a sequence before its first share: the tokens so far, and what is asked."""

    sequence: SequenceId
    tokens: tuple[int, ...]
    num_prompt: int
    params: SamplingParams
    in_thought: bool = False


@dataclass(frozen=True)
class Step:
    """One forward pass, in this order: forget `ended`, take in `admitted`, copy blocks, compute the shares.

    `copies` are pairs of blocks (source, target). `ended` are the sequences that no later step continues as they are:
    finished, or preempted and to be admitted again.
    """

    number: int
    shares: tuple[Share, ...] = ()
    copies: tuple[tuple[int, int], ...] = ()
    admitted: tuple[Admission, ...] = ()
    ended: tuple[SequenceId, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(share.length for share in self.shares)

    def predicts(self, step: "Step") -> bool:
        """Whether this guess is `step` but for tokens that were not known, with nothing done to the pool before it."""
        if step.copies or step.admitted or len(step.shares) != len(self.shares):
            return False
        known = (share._replace(tokens=(UNKNOWN,) * share.length) for share in step.shares)
        return all(mine == theirs for mine, theirs in zip(self.shares, known, strict=True))

    def to_json(self) -> str:
        """As one line."""
        data = asdict(self)
        data["shares"] = [[*share[:4], share.view, share.parents] for share in self.shares]
        data["admitted"] = [[*one[:3], asdict(one.params), one.in_thought] for one in self.admitted]
        return json.dumps(data, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> "Step":
        """What `to_json` wrote."""
        data = json.loads(line)
        return cls(
            data["number"],
            tuple(map(_share, data["shares"])),
            tuple((source, target) for source, target in data["copies"]),
            tuple(map(_admission, data["admitted"])),
            tuple(SequenceId(*sequence) for sequence in data["ended"]),
        )


class Result(NamedTuple):
    """What a share gave: its new tokens (none for a chunk, up to k + 1 for a verification).

    `logprobs` are those of the tokens, where the request asks for them. `row` holds the log-probabilities of the next
    token, (V,), where the share extends a beam.
    """

    tokens: tuple[int, ...] = ()
    logprobs: "tuple[TokenLogprobs | None, ...]" = ()
    row: npt.NDArray[np.float32] | None = None


def computed_after(share: Share, result: Result) -> int:
    """How many of a sequence's tokens have K and V after its share: drafted tokens that were not accepted have none."""
    rejected = share.wanted - len(result.tokens) if result.tokens else 0
    return share.end - rejected


def _share(data: Any) -> Share:
    sequence, start, tokens, wanted, (blocks, first, held), parents = data
    view = View(tuple(blocks), first, None if held is None else tuple(held))
    return Share(SequenceId(*sequence), start, tuple(tokens), wanted, view, None if parents is None else tuple(parents))


def _admission(data: Any) -> Admission:
    sequence, tokens, num_prompt, params, in_thought = data
    return Admission(SequenceId(*sequence), tuple(tokens), num_prompt, _params(params), in_thought)


def _params(data: Mapping[str, Any]) -> SamplingParams:
    form = data["structured"]
    lists = {name: tuple(data[name]) for name in ("stop", "stop_token_ids")}
    biases = {int(token): bias for token, bias in data["logit_bias"].items()}
    params = SamplingParams(**{**data, **lists, "logit_bias": biases, "structured": None})
    return params if form is None else replace(params, structured=Structured(**form))
