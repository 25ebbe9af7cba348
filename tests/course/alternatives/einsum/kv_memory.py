"""Bytes and slots by formulas of another shape."""

STEP = SPARE = 256


def bytes_per_slot(config, width, bits=None, group_size=64):
    row = config.num_key_value_heads * config.head_dim
    per_number = width if bits is None else bits / 8 + 2 * width / group_size
    return round(config.num_hidden_layers * 2 * row * per_number)


def slots(tokens, window=None):
    limit = tokens + STEP if window is None else window + SPARE
    return min(limit, (tokens + STEP - 1) // STEP * STEP)
