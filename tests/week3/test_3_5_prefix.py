"""3.5 Prefix caching: counting holders, finding, keeping and giving up blocks."""

from collections.abc import Sequence
from typing import Any

from tiny_llm.course.check import Checker, task
from tiny_llm.engine.blocks import BlockPool


def pool_of(m: Any, num_blocks: int = 8) -> Any:
    return m.BlockPool(num_blocks, 4)


def counts(pool: Any, *blocks: int) -> list[int]:
    """The holders of each block, then the free and the evictable ones."""
    return [*(pool.ref_count(block) for block in blocks), pool.num_free, pool.num_evictable]


@task("w3.5.1")
def test_the_last_holder_frees(check: Checker) -> None:
    def call(m: Any) -> list[list[int]]:
        pool = pool_of(m)
        block = pool.allocate()
        pool.share(block)
        found = [counts(pool, block)]
        for _ in range(2):
            pool.free(block)
            found.append(counts(pool, block))
        return found

    check(call, [[2, 7, 0], [1, 7, 0], [0, 8, 0]], what="holders, free, evictable")


@task("w3.5.1")
def test_a_freed_block_goes_out_again(check: Checker) -> None:
    def call(m: Any) -> list[int]:
        pool = pool_of(m, 3)
        taken = [pool.allocate() for _ in range(3)]
        pool.free(taken[1])
        return [pool.allocate() - taken[1], pool.num_free]

    check(call, [0, 0], what="difference of the block numbers, free")


@task("w3.5.1")
def test_what_the_tree_keeps_is_evictable(check: Checker) -> None:
    def call(m: Any) -> list[list[int]]:
        pool = pool_of(m)
        kept, own = pool.allocate(), pool.allocate()
        pool.keep(kept)
        pool.share(kept)
        found = [counts(pool, kept, own)]
        for block in (kept, own, kept):
            pool.free(block)
            found.append(counts(pool, kept, own))
        return found

    want = [[3, 1, 6, 0], [2, 1, 6, 0], [2, 0, 7, 0], [1, 0, 7, 1]]
    check(call, want, what="holders (kept, own), free, evictable")


@task("w3.5.1")
def test_a_free_block_cannot_be_freed(check: Checker) -> None:
    def call(m: Any) -> str:
        pool = pool_of(m)
        try:
            pool.free(3)
        except AssertionError:
            return f"AssertionError, free {pool.num_free}"
        return f"free {pool.num_free}"

    check(call, "AssertionError, free 8", what="of a block that nobody holds")


def tree_of(m: Any, num_blocks: int = 12) -> Any:
    return m.RadixTree(BlockPool(num_blocks, 4))


def put(tree: Any, tokens: Sequence[int]) -> list[int]:
    """Keep a text that nobody reads any more. It is put in with the reference's way of adding a node."""
    node, found = tree.root, []
    for i in range(len(tokens) // 4):
        words = tuple(tokens[4 * i : 4 * i + 4])
        child = node.children.get(words)
        if child is None:
            child = tree._add(node, words, tree.blocks.allocate())
            tree.blocks.free(child.block)
        node = child
        found.append(node.block)
    tree._touch(node)
    return found


@task("w3.5.2")
def test_whole_blocks_are_found(check: Checker) -> None:
    def call(m: Any) -> list[Any]:
        tree = tree_of(m)
        put(tree, range(12))
        texts = [range(14), [*range(6), 99, 99, 99], [99, *range(9)], range(3)]
        return [list(tree.match(list(text))[:2]) for text in texts]

    want = [[[0, 1, 2], 12], [[0], 4], [[], 0], [[], 0]]
    check(call, want, what="blocks and tokens found of 12 known ones")


@task("w3.5.2")
def test_the_last_token_is_left_to_compute(check: Checker) -> None:
    def call(m: Any) -> list[Any]:
        tree = tree_of(m)
        put(tree, range(12))
        return [tree.match(range(length)).num_tokens for length in (12, 13, 8, 9)]

    check(call, [8, 12, 4, 8], what="tokens found of prompts of 12, 13, 8 and 9")


@task("w3.5.2")
def test_going_on_after_what_is_held(check: Checker) -> None:
    def call(m: Any) -> list[Any]:
        tree = tree_of(m)
        blocks = put(tree, range(12))
        return list(tree.match(range(14), held=blocks[:1])[:2])

    check(call, [[1, 2], 8], what="found after one block that is held")


@task("w3.5.2")
def test_what_was_found_is_used_last(check: Checker) -> None:
    def call(m: Any) -> list[int]:
        tree = tree_of(m)
        put(tree, range(8))
        put(tree, range(50, 58))
        tree.match([*range(8), 1])
        return list(tree.nodes)

    check(call, [3, 2, 1, 0], what="order of use")


@task("w3.5.2")
def test_a_reason_is_given(check: Checker) -> None:
    def call(m: Any) -> list[str]:
        tree = tree_of(m)
        found = [tree.match(range(9)).reason]
        put(tree, range(8))
        return [*found, tree.match([*range(6), 9, 9, 9]).reason, tree.match(range(9)).reason]

    check(call, ["first request", "diverged at token 6", ""], what="reasons")


def hold(tree: Any, tokens: Sequence[int]) -> list[int]:
    """Compute a text in blocks of its own and keep them; the table to hold from then on."""
    own = [tree.blocks.allocate() for _ in range(-(-len(tokens) // 4))]
    return list(tree.insert(list(tokens), own))


@task("w3.5.3")
def test_a_new_text(check: Checker) -> None:
    def call(m: Any) -> list[Any]:
        tree = tree_of(m)
        table = hold(tree, range(10))
        return [table, counts(tree.blocks, 0, 1, 2), list(tree.nodes), tree.path(1)]

    want = [[0, 1, 2], [2, 2, 1, 9, 0], [1, 0], list(range(8))]
    check(call, want, what="table, holders with free and evictable, order of use, path to block 1")


@task("w3.5.3")
def test_what_another_computed_is_taken_over(check: Checker) -> None:
    """The second one's own copies 2 and 3 are freed; both hold the first's, and the tree."""

    def call(m: Any) -> list[Any]:
        tree = tree_of(m)
        hold(tree, range(8))
        return [hold(tree, range(10)), counts(tree.blocks, 0, 1, 2, 3, 4)]

    check(call, [[0, 1, 4], [3, 3, 0, 0, 1, 9, 0]], what="table, holders with free and evictable")


@task("w3.5.3")
def test_going_on_and_turning_off(check: Checker) -> None:
    def call(m: Any) -> list[Any]:
        tree = tree_of(m)
        table = hold(tree, range(8))
        longer = tree.insert(list(range(12)), [*table, tree.blocks.allocate()])
        other = hold(tree, [*range(4), *range(50, 54)])
        return [longer, other, tree.path(longer[2]), tree.path(other[1]), list(tree.nodes)]

    want = [[0, 1, 2], [0, 4], list(range(12)), [0, 1, 2, 3, 50, 51, 52, 53], [2, 1, 4, 0]]
    check(call, want, what="tables, paths, order of use")


@task("w3.5.4")
def test_the_oldest_leaf_goes(check: Checker) -> None:
    def call(m: Any) -> list[Any]:
        tree = tree_of(m)
        put(tree, range(8))
        put(tree, [*range(4), *range(50, 54)])
        put(tree, range(70, 74))
        tree.match([*range(8), 1])
        return [tree.evict(1), tree.evict(2), tree.evict(5), tree.blocks.num_free]

    check(call, [[2], [3, 1], [0], 12], what="evicted, one after the other, and free")


@task("w3.5.4")
def test_what_is_read_stays(check: Checker) -> None:
    def call(m: Any) -> list[Any]:
        tree = tree_of(m)
        first = put(tree, range(8))
        put(tree, range(50, 58))
        for block in first:
            tree.blocks.share(block)
        return [tree.evict(1), tree.evict(5), list(tree.nodes)]

    check(call, [[3], [2], [1, 0]], what="evicted, and what is left")


@task("w3.5.4")
def test_nothing_to_evict(check: Checker) -> None:
    def call(m: Any) -> list[Any]:
        tree = tree_of(m)
        found = [tree.evict(1)]
        tree.blocks.share(put(tree, range(4))[0])
        return [*found, tree.evict(1)]

    check(call, [[], []], what="evicted")
