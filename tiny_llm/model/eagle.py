"""An EAGLE-3 head: one layer that guesses the next features of the model from its present ones. (arXiv:2503.01840)

Entry t of the head takes the features of token t, which are outputs of three of the model's layers, and the embedding
of token t + 1. It guesses token t + 2. To guess further, its own output takes the place of the features.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from tiny_llm.config import ModelConfig
from tiny_llm.config.fields import JsonFields, require
from tiny_llm.model.head_files import BASE, HeadFiles, base_fingerprint, write_head
from tiny_llm.model.ops import linear
from tiny_llm.model.qwen3 import Attends, Qwen3
from tiny_llm.model.rope import Rope

SHAPE = (  # the keys of config.json that describe the head's layer
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "max_position_embeddings",
    "rope_theta",
    "rope_scaling",
)
TAPPED = 3  # layers whose outputs are the features


class EagleHead:
    """The head and the model that it belongs to. `weights` are the tensors under their public names.

    `config` is the shape of its layer, `taps` are the layers that it reads. `draft_tokens` (V',) are the model's ids of
    the tokens that it can guess.
    """

    def __init__(
        self,
        model: Qwen3,
        config: ModelConfig,
        weights: dict[str, mx.array],
        taps: tuple[int, ...],
        draft_tokens: mx.array,
    ):
        self.model, self.config, self.weights, self.taps = model, config, weights, taps
        self.draft_tokens = draft_tokens
        self.ops = model.ops
        self.rope = Rope(config.rope, config.head_dim)

    def combine(self, features: mx.array) -> mx.array:
        """Return the features (T, 3 H) of tokens as one vector each, (T, H)."""
        return self._linear(features, "fc")

    def states(self, tokens: mx.array, features: mx.array, cache: Attends) -> mx.array:
        """Return the output of entries, (T, H), from which the next tokens are guessed.

        tokens (T,): of each entry the token after that of its features. features (T, H): combined ones, or outputs.
        """
        c = self.config
        rotation = self.rope.at(cache.begin(tokens.shape[0]))
        embedded = self.model.embed(tokens)
        normed = [
            self._norm(embedded, "midlayer.input_layernorm"),
            self._norm(features, "midlayer.hidden_norm"),
        ]
        x = mx.concatenate(normed, axis=1)  # (T, 2 H)
        q = self._heads(x, "q_proj", c.num_attention_heads)
        k = self._heads(x, "k_proj", c.num_key_value_heads)
        v = self._heads(x, "v_proj", c.num_key_value_heads)
        attended = cache.attend(0, self.ops.rope(q, rotation), self.ops.rope(k, rotation), v)
        y = features + self._linear(attended.reshape(x.shape[0], -1), "midlayer.self_attn.o_proj")
        normed_y = self._norm(y, "midlayer.post_attention_layernorm")
        gate = self._linear(normed_y, "midlayer.mlp.gate_proj")
        up = self._linear(normed_y, "midlayer.mlp.up_proj")
        gated = self.ops.swiglu(mx.concatenate([gate, up], axis=1))
        return y + self._linear(gated, "midlayer.mlp.down_proj")

    def logits(self, states: mx.array) -> mx.array:
        """Return the logits of the draft tokens, (R, V')."""
        return self._linear(self._norm(states, "norm"), "lm_head")

    def _heads(self, x: mx.array, name: str, count: int) -> mx.array:
        return self._linear(x, f"midlayer.self_attn.{name}").reshape(x.shape[0], count, -1)

    def _linear(self, x: mx.array, name: str) -> mx.array:
        return linear(x, {"weight": self.weights[f"{name}.weight"]})

    def _norm(self, x: mx.array, name: str) -> mx.array:
        return self.ops.rms_norm(x, self.weights[f"{name}.weight"], self.config.rms_norm_eps)

    @classmethod
    def from_dir(cls, directory: Path, model: Qwen3) -> "EagleHead":
        """Read a head in EAGLE-3's layout. Raises ValueError for missing or unused tensors and for another model's."""
        files = HeadFiles(directory)
        files.check_base(model)
        config = layer_config(files.config.data, model, files.config.source)
        dtype = model.weights["norm"]["weight"].dtype
        vocab = files.config.integer("draft_vocab_size", model.config.vocab_size)
        weights = {}
        for name, shape in shapes(config, vocab).items():
            weights[name] = files.take(name, shape).astype(dtype)
        tokens = _draft_tokens(files, vocab, model.config.vocab_size)
        files.finish()
        return cls(model, config, weights, _taps(files.config, model), tokens)

    def save(self, directory: Path, about: Mapping[str, Any]) -> None:
        """Write the head, with `about` in config.json."""
        c = self.config
        offsets = self.draft_tokens - mx.arange(self.draft_tokens.size)
        known = mx.zeros((self.model.config.vocab_size,), mx.bool_)
        known[self.draft_tokens] = mx.array(True)
        tensors = {**self.weights, "d2t": offsets.astype(mx.int64), "t2d": known}
        config = {
            "architectures": ["LlamaForCausalLMEagle3"],
            "model_type": "llama",
            "hidden_size": c.hidden_size,
            "intermediate_size": c.intermediate_size,
            "num_hidden_layers": 1,
            "num_attention_heads": c.num_attention_heads,
            "num_key_value_heads": c.num_key_value_heads,
            "head_dim": c.head_dim,
            "rms_norm_eps": c.rms_norm_eps,
            "rope_theta": c.rope.theta,
            "max_position_embeddings": c.max_position_embeddings,
            "vocab_size": self.model.config.vocab_size,
            "draft_vocab_size": self.draft_tokens.size,
            "eagle_config": {"eagle_aux_hidden_state_layer_ids": [tap + 1 for tap in self.taps]},
            BASE: base_fingerprint(self.model),
            **about,
        }
        write_head(directory, config, tensors)


def layer_config(data: Mapping[str, Any], model: Qwen3, source: str = "config") -> ModelConfig:
    """Return the shape of a head's layer, which the keys SHAPE of a config.json describe."""
    shape = {key: data[key] for key in SHAPE if key in data}
    names = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1}
    return ModelConfig.from_hf({**shape, **names, "vocab_size": model.config.vocab_size}, source)


def shapes(config: ModelConfig, vocab: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a head's weights; `vocab` tokens can be guessed."""
    hidden, inner = config.hidden_size, config.intermediate_size
    heads, kv_heads = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    return {
        "fc.weight": (hidden, TAPPED * hidden),
        "midlayer.input_layernorm.weight": (hidden,),
        "midlayer.hidden_norm.weight": (hidden,),
        "midlayer.self_attn.q_proj.weight": (heads, 2 * hidden),
        "midlayer.self_attn.k_proj.weight": (kv_heads, 2 * hidden),
        "midlayer.self_attn.v_proj.weight": (kv_heads, 2 * hidden),
        "midlayer.self_attn.o_proj.weight": (hidden, heads),
        "midlayer.post_attention_layernorm.weight": (hidden,),
        "midlayer.mlp.gate_proj.weight": (inner, hidden),
        "midlayer.mlp.up_proj.weight": (inner, hidden),
        "midlayer.mlp.down_proj.weight": (hidden, inner),
        "norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }


def usual_taps(num_layers: int) -> tuple[int, ...]:
    """Return the layers that a head reads where its config names none: a low, a middle and a high one."""
    return 1, num_layers // 2 - 1, num_layers - 4


def _taps(config: JsonFields, model: Qwen3) -> tuple[int, ...]:
    """Return the layers to read. A config counts the layers that take these vectors in, so ours are one before."""
    count = model.config.num_hidden_layers
    table = config.table("eagle_config")
    named = table.data.get("eagle_aux_hidden_state_layer_ids") if table is not None else None
    taps = usual_taps(count) if named is None else tuple(layer - 1 for layer in named)
    ok = len(taps) == TAPPED and all(0 <= tap < count for tap in taps)
    require(
        ok,
        f"{config.source}: eagle_aux_hidden_state_layer_ids: expected {TAPPED} layers from 1 to {count}, found {named}",
    )
    return taps


def _draft_tokens(files: HeadFiles, vocab: int, whole: int) -> mx.array:
    """Return the ids of the draft tokens, (V',): token i of the draft is the model's i + d2t[i]."""
    tokens = mx.arange(vocab)
    if "d2t" in files.tensors:
        tokens = tokens + files.take("d2t", (vocab,)).astype(mx.int32)
    least, most = tokens.min().item(), tokens.max().item()
    require(
        least >= 0 and most < whole,  # type: ignore[operator]
        f"{files.file}: d2t: expected ids from 0 to {whole - 1}, found some from {least} to {most}",
    )
    if "t2d" in files.tensors:
        known = files.take("t2d", (whole,)).astype(mx.bool_)
        agrees = known.sum().item() == vocab and bool(known[tokens].all().item())
        require(agrees, f"{files.file}: t2d: expected the tokens that d2t names, found others")
    return tokens
