"""The model head by head."""

import mlx.core as mx


class Qwen3:
    def project(self, x, layer, rotation):
        c = self.config
        rows = self.ops.linear(self._norm(x, layer["input_layernorm"]), layer["qkv_proj"])
        heads = [rows[:, h : h + c.head_dim] for h in range(0, rows.shape[1], c.head_dim)]
        hq, hkv = c.num_attention_heads, c.num_key_value_heads
        if c.qk_norm:
            heads[:hq] = [self._norm(head, layer["q_norm"]) for head in heads[:hq]]
            heads[hq : hq + hkv] = [self._norm(head, layer["k_norm"]) for head in heads[hq : hq + hkv]]
        both = self.ops.rope(mx.stack(heads[: hq + hkv], axis=1), rotation)
        return both[:, :hq], both[:, hq:], mx.stack(heads[hq + hkv :], axis=1)

    def finish(self, x, attended, layer):
        heads = mx.concatenate([attended[:, h] for h in range(attended.shape[1])], axis=-1)
        middle = x + self.ops.linear(heads, layer["o_proj"])
        h = self._norm(middle, layer["post_attention_layernorm"])
        for step in (lambda y: self.ops.linear(y, layer["gate_up_proj"]), self.ops.swiglu):
            h = step(h)
        return middle + self.ops.linear(h, layer["down_proj"])

    def hidden_states(self, tokens, cache):
        x = self.ops.embedding(tokens, self.weights["embed_tokens"], self.config.hidden_size)
        rotation = self.rope.at(cache.begin(tokens.size))
        for i, layer in enumerate(self.weights["layers"]):
            q, k, v = self.project(x, layer, rotation)
            attended = cache.attend(i, q, k, v)
            x = self.finish(x, attended, layer)
        return x

    def logits(self, x):
        name = "lm_head" if not self.config.tie_word_embeddings else "embed_tokens"
        normed = self._norm(x, self.weights["norm"])
        return self.ops.linear(normed, self.weights[name])
