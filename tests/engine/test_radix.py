"""The prefix tree by itself, against a plain list of every text that was put in."""

from collections.abc import Sequence
from random import Random

import pytest

from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.radix import RadixTree


def put(tree: RadixTree, tokens: Sequence[int]) -> list[int]:
    """Compute a text and finish: its whole blocks are the tree's afterwards."""
    blocks = tree.insert(tokens, [tree.blocks.allocate() for _ in range(tree.blocks.blocks_for(len(tokens)))])
    for block in blocks:
        tree.blocks.free(block)
    return blocks[: len(tokens) // tree.blocks.block_size]


@pytest.fixture
def tree() -> RadixTree:
    return RadixTree(BlockPool(8, 4))


def test_a_prefix_is_found_by_whole_blocks(tree: RadixTree) -> None:
    blocks = put(tree, range(10))
    assert tree.match([*range(10), 99]).blocks == blocks
    assert tree.match([*range(7), 99, 99]).blocks == blocks[:1]
    assert tree.match(range(10), held=blocks[:1]).blocks == blocks[1:]


def test_the_last_token_is_never_found(tree: RadixTree) -> None:
    """Its logits are wanted, so it has to be computed."""
    blocks = put(tree, range(8))
    assert tree.match(range(8)).blocks == blocks[:1]
    assert tree.match(range(9)).blocks == blocks
    assert tree.match([0]).blocks == []


def test_equal_texts_share_and_the_second_copy_is_freed(tree: RadixTree) -> None:
    first = put(tree, range(8))
    mine = [tree.blocks.allocate() for _ in range(3)]
    held = tree.insert(range(10), mine)
    assert held == [*first, mine[2]]
    assert tree.blocks.ref_count(mine[0]) == 0 and tree.blocks.ref_count(first[0]) == 2
    tree.blocks.check([held], tree.nodes)


def test_the_least_recently_used_leaf_goes_first(tree: RadixTree) -> None:
    a, b = put(tree, [1, 1, 1, 1, 2, 2, 2, 2]), put(tree, [1, 1, 1, 1, 3, 3, 3, 3])
    c = put(tree, [4, 4, 4, 4])
    tree.match([1, 1, 1, 1, 2, 2, 2, 2, 0])
    assert tree.evict(2) == [b[1], c[0]]
    assert tree.evict(9) == [a[1], a[0]] and tree.blocks.num_free == 8


def test_what_a_sequence_reads_stays(tree: RadixTree) -> None:
    blocks = put(tree, range(8))
    tree.blocks.share(blocks[0])
    assert tree.evict(5) == [blocks[1]]
    assert list(tree.nodes) == [blocks[0]]


def test_a_miss_has_a_reason(tree: RadixTree) -> None:
    text = list(range(12))
    assert tree.match(text[:4]).reason == "not longer than a block"
    assert tree.match(text).reason == "first request"
    put(tree, text[:8])
    assert tree.match([*range(6), 77, 77, 77]).reason == "diverged at token 6"
    assert tree.match([77, *range(8)]).reason == "diverged at token 0"
    assert tree.match([*range(6), 77, 77, 77], head=7).reason == (
        "different system prompt, tools or template settings: diverged at token 6 of its 7"
    )
    assert tree.match([*range(12), 1]).reason == "new from token 8"
    assert tree.match(text[:9]).reason == ""
    tree.evict(1)
    assert tree.match(text).reason == "evicted from token 4"
    put(tree, text[:8])
    assert tree.match(text[:9]).reason == ""


def test_against_a_list_of_texts() -> None:
    """Without eviction a match is the longest common run of whole blocks with any text put in."""
    random = Random(0)
    tree, texts = RadixTree(BlockPool(4000, 3)), list[list[int]]()
    for _ in range(400):
        text = [random.randrange(2) for _ in range(random.randrange(1, 20))]
        common = [
            next((i for i, (x, y) in enumerate(zip(t, text, strict=False)) if x != y), min(len(t), len(text))) // 3
            for t in texts
        ]
        assert len(tree.match(text).blocks) == min(max(common, default=0), (len(text) - 1) // 3)
        put(tree, text)
        texts.append(text)
        tree.check()
