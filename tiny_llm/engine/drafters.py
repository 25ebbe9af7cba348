"""Drafters guess the next tokens of sequences. A wrong guess costs time, and never changes an answer."""

from collections.abc import Sequence as Row
from typing import Protocol, runtime_checkable

from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.cache.paged import PagedPool
from tiny_llm.cache.whole import WholeCaches
from tiny_llm.config import ModelConfig
from tiny_llm.config.speculation import SpeculationConfig
from tiny_llm.decode.acceptance import DraftTree
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.draft_model import DraftModel
from tiny_llm.engine.eagle import EagleDrafter
from tiny_llm.engine.helper import Helper
from tiny_llm.engine.lookahead import LookaheadDrafter
from tiny_llm.engine.medusa import MedusaDrafter
from tiny_llm.engine.request import Seen, Sequence, SequenceId
from tiny_llm.engine.store import Store
from tiny_llm.engine.suffix import SuffixDrafter
from tiny_llm.model.eagle import EagleHead
from tiny_llm.model.medusa import MedusaHeads
from tiny_llm.model.qwen3 import Qwen3


class Drafter(Protocol):
    """Proposes drafts for sequences that decode, and is told which sequences have ended."""

    def propose(self, sequences: Row[Sequence], limits: Row[int]) -> list[DraftTree]:
        """Return guesses for the tokens behind each sequence's tokens, limits[i] of them at most."""

    def forget(self, ended: Row[SequenceId]) -> None:
        """Drop the data of sequences that have ended or were preempted."""


@runtime_checkable
class LearningDrafter(Drafter, Protocol):
    """A drafter that learns from every step. `taps`: the layers whose outputs it reads, side by side."""

    taps: tuple[int, ...]

    def observe(self, seen: Row[Seen]) -> None:
        """Learn from the shares of a step that has ended."""

    def copy_blocks(self, pairs: Row[tuple[int, int]]) -> None:
        """Copy the drafter's own data of these blocks, source to target, before a step in which the model's are."""


def new_drafter(
    config: SpeculationConfig, helper: Helper | None, store: Store, blocks: BlockPool, vocab_size: int
) -> Drafter | None:
    """Make the drafter of these settings; None for "none". `store` holds the model's K and V."""
    if config.drafter == "suffix":
        return SuffixDrafter(config.p_min)
    if config.drafter == "lookahead":
        return LookaheadDrafter()
    if isinstance(helper, MedusaHeads):
        return MedusaDrafter(helper, config.p_min)
    if isinstance(helper, EagleHead):
        own = store_like(store, helper.config, helper.model)
        return EagleDrafter(helper, own, blocks, config.beams, config.p_min)
    if isinstance(helper, Qwen3):
        own = store_like(store, helper.config, helper)
        return DraftModel(helper, own, blocks, vocab_size, config.p_min)
    assert config.drafter == "none"
    return None


def store_like(store: Store, config: ModelConfig, model: Qwen3) -> Store:
    """Make a store for layers of this shape beside `model`, with as many blocks as `store` and slots in each."""
    if isinstance(store, WholeCaches):
        return WholeCaches(lambda: ContiguousCache(config, model.ops), store.num_blocks, store.block_size)
    dtype = model.weights["norm"]["weight"].dtype
    return PagedPool(config, model.ops, store.num_blocks, store.block_size, dtype)
