"""The fastest twin of each operation of `ops` for the current device.

On a GPU these are MLX's fused kernels. On a CPU, MLX falls back to single operations and its `exp` is scalar; there
the twins arrange plain operations so that `mx.compile` makes vectorised loops of them. bench/ops.py measures each gain.
"""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from tiny_llm.config import ModelConfig
from tiny_llm.model import ops as plain
from tiny_llm.model.attention import causal_mask
from tiny_llm.model.cached_attention import LOWEST, packed_attention_cpu, packed_attention_product
from tiny_llm.model.moe import chosen_experts
from tiny_llm.model.ops import Ops, Weight
from tiny_llm.model.rope import Rotation

UNPACKED_ROWS = 8  # from so many rows on, unpacking the whole weight once is faster than unpacking it for each row
QUERY_TILE = 128  # queries in a tile of the CPU's attention
MANY_ROWS = 64  # from so many rows on, a contiguous copy pays: only then are compiled loops vectorised
STRIP = 64  # rows that are turned into columns at a time: turning the whole matrix at once takes twice as long
SCALAR_EXP_LIMIT = 2048  # with fewer scores, one softmax call is faster than its vectorised parts


def linear(x: mx.array, w: Weight) -> mx.array:
    """Compute `ops.linear`, unpacking a packed weight only once where x has many rows.

    MLX's CPU product would unpack it again for each row. A dense weight is read fastest in the layout of `by_columns`.
    """
    if "parts" in w:
        outputs = [linear(x, part) for part in w["parts"]]
        return mx.concatenate(outputs, axis=-1)
    if "scales" in w and x.shape[0] >= UNPACKED_ROWS:
        w = unpacked(w, x.shape[-1])
    return plain.linear(x, w)


def by_columns(weights: Mapping[str, Any], config: ModelConfig) -> None:
    """Lay out a model's dense matrices by columns, in place: a product of few rows takes up to a third less time.

    Shapes stay (out, in); in memory the numbers follow each other in the order in which x Wᵀ reads them. The embedding
    and the stacks of experts stay as they are, by rows.
    """
    for layer in weights["layers"]:
        for name, weight in (layer | layer.get("shared_expert", {})).items():
            if name not in ("experts", "shared_expert"):
                _lay_out(weight)
    if "lm_head" in weights:
        _lay_out(weights["lm_head"])


def _lay_out(weight: Weight) -> None:
    for part in weight.get("parts", [weight]):
        rows = part["weight"]
        if "scales" in part or rows.ndim != 2:
            continue
        strips = []
        for begin in range(0, rows.shape[0], STRIP):
            strip = rows[begin : begin + STRIP]
            strips.append(mx.contiguous(strip.T))
        part["weight"] = mx.concatenate(strips, axis=1).T
        mx.eval(part["weight"])
        mx.clear_cache()


def unpacked(w: Weight, width: int) -> Weight:
    """Return a packed weight as a dense one. `width`: the length of an unpacked row."""
    group_size, bits = plain.quantization_of(w, width)
    dense = {"weight": mx.dequantize(w["weight"], w["scales"], w["biases"], group_size=group_size, bits=bits)}
    if "bias" in w:
        dense["bias"] = w["bias"]
    return dense


def exp_nonpositive(x: mx.array) -> mx.array:
    """Compute e^x for x ≤ 0 as (e^(x/32))^32, e^(x/32) by its Taylor polynomial of degree 4.

    These are only products and sums, so that the compiled loop is vectorised. The error is at most 2e-6; below -32 the
    result stays at about 2e-14.
    """
    y = mx.maximum(x * (1 / 32), -1.0)
    e = 1 / 6 + y * (1 / 24)
    e = 1 / 2 + y * e
    e = 1 + y * e
    e = 1 + y * e
    for _ in range(5):
        e = e * e
    return e


def sigmoid(x: mx.array) -> mx.array:
    """Compute 1 / (1 + e^-x) from the exponential of -|x|, which is never too large."""
    e = exp_nonpositive(-mx.abs(x))
    upper = mx.where(x >= 0, 1.0, e)
    return upper / (1 + e)


def swiglu_cpu(gate_up: mx.array) -> mx.array:
    """Compute `ops.swiglu` with the vectorised exponential."""
    gate, up = mx.split(gate_up, 2, axis=-1)
    if gate_up.shape[0] >= MANY_ROWS:
        gate = mx.contiguous(gate)
        up = mx.contiguous(up)
    return gate * sigmoid(gate) * up


def rope_cpu(x: mx.array, rotation: Rotation) -> mx.array:
    """Compute `rope.apply_rope` as one loop, over x and a view of x in which the two of each pair have changed places.

    Same numbers to the last bit, in place of a loop for each half and two copies. x (T, H, D).
    """
    num_tokens, heads, dim = x.shape
    pairs = x.astype(mx.float32).reshape(num_tokens, heads, 2, dim // 2)
    changed = pairs[:, :, ::-1]
    cos = rotation.cos[:, None, None]  # (T, 1, 1, D/2)
    sin = rotation.sin[:, None, None]
    sign = mx.array([[-1.0], [1.0]])
    turned = pairs * cos + changed * (sin * sign)
    return turned.reshape(x.shape).astype(x.dtype)


def rope_gpu(x: mx.array, rotation: Rotation) -> mx.array:
    """Compute `rope.apply_rope` in one kernel. x (T, H, D): each token is a batch row with its own offset."""
    if rotation.gain != 1.0:
        x = x * rotation.gain
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


def attention_cpu(q: mx.array, k: mx.array, v: mx.array, scale: float, window: int | None = None) -> mx.array:
    """Compute `attention.causal_attention` in tiles of queries, each with only the keys that its queries may see.

    Half of a prompt's scores are never computed, and never more than one tile's scores exist. q (T, Hq, D), k and v
    (Hkv, S, D), result (T, Hq, D).
    """
    num_queries, num_heads, dim = q.shape
    num_kv_heads, num_keys, _ = k.shape
    before = num_keys - num_queries  # keys before query 0
    q = (q * scale).reshape(num_queries, num_kv_heads, -1, dim)
    q = q.transpose(1, 2, 0, 3)  # (Hkv, G, T, D)
    tiles = []
    for first in range(0, num_queries, QUERY_TILE):
        tile = q[:, :, first : first + QUERY_TILE]
        length = tile.shape[2]
        begin = 0
        end = before + first + length
        if window is not None:
            begin = max(0, before + first + 1 - window)
        mask = _mask_of_tile(length, begin, end, window)
        tiles.append(_attend_tile(tile, k[:, begin:end], v[:, begin:end], mask))
        if length < num_queries:
            mx.eval(tiles[-1])  # because MLX would reserve memory for the scores of all tiles at once
    out = tiles[0]
    if len(tiles) > 1:
        out = mx.concatenate(tiles, axis=2)  # (Hkv, G, T, D)
    out = out.transpose(2, 0, 1, 3)
    return out.reshape(num_queries, num_heads, dim)


def _mask_of_tile(length: int, begin: int, end: int, window: int | None) -> mx.array | None:
    """Return the mask (T, S) of `length` queries on the keys from `begin` to `end`; None where each sees all of them.

    The last query stands at the last key.
    """
    width = end - begin
    if window is not None and (length > 1 or begin > 0):
        return causal_mask(length, width, window)
    if length > 1:
        return mx.tri(length, width, width - length, dtype=mx.bool_)  # each query sees the keys up to its own
    return None


def _attend_tile(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
    """Compute the attention of a tile. q (Hkv, G, T, D) scaled, k and v (Hkv, S, D), mask (T, S), result like q."""
    shape = q.shape
    num_kv_heads, _, _, dim = shape
    num_keys = k.shape[1]
    rows = q.reshape(num_kv_heads, -1, dim)  # (Hkv, G·T, D): the heads of a group read the same K and V
    scores = rows @ k.swapaxes(1, 2)
    scores = scores.reshape(*shape[:3], num_keys)
    if mask is not None:
        scores = mx.where(mask, scores, LOWEST)
    if scores.size < SCALAR_EXP_LIMIT:
        weights = mx.softmax(scores, axis=-1)
        out = weights.reshape(num_kv_heads, -1, num_keys) @ v
        return out.reshape(shape)
    top = scores.max(axis=-1, keepdims=True)
    e = _exp_shifted(scores, top)
    total = e.sum(axis=-1, keepdims=True)
    out = e.reshape(num_kv_heads, -1, num_keys) @ v
    return out.reshape(shape) / total


def masked_attention_cpu(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None) -> mx.array:
    """Compute `cached_attention.masked_attention` as one tile: its caller keeps the number of queries small."""
    num_queries, num_heads, dim = q.shape
    num_kv_heads = k.shape[0]
    q = (q * scale).reshape(num_queries, num_kv_heads, -1, dim)
    q = q.transpose(1, 2, 0, 3)  # (Hkv, G, T, D)
    out = _attend_tile(q, k, v, mask)
    out = out.transpose(2, 0, 1, 3)
    return out.reshape(num_queries, num_heads, dim)


def masked_attention_gpu(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | str | None) -> mx.array:
    """Compute `cached_attention.masked_attention` by MLX's fused kernel."""
    q = q.swapaxes(0, 1)[None]  # (1, Hq, T, D)
    out = mx.fast.scaled_dot_product_attention(q, k[None], v[None], scale=scale, mask=mask)
    return out[0].swapaxes(0, 1)


def attention_gpu(q: mx.array, k: mx.array, v: mx.array, scale: float, window: int | None = None) -> mx.array:
    """Compute `attention.causal_attention` by MLX's fused kernel."""
    num_queries = q.shape[0]
    num_keys = k.shape[1]
    mask: mx.array | str | None = None
    if num_queries > 1:
        mask = "causal"
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
    chosen_experts,
)
CPU = Ops(
    linear,
    plain.embedding,
    mx.fast.rms_norm,
    rope_cpu,
    swiglu_cpu,
    attention_cpu,
    mx.compile,
    masked_attention_cpu,
    packed_attention_cpu,
    chosen_experts,
    lay_out=by_columns,
)


def choose_ops(name: str) -> Ops:
    """Return a table: "plain" has the readable operations, "fused" the fastest for the default device."""
    if name not in ("plain", "fused"):
        raise ValueError(f"ops: expected plain or fused, found {name!r}")
    if name == "plain":
        return plain.PLAIN
    if mx.default_device() == mx.gpu:
        return GPU
    return CPU
