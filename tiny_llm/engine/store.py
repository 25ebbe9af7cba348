"""Make the store of K and V: the pages of a pool, or a whole cache for each sequence."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tiny_llm.cache.block_files import BlockFiles
from tiny_llm.cache.choose import new_cache, num_blocks_for, slot_bytes
from tiny_llm.cache.packed import PackedPool
from tiny_llm.cache.paged import PagedPool
from tiny_llm.cache.view import Span, View
from tiny_llm.cache.whole import WholeCaches
from tiny_llm.config import EngineConfig
from tiny_llm.config.fields import require
from tiny_llm.config.serving import ServingConfig
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.events import Event
from tiny_llm.engine.kept import Kept
from tiny_llm.engine.radix import RadixTree
from tiny_llm.engine.scheduler import Scheduler
from tiny_llm.model.memory import available_bytes
from tiny_llm.model.qwen3 import Attends, Qwen3

USUAL_CONTEXT = 4096  # tokens of a sequence that the default pool has room for


class Store(Protocol):
    """The interface between the runner and the memory that holds K and V."""

    num_blocks: int
    block_size: int

    def batch(self, spans: Sequence[Span]) -> Attends:
        """Return the cache of one step, for these spans in the order of the flat row."""

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, source to target. All sources are read before a target is written."""

    def move(self, view: View, sources: Sequence[int], start: int) -> None:
        """Move K and V from these slots of a view to the slots from `start` on; where slots are no more than order."""

    def ahead(self) -> Any:
        """Return a shallow copy on which to build a future step; `adopt` makes it current."""

    def adopt(self, other: Any) -> None:
        """Take over the state of a copy that `ahead` made."""

    def mend(self) -> bool:
        """After a step that failed: make the buffers usable. Returns False where all K and V are lost."""

    @property
    def nbytes(self) -> int:
        """The size of the buffers in bytes."""

    @property
    def state(self) -> list[Any]:
        """The arrays to evaluate."""


def new_store(model: Qwen3, engine: EngineConfig, serving: ServingConfig, max_context: int, beside: int = 0) -> Store:
    """Make a pool of pages, or where `engine` asks for rotating caches, a cache for each sequence.

    `beside`: the bytes that a drafter keeps beside each slot of a pool.

    Raises ValueError for settings of a pool together with rotating caches.
    """
    if engine.cache != "rotating":
        return paged_store(model, engine, serving, max_context, beside)
    for name in ("kv_bytes", "block_size", "disk_folder"):
        found = getattr(serving, name)
        usual = getattr(ServingConfig, name)
        words = f"{name}: rotating caches have no pool of pages, found {found!r}; leave it out"
        require(found == usual, words)
    slots = serving.scheduler.max_sequences
    return whole_store(model, engine, slots, max_context, kept=slots)


def new_scheduler(
    model: Qwen3, store: Store, serving: ServingConfig, emit: Callable[[Event], None] | None
) -> Scheduler:
    """Make the scheduler over the store's blocks, with a prefix tree, or kept caches for a store of whole caches."""
    blocks = BlockPool(store.num_blocks, store.block_size)
    tree: RadixTree | None = None
    kept: Kept | None = None
    if serving.prefix_cache and isinstance(store, WholeCaches):
        kept = Kept(blocks, store.kept, store.can_keep)
    elif serving.prefix_cache and isinstance(store, PagedPool):
        tree = RadixTree(blocks, _files(model, store, serving))
    return Scheduler(serving.scheduler, blocks, tree, emit, kept)


def _files(model: Qwen3, pool: PagedPool, serving: ServingConfig) -> BlockFiles | None:
    """Open the folder for the blocks that the prefix tree evicts; None where none is configured."""
    if serving.disk_folder is None:
        return None
    try:
        return BlockFiles(Path(serving.disk_folder), serving.disk_bytes, pool, model.fingerprint)
    except OSError as error:
        raise ValueError(f"disk_folder: {error}; name a folder that can be made, read and written") from error


def paged_store(
    model: Qwen3, engine: EngineConfig, serving: ServingConfig, max_context: int, beside: int = 0
) -> PagedPool:
    """Make a pool of the configured size, with packed pages where `engine` asks for few bits."""
    config, size = model.config, serving.block_size
    dtype = model.weights["norm"]["weight"].dtype
    budget = serving.kv_bytes
    if budget is None:
        slots = -(-min(max_context, USUAL_CONTEXT) // size) * size
        each = slot_bytes(config, engine, dtype.size) + beside
        budget = serving.scheduler.max_sequences * slots * each
        free = available_bytes()
        budget = budget if free is None else min(budget, free // 4)
    count = num_blocks_for(config, engine, budget, size, dtype.size, beside)
    if engine.packed_bits is None:
        return PagedPool(config, model.ops, count, size, dtype)
    return PackedPool(config, model.ops, count, size, dtype, engine.packed_bits, engine.kv_group_size)


def whole_store(model: Qwen3, engine: EngineConfig, max_sequences: int, max_context: int, kept: int) -> WholeCaches:
    """Make a store of whole caches, of the kind that `engine` names, for `max_sequences` sequences.

    It has as many caches again as targets of copies, and keeps `kept` caches of ended sequences for later requests.
    """

    def make() -> Any:
        return new_cache(model.config, model.ops, engine)

    return WholeCaches(make, 2 * max_sequences + kept, max_context, kept)
