"""Count the tokens of each row's text, and apply the penalties that depend on them."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from tiny_llm.config import SamplingParams
from tiny_llm.decode import distribution

Tokens = Sequence[int]
Slots = npt.NDArray[np.int64]  # (3, S): tokens, counts in the output, 1 where the prompt has the token


class History(NamedTuple):
    """The tokens that penalties look at, in slots (R, S), and each row's penalties (R, 1).

    A slot holds a token, how often the output has it, and whether the prompt has it. A step adds a slot with its token.
    Slots of a row with the same token hold the same numbers, so writing one logit from several slots is harmless; that
    makes a step's work the length of the text, not of the vocabulary.
    """

    tokens: mx.array
    counts: mx.array
    in_prompt: mx.array
    repetition: mx.array
    presence: mx.array
    frequency: mx.array

    @classmethod
    def start(
        cls, params: Sequence[SamplingParams], prompts: Sequence[Tokens], outputs: Sequence[Tokens], vocab_size: int
    ) -> "History":
        """Count the tokens of prompts and outputs. Raises ValueError for a token outside the vocabulary."""
        seen = []
        for p, prompt, output in zip(params, prompts, outputs, strict=True):
            repeats = prompt if p.repetition_penalty != 1 else ()
            slots = _slots(repeats, output)
            require_tokens("prompt and output", slots[0].tolist(), vocab_size)
            seen.append(slots)
        table = _padded(seen)
        return cls(
            tokens=mx.array(table[:, 0]),
            counts=mx.array(table[:, 1].astype(np.float32)),
            in_prompt=mx.array(table[:, 2].astype(np.float32)),
            repetition=distribution.column([p.repetition_penalty for p in params]),
            presence=distribution.column([p.presence_penalty for p in params]),
            frequency=distribution.column([p.frequency_penalty for p in params]),
        )

    def penalize(self, logits: mx.array) -> mx.array:
        """Apply the penalties to the logits of the counted tokens. (R, V) float32 → (R, V)."""
        seen = distribution.pick(logits, self.tokens)
        penalized = distribution.penalize(
            seen, self.counts, self.in_prompt, self.repetition, self.presence, self.frequency
        )
        return mx.put_along_axis(logits, self.tokens, penalized, axis=1)

    def append(self, new: mx.array) -> "History":
        """Count the tokens (R,) that a step chose."""
        token = new.astype(self.tokens.dtype)[:, None]
        same = self.tokens == token
        counts = self.counts + same
        before = (counts * same).max(axis=1, keepdims=True)
        in_prompt = (self.in_prompt * same).max(axis=1, keepdims=True)
        return self._replace(
            tokens=mx.concatenate([self.tokens, token], axis=1),
            counts=mx.concatenate([counts, mx.maximum(before, 1)], axis=1),
            in_prompt=mx.concatenate([self.in_prompt, in_prompt], axis=1),
        )

    def select(self, rows: mx.array) -> "History":
        """Make the history of these rows, in this order."""
        arrays = [array[rows] for array in self]
        return History(*arrays)


def _slots(prompt: Tokens, output: Tokens) -> Slots:
    """List the tokens of a text, their counts in the output, and 1 for those in the prompt. → (3, S)."""
    text = np.array([*prompt, *output], np.int64)
    tokens, places = np.unique(text, return_inverse=True)
    length = len(prompt)
    counts = np.bincount(places[length:], minlength=len(tokens))
    in_prompt = np.zeros(len(tokens), np.int64)
    in_prompt[places[:length]] = 1
    return np.stack([tokens, counts, in_prompt])


def _padded(rows: Sequence[Slots]) -> npt.NDArray[np.int32]:
    """Put rows of slots into one array (R, 3, S). The padding repeats a row's first slot."""
    width = max(1, *(slots.shape[1] for slots in rows))
    table = np.zeros((len(rows), 3, width), np.int32)
    for row, slots in enumerate(rows):
        length = slots.shape[1]
        if length > 0:
            table[row] = slots[:, :1]
            table[row, :, :length] = slots
    return table


def require_tokens(name: str, tokens: Iterable[int], vocab_size: int) -> None:
    """Raise ValueError for a token outside the vocabulary; `name` says where it was found."""
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise ValueError(f"{name}: expected token ids from 0 to {vocab_size - 1}, found {token}")
