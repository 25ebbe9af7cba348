"""Where a step's keys and values go: what a cache tells an operation that does all layers at once."""

from typing import NamedTuple, Protocol

import mlx.core as mx


class Places(NamedTuple):
    """Where a step's tokens go and what they see, for an operation that writes and reads all layers' buffers itself.

    The T tokens belong to R sequences, to each as many. A slot is counted through all blocks.
    """

    positions: mx.array  # (T,) int32
    slots: mx.array  # (T,) int32: where each token's K and V go
    ends: mx.array  # (R,) int32: the number of slots that a sequence's tokens may see, their own among them
    buffers: list[mx.array]  # of all layers' keys, then of all layers' values
    tables: mx.array | None = None  # (R, M) int32: a sequence's blocks in order; None: its slots begin at 0
    block_size: int = 0
    mask: mx.array | None = None  # (T, slots) bool, instead of the causal one


class Placed(Protocol):
    """A cache whose steps can be done by one operation; not every cache has these methods."""

    def place(self, num_tokens: int) -> Places | None:
        """Open a step as `begin` does, if its buffers have room; else return None, and nothing has changed."""

    def take_in(self, buffers: list[mx.array]) -> None:
        """Replace the buffers that `place` gave by those that the step has written."""
