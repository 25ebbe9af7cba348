"""Draw tokens from weights, and make the random numbers for it: every number is a function of its key and position.

No generator is kept between steps. So a sequence gets the same numbers whatever else is in its batch, and a step can be
built before the tokens of the step before it are read.
"""

from collections.abc import Sequence
from enum import IntEnum

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from tiny_llm.decode.distribution import BLOCK, WIDE, in_blocks

Keys = npt.NDArray[np.uint64]
Positions = Sequence[int] | npt.NDArray[np.int64]
STRIDE = 0x9E3779B97F4A7C15  # from one word of SplitMix64 to the next
STEP = np.float32(2.0**-24)  # between two uniforms
PURPOSE_BIT = 60  # the indices of a purpose begin at purpose << PURPOSE_BIT


class Purpose(IntEnum):
    """The decision that a random number makes. Numbers of different purposes are independent at each position."""

    DRAW = 0  # a token from the model's distribution
    ACCEPT = 1  # whether a drafted token is accepted
    RESIDUAL = 2  # the token in place of a rejected draft
    PROPOSE = 3  # a token from the drafter's distribution


def draw(weights: mx.array, uniforms: mx.array) -> mx.array:
    """Draw one column per row, with a probability in proportion to its weight. (R, C), (R, 2) → (R,) uint32.

    A wide row draws a block with the first uniform and a column inside it with the second: there is less to compare,
    and one float32 uniform alone is too coarse, because its steps of 6e-8 exceed many tokens' probabilities.
    """
    first = uniforms[:, :1]
    second = uniforms[:, 1:]
    if weights.shape[1] <= WIDE:
        return inverse_cdf(weights, first)
    blocks = in_blocks(weights)
    block = inverse_cdf(blocks.sum(axis=2), first)
    index = block[:, None, None]
    inside = mx.take_along_axis(blocks, index, axis=1)  # (R, 1, BLOCK)
    column = inverse_cdf(inside[:, 0], second)
    return block * BLOCK + column


def inverse_cdf(weights: mx.array, uniform: mx.array) -> mx.array:
    """Find the last column of positive weight whose share of the row begins at or before uniform (R, 1) in [0, 1).

    The first positive column begins at exactly 0 and always qualifies: whatever a sum's rounding, no column of
    weight 0 is ever drawn. (R, C) → (R,) uint32.
    """
    # TASK w1.7.6: one draw from a row of weights
    begin = mx.cumsum(weights, axis=1, inclusive=False)
    total = weights.sum(axis=1, keepdims=True)
    reached = begin <= uniform * total
    possible = reached & (weights > 0)
    columns = mx.arange(weights.shape[1], dtype=mx.uint32)
    return mx.max(columns * possible, axis=1)
    # END TASK


def stream_keys(seeds: Sequence[int], samples: Sequence[int]) -> Keys:
    """Make one key per row from its seed (64 bits) and the number of its sample among n. → (R,) uint64."""
    seed = np.array(seeds, np.uint64)
    sample = np.array(samples, np.uint64)
    mixed = _mix(seed + STRIDE)
    return _mix(mixed + sample * STRIDE)


def uniforms(keys: Keys, positions: Positions, purpose: Purpose = Purpose.DRAW) -> mx.array:
    """Make two numbers in [0, 1) per row from its key, its position and the purpose. (R,), (R,) → (R, 2) float32.

    This is SplitMix64 read at an index, the same on every back end. A key's words at different indices differ; each
    purpose has 2^60 indices of its own.
    """
    begin = (purpose << PURPOSE_BIT) + 1
    position = np.asarray(positions).astype(np.uint64)
    index = position + begin
    words = _mix(keys + index * STRIDE)
    halves = words[:, None].view(np.uint32)  # (R, 2)
    steps = (halves >> 8).astype(np.float32)  # 24 bits, which a float32 holds exactly
    return mx.array(steps * STEP)


def _mix(words: Keys) -> Keys:
    """Apply SplitMix64's finalizer, a bijection (Steele, Lea and Flood 2014; Stafford's variant 13)."""
    words = words ^ (words >> np.uint64(30))
    words = words * 0xBF58476D1CE4E5B9
    words = words ^ (words >> np.uint64(27))
    words = words * 0x94D049BB133111EB
    return words ^ (words >> np.uint64(31))
