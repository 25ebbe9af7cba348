"""The size of a cache: bytes of a slot and number of slots, for any model from its configuration alone."""

from tiny_llm.config import ModelConfig
from tiny_llm.course import NotDone

STEP = 256  # slots by which a cache grows
SPARE = 256  # slots of a rotating cache beyond its window


def bytes_per_slot(config: ModelConfig, width: int, bits: int | None = None, group_size: int = 64) -> int:
    """Return the bytes that one token takes in all layers: keys and values of every K/V head.

    `width` is an activation's size in bytes (2 for bfloat16). With `bits`, numbers are packed in groups along
    head_dim, each with a scale and a bias of that width.
    """
    # YOUR CODE (w2.5.1): what one token costs
    raise NotDone("w2.5.1")


def slots(tokens: int, window: int | None = None) -> int:
    """Return the slots of a cache with so many tokens: it grows in steps of STEP, a rotating one to window + SPARE."""
    # YOUR CODE (w2.5.2): how many slots there are
    raise NotDone("w2.5.2")
