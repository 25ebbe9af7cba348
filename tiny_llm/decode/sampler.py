"""Choose the next token of every row of a batch at once, each row with its own sampling parameters."""

import math
import secrets
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from tiny_llm.config import SamplingParams
from tiny_llm.decode import distribution, draw
from tiny_llm.decode.history import History, Tokens, require_tokens

MIN_TEMPERATURE = 1e-6
TINY = 1e-30  # a smaller share would be 0 in float32, and keep no token at all
GREEDY = 1  # columns that a greedy row needs: its largest logit alone
UNSORTED = 0  # a row needs all of its logits, in any order


class Sampled(NamedTuple):
    """The tokens that one step chose, not yet evaluated.

    tokens (R,) uint32. finite (R,) bool: False where the row's logits hold NaN or infinity; its token then means
    nothing. logprobs (R,) of these tokens; top_tokens and top_logprobs (R, N) in descending order, N the most that any
    row asked for. They are None where no row asked for them, and NaN (tokens: 0) in rows that did not.

    Log-probabilities are the model's own, before penalties, temperature and truncation, as in OpenAI's API and vLLM.
    """

    tokens: mx.array
    finite: mx.array
    logprobs: mx.array | None = None
    top_tokens: mx.array | None = None
    top_logprobs: mx.array | None = None


class Sampler:
    """Sample R sequences, one step a call.

    params: one for each row. prompts, outputs: the tokens of each row so far; only penalties read them, and only a
    sequence that resumes after a pause has an output. seeds: used instead of the seeds in params; None there draws a
    fresh one. samples: the number of each row among its request's n answers; each has random numbers of its own.
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
        if prompts is None:
            prompts = [()] * rows
        if outputs is None:
            outputs = [()] * rows
        if seeds is None:
            seeds = [p.seed for p in params]
        if samples is None:
            samples = [0] * rows
        for name, values in (("prompts", prompts), ("outputs", outputs), ("seeds", seeds), ("samples", samples)):
            if len(values) != rows:
                raise ValueError(f"{name}: expected one for each of the {rows} rows, found {len(values)}")
        self.params = tuple(params)
        self.vocab_size = vocab_size
        self._history: History | None = None
        if any(p.has_penalty for p in params):
            self._history = History.start(self.params, prompts, outputs, vocab_size)
        self._plan()
        self._keys: draw.Keys | None = None  # a greedy batch needs no random numbers
        if any(group.columns != GREEDY for group in self._groups):
            self._keys = _keys(seeds, samples)

    def __call__(self, logits: mx.array, positions: draw.Positions) -> Sampled:
        """Choose one token per row from logits (R, V), lazily: nothing is evaluated or read back.

        positions (R,): any number that a sequence has only once, such as the place of the token that is chosen; with
        the seed it decides the draw. Minus infinity in the logits excludes a token; one logit a row must be finite.
        """
        assert logits.shape == (len(self.params), self.vocab_size)
        assert len(positions) == len(self.params)
        tokens, finite = self._choose(self._adjust(logits), positions)
        if self._history is not None:
            self._history = self._history.append(tokens)
        if not self._asking:
            return Sampled(tokens, finite)
        logprobs, top_tokens, top_logprobs = self._report(logits, tokens)
        return Sampled(tokens, finite, logprobs, top_tokens, top_logprobs)

    @property
    def counts(self) -> bool:
        """Whether it counts the tokens of its rows, for penalties."""
        return self._history is not None

    def fork(self) -> "Sampler":
        """Make a sampler that goes on from here by itself; this one, where it counts no tokens."""
        return copy(self) if self.counts else self

    def select(self, rows: Sequence[int]) -> "Sampler":
        """Make a sampler of these rows, in this order. A row may be left out, or appear twice."""
        index = np.asarray(rows, np.int64)
        chosen = copy(self)
        chosen.params = tuple(self.params[row] for row in rows)
        if self._keys is not None:
            chosen._keys = self._keys[index]
        if self._history is not None:
            chosen._history = self._history.select(mx.array(index))
        chosen._plan()
        return chosen

    def _plan(self) -> None:
        """Make what every step needs: the groups of rows, and the parameters as arrays."""
        self._groups = _groups(self.params, self.vocab_size)
        self._order = _order(self._groups)
        self._bias = _biases(self.params, self.vocab_size)
        self._asking = []
        for row, p in enumerate(self.params):
            if p.logprobs is not None:
                self._asking.append(row)

    def _adjust(self, logits: mx.array) -> mx.array:
        """Add the rows' biases and apply their penalties. (R, V) → (R, V)."""
        if self._bias is not None:
            tokens, values = self._bias
            logits = distribution.bias(logits.astype(mx.float32), tokens, values)
        if self._history is not None:
            logits = self._history.penalize(logits.astype(mx.float32))
        return logits

    def _choose(self, logits: mx.array, positions: draw.Positions) -> tuple[mx.array, mx.array]:
        """Let each group choose, and put the rows back in order: tokens (R,) and whether they are valid (R,)."""
        tokens, finite = [], []
        for group in self._groups:
            token, is_finite = group.choose(logits, self._keys, positions)
            tokens.append(token)
            finite.append(is_finite)
        if self._order is None:
            return tokens[0], finite[0]
        all_tokens = mx.concatenate(tokens)
        all_finite = mx.concatenate(finite)
        return all_tokens[self._order], all_finite[self._order]

    def _report(self, logits: mx.array, tokens: mx.array) -> tuple[mx.array, mx.array | None, mx.array | None]:
        """Compute the chosen tokens' log-probabilities, and the likeliest tokens with theirs, for rows that ask."""
        rows = None
        if len(self._asking) < len(self.params):
            rows = mx.array(self._asking)
            logits = logits[rows]
            tokens = tokens[rows]
        logits = logits.astype(mx.float32)
        total = distribution.log_softmax_total(logits)
        chosen = _in_column(logits, tokens) - total[:, 0]
        logprobs = self._spread(chosen, rows, mx.nan)
        asked = max(self.params[row].logprobs or 0 for row in self._asking)
        if asked == 0:
            return logprobs, None, None
        top, top_tokens = distribution.largest(logits, min(self.vocab_size, asked))
        top_logprobs = self._spread(top - total, rows, mx.nan)
        return logprobs, self._spread(top_tokens, rows, 0), top_logprobs

    def _spread(self, values: mx.array, rows: mx.array | None, fill: float) -> mx.array:
        """Put the values of `rows` in their places among all rows; the other rows get `fill`."""
        if rows is None:
            return values
        shape = (len(self.params), *values.shape[1:])
        spread = mx.full(shape, fill, values.dtype)
        spread[rows] = values
        return spread


@dataclass(frozen=True)
class _RowGroup:
    """Rows that choose in the same way. A row is computed alike, to the last bit, whatever its neighbours are.

    `index` is `rows` on the device, None for all rows of the batch. `columns`: how many of its largest logits a row
    needs, or UNSORTED. A parameter is None where no row uses it.
    """

    rows: npt.NDArray[np.int64]
    index: mx.array | None
    columns: int
    temperature: mx.array | None
    top_k: mx.array | None
    top_p: mx.array | None
    min_p: mx.array | None

    @classmethod
    def of(cls, params: Sequence[SamplingParams], rows: Sequence[int], columns: int) -> "_RowGroup":
        """Make the group of some rows of a batch, whose parameters are `params`."""
        index = np.array(rows, np.int64)
        on_device = None if len(rows) == len(params) else mx.array(index)
        if columns == GREEDY:
            return cls(index, on_device, columns, temperature=None, top_k=None, top_p=None, min_p=None)
        chosen = [params[row] for row in rows]
        temperatures = [max(p.temperature, MIN_TEMPERATURE) for p in chosen]
        kept = [min(p.top_k or columns, columns) for p in chosen]
        shares = [_share(p.top_p) for p in chosen]
        return cls(
            rows=index,
            index=on_device,
            columns=columns,
            temperature=distribution.column(temperatures),
            top_k=_column_if_used(kept, unused=columns),
            top_p=_column_if_used(shares, unused=math.inf),
            min_p=_column_if_used([p.min_p for p in chosen], unused=0),
        )

    def choose(self, logits: mx.array, keys: draw.Keys | None, positions: draw.Positions) -> tuple[mx.array, mx.array]:
        """Choose the tokens of this group's rows: tokens (uint32) and whether they are valid (bool), (rows,) each.

        The chosen token alone shows whether all logits of a row were finite: the row's maximum goes into every weight,
        so NaN or infinity anywhere leaves a NaN or no weight at all. logits (R, V), keys and positions (R,).
        """
        if self.index is not None:
            logits = logits[self.index]
        if self.columns == GREEDY:
            tokens = mx.argmax(logits, axis=1)
            return tokens, mx.isfinite(_in_column(logits, tokens))
        assert keys is not None
        places = np.asarray(positions)[self.rows]
        uniforms = draw.uniforms(keys[self.rows], places)
        if self.columns == UNSORTED:
            return self._draw(logits, uniforms)
        logits, tokens = distribution.largest(logits, self.columns)
        column, finite = self._draw(logits, uniforms)
        return _in_column(tokens, column), finite

    def _draw(self, logits: mx.array, uniforms: mx.array) -> tuple[mx.array, mx.array]:
        """Draw a column from logits (rows, C), in descending order unless UNSORTED: columns and whether valid."""
        assert self.temperature is not None, "a greedy row draws nothing"
        # ANCHOR: choose
        kept = distribution.weights(logits.astype(mx.float32), self.temperature)
        if self.top_k is not None:
            kept = distribution.top_k(kept, self.top_k)
        if self.top_p is not None:
            kept = distribution.top_p(kept, self.top_p)
        if self.min_p is not None:
            kept = distribution.min_p(kept, self.min_p)
        column = draw.draw(kept, uniforms)
        # ANCHOR_END: choose
        return column, _in_column(kept, column) > 0


def _groups(params: Sequence[SamplingParams], vocab_size: int) -> list[_RowGroup]:
    """Group the rows by how many of their largest logits they need."""
    rows_of: dict[int, list[int]] = {}
    for row, p in enumerate(params):
        columns = _columns(p, vocab_size)
        rows_of.setdefault(columns, []).append(row)
    return [_RowGroup.of(params, rows, columns) for columns, rows in rows_of.items()]


def _order(groups: Sequence[_RowGroup]) -> mx.array | None:
    """Return where each row is found in the groups' concatenated results; None if one group has all rows in order."""
    if len(groups) == 1:
        return None
    rows = [group.rows for group in groups]
    order = np.argsort(np.concatenate(rows))
    return mx.array(order)


def _columns(params: SamplingParams, vocab_size: int) -> int:
    """Say how many of its largest logits a row needs: GREEDY, a power of two from top_k up, all, or UNSORTED."""
    if params.temperature == 0 or params.top_k == 1 or params.top_p == 0:
        return GREEDY
    if 0 < params.top_k < vocab_size:
        power: int = 1 << (params.top_k - 1).bit_length()
        return min(max(32, power), vocab_size)
    return vocab_size if params.top_p < 1 else UNSORTED


def _share(top_p: float) -> float:
    """Return the share of the probability that `distribution.top_p` keeps; infinity keeps everything."""
    if top_p < 1:
        return max(top_p, TINY)
    return math.inf


def _keys(seeds: Sequence[int | None], samples: Sequence[int]) -> draw.Keys:
    """Make the rows' keys. A row without a seed gets a fresh one."""
    known = [secrets.randbits(64) if seed is None else seed for seed in seeds]
    return draw.stream_keys(known, samples)


def _biases(params: Sequence[SamplingParams], vocab_size: int) -> tuple[mx.array, mx.array] | None:
    """Return logit_bias of all rows as tokens (R, B) and values (R, B). Short rows are padded with 0 on token 0."""
    width = max(len(p.logit_bias) for p in params)
    if width == 0:
        return None
    tokens = np.zeros((len(params), width), np.int32)
    values = np.zeros((len(params), width), np.float32)
    for row, p in enumerate(params):
        require_tokens("logit_bias", p.logit_bias, vocab_size)
        for place, (token, value) in enumerate(p.logit_bias.items()):
            tokens[row, place] = token
            values[row, place] = value
    return mx.array(tokens), mx.array(values)


def _column_if_used(values: Sequence[float], unused: float) -> mx.array | None:
    """Return one value per row as an array (R, 1), or None where all are `unused`."""
    if all(value == unused for value in values):
        return None
    return distribution.column(values)


def _in_column(values: mx.array, column: mx.array) -> mx.array:
    """Read the value in each row's column. values (R, C), column (R,) → (R,)."""
    picked = mx.take_along_axis(values, column[:, None], axis=-1)
    return picked[:, 0]
