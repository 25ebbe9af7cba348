"""The KV cache with lists, token by token and head by head."""

import mlx.core as mx


class ContiguousCache:
    def begin(self, num_tokens):
        self.start = self.offset
        positions = []
        for _ in range(num_tokens):
            positions.append(self.offset)
            self.offset += 1
        while self.capacity < self.offset:
            self.capacity += self.step
        self.at = mx.array([self.start])
        return mx.array(positions, mx.int32)

    def attend(self, layer, q, k, v):
        if layer == len(self.keys):
            self.keys.append(mx.zeros((k.shape[1], 0, k.shape[2]), k.dtype))
            self.values.append(mx.zeros((v.shape[1], 0, v.shape[2]), v.dtype))
        keys = self.write(self.keys, layer, k)
        values = self.write(self.values, layer, v)
        rows = []
        for t in range(q.shape[0]):
            end = self.start + t + 1
            seen = keys[:, :end], values[:, :end]
            scale = 1 / self.config.head_dim**0.5
            rows.append(self.ops.attention(q[t : t + 1], *seen, scale, self.config.window_of(layer)))
        return mx.concatenate(rows)

    def write(self, buffers, layer, new):
        heads = []
        for h in range(new.shape[1]):
            kept = buffers[layer][h, : self.start]
            room = mx.zeros((self.capacity - self.offset, new.shape[2]), new.dtype)
            heads.append(mx.concatenate([kept, new[:, h], room]))
        buffers[layer] = mx.stack(heads)
        return mx.stack([head[: self.offset] for head in heads])

    def trim(self, num_tokens):
        if num_tokens < 0 or num_tokens > self.offset:
            raise ValueError(f"expected 0 to {self.offset} tokens, found {num_tokens}")
        for _ in range(num_tokens):
            self.offset -= 1

    def fork(self):
        other = type(self).__new__(type(self))
        for name, value in vars(self).items():
            setattr(other, name, value[:] if isinstance(value, list) else value)
        return other
