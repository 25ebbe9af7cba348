"""Rotary position embeddings: rotate queries and keys by their position, so that their product depends on the distance.

arXiv:2104.09864. Dimension i is paired with i + D/2, as in the Hugging Face weights ("non-traditional" in MLX).
"""

import math
from typing import NamedTuple

import mlx.core as mx

from tiny_llm.config import RopeConfig
from tiny_llm.course import NotDone


class Rotation(NamedTuple):
    """The angles of one step's tokens: computed once in a step, used by every layer."""

    positions: mx.array  # (T,) int32
    cos: mx.array  # (T, D/2) float32
    sin: mx.array  # (T, D/2) float32
    periods: mx.array  # (D/2,) float32, positions per radian
    gain: float  # already in cos and sin


def inverse_frequencies(config: RopeConfig, head_dim: int) -> mx.array:
    """Return each pair's frequency in radians per position, (D/2,) float32.

    It is theta^(-2i/D), scaled for long contexts by the method that the config names.
    """
    # YOUR CODE (w1.2.1): a frequency for each pair
    raise NotDone("w1.2.1")
    if config.kind == "linear":
        return inverse / config.factor
    if config.kind == "yarn":
        return _yarn(config, head_dim, inverse)
    if config.kind == "llama3":
        return _llama3(config, inverse)
    return inverse


def _yarn(config: RopeConfig, head_dim: int, inverse: mx.array) -> mx.array:
    """Keep the frequencies of fast pairs, divide those of slow pairs by `factor`, blend between.

    Source: arXiv:2309.00071, section 3.2.
    """
    low = _pair_with(config.beta_fast, config, head_dim)
    high = _pair_with(config.beta_slow, config, head_dim)
    if config.truncate:
        low = math.floor(low)
        high = math.ceil(high)
    low = max(low, 0.0)
    high = min(high, head_dim - 1.0)
    if low == high:
        high += 0.001
    pair = mx.arange(head_dim // 2, dtype=mx.float32)
    ramp = (pair - low) / (high - low)
    slow = mx.clip(ramp, 0, 1)
    divided = inverse / config.factor
    return divided * slow + inverse * (1 - slow)


def _pair_with(rotations: float, config: RopeConfig, head_dim: int) -> float:
    """Return the (real-valued) pair that turns `rotations` times within the original context."""
    radians = rotations * 2 * math.pi
    wavelength = config.original_max_position_embeddings / radians
    return head_dim * math.log(wavelength) / (2 * math.log(config.theta))


def _llama3(config: RopeConfig, inverse: mx.array) -> mx.array:
    """Keep frequencies of short wavelengths, divide those beyond the original context by `factor`, blend between."""
    turns = config.original_max_position_embeddings * inverse / (2 * math.pi)  # within the original context
    low = config.low_freq_factor
    high = config.high_freq_factor
    ramp = (turns - low) / (high - low)
    fast = mx.clip(ramp, 0, 1)
    divided = inverse / config.factor
    return divided * (1 - fast) + inverse * fast


def attention_factor(config: RopeConfig) -> float:
    """Return YaRN's factor on cos and sin, which sharpens the softmax of long contexts; 1 for the other kinds."""
    if config.kind != "yarn":
        return 1.0
    if config.attention_factor is not None:
        return config.attention_factor
    gain = _gain(config.mscale, config.factor)
    return gain / _gain(config.mscale_all_dim, config.factor)


def _gain(mscale: float, factor: float) -> float:
    if factor <= 1:
        return 1.0
    return 0.1 * mscale * math.log(factor) + 1.0


class Rope:
    """The rotary embedding of one model."""

    def __init__(self, config: RopeConfig, head_dim: int):
        self.inverse = inverse_frequencies(config, head_dim)
        self.periods = 1 / self.inverse
        self.gain = attention_factor(config)
        mx.eval(self.inverse, self.periods)

    def at(self, positions: mx.array) -> Rotation:
        """Return the rotation of a step: cosine and sine of every pair's angle, (T, D/2) each. positions (T,) int32."""
        # YOUR CODE (w1.2.2): position times frequency
        raise NotDone("w1.2.2")


def apply_rope(x: mx.array, rotation: Rotation) -> mx.array:
    """Rotate each pair (x_i, x_{i+D/2}) of x (T, H, D) by its angle, in float32; the result has x's dtype."""
    # YOUR CODE (w1.2.3): turn each pair
    raise NotDone("w1.2.3")
