"""Run a step on the device: one forward pass and one draw for the whole ragged batch.

The runner reads steps, which are plain data, and no object of the scheduler.
"""

import contextlib
from collections.abc import Sequence as Row
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

import mlx.core as mx

from tiny_llm.decode.beam import log_softmax
from tiny_llm.decode.sampler import Sampled
from tiny_llm.engine.choosers import Draw
from tiny_llm.engine.request import UNKNOWN, Result, SequenceId, Share, Step
from tiny_llm.engine.store import Store
from tiny_llm.model.qwen3 import Qwen3


@dataclass(frozen=True)
class Batch:
    """A step's shares in the order in which they are computed, as numbers.

    `order` has the shares' numbers in the step. `drawing` and `searching` are the numbers in `shares` of the shares
    that draw a token and of the shares that extend a beam. `rows` are the rows of the flat batch that need logits,
    first the rows of `drawing`, then the rows of `searching`.
    """

    order: tuple[int, ...]
    shares: tuple[Share, ...]
    rows: tuple[int, ...]
    drawing: tuple[int, ...]
    searching: tuple[int, ...]

    @classmethod
    def of(cls, step: Step, draw: Draw) -> "Batch":
        """Order the shares, and find the rows that need logits."""
        order = sorted(range(len(step.shares)), key=lambda i: _batch_order(step.shares[i]))
        shares = tuple(step.shares[i] for i in order)
        drawing: list[int] = []
        searching: list[int] = []
        for place, share in enumerate(shares):
            assert share.wanted <= 1, "a draw takes one row of a share"
            if share.wanted:
                chosen = searching if draw.searches(share.sequence) else drawing
                chosen.append(place)
        ends = list(accumulate(share.length for share in shares))
        rows = tuple(ends[place] - 1 for place in drawing + searching)
        return cls(tuple(order), shares, rows, tuple(drawing), tuple(searching))

    @property
    def num_tokens(self) -> int:
        return sum(share.length for share in self.shares)


@dataclass(frozen=True)
class Running:
    """A step that the device computes: its drawn tokens and the logits (S, V) of its beams, not read yet."""

    step: Step
    batch: Batch
    sampled: Sampled | None = None
    logits: mx.array | None = None

    @property
    def arrays(self) -> list[mx.array]:
        return [array for array in (*(self.sampled or ()), self.logits) if array is not None]


class Prepared(NamedTuple):
    """A step built on a prediction, and the state to install if it is the one scheduled."""

    running: Running
    store: Store
    draw: Draw


class Runner:
    """Runs steps on one model and one store, in the thread that made both. `ready` counts the prepared steps used."""

    def __init__(self, model: Qwen3, store: Store, draw: Draw):
        self.model, self.store, self.draw = model, store, draw
        self.ready = 0
        self._prepared: Prepared | None = None

    def launch(self, step: Step) -> Running:
        """Start a step, and return without waiting for it. The previous step must have been read."""
        self.release(step.ended)
        for admission in step.admitted:
            self.draw.admit(admission)
        if self._prepared is not None and self._prepared.running.step.predicts(step):
            return replace(self.launch_ready(), step=step)
        self.forget()
        self.store.copy_blocks(step.copies)
        running = self._build(step, self.store, self.draw)
        self._begin(running)
        return running

    @property
    def is_ready(self) -> bool:
        """Whether a step is prepared."""
        return self._prepared is not None

    def launch_ready(self) -> Running:
        """Start the prepared step before it is scheduled; `confirm` is called with the scheduled step."""
        assert self._prepared is not None
        running, store, draw = self._prepared
        self.store.adopt(store)
        self.draw.adopt(draw)
        self.ready += 1
        self.forget()
        del store, draw
        self._begin(running)
        return running

    def confirm(self, running: Running, step: Step) -> Running:
        """Return the running prepared step as the step that was scheduled."""
        assert running.step.predicts(step), "the step that runs is not the one that was scheduled"
        self.release(step.ended)
        return replace(running, step=step)

    def prepare(self, step: Step, before: Running) -> None:
        """Build the step that will probably follow the running one, from tokens not read yet, without starting it.

        Errors are ignored here: the same step fails again in `launch`, which handles them.
        """
        if any(self.draw.has_form(share.sequence) for share in step.shares):
            return  # a grammar's mask depends on the previous token
        store, draw = self.store.ahead(), self.draw.ahead()
        with contextlib.suppress(Exception):
            self._prepared = Prepared(self._build(step, store, draw, before), store, draw)

    def read(self, running: Running) -> list[Result]:
        """Wait for a step, and return a result for each of its shares."""
        results = [Result()] * len(running.step.shares)
        if not running.arrays:
            mx.eval(self.store.state)
        batch = running.batch
        if running.sampled is not None:
            sequences = [batch.shares[place].sequence for place in batch.drawing]
            tokens = self.draw.read(running.sampled, sequences)
            for place, token in zip(batch.drawing, tokens, strict=True):
                results[batch.order[place]] = Result((token.id,), logprobs=(token.logprobs,))
        if running.logits is not None:
            for place, row in zip(batch.searching, running.logits, strict=True):
                results[batch.order[place]] = Result(row=log_softmax(row))
        return results

    def release(self, ended: Row[SequenceId]) -> None:
        """Drop the data of sequences that have ended."""
        for sequence in ended:
            self.draw.forget(sequence)

    def forget(self) -> None:
        """Drop the prepared step, because it references the pool's buffers: MLX would copy them on the next write."""
        self._prepared = None

    def reset(self) -> None:
        """After a step that failed: drop the prepared step and the sampler, which depend on its results."""
        self.forget()
        self.draw.reset()

    def _begin(self, running: Running) -> None:
        mx.async_eval(*running.arrays, *self.store.state)  # type: ignore[no-untyped-call]

    def _build(self, step: Step, store: Store, draw: Draw, before: Running | None = None) -> Running:
        """Build a step's arrays lazily, from known tokens or from the tokens that the step `before` will draw."""
        batch = Batch.of(step, draw)
        hidden = self.model.hidden_states(_row(batch.shares, before), store.batch(batch.shares))  # (T, hidden)
        if not batch.rows:
            return Running(step, batch)
        every = batch.rows == tuple(range(batch.num_tokens))
        logits = self.model.logits(hidden if every else hidden[mx.array(batch.rows)])
        count = len(batch.drawing)
        sampled = None
        if count:
            shares = [batch.shares[place] for place in batch.drawing]
            sequences, positions = [share.sequence for share in shares], [share.end for share in shares]
            drawn = logits if not batch.searching else logits[:count]
            sampled = draw(drawn, sequences, positions, store.state)
        return Running(step, batch, sampled, logits[count:] if batch.searching else None)


def _batch_order(share: Share) -> tuple[bool, bool, int]:
    """Sort key: decodes first, then by length, which needs the least padding; scattered tokens last."""
    return share.scattered, share.length > 1, share.start


def _row(shares: Row[Share], before: Running | None) -> mx.array:
    """Return the tokens of a step (T,): the known tokens, or each sequence's token from the step `before`."""
    tokens = [token for share in shares for token in share.tokens]
    if UNKNOWN not in tokens:
        return mx.array(tokens, mx.int32)
    assert before is not None and before.sampled is not None, "a predicted step follows one that draws"
    drawn = [before.batch.shares[place].sequence for place in before.batch.drawing]
    rows = [drawn.index(share.sequence) for share in shares]
    return before.sampled.tokens if rows == [*range(len(drawn))] else before.sampled.tokens[mx.array(rows)]
