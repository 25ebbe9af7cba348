"""3.3 Paged keys and values: where a token of the row stands, which slot is its own, writing there, reading back."""

from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from tests.support import make_config
from tests.week1.oracles import normal
from tiny_llm.config import ModelConfig
from tiny_llm.course.check import Checker, task
from tiny_llm.model.ops import PLAIN

CONFIG = ModelConfig.from_hf(make_config("qwen3", "float32", {"num_key_value_heads": 2, "head_dim": 2}))


@task("w3.3.1")
def test_a_row_of_four_tokens(check: Checker) -> None:
    """One that decodes its sixth token, and a prompt of three."""
    check(lambda m: mx.array(m.positions_of([5, 0], [1, 3])), np.array([5, 0, 1, 2]), axes="T")


@task("w3.3.1")
def test_chunks_that_go_on(check: Checker) -> None:
    want = np.array([4, 5, 6, 9, 0, 2, 3])
    check(lambda m: mx.array(m.positions_of([4, 9, 0, 2], [3, 1, 1, 2])), want, axes="T")


def pairs(found: Any) -> mx.array:
    return mx.array(np.array(found, np.int32))


@task("w3.3.2")
def test_two_tables_by_hand(check: Checker) -> None:
    """Blocks of 4 slots. Token 9 of the first sequence lies in its third block, number 5, at slot 1."""
    tables, positions = np.array([[7, 2, 5], [1, 0, 0]], np.int32), np.array([9, 0, 1, 2], np.int32)
    want = np.array([[5, 1, 1, 1], [1, 0, 1, 2]])
    check(lambda m: pairs(m.slots_of(tables, positions, [1, 3], 4)), want, axes="which T", what="blocks, then slots")


@task("w3.3.2")
def test_a_chunk_over_three_blocks(check: Checker) -> None:
    tables, positions = np.array([[3, 8, 1, 6], [9, 4, 2, 5]], np.int32), np.array([*range(2, 9), 6, 7], np.int32)
    want = np.array([[3, 8, 8, 8, 1, 1, 1, 2, 2], [2, 0, 1, 2, 0, 1, 2, 0, 1]])
    check(lambda m: pairs(m.slots_of(tables, positions, [7, 2], 3)), want, axes="which T", what="blocks, then slots")


def written(m: Any, writes: list[tuple[int, list[int], list[int]]]) -> mx.array:
    """K and V of two layers after some writes, (2, layer, head, block, slot, D); the numbers differ in each write."""
    pool = m.PagedPool(CONFIG, PLAIN, 4, 4)
    for number, (layer, blocks, slots) in enumerate(writes):
        k, v = (mx.array(x) for x in rows(number, len(blocks)))
        pool.write(layer, mx.array(blocks), mx.array(slots), k, v)
    return mx.stack([mx.stack(pool.keys), mx.stack(pool.values)])


def rows(number: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """k and v (T, 2, 2): 1, 2, … and their negatives in the first write."""
    k = np.arange(1, 4 * count + 1, dtype=np.float32).reshape(count, 2, 2) + 100 * number
    return k, -k


def expected(writes: list[tuple[int, list[int], list[int]]]) -> NDArray[np.float32]:
    """Number by number."""
    found = np.zeros((2, 2, 2, 4, 4, 2), np.float32)
    for number, (layer, blocks, slots) in enumerate(writes):
        for side, new in enumerate(rows(number, len(blocks))):
            for token, (block, slot) in enumerate(zip(blocks, slots, strict=True)):
                for head in range(2):
                    found[side, layer, head, block, slot] = new[token, head]
    return found


@task("w3.3.3")
def test_one_token(check: Checker) -> None:
    writes = [(0, [2], [1])]
    check(lambda m: written(m, writes), expected(writes), axes="KV layer H block slot D", what="the pool")


@task("w3.3.3")
def test_a_row_of_tokens_in_both_layers(check: Checker) -> None:
    writes = [(0, [3, 3, 0], [2, 3, 0]), (1, [1, 2, 2], [3, 0, 1])]
    check(lambda m: written(m, writes), expected(writes), axes="KV layer H block slot D", what="the pool")


@task("w3.3.3")
def test_what_was_there_stays_or_is_written_over(check: Checker) -> None:
    writes = [(1, [0, 1], [0, 0]), (1, [1, 3], [0, 3])]
    check(lambda m: written(m, writes), expected(writes), axes="KV layer H block slot D", what="the pool")


@task("w3.3.4")
def test_two_blocks_by_hand(check: Checker) -> None:
    """One head, D = 1: slot s of block b holds 10 b + s."""
    pool = np.array([[[[10 * b + s] for s in range(4)] for b in range(3)]], np.float32)
    want = np.array([[[20], [21], [22], [23], [0], [1]]], np.float32)
    check(lambda m: m.gathered(mx.array(pool), [2, 0], 6), want, axes="H S D")


@task("w3.3.4")
def test_random_pages(check: Checker) -> None:
    pool, table = normal(3, 7, 4, 5), [6, 1, 4]
    want = np.concatenate([pool[:, block] for block in table], axis=1)[:, :9]
    check(lambda m: m.gathered(mx.array(pool), table, 9), want, axes="H S D")
