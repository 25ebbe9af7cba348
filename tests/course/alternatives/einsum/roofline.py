"""What a step costs, by the sizes of all matrices."""

from tiny_llm.kernels.roofline import Bound, keys_seen


def matrix_weights(config):
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    shapes = [(q, config.hidden_size), (kv, config.hidden_size), (kv, config.hidden_size), (config.hidden_size, q)]
    shapes += [(config.hidden_size, config.intermediate_size)] * 3
    layer = sum(rows * columns for rows, columns in shapes)
    return layer * config.num_hidden_layers + config.vocab_size * config.hidden_size


def step_bytes(config, context, rows=1, weight_bits=16, kv_bits=16):
    numbers = keys_seen(config, context) * rows * 2 * config.head_dim * config.num_key_value_heads
    return (matrix_weights(config) * weight_bits + numbers * kv_bits) / 8.0


def step_operations(config, context, rows=1):
    scores = keys_seen(config, context) * config.num_attention_heads
    return 2 * rows * matrix_weights(config) + rows * scores * 4 * config.head_dim


def bound(chip, moved, operations):
    times = {"memory": moved / chip.bandwidth / 1e9, "arithmetic": operations / (chip.teraflops or 1e99) / 1e12}
    by = max(times, key=times.get)
    return Bound(times[by], by)
