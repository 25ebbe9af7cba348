"""The operations row by row."""

import mlx.core as mx

from tiny_llm.model.ops import quantization_of, quantized_product


def linear(x, w):
    if "parts" in w:
        return mx.concatenate([linear(x, part) for part in w["parts"]], axis=-1)
    product = quantized_product(x, w) if "scales" in w else (w["weight"] @ x.T).T
    return product + w.get("bias", 0)


def embedding(tokens, w, hidden_size):
    if "scales" in w:
        group_size, bits = quantization_of(w, hidden_size)
        packed = (w["weight"][tokens], w["scales"][tokens], w["biases"][tokens])
        return mx.dequantize(*packed, group_size=group_size, bits=bits)
    return mx.stack([w["weight"][token] for token in tokens.tolist()])


def softmax(x):
    return mx.softmax(x, axis=-1)


def silu(x):
    return 0.5 * x * (1 + mx.tanh(0.5 * x))


def swiglu(gate_up):
    half = gate_up.shape[-1] // 2
    columns = [silu(gate_up[..., i]) * gate_up[..., i + half] for i in range(half)]
    return mx.stack(columns, axis=-1)


def rms_norm(x, weight, eps):
    y = x.astype(mx.float32)
    root = mx.sqrt((y**2).sum(axis=-1, keepdims=True) / x.shape[-1] + eps)
    return (y / root).astype(x.dtype) * weight
