"""From the safetensors files of a model directory to the weights that the model computes with.

Tensors are named as in the Hugging Face files. Queries, keys and values become one matrix, so do gate and up: one
matrix product instead of three or two. Layers are evaluated one by one, so that loading needs hardly more memory
than the model.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from tiny_llm.config import ModelConfig, QuantizationConfig
from tiny_llm.config.fields import require
from tiny_llm.model.directory import load_config, load_generation_defaults
from tiny_llm.model.memory import check_memory, estimate_bytes
from tiny_llm.model.safetensors import FLOATS, INDEX, Entry, read_entries

__all__ = ["check_memory", "estimate_bytes", "load_config", "load_generation_defaults", "load_weights"]

PACKED = ("U32",)
Weight = dict[str, Any]


def load_weights(directory: Path, config: ModelConfig, dtype: mx.Dtype | None = None) -> dict[str, Any]:
    """The weights as a tree of evaluated arrays, of `dtype` or, with None, as stored; packed ones stay packed.

    {"embed_tokens", "layers": [{"input_layernorm", "qkv_proj", "q_norm"?, "k_norm"?, "o_proj",
    "post_attention_layernorm", "gate_up_proj", "down_proj"}], "norm", "lm_head"?}; what a leaf looks like is told
    in ops.py. Raises ValueError naming file, key, expected and found.
    """
    tensors = _Tensors(directory, dtype, read_entries(directory, config.tie_word_embeddings))
    linear = partial(_linear, tensors, config.quantization)
    weights: dict[str, Any] = {"layers": []}
    weights["embed_tokens"] = _evaluated(linear("model.embed_tokens", config.vocab_size, config.hidden_size))
    for i in range(config.num_hidden_layers):
        weights["layers"].append(_evaluated(_layer(tensors, linear, config, f"model.layers.{i}")))
    weights["norm"] = _evaluated(_norm(tensors, "model.norm", config.hidden_size))
    if not config.tie_word_embeddings:
        weights["lm_head"] = _evaluated(linear("lm_head", config.vocab_size, config.hidden_size))
    tensors.check_all_taken()
    return weights


def _layer(tensors: "_Tensors", linear: Callable[..., Weight], config: ModelConfig, path: str) -> Weight:
    hidden, inner, d = config.hidden_size, config.intermediate_size, config.head_dim
    heads, kv_heads, bias = config.num_attention_heads, config.num_key_value_heads, config.qkv_bias
    attn, mlp = f"{path}.self_attn", f"{path}.mlp"
    norms = ("q_norm", "k_norm") if config.qk_norm else ()
    return {
        "input_layernorm": _norm(tensors, f"{path}.input_layernorm", hidden),
        "qkv_proj": _joined(
            linear(f"{attn}.q_proj", heads * d, hidden, bias),
            linear(f"{attn}.k_proj", kv_heads * d, hidden, bias),
            linear(f"{attn}.v_proj", kv_heads * d, hidden, bias),
        ),
        **{name: _norm(tensors, f"{attn}.{name}", d) for name in norms},
        # Qwen3's attention_bias covers the output too, Qwen2's bias does not
        "o_proj": linear(f"{attn}.o_proj", hidden, heads * d, bias and config.model_type == "qwen3"),
        "post_attention_layernorm": _norm(tensors, f"{path}.post_attention_layernorm", hidden),
        "gate_up_proj": _joined(linear(f"{mlp}.gate_proj", inner, hidden), linear(f"{mlp}.up_proj", inner, hidden)),
        "down_proj": linear(f"{mlp}.down_proj", hidden, inner),
    }


def _linear(
    tensors: "_Tensors",
    quantization: QuantizationConfig | None,
    path: str,
    rows: int,
    columns: int,
    bias: bool = False,
) -> Weight:
    """A matrix (rows, columns), quantized where the file has `{path}.scales`."""
    if f"{path}.scales" in tensors:
        own = quantization.layers.get(path, quantization) if quantization else None
        if own is None:
            raise ValueError(f"{tensors.where(path + '.scales')}: expected a dense layer by config.json, found scales")
        bits, group = own.bits, own.group_size
        require(
            columns % group == 0,
            f"{tensors.where(path + '.scales')}: expected a group_size that divides {columns}, found {group}",
        )
        weight = {
            "weight": tensors.take(f"{path}.weight", (rows, columns * bits // 32), PACKED),
            "scales": tensors.take(f"{path}.scales", (rows, columns // group)),
            "biases": tensors.take(f"{path}.biases", (rows, columns // group)),
        }
    else:
        weight = {"weight": tensors.take(f"{path}.weight", (rows, columns))}
    return weight | ({"bias": tensors.take(f"{path}.bias", (rows,))} if bias else {})


def _norm(tensors: "_Tensors", path: str, size: int) -> Weight:
    return {"weight": tensors.take(f"{path}.weight", (size,))}


def _joined(*parts: Weight) -> Weight:
    """One matrix of all rows; parts that differ in how they are quantized stay side by side."""
    rows = [{name: array.shape[1:] for name, array in part.items()} for part in parts]
    if any(row != rows[0] for row in rows):
        return {"parts": list(parts)}
    return {name: mx.concatenate([part[name] for part in parts]) for name in parts[0]}


def _evaluated(weight: Weight) -> Weight:
    """MLX reads a file only here; an array must not wait for another thread to do so."""
    mx.eval(weight)
    mx.clear_cache()  # the parts of joined and converted matrices
    return weight


class _Tensors:
    """The tensors of a directory, each handed out once and then forgotten, so that its memory can go."""

    def __init__(self, directory: Path, dtype: mx.Dtype | None, entries: Mapping[str, Entry]):
        self.directory, self.dtype, self.entries = directory, dtype, entries
        self.arrays: dict[str, mx.array] = {}
        for file in sorted({entry.file for entry in entries.values()}):
            try:
                loaded = mx.load(str(file))
            except Exception as error:  # MLX has no one type for a file that it cannot read
                raise ValueError(f"{file}: expected safetensors, found what MLX cannot read: {error}") from error
            assert isinstance(loaded, dict)
            self.arrays |= {name: array for name, array in loaded.items() if name in entries}

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def check_all_taken(self) -> None:
        if self.arrays:
            name, more = min(self.arrays), len(self.arrays) - 1
            others = f" and {more} more" if more else ""
            raise ValueError(f"{self.where(name)}: expected no such tensor by config.json, found it{others}")

    def where(self, name: str) -> str:
        """The file that has a tensor, or should have it, and the tensor's name."""
        if name in self.entries:
            return f"{self.entries[name].file}: {name}"
        index = self.directory / INDEX
        return f"{index if index.exists() else self.directory / 'model*.safetensors'}: {name}"

    def take(self, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...] = FLOATS) -> mx.array:
        """The tensor, which must have this shape and one of these stored dtypes; converted, not yet evaluated."""
        expected = f"{' or '.join(dtypes)} {list(shape)}"
        entry = self.entries.get(name)
        if entry is None:
            raise ValueError(f"{self.where(name)}: expected {expected}, found no such tensor")
        if entry.shape != shape or entry.dtype not in dtypes:
            raise ValueError(f"{self.where(name)}: expected {expected}, found {entry.dtype} {list(entry.shape)}")
        array = self.arrays.pop(name)
        return array if self.dtype is None or dtypes is PACKED else array.astype(self.dtype)
