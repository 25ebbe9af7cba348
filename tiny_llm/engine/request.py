"""The nouns of the engine: requests, the sequences that answer them, and the steps that compute the sequences.

A step is plain data: it can be logged, replayed, predicted, and sent to another process.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tiny_llm.cache.view import View
from tiny_llm.config import SamplingParams, Structured
from tiny_llm.config.fields import is_finite, is_integer, require, shown
from tiny_llm.decode.acceptance import DraftTree

if TYPE_CHECKING:
    import mlx.core as mx

    from tiny_llm.decode.text import Origin, TokenLogprobs

EndReason = Literal["stop", "length", "cancelled", "error"]
PRIORITIES = 10
MAX_TENANT = 256  # characters
MAX_SALT = 1024  # characters
NO_DRAFT = DraftTree()
UNKNOWN = -1  # stands for a token that the step before is still sampling


class SequenceId(NamedTuple):
    """A sequence's name in steps and logs: its request's id, and its number among the request's continuations."""

    request: str
    number: int


class PrefixMiss(NamedTuple):
    """Why no longer prefix of a prompt was found in the cache.

    `position` is the prompt's first token that the cache did not know, and `text` the prompt's text from there on.
    """

    position: int
    reason: str
    text: str = ""


class State(Enum):
    """The state of a sequence. A running sequence may be preempted and wait again; a finished one stays finished."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True)
class Request:
    """A client's request for `params.n` continuations of the prompt `tokens`.

    `arrival` and `deadline` (the time by which the answer should begin) are seconds on the scheduler's clock.
    `priority` is from -10 to 10, and higher priorities go first. `tenant` names the client whose share of the engine
    the request uses. `stop_tokens` are the ids that end an answer. `head` is the number of tokens before the user's own
    words (system prompt, tools, settings of the chat template); it only serves to explain why a prefix was not found.
    `in_thought`: the prompt ends inside a thought that the answer closes with `</think>`. Requests with different
    `salt`s share no cached prefix and no guesses. Raises ValueError for a value of the wrong type or out of range.
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
    salt: str = ""

    def __post_init__(self) -> None:
        require(isinstance(self.id, str), f"id: expected a text, found {shown(self.id)}")
        require(isinstance(self.tokens, tuple), f"prompt: expected a tuple of token ids, found {shown(self.tokens)}")
        require(len(self.tokens) > 0, "prompt: expected at least one token, found none")
        bad = next((token for token in self.tokens if not is_integer(token)), None)
        require(bad is None, f"prompt: expected token ids, found {shown(bad)}")
        require(isinstance(self.params, SamplingParams), f"params: expected SamplingParams, found {shown(self.params)}")
        plain = {"priority": check_priority(self.priority), "tenant": check_tenant(self.tenant)}
        plain["salt"] = check_salt(self.salt)
        plain["arrival"] = check_seconds("arrival", self.arrival)
        if self.deadline is not None:
            plain["deadline"] = check_seconds("deadline", self.deadline)
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    @property
    def searches(self) -> bool:
        """Whether the request asks for the likeliest answers (beam search) instead of drawn answers."""
        return self.params.beam_width > 1

    @property
    def num_sequences(self) -> int:
        """The number of continuations that are computed at once."""
        return self.params.beam_width if self.searches else self.params.n


def check_priority(value: Any) -> int:
    """Return a priority as a plain int. Raises ValueError unless it is an integer from -PRIORITIES to PRIORITIES."""
    plain = int.__add__(value, 0) if is_integer(value) else None  # because a subclass of int may redefine comparisons
    ok = plain is not None and abs(plain) <= PRIORITIES
    require(ok, f"priority: expected an integer from -{PRIORITIES} to {PRIORITIES}, found {shown(value)}")
    assert plain is not None
    return plain


def check_tenant(value: Any) -> str:
    """Return a tenant as a plain str. Raises ValueError unless it is a text of 1 to MAX_TENANT characters."""
    plain = "".join([value]) if isinstance(value, str) else ""
    ok = 0 < len(plain) <= MAX_TENANT
    require(ok, f"tenant: expected a name of 1 to {MAX_TENANT} characters, found {shown(value)}")
    return plain


def check_salt(value: Any) -> str:
    """Return a salt as a plain str. Raises ValueError unless it is a text of at most MAX_SALT characters."""
    ok = isinstance(value, str) and len(value) <= MAX_SALT
    require(ok, f"salt: expected a text of at most {MAX_SALT} characters, found {shown(value)}")
    return "".join([value])


def salted(token: int, salt: str) -> int:
    """Return the number that stands for a first token in the prefix cache of a salt. No token has it: it is below 0."""
    digest = sha256(f"{token} {salt}".encode("utf-8", "surrogatepass")).digest()
    return -1 - int.from_bytes(digest[:7], "big")  # fits into the 64 bits of a disk tier's address


def check_seconds(name: str, value: Any) -> float:
    """Return a time in seconds as a plain number. Raises ValueError unless it is a finite number."""
    require(is_finite(value), f"{name}: expected a time in seconds, found {shown(value)}")
    return int.__add__(value, 0) if is_integer(value) else float.__add__(value, 0.0)


@dataclass(eq=False)
class Sequence:
    """One continuation of a request.

    `tokens` are the prompt and the generated tokens. The blocks of `block_table` hold K and V of the first `computed`
    tokens; `cached` of these were found in kept blocks when the sequence was last admitted. `missed` says why no more
    were found when it was first admitted. `rank` orders sequences, the least rank first. `followers` are the request's
    other continuations while they wait until this sequence's prompt is computed. In a beam search they also include the
    beams that were preempted together with this one.
    """

    request: Request
    index: int = 0
    rank: tuple[float, int] = (0.0, 0)
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    cached: int = 0
    missed: PrefixMiss | None = None
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
    def keys(self) -> list[int]:
        """The tokens under which the prefix cache knows this sequence.

        They are `tokens`, but where the request has a salt, the first one is replaced by a digest of itself and the
        salt. Each path of the prefix tree begins with the first token, so no path of one salt is found with another.
        """
        if not self.request.salt:
            return self.tokens
        return [salted(self.tokens[0], self.request.salt), *self.tokens[1:]]

    @property
    def output(self) -> list[int]:
        """The tokens generated so far."""
        return self.tokens[self.num_prompt :]

    @property
    def remaining(self) -> int:
        """The number of tokens whose K and V are not computed yet: 1 for a sequence that decodes, more for a prompt.

        It is 0 for a beam that waits for the other beams of its search.
        """
        return len(self.tokens) - self.computed


class Share(NamedTuple):
    """A sequence's part of a step: `tokens` at the positions from `start` on.

    `wanted` is the number of the share's last rows that need logits: 0 for a chunk, 1 for a decode and for the end of a
    prompt, k + 1 to verify k drafted tokens. `parents` is the tree of a draft: the number in the share of each token's
    parent; None for a plain row. No policy makes views with `held` yet: tests alone set it.
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
        """The position after the share's last token."""
        return self.start + len(self.tokens)

    @property
    def draft(self) -> DraftTree:
        """The drafted tokens, behind the last verified one."""
        if self.wanted <= 1:
            return NO_DRAFT
        known = self.length - self.wanted + 1
        tokens = self.tokens[known:]
        if self.parents is None:
            return DraftTree.chain(tokens)
        return DraftTree(tokens, tuple(parent - known for parent in self.parents[known:]))

    @property
    def scattered(self) -> bool:
        """Whether positions and slots differ, or the tokens form a tree."""
        view = self.view
        return view.first != self.start or view.held is not None or self.parents is not None


class Admission(NamedTuple):
    """The data of a sequence that the runner needs before its first share: its tokens so far and its settings."""

    sequence: SequenceId
    tokens: tuple[int, ...]
    num_prompt: int
    params: SamplingParams
    in_thought: bool = False


@dataclass(frozen=True)
class Step:
    """One forward pass, in this order: forget `ended`, register `admitted`, copy blocks, compute the shares.

    `copies` are pairs of blocks (source, target). `ended` are the sequences that have finished or were preempted; a
    preempted sequence is admitted again before its next share.
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
        """Return whether this prediction equals `step` except for unknown tokens. A step with copies is never equal.

        The same is true of a step with admissions: both change the pool or the sampler before the step.
        """
        if step.copies or step.admitted or len(step.shares) != len(self.shares):
            return False
        known = (share._replace(tokens=(UNKNOWN,) * share.length) for share in step.shares)
        return all(mine == theirs for mine, theirs in zip(self.shares, known, strict=True))

    def to_json(self) -> str:
        """Return the step as one line of JSON."""
        data = asdict(self)
        data["shares"] = [[*share[:4], share.view, share.parents] for share in self.shares]
        data["admitted"] = [[*one[:3], asdict(one.params), one.in_thought] for one in self.admitted]
        return json.dumps(data, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> "Step":
        """Read a step that `to_json` wrote."""
        data = json.loads(line)
        return cls(
            data["number"],
            tuple(map(_share, data["shares"])),
            tuple((source, target) for source, target in data["copies"]),
            tuple(map(_admission, data["admitted"])),
            tuple(SequenceId(*sequence) for sequence in data["ended"]),
        )


class Result(NamedTuple):
    """The result of a share: its new tokens (none for a chunk, up to k + 1 for a verification).

    `kept` are the nodes of its draft that were accepted, in the order of the text, and `drawn` the model's tokens: the
    one behind the last verified token, then the one behind each node, accepted or not. `logprobs` has each token's
    log-probabilities, where the request asks for them. `row` holds the log-probabilities of the next token, (V,), where
    the share extends a beam.
    """

    tokens: tuple[int, ...] = ()
    logprobs: "tuple[TokenLogprobs | None, ...]" = ()
    row: npt.NDArray[np.float32] | None = None
    kept: tuple[int, ...] = ()
    drawn: tuple[int, ...] = ()

    def origins(self, draft: DraftTree) -> "list[Origin | None]":
        """Return where each new token comes from, for a share with this draft."""
        if not draft.tokens:
            return [None] * len(self.tokens)
        last = self.kept[-1] if self.kept else -1
        end: Origin = "corrected" if draft.children(last) else "bonus"
        found: list[Origin | None] = ["accepted"] * len(self.kept)
        return [*found, end]


class Seen(NamedTuple):
    """What a drafter may learn from a share: its result, and the outputs of the layers that it taps, (T, F)."""

    share: Share
    result: Result
    features: "mx.array | None" = None


def verification(share: Share, draft: DraftTree, view: View) -> Share:
    """Return the share of a sequence's last token with a draft behind it. `view` has blocks for all of these tokens."""
    parents = None if draft.is_chain else (-1, *(parent + 1 for parent in draft.parents))
    tokens = (*share.tokens, *draft.tokens)
    return share._replace(tokens=tokens, wanted=len(tokens), view=view, parents=parents)


def computed_after(share: Share, result: Result) -> int:
    """Return how many of a sequence's tokens have valid K and V after its share, without rejected draft tokens."""
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
