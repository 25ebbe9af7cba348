"""Estimate, before loading, how much memory a model will take, and check that the machine has it."""

from collections import Counter
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from tiny_llm import _machine
from tiny_llm.config import ModelConfig
from tiny_llm.model.fused import QUERY_TILE
from tiny_llm.model.safetensors import FLOATS, WIDTHS, TensorEntry
from tiny_llm.model.source import Directory, ModelSource, open_source

PREFILL = 2048  # tokens of a prompt that are computed at once, at most
GB = 1e9
EXPERTS = ("experts.", "switch_mlp.")  # behind a layer's "mlp.", in the names of tensors of experts


class MemoryBytes(NamedTuple):
    """The memory that a model needs, in bytes. `per_token`: the KV cache's part for one token of context."""

    weights: int
    kv_cache: int
    working: int
    per_token: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.working


# For a cache that is not contiguous: a function from the bytes of a number to those of a slot, and the most slots
# (None: one for each token)
CacheCost = tuple[Callable[[int], int], int | None]


def estimate_bytes(
    model: Path | ModelSource,
    config: ModelConfig,
    dtype: mx.Dtype | None,
    context: int,
    cache: CacheCost | None = None,
    native: bool = False,
    expert_bytes: int | None = None,
) -> MemoryBytes:
    """Return the memory for loading a model and computing `context` tokens, from the files' headers alone.

    `dtype` and `native` as in `load_weights`, `expert_bytes` as in `EngineConfig`. Raises ValueError for broken files.
    """
    source = open_source(model)
    dtype = dtype or source.dtype
    entries = source.entries(config.tie_word_embeddings)
    width = _width(entries, dtype)
    slots = context
    if cache is None:
        per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * width
    else:
        slot_bytes, most = cache
        per_token = slot_bytes(width)
        slots = min(context, most or context)
    sizes = {
        name: _laid_out(name, entry, config) if native else _loaded(entry, dtype) for name, entry in entries.items()
    }
    loaded = entries
    if expert_bytes is not None:
        loaded = {name: entry for name, entry in entries.items() if not _is_of_experts(name)}
    weights = sum(sizes[name] for name in loaded)
    experts = sum(sizes.values()) - weights  # those that stay in the files
    weights += min(experts, expert_bytes or 0)
    prefill = _prefill_bytes(config, width, context, native)
    working = max(prefill, _loading_bytes(loaded, None if native else dtype))
    return MemoryBytes(weights, per_token * slots, working, per_token)


def _is_of_experts(name: str) -> bool:
    """Return whether a tensor is of the experts that a router chooses among; the shared expert is none of them."""
    _, _, rest = name.partition(".mlp.")
    return rest.startswith(EXPERTS)


def _width(entries: Mapping[str, TensorEntry], dtype: mx.Dtype | None) -> int:
    """Return the bytes of a number of the activations."""
    if dtype is not None:
        return dtype.size
    norm = entries.get("model.norm.weight")
    return WIDTHS[norm.dtype] if norm else 4


def _prefill_bytes(config: ModelConfig, width: int, context: int, native: bool) -> int:
    """Return the memory of one layer's activations for a part of a prompt, of `width` bytes a number.

    The factors were measured. Without our native kernels a CPU also holds several copies of the attention scores of a
    tile of queries, in float32, and of a quantized model the unpacked weights of two layers (`fused.linear`).
    """
    length = min(context, PREFILL)
    heads = config.num_attention_heads
    layer_numbers = 8 * (config.hidden_size + heads * config.head_dim) + _mlp_numbers(config)
    activations = length * layer_numbers * width
    logits = config.vocab_size * 4
    prompt = activations + logits
    if mx.default_device() == mx.gpu or native:
        return prompt
    scores = min(length, QUERY_TILE) * heads * context
    prompt += 4 * scores * 4
    if config.quantization:
        all_heads = heads + config.num_key_value_heads
        columns = 2 * all_heads * config.head_dim + 3 * _unpacked_size(config)
        prompt += 2 * config.hidden_size * columns * width
    return prompt


def _mlp_numbers(config: ModelConfig) -> int:
    """Return how many numbers the largest MLP of a layer computes for a token, by factors that were measured.

    The experts have a row of their own for each choice: its input, sorted by expert, its hidden units and its output.
    """
    numbers = 0
    moe = config.moe
    if moe:
        choices = 6 * moe.experts_per_token * (config.hidden_size + moe.expert_size)
        numbers = choices + 8 * (moe.num_experts + (moe.shared_size or 0))
    if not moe or len(moe.layers) < config.num_hidden_layers:
        numbers = max(numbers, 8 * config.intermediate_size)
    return numbers


def _unpacked_size(config: ModelConfig) -> int:
    """Return the largest intermediate size of an MLP whose packed weights are unpacked; those of experts never are."""
    moe = config.moe
    shared = moe.shared_size if moe else None
    if moe and len(moe.layers) == config.num_hidden_layers:
        return shared or 0
    return max(config.intermediate_size, shared or 0)


def _loading_bytes(entries: Mapping[str, TensorEntry], dtype: mx.Dtype | None) -> int:
    """Return the memory that loading takes besides the weights.

    While a tensor is converted, it exists twice. A layer's experts exist as stored, and gate and up before they are
    joined.
    """
    largest = 0
    experts: Counter[str] = Counter()  # by layer
    for name, entry in entries.items():
        stored = entry.end - entry.begin
        largest = max(largest, stored)
        if _is_of_experts(name):
            layer = name.partition(".mlp.")[0]
            experts[layer] += stored
            if "down_proj" not in name:
                experts[layer] += _loaded(entry, dtype)
    return max(largest, *experts.values(), 0)


def _loaded(entry: TensorEntry, dtype: mx.Dtype | None) -> int:
    """Return the bytes of a tensor once it is loaded."""
    if dtype is None or entry.dtype not in FLOATS:
        return entry.end - entry.begin
    return prod(entry.shape) * dtype.size


def _laid_out(name: str, entry: TensorEntry, config: ModelConfig) -> int:
    """Return the bytes of a tensor for the CPU kernels: codes of 2 and 3 bits take 4 there, those of 6 take 8.

    Norms and biases are a few kilobytes, so it does not matter that they become float32.
    """
    size = entry.end - entry.begin
    if entry.dtype in FLOATS or config.quantization is None:
        return size
    path = name.removesuffix(".weight")
    own = config.quantization.layers.get(path, config.quantization)
    if own is None:  # the layer is dense by the configuration: the loader refuses its codes
        return size
    widened = 4 if own.bits <= 4 else 8
    return size * widened // own.bits


def available_bytes() -> int | None:
    """Return the memory that this process may still take, of the GPU if there is one; None if the system does not tell.

    Without a GPU it is the machine's free memory, or less if a container or `ulimit` limits it.
    """
    info = mx.device_info()
    free = info.get("free_memory")
    if isinstance(free, int) and free > 0:
        return free
    limit = info.get("max_recommended_working_set_size")
    if isinstance(limit, int):
        return limit - mx.get_active_memory()
    return _machine.available_bytes()


def check_memory(
    model: Path | ModelSource,
    config: ModelConfig,
    dtype: mx.Dtype | None,
    context: int,
    available: int | None = None,
    cache: CacheCost | None = None,
    native: bool = False,
    expert_bytes: int | None = None,
) -> MemoryBytes:
    """Return the estimate if it fits into `available` bytes (None asks the system). Raises ValueError with advice."""
    source = open_source(model)
    need = estimate_bytes(source, config, dtype, context, cache, native, expert_bytes)
    if available is None:
        available = available_bytes()
    if available is None or need.total <= available:
        return need
    room = available - need.weights - need.working
    fits = room // need.per_token
    advice = "take a smaller model or a smaller quantization, such as a 4-bit one"
    if fits >= 1:
        advice = f"set --max-context {fits} or less, or {advice}"
    if config.moe and isinstance(source, Directory):
        left = available - estimate_bytes(source, config, dtype, context, cache, native, 0).total
        if left > 0:
            advice = f"leave experts in the files with --expert-bytes {left} or less, or {advice}"
    raise ValueError(
        f"{source.path}: needs about {need.total / GB:.1f} GB (weights {need.weights / GB:.1f}, KV cache for {context} "
        f"tokens {need.kv_cache / GB:.1f}, working room {need.working / GB:.1f}), but only {available / GB:.1f} GB "
        f"of memory are free: {advice}"
    )
