"""Bytes and slots by counting."""

STEP = SPARE = 256


def bytes_per_slot(config, width, bits=None, group_size=64):
    total = 0
    for _layer in range(config.num_hidden_layers):
        for _kind in ("keys", "values"):
            for _head in range(config.num_key_value_heads):
                if bits is None:
                    total += config.head_dim * width
                else:
                    groups = config.head_dim // group_size
                    total += config.head_dim * bits // 8 + groups * width + groups * width
    return total


def slots(tokens, window=None):
    count = 0
    while count < tokens:
        count += STEP
    if window is not None and count > window + SPARE:
        count = window + SPARE
    return count
