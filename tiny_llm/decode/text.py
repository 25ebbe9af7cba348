"""Turn tokens into text, and end an answer at a stop token, a stop string or its length."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tiny_llm.config import SamplingParams
from tiny_llm.decode.stop import StopStrings
from tiny_llm.decode.thought import Thought
from tiny_llm.model.tokenizer import Tokenizer

Origin = Literal["accepted", "bonus", "corrected"]
FinishReason = Literal["stop", "length"]
NOT_FINITE = (
    "the model's logits are not finite numbers: they overflow in this number format (set --dtype bfloat16 or float32), "
    "or the model's files are damaged (download them again)"
)


@dataclass(frozen=True)
class TokenLogprobs:
    """The chosen token's log-probability and the likeliest tokens with theirs, best first."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Token:
    """One generated token."""

    id: int
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True)
class Delta:
    """The part of the answer `index` that a step adds: text (perhaps ""), its token, and at the end the reason.

    `origin`: with drafts, whether the token was "accepted" as it was guessed, came as a "bonus" behind the last right
    guess, or "corrected" a wrong one; None where nothing was guessed. `num_drafted`: with the first token that a draft
    gave, the number of tokens that the draft had guessed.
    """

    text: str
    token: int | None = None
    index: int = 0
    finish_reason: FinishReason | None = None
    logprobs: TokenLogprobs | None = None
    origin: Origin | None = None
    num_drafted: int = 0


class Writer:
    """Turns the tokens of the answer `index` into text, until a stop token, a stop string or `limit` tokens.

    A token in `stop_tokens` ends the answer and is not part of its text. `in_thought`: the prompt has opened a thought,
    in which the stop strings `stops` do not count. `keep_special`: other special tokens are part of the text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str],
        stop_tokens: Collection[int],
        limit: int,
        index: int = 0,
        in_thought: bool = False,
        keep_special: bool = False,
    ):
        self.stop_tokens, self.limit, self.index = stop_tokens, limit, index
        self.count = 0
        self._detokenizer = tokenizer.detokenizer(keep_special=keep_special)
        self._stops = AnswerStops(stops, in_thought) if stops else None

    # ANCHOR: text
    def add(self, token: Token) -> Delta:
        """Return the text that the next token adds. The last delta has a finish reason."""
        self.count += 1
        ended = token.id in self.stop_tokens
        last = ended or self.count == self.limit
        text = "" if ended else self._detokenizer.add(token.id)
        if last:
            text += self._detokenizer.finish()
        stopped = False
        if self._stops is not None:
            text, stopped = self._stops.add(text)
            if last and not stopped:
                rest, stopped = self._stops.finish()
                text += rest
        reason: FinishReason | None = "length" if last else None
        if ended or stopped:
            reason = "stop"
        return Delta(text, token.id, self.index, reason, token.logprobs)
        # ANCHOR_END: text

    def write(self, tokens: Iterator[Token]) -> Iterator[Delta]:
        """Yield the text of these tokens until the answer ends."""
        for token in tokens:
            delta = self.add(token)
            yield delta
            if delta.finish_reason is not None:
                return


def stop_tokens(tokenizer: Tokenizer, params: SamplingParams) -> frozenset[int]:
    """Return the tokens that end an answer: the request's own and, unless `ignore_eos` is set, the model's."""
    own = frozenset(params.stop_token_ids)
    return own if params.ignore_eos else own | tokenizer.eos_token_ids


class ContextError(ValueError):
    """A prompt leaves no room for an answer in the context."""


def no_room(found: str, max_context: int) -> ContextError:
    """Return the error for a prompt that fills the context; `found` is its number of tokens."""
    return ContextError(
        f"prompt: {found} tokens leave no room for an answer in the context of {max_context}; "
        "shorten the prompt or raise --max-context as far as the model allows"
    )


def check_prompt(prompt: Sequence[int], max_context: int, vocab_size: int) -> None:
    """Raise ValueError for a prompt that is empty, is too long, or has a token id outside the vocabulary."""
    if not prompt:
        raise ValueError("prompt: expected at least one token, found none")
    if len(prompt) >= max_context:
        raise no_room(str(len(prompt)), max_context)
    bad = next((token for token in prompt if not 0 <= token < vocab_size), None)
    if bad is not None:
        raise ValueError(f"prompt: token id {bad} is outside the model's vocabulary of {vocab_size}")


class AnswerStops:
    """`StopStrings` that count only in the answer. A thought passes unchanged.

    `in_thought`: the prompt has opened a thought already.
    """

    def __init__(self, stops: Sequence[str], in_thought: bool):
        self._thought = Thought(in_thought)
        self._strings = StopStrings(stops)

    def add(self, piece: str) -> tuple[str, bool]:
        """Return the text that is now safe to show, and whether a stop string ended it (it is not part of the text)."""
        thought, answer = self._thought.split(piece)
        text, stopped = self._strings.add(answer)
        return thought + text, stopped

    def finish(self) -> tuple[str, bool]:
        """Return the text that was held back and whether a stop string ended it, once no more text comes."""
        thought, answer = self._thought.finish()
        text, stopped = self._strings.add(answer)
        rest = "" if stopped else self._strings.finish()
        return thought + text + rest, stopped
