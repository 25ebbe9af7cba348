"""The fastest twin of each operation on the current device; the plain ones are in `ops`.

On a GPU these are MLX's fused kernels. On a CPU, where MLX falls back to single operations and `exp` is scalar,
they are arrangements of plain operations that `mx.compile` turns into vectorised loops; bench/ops.py says what
each one gains.
"""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from tiny_llm.model import ops as plain
from tiny_llm.model.attention import causal_mask
from tiny_llm.model.cached_attention import packed_attention_cpu, packed_attention_product
from tiny_llm.model.ops import Ops, Weight
from tiny_llm.model.rope import Rotation, apply_rope

UNPACKED_ROWS = 8  # from here unpacking a whole weight is faster than doing it in each row's product
QUERY_TILE = 128  # queries per tile of the CPU's attention
MANY_ROWS = 64  # from here copying what lies apart pays: only over contiguous arrays are compiled loops vectorised
STRIP = 64  # rows that are turned into columns at a time: the whole matrix takes twice as long
SCALAR_EXP_LIMIT = 2048  # below this many scores one softmax call costs less than its vectorised parts


def linear(x: mx.array, w: Weight) -> mx.array:
    """`ops.linear`. MLX's CPU product unpacks a packed weight for each row again: where there are many it is unpacked
    once. A dense one is read fastest where `by_columns` has laid it out."""
    if "parts" in w:
        return mx.concatenate([linear(x, part) for part in w["parts"]], axis=-1)
    if "scales" in w and x.shape[0] >= UNPACKED_ROWS:
        w = unpacked(w, x.shape[-1])
    return plain.linear(x, w)


def by_columns(weights: Mapping[str, Any]) -> None:
    """Lay out a model's dense matrices by columns, in place: up to a third less time for a product of few rows.

    Shapes stay (out, in), and the numbers in memory stand as x Wᵀ takes them. An embedding stays as it is, by rows.
    """
    layers = (weight for layer in weights["layers"] for weight in layer.values())
    for weight in (*layers, weights.get("lm_head", {})):
        for part in weight.get("parts", [weight]):
            if "scales" not in part and part and part["weight"].ndim == 2:
                rows = part["weight"]
                strips = [mx.contiguous(rows[i : i + STRIP].T) for i in range(0, rows.shape[0], STRIP)]
                part["weight"] = mx.concatenate(strips, axis=1).T
                mx.eval(part["weight"])
                mx.clear_cache()


def unpacked(w: Weight, width: int) -> Weight:
    """A packed weight, whose rows are `width` long, as a dense one."""
    group_size, bits = plain.quantization_of(w, width)
    dense = mx.dequantize(w["weight"], w["scales"], w["biases"], group_size=group_size, bits=bits)
    return {"weight": dense} | ({"bias": w["bias"]} if "bias" in w else {})


def exp_nonpositive(x: mx.array) -> mx.array:
    """e^x for x ≤ 0 by (Taylor of degree 4 at x/32)^32: only products and sums, so the loop vectorises.

    Within 2e-6 of the true value; below -32 it stays at about 2e-14.
    """
    y = mx.maximum(x * (1 / 32), -1.0)
    y = 1 + y * (1 + y * (1 / 2 + y * (1 / 6 + y * (1 / 24))))
    for _ in range(5):
        y = y * y
    return y


def sigmoid(x: mx.array) -> mx.array:
    """1 / (1 + e^-x), from the exponential of -|x| alone."""
    e = exp_nonpositive(-mx.abs(x))
    return mx.where(x >= 0, 1.0, e) / (1 + e)


def swiglu_cpu(gate_up: mx.array) -> mx.array:
    """`ops.swiglu` on the vectorised exponential."""
    gate, up = mx.split(gate_up, 2, axis=-1)
    if gate_up.shape[0] >= MANY_ROWS:
        gate, up = mx.contiguous(gate), mx.contiguous(up)
    return gate * sigmoid(gate) * up


def rope_gpu(x: mx.array, rotation: Rotation) -> mx.array:
    """`rope.apply_rope` as one kernel. x (T, H, D): each token is a batch row with its own offset."""
    x = x if rotation.gain == 1.0 else x * rotation.gain
    rows = mx.fast.rope(
        x[:, :, None],  # (T, H, 1, D)
        x.shape[-1],
        traditional=False,
        base=None,
        scale=1.0,
        offset=rotation.positions,
        freqs=rotation.periods,
    )
    return rows[:, :, 0]


@mx.compile
def _exp_shifted(scores: mx.array, top: mx.array) -> mx.array:
    return exp_nonpositive(scores - top)


def _masked(scores: mx.array, mask: mx.array | None) -> mx.array:
    return scores if mask is None else mx.where(mask, scores, -1e30)


def attention_cpu(q: mx.array, k: mx.array, v: mx.array, scale: float, window: int | None = None) -> mx.array:
    """`attention.causal_attention` in tiles of queries, none of which looks at keys that it must not see.

    Half of a prompt's scores are never computed and the score matrix never exists as a whole. q (T, Hq, D),
    k and v (Hkv, S, D), result (T, Hq, D).
    """
    num_queries, num_heads, dim = q.shape
    num_kv_heads, num_keys, _ = k.shape
    first = num_keys - num_queries  # position of query 0
    q = (q * scale).reshape(num_queries, num_kv_heads, -1, dim).transpose(1, 2, 0, 3)  # (Hkv, G, T, D)
    tiles = []
    for t in range(0, num_queries, QUERY_TILE):
        tile = q[:, :, t : t + QUERY_TILE]
        length = tile.shape[2]
        end = first + t + length
        begin = 0 if window is None else max(0, first + t + 1 - window)
        masked = length > 1 or (window is not None and begin > 0)
        mask = causal_mask(length, end - begin, window) if masked else None
        tiles.append(_attend_tile(tile, k[:, begin:end], v[:, begin:end], mask))
        if length < num_queries:
            mx.eval(tiles[-1])  # MLX reserves memory ahead of the work: without this, for the scores of all tiles
    out = tiles[0] if len(tiles) == 1 else mx.concatenate(tiles, axis=2)  # (Hkv, G, T, D)
    return out.transpose(2, 0, 1, 3).reshape(num_queries, num_heads, dim)


def _attend_tile(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
    """q (Hkv, G, T, D) already scaled, k and v (Hkv, S, D), mask (T, S) → (Hkv, G, T, D)."""
    shape = q.shape
    rows = q.reshape(shape[0], -1, shape[3])  # (Hkv, G·T, D): the heads of a group read the same K and V
    scores = (rows @ k.swapaxes(1, 2)).reshape(*shape[:3], -1)  # (Hkv, G, T, S)
    scores = _masked(scores, mask)
    if scores.size < SCALAR_EXP_LIMIT:
        weights = mx.softmax(scores, axis=-1)
        return (weights.reshape(shape[0], -1, k.shape[1]) @ v).reshape(shape)
    e = _exp_shifted(scores, scores.max(axis=-1, keepdims=True))
    mixed = e.reshape(shape[0], -1, k.shape[1]) @ v
    return mixed.reshape(shape) / e.sum(axis=-1, keepdims=True)


def masked_attention_cpu(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None) -> mx.array:
    """`cached_attention.masked_attention` as one tile: its caller keeps the number of queries small."""
    num_queries, num_heads, dim = q.shape
    q = (q * scale).reshape(num_queries, k.shape[0], -1, dim).transpose(1, 2, 0, 3)  # (Hkv, G, T, D)
    return _attend_tile(q, k, v, mask).transpose(2, 0, 1, 3).reshape(num_queries, num_heads, dim)


def masked_attention_gpu(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | str | None) -> mx.array:
    """`cached_attention.masked_attention` by MLX's fused kernel."""
    out = mx.fast.scaled_dot_product_attention(q.swapaxes(0, 1)[None], k[None], v[None], scale=scale, mask=mask)
    return out[0].swapaxes(0, 1)


def attention_gpu(q: mx.array, k: mx.array, v: mx.array, scale: float, window: int | None = None) -> mx.array:
    """`attention.causal_attention` by MLX's fused kernel."""
    num_queries, num_keys = q.shape[0], k.shape[1]
    mask: mx.array | str | None = "causal" if num_queries > 1 else None
    if window is not None and num_keys > window:
        mask = causal_mask(num_queries, num_keys, window)
    return masked_attention_gpu(q, k, v, scale, mask)


GPU = Ops(
    plain.linear,
    plain.embedding,
    mx.fast.rms_norm,
    rope_gpu,
    plain.swiglu,
    attention_gpu,
    mx.compile,
    masked_attention_gpu,
    packed_attention_product,
)
CPU = Ops(
    linear,
    plain.embedding,
    mx.fast.rms_norm,
    apply_rope,
    swiglu_cpu,
    attention_cpu,
    mx.compile,
    masked_attention_cpu,
    packed_attention_cpu,
    lay_out=by_columns,
)


def choose(name: str) -> Ops:
    """The one switch: "plain" for the readable operations, "fused" for the fastest on the default device."""
    if name not in ("plain", "fused"):
        raise ValueError(f"ops: expected plain or fused, found {name!r}")
    if name == "plain":
        return plain.PLAIN
    return GPU if mx.default_device() == mx.gpu else CPU
