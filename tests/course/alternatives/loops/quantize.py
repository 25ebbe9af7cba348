"""Group by group, value by value."""

import mlx.core as mx

from tiny_llm.model.ops import quantization_of

SMALLEST, WORD = 1e-7, 32


def quantize_groups(w, group_size, bits):
    values, scales, biases = [], [], []
    for row in w.astype(mx.float32).split(w.shape[0]):
        for group in row[0].split(w.shape[1] // group_size):
            low, high = group.min(), group.max()
            if abs(low.item()) > abs(high.item()):
                edge, step = low, mx.maximum((high - low) / (2**bits - 1), SMALLEST)
            else:
                edge, step = high, mx.minimum((low - high) / (2**bits - 1), -SMALLEST)
            rungs = mx.round(edge / step)
            scale, bias = (edge / rungs, edge) if rungs.item() else (step, mx.array(0.0))
            values.append(mx.minimum(mx.round((group - bias) / scale), 2**bits - 1))
            scales.append(scale)
            biases.append(bias)
    shape = (w.shape[0], w.shape[1] // group_size)
    stacked = [mx.stack(each).reshape(shape).astype(w.dtype) for each in (scales, biases)]
    return mx.concatenate(values).reshape(w.shape).astype(mx.uint32), *stacked


def pack(values, bits):
    rows = []
    for row in values.tolist():
        number = sum(value << (bits * i) for i, value in enumerate(row))
        rows.append([(number >> (WORD * i)) & 0xFFFFFFFF for i in range(len(row) * bits // WORD)])
    return mx.array(rows, dtype=mx.uint32)


def unpack(packed, bits):
    rows = []
    for row in packed.tolist():
        number = sum(word << (WORD * i) for i, word in enumerate(row))
        rows.append([(number >> (bits * i)) % 2**bits for i in range(len(row) * WORD // bits)])
    return mx.array(rows, dtype=mx.uint32)


def dequantize(packed, scales, biases, group_size, bits):
    values = unpack(packed, bits).astype(scales.dtype)
    groups = range(scales.shape[1])
    runs = [values[:, g * group_size : (g + 1) * group_size] for g in groups]
    return mx.concatenate([runs[g] * scales[:, g : g + 1] + biases[:, g : g + 1] for g in groups], axis=1)


def quantized_linear(x, w):
    group_size, bits = quantization_of(w, x.shape[-1])
    rows = [
        x @ dequantize(*(w[name][i : i + 1] for name in ("weight", "scales", "biases")), group_size, bits)[0]
        for i in range(w["weight"].shape[0])
    ]
    return mx.stack(rows, axis=-1) + w.get("bias", 0)
