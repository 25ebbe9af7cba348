"""From the engine's settings to a cache, and to its size in memory."""

from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.cache.memory import SPARE, bytes_per_slot
from tiny_llm.cache.quantized import QuantizedCache, group_size_for
from tiny_llm.cache.rotating import RotatingCache
from tiny_llm.cache.rotating_quantized import RotatingQuantizedCache
from tiny_llm.config import EngineConfig, ModelConfig
from tiny_llm.config.engine import WINDOW
from tiny_llm.model.ops import Ops


def new_cache(config: ModelConfig, ops: Ops, engine: EngineConfig) -> ContiguousCache:
    """Make an empty cache of the kind that the settings name. Raises ValueError where it can't hold this model."""
    if engine.cache == "rotating":
        ring = engine.cache_settings("window", "sinks")
        if engine.packed_bits:
            return RotatingQuantizedCache(config, ops, engine.packed_bits, engine.kv_group_size, **ring)
        return RotatingCache(config, ops, **ring)
    if engine.packed_bits:
        return QuantizedCache(config, ops, engine.packed_bits, engine.kv_group_size)
    return ContiguousCache(config, ops)


def slot_bytes(config: ModelConfig, engine: EngineConfig, width: int) -> int:
    """Return the bytes of a slot, with activations `width` bytes wide. Raises ValueError as `new_cache`."""
    if not engine.packed_bits:
        return bytes_per_slot(config, width)
    group_size = group_size_for(config.head_dim, engine.kv_group_size)
    return bytes_per_slot(config, width, engine.packed_bits, group_size)


def slots_at_most(engine: EngineConfig) -> int | None:
    """Return the number of slots that a cache never exceeds; None where it grows with the text."""
    if engine.cache != "rotating":
        return None
    return (engine.window or WINDOW) + SPARE


def num_blocks_for(
    config: ModelConfig, engine: EngineConfig, budget: int, block_size: int, width: int, beside: int = 0
) -> int:
    """Return how many blocks fit into `budget` bytes, with activations `width` bytes wide.

    `beside`: the bytes that a drafter keeps beside each slot. Raises ValueError where not even one block fits.
    """
    each = block_size * (slot_bytes(config, engine, width) + beside)
    if budget < each:
        raise ValueError(
            f"KV budget: expected at least {each} bytes (one block of {block_size} tokens), found {budget}"
        )
    return budget // each
