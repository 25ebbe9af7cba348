"""A batch's choice of next tokens: the techniques of `sampling`, each row with its own parameters, all rows at once."""

import math
import secrets
from collections import Counter
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from tiny_llm.config import SamplingParams
from tiny_llm.decode import sampling

MIN_TEMPERATURE = 1e-6
TINY = 1e-30  # a smaller share would be 0 in float32, and keep no token at all
Tokens = Sequence[int]


class Sampled(NamedTuple):
    """What one step chose, not yet evaluated. None where no row asked for it, NaN and 0 in rows that did not.

    tokens (R,) uint32; logprobs (R,) of these tokens; top_tokens and top_logprobs (R, N) in descending order, N the
    most that any row asked for. Log-probabilities are the model's own, before penalties, temperature and truncation,
    as in OpenAI's API and vLLM. finite (R,) bool: False where the row's logits hold NaN or infinity; its token then
    means nothing.
    """

    tokens: mx.array
    logprobs: mx.array | None = None
    top_tokens: mx.array | None = None
    top_logprobs: mx.array | None = None
    finite: mx.array | None = None


class Sampler:
    """The sampling of R sequences, one step a call.

    params: one per row. prompts, outputs: the tokens of each row so far; only penalties read them, and an output is
    needed only by a sequence that goes on after a pause. seeds: in place of the params' own; None there draws a fresh
    one. samples: which of n a row is; every sample has random numbers of its own.
    Raises ValueError for a token outside the vocabulary and for a list of another length than params.
    """

    def __init__(
        self,
        params: Sequence[SamplingParams],
        vocab_size: int,
        prompts: Sequence[Tokens] | None = None,
        *,
        outputs: Sequence[Tokens] | None = None,
        seeds: Sequence[int | None] | None = None,
        samples: Sequence[int] | None = None,
    ) -> None:
        rows = len(params)
        if rows == 0:
            raise ValueError("params: expected one for each row, found none")
        self.params, self.vocab_size = tuple(params), vocab_size
        prompts = [()] * rows if prompts is None else prompts
        outputs = [()] * rows if outputs is None else outputs
        seeds = [p.seed for p in params] if seeds is None else seeds
        samples = [0] * rows if samples is None else samples
        for name, values in (("prompts", prompts), ("outputs", outputs), ("seeds", seeds), ("samples", samples)):
            if len(values) != rows:
                raise ValueError(f"{name}: expected one for each of the {rows} rows, found {len(values)}")
        self._keys = sampling.stream_keys([secrets.randbits(64) if s is None else s for s in seeds], samples)
        self._history = _History.start(self.params, prompts, outputs, vocab_size)
        self._plan()

    def __call__(self, logits: mx.array, positions: Sequence[int] | npt.NDArray[np.int64]) -> Sampled:
        """Choose one token per row from logits (R, V), lazily: nothing is evaluated or read back.

        positions (R,): any number that a sequence has only once, such as the place of the token that is chosen; with
        the seed it decides the draw. Minus infinity in the logits excludes a token; one a row must be finite.
        """
        where = np.asarray(positions)
        assert logits.shape == (len(self.params), self.vocab_size) and where.shape == (len(self.params),)
        adjusted = self._adjust(logits)
        chosen = [group.choose(adjusted, self._keys, where) for group in self._groups]
        tokens, finite = chosen[0]
        if len(chosen) > 1:
            tokens = mx.concatenate([part for part, _ in chosen])[self._order]
            finite = mx.concatenate([part for _, part in chosen])[self._order]
        if self._history is not None:
            self._history = self._history.append(tokens)
        return Sampled(tokens, *self._report(logits, tokens), finite=finite)

    def select(self, rows: Sequence[int]) -> "Sampler":
        """A sampler of these rows, in this order; a row may be left out or appear twice (a beam that forks)."""
        chosen, index = copy(self), np.asarray(rows, np.int64)
        chosen.params = tuple(self.params[row] for row in rows)
        chosen._keys = self._keys[index]
        chosen._history = self._history and _History(*(state[mx.array(index)] for state in self._history))
        chosen._plan()
        return chosen

    def _plan(self) -> None:
        """Make once what every step needs: the groups of rows and the parameters as arrays."""
        need = np.array([_columns(p, self.vocab_size) for p in self.params])
        self._groups = [_Group.of(self.params, np.flatnonzero(need == n), int(n)) for n in np.unique(need)]
        self._order = mx.array(np.argsort(np.concatenate([group.rows for group in self._groups])))
        self._penalties = tuple(
            _column([getattr(p, f"{name}_penalty") for p in self.params])
            for name in ("repetition", "presence", "frequency")
        )
        self._bias = _biases(self.params, self.vocab_size)
        self._asking = [row for row, p in enumerate(self.params) if p.logprobs is not None]

    def _adjust(self, logits: mx.array) -> mx.array:
        if self._bias is not None:
            logits = sampling.bias(logits.astype(mx.float32), *self._bias)
        if self._history is None:
            return logits
        tokens, counts, in_prompt = self._history
        logits = logits.astype(mx.float32)
        seen = mx.take_along_axis(logits, tokens, axis=-1)
        return mx.put_along_axis(logits, tokens, sampling.penalize(seen, counts, in_prompt, *self._penalties), axis=-1)

    def _report(self, logits: mx.array, tokens: mx.array) -> tuple[mx.array | None, mx.array | None, mx.array | None]:
        """The log-probabilities of the chosen tokens, the likeliest tokens and their log-probabilities."""
        if not self._asking:
            return None, None, None
        rows = None if len(self._asking) == len(self.params) else mx.array(self._asking)
        if rows is not None:
            logits, tokens = logits[rows], tokens[rows]
        logits = logits.astype(mx.float32)
        total = sampling.log_softmax_total(logits)
        chosen = (mx.take_along_axis(logits, tokens[:, None], axis=-1) - total)[:, 0]
        count = min(self.vocab_size, max(self.params[row].logprobs or 0 for row in self._asking))
        if count == 0:
            return self._spread(chosen, rows, mx.nan), None, None
        top, top_tokens = sampling.largest(logits, count)
        return (
            self._spread(chosen, rows, mx.nan),
            self._spread(top_tokens, rows, 0),
            self._spread(top - total, rows, mx.nan),
        )

    def _spread(self, values: mx.array, rows: mx.array | None, fill: float) -> mx.array:
        """Put the values of some rows in their places among all."""
        if rows is None:
            return values
        spread = mx.full((len(self.params), *values.shape[1:]), fill, values.dtype)
        spread[rows] = values
        return spread


@dataclass(frozen=True)
class _Group:
    """Rows that choose in the same way. A row is computed alike whoever its neighbours are, to the last bit.

    `columns`: how many of its largest logits a row needs; 0 is all of them, in any order. A parameter is None where
    no row uses it.
    """

    rows: npt.NDArray[np.int64]
    index: mx.array | None
    columns: int
    temperature: mx.array
    top_k: mx.array | None
    top_p: mx.array | None
    min_p: mx.array | None

    @classmethod
    def of(cls, params: Sequence[SamplingParams], rows: npt.NDArray[np.int64], columns: int) -> "_Group":
        chosen = [params[row] for row in rows]
        return cls(
            rows,
            None if len(rows) == len(params) else mx.array(rows),
            columns,
            _column([max(p.temperature, MIN_TEMPERATURE) for p in chosen]),
            _column([p.top_k or columns for p in chosen]) if any(0 < p.top_k < columns for p in chosen) else None,
            _column([max(p.top_p, TINY) if p.top_p < 1 else mx.inf for p in chosen])
            if any(p.top_p < 1 for p in chosen)
            else None,
            _column([p.min_p for p in chosen]) if any(p.min_p for p in chosen) else None,
        )

    def choose(
        self, logits: mx.array, keys: sampling.Words, positions: npt.NDArray[np.int64]
    ) -> tuple[mx.array, mx.array]:
        """The tokens of this group's rows, and whether their logits were finite: uint32 and bool, (rows,) each.

        The chosen token alone tells: the row's maximum goes into every weight, so NaN or infinity anywhere leaves it a
        NaN or no weight at all. logits (R, V), keys and positions (R,).
        """
        if self.index is not None:
            logits = logits[self.index]
        if self.columns == 1:
            tokens = mx.argmax(logits, axis=-1)
            return tokens, mx.isfinite(_of_column(logits, tokens))
        tokens_of: mx.array | None = None  # the token of each column
        if self.columns:
            logits, tokens_of = sampling.largest(logits, self.columns)
        # ANCHOR: choose
        kept = sampling.weights(logits.astype(mx.float32), self.temperature)
        if self.top_k is not None:
            kept = sampling.top_k(kept, self.top_k)
        if self.top_p is not None:
            kept = sampling.top_p(kept, self.top_p)
        if self.min_p is not None:
            kept = sampling.min_p(kept, self.min_p)
        column = sampling.draw(kept, sampling.uniforms(keys[self.rows], positions[self.rows]))
        # ANCHOR_END: choose
        finite = _of_column(kept, column) > 0
        return (column if tokens_of is None else _of_column(tokens_of, column)), finite


def _of_column(values: mx.array, column: mx.array) -> mx.array:
    """values (R, C), column (R,) → the value in each row's column, (R,)."""
    return mx.take_along_axis(values, column[:, None], axis=-1)[:, 0]


class _History(NamedTuple):
    """The tokens that penalties look at, (R, S) each: a token, how often the output has it, whether the prompt does.

    A step adds a slot with its token. Slots of a row with the same token hold the same numbers, so that writing one
    logit from several slots is harmless; that makes a step's work the length of the text, not of the vocabulary.
    """

    tokens: mx.array
    counts: mx.array
    in_prompt: mx.array

    @classmethod
    def start(
        cls, params: Sequence[SamplingParams], prompts: Sequence[Tokens], outputs: Sequence[Tokens], vocab_size: int
    ) -> "_History | None":
        if all((p.repetition_penalty, p.presence_penalty, p.frequency_penalty) == (1, 0, 0) for p in params):
            return None
        seen = [set(prompt) if p.repetition_penalty != 1 else set() for p, prompt in zip(params, prompts, strict=True)]
        counts = [Counter(output) for output in outputs]
        slots = [sorted(a | b.keys()) for a, b in zip(seen, counts, strict=True)]
        _require_tokens("prompt and output", [token for row in slots for token in row], vocab_size)
        tokens = _filled(slots, [row[0] if row else 0 for row in slots])
        return cls(
            mx.array(tokens),
            mx.array([[float(counts[i][t]) for t in row] for i, row in enumerate(tokens.tolist())]),
            mx.array([[float(t in seen[i]) for t in row] for i, row in enumerate(tokens.tolist())]),
        )

    def append(self, new: mx.array) -> "_History":
        """Count the tokens (R,) that a step chose."""
        new = new.astype(self.tokens.dtype)[:, None]
        same = self.tokens == new
        counts = self.counts + same
        count = mx.maximum(mx.max(counts * same, axis=-1, keepdims=True), 1)
        in_prompt = mx.max(self.in_prompt * same, axis=-1, keepdims=True)
        pairs = ([self.tokens, new], [counts, count], [self.in_prompt, in_prompt])
        return _History(*(mx.concatenate(pair, axis=1) for pair in pairs))


def _share(top_p: float) -> float:
    """The share of the probability that `sampling.top_p` keeps; infinity keeps everything."""
    return max(top_p, TINY) if top_p < 1 else math.inf


def _columns(params: SamplingParams, vocab_size: int) -> int:
    """How many of the largest logits decide: 1, a power of two from top_k up, the whole vocabulary, or 0 (no order)."""
    if params.temperature == 0 or params.top_k == 1 or params.top_p == 0:
        return 1
    if 0 < params.top_k < vocab_size:
        return int(min(max(32, 1 << (params.top_k - 1).bit_length()), vocab_size))
    return vocab_size if params.top_p < 1 else 0


def _biases(params: Sequence[SamplingParams], vocab_size: int) -> tuple[mx.array, mx.array] | None:
    """logit_bias of all rows as tokens (R, B) and values (R, B), short rows filled with a bias of 0 on token 0."""
    if not any(p.logit_bias for p in params):
        return None
    _require_tokens("logit_bias", [token for p in params for token in p.logit_bias], vocab_size)
    tokens = _filled([list(p.logit_bias) for p in params], [0] * len(params))
    values = np.zeros(tokens.shape, np.float32)
    for row, p in enumerate(params):
        values[row, : len(p.logit_bias)] = list(p.logit_bias.values())
    return mx.array(tokens), mx.array(values)


def _filled(rows: Sequence[Tokens], fills: Sequence[int]) -> npt.NDArray[np.int32]:
    """Rows of tokens as one array, at least one wide, each row filled up with its own fill."""
    width = max(1, *(len(row) for row in rows))
    return np.array([[*row, *[fill] * (width - len(row))] for row, fill in zip(rows, fills, strict=True)], np.int32)


def _require_tokens(name: str, tokens: Sequence[int], vocab_size: int) -> None:
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise ValueError(f"{name}: expected token ids from 0 to {vocab_size - 1}, found {token}")


def _column(values: Sequence[float], dtype: mx.Dtype = mx.float32) -> mx.array:
    """One value per row, (R, 1)."""
    return mx.array(list(values), dtype)[:, None]
