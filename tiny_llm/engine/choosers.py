"""What turns logits into tokens: a draw for each sequence, under the form that its answer must have.

A search needs the log-probabilities themselves; `searches` takes them in.
"""

from collections.abc import Sequence as Row
from copy import copy
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from tiny_llm.config import SamplingParams
from tiny_llm.decode.generate import NOT_FINITE, Token, TokenLogprobs
from tiny_llm.decode.sampler import Sampled, Sampler
from tiny_llm.decode.structured import Grammars
from tiny_llm.engine.forms import Fault, Forms
from tiny_llm.engine.request import SequenceId
from tiny_llm.engine.step import Admission


@dataclass
class Track:
    """What drawing needs to know of a sequence under way."""

    params: SamplingParams
    prompt: tuple[int, ...]
    output: list[int]


class Draw:
    """Draws the next token of each sequence from its own distribution, with its own random numbers.

    A sampler counts the tokens that penalties look at, on the device; it is kept for the rows that it has.
    """

    def __init__(self, grammars: Grammars, vocab_size: int):
        self.forms, self.vocab_size = Forms(grammars), vocab_size
        self._tracks: dict[SequenceId, Track] = {}
        self._sampler: Sampler | None = None
        self._rows: list[SequenceId] = []  # of the sampler

    def admit(self, admission: Admission) -> None:
        """Take in a sequence, with the tokens that it has so far."""
        prompt, output = admission.tokens[: admission.num_prompt], admission.tokens[admission.num_prompt :]
        self._tracks[admission.sequence] = Track(admission.params, prompt, list(output))
        self.forms.admit(admission)

    def forget(self, sequence: SequenceId) -> None:
        """Drop a sequence that has ended."""
        self._tracks.pop(sequence, None)
        self.forms.forget(sequence)

    def searches(self, sequence: SequenceId) -> bool:
        """Whether a sequence is a beam: nothing is drawn for it."""
        return self._tracks[sequence].params.beam_width > 1

    def has_form(self, sequence: SequenceId) -> bool:
        """Whether what a sequence may say depends on each token before."""
        return self._tracks[sequence].params.structured is not None

    def ahead(self) -> "Draw":
        """A draw for a step that is only predicted: what it counts shows here when it is adopted."""
        other = copy(self)
        other._sampler = copy(self._sampler)
        return other

    def adopt(self, other: "Draw") -> None:
        """Take over what was counted on `ahead`."""
        self._sampler, self._rows = other._sampler, other._rows

    def reset(self) -> None:
        """Forget what was counted for a step that failed: it is counted anew from the tokens."""
        self._sampler = None

    def __call__(
        self, logits: mx.array, sequences: Row[SequenceId], positions: Row[int], state: Row[mx.array]
    ) -> Sampled:
        """One token for each row of logits (R, V), not evaluated. `positions` are the places of these tokens.

        `state` are buffers that the device may compute while the host finds out what forms allow.
        """
        logits = self.forms.mask(logits, sequences, state)
        rows = list(sequences)
        if self._sampler is not None and set(rows) <= set(self._rows):
            if rows != self._rows:
                self._sampler = self._sampler.select([self._rows.index(sequence) for sequence in rows])
        else:
            tracks = [self._tracks[sequence] for sequence in rows]
            self._sampler = Sampler(
                [track.params for track in tracks],
                self.vocab_size,
                [track.prompt for track in tracks],
                outputs=[track.output for track in tracks],
                samples=[sequence.number for sequence in rows],
            )
        self._rows = rows
        return self._sampler(logits, positions)

    def read(self, sampled: Sampled, sequences: Row[SequenceId]) -> list[Token]:
        """Wait for the tokens of these sequences, and follow them."""
        tokens = []
        for sequence, token, finite in zip(sequences, *_numbers_of(sampled), strict=True):
            track = self._tracks[sequence]
            track.output.append(token.id)
            tokens.append(_with_logprobs(token, track.params.logprobs))
            if finite:
                self.forms.follow(sequence, token.id)
            else:
                self.forms.faults.append(Fault(sequence.request, ArithmeticError(NOT_FINITE)))
        return tokens

    def take_faults(self) -> list[Fault]:
        """The requests that were found at fault since the last call, with why; no other is concerned."""
        found, self.forms.faults = self.forms.faults, []
        return found


def _numbers_of(sampled: Sampled) -> tuple[list[Token], list[bool]]:
    """A step's tokens, and whether each was chosen by finite logits."""
    ids = cast(list[int], sampled.tokens.tolist())
    finite = cast(list[bool], sampled.finite.tolist())
    if sampled.logprobs is None:
        return [Token(token) for token in ids], finite
    chosen = cast(list[float], sampled.logprobs.tolist())
    tops = _tops_of(sampled, len(ids))
    logprobs = [TokenLogprobs(logprob, top) for logprob, top in zip(chosen, tops, strict=True)]
    return [Token(token, found) for token, found in zip(ids, logprobs, strict=True)], finite


def _tops_of(sampled: Sampled, rows: int) -> list[tuple[tuple[int, float], ...]]:
    """The likeliest tokens of each row with their log-probabilities; none where nobody asked."""
    if sampled.top_tokens is None or sampled.top_logprobs is None:
        return [()] * rows
    tokens = cast(list[list[int]], sampled.top_tokens.tolist())
    logprobs = cast(list[list[float]], sampled.top_logprobs.tolist())
    return [tuple(zip(*row, strict=True)) for row in zip(tokens, logprobs, strict=True)]


def _with_logprobs(token: Token, asked: int | None) -> Token:
    """The token with the log-probabilities that its request asked for: a step has as many as any request wants."""
    if asked is None or token.logprobs is None:
        return Token(token.id)
    return Token(token.id, TokenLogprobs(token.logprobs.logprob, token.logprobs.top[:asked]))
