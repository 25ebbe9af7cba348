"""The names and settings of a GGUF file under their Hugging Face names."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from tiny_llm.config import RopeConfig
from tiny_llm.config.check import check_rules
from tiny_llm.config.fields import JsonFields, expect, require
from tiny_llm.config.gguf_keys import EXPERT_RULES, GGUF_RULES
from tiny_llm.model.gguf_blocks import DTYPES, GROUP
from tiny_llm.model.gguf_header import GgufHeader, GgufTensor
from tiny_llm.model.rope import inverse_frequencies

EMBEDDING, HEAD, FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
EXPERTS_IN_LAYER = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.switch_mlp.gate_proj",
    "ffn_up_exps": "mlp.switch_mlp.up_proj",
    "ffn_down_exps": "mlp.switch_mlp.down_proj",
}
UNUSED = re.compile(r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd\.weight")  # tables that are computed here
ORIGINAL = 8192  # tokens, the context of Llama 3 before it was stretched


class Architecture(NamedTuple):
    """What a name in general.architecture means.

    `pairs`: in the rows of q and k the two of each rotary pair are neighbours, not half a head apart. `model_type` is
    that of config.json, None where it is the architecture's name.
    """

    head: str
    pairs: bool = False
    model_type: str | None = None


ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", pairs=True),
    "qwen2": Architecture("Qwen2ForCausalLM"),
    "qwen3": Architecture("Qwen3ForCausalLM"),
    "qwen3moe": Architecture("Qwen3MoeForCausalLM", model_type="qwen3_moe"),
}


def architecture(header: GgufHeader) -> str:
    """Return the name of the architecture. Raises ValueError for unknown ones."""
    return str(header.metadata.choice("general.architecture", tuple(ARCHITECTURES)))


def hf_names(header: GgufHeader) -> dict[str, str]:
    """Return the Hugging Face name of each tensor that the model uses. Raises ValueError for unknown tensors."""
    arch = architecture(header)
    in_layer = IN_LAYER | EXPERTS_IN_LAYER if arch == "qwen3moe" else IN_LAYER
    names = {}
    for name in header.tensors:
        if UNUSED.fullmatch(name):
            continue
        found = re.fullmatch(r"(?:blk\.(\d{1,5})\.)?(\w+)\.(weight|bias)", name, re.ASCII)
        layer, stem, kind = found.groups() if found else (None, "", "")
        path = OUTSIDE.get(stem) if layer is None else in_layer.get(stem)
        if path is None:
            where = f"{header.metadata.source}: {name:.100}"
            raise ValueError(
                f"{where}: expected no such tensor in a {arch}, found it; take a plain model of the family"
            )
        prefix = "" if layer is None else f"model.layers.{layer}."
        names[name] = f"{prefix}{path}.{kind}"
    return names


def float_type(header: GgufHeader) -> mx.Dtype:
    """Return the type of most of the model's numbers. Packed numbers count by their scales, as float16."""
    sizes: Counter[str] = Counter(F16=0)
    for tensor in header.tensors.values():
        sizes[tensor.kind.dtype] += prod(tensor.shape)
    [(name, _)] = sizes.most_common(1)
    return DTYPES[name]


def hf_config(header: GgufHeader, names: Mapping[str, str], factors: Sequence[float] | None) -> dict[str, Any]:
    """Return the config.json of the model. `factors`: the numbers of rope_freqs.weight.

    Raises ValueError naming file, key, expected and found.
    """
    fields = header.metadata
    arch = architecture(header)
    _check_keys(fields, arch)
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[arch].head],
        "model_type": ARCHITECTURES[arch].model_type or arch,
        "hidden_size": fields.integer(f"{arch}.embedding_length"),
        "num_hidden_layers": fields.integer(f"{arch}.block_count", high=10_000),
        "vocab_size": _vocab_size(header, f"{arch}.vocab_size"),
        "max_position_embeddings": fields.integer(f"{arch}.context_length"),
        "rms_norm_eps": fields.number(f"{arch}.attention.layer_norm_rms_epsilon"),
        "rope_theta": fields.number(f"{arch}.rope.freq_base", 10000.0, low=1.0),
        "tie_word_embeddings": HEAD not in header.tensors,
        "torch_dtype": str(float_type(header)).removeprefix("mlx.core."),
    }
    config |= _heads(fields, arch, config["hidden_size"])
    config |= _mlp(fields, arch)
    if arch != "qwen2":
        config["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
    if arch == "llama":
        config["mlp_bias"] = "blk.0.ffn_gate.bias" in header.tensors
    scaling = _rope_scaling(fields, arch, config, factors)
    if scaling:
        config["rope_scaling"] = scaling
    quantization = _quantization(header.tensors, names)
    if quantization:
        config["quantization"] = quantization
    return config


def _mlp(fields: JsonFields, arch: str) -> dict[str, Any]:
    """Return the sizes of the MLPs: dense ones, or in a qwen3moe experts in all layers."""
    if arch != "qwen3moe":
        return {"hidden_act": "silu", "intermediate_size": fields.integer(f"{arch}.feed_forward_length")}
    expert_size = fields.integer(f"{arch}.expert_feed_forward_length")
    return {
        "hidden_act": "silu",
        "intermediate_size": fields.integer(f"{arch}.feed_forward_length", expert_size),
        "num_experts": fields.integer(f"{arch}.expert_count"),
        "num_experts_per_tok": fields.integer(f"{arch}.expert_used_count"),
        "moe_intermediate_size": expert_size,
        "norm_topk_prob": fields.flag(f"{arch}.expert_weights_norm", True),
        "decoder_sparse_step": 1,  # mlx-lm has no default for these two
        "mlp_only_layers": [],
    }


def _check_keys(fields: JsonFields, arch: str) -> None:
    """Check the keys that begin with the architecture's name by their table."""
    own = {key: value for key, value in fields.data.items() if key.startswith(f"{arch}.")}
    table = (*GGUF_RULES, *EXPERT_RULES) if arch == "qwen3moe" else GGUF_RULES
    rules = {f"{arch}.{key}": rule for rule in table for key in rule.keys.split()}
    check_rules(JsonFields(own, fields.source), rules)


def _vocab_size(header: GgufHeader, key: str) -> int:
    source = header.metadata.source
    if EMBEDDING not in header.tensors:
        raise ValueError(f"{source}: {EMBEDDING}: expected the embedding, found no such tensor")
    rows = header.tensors[EMBEDDING].shape[0]
    found = header.metadata.integer(key, rows)
    expect(found == rows, f"{source}: {key}", f"{rows}, as in {EMBEDDING}", found)
    return rows


def _heads(fields: JsonFields, arch: str, hidden: int) -> dict[str, int]:
    prefix = f"{arch}.attention"
    where = f"{fields.source}: {prefix}"
    heads = fields.integer(f"{prefix}.head_count")
    kv_heads = fields.integer(f"{prefix}.head_count_kv", heads)
    expect(heads % kv_heads == 0, f"{where}.head_count_kv", f"a divisor of {heads}", kv_heads)
    if fields.data.get(f"{prefix}.key_length") is None:
        expect(hidden % heads == 0, f"{where}.head_count", f"a divisor of {hidden}", heads)
    head_dim = fields.integer(f"{prefix}.key_length", hidden // heads)
    for key in (f"{prefix}.value_length", f"{arch}.rope.dimension_count"):
        found = fields.integer(key, head_dim)
        same = found == head_dim
        expect(same, f"{fields.source}: {key}", f"the width of a head ({head_dim})", found)
    return {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim}


def _quantization(tensors: Mapping[str, GgufTensor], names: Mapping[str, str]) -> dict[str, Any]:
    """Return MLX's table: the bits of most packed matrices, and the paths of those that have other bits."""
    bits = {name.removesuffix(".weight"): tensors[own].kind.bits for own, name in names.items()}
    packed = {path: count for path, count in bits.items() if count > 0}
    if not packed:
        return {}
    [(most, _)] = Counter(packed.values()).most_common(1)
    others = {path: {"group_size": GROUP, "bits": count} for path, count in packed.items() if count != most}
    return {"group_size": GROUP, "bits": most, **others}


def _rope_scaling(
    fields: JsonFields, arch: str, config: Mapping[str, Any], factors: Sequence[float] | None
) -> dict[str, Any]:
    """Return config.json's rope_scaling, {} for none."""
    prefix = f"{arch}.rope.scaling"
    kind = fields.choice(f"{prefix}.type", ("none", "linear", "yarn"), "none")
    if factors is not None:
        found = f"{prefix}.type {kind} beside it"
        require(kind == "none", f"{fields.source}: {FACTORS}: expected the only scaling of positions, found {found}")
        return _llama3_scaling(fields, prefix, config, factors)
    if kind == "none":
        return {}
    scaling = {"rope_type": kind, "factor": fields.number(f"{prefix}.factor")}
    if kind == "yarn":
        length = config["max_position_embeddings"]
        scaling["original_max_position_embeddings"] = fields.integer(f"{prefix}.original_context_length", length)
        for name, default in (("beta_fast", 32.0), ("beta_slow", 1.0)):
            scaling[name] = fields.number(f"{prefix}.yarn_{name}", default)
    return scaling


def _llama3_scaling(
    fields: JsonFields, prefix: str, config: Mapping[str, Any], factors: Sequence[float]
) -> dict[str, Any]:
    """Return the settings of Llama 3 that give these factors, by which each pair's frequency is divided.

    The file has the factors only. The largest is the setting `factor`; the borders are the same in all Llamas.
    """
    if all(factor == 1 for factor in factors):
        return {}
    original = fields.integer(f"{prefix}.original_context_length", ORIGINAL)
    theta = config["rope_theta"]
    head_dim = config["head_dim"]
    factor = max(factors)
    low, high = 1.0, 4.0
    rope = RopeConfig(theta, "llama3", factor, original, low_freq_factor=low, high_freq_factor=high)
    expected = np.array(inverse_frequencies(RopeConfig(theta), head_dim) / inverse_frequencies(rope, head_dim))
    same = len(factors) == len(expected) and np.allclose(factors, expected, rtol=1e-3)
    where = f"{fields.source}: {FACTORS}"
    expect(same, where, f"Llama 3's factors for {original} tokens, stretched {factor:g} times", list(factors))
    return {
        "rope_type": "llama3",
        "factor": factor,
        "original_max_position_embeddings": original,
        "low_freq_factor": low,
        "high_freq_factor": high,
    }
