"""The operations of training: those of the engine where MLX differentiates them well, own derivatives elsewhere.

MLX's CPU back end takes 17 ns for an `exp`; softmax, SwiGLU and cross entropy therefore use the engine's polynomial
(`fused.exp_nonpositive`), and their derivatives are written out, because that of the polynomial's sixteen operations
would cost more than it.
"""

from typing import Any

import mlx.core as mx

from tiny_llm.config import ModelConfig
from tiny_llm.model import ops as plain
from tiny_llm.model.fused import exp_nonpositive, sigmoid
from tiny_llm.model.ops import Ops
from tiny_llm.model.rope import apply_rope

HIDDEN = -1e30  # a score that no softmax sees
TILE = 128  # queries that share a range of keys


# Compiled functions get whole arrays only: with broadcast or strided ones MLX makes loops that do not vectorise.
_exp = mx.compile(exp_nonpositive)


@mx.custom_function
def softmax(scores: mx.array) -> mx.array:
    """Over the last axis."""
    e = _exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@softmax.vjp
def _softmax_vjp(_: mx.array, slope: mx.array, y: mx.array) -> mx.array:
    return y * (slope - (slope * y).sum(axis=-1, keepdims=True))


def _halves(gate_up: mx.array) -> list[mx.array]:
    return [mx.contiguous(half) for half in mx.split(gate_up, 2, axis=-1)]


@mx.compile
def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    return gate * sigmoid(gate) * up


@mx.compile
def _swiglu_slopes(gate: mx.array, up: mx.array, slope: mx.array) -> tuple[mx.array, mx.array]:
    s = sigmoid(gate)
    return slope * up * s * (1 + gate * (1 - s)), slope * gate * s


@mx.custom_function
def swiglu(gate_up: mx.array) -> mx.array:
    """`ops.swiglu`."""
    return _swiglu(*_halves(gate_up))


@swiglu.vjp
def _swiglu_vjp(gate_up: mx.array, slope: mx.array, _: mx.array) -> mx.array:
    return mx.concatenate(_swiglu_slopes(*_halves(gate_up), slope), axis=-1)


@mx.custom_function
def logsumexp(logits: mx.array) -> mx.array:
    """Over the last axis, which goes."""
    top = logits.max(axis=-1, keepdims=True)
    return (mx.log(_exp(logits - top).sum(axis=-1, keepdims=True)) + top).squeeze(-1)


@logsumexp.vjp
def _logsumexp_vjp(logits: mx.array, slope: mx.array, total: mx.array) -> mx.array:
    return _exp(logits - total[:, None]) * slope[:, None]


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """-log p(target) of each row. logits (R, V), targets (R,) → (R,)."""
    return logsumexp(logits) - mx.take_along_axis(logits, targets[:, None], axis=-1).squeeze(-1)


def _no_attention(*_: Any) -> mx.array:
    raise AssertionError("in training the cache attends")


TRAINING = Ops(
    plain.linear, plain.embedding, plain.rms_norm, apply_rope, swiglu, _no_attention, lambda function: function
)


class TreeAttention:
    """The cache of a training step: B rows of T tokens, each of which sees what `visible` (B, T, T) allows it."""

    def __init__(self, config: ModelConfig, positions: mx.array, visible: mx.array):
        self.config, self.positions = config, positions.reshape(-1)
        self.rows = positions.shape[0]
        self.hidden = mx.where(visible, 0.0, HIDDEN)[:, None, None]  # (B, 1, 1, T, T)

    def begin(self, num_tokens: int) -> mx.array:
        return self.positions

    def attend(self, _: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        heads, groups = self.config.num_key_value_heads, q.shape[1] // k.shape[1]
        dim = q.shape[2]
        q = (q * dim**-0.5).reshape(self.rows, -1, heads, groups, dim).transpose(0, 2, 3, 1, 4)  # (B, Hkv, G, T, D)
        k = k.reshape(self.rows, -1, heads, 1, dim).transpose(0, 2, 3, 4, 1)  # (B, Hkv, 1, D, T)
        v = v.reshape(self.rows, -1, heads, 1, dim).transpose(0, 2, 3, 1, 4)  # (B, Hkv, 1, T, D)
        tiles = []
        for start in range(0, q.shape[3], TILE):
            end = min(start + TILE, q.shape[3])  # no ancestor stands behind its descendant
            scores = q[:, :, :, start:end] @ k[..., :end] + self.hidden[..., start:end, :end]
            tiles.append(softmax(scores) @ v[:, :, :, :end])
        out = mx.concatenate(tiles, axis=3)  # (B, Hkv, G, T, D)
        return out.transpose(0, 3, 1, 2, 4).reshape(-1, heads * groups, dim)
