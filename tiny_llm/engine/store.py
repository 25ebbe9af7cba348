"""Where K and V live: the pages of a pool, or a whole cache for each sequence."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tiny_llm.cache.block_files import BlockFiles
from tiny_llm.cache.choose import new_cache, num_blocks_for, slot_bytes
from tiny_llm.cache.packed import PackedPool
from tiny_llm.cache.paged import PagedPool
from tiny_llm.cache.view import Span
from tiny_llm.cache.whole import WholeCaches
from tiny_llm.config import EngineConfig
from tiny_llm.config.fields import require
from tiny_llm.config.serving import ServingConfig
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.events import Event
from tiny_llm.engine.kept import Kept
from tiny_llm.engine.radix import RadixTree
from tiny_llm.engine.scheduler import Scheduler
from tiny_llm.model.fingerprint import fingerprint
from tiny_llm.model.memory import available_bytes
from tiny_llm.model.qwen3 import Attends, Qwen3

USUAL_CONTEXT = 4096  # tokens of a sequence that the default pool has room for


class Store(Protocol):
    """What the runner asks of the place where K and V live."""

    num_blocks: int
    block_size: int

    def batch(self, spans: Sequence[Span]) -> Attends:
        """The cache of one step, for these sequences in the order of the flat row."""

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, source to target. A target that is also a source gives its old content."""

    def ahead(self) -> Any:
        """A copy on which to build a future step; `adopt` makes it current."""

    def adopt(self, other: Any) -> None:
        """Take over what was built on `ahead`."""

    def mend(self) -> bool:
        """After a step that failed: make the buffers usable. False where all that they held is lost."""

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""

    @property
    def state(self) -> list[Any]:
        """The arrays to evaluate."""


def new_store(model: Qwen3, engine: EngineConfig, serving: ServingConfig, max_context: int) -> Store:
    """A pool of pages, or where `engine` asks for rotating caches one for each sequence.

    Raises ValueError for settings of a pool where there is none.
    """
    if engine.cache != "rotating":
        return paged_store(model, engine, serving, max_context)
    for name in ("kv_bytes", "block_size", "disk_folder"):
        found = getattr(serving, name)
        usual = getattr(ServingConfig, name)
        words = f"{name}: {found!r} is for a pool of pages, and rotating caches have none; leave it out"
        require(found == usual, words)
    slots = serving.scheduler.max_sequences
    return whole_store(model, engine, slots, max_context, kept=slots)


def new_scheduler(
    model: Qwen3, store: Store, serving: ServingConfig, emit: Callable[[Event], None] | None
) -> Scheduler:
    """The policy over the store's blocks, with what it keeps of earlier requests."""
    blocks = BlockPool(store.num_blocks, store.block_size)
    tree: RadixTree | None = None
    kept: Kept | None = None
    if serving.prefix_cache and isinstance(store, WholeCaches):
        kept = Kept(blocks, store.kept, store.can_keep)
    elif serving.prefix_cache and isinstance(store, PagedPool):
        tree = RadixTree(blocks, _files(model, store, serving))
    return Scheduler(serving.scheduler, blocks, tree, emit, kept)


def _files(model: Qwen3, pool: PagedPool, serving: ServingConfig) -> BlockFiles | None:
    """Where the prefix tree's blocks go that the pool has no room for."""
    if serving.disk_folder is None:
        return None
    name = fingerprint(model.config, model.weights)
    try:
        return BlockFiles(Path(serving.disk_folder), serving.disk_bytes, pool, name)
    except OSError as error:
        raise ValueError(f"disk_folder: {error}; name a folder that can be made, read and written") from error


def paged_store(model: Qwen3, engine: EngineConfig, serving: ServingConfig, max_context: int) -> PagedPool:
    """A pool of the size that the settings give; packed where `engine` asks for few bits."""
    config, size = model.config, serving.block_size
    dtype = model.weights["norm"]["weight"].dtype
    budget = serving.kv_bytes
    if budget is None:
        slots = -(-min(max_context, USUAL_CONTEXT) // size) * size
        budget = serving.scheduler.max_sequences * slots * slot_bytes(config, engine, dtype.size)
        free = available_bytes()
        budget = budget if free is None else min(budget, free // 4)
    count = num_blocks_for(config, engine, budget, size, dtype.size)
    if engine.packed_bits is None:
        return PagedPool(config, model.ops, count, size, dtype)
    return PackedPool(config, model.ops, count, size, dtype, engine.packed_bits, engine.kv_group_size)


def whole_store(model: Qwen3, engine: EngineConfig, max_sequences: int, max_context: int, kept: int) -> WholeCaches:
    """A cache of the kind that `engine` names for each of `max_sequences` sequences, and as many to copy into.

    `kept` caches of sequences that have ended stay for later requests.
    """

    def make() -> Any:
        return new_cache(model.config, model.ops, engine)

    return WholeCaches(make, 2 * max_sequences + kept, max_context, kept)
