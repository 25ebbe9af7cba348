"""Run a step on the device: one forward pass and one draw for the whole ragged batch.

The runner reads steps, which are plain data, and no object of the scheduler.
"""

import contextlib
from collections.abc import Sequence as Row
from itertools import accumulate
from typing import NamedTuple

import mlx.core as mx

from tiny_llm.decode.beam import log_softmax
from tiny_llm.engine.choosers import Choice, Draw, Verified
from tiny_llm.engine.request import UNKNOWN, Result, SequenceId, Share, Step
from tiny_llm.engine.store import Store
from tiny_llm.model.qwen3 import Qwen3


class Batch(NamedTuple):
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
            if share.wanted:
                chosen = searching if draw.searches(share.sequence) else drawing
                chosen.append(place)
        ends = list(accumulate(share.length for share in shares))
        rows: list[int] = []
        for place in drawing + searching:
            rows += range(ends[place] - shares[place].wanted, ends[place])
        return cls(tuple(order), shares, tuple(rows), tuple(drawing), tuple(searching))

    @property
    def num_tokens(self) -> int:
        return sum(share.length for share in self.shares)


class Running(NamedTuple):
    """A step under way: what it draws and the logits (S, V) of its searches, not yet read.

    `features` (T, F) are the outputs of the layers that a drafter taps.
    """

    step: Step
    batch: Batch
    choice: Choice | None = None
    logits: mx.array | None = None
    features: mx.array | None = None

    @property
    def arrays(self) -> list[mx.array]:
        """The arrays to wait for; none where the step computes chunks alone."""
        chosen = () if self.choice is None else self.choice.sampled
        return [array for array in (*chosen, self.logits, self.features) if array is not None]


class Prepared(NamedTuple):
    """A step built on a prediction, and the store as it leaves it."""

    running: Running
    store: Store


class Runner:
    """Runs steps on one model and one store, in the thread that made both.

    `taps` are the layers whose outputs a drafter reads. `ready` counts the prepared steps used.
    """

    def __init__(self, model: Qwen3, store: Store, draw: Draw):
        self.model, self.store, self.draw = model, store, draw
        self.taps: tuple[int, ...] = ()
        self.ready = 0
        self._prepared: Prepared | None = None

    def launch(self, step: Step) -> Running:
        """Start a step, and return without waiting for it. The previous step must have been read."""
        self.release(step.ended)
        for admission in step.admitted:
            self.draw.admit(admission)
        if self._prepared is not None and self._prepared.running.step.predicts(step):
            running = self._install(self._prepared, step)
        else:
            self.forget()
            self.store.copy_blocks(step.copies)
            running = self._build(step, self.store)
        self.draw.adopt(running.choice)
        mx.async_eval(*running.arrays, *self.store.state)  # type: ignore[no-untyped-call]
        return running

    def prepare(self, step: Step, before: Running) -> None:
        """Build the step that will probably follow the running one, from tokens not read yet, without starting it.

        Errors are ignored here: the same step fails again in `launch`, which handles them.
        """
        if any(self.draw.depends_on_next(share.sequence) for share in step.shares):
            return  # a rule's mask depends on the token before
        store = self.store.ahead()
        with contextlib.suppress(Exception):
            self._prepared = Prepared(self._build(step, store, before), store)

    def read(self, running: Running) -> list[Result]:
        """Wait for a step, and return a result for each of its shares."""
        results = [Result()] * len(running.step.shares)
        if not running.arrays:
            mx.eval(self.store.state)
        batch = running.batch
        if running.choice is not None:
            found = self.draw.read(running.choice)
            for place, (tokens, kept, drawn) in zip(batch.drawing, found, strict=True):
                self._compact(batch.shares[place], kept)
                ids = tuple(token.id for token in tokens)
                logprobs = tuple(token.logprobs for token in tokens)
                results[batch.order[place]] = Result(ids, logprobs=logprobs, kept=tuple(kept), drawn=tuple(drawn))
        if running.logits is not None:
            for place, row in zip(batch.searching, running.logits, strict=True):
                results[batch.order[place]] = Result(row=log_softmax(row))
        return results

    # ANCHOR: compact
    def _compact(self, share: Share, kept: Row[int]) -> None:
        """Move K and V of a tree's kept nodes behind those of the last verified token, in the order of the text."""
        first = share.view.first + 1
        slots = [first + node for node in kept]
        if slots != list(range(first, first + len(slots))):
            self.store.move(share.view, slots, first)

    # ANCHOR_END: compact

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

    def _install(self, prepared: Prepared, step: Step) -> Running:
        """Make the prepared step the current one; `step` has its tokens."""
        self.store.adopt(prepared.store)
        self.ready += 1
        self.forget()
        return prepared.running._replace(step=step)

    def _build(self, step: Step, store: Store, before: Running | None = None) -> Running:
        """A step as arrays that nothing has computed yet, on tokens that are known or come from the step before."""
        batch = Batch.of(step, self.draw)
        tokens, cache = _row(batch.shares, before), store.batch(batch.shares)
        features = None
        if self.taps:
            hidden, features = self.model.layer_outputs(tokens, cache, self.taps)
        else:
            hidden = self.model.hidden_states(tokens, cache)  # (T, hidden)
        if not batch.rows:
            return Running(step, batch, features=features)
        every = batch.rows == tuple(range(batch.num_tokens))
        logits = self.model.logits(hidden if every else hidden[mx.array(batch.rows)])
        shares = [batch.shares[place] for place in batch.drawing]
        count = sum(share.wanted for share in shares)
        choice = None
        if count:
            verified = [Verified(share.sequence, share.end - len(share.draft.tokens), share.draft) for share in shares]
            drawn = logits if not batch.searching else logits[:count]
            choice = self.draw(drawn, verified, store.state)
        return Running(step, batch, choice, logits[count:] if batch.searching else None, features)


def _batch_order(share: Share) -> tuple[bool, bool, int]:
    """Sort key: decodes first, then by length, which needs the least padding; scattered tokens last."""
    return share.scattered, share.length > 1, share.start


def _row(shares: Row[Share], before: Running | None) -> mx.array:
    """Return the tokens of a step (T,): the known tokens, or each sequence's token from the step `before`."""
    tokens = [token for share in shares for token in share.tokens]
    if UNKNOWN not in tokens:
        return mx.array(tokens, mx.int32)
    assert before is not None and before.choice is not None, "a predicted step follows one that draws"
    drawn = before.choice.sampled.tokens
    wanted = [share.sequence for share in shares]
    if wanted == before.choice.rows:
        return drawn
    return drawn[mx.array([before.choice.rows.index(sequence) for sequence in wanted])]
