"""From a step of the scheduler to arrays and back: one forward pass and one sampling for the whole ragged batch."""

import contextlib
from collections.abc import Sequence as Row
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import NamedTuple, cast

import mlx.core as mx

from tiny_llm.cache.paged import PagedBatch, PagedPool
from tiny_llm.decode.beam import Logprobs, log_softmax
from tiny_llm.decode.generate import NOT_FINITE, Token, TokenLogprobs
from tiny_llm.decode.sampler import Sampled, Sampler
from tiny_llm.decode.structured import Grammars
from tiny_llm.engine.ahead import Plan
from tiny_llm.engine.forms import Fault, Forms
from tiny_llm.engine.lifecycle import Entry, Step
from tiny_llm.engine.request import Sequence
from tiny_llm.model.qwen3 import Qwen3


@dataclass(frozen=True)
class Running:
    """A step under way: `places` are the entries, by their number in the step, whose tokens `sampled` holds.

    `searching` are those that extend a beam, and `logits` (S, V) theirs.
    """

    step: Step
    places: list[int] = field(default_factory=list)
    sampled: Sampled | None = None
    searching: list[int] = field(default_factory=list)
    logits: mx.array | None = None

    @property
    def arrays(self) -> list[mx.array]:
        return [array for array in (*(self.sampled or ()), self.logits) if array is not None]

    def rows(self) -> dict[int, Logprobs]:
        """Wait for the log-probabilities of the next token, by entry."""
        return {} if self.logits is None else dict(zip(self.searching, map(log_softmax, self.logits), strict=True))


class Ahead(NamedTuple):
    """A step that is built before it is known to come: what it computes, and what is taken over when it does come."""

    plan: Plan
    running: Running
    pool: PagedPool
    sampler: Sampler | None
    sampling: list[Sequence]


class Runner:
    """Runs steps on one model and one pool, in the thread that made both. `ready` counts those that were prepared."""

    def __init__(self, model: Qwen3, pool: PagedPool, grammars: Grammars):
        self.model, self.pool = model, pool
        self.forms = Forms(grammars)
        self.ready = 0
        self._faults: list[Fault] = []
        self._sampler: Sampler | None = None
        self._sampling: list[Sequence] = []
        self._ahead: Ahead | None = None

    def launch(self, step: Step) -> Running:
        """Start a step; the host is free while the device works. The step before must have been read."""
        plan = Plan.of(step)
        if self._ahead is not None and plan.foretold(self._ahead.plan):
            running = replace(self._take(self._ahead), step=step)
        else:
            self.forget()
            self.pool.copy_blocks(step.copies)
            running = self._build(plan, self.pool)
        mx.async_eval(*running.arrays, *self.pool.state)  # type: ignore[no-untyped-call]
        return running

    def _take(self, ahead: Ahead) -> Running:
        self.pool.adopt(ahead.pool)
        self._sampler, self._sampling = ahead.sampler, ahead.sampling
        self.ready += 1
        self.forget()
        return ahead.running

    def prepare(self, plan: Plan, running: Running) -> None:
        """Build the step that will probably follow the one that runs, from tokens not read yet. Nothing is started.

        What goes wrong here goes wrong again when the step is due, and is answered for there.
        """
        if any(entry.sequence.request.params.structured for entry in plan.step.entries):
            return  # a form tells what it allows once it knows the token before
        kept, pool = (self._sampler, self._sampling), self.pool.ahead()
        self._sampler = copy(self._sampler)
        with contextlib.suppress(Exception):
            built = self._build(plan, pool, running)
            self._ahead = Ahead(plan, built, pool, self._sampler, self._sampling)
        self._sampler, self._sampling = kept

    def _build(self, plan: Plan, pool: PagedPool, before: Running | None = None) -> Running:
        """A step as arrays that nothing has computed yet, on tokens that are known or come from the step before."""
        order = sorted(range(len(plan.tables)), key=lambda i: _cost(plan.step.entries[i]))
        entries = [plan.step.entries[i] for i in order]
        lengths = [entry.length for entry in entries]
        batch = PagedBatch(pool, [plan.tables[i] for i in order], [entry.start for entry in entries], lengths)
        hidden = self.model.hidden_states(_row(entries, before), batch)  # (T, hidden)
        last = [end - 1 for end in accumulate(lengths)]
        places = [place for place, entry in enumerate(entries) if entry.samples]
        searching = [place for place, entry in enumerate(entries) if entry.searches]
        rows = [last[place] for place in places + searching]
        if not rows:
            return Running(plan.step)
        logits = self.model.logits(hidden if rows == [*range(sum(lengths))] else hidden[mx.array(rows)])
        logits, rest = (logits[: len(places)], logits[len(places) :]) if searching else (logits, None)
        sampled = None
        if places:
            logits = self.forms.mask(logits, [entries[place].sequence for place in places], pool.state)
            sampled = self._sample(logits, [entries[place] for place in places])
        numbers = ([order[place] for place in some] for some in (places, searching))
        return Running(plan.step, next(numbers), sampled, next(numbers), rest)

    def read(self, running: Running) -> list[Token | None]:
        """Wait for a step; the token of each entry, None where it samples none."""
        tokens: list[Token | None] = [None] * len(running.step.entries)
        if running.sampled is None:
            mx.eval(self.pool.state)
            return tokens
        for place, token, finite in zip(running.places, *_numbers_of(running.sampled), strict=True):
            sequence = running.step.entries[place].sequence
            tokens[place] = _with_logprobs(token, sequence.request.params.logprobs)
            if finite:
                self.forms.follow(sequence, token.id)
            else:
                self._faults.append((sequence.request.id, ArithmeticError(NOT_FINITE)))
        return tokens

    def take_faults(self) -> list[Fault]:
        """The requests that were found at fault since the last call, with why; no other is concerned."""
        found = self._faults + self.forms.faults
        self._faults, self.forms.faults = [], []
        return found

    def forget(self) -> None:
        """Drop what is prepared. It holds the pool's buffers: while it does, a write to them is a copy."""
        self._ahead = None

    def reset(self) -> None:
        """After a step that failed: what it left half done must not be built upon."""
        self.forget()
        self._sampler = None

    def _sample(self, logits: mx.array, entries: Row[Entry]) -> Sampled:
        """One token for each entry. The sampler, which counts tokens for penalties, is kept for the rows it has."""
        sequences = [entry.sequence for entry in entries]
        if self._sampler is not None and set(sequences) <= set(self._sampling):
            if sequences != self._sampling:
                self._sampler = self._sampler.select([self._sampling.index(sequence) for sequence in sequences])
        else:
            requests = [sequence.request for sequence in sequences]
            self._sampler = Sampler(
                [request.params for request in requests],
                self.model.config.vocab_size,
                [request.tokens for request in requests],
                outputs=[sequence.output for sequence in sequences],
                samples=[sequence.index for sequence in sequences],
            )
        self._sampling = sequences
        return self._sampler(logits, [entry.start + entry.length for entry in entries])


def _cost(entry: Entry) -> tuple[bool, int]:
    """Decodes first, the shorter before the longer: what `PagedBatch` computes with the least filling up."""
    return entry.length > 1, entry.start


def _row(entries: Row[Entry], before: Running | None) -> mx.array:
    """The tokens of a step: those that are known, or those that the step before samples for each sequence."""
    if before is None:
        return mx.array([t for e in entries for t in e.sequence.tokens[e.start : e.start + e.length]], mx.int32)
    assert before.sampled is not None, "each sequence samples"
    places = {before.step.entries[place].sequence: row for row, place in enumerate(before.places)}
    rows = [places[entry.sequence] for entry in entries]
    return before.sampled.tokens if rows == [*range(len(places))] else before.sampled.tokens[mx.array(rows)]


def _numbers_of(sampled: Sampled) -> tuple[list[Token], list[bool]]:
    """A step's tokens, and whether each was chosen by finite logits."""
    ids = cast(list[int], sampled.tokens.tolist())
    finite = [True] * len(ids) if sampled.finite is None else cast(list[bool], sampled.finite.tolist())
    if sampled.logprobs is None:
        return [Token(token) for token in ids], finite
    chosen = cast(list[float], sampled.logprobs.tolist())
    tops: list[tuple[tuple[int, float], ...]] = [()] * len(ids)
    if sampled.top_tokens is not None and sampled.top_logprobs is not None:
        tokens = cast(list[list[int]], sampled.top_tokens.tolist())
        logprobs = cast(list[list[float]], sampled.top_logprobs.tolist())
        tops = [tuple(zip(*row, strict=True)) for row in zip(tokens, logprobs, strict=True)]
    return [Token(*row) for row in zip(ids, map(TokenLogprobs, chosen, tops), strict=True)], finite


def _with_logprobs(token: Token, asked: int | None) -> Token:
    """The token with the log-probabilities that its request asked for: a step has as many as any request wants."""
    if asked is None or token.logprobs is None:
        return Token(token.id)
    return Token(token.id, TokenLogprobs(token.logprobs.logprob, token.logprobs.top[:asked]))
