"""One buffer for each layer's keys and one for its values, grown in steps and written in place.

    slot      0 … offset-1      offset … capacity-1
    content   tokens kept       room for the next

MLX updates a buffer in place only while nobody else holds it: `generate.stream` therefore lets the last step's
readers go before the next step runs, and a fork copies on its first write, not before.
"""

import copy
from typing import Any

import mlx.core as mx

from tiny_llm.cache.base import check_trim
from tiny_llm.config import ModelConfig
from tiny_llm.model.ops import Ops


class ContiguousCache:
    """The KV cache of one sequence; `step` is the number of slots by which it grows.

    A layer's buffers are (Hkv, slots, D). During a step `start` is the slot of its first token (and `at` the same as
    an array), `offset` the number of tokens with it, `capacity` how many slots each buffer shall have.
    """

    SETTINGS: tuple[str, ...] = ()  # attributes that a saved cache must share with the one that takes its place
    COUNTERS: tuple[str, ...] = ("offset",)  # and those that are saved with it

    def __init__(self, config: ModelConfig, ops: Ops, step: int = 256):
        self.config, self.ops, self.step = config, ops, step
        self.start = self.offset = self.capacity = 0
        self.keys: list[mx.array] = []
        self.values: list[mx.array] = []

    def begin(self, num_tokens: int) -> mx.array:
        """Make room for T more tokens, in whole steps of slots; returns their positions (T,) int32.

        Sets start, at, offset and capacity, which never gets smaller.
        """
        # TASK w2.4.1: where the new tokens stand, and room for them
        # HINT 1: A cache holds 4 tokens and 2 more come. What are start, offset and the positions?
        # HINT 2: With step 4 and 6 tokens: how many slots? Only if that is more than there are, capacity changes.
        # HINT 3: start = old offset; offset += T; capacity = ceil(offset / step) · step; arange(start, offset)
        self.start, self.offset = self.offset, self.offset + num_tokens
        self.at = mx.array([self.start])
        if self.offset > self.capacity:
            self.capacity = -(-self.offset // self.step) * self.step
        return mx.arange(self.start, self.offset)
        # END TASK

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """Append k and v (T, Hkv, D); what q (T, Hq, D) sees of the whole sequence, (T, Hq, D)."""
        if layer == len(self.keys):  # the first step
            self.keys.append(mx.zeros((k.shape[1], 0, k.shape[2]), k.dtype))
            self.values.append(mx.zeros((v.shape[1], 0, v.shape[2]), v.dtype))
        # TASK w2.4.3: write, then look at everything
        # HINT 1: The queries are the last T tokens. Who knows what they may see: the cache, or `ops.attention`?
        # HINT 2: Write k into self.keys and v into self.values; `write` returns the whole of what is there. The scale
        #   is 1/√D, and `config.window_of(layer)` says how far this layer looks back.
        # HINT 3: self.ops.attention(q, keys, values, head_dim**-0.5, window)
        keys, values = self.write(self.keys, layer, k), self.write(self.values, layer, v)
        return self.ops.attention(q, keys, values, self.config.head_dim**-0.5, self.config.window_of(layer))
        # END TASK

    def write(self, buffers: list[mx.array], layer: int, new: mx.array) -> mx.array:
        """Put new (T, Hkv, D) into the slots from `start` on; returns all that is there now, (Hkv, offset, D).

        A buffer that is too small is replaced in `buffers` by one of `capacity` slots with what was below `start`.
        """
        # TASK w2.4.2: grow if need be, write, return what is filled
        # HINT 1: The buffer holds heads first, `new` tokens first. Which axes must change places?
        # HINT 2: Growing: the slots below start, then zeros up to capacity. In a step that starts at 0 nothing is kept.
        # HINT 3: buffers[layer] = mx.slice_update(buffer, new with heads first, self.at, [1]) writes from slot start on
        #   along axis 1; return its first `offset` slots
        buffer = buffers[layer]  # (Hkv, slots, D)
        heads, room, dim = buffer.shape
        if room < self.capacity:
            extra = mx.zeros((heads, self.capacity - self.start, dim), buffer.dtype)
            buffer = mx.concatenate([buffer[:, : self.start], extra], axis=1) if self.start else extra
        buffers[layer] = mx.slice_update(buffer, new.swapaxes(0, 1), self.at, [1])
        return buffers[layer][:, : self.offset]
        # END TASK

    @property
    def trimmable(self) -> int:
        return self.offset

    def trim(self, num_tokens: int) -> None:
        """Forget the last tokens. Raises ValueError for more than there are, as `check_trim` does."""
        # TASK w2.4.4: forget without touching a buffer
        # HINT 1: Which of the cache's numbers says what is kept? Does anything read slots beyond it?
        # HINT 2: `check_trim` refuses what can't be forgotten, and returns the offset that is left.
        # HINT 3: self.offset = check_trim(num_tokens, self.offset)
        self.offset = check_trim(num_tokens, self.offset)
        # END TASK

    def fork(self) -> "ContiguousCache":
        """A cache that goes on from here by itself; no array is copied until one of the two writes."""
        # TASK w2.4.5: the same arrays in lists of its own
        # HINT 1: `write` puts a new array into a list. Who else sees that, if two caches have the same list?
        # HINT 2: copy.copy(self) makes a second cache with the same attributes; two of these must become its own.
        # HINT 3: other.keys, other.values = list(self.keys), list(self.values)
        other = copy.copy(self)
        other.keys, other.values = list(self.keys), list(self.values)
        return other
        # END TASK

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.state)

    @property
    def state(self) -> list[Any]:
        return self.keys + self.values
