"""The operations of training: those of the engine where MLX differentiates them well, own derivatives elsewhere.

MLX's CPU back end takes 17 ns for an `exp`; softmax, SwiGLU and cross entropy therefore use the engine's polynomial
(`fused.exp_nonpositive`), and their derivatives are written out, because that of the polynomial's sixteen operations
would cost more than it.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import mlx.core as mx

from tiny_llm.model import fused
from tiny_llm.model import ops as plain
from tiny_llm.model.fused import exp_nonpositive, sigmoid
from tiny_llm.model.ops import Ops
from tiny_llm.model.rope import apply_rope
from tiny_llm.train.experts import wide_experts

Array1 = Callable[[mx.array], mx.array]
HIDDEN = -1e30  # a score that no softmax sees
TILE = 128  # queries that share a range of keys


# Compiled functions get whole arrays only: with broadcast or strided ones MLX makes loops that do not vectorise.
_exp = mx.compile(exp_nonpositive)


def with_slope(function: Array1, slope: Callable[[mx.array, mx.array, mx.array], mx.array]) -> Array1:
    """The function with its derivative given: slope(input, slope of the output, output)."""
    made = mx.custom_function(function)
    made.vjp(slope)
    return cast(Array1, made)


def _softmax(scores: mx.array) -> mx.array:
    e = _exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _softmax_slope(_: mx.array, slope: mx.array, y: mx.array) -> mx.array:
    return y * (slope - (slope * y).sum(axis=-1, keepdims=True))


def _halves(gate_up: mx.array) -> list[mx.array]:
    return [mx.contiguous(half) for half in mx.split(gate_up, 2, axis=-1)]


def _gated(gate: mx.array, up: mx.array) -> mx.array:
    return gate * sigmoid(gate) * up


def _gated_slopes(gate: mx.array, up: mx.array, slope: mx.array) -> list[mx.array]:
    s = sigmoid(gate)
    return [slope * up * s * (1 + gate * (1 - s)), slope * gate * s]


_compiled_gated: Callable[..., mx.array] = mx.compile(_gated)
_compiled_slopes: Callable[..., list[mx.array]] = mx.compile(_gated_slopes)


def _swiglu(gate_up: mx.array) -> mx.array:
    return _compiled_gated(*_halves(gate_up))


def _swiglu_slope(gate_up: mx.array, slope: mx.array, _: mx.array) -> mx.array:
    return mx.concatenate(_compiled_slopes(*_halves(gate_up), slope), axis=-1)


def _logsumexp(logits: mx.array) -> mx.array:
    top = logits.max(axis=-1, keepdims=True)
    return (mx.log(_exp(logits - top).sum(axis=-1, keepdims=True)) + top).squeeze(-1)


def _logsumexp_slope(logits: mx.array, slope: mx.array, total: mx.array) -> mx.array:
    return _exp(logits - total[:, None]) * slope[:, None]


softmax = with_slope(_softmax, _softmax_slope)  # over the last axis
swiglu = with_slope(_swiglu, _swiglu_slope)  # `ops.swiglu`
logsumexp = with_slope(_logsumexp, _logsumexp_slope)  # over the last axis, which goes


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """-log p(target) of each row. logits (R, V), targets (R,) → (R,)."""
    return logsumexp(logits) - mx.take_along_axis(logits, targets[:, None], axis=-1).squeeze(-1)


def _no_attention(*_: Any) -> mx.array:
    raise AssertionError("in training the cache attends")


TRAINING = Ops(
    plain.linear,
    plain.embedding,
    plain.rms_norm,
    apply_rope,
    swiglu,
    _no_attention,
    lambda function: function,
    experts=wide_experts,
)
EVALUATION = TRAINING._replace(linear=fused.linear)


def _attend_tile(q: mx.array, k: mx.array, v: mx.array, hidden: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Attention of a tile of T queries, whose heads that share keys stand one after the other, as rows.

    q (B, Hkv, G·T, D), k and v (B, Hkv, S, D), hidden (B, T, S) → attended (B, Hkv, G·T, D), and for the derivative the
    exponentials (B, Hkv, G·T, S) and their sums (B, Hkv, G·T, 1). Dividing after the product spares a pass over the
    exponentials.
    """
    length, num_keys = hidden.shape[1:]
    scores = q @ k.swapaxes(-1, -2)
    grouped = scores.reshape(*scores.shape[:2], -1, length, num_keys)
    grouped = grouped + hidden[:, None, None]
    e = _exp(grouped - grouped.max(axis=-1, keepdims=True))
    e = e.reshape(scores.shape)
    total = e.sum(axis=-1, keepdims=True)
    return (e @ v) / total, e, total


def _attend_tile_slopes(
    primals: Sequence[mx.array], slopes: Sequence[mx.array], outputs: Sequence[mx.array]
) -> tuple[mx.array, ...]:
    """The derivatives of `_attend_tile`, where only what it attended has a slope.

    The slope of a score is p · (slope · v - slope · attended), with p = e / total. The second product is the same for
    all keys of a query (FlashAttention, Dao et al., 2022): it is one more column of the first one's matrices.
    """
    q, k, v, hidden = primals
    attended, e, total = outputs
    slope = slopes[0] / total
    shift = (slope * attended).sum(axis=-1, keepdims=True)
    shifted = mx.concatenate([slope, -shift], axis=-1)
    ones = mx.ones((*v.shape[:-1], 1))
    values = mx.concatenate([v, ones], axis=-1)
    score_slope = e * (shifted @ values.swapaxes(-1, -2))
    q_slope = score_slope @ k
    k_slope = score_slope.swapaxes(-1, -2) @ q
    v_slope = e.swapaxes(-1, -2) @ slope
    return q_slope, k_slope, v_slope, mx.zeros_like(hidden)


_differentiable_tile = mx.custom_function(_attend_tile)
_differentiable_tile.vjp(_attend_tile_slopes)
attend_tile = cast(Callable[..., tuple[mx.array, mx.array, mx.array]], _differentiable_tile)


def attend_rows(q: mx.array, k: mx.array, v: mx.array, hidden: mx.array) -> mx.array:
    """Attention of B rows whose T queries stand behind all keys but their own. Result as q.

    q (B·T, Hq, D), k and v (B, S, Hkv, D), hidden (B, T, S): what is added to the scores. Queries go in tiles, none of
    which looks at keys behind it.
    """
    rows, num_keys, heads, dim = k.shape
    groups = q.shape[1] // heads
    q = q * dim**-0.5
    q = q.reshape(rows, -1, heads, groups, dim).transpose(0, 2, 3, 1, 4)  # (B, Hkv, G, T, D)
    k = mx.contiguous(k.swapaxes(1, 2))  # (B, Hkv, S, D)
    v = mx.contiguous(v.swapaxes(1, 2))
    length = q.shape[3]
    tiles = []
    for start in range(0, length, TILE):
        stop = min(start + TILE, length)
        end = num_keys - length + stop
        queries = q[:, :, :, start:stop].reshape(rows, heads, -1, dim)
        attended, _, _ = attend_tile(queries, k[:, :, :end], v[:, :, :end], hidden[:, start:stop, :end])
        tiles.append(attended.reshape(rows, heads, groups, -1, dim))
    out = mx.concatenate(tiles, axis=3)  # (B, Hkv, G, T, D)
    return out.transpose(0, 3, 1, 2, 4).reshape(-1, heads * groups, dim)


class TreeAttention:
    """The cache of a training step: B rows of T tokens, each of which sees what `visible` (B, T, T) allows it.

    No token sees one behind it in its row, since ancestors come first.
    """

    def __init__(self, positions: mx.array, visible: mx.array):
        self.positions, self.rows = positions.reshape(-1), positions.shape[0]
        self.hidden = mx.where(visible, 0.0, HIDDEN)  # (B, T, T)

    def begin(self, num_tokens: int) -> mx.array:
        return self.positions

    def open_buffers(self, num_tokens: int) -> None:
        """Return None: these steps go through `attend`."""

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        k, v = (x.reshape(self.rows, -1, *x.shape[1:]) for x in (k, v))  # (B, T, Hkv, D)
        return attend_rows(q, k, v, self.hidden)
