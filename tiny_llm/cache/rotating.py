"""A cache of bounded size: the first tokens ("sinks") and the newest ones. (StreamingLLM, arXiv:2309.17453)

    slot      0 … sinks-1     sinks … capacity-1
    content   first tokens    a ring of the newest, the spare slots among them

A query sees the sinks and the newest `window - sinks` tokens, itself included. The buffers have `spare` slots more than
the window. So `spare` tokens can be written behind a query before a slot that it sees is overwritten, and as many can
be trimmed.

Keys keep the rotation of their position in the text, as in mlx-lm. The paper counts positions within the cache instead:
then a text may outgrow the context that the model was trained for, which `max_context` rules out here, and the keys
would have to be rotated again in each step.
"""

from typing import Any, NamedTuple

import mlx.core as mx

from tiny_llm.cache.base import check_trim, no_slots
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.cache.memory import SPARE, STEP
from tiny_llm.config import ModelConfig
from tiny_llm.config.engine import SINKS, WINDOW, check_window
from tiny_llm.config.fields import require
from tiny_llm.model.ops import Ops
from tiny_llm.model.step_buffers import StepBuffers


def slot_of(position: int, sinks: int, capacity: int) -> int:
    """Return the slot of a position's key and value: sinks stay, the others go round in the slots behind them."""
    # TASK w2.5.3: the slot of a position
    return position if position < sinks else sinks + (position - sinks) % (capacity - sinks)
    # END TASK


def held_positions(last: int, sinks: int, capacity: int) -> mx.array:
    """Return the position that each slot holds when `last` was written last, (capacity,) int32.

    A ring slot that was never written has a number below `sinks`.
    """
    # TASK w2.5.4: the way back, from slots to positions
    slots = mx.arange(capacity)
    newest = last - (last - slots) % (capacity - sinks)
    return mx.where(slots < sinks, slots, newest)
    # END TASK


def visible(positions: mx.array, held: mx.array, sinks: int, recent: int) -> mx.array:
    """Return a mask (T, slots) bool: a query sees sinks, and the `recent` newest positions up to its own.

    positions (T,) are those of the queries, held (slots,) those of the slots as `held_positions` returns them.
    """
    # TASK w2.5.5: who sees which slot
    query, slots = positions[:, None], mx.arange(held.shape[0])
    near = (held >= sinks) & (held > query - recent)
    return (held <= query) & ((slots < sinks) | near)
    # END TASK


class Piece(NamedTuple):
    """Tokens of a step that are written and attended at once, at positions `begin` to `end - 1`.

    `slot` (1,) is the slot of the first token, and `mask` says which slots each token sees; it is None while all
    tokens are within the window.
    """

    begin: int
    end: int
    slot: mx.array
    mask: mx.array | None


class RotatingCache(ContiguousCache):
    """The KV cache of one sequence in `window + spare` slots; grows by `step` up to there."""

    KIND = "rotating"
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
        self.window = window
        self.sinks = sinks
        self.spare = spare
        self.full = window + spare
        self.written = 0  # all positions below were written; tokens at the last of them may have been trimmed

    def begin(self, num_tokens: int) -> mx.array:
        """Make room for T more tokens and cut the step into pieces; return their positions (T,) int32."""
        self.start = self.offset
        self.offset += num_tokens
        self.written = max(self.written, self.offset)
        if min(self.offset, self.full) > self.capacity:
            grown = -(-self.offset // self.step) * self.step
            self.capacity = min(grown, self.full)
        self._pieces = self._split()
        return mx.arange(self.start, self.offset)

    def _split(self) -> list[Piece]:
        """Cut the step into pieces that fit a row of slots and overwrite no slot that one of their queries sees."""
        pieces = []
        begin = self.start
        while begin < self.offset:
            slot = slot_of(begin, self.sinks, self.full)
            end = min(self.offset, begin + self.spare + 1, begin + self.full - slot)
            mask = None
            if end > self.window:
                held = self._held(end)
                mask = visible(mx.arange(begin, end), held, self.sinks, self.window - self.sinks)
            pieces.append(Piece(begin, end, mx.array([slot]), mask))
            begin = end
        return pieces

    def _held(self, end: int) -> mx.array:
        """Return the positions that the slots hold when `end` tokens have been written."""
        return held_positions(end - 1, self.sinks, self.full)[:end]

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """Append k and v (T, Hkv, D); return what q (T, Hq, D) sees of sinks and window, (T, Hq, D)."""
        scale = self.config.head_dim**-0.5
        window = self.config.window_of(layer)
        attended = []
        for piece in self._pieces:
            rows = slice(piece.begin - self.start, piece.end - self.start)
            seen = min(piece.end, self.full)
            keys = self._keep(self.keys, layer, k[rows], piece.slot, seen)
            values = self._keep(self.values, layer, v[rows], piece.slot, seen)
            mask = self._mask(piece, window)
            out = self._look(q[rows], keys, values, scale, window, mask)
            attended.append(out)
            if len(self._pieces) > 1:
                mx.eval(out)  # MLX would copy the buffer if the next piece wrote before this one has read
        return attended[0] if len(attended) == 1 else mx.concatenate(attended)

    def open_buffers(self, num_tokens: int) -> StepBuffers | None:
        """Open a step of one token whose layers are one operation; None where the buffers lack room for it.

        None also for several tokens, and where the layers would need masks that differ.
        """
        end = self.offset + 1
        if num_tokens != 1 or not self.keys or min(end, self.full) > self.keys[0].shape[1]:
            return None
        if end > self.window and self.config.sliding_layers:
            return None  # layers with a window have another mask
        positions = self.begin(1)
        (piece,) = self._pieces
        ends = mx.array([min(end, self.full)])
        return StepBuffers(positions, piece.slot, ends, self.state, self.replace_buffers, mask=piece.mask)

    def _mask(self, piece: Piece, window: int | None) -> mx.array | None:
        """Return which slots a piece's tokens see in a layer with this window; None where all tokens are within it."""
        if piece.mask is None or window is None:
            return piece.mask
        positions = mx.arange(piece.begin, piece.end)[:, None]
        near = self._held(piece.end)[None] > positions - window
        return piece.mask & near

    def _keep(self, buffers: list[mx.array], layer: int, new: mx.array, slot: mx.array, seen: int) -> Any:
        """Write new (T, Hkv, D) from a slot on; return the first `seen` slots, as `_look` takes them."""
        return self._put(buffers, layer, new, slot)[:, :seen]

    def _look(
        self, q: mx.array, keys: Any, values: Any, scale: float, window: int | None, mask: mx.array | None
    ) -> mx.array:
        """Attend under the mask, or without one over slots in the order of the text, in a layer's own window."""
        if mask is None:
            return self.ops.attention(q, keys, values, scale, window)
        return self.ops.masked_attention(q, keys, values, scale, mask)

    def _put(self, buffers: list[mx.array], index: int, new: mx.array, slot: mx.array) -> mx.array:
        """Write new (T, Hkv, D) from a slot on; return the buffer, (Hkv, capacity, D)."""
        if index == len(buffers):  # the first step
            buffers.append(no_slots(new))
        buffer = buffers[index]
        heads, room, dim = buffer.shape
        if room < self.capacity:
            extra = mx.zeros((heads, self.capacity - room, dim), buffer.dtype)
            buffer = mx.concatenate([buffer, extra], axis=1)
        buffers[index] = mx.slice_update(buffer, new.swapaxes(0, 1), slot, [1])
        return buffers[index]

    @property
    def trimmable(self) -> int:
        """How many of the last tokens can be forgotten: all until the ring is full, then as the spare slots allow."""
        if self.written <= self.full:
            return self.offset
        trimmed = self.written - self.offset
        return max(self.spare + 1 - trimmed, 0)

    def trim(self, num_tokens: int) -> None:
        """Forget the last tokens. Raises ValueError beyond `trimmable`; forgetting all always works."""
        offset = check_trim(num_tokens, self.offset)
        if offset == 0:
            self.written = 0
        elif num_tokens > self.trimmable:
            raise ValueError(
                f"trim: expected at most {self.trimmable} tokens, or all {self.offset}, found {num_tokens}: "
                "the tokens before them were overwritten"
            )
        self.offset = offset

    @property
    def max_slots(self) -> int | None:
        return self.full
