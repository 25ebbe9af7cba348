"""One forward pass as plain data: it can be logged, replayed, predicted, and sent to another process."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tiny_llm.cache.view import View
from tiny_llm.config import SamplingParams, Structured
from tiny_llm.engine.request import SequenceId

if TYPE_CHECKING:
    from tiny_llm.decode.generate import TokenLogprobs

UNKNOWN = -1  # stands for a token that the step before is still sampling


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
