"""The definition of each kernel in numpy's float64."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np


def float64(x: Any) -> Any:
    """Floats to float64; whole numbers, which may be packed, as they are."""
    if isinstance(x, tuple):
        return tuple(map(float64, x))
    if not isinstance(x, mx.array):
        return x
    return np.array(x) if mx.issubdtype(x.dtype, mx.integer) else np.array(x.astype(mx.float32), np.float64)


def rms(x: Any, weight: Any, eps: float) -> Any:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def turn(x: Any, cosine: Any, sine: Any, halves: bool) -> Any:
    """As a product of complex numbers."""
    dim = x.shape[-1]
    pairs = [(i, i + dim // 2) if halves else (2 * i, 2 * i + 1) for i in range(dim // 2)]
    left, right = np.array(pairs).T
    turned = (x[..., left] + 1j * x[..., right]) * (cosine + 1j * sine)[:, None]
    out = np.empty_like(x)
    out[..., left], out[..., right] = turned.real, turned.imag
    return out


def soft(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def swish(gate_up: Any) -> Any:
    gate, up = np.split(gate_up, 2, -1)
    return gate / (1 + np.exp(-gate)) * up


def dequantized(weight: Any, scales: Any, biases: Any, width: int) -> Any:
    """Rows of `width` numbers: a packed row is a string of bits, the lowest of each number first."""
    bits, group = weight.shape[-1] * 32 // width, width // scales.shape[-1]
    string = np.unpackbits(np.ascontiguousarray(weight).astype("<u4").view(np.uint8), axis=-1, bitorder="little")
    q = string.reshape(*string.shape[:-1], width, bits) @ (1 << np.arange(bits))
    return q * np.repeat(scales, group, -1) + np.repeat(biases, group, -1)


def product(x: Any, weight: Any, scales: Any, biases: Any) -> Any:
    return x @ dequantized(weight, scales, biases, x.shape[-1]).swapaxes(-1, -2)


def products_of_experts(x: Any, choices: Any, weight: Any, scales: Any, biases: Any) -> Any:
    """Choice by choice: its row of x with the matrix of its expert."""
    rows, experts, _ = choices
    results = []
    for row, expert in zip(rows, experts, strict=True):
        results.append(product(x[row], weight[expert], scales[expert], biases[expert]))
    return np.array(results)


def attention_parts(q: Any, k: Any, v: Any, lengths: Any, scale: float, window: int, chunk: int) -> list[Any]:
    """Head by head and chunk by chunk: Σ exp(s - top) v, top = max s, Σ exp(s - top)."""
    rows = []
    for b, h in np.ndindex(*q.shape[:2]):
        seen = slice(max(0, lengths[b] - window) if window else 0, lengths[b])
        keys, values = (x[b, h * x.shape[1] // q.shape[1], seen] for x in (k, v))
        parts = []
        for begin in range(0, len(keys), chunk):
            scores = scale * keys[begin : begin + chunk] @ q[b, h]
            p = np.exp(scores - scores.max())
            parts.append((p @ values[begin : begin + chunk], scores.max(), p.sum()))
        rows.append(tuple(np.array(x) for x in zip(*parts, strict=True)))
    return [np.stack(x) for x in zip(*rows, strict=True)]


def packed_parts(q: Any, k: Any, v: Any, *rest: Any) -> list[Any]:
    return attention_parts(q, dequantized(*k, q.shape[-1]), dequantized(*v, q.shape[-1]), *rest)


def merged(parts: Any, tops: Any, sums: Any, _: Any) -> Any:
    factors = np.exp(tops)
    return np.einsum("rs,rsd->rd", factors, parts) / (factors * sums).sum(1, keepdims=True)


def causal_attention(q: Any, k: Any, v: Any, spans: Any, scale: float, window: int, near: Any = None) -> Any:
    """Query by query; bit d of a query's word in `near` says whether it sees the key d before its own."""
    out, row, start = np.empty_like(q), 0, 0
    for new, total in spans:
        for i in range(new):
            end = total - new + i + 1
            seen = list(range(start + (max(0, end - window) if window else 0), start + end))
            if near is not None:
                last, word = seen[-1], int(near[row + i])
                seen = [key for key in seen if last - key > 63 or word >> (last - key) & 1]
            for h in range(q.shape[1]):
                kv_head = h * k.shape[0] // q.shape[1]
                out[row + i, h] = soft(scale * k[kv_head, seen] @ q[row + i, h]) @ v[kv_head, seen]
        row, start = row + new, start + total
    return out


def of_table(pool: Any, table: Any, length: int) -> Any:
    """A sequence's first slots, block by block: (Hkv, length, D)."""
    return np.concatenate([pool[:, block] for block in table], axis=1)[:, :length]


def paged_parts(q: Any, keys: Any, values: Any, tables: Any, lengths: Any, *rest: Any) -> list[Any]:
    width = tables.shape[1] * keys.shape[2]
    k, v = (np.stack([of_table(pool, table, width) for table in tables]) for pool in (keys, values))
    return attention_parts(q, k, v, lengths, *rest)


def paged_causal(q: Any, keys: Any, values: Any, tables: Any, spans: Any, *rest: Any) -> Any:
    rows = list(zip(tables, spans, strict=True))
    k, v = (np.concatenate([of_table(pool, table, n) for table, (_, n) in rows], axis=1) for pool in (keys, values))
    return causal_attention(q, k, v, spans, *rest)


def split_product(x: Any, weight: Any, scales: Any, biases: Any, splits: int) -> Any:
    w = dequantized(weight, scales, biases, x.shape[1])
    depth = -(-x.shape[1] // splits // 32) * 32
    return np.stack([x[:, k : k + depth] @ w[:, k : k + depth].T for k in range(0, x.shape[1], depth)])


ORACLES: dict[str, Callable[..., list[Any]]] = {
    "axpby": lambda x, y, a, b: [a * x + b * y],
    "rms_norm": lambda x, w, eps: [rms(x, w, eps)],
    "residual_rms_norm": lambda x, r, w, eps: [x + r, rms(x + r, w, eps)],
    "rope": lambda *arguments: [turn(*arguments)],
    "swiglu": lambda x: [swish(x)],
    "softmax": lambda x: [soft(x)],
    "quantized_matvec": lambda *arguments: [product(*arguments)],
    "expert_rows": lambda *arguments: [products_of_experts(*arguments)],
    "quantized_rows": lambda *arguments: [product(*arguments)],
    "quantized_tiles": lambda *arguments: [split_product(*arguments)],
    "split_sum": lambda parts, _: [parts.sum(0)],
    "flash_attention": lambda *arguments: [causal_attention(*arguments)],
    "decode_attention": attention_parts,
    "copy_blocks": lambda pool, sources: [np.stack([pool[:, int(block)] for block in sources], axis=1)],
    "paged_decode": paged_parts,
    "paged_prefill": lambda *arguments: [paged_causal(*arguments)],
    "packed_attention": packed_parts,
    "merge_attention": lambda *arguments: [merged(*arguments)],
}
