"""What every KV cache offers. The cache owns attention, so the model knows neither masks nor cache kinds."""

from typing import Any, Protocol

import mlx.core as mx


class KVCache(Protocol):
    """One sequence's keys and values in all layers, and the attention over them.

    A step is `begin`, then one `attend` for each layer. `offset` counts the tokens that the next step finds.
    """

    offset: int

    # ANCHOR: attend
    def begin(self, num_tokens: int) -> mx.array:
        """Make room for T more tokens; returns their positions (T,) int32."""

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """Append k and v (T, Hkv, D); what q (T, Hq, D) sees of the whole sequence, (T, Hq, D)."""
        # ANCHOR_END: attend

    @property
    def trimmable(self) -> int:
        """How many of the last tokens can be forgotten so that the rest is as if they had never come."""

    def trim(self, num_tokens: int) -> None:
        """Forget the last tokens. Raises ValueError beyond `trimmable`; forgetting all always works."""

    def fork(self) -> "KVCache":
        """A cache that goes on from here by itself; nothing is copied until one of the two writes."""

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers, room not yet used included."""

    @property
    def state(self) -> list[Any]:
        """The arrays to evaluate or save."""


def check_trim(num_tokens: int, offset: int) -> int:
    """The offset after forgetting `num_tokens`."""
    if not 0 <= num_tokens <= offset:
        raise ValueError(f"trim: expected 0 to {offset} tokens (all that the cache holds), found {num_tokens}")
    return offset - num_tokens
