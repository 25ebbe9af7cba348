"""The KV cache by concatenation and index arrays."""

import copy

import mlx.core as mx


class ContiguousCache:
    def begin(self, num_tokens):
        positions = mx.arange(num_tokens) + self.offset
        self.start = self.offset
        self.offset = self.start + num_tokens
        self.at = mx.full((1,), self.start, mx.int32)
        self.capacity = max(self.capacity, (self.offset + self.step - 1) // self.step * self.step)
        return positions

    def attend(self, layer, q, k, v):
        for buffers, new in ((self.keys, k), (self.values, v)):
            if layer == len(buffers):
                buffers.append(mx.zeros((new.shape[1], 0, new.shape[2]), new.dtype))
            self.write(buffers, layer, new)
        filled = [buffers[layer][:, : self.offset] for buffers in (self.keys, self.values)]
        return self.ops.attention(
            q, *filled, scale=self.config.head_dim ** (-1 / 2), window=self.config.window_of(layer)
        )

    def write(self, buffers, layer, new):
        old = buffers[layer]
        if old.shape[1] < self.capacity:
            old = mx.pad(old, [(0, 0), (0, self.capacity - old.shape[1]), (0, 0)])
        slots = mx.arange(self.start, self.offset)
        old = mx.array(old)
        old[:, slots] = mx.einsum("thd->htd", new)
        buffers[layer] = old
        return mx.take(old, mx.arange(self.offset), axis=1)

    def trim(self, num_tokens):
        left = self.offset - num_tokens
        if not 0 <= left <= self.offset:
            raise ValueError(f"{num_tokens} of {self.offset} tokens")
        self.offset = left

    def fork(self):
        other = copy.copy(self)
        other.keys = [*self.keys]
        other.values = [*self.values]
        return other
