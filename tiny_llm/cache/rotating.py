"""A cache of bounded size: the first tokens ("sinks") and the newest ones. (StreamingLLM, arXiv:2309.17453)

    slot      0 … sinks-1     sinks … capacity-1
    content   first tokens    a ring of the newest, the spare slots among them

A query sees the sinks and the newest `window - sinks` tokens, itself included. Beyond the window stand `spare` slots:
so many tokens can be written behind a query before one is overwritten that it sees, and so many can be taken back.

Keys keep the rotation of their place in the text, as in mlx-lm. The paper counts positions within the cache instead:
then a text may outgrow the context that the model was trained for, which `max_context` rules out here, and the keys
would have to be turned again in each step.
"""

from typing import Any

import mlx.core as mx

from tiny_llm.cache.base import check_trim
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.cache.memory import SPARE, STEP
from tiny_llm.config import ModelConfig
from tiny_llm.config.engine import SINKS, WINDOW, check_window
from tiny_llm.config.fields import require
from tiny_llm.model.ops import Ops


def slot_of(position: int, sinks: int, capacity: int) -> int:
    """Where a position's key and value stand: sinks stay, the others go round in the slots behind them."""
    # TASK w2.5.3: the slot of a position
    return position if position < sinks else sinks + (position - sinks) % (capacity - sinks)
    # END TASK


def held_positions(last: int, sinks: int, capacity: int) -> mx.array:
    """The position that each slot holds when `last` was written last, (capacity,) int32.

    A ring slot that was never written has a number below `sinks`.
    """
    # TASK w2.5.4: the way back, from slots to positions
    slots = mx.arange(capacity)
    newest = last - (last - slots) % (capacity - sinks)
    return mx.where(slots < sinks, slots, newest)
    # END TASK


def visible(positions: mx.array, held: mx.array, sinks: int, recent: int) -> mx.array:
    """True where a query may look: at sinks, and at the `recent` newest positions up to its own. (T, slots) bool.

    positions (T,) are the queries', held (slots,) those of the slots as `held_positions` gives them.
    """
    # TASK w2.5.5: who sees which slot
    query, slots = positions[:, None], mx.arange(held.shape[0])
    near = (held >= sinks) & (held > query - recent)
    return (held <= query) & ((slots < sinks) | near)
    # END TASK


class RotatingCache(ContiguousCache):
    """The KV cache of one sequence in `window + spare` slots; grows by `step` up to there."""

    SETTINGS: tuple[str, ...] = ("window", "sinks", "spare")
    COUNTERS = ("offset", "written")

    def __init__(
        self,
        config: ModelConfig,
        ops: Ops,
        window: int = WINDOW,
        sinks: int = SINKS,
        spare: int = SPARE,
        step: int = STEP,
    ):
        check_window(window, sinks)
        require(spare >= 0, f"spare: expected 0 or more, found {spare}")
        super().__init__(config, ops, step)
        self.window, self.sinks, self.spare = window, sinks, spare
        self.full = window + spare
        self.written = 0  # positions below were written, some of them perhaps taken back

    def begin(self, num_tokens: int) -> mx.array:
        self.start, self.offset = self.offset, self.offset + num_tokens
        self.written = max(self.written, self.offset)
        if min(self.offset, self.full) > self.capacity:
            self.capacity = min(-(-self.offset // self.step) * self.step, self.full)
        self._pieces = self._split()
        return mx.arange(self.start, self.offset)

    def _split(self) -> list[tuple[int, int, mx.array, mx.array | None]]:
        """The step in pieces that a row of slots takes and that overwrite nothing still needed.

        Each is (first and last position + 1, slot, mask); the mask is None while every token is within the window.
        """
        pieces, begin = [], self.start
        while begin < self.offset:
            slot = slot_of(begin, self.sinks, self.full)
            end = min(self.offset, begin + self.spare + 1, begin + self.full - slot)
            mask = None
            if end > self.window:
                held = held_positions(end - 1, self.sinks, self.full)[:end]
                mask = visible(mx.arange(begin, end), held, self.sinks, self.window - self.sinks)
            pieces.append((begin, end, mx.array([slot]), mask))
            begin = end
        return pieces

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        scale, own, out = self.config.head_dim**-0.5, self.config.window_of(layer), []
        for begin, end, slot, mask in self._pieces:
            rows, seen = slice(begin - self.start, end - self.start), min(end, self.full)
            keys, values = (self._keep(b, layer, x[rows], slot, seen) for b, x in ((self.keys, k), (self.values, v)))
            if mask is not None and own is not None:
                held = held_positions(end - 1, self.sinks, self.full)[:end]
                mask = mask & (held[None] > mx.arange(begin, end)[:, None] - own)
            out.append(self._look(q[rows], keys, values, scale, own, mask))
            if len(self._pieces) > 1:
                mx.eval(out[-1])  # the next piece may write in place only when this one has read
        return out[0] if len(out) == 1 else mx.concatenate(out)

    def _keep(self, buffers: list[mx.array], layer: int, new: mx.array, slot: mx.array, seen: int) -> Any:
        """Write new (T, Hkv, D) from a slot on; returns the first `seen` slots, as `_look` takes them."""
        return self._put(buffers, layer, new, slot)[:, :seen]

    def _look(
        self, q: mx.array, keys: Any, values: Any, scale: float, window: int | None, mask: mx.array | None
    ) -> mx.array:
        """Attention under the mask, or without one over slots in the order of the text, in a layer's own window."""
        if mask is None:
            return self.ops.attention(q, keys, values, scale, window)
        return self.ops.masked_attention(q, keys, values, scale, mask)

    def _put(self, buffers: list[mx.array], index: int, new: mx.array, slot: mx.array) -> mx.array:
        """Write new (T, Hkv, D) from a slot on; returns the buffer, (Hkv, capacity, D)."""
        if index == len(buffers):  # the first step
            buffers.append(mx.zeros((new.shape[1], 0, new.shape[2]), new.dtype))
        buffer = buffers[index]
        heads, room, dim = buffer.shape
        if room < self.capacity:
            buffer = mx.concatenate([buffer, mx.zeros((heads, self.capacity - room, dim), buffer.dtype)], axis=1)
        buffers[index] = mx.slice_update(buffer, new.swapaxes(0, 1), slot, [1])
        return buffers[index]

    @property
    def trimmable(self) -> int:
        """All until the ring has gone round, then as many as the spare slots allow."""
        if self.written <= self.full:
            return self.offset
        return max(self.spare + 1 - (self.written - self.offset), 0)

    def trim(self, num_tokens: int) -> None:
        offset = check_trim(num_tokens, self.offset)
        if offset == 0:
            self.written = 0
        elif num_tokens > self.trimmable:
            raise ValueError(
                f"trim: expected at most {self.trimmable} tokens, or all {self.offset}, found {num_tokens}: "
                "what they had pushed out of the window is gone"
            )
        self.offset = offset
