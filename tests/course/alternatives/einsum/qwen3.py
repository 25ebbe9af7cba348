"""The model with the projections cut from the weight instead of the result."""

import mlx.core as mx


class Qwen3:
    def project(self, x, layer, rotation):
        c = self.config
        h = self.ops.rms_norm(x, layer["input_layernorm"]["weight"], c.rms_norm_eps)
        hq, hkv, d = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        rows = (slice(0, hq * d), slice(hq * d, (hq + hkv) * d), slice((hq + hkv) * d, None))
        parts = [{name: array[cut] for name, array in layer["qkv_proj"].items()} for cut in rows]
        q, k, v = (self.ops.linear(h, part).reshape(len(x), -1, d) for part in parts)
        if "q_norm" in layer:
            q = self.ops.rms_norm(q, layer["q_norm"]["weight"], c.rms_norm_eps)
            k = self.ops.rms_norm(k, layer["k_norm"]["weight"], c.rms_norm_eps)
        return self.ops.rope(q, rotation), self.ops.rope(k, rotation), v

    def finish(self, x, attended, layer):
        x += self.ops.linear(mx.flatten(attended, 1), layer["o_proj"])
        gate_up = self.ops.linear(self._norm(x, layer["post_attention_layernorm"]), layer["gate_up_proj"])
        return self.ops.linear(self.ops.swiglu(gate_up), layer["down_proj"]) + x

    def hidden_states(self, tokens, cache):
        positions = cache.begin(len(tokens))
        rotation = self.rope.at(positions)
        x = self.ops.embedding(tokens, self.weights["embed_tokens"], self.config.hidden_size)
        for number in range(self.config.num_hidden_layers):
            layer = self.weights["layers"][number]
            x = self.finish(x, cache.attend(number, *self.project(x, layer, rotation)), layer)
        return x

    def logits(self, x):
        head = self.weights.get("lm_head", self.weights["embed_tokens"])
        return self.ops.linear(self.ops.rms_norm(x, self.weights["norm"]["weight"], self.config.rms_norm_eps), head)
