"""The buffers of a cache that one step reads and writes, for an operation that computes all layers at once."""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx


class StepBuffers(NamedTuple):
    """The buffers of all layers, and the slots in them where a step's tokens are written and looked up.

    The T tokens belong to R sequences, T / R consecutive tokens to each. In a pool slots are counted through all
    blocks: slot 9 in blocks of 4 is slot 1 of block 2.
    """

    positions: mx.array  # (T,) int32
    slots: mx.array  # (T,) int32: the slot of each token's K and V
    ends: mx.array  # (R,) int32: the number of slots that the last token of each sequence sees, its own included
    arrays: list[mx.array]  # the buffers of all layers' keys, then those of all layers' values
    replace: Callable[[list[mx.array]], None]  # give the cache the written buffers, in the order of `arrays`
    tables: mx.array | None = None  # (R, M) int32: each sequence's blocks; None where its slots begin at 0
    block_size: int = 0  # slots of a block; 0 without tables
    mask: mx.array | None = None  # (T, slots) bool: replaces the causal mask
