"""One buffer for each layer's keys and one for its values, grown in steps and written in place.

    slot      0 … offset-1      offset … capacity-1
    content   tokens kept       room for the next

MLX updates a buffer in place only while no other reference to it is alive. So callers must drop the arrays that read
from the last step before they run the next one, and a fork copies on its first write, not before.
"""

import copy
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from tiny_llm.cache.base import Part, check_trim, full_layout, no_slots
from tiny_llm.config import ModelConfig
from tiny_llm.course import NotDone
from tiny_llm.model.ops import Ops
from tiny_llm.model.step_buffers import StepBuffers


class ContiguousCache:
    """The KV cache of one sequence; `step` is the number of slots by which it grows.

    A layer's buffers are (Hkv, slots, D). During a step `start` is the slot of its first token (and `at` the same as
    an array), `offset` the number of tokens with it, `capacity` how many slots each buffer shall have.

    A file of a saved cache names its `KIND` and its SETTINGS, which must be those of the cache that reads it, and has
    its COUNTERS.
    """

    KIND = "contiguous"
    SETTINGS: tuple[str, ...] = ()
    COUNTERS: tuple[str, ...] = ("offset",)

    def __init__(self, config: ModelConfig, ops: Ops, step: int = 256):
        self.config = config
        self.ops = ops
        self.step = step
        self.start = 0
        self.offset = 0
        self.capacity = 0
        self.keys: list[mx.array] = []
        self.values: list[mx.array] = []

    def begin(self, num_tokens: int) -> mx.array:
        """Make room for T more tokens, in whole steps of slots; return their positions (T,) int32.

        Sets start, at, offset and capacity, which never gets smaller.
        """
        # YOUR CODE (w2.4.1): where the new tokens stand, and room for them
        raise NotDone("w2.4.1")

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """Append k and v (T, Hkv, D); return what q (T, Hq, D) sees of the whole sequence, (T, Hq, D)."""
        if layer == len(self.keys):  # the first step
            self.keys.append(no_slots(k))
            self.values.append(no_slots(v))
        # YOUR CODE (w2.4.3): write, then look at everything
        raise NotDone("w2.4.3")

    def attend_masked(self, layer: int, q: mx.array, k: mx.array, v: mx.array, mask: mx.array) -> mx.array:
        """Append k and v as `attend` does; return what q sees of the slots where mask (T, S) is True, (T, Hq, D)."""
        keys = self.write(self.keys, layer, k)
        values = self.write(self.values, layer, v)
        return self.ops.masked_attention(q, keys, values, self.config.head_dim**-0.5, mask)

    def write(self, buffers: list[mx.array], layer: int, new: mx.array) -> mx.array:
        """Put new (T, Hkv, D) into the slots from `start` on; return all that is there now, (Hkv, offset, D).

        A buffer that is too small is replaced in `buffers` by one of `capacity` slots with what was below `start`.
        """
        # YOUR CODE (w2.4.2): grow if need be, write, return what is filled
        raise NotDone("w2.4.2")

    def open_buffers(self, num_tokens: int) -> StepBuffers | None:
        """Open a step whose layers are one operation; None where the buffers lack room for T more tokens."""
        if not self.keys or self.offset + num_tokens > self.keys[0].shape[1]:
            return None
        positions = self.begin(num_tokens)
        ends = mx.array([self.offset])
        return StepBuffers(positions, positions, ends, self.state, self.replace_buffers)

    def replace_buffers(self, buffers: list[mx.array]) -> None:
        """Replace the buffers by those that a step has written: all layers' keys, then all layers' values."""
        half = len(buffers) // 2
        self.keys = buffers[:half]
        self.values = buffers[half:]

    @property
    def trimmable(self) -> int:
        """How many of the last tokens can be forgotten: all."""
        return self.offset

    def trim(self, num_tokens: int) -> None:
        """Forget the last tokens. Raises ValueError for more than there are, as `check_trim` does."""
        # YOUR CODE (w2.4.4): forget without touching a buffer
        raise NotDone("w2.4.4")

    def move(self, sources: Sequence[int], start: int) -> None:
        """Move the tokens in these slots, in ascending order, to the slots from `start` on."""
        slots = mx.array(list(sources))
        moved = [buffer[:, slots] for buffer in self.state]
        mx.eval(moved)  # because a source may be the target of an earlier one
        at = mx.array([start])
        self.replace_buffers(
            [mx.slice_update(buffer, rows, at, [1]) for buffer, rows in zip(self.state, moved, strict=True)]
        )

    def fork(self) -> "ContiguousCache":
        """Return a cache that continues from here on its own; no array is copied until one of the two writes."""
        # YOUR CODE (w2.4.5): the same arrays in lists of its own
        raise NotDone("w2.4.5")

    @property
    def layout(self) -> tuple[Part, ...]:
        """The buffers that hold a layer's keys; as many more hold its values."""
        return full_layout(self.config)

    @property
    def max_slots(self) -> int | None:
        """The number of slots beyond which the buffers never grow; None where they grow with the text."""
        return None

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers, with their unused slots."""
        return sum(buffer.nbytes for buffer in self.state)

    @property
    def state(self) -> list[Any]:
        """The arrays to evaluate or save."""
        return self.keys + self.values
