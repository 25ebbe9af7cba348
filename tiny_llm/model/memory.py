"""How much memory a model will take, and whether the machine has it: told before loading."""

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from tiny_llm import _machine
from tiny_llm.config import ModelConfig
from tiny_llm.model.fused import QUERY_TILE
from tiny_llm.model.safetensors import FLOATS, WIDTHS, Entry, read_entries

PREFILL = 2048  # tokens of a prompt that are computed at once
GB = 1e9


class MemoryBytes(NamedTuple):
    """What a model needs, in bytes. `per_token` is the part of the KV cache that one token of context takes."""

    weights: int
    kv_cache: int
    working: int
    per_token: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.working


# A cache that is not contiguous: bytes of a slot for a width of activations, and slots at most (None: all tokens)
CacheCost = tuple[Callable[[int], int], int | None]


def estimate_bytes(
    directory: Path, config: ModelConfig, dtype: mx.Dtype | None, context: int, cache: CacheCost | None = None
) -> MemoryBytes:
    """What loading a model and computing `context` tokens will take, from the files' headers alone.

    `dtype` as in `load_weights`. Raises ValueError for broken files.
    """
    entries = read_entries(directory, config.tie_word_embeddings)
    norm = entries.get("model.norm.weight")
    width = dtype.size if dtype else WIDTHS[norm.dtype] if norm else 4
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * width
    slots = context
    if cache is not None:
        per_token, slots = cache[0](width), min(context, cache[1] or context)
    largest = max((entry.end - entry.begin for entry in entries.values()), default=0)  # twice there when converted
    return MemoryBytes(
        weights=sum(_loaded(entry, dtype) for entry in entries.values()),
        kv_cache=per_token * slots,
        working=max(_prefill_bytes(config, width, context), largest),
        per_token=per_token,
    )


def _prefill_bytes(config: ModelConfig, width: int, context: int) -> int:
    """One layer's activations for a part of a prompt, in elements `width` bytes wide; factors measured.

    On a CPU the attention scores of a tile of queries exist too, in float32, several times over, and of a quantized
    model two layers' weights unpacked (`fused.linear`).
    """
    length = min(context, PREFILL)
    row = config.hidden_size + config.intermediate_size + config.num_attention_heads * config.head_dim
    prompt = length * 8 * row * width + config.vocab_size * 4
    if mx.default_device() == mx.gpu:
        return prompt
    heads = config.num_attention_heads + config.num_key_value_heads
    layer = config.hidden_size * (2 * heads * config.head_dim + 3 * config.intermediate_size)  # weights
    scores = min(length, QUERY_TILE) * config.num_attention_heads * context
    return prompt + 4 * scores * 4 + (2 * layer * width if config.quantization else 0)


def _loaded(entry: Entry, dtype: mx.Dtype | None) -> int:
    if dtype is None or entry.dtype not in FLOATS:
        return entry.end - entry.begin
    return prod(entry.shape) * dtype.size


def available_bytes() -> int | None:
    """Memory that this process may still take: the GPU's where there is one; None where the system does not say.

    Without a GPU it is what the machine has free or what the limits of a container or of `ulimit` leave, if that is
    less.
    """
    info = mx.device_info()
    limit = info.get("free_memory") or info.get("max_recommended_working_set_size")
    if isinstance(limit, int):
        return limit - (0 if "free_memory" in info else mx.get_active_memory())
    return _machine.available_bytes()


def check_memory(
    directory: Path,
    config: ModelConfig,
    dtype: mx.Dtype | None,
    context: int,
    available: int | None = None,
    cache: CacheCost | None = None,
) -> MemoryBytes:
    """The estimate, if it fits into `available` bytes (None asks the system). Raises ValueError with advice."""
    need = estimate_bytes(directory, config, dtype, context, cache)
    available = available_bytes() if available is None else available
    if available is None or need.total <= available:
        return need
    fits = (available - need.weights - need.working) // need.per_token
    advice = "take a smaller model or a smaller quantization, such as a 4-bit one"
    if fits >= 1:
        advice = f"set --max-context {fits} or less, or {advice}"
    raise ValueError(
        f"{directory}: needs about {need.total / GB:.1f} GB (weights {need.weights / GB:.1f}, KV cache for {context} "
        f"tokens {need.kv_cache / GB:.1f}, working room {need.working / GB:.1f}), but only {available / GB:.1f} GB "
        f"of memory are free: {advice}"
    )
