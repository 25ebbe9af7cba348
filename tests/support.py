"""Small random models in the Hugging Face format, written independently of the package that reads them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

FIXTURES = Path(__file__).parent / "fixtures"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
MOE |= {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
PRE_TOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = (
    "the quick brown fox jumps over the lazy dog and then the other dog thinks that the weather is fine",
    "user assistant system hello there, what is the answer? the answer is that one and one are two.",
)


def make_model(
    path: Path,
    model_type: str = "qwen3",
    *,
    seed: int = 0,
    dtype: str = "float32",
    shards: int = 1,
    quantize: Mapping[str, Any] | None = None,
    stack_experts: bool = False,
    **config_overrides: Any,
) -> Path:
    """Write a random two-layer model to the directory `path` and return it.

    `dtype` is of the stored weights. `quantize` {"bits", "group_size"[, "<layer path>": {…} or False]} stores the
    matrices as MLX does, `stack_experts` each matrix of a layer's experts as one. `config_overrides` go into
    config.json; None removes a key.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    config = make_config(model_type, dtype, config_overrides)
    weights = make_weights(config, seed, dtype)
    if stack_experts:
        weights = stacked_experts(weights)
    if quantize is not None:
        weights = quantize_weights(weights, quantize)
        config["quantization"] = dict(quantize)
    make_tokenizer(config["vocab_size"]).save(str(path / "tokenizer.json"))
    write_json(path / "config.json", config)
    write_json(path / "tokenizer_config.json", tokenizer_config(config["max_position_embeddings"]))
    eos = [len_base(config["vocab_size"]) + 2, len_base(config["vocab_size"])]
    sampling = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
    write_json(path / "generation_config.json", {"eos_token_id": eos, "pad_token_id": eos[1], **sampling})
    write_weights(path, weights, shards)
    return path


def make_config(model_type: str, dtype: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    vocab = overrides.get("vocab_size", 320)
    config = {
        "architectures": [ARCHITECTURES.get(model_type, model_type)],
        "model_type": model_type,
        "torch_dtype": dtype,
        "hidden_act": "silu",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32 if model_type.startswith("qwen3") else None,
        "vocab_size": vocab,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "attention_bias": False if model_type.startswith("qwen3") else None,
        "bos_token_id": len_base(vocab),
        "eos_token_id": len_base(vocab) + 2,
        **(MOE if model_type.endswith("_moe") else {}),
        "shared_expert_intermediate_size": 96 if model_type == "qwen2_moe" else None,
        **overrides,
    }
    return {key: value for key, value in config.items() if value is not None}


def make_weights(config: Mapping[str, Any], seed: int, dtype: str) -> dict[str, mx.array]:
    """Weights under their Hugging Face names, scaled so that each of them moves the logits."""
    rng = np.random.default_rng(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim", hidden // config["num_attention_heads"])
    q, kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    weights: dict[str, mx.array] = {}

    def put(name: str, values: np.ndarray) -> None:
        weights[name] = mx.array(values.astype(np.float32)).astype(getattr(mx, dtype))

    def matrix(name: str, rows: int, columns: int) -> None:
        put(f"{name}.weight", rng.standard_normal((rows, columns), dtype=np.float32) / np.sqrt(columns))

    def norm(name: str, size: int) -> None:
        put(f"{name}.weight", 1 + 0.3 * rng.standard_normal(size))

    def mlp(path: str, inner: int) -> None:
        for name, rows, columns in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
            matrix(f"{path}.{name}_proj", rows, columns)
            if config.get("mlp_bias"):
                put(f"{path}.{name}_proj.bias", 0.3 * rng.standard_normal(rows))

    matrix("model.embed_tokens", config["vocab_size"], hidden)
    for layer in (f"model.layers.{i}" for i in range(config["num_hidden_layers"])):
        norm(f"{layer}.input_layernorm", hidden)
        norm(f"{layer}.post_attention_layernorm", hidden)
        for name, rows, columns in (("q", q, hidden), ("k", kv, hidden), ("v", kv, hidden), ("o", hidden, q)):
            matrix(f"{layer}.self_attn.{name}_proj", rows, columns)
            is_qwen2 = config["model_type"].startswith("qwen2")
            biased = name != "o" if is_qwen2 else config.get("attention_bias")
            if biased:
                put(f"{layer}.self_attn.{name}_proj.bias", 0.3 * rng.standard_normal(rows))
        if config["model_type"].startswith("qwen3"):
            norm(f"{layer}.self_attn.q_norm", head_dim)
            norm(f"{layer}.self_attn.k_norm", head_dim)
        if has_experts(config, int(layer.split(".")[-1])):
            matrix(f"{layer}.mlp.gate", config["num_experts"], hidden)
            for expert in range(config["num_experts"]):
                mlp(f"{layer}.mlp.experts.{expert}", config["moe_intermediate_size"])
            if "shared_expert_intermediate_size" in config:
                mlp(f"{layer}.mlp.shared_expert", config["shared_expert_intermediate_size"])
                matrix(f"{layer}.mlp.shared_expert_gate", 1, hidden)
        else:
            mlp(f"{layer}.mlp", inner)
    norm("model.norm", hidden)
    if not config["tie_word_embeddings"]:
        matrix("lm_head", config["vocab_size"], hidden)
    return weights


def has_experts(config: Mapping[str, Any], layer: int) -> bool:
    if not config["model_type"].endswith("_moe") or layer in config.get("mlp_only_layers", []):
        return False
    return (layer + 1) % config.get("decoder_sparse_step", 1) == 0


def stacked_experts(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Join the matrices of a layer's experts under mlx-lm's name, (E, out, in)."""
    stored: dict[str, mx.array] = {}
    stacks: dict[str, list[mx.array]] = {}
    for name, weight in weights.items():
        if ".experts." not in name:
            stored[name] = weight
            continue
        before, _, rest = name.partition(".experts.")
        stacks.setdefault(f"{before}.switch_mlp.{rest.partition('.')[2]}", []).append(weight)
    return stored | {name: mx.stack(parts) for name, parts in stacks.items()}


def quantize_weights(weights: Mapping[str, mx.array], settings: Mapping[str, Any]) -> dict[str, mx.array]:
    """Replace each matrix by MLX's packed `weight`, `scales` and `biases`, with a layer's own settings where given."""
    stored: dict[str, mx.array] = {}
    for name, weight in weights.items():
        path = name.removesuffix(".weight")
        own = settings.get(path, settings)
        if weight.ndim < 2 or own is False:
            stored[name] = weight
            continue
        packed, scales, biases = mx.quantize(weight, group_size=own["group_size"], bits=own["bits"])
        stored |= {name: packed, f"{path}.scales": scales, f"{path}.biases": biases}
    return stored


def write_weights(path: Path, weights: Mapping[str, mx.array], shards: int = 1) -> None:
    """Save to model.safetensors, or to `shards` files and an index."""
    if shards == 1:
        mx.save_safetensors(str(path / "model.safetensors"), dict(weights), metadata={"format": "mlx"})
        return
    names = sorted(weights)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        mx.save_safetensors(str(path / file), {name: weights[name] for name in part}, metadata={"format": "mlx"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(weight.nbytes for weight in weights.values())
    write_json(path / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def len_base(vocab_size: int) -> int:
    """Number of byte and merge tokens, at least the 256 bytes, at most what the corpus gives; special ones follow."""
    return min(max(256, vocab_size - len(SPECIAL) - len(TAGS)), 311)


def make_tokenizer(vocab_size: int = 320) -> Tokenizer:
    """A byte-level BPE with Qwen's splitting rule and special tokens; bytes first, then merges, then special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZER), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len_base(vocab_size),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in TAGS])
    return tokenizer


def tokenizer_config(length: int, template: str = "qwen3.jinja") -> dict[str, Any]:
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "model_max_length": length,
        "chat_template": (FIXTURES / template).read_text(encoding="utf-8"),
    }


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")
