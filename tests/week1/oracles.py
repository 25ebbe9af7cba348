"""What week 1's functions should give, by the definition: loops and float64 in numpy, and no word of the engine's."""

import mlx.core as mx
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def normal(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Normally distributed numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def f64(x: mx.array | npt.ArrayLike) -> Array:
    return np.array(x.astype(mx.float32) if isinstance(x, mx.array) else x, np.float64)


def softmax(scores: Array) -> Array:
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def attend(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: npt.NDArray[np.bool_] | None = None) -> Array:
    """One query at a time, and only the keys that it sees. q (…, T, D), k and v (…, S, D)."""
    queries, keys, values = f64(q), f64(k), f64(v)
    out = np.zeros((*queries.shape[:-1], values.shape[-1]))
    for *lead, t in np.ndindex(*queries.shape[:-1]):
        at = tuple(lead)
        seen = np.full(keys.shape[-2], True) if mask is None else mask[t]
        scores = keys[at][seen] @ queries[(*at, t)] * scale
        out[(*at, t)] = softmax(scores) @ values[at][seen]
    return out


def turn(x: Array, angles: Array, gain: float = 1.0) -> Array:
    """Pairs (x_i, x_{i+D/2}) as complex numbers, times e^{i·angle}. x (T, H, D), angles (T, D/2)."""
    half = x.shape[-1] // 2
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, None] * gain
    return np.concatenate([z.real, z.imag], axis=-1)


def angles(positions: npt.ArrayLike, dim: int, theta: float) -> Array:
    return np.outer(positions, theta ** (-np.arange(0, dim, 2) / dim))


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight


def silu(x: Array) -> Array:
    return x * 0.5 * (1 + np.tanh(x / 2))
