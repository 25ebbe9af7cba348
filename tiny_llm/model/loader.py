"""Load the weights of a model from the files of its source.

Tensors are named as in the Hugging Face files. The matrices of queries, keys and values are joined to one, and so are
gate and up: one product is faster than three or two. Layers are evaluated one by one, so that loading needs hardly
more memory than the model.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from tiny_llm.config import ModelConfig, QuantizationConfig
from tiny_llm.model.directory import load_config, load_generation_defaults
from tiny_llm.model.memory import check_memory, estimate_bytes
from tiny_llm.model.ops import Weight
from tiny_llm.model.safetensors import FLOATS
from tiny_llm.model.source import ModelSource, open_source

__all__ = ["check_memory", "estimate_bytes", "load_config", "load_generation_defaults", "load_weights"]

PACKED = ("U32",)
Linear = Callable[..., Weight]  # `_linear` of one model


def load_weights(
    model: Path | ModelSource,
    config: ModelConfig,
    dtype: mx.Dtype | None = None,
    native: bool = False,
    experts: bool = True,
) -> dict[str, Any]:
    """Return the weights as a tree of evaluated arrays.

    {"embed_tokens", "layers": [{"input_layernorm", "qkv_proj", "q_norm"?, "k_norm"?, "o_proj",
    "post_attention_layernorm", "gate_up_proj", "down_proj"}], "norm", "lm_head"?}; ops.py describes a leaf, moe.py
    experts. Floats are converted to `dtype`, or to the source's own type with None; packed weights stay packed. With
    `native` all matrices stay as stored, because the CPU kernels read any format. Without `experts` the experts'
    tensors are checked and left out. Raises ValueError naming file, key, expected and found.
    """
    tensors = _Tensors(open_source(model), dtype, config.tie_word_embeddings, native)
    linear = partial(_linear, tensors, config.quantization)
    weights: dict[str, Any] = {"layers": []}
    weights["embed_tokens"] = _evaluated(linear("model.embed_tokens", config.vocab_size, config.hidden_size))
    for i in range(config.num_hidden_layers):
        layer = _layer(tensors, linear, config, i)
        if not experts:
            layer.pop("experts", None)
        weights["layers"].append(_evaluated(layer))
    weights["norm"] = _evaluated(_norm(tensors, "model.norm", config.hidden_size))
    if not config.tie_word_embeddings:
        weights["lm_head"] = _evaluated(linear("lm_head", config.vocab_size, config.hidden_size))
    tensors.check_all_taken()
    return weights


def _layer(tensors: "_Tensors", linear: Linear, config: ModelConfig, index: int) -> Weight:
    path = f"model.layers.{index}"
    hidden = config.hidden_size
    q_size = config.num_attention_heads * config.head_dim
    kv_size = config.num_key_value_heads * config.head_dim
    qkv_bias = config.qkv_bias
    attn = f"{path}.self_attn"
    layer = {
        "input_layernorm": _norm(tensors, f"{path}.input_layernorm", hidden),
        "qkv_proj": joined(
            linear(f"{attn}.q_proj", q_size, hidden, qkv_bias),
            linear(f"{attn}.k_proj", kv_size, hidden, qkv_bias),
            linear(f"{attn}.v_proj", kv_size, hidden, qkv_bias),
        ),
        "o_proj": linear(f"{attn}.o_proj", hidden, q_size, config.o_bias),
        "post_attention_layernorm": _norm(tensors, f"{path}.post_attention_layernorm", hidden),
    }
    if config.moe and index in config.moe.layers:
        layer |= _mixture(tensors, linear, config, f"{path}.mlp")
    else:
        layer |= _mlp(linear, f"{path}.mlp", hidden, config.intermediate_size, config.mlp_bias)
    if config.qk_norm:
        layer["q_norm"] = _norm(tensors, f"{attn}.q_norm", config.head_dim)
        layer["k_norm"] = _norm(tensors, f"{attn}.k_norm", config.head_dim)
    return layer


def _mlp(linear: Linear, path: str, hidden: int, inner: int, bias: bool) -> Weight:
    gate_up = joined(
        linear(f"{path}.gate_proj", inner, hidden, bias),
        linear(f"{path}.up_proj", inner, hidden, bias),
    )
    return {"gate_up_proj": gate_up, "down_proj": linear(f"{path}.down_proj", hidden, inner, bias)}


def _mixture(tensors: "_Tensors", linear: Linear, config: ModelConfig, path: str) -> Weight:
    """Return the router, the experts and the shared expert of a layer."""
    moe = config.moe
    assert moe
    hidden = config.hidden_size
    stack = partial(_stack, tensors, linear, path, moe.num_experts)
    gate_up = joined(stack("gate_proj", moe.expert_size, hidden), stack("up_proj", moe.expert_size, hidden))
    layer: Weight = {
        "router": linear(f"{path}.gate", moe.num_experts, hidden),
        "experts": {"gate_up_proj": gate_up, "down_proj": stack("down_proj", hidden, moe.expert_size)},
    }
    if moe.shared_size:
        shared = _mlp(linear, f"{path}.shared_expert", hidden, moe.shared_size, False)
        layer["shared_expert"] = {**shared, "gate": linear(f"{path}.shared_expert_gate", 1, hidden)}
    return layer


def _stack(
    tensors: "_Tensors", linear: Linear, path: str, num_experts: int, name: str, rows: int, columns: int
) -> Weight:
    """Return one matrix of all experts, (E, rows, columns): stored as one tensor, or as one for each expert."""
    stacked = f"{path}.switch_mlp.{name}"
    if f"{stacked}.weight" in tensors:
        return linear(stacked, rows, columns, stack=(num_experts,))
    paths = [f"{path}.experts.{index}.{name}" for index in range(num_experts)]
    experts = [linear(place, rows, columns) for place in paths]
    for place, expert in zip(paths, experts, strict=True):
        if _row_shapes(expert) != _row_shapes(experts[0]):
            raise ValueError(
                f"{tensors.where(place + '.weight')}: expected it quantized as {paths[0]}, found other bits or none; "
                "quantize all experts of a layer alike"
            )
    return {part: mx.stack([expert[part] for expert in experts]) for part in experts[0]}


def _linear(
    tensors: "_Tensors",
    quantization: QuantizationConfig | None,
    path: str,
    rows: int,
    columns: int,
    bias: bool = False,
    stack: tuple[int, ...] = (),
) -> Weight:
    """Return a matrix (rows, columns), or a `stack` of them; it is quantized where the file has `{path}.scales`."""
    if f"{path}.scales" in tensors:
        weight = _packed(tensors, quantization, path, (*stack, rows), columns)
    else:
        weight = {"weight": tensors.take(f"{path}.weight", (*stack, rows, columns))}
    if bias:
        weight["bias"] = tensors.take(f"{path}.bias", (rows,))
    return weight


def _packed(
    tensors: "_Tensors", quantization: QuantizationConfig | None, path: str, rows: tuple[int, ...], columns: int
) -> Weight:
    own = quantization
    if quantization is not None:
        own = quantization.layers.get(path, quantization)
    if own is None:
        raise ValueError(f"{tensors.where(path + '.scales')}: expected a dense layer by config.json, found scales")
    group = own.group_size
    if columns % group != 0:
        place = tensors.where(path + ".scales")
        raise ValueError(f"{place}: expected a group_size that divides {columns}, found {group}")
    words = columns * own.bits // 32
    groups = columns // group
    return {
        "weight": tensors.take(f"{path}.weight", (*rows, words), PACKED),
        "scales": tensors.take(f"{path}.scales", (*rows, groups)),
        "biases": tensors.take(f"{path}.biases", (*rows, groups)),
    }


def _norm(tensors: "_Tensors", path: str, size: int) -> Weight:
    return {"weight": tensors.take(f"{path}.weight", (size,))}


def joined(*parts: Weight) -> Weight:
    """Join the rows of the parts to one matrix, or return {"parts": …} if they are not quantized alike."""
    first = _row_shapes(parts[0])
    if any(_row_shapes(part) != first for part in parts):
        return {"parts": list(parts)}
    joined = {}
    for name in first:
        arrays = [part[name] for part in parts]
        joined[name] = mx.concatenate(arrays, axis=max(0, arrays[0].ndim - 2))
    return joined


def _row_shapes(weight: Weight) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array without the number of rows."""
    return {name: (*array.shape[:-2], *array.shape[max(1, array.ndim - 1) :]) for name, array in weight.items()}


def _evaluated(weight: Weight) -> Weight:
    """Evaluate the weight's arrays: only then does MLX read the file, and another thread could not evaluate them."""
    mx.eval(weight)
    mx.clear_cache()  # frees the parts of joined and converted matrices
    return weight


class _Tensors:
    """The tensors of a model. Each is handed out once and then dropped, so that its memory can be freed."""

    def __init__(self, source: ModelSource, dtype: mx.Dtype | None, tied: bool, native: bool):
        self.source = source
        self.dtype = dtype or source.dtype
        self.native = native
        self.entries = source.entries(tied)
        self.arrays = source.arrays()
        self.left = set(self.entries)

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def where(self, name: str) -> str:
        return self.source.where(name)

    def check_all_taken(self) -> None:
        """Raise ValueError if the files have a tensor that the model does not use."""
        if not self.left:
            return
        name = min(self.left)
        more = len(self.left) - 1
        others = f" and {more} more" if more else ""
        raise ValueError(f"{self.where(name)}: expected no such tensor by config.json, found it{others}")

    def take(self, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...] = FLOATS) -> mx.array:
        """Return a tensor of this shape, stored as one of `dtypes`: converted, but not evaluated. Raises ValueError."""
        expected = f"{' or '.join(dtypes)} {list(shape)}"
        entry = self.entries.get(name)
        if entry is None:
            raise ValueError(f"{self.where(name)}: expected {expected}, found no such tensor")
        if entry.shape != shape or entry.dtype not in dtypes:
            raise ValueError(f"{self.where(name)}: expected {expected}, found {entry.dtype} {list(entry.shape)}")
        array = self.arrays.pop(name)
        self.left.remove(name)
        is_kept = self.native and len(shape) >= 2
        if self.dtype is None or dtypes is PACKED or is_kept:
            return array
        return array.astype(self.dtype)
