"""A ring with sinks, by going round."""

import mlx.core as mx


def slot_of(position, sinks, capacity):
    while position >= capacity:
        position -= capacity - sinks
    return position


def held_positions(last, sinks, capacity):
    held = list(range(sinks)) + [-1] * (capacity - sinks)
    at = sinks
    for position in range(sinks, last + 1):
        held[at] = position
        at = at + 1 if at + 1 < capacity else sinks
    return mx.array(held)


def visible(positions, held, sinks, recent):
    rows = []
    for query in positions.tolist():
        row = []
        for slot, position in enumerate(held.tolist()):
            is_sink = slot < sinks
            near = position >= sinks and position + recent > query
            row.append(position <= query and (is_sink or near))
        rows.append(row)
    return mx.array(rows)
