"""32 values fill `bits` words exactly: each has its word and its shift there, and some go on in the next word."""

import mlx.core as mx

from tiny_llm.model.ops import quantization_of

SMALLEST, WORD = 1e-7, 32


def quantize_groups(w, group_size, bits):
    groups = w.astype(mx.float32).reshape(-1, group_size)
    low, high = groups.min(axis=1), groups.max(axis=1)
    sign = mx.where(mx.abs(low) > mx.abs(high), 1.0, -1.0)
    edge = mx.where(sign > 0, low, high)
    step = sign * mx.maximum((high - low) / (2**bits - 1), SMALLEST)
    rungs = mx.round(edge / step)
    bias = mx.where(rungs == 0, 0.0, edge)
    scale = mx.where(rungs == 0, step, edge / rungs)
    values = mx.minimum(mx.round((groups - bias[:, None]) / scale[:, None]), 2**bits - 1)
    shape = (w.shape[0], -1)
    return (
        values.reshape(w.shape).astype(mx.uint32),
        scale.reshape(shape).astype(w.dtype),
        bias.reshape(shape).astype(w.dtype),
    )


def pack(values, bits):
    blocks = values.reshape(values.shape[0], -1, WORD)
    words = [mx.zeros(blocks.shape[:2], mx.uint32) for _ in range(bits)]
    for i in range(WORD):
        word, shift = divmod(i * bits, WORD)
        words[word] = words[word] | (blocks[..., i] << shift)
        if shift + bits > WORD:
            words[word + 1] = words[word + 1] | (blocks[..., i] >> (WORD - shift))
    return mx.stack(words, axis=-1).reshape(values.shape[0], -1)


def unpack(packed, bits):
    words = packed.reshape(packed.shape[0], -1, bits)
    values = []
    for i in range(WORD):
        word, shift = divmod(i * bits, WORD)
        value = words[..., word] >> shift
        if shift + bits > WORD:
            value = value | (words[..., word + 1] << (WORD - shift))
        values.append(value & (2**bits - 1))
    return mx.stack(values, axis=-1).reshape(packed.shape[0], -1)


def dequantize(packed, scales, biases, group_size, bits):
    values = unpack(packed, bits)
    wide = [mx.repeat(each, group_size, axis=1) for each in (scales, biases)]
    return wide[0] * values.astype(scales.dtype) + wide[1]


def quantized_linear(x, w):
    group_size, bits = quantization_of(w, x.shape[-1])
    dense = dequantize(w["weight"], w["scales"], w["biases"], group_size, bits)
    return mx.einsum("ti,oi->to", x, dense) + w.get("bias", 0)
