"""Free list and reference counts of the pool's blocks.

A block is a number; its K and V are in the arrays of `cache.paged`. Several sequences may read one block. A sequence
may write into a block only while it has the single reference to it (copy-on-write). The prefix tree also has a
reference to each of its blocks.
"""

from collections import Counter
from collections.abc import Iterable

from tiny_llm.config.fields import require
from tiny_llm.course import NotDone


class BlockPool:
    """`num_blocks` blocks of `block_size` token slots with reference counts (vLLM, arXiv:2309.06180).

    `num_evictable` counts the blocks that only the prefix tree references. `uses[block]` counts how often a block was
    allocated: while it stays the same, the block's content is only appended to. Raises ValueError for sizes below 1.
    """

    def __init__(self, num_blocks: int, block_size: int):
        for name, value in (("num_blocks", num_blocks), ("block_size", block_size)):
            require(value >= 1, f"{name}: expected at least 1, found {value}")
        self.num_blocks, self.block_size = num_blocks, block_size
        self.num_evictable = 0
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: the block freed last is allocated first
        self.uses = [0] * num_blocks
        self._ref_counts = [0] * num_blocks
        self._kept = [False] * num_blocks

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_available(self) -> int:
        """The blocks that are free or can be evicted, without preempting a sequence."""
        return len(self._free) + self.num_evictable

    def blocks_for(self, num_tokens: int) -> int:
        """Return the number of blocks that `num_tokens` tokens fill."""
        return -(-num_tokens // self.block_size)

    def ref_count(self, block: int) -> int:
        return self._ref_counts[block]

    def in_use(self, block: int) -> bool:
        """Return whether a sequence or the prefix tree references the block."""
        return self._ref_counts[block] > 0

    def writable(self, block: int) -> bool:
        """Return whether the block has a single reference, so that its owner may write into it."""
        return self._ref_counts[block] == 1

    def allocate(self) -> int:
        """Take a free block and give it one reference. Raises MemoryError where none is free."""
        if not self._free:
            raise MemoryError(f"all {self.num_blocks} blocks are in use: evict or preempt first")
        block = self._free.pop()
        self._ref_counts[block] = 1
        self.uses[block] += 1
        return block

    def upcoming(self, number: int) -> int:
        """Return the block that `allocate` gives after `number` others, if none is freed before."""
        return self._free[-1 - number]

    def share(self, block: int) -> None:
        """Add a reference to a block in use."""
        assert self._ref_counts[block] > 0, f"block {block} is free"
        self.num_evictable -= self._kept[block] and self._ref_counts[block] == 1
        self._ref_counts[block] += 1

    def free(self, block: int) -> None:
        """Drop one reference; at zero the block is free again."""
        # YOUR CODE (w3.5.1): drop a reference
        raise NotDone("w3.5.1")

    def keep(self, block: int) -> None:
        """Add the prefix tree's reference to a block."""
        self.share(block)
        self._kept[block] = True

    def drop(self, block: int) -> None:
        """Drop the prefix tree's reference to a block."""
        assert self._kept[block], f"block {block} is not the tree's"
        self.num_evictable -= self._ref_counts[block] == 1
        self._kept[block] = False
        self.free(block)

    def check(self, tables: Iterable[Iterable[int]], kept: Iterable[int] = ()) -> None:
        """Assert that the counts agree with all sequences' tables and the tree's blocks, and that no block is lost.

        Takes O(blocks) time.
        """
        every, kept = range(self.num_blocks), set(kept)
        held = Counter(block for table in tables for block in table)
        held.update(kept)
        free = [block for block in every if not held[block]]
        marked = {block for block in every if self._kept[block]}
        evictable = [block for block in kept if held[block] == 1]
        assert self._ref_counts == [held[block] for block in every], "reference counts are off"
        assert sorted(self._free) == free, "the free blocks are not the blocks without a reference"
        assert marked == kept, "the tree's blocks are marked wrongly"
        assert self.num_evictable == len(evictable), "num_evictable is off"
