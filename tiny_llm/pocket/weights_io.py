"""The pocket model's weights: drawn at random, and written as a Hugging Face directory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from tiny_llm.pocket.recipe import Recipe, Size
from tiny_llm.pocket.tokenizer import VOCAB_SIZE

Weights = dict[str, Any]


def random_weights(recipe: Recipe) -> Weights:
    """What training starts from, in the engine's layout; `o_proj` and `down_proj` are zero: layers do nothing yet."""
    size, keys = recipe.size, iter(mx.random.split(mx.random.key(recipe.seed), 2 * recipe.size.layers + 1))
    attention, kv = size.heads * size.head_dim, size.kv_heads * size.head_dim

    def normal(rows: int, columns: int, std: float) -> Weights:
        return {"weight": mx.random.normal((rows, columns), key=next(keys)) * std}

    def ones(width: int, value: float = 1.0) -> Weights:
        return {"weight": mx.full((width,), value)}

    def layer() -> Weights:
        return {
            "input_layernorm": ones(size.hidden),
            "qkv_proj": normal(attention + 2 * kv, size.hidden, 0.8 * size.hidden**-0.5),
            "q_norm": ones(size.head_dim, recipe.qk_gain),
            "k_norm": ones(size.head_dim, recipe.qk_gain),
            "o_proj": {"weight": mx.zeros((size.hidden, attention))},
            "post_attention_layernorm": ones(size.hidden),
            "gate_up_proj": normal(2 * size.mlp, size.hidden, 0.8 * size.hidden**-0.5),
            "down_proj": {"weight": mx.zeros((size.hidden, size.mlp))},
        }

    embedding = normal(VOCAB_SIZE, size.hidden, recipe.embedding_std)
    return {"embed_tokens": embedding, "layers": [layer() for _ in range(size.layers)], "norm": ones(size.hidden)}


def hf_tensors(weights: Weights, size: Size) -> dict[str, mx.array]:
    """Hugging Face's names and separate matrices."""
    attention, kv = size.heads * size.head_dim, size.kv_heads * size.head_dim
    tensors = {
        "model.embed_tokens.weight": weights["embed_tokens"]["weight"],
        "model.norm.weight": weights["norm"]["weight"],
    }
    for index, layer in enumerate(weights["layers"]):
        q, k, v = mx.split(layer["qkv_proj"]["weight"], [attention, attention + kv])
        gate, up = mx.split(layer["gate_up_proj"]["weight"], 2)
        matrices = {
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": layer["o_proj"]["weight"],
            "self_attn.q_norm": layer["q_norm"]["weight"],
            "self_attn.k_norm": layer["k_norm"]["weight"],
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": layer["down_proj"]["weight"],
            "input_layernorm": layer["input_layernorm"]["weight"],
            "post_attention_layernorm": layer["post_attention_layernorm"]["weight"],
        }
        tensors |= {f"model.layers.{index}.{name}.weight": matrix for name, matrix in matrices.items()}
    return tensors


def save_model(directory: Path, weights: Weights, size: Size, ends: tuple[int, int], made: Mapping[str, Any]) -> None:
    """model.safetensors in bfloat16, config.json, generation_config.json, and in pocket.json how it was `made`.

    `ends` are the tokens that end a turn and a text.
    """
    stop, pad = ends
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: mx.contiguous(t).astype(mx.bfloat16) for name, t in hf_tensors(weights, size).items()}
    mx.save_safetensors(str(directory / "model.safetensors"), tensors, {"format": "pt"})
    config = {**size.hf_config(), "torch_dtype": "bfloat16", "eos_token_id": stop, "bos_token_id": pad}
    generation = {"eos_token_id": [stop, pad], "pad_token_id": pad, "do_sample": False, "temperature": 0.0}
    made = {**made, "params": sum(tensor.size for tensor in tensors.values())}
    for name, content in (("config", config), ("generation_config", generation), ("pocket", made)):
        (directory / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
