"""A ring with sinks, by arrays."""

import mlx.core as mx


def slot_of(position, sinks, capacity):
    ring = capacity - sinks
    return position - max(0, (position - sinks) // ring) * ring


def held_positions(last, sinks, capacity):
    ring = capacity - sinks
    slots = mx.arange(capacity)
    rounds = (last - slots) // ring
    return slots + mx.where(slots >= sinks, rounds * ring, 0)


def visible(positions, held, sinks, recent):
    distance = mx.expand_dims(positions, 1) - mx.expand_dims(held, 0)
    sink = mx.expand_dims(mx.arange(held.size) < sinks, 0)
    ring = mx.expand_dims(held >= sinks, 0) & (distance < recent)
    return mx.logical_and(distance >= 0, mx.logical_or(sink, ring))
