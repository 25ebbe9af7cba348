"""Kept caches: found by the longest common beginning, handed over to one owner, and evicted by last use."""

import random

import pytest

from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.kept import Kept, common_prefix
from tiny_llm.engine.radix import Match


def make_kept(limit: int = 3, num_blocks: int = 8, can_keep=lambda _block, _count: True) -> Kept:
    return Kept(BlockPool(num_blocks, 64), limit, can_keep)


def check(kept: Kept, held: list[list[int]] | None = None) -> None:
    """The counts agree with the sequences' tables and the kept blocks."""
    kept.blocks.check(held or [], kept.texts)


@pytest.mark.parametrize(
    ("a", "b", "limit", "want"),
    [
        ([1, 2, 3], [1, 2, 3], 9, 3),
        ([1, 2, 3], [1, 2, 3], 2, 2),
        ([1, 2, 3], [1, 2, 4, 5], 9, 2),
        ([1, 2], [1, 2, 3], 9, 2),
        ([5], [6], 9, 0),
        ([], [1], 9, 0),
        ([1], [1], 0, 0),
    ],
)
def test_common_prefix(a: list[int], b: list[int], limit: int, want: int) -> None:
    assert common_prefix(a, b, limit) == common_prefix(b, a, limit) == want


def test_the_longest_common_beginning_wins() -> None:
    kept = make_kept()
    blocks = [kept.take_in(tokens) for tokens in ([1, 2, 9, 9, 9], [1, 2, 3, 4, 8], [7, 2, 3])]
    assert kept.match([1, 2, 3, 4, 5, 6]) == Match([blocks[1]], 4, "diverged at token 4")
    assert kept.match([1, 2, 9, 9, 9, 9]).blocks == [blocks[0]]
    assert kept.match([7, 2, 3, 4]) == Match([blocks[2]], 3, "")
    assert kept.match([2, 3]) == Match([], 0, "diverged at token 0")
    assert make_kept().match([1, 2]) == Match([], 0, "first request")


def test_the_last_token_is_always_computed() -> None:
    """Its logits are needed; so a prompt that is kept whole lacks a token, and one of a single token finds nothing."""
    kept = make_kept()
    kept.take_in([1, 2, 3])
    assert kept.match([1, 2, 3]).num_tokens == 2
    assert kept.match([1, 2]).num_tokens == 1
    assert kept.match([1]).num_tokens == 0


def test_a_cache_that_cannot_go_back_is_passed_over() -> None:
    """The next best that can is taken."""
    kept = make_kept(can_keep=lambda block, count: block == second or count >= 4)
    second = -1
    first = kept.take_in([1, 2, 3, 4])
    second = kept.take_in([1, 2, 8])
    assert kept.match([1, 2, 3, 4, 5]).blocks == [first]
    assert kept.match([1, 2, 3, 9]) == Match([second], 2, "diverged at token 2")


def test_what_is_handed_over_is_found_by_nobody_else() -> None:
    kept = make_kept()
    block = kept.take_in([1, 2, 3])
    kept.blocks.share(block)
    kept.hand_over(block)
    assert kept.match([1, 2, 3, 4]).blocks == [] and kept.blocks.writable(block)
    check(kept, [[block]])
    kept.hand_over(block)  # a second time changes nothing
    check(kept, [[block]])


def test_the_limit_evicts_what_was_used_least_recently() -> None:
    kept = make_kept(limit=2)
    first, second = kept.take_in([1, 1, 1]), kept.take_in([2, 2, 2])
    kept.blocks.share(first)  # a request takes the first, and ends
    kept.hand_over(first)
    kept.keep(first, [1, 1, 1, 1])
    kept.blocks.free(first)
    third = kept.take_in([3, 3, 3])
    assert set(kept.texts) == {first, third} and not kept.blocks.in_use(second)
    check(kept)


def test_eviction_frees_the_block() -> None:
    kept = make_kept()
    block = kept.take_in([1, 2])
    assert kept.blocks.num_evictable == 1 and kept.blocks.num_available == 8
    assert kept.evict() == [block]
    assert kept.blocks.num_free == 8
    check(kept)


def test_taking_in_more_than_there_are_blocks_evicts_up_to_the_limit() -> None:
    kept = make_kept(limit=2, num_blocks=3)
    for number in range(9):
        kept.take_in([number, number])
        check(kept)
    assert [text[0] for text in kept.texts.values()] == [7, 8]


def test_forgetting_frees_everything() -> None:
    kept = make_kept()
    for number in range(3):
        kept.take_in([number])
    kept.forget()
    assert not kept.texts and kept.blocks.num_free == 8
    check(kept)


def test_a_random_course_keeps_the_counts_right() -> None:
    """Requests come, take what matches or a free block, and leave it behind; at times all is lost."""
    rng = random.Random(5)
    kept = make_kept(limit=3, num_blocks=6)
    running: list[tuple[int, list[int]]] = []
    for _ in range(2000):
        tokens = [rng.randrange(2) for _ in range(rng.randint(1, 6))]
        chance = rng.random()
        if chance < 0.5 and len(running) < 3:
            found = kept.match(tokens)
            if found.blocks:
                (block,) = found.blocks
                assert kept.texts[block][: found.num_tokens] == tuple(tokens[: found.num_tokens])
                kept.blocks.share(block)
                kept.hand_over(block)
            else:
                if not kept.blocks.num_free:
                    kept.evict()
                block = kept.blocks.allocate()
            running.append((block, tokens))
        elif chance < 0.98 and running:
            block, tokens = running.pop(rng.randrange(len(running)))
            kept.keep(block, tokens)
            kept.blocks.free(block)
        elif chance >= 0.98:
            kept.forget()
        check(kept, [[block] for block, _ in running])
        assert len(kept.texts) <= 3
