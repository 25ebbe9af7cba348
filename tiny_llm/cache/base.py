"""What every KV cache offers. The cache owns attention, so the model knows neither masks nor cache kinds."""

from typing import Any, NamedTuple, Protocol

import mlx.core as mx

from tiny_llm.config import ModelConfig
from tiny_llm.model.step_buffers import StepBuffers

FLOATS = (mx.float32, mx.float16, mx.bfloat16)


class KVCache(Protocol):
    """One sequence's keys and values in all layers, and the attention over them.

    A step is `begin`, then one `attend` for each layer. Where `open_buffers` returns buffers, they replace both calls.
    `offset` counts the tokens before the next step.
    """

    offset: int

    # ANCHOR: attend
    def begin(self, num_tokens: int) -> mx.array:
        """Make room for T more tokens; return their positions (T,) int32."""

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """Append k and v (T, Hkv, D); return what q (T, Hq, D) sees of the whole sequence, (T, Hq, D)."""
        # ANCHOR_END: attend

    def open_buffers(self, num_tokens: int) -> StepBuffers | None:
        """Open a step whose layers are one operation; None where it needs `begin` and `attend`. See `qwen3.Attends`."""

    @property
    def trimmable(self) -> int:
        """How many of the last tokens can be forgotten so that the rest is as if they had never come."""

    def trim(self, num_tokens: int) -> None:
        """Forget the last tokens. Raises ValueError beyond `trimmable`; forgetting all always works."""

    def fork(self) -> "KVCache":
        """Return a cache that continues from here on its own; no array is copied until one of the two writes."""

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers, with their unused slots."""

    @property
    def state(self) -> list[Any]:
        """The arrays to evaluate or save."""


class Part(NamedTuple):
    """One of the buffers (heads, slots, width) in which a layer's keys lie, and another in which its values lie."""

    heads: int
    width: int
    dtypes: tuple[mx.Dtype, ...]


def full_layout(config: ModelConfig) -> tuple[Part, ...]:
    """Return the layout of keys in full width: one buffer of floats."""
    return (Part(config.num_key_value_heads, config.head_dim, FLOATS),)


def packed_layout(config: ModelConfig, bits: int, group_size: int) -> tuple[Part, ...]:
    """Return the layout of keys in few bits: codes, and a scale and a bias for each group."""
    heads = config.num_key_value_heads
    codes = Part(heads, config.head_dim * bits // 32, (mx.uint32,))
    scaling = Part(heads, config.head_dim // group_size, FLOATS)
    return codes, scaling, scaling


def check_trim(num_tokens: int, offset: int) -> int:
    """Return the offset after forgetting `num_tokens`. Raises ValueError for more than there are."""
    if not 0 <= num_tokens <= offset:
        raise ValueError(f"trim: expected 0 to {offset} tokens (all that the cache holds), found {num_tokens}")
    return offset - num_tokens


def no_slots(new: mx.array) -> mx.array:
    """Return a buffer (heads, 0, width) for tokens like `new` (T, heads, width)."""
    return mx.zeros((new.shape[1], 0, new.shape[2]), new.dtype)
