"""Positions one by one, rotation with the negated half swapped in."""

import mlx.core as mx

from tiny_llm.model.rope import Rotation


def inverse_frequencies(config, head_dim):
    inverse = mx.array([config.theta ** (-2 * i / head_dim) for i in range(head_dim // 2)])
    if config.kind == "linear":
        return inverse / config.factor
    if config.kind == "yarn":
        return _yarn(config, head_dim, inverse)  # noqa: F821
    return inverse


class Rope:
    def at(self, positions):
        angles = mx.stack([self.inverse * int(position) for position in positions])
        cos, sin = mx.cos(angles), mx.sin(angles)
        return Rotation(positions, cos * self.gain, sin * self.gain, self.periods, self.gain)


def apply_rope(x, rotation):
    cos = mx.tile(rotation.cos, (1, 2))[:, None]
    sin = mx.tile(rotation.sin, (1, 2))[:, None]
    half = x.shape[-1] // 2
    swapped = mx.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    return (x.astype(mx.float32) * cos + swapped.astype(mx.float32) * sin).astype(x.dtype)
