"""What a step costs, matrix by matrix."""

from tiny_llm.kernels.roofline import Bound, keys_seen


def matrix_weights(config):
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    count = 0
    for _ in range(config.num_hidden_layers):
        for width in (queries, keys, keys, queries):
            count += config.hidden_size * width
        for _ in ("gate", "up", "down"):
            count += config.hidden_size * config.intermediate_size
    return count + config.vocab_size * config.hidden_size


def step_bytes(config, context, rows=1, weight_bits=16, kv_bits=16):
    bits = matrix_weights(config) * weight_bits
    for _ in range(rows):
        for layer in range(config.num_hidden_layers):
            window = config.window_of(layer)
            seen = context if window is None or window > context else window
            bits += seen * (config.num_key_value_heads + config.num_key_value_heads) * config.head_dim * kv_bits
    return bits / 8


def step_operations(config, context, rows=1):
    total = 0
    for _ in range(rows):
        total += matrix_weights(config) * 2
        total += keys_seen(config, context) * config.num_attention_heads * (2 * config.head_dim + 2 * config.head_dim)
    return total


def bound(chip, moved, operations):
    memory = moved / 1e9 / chip.bandwidth
    if chip.teraflops is None or operations / 1e12 / chip.teraflops <= memory:
        return Bound(memory, "memory")
    return Bound(operations / 1e12 / chip.teraflops, "arithmetic")
