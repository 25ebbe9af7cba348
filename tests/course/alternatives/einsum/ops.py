"""The operations with einsum and MLX's own ones."""

import mlx.core as mx

from tiny_llm.model.ops import quantization_of, quantized_product


def linear(x, w):
    if "parts" in w:
        return mx.concatenate([linear(x, part) for part in w["parts"]], axis=-1)
    y = quantized_product(x, w) if "scales" in w else mx.einsum("ti,oi->to", x, w["weight"])
    if "bias" in w:
        y = y + w["bias"]
    return y


def embedding(tokens, w, hidden_size):
    if "scales" in w:
        group_size, bits = quantization_of(w, hidden_size)
        packed = (w["weight"][tokens], w["scales"][tokens], w["biases"][tokens])
        return mx.dequantize(*packed, group_size=group_size, bits=bits)
    return mx.take(w["weight"], tokens, axis=0)


def softmax(x):
    return mx.exp(x - mx.logsumexp(x, axis=-1, keepdims=True))


def silu(x):
    return x * mx.sigmoid(x)


def swiglu(gate_up):
    half = gate_up.shape[-1] // 2
    return silu(gate_up[..., :half]) * gate_up[..., half:]


def rms_norm(x, weight, eps):
    y = x.astype(mx.float32)
    mean = mx.einsum("...d,...d->...", y, y)[..., None] / x.shape[-1]
    return ((y / mx.sqrt(mean + eps)) * weight).astype(x.dtype)
