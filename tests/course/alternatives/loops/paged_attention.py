"""Pages, slot by slot."""

import mlx.core as mx
import numpy as np


class PagedPool:
    def write(self, layer, blocks, slots, k, v):
        for token, (block, slot) in enumerate(zip(blocks.tolist(), slots.tolist(), strict=True)):
            for head in range(k.shape[1]):
                self.keys[layer][head, block, slot] = k[token, head]
                self.values[layer][head, block, slot] = v[token, head]


def positions_of(starts, lengths):
    positions = []
    for start, length in zip(starts, lengths, strict=True):
        positions += range(start, start + length)
    return np.array(positions, np.int32)


def slots_of(tables, positions, lengths, block_size):
    blocks, slots, at = [], [], 0
    for row, length in enumerate(lengths):
        for position in positions[at : at + length].tolist():
            place, slot = divmod(position, block_size)
            blocks.append(int(tables[row, place]))
            slots.append(slot)
        at += length
    return np.array(blocks, np.int32), np.array(slots, np.int32)


def gathered(pool, table, length):
    size = pool.shape[2]
    return mx.stack([pool[:, table[at // size], at % size] for at in range(length)], axis=1)
