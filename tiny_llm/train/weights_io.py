"""A Qwen3's weights: drawn at random, and written as a Hugging Face directory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from tiny_llm.config import ModelConfig
from tiny_llm.model.moe import expert_of

TrainedWeights = dict[str, Any]


def check_shape(config: ModelConfig) -> None:
    """Raise ValueError for a model with weights that training does not make."""
    if config.qkv_bias or not (config.qk_norm and config.tie_word_embeddings):
        raise ValueError(
            f"training makes Qwen3 with tied embeddings and no biases, found {config.model_type} with "
            f"tie_word_embeddings {config.tie_word_embeddings}, biases {config.qkv_bias}: choose another shape"
        )


def random_weights(config: ModelConfig, seed: int, qk_gain: float, embedding_std: float) -> TrainedWeights:
    """What training starts from, in the engine's layout; `o_proj` and `down_proj` are zero: layers do nothing yet.

    Raises ValueError for a shape that training does not make.
    """
    check_shape(config)
    hidden, mlp, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    attention, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    keys = iter(mx.random.split(mx.random.key(seed), 3 * layers + 1 if config.moe else 2 * layers + 1))

    def normal(rows: int, columns: int, std: float, stack: tuple[int, ...] = ()) -> TrainedWeights:
        return {"weight": mx.random.normal((*stack, rows, columns), key=next(keys)) * std}

    def ones(width: int, value: float = 1.0) -> TrainedWeights:
        return {"weight": mx.full((width,), value)}

    def mlp_weights(index: int) -> TrainedWeights:
        moe = config.moe
        if moe is None or index not in moe.layers:
            up = normal(2 * mlp, hidden, 0.8 * hidden**-0.5)
            return {"gate_up_proj": up, "down_proj": {"weight": mx.zeros((hidden, mlp))}}
        up = normal(2 * moe.expert_size, hidden, 0.8 * hidden**-0.5, (moe.num_experts,))
        down = mx.zeros((moe.num_experts, hidden, moe.expert_size))
        router = normal(moe.num_experts, hidden, hidden**-0.5)
        return {"router": router, "experts": {"gate_up_proj": up, "down_proj": {"weight": down}}}

    def layer(index: int) -> TrainedWeights:
        return {
            "input_layernorm": ones(hidden),
            "qkv_proj": normal(attention + 2 * kv, hidden, 0.8 * hidden**-0.5),
            "q_norm": ones(config.head_dim, qk_gain),
            "k_norm": ones(config.head_dim, qk_gain),
            "o_proj": {"weight": mx.zeros((hidden, attention))},
            "post_attention_layernorm": ones(hidden),
            **mlp_weights(index),
        }

    embedding = normal(config.vocab_size, hidden, embedding_std)
    return {"embed_tokens": embedding, "layers": [layer(i) for i in range(layers)], "norm": ones(hidden)}


def hf_tensors(weights: TrainedWeights, config: ModelConfig) -> dict[str, mx.array]:
    """Hugging Face's names and separate matrices."""
    attention, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    tensors = {
        "model.embed_tokens.weight": weights["embed_tokens"]["weight"],
        "model.norm.weight": weights["norm"]["weight"],
    }
    for index, layer in enumerate(weights["layers"]):
        q, k, v = mx.split(layer["qkv_proj"]["weight"], [attention, attention + kv])
        matrices = {
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": layer["o_proj"]["weight"],
            "self_attn.q_norm": layer["q_norm"]["weight"],
            "self_attn.k_norm": layer["k_norm"]["weight"],
            "input_layernorm": layer["input_layernorm"]["weight"],
            "post_attention_layernorm": layer["post_attention_layernorm"]["weight"],
        }
        if "experts" in layer:
            matrices["mlp.gate"] = layer["router"]["weight"]
            for expert in range(layer["router"]["weight"].shape[0]):
                matrices |= mlp_matrices(expert_of(layer["experts"], expert), f"mlp.experts.{expert}")
        else:
            matrices |= mlp_matrices(layer, "mlp")
        tensors |= {f"model.layers.{index}.{name}.weight": matrix for name, matrix in matrices.items()}
    return tensors


def mlp_matrices(mlp: TrainedWeights, path: str) -> dict[str, mx.array]:
    """An MLP's three matrices under Hugging Face's names."""
    gate, up = mx.split(mlp["gate_up_proj"]["weight"], 2)
    return {f"{path}.gate_proj": gate, f"{path}.up_proj": up, f"{path}.down_proj": mlp["down_proj"]["weight"]}


def save_model(directory: Path, weights: TrainedWeights, hf_config: Mapping[str, Any], ends: tuple[int, int]) -> int:
    """model.safetensors in bfloat16, config.json and generation_config.json. Returns the number of parameters.

    `hf_config` is the shape as config.json has it; `ends` are the tokens that end a turn and a text.

    Raises ValueError for a shape that training does not make.
    """
    stop, pad = ends
    shape = ModelConfig.from_hf(hf_config, "config")
    check_shape(shape)
    directory.mkdir(parents=True, exist_ok=True)
    found = hf_tensors(weights, shape)
    tensors = {name: mx.contiguous(tensor).astype(mx.bfloat16) for name, tensor in found.items()}
    mx.save_safetensors(str(directory / "model.safetensors"), tensors, {"format": "pt"})
    config = {**hf_config, "torch_dtype": "bfloat16", "eos_token_id": stop, "bos_token_id": pad}
    generation = {"eos_token_id": [stop, pad], "pad_token_id": pad, "do_sample": False, "temperature": 0.0}
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", generation)
    return sum(tensor.size for tensor in tensors.values())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
