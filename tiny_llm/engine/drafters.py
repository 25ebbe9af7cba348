"""Drafters guess the next tokens of sequences. A wrong guess costs time, and never changes an answer."""

import warnings
from collections.abc import Sequence as Row
from pathlib import Path
from typing import Protocol, runtime_checkable

from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.cache.paged import PagedPool
from tiny_llm.cache.whole import WholeCaches
from tiny_llm.config import EngineConfig
from tiny_llm.config.fields import require
from tiny_llm.config.speculation import SpeculationConfig
from tiny_llm.decode.acceptance import DraftTree
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.draft_model import DraftModel
from tiny_llm.engine.loading import choose_operations, dtype_of, load_model, load_tokenizer
from tiny_llm.engine.lookahead import LookaheadDrafter
from tiny_llm.engine.request import Seen, Sequence, SequenceId
from tiny_llm.engine.store import Store
from tiny_llm.engine.suffix import SuffixDrafter
from tiny_llm.kernels.roofline import matrix_weights
from tiny_llm.model import hub, loader
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.model.source import open_source
from tiny_llm.model.tokenizer import Tokenizer

POCKETS = {hub.SHIPPED["pocket"]: hub.SHIPPED["pocket-draft"]}  # the draft models of the models inside


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


def load_helper(engine: EngineConfig, target: Qwen3, tokenizer: Tokenizer, path: Path) -> Qwen3 | None:
    """Load the weights that the drafter needs beside the model at `path`; None where it needs none.

    Raises ValueError where none are named and none ship with the model, and where they belong to another vocabulary.
    Warns of a draft model that is not cheaper than the model.
    """
    speculation = engine.speculation
    if speculation.drafter != "draft":
        return None
    name = speculation.model
    place = POCKETS.get(path) if name is None else hub.resolve(name)
    require(
        place is not None, 'draft_model: name a smaller model with the same tokenizer, found none; "draft" needs it'
    )
    assert place is not None
    source = open_source(place)
    shape = loader.load_config(source)
    dtype = dtype_of(engine)
    model = load_model(source, shape, choose_operations(engine, dtype), dtype)
    difference = tokenizer.difference(load_tokenizer(source, shape))
    require(difference is None, f"draft_model: {place}: expected the model's tokenizer, found another: {difference}")
    mine, its = matrix_weights(shape), matrix_weights(target.config)
    if mine >= its:
        warnings.warn(
            f"draft_model: {place} multiplies each token with {mine:,} weights, the model with {its:,}: drafts will "
            "cost more than they save; name a smaller model",
            RuntimeWarning,
            stacklevel=3,
        )
    return model


def new_drafter(
    config: SpeculationConfig, helper: Qwen3 | None, store: Store, blocks: BlockPool, vocab_size: int
) -> Drafter | None:
    """Make the drafter of these settings; None for "none". `store` holds the model's K and V."""
    if config.drafter == "suffix":
        return SuffixDrafter(config.p_min)
    if config.drafter == "lookahead":
        return LookaheadDrafter()
    if config.drafter == "draft":
        assert helper is not None
        return DraftModel(helper, store_like(store, helper), blocks, vocab_size, config.p_min)
    return None


def store_like(store: Store, model: Qwen3) -> Store:
    """Make a store for another model, with as many blocks as `store` and as many slots in each."""
    if isinstance(store, WholeCaches):
        return WholeCaches(lambda: ContiguousCache(model.config, model.ops), store.num_blocks, store.block_size)
    dtype = model.weights["norm"]["weight"].dtype
    return PagedPool(model.config, model.ops, store.num_blocks, store.block_size, dtype)
