"""The allocator by itself: counting, copy-on-write, and a check that notices."""

import pytest

from tiny_llm.engine.blocks import BlockPool


def test_blocks_go_out_once_and_come_back() -> None:
    pool = BlockPool(3, 16)
    taken = [pool.allocate() for _ in range(3)]
    assert sorted(taken) == [0, 1, 2] and pool.num_free == 0
    with pytest.raises(MemoryError, match="all 3 blocks are in use: evict or preempt"):
        pool.allocate()
    pool.free(taken[1])
    assert pool.num_free == 1 and pool.allocate() == taken[1]


def test_a_shared_block_is_free_when_its_last_holder_lets_go() -> None:
    pool = BlockPool(2, 16)
    block = pool.allocate()
    assert pool.writable(block)
    pool.share(block)
    assert not pool.writable(block) and pool.ref_count(block) == 2
    pool.free(block)
    assert pool.writable(block) and pool.num_free == 1
    pool.free(block)
    assert pool.num_free == 2
    with pytest.raises(AssertionError, match="free already"):
        pool.free(block)


def test_what_only_the_tree_holds_is_evictable() -> None:
    pool = BlockPool(2, 16)
    block = pool.allocate()
    pool.keep(block)
    assert pool.num_evictable == 0
    pool.free(block)
    assert (pool.num_evictable, pool.num_free, pool.num_available) == (1, 1, 2)
    pool.share(block)
    assert pool.num_evictable == 0
    pool.free(block)
    pool.drop(block)
    assert (pool.num_evictable, pool.num_free) == (0, 2)
    with pytest.raises(AssertionError, match="is not the tree's"):
        pool.drop(block)


def test_a_block_can_be_dropped_by_the_tree_while_a_sequence_holds_it() -> None:
    pool = BlockPool(2, 16)
    block = pool.allocate()
    pool.keep(block)
    pool.drop(block)
    assert (pool.ref_count(block), pool.num_evictable, pool.num_free) == (1, 0, 1)


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2)])
def test_blocks_for(tokens: int, blocks: int) -> None:
    assert BlockPool(2, 16).blocks_for(tokens) == blocks


def test_check_notices() -> None:
    pool = BlockPool(4, 16)
    a, b = pool.allocate(), pool.allocate()
    pool.keep(b)
    pool.check([[a, b]], [b])
    for tables, kept in (([[a]], [b]), ([[a, b], [a]], [b]), ([[a, b]], []), ([[a, b], [2]], [b])):
        with pytest.raises(AssertionError):
            pool.check(tables, kept)


@pytest.mark.parametrize(("blocks", "size", "name"), [(0, 16, "num_blocks"), (4, 0, "block_size")])
def test_sizes_are_checked(blocks: int, size: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, found 0"):
        BlockPool(blocks, size)
