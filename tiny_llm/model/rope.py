"""Rotary position embeddings: queries and keys turn with their position, so their product sees only the distance.

arXiv:2104.09864. Dimension i is paired with i + D/2, as in the Hugging Face weights ("non-traditional" in MLX).
"""

import math
from typing import NamedTuple

import mlx.core as mx

from tiny_llm.config import RopeConfig


# ANCHOR: rotation
class Rotation(NamedTuple):
    """What one step needs to rotate its tokens: made once, used by every layer."""

    positions: mx.array  # (T,) int32
    cos: mx.array  # (T, D/2) float32
    sin: mx.array  # (T, D/2) float32
    periods: mx.array  # (D/2,) float32, positions per radian
    gain: float  # already in cos and sin
    # ANCHOR_END: rotation


def inverse_frequencies(config: RopeConfig, head_dim: int) -> mx.array:
    """Radians per position for each pair, (D/2,) float32: theta^(-2i/D), stretched as the config asks."""
    # TASK w1.2.1: a frequency for each pair
    exponents = mx.arange(0, head_dim, 2, dtype=mx.float32) / head_dim
    inverse = config.theta**-exponents
    # END TASK
    if config.kind == "linear":
        return inverse / config.factor
    if config.kind == "yarn":
        return _yarn(config, head_dim, inverse)
    if config.kind == "llama3":
        return _llama3(config, inverse)
    return inverse


def _yarn(config: RopeConfig, head_dim: int, inverse: mx.array) -> mx.array:
    """Fast pairs keep their frequency, slow ones are interpolated, a ramp lies between. (arXiv:2309.00071, 3.2)"""

    def pair_with(rotations: float) -> float:
        """The (real-valued) pair that turns `rotations` times within the original context."""
        wavelength = config.original_max_position_embeddings / (rotations * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(config.theta))

    low, high = pair_with(config.beta_fast), pair_with(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0.0), min(high, head_dim - 1.0)
    if low == high:
        high += 0.001
    ramp = (mx.arange(head_dim // 2, dtype=mx.float32) - low) / (high - low)
    interpolated = mx.clip(ramp, 0, 1)
    return inverse / config.factor * interpolated + inverse * (1 - interpolated)


def _llama3(config: RopeConfig, inverse: mx.array) -> mx.array:
    """Wavelengths beyond the original context are divided by `factor`, short ones kept, the rest blended."""
    turns = config.original_max_position_embeddings * inverse / (2 * math.pi)  # within the original context
    kept = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    kept = mx.clip(kept, 0, 1)
    return inverse / config.factor * (1 - kept) + inverse * kept


def attention_factor(config: RopeConfig) -> float:
    """YaRN's gain on cos and sin, which sharpens the softmax of long contexts; 1 for the other kinds."""
    if config.kind != "yarn":
        return 1.0
    if config.attention_factor is not None:
        return config.attention_factor

    def gain(mscale: float) -> float:
        return 0.1 * mscale * math.log(config.factor) + 1.0 if config.factor > 1 else 1.0

    return gain(config.mscale) / gain(config.mscale_all_dim)


class Rope:
    """Rotary embedding of one model. `at(positions)` gives the rotation of a step."""

    def __init__(self, config: RopeConfig, head_dim: int):
        self.inverse = inverse_frequencies(config, head_dim)
        self.periods = 1 / self.inverse
        self.gain = attention_factor(config)
        mx.eval(self.inverse, self.periods)

    def at(self, positions: mx.array) -> Rotation:
        """positions (T,) int32 → cos and sin of every pair's angle, (T, D/2) each."""
        # TASK w1.2.2: position times frequency
        angles = positions[:, None].astype(mx.float32) * self.inverse
        return Rotation(positions, mx.cos(angles) * self.gain, mx.sin(angles) * self.gain, self.periods, self.gain)
        # END TASK


def apply_rope(x: mx.array, rotation: Rotation) -> mx.array:
    """Turn each pair (x_i, x_{i+D/2}) of x (T, H, D) by its angle; computed in float32."""
    # TASK w1.2.3: turn each pair
    cos, sin = rotation.cos[:, None], rotation.sin[:, None]  # (T, 1, D/2)
    left, right = mx.split(x.astype(mx.float32), 2, axis=-1)  # (T, H, D/2) each
    turned = mx.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(x.dtype)
    # END TASK
