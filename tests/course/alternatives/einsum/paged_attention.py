"""Pages, by flat slot numbers."""

import mlx.core as mx
import numpy as np


class PagedPool:
    def write(self, layer, blocks, slots, k, v):
        flat = blocks * self.block_size + slots
        for buffers, new in ((self.keys, k), (self.values, v)):
            heads, count, size, dim = buffers[layer].shape
            wide = buffers[layer].reshape(heads, count * size, dim)
            wide[:, flat] = mx.einsum("thd->htd", new)
            buffers[layer] = wide.reshape(heads, count, size, dim)


def positions_of(starts, lengths):
    lengths = np.array(lengths)
    begins = np.cumsum(lengths) - lengths
    shift = np.array(starts) - begins
    return (np.arange(lengths.sum()) + np.repeat(shift, lengths)).astype(np.int32)


def slots_of(tables, positions, lengths, block_size):
    width = tables.shape[1]
    rows = np.repeat(np.arange(len(lengths)) * width, lengths)
    blocks = np.take(tables, rows + np.floor_divide(positions, block_size))
    return blocks, np.remainder(positions, block_size)


def gathered(pool, table, length):
    heads, count, size, dim = pool.shape
    positions = mx.arange(length)
    flat = mx.take(mx.array(table), positions // size) * size + positions % size
    return mx.take(pool.reshape(heads, count * size, dim), flat, axis=1)
