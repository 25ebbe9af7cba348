"""The logits of a Llama or Qwen in float64, in NumPy alone: what all contenders approximate."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

Weights = dict[str, np.ndarray]


def read_weights(folder: Path) -> Weights:
    """Return the matrices of an MLX directory by name, unpacked in float64."""
    settings = json.loads((folder / "config.json").read_text()).get("quantization", {})
    stored = {name: array for file in folder.glob("*.safetensors") for name, array in mx.load(str(file)).items()}
    weights: Weights = {}
    for name in stored:
        path, _, part = name.rpartition(".")
        if part != "weight":
            continue
        if f"{path}.scales" in stored:
            bits = settings.get(path, settings)["bits"]
            weights[path] = unpack(*(array64(stored[f"{path}.{p}"]) for p in ("weight", "scales", "biases")), bits)
        else:
            weights[path] = array64(stored[name])
    return weights


def array64(array: mx.array) -> np.ndarray:
    return np.array(array if array.dtype == mx.uint32 else array.astype(mx.float32)).astype(
        np.uint32 if array.dtype == mx.uint32 else np.float64
    )


def unpack(words: np.ndarray, scales: np.ndarray, biases: np.ndarray, bits: int) -> np.ndarray:
    """Return scale * code + bias for each code; the first code of a word stands in its lowest bits."""
    places = np.arange(32 // bits, dtype=np.uint32) * np.uint32(bits)
    codes = (words[..., None] >> places) & np.uint32(2**bits - 1)
    rows, groups = scales.shape
    grouped = codes.reshape(rows, groups, -1).astype(np.float64)
    return (grouped * scales[..., None] + biases[..., None]).reshape(rows, -1)


def exact_logits(folder: Path, prompts: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the logits after each prompt, (prompts, vocabulary), of a Llama or of a Qwen without biases."""
    config = json.loads((folder / "config.json").read_text())
    weights = read_weights(folder)
    head = weights.get("lm_head", weights["model.embed_tokens"])
    rows = [hidden_state(config, weights, list(prompt)) @ head.T for prompt in prompts]
    return np.array(rows)


def hidden_state(config: dict, weights: Weights, tokens: list[int]) -> np.ndarray:
    """Return the last token's final hidden state."""
    eps = config["rms_norm_eps"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    angles = np.arange(len(tokens))[:, None] * config["rope_theta"] ** -(np.arange(0, dim, 2) / dim)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    x = weights["model.embed_tokens"][tokens]
    for layer in layers(config, weights):
        normed = rms_norm(x, layer["input_layernorm"], eps)
        q = rotate((normed @ layer["self_attn.q_proj"].T).reshape(len(tokens), heads, dim), cos, sin)
        k = rotate((normed @ layer["self_attn.k_proj"].T).reshape(len(tokens), kv_heads, dim), cos, sin)
        v = (normed @ layer["self_attn.v_proj"].T).reshape(len(tokens), kv_heads, dim)
        x = x + attention(q, k, v) @ layer["self_attn.o_proj"].T
        normed = rms_norm(x, layer["post_attention_layernorm"], eps)
        gate = normed @ layer["mlp.gate_proj"].T
        up = normed @ layer["mlp.up_proj"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ layer["mlp.down_proj"].T
    return rms_norm(x[-1], weights["model.norm"], eps)


def layers(config: dict, weights: Weights) -> Iterator[Weights]:
    for i in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{i}."
        yield {name.removeprefix(prefix): array for name, array in weights.items() if name.startswith(prefix)}


def rms_norm(x: np.ndarray, gain: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gain


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotate the pairs (i, i + dim / 2) of each head, (T, heads, dim)."""
    left, right = np.split(x, 2, -1)
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], -1)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Causal attention of (T, heads, dim) over (T, kv_heads, dim), as (T, heads * dim)."""
    length, heads, dim = q.shape
    k, v = (a.repeat(heads // a.shape[1], 1) for a in (k, v))
    scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(dim)
    scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    return np.einsum("hts,shd->thd", shares, v).reshape(length, -1)


def error(found: np.ndarray, exact: np.ndarray) -> float:
    """Return the rms error over the standard deviation of the exact logits, the mean over the prompts."""
    rms = np.sqrt(np.mean((found - exact) ** 2, -1))
    return float(np.mean(rms / exact.std(-1)))
