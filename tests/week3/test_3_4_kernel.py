"""3.4 The paged attention kernel: a key's place by its sequence's table, for one query and for many."""

import mlx.core as mx
import numpy as np

from tests.kernels.oracles import causal_attention, of_table, soft
from tests.week1.oracles import normal
from tiny_llm.course.check import Checker, task

TABLES = [[4, 1, 2], [0, 3, 0]]


def pools(heads: int, blocks: int, size: int, dim: int) -> tuple[mx.array, mx.array]:
    return mx.array(normal(heads, blocks, size, dim, seed=1)), mx.array(normal(heads, blocks, size, dim, seed=2))


@task("w3.4.1")
def test_every_value_by_its_place(check: Checker) -> None:
    """Keys of 0 weigh all values alike, and value p of a sequence is p: the result is the mean of the positions."""
    keys, tables = mx.zeros((1, 5, 4, 2)), mx.array(TABLES, mx.int32)
    values = np.zeros((1, 5, 4, 2), np.float32)
    for table in TABLES:
        for position in range(8 if table[2] == 0 else 12):
            values[0, table[position // 4], position % 4] = position
    lengths, q = mx.array([10, 6], mx.int32), mx.ones((2, 1, 2))
    want = np.array([[[4.5, 4.5]], [[2.5, 2.5]]])
    check(lambda m: m.paged_decode(q, keys, mx.array(values), tables, lengths, 1.0), want, axes="R H D")


@task("w3.4.1")
def test_grouped_heads_and_random_pages(check: Checker) -> None:
    keys, values = pools(2, 5, 4, 40)
    q, lengths = mx.array(normal(2, 6, 40)), [11, 7]
    want = np.zeros((2, 6, 40))
    for r, h in np.ndindex(2, 6):
        k, v = (of_table(np.array(pool), TABLES[r], lengths[r])[h // 3].astype(np.float64) for pool in (keys, values))
        want[r, h] = soft(k @ np.array(q)[r, h] * 0.2) @ v
    arguments = (q, keys, values, mx.array(TABLES, mx.int32), mx.array(lengths, mx.int32), 0.2)
    check(lambda m: m.paged_decode(*arguments), want, axes="R H D", terms=40)


@task("w3.4.1")
def test_more_keys_than_one_chunk(check: Checker) -> None:
    """300 keys are two chunks of 256, in blocks of 16 that lie backwards."""
    keys, values = pools(1, 19, 16, 8)
    table, q = list(range(18, -1, -1)), mx.array(normal(1, 1, 8))
    k, v = (of_table(np.array(pool), table, 300)[0].astype(np.float64) for pool in (keys, values))
    want = (soft(k @ np.array(q)[0, 0] * 0.5) @ v)[None, None]
    arguments = (q, keys, values, mx.array([table], mx.int32), mx.array([300], mx.int32), 0.5)
    check(lambda m: m.paged_decode(*arguments), want, axes="R H D", terms=300)


def causal(q: mx.array, keys: mx.array, values: mx.array, tables: list[list[int]], spans: list[tuple[int, int]]):
    rows = list(zip(tables, spans, strict=True))
    k, v = (
        np.concatenate([of_table(np.array(pool, np.float64), t, n) for t, (_, n) in rows], axis=1)
        for pool in (keys, values)
    )
    return causal_attention(np.array(q, np.float64), k, v, spans, 0.3, 0)


@task("w3.4.2")
def test_a_prompt_of_six_tokens(check: Checker) -> None:
    keys, values = pools(1, 3, 4, 8)
    q, tables, spans = mx.array(normal(6, 1, 8)), [[2, 0]], [(6, 6)]
    want = causal(q, keys, values, tables, spans)
    arguments = (q, keys, values, mx.array(tables, mx.int32), spans, 0.3)
    check(lambda m: m.paged_prefill(*arguments), want, axes="T H D", terms=8)


@task("w3.4.2")
def test_a_chunk_a_draft_and_one_that_decodes(check: Checker) -> None:
    """One row of tokens of three sequences, two key-value heads, and keys over more than one tile."""
    keys, values = pools(2, 24, 3, 16)
    tables = [[*range(23, 9, -1)], [5, 2, 8, *[0] * 11], [9, 1, *[0] * 12]]
    q, spans = mx.array(normal(9 + 3 + 1, 4, 16)), [(9, 40), (3, 8), (1, 5)]
    want = causal(q, keys, values, tables, spans)
    arguments = (q, keys, values, mx.array(tables, mx.int32), spans, 0.3)
    check(lambda m: m.paged_prefill(*arguments), want, axes="T H D", terms=40)
