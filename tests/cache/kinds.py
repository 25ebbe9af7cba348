"""Every kind of cache, and what its attention should give by the definition: loops and float64 in numpy."""

from collections.abc import Callable
from dataclasses import replace

import mlx.core as mx
import numpy as np

from tiny_llm.cache.base import KVCache
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.cache.quantized import QuantizedCache
from tiny_llm.cache.rotating import RotatingCache
from tiny_llm.cache.rotating_quantized import RotatingQuantizedCache
from tiny_llm.config import ModelConfig, RopeConfig
from tiny_llm.model.ops import Ops

CONFIG = ModelConfig("qwen3", 64, 2, 64, 4, 2, 32, 99, 512, 1e-6, RopeConfig(), False, False, True)
MakeCache = Callable[[ModelConfig, Ops], KVCache]
KINDS: dict[str, MakeCache] = {
    "contiguous": lambda config, ops: ContiguousCache(config, ops, step=7),
    "rotating": lambda config, ops: RotatingCache(config, ops, window=9, sinks=2, spare=5, step=4),
    "rotating, no sinks": lambda config, ops: RotatingCache(config, ops, window=6, sinks=0, spare=3),
    "rotating, no spare slots": lambda config, ops: RotatingCache(config, ops, window=8, sinks=3, spare=0),
    "rotating, one recent": lambda config, ops: RotatingCache(config, ops, window=5, sinks=4, spare=2),
    "rotating, 8 bits": lambda config, ops: RotatingQuantizedCache(config, ops, 8, window=9, sinks=2, spare=5, step=4),
    "rotating, 4 bits": lambda config, ops: RotatingQuantizedCache(config, ops, 4, window=6, sinks=0, spare=3),
    "8 bits": lambda config, ops: QuantizedCache(config, ops, 8, step=7),
    "4 bits": lambda config, ops: QuantizedCache(config, ops, 4, step=7),
}
GROUPS = {32: 32, 64: 64, 96: 32, 128: 64}  # head_dim: how many numbers of it share a scale, unless a user says so
WINDOWS = {  # (window, sinks)
    "rotating": (9, 2),
    "rotating, no sinks": (6, 0),
    "rotating, no spare slots": (8, 3),
    "rotating, one recent": (5, 4),
    "rotating, 8 bits": (9, 2),
    "rotating, 4 bits": (6, 0),
}
BITS = {"8 bits": 8, "4 bits": 4, "rotating, 8 bits": 8, "rotating, 4 bits": 4}


def shape(heads: int = 4, kv_heads: int = 2, dim: int = 32) -> ModelConfig:
    return replace(CONFIG, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=dim)


def inputs(config: ModelConfig, length: int, seed: int = 0) -> tuple[mx.array, mx.array, mx.array]:
    """q (T, Hq, D), k and v (T, Hkv, D)."""
    rng = np.random.default_rng(seed)
    heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    q, k, v = (mx.array(rng.standard_normal((length, h, config.head_dim)).astype(np.float32)) for h in heads)
    return q, k, v


def rounded(kind: str, x: mx.array, group_size: int) -> np.ndarray:
    """What a kind of cache keeps of its numbers, in float64."""
    if kind in BITS:
        packed = mx.quantize(x, group_size=group_size, bits=BITS[kind])
        x = mx.dequantize(*packed, group_size=group_size, bits=BITS[kind])
    return np.array(x).astype(np.float64)


def sees(kind: str, query: int, key: int, own_window: int | None = None) -> bool:
    """Whether the token at one position looks at another, by what the kind promises."""
    if key > query or (own_window is not None and query - key >= own_window):
        return False
    window, sinks = WINDOWS.get(kind, (10**9, 0))
    return key < sinks or query - key < window - sinks


def oracle(
    kind: str, q: mx.array, k: mx.array, v: mx.array, group_size: int = 32, own_window: int | None = None
) -> np.ndarray:
    """All queries of a text, (T, Hq, D): one at a time, over the keys that it sees."""
    queries = np.array(q).astype(np.float64)
    keys, values = rounded(kind, k, group_size), rounded(kind, v, group_size)
    out = np.zeros(queries.shape)
    share = q.shape[1] // k.shape[1]
    for t in range(q.shape[0]):
        seen = [s for s in range(t + 1) if sees(kind, t, s, own_window)]
        for h in range(q.shape[1]):
            scores = keys[seen, h // share] @ queries[t, h] * q.shape[2] ** -0.5
            weights = np.exp(scores - scores.max())
            out[t, h] = weights / weights.sum() @ values[seen, h // share]
    return out


def step(cache: KVCache, layer_inputs: list[tuple[mx.array, mx.array, mx.array]], begin: int, end: int) -> list:
    """One step through all layers; what each layer gives."""
    positions = cache.begin(end - begin)
    assert positions.tolist() == list(range(begin, end))
    return [cache.attend(i, *(x[begin:end] for x in qkv)) for i, qkv in enumerate(layer_inputs)]
