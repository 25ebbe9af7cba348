"""The size of a cache: bytes of a slot and number of slots, for any model from its configuration alone."""

from tiny_llm.config import ModelConfig

STEP = 256  # slots by which a cache grows
SPARE = 256  # slots of a rotating cache beyond its window


def bytes_per_slot(config: ModelConfig, width: int, bits: int | None = None, group_size: int = 64) -> int:
    """Return the bytes that one token takes in all layers: keys and values of every K/V head.

    `width` is an activation's size in bytes (2 for bfloat16). With `bits`, numbers are packed in groups along
    head_dim, each with a scale and a bias of that width.
    """
    # TASK w2.5.1: what one token costs
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    if bits is None:
        return numbers * width
    return numbers * bits // 8 + numbers // group_size * 2 * width
    # END TASK


def slots(tokens: int, window: int | None = None) -> int:
    """Return the slots of a cache with so many tokens: it grows in steps of STEP, a rotating one to window + SPARE."""
    # TASK w2.5.2: how many slots there are
    grown = -(-tokens // STEP) * STEP
    return grown if window is None else min(grown, window + SPARE)
    # END TASK
