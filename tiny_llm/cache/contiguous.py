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
        keys, values = self.write(self.keys, layer, k), self.write(self.values, layer, v)
        return self.ops.attention(q, keys, values, self.config.head_dim**-0.5, self.config.window_of(layer))
        # END TASK

    def write(self, buffers: list[mx.array], layer: int, new: mx.array) -> mx.array:
        """Put new (T, Hkv, D) into the slots from `start` on; returns all that is there now, (Hkv, offset, D).

        A buffer that is too small is replaced in `buffers` by one of `capacity` slots with what was below `start`.
        """
        # TASK w2.4.2: grow if need be, write, return what is filled
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
        self.offset = check_trim(num_tokens, self.offset)
        # END TASK

    def fork(self) -> "ContiguousCache":
        """A cache that goes on from here by itself; no array is copied until one of the two writes."""
        # TASK w2.4.5: the same arrays in lists of its own
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
