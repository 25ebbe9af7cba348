"""Rotation by a matrix product for each pair."""

import math

import mlx.core as mx

from tiny_llm.model.rope import Rotation


def inverse_frequencies(config, head_dim):
    inverse = mx.exp(mx.arange(head_dim // 2, dtype=mx.float32) * (-2 * math.log(config.theta) / head_dim))
    if config.kind == "linear":
        return inverse / config.factor
    if config.kind == "yarn":
        return _yarn(config, head_dim, inverse)  # noqa: F821
    return inverse


class Rope:
    def at(self, positions):
        angles = mx.einsum("t,i->ti", positions.astype(mx.float32), self.inverse)
        return Rotation(positions, self.gain * mx.cos(angles), self.gain * mx.sin(angles), self.periods, self.gain)


def apply_rope(x, rotation):
    length, heads, dim = x.shape
    turns = mx.stack([rotation.cos, -rotation.sin, rotation.sin, rotation.cos], axis=-1)
    pairs = x.astype(mx.float32).reshape(length, heads, 2, dim // 2)
    turned = mx.einsum("tiab,thbi->thai", turns.reshape(length, dim // 2, 2, 2), pairs)
    return turned.reshape(x.shape).astype(x.dtype)
