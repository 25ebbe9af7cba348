"""Pages in few bits: near the full ones, smaller, written in place, and served like them."""

import mlx.core as mx
import numpy as np
import pytest

from tests.cache.kinds import BITS, GROUPS, KINDS, inputs, oracle, shape, step
from tests.cache.test_paged import scattered, whole
from tests.engine.test_loop import SAMPLED, packed, request, run, summary
from tests.model.parity import prompt
from tests.support import make_model
from tiny_llm import LLM, load
from tiny_llm.cache.choose import num_blocks_for, slot_bytes
from tiny_llm.cache.packed import PackedPool
from tiny_llm.cache.paged import PagedBatch
from tiny_llm.config import EngineConfig, SchedulerConfig
from tiny_llm.config.serving import ServingConfig
from tiny_llm.engine.loop import Loop
from tiny_llm.kernels.table import with_kernels
from tiny_llm.model.ops import PLAIN

EIGHT = EngineConfig(cache="quantized", kv_bits=8)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return load(make_model(tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dim", GROUPS)
def test_pages_give_the_attention_of_the_definition_at_each_width(dim: int, bits: int) -> None:
    """Every fixture was 32 wide, so that a pool with groups of 32 at any width passed."""
    config, sizes = shape(dim=dim), [9, 1, 1, 13, 1, 5]
    q, k, v = inputs(config, sum(sizes))
    (table,), count = scattered([list(range(sum(sizes)))], 4)
    pool = PackedPool(config, PLAIN, count, 4, bits=bits)
    parts, at = [], 0
    for size in sizes:
        batch = PagedBatch(pool, [table], [at], [size])
        parts.append(batch.attend(0, *(x[at : at + size] for x in (q, k, v))))
        at += size
    want = oracle(f"{bits} bits", q, k, v, GROUPS[dim])
    np.testing.assert_allclose(np.array(mx.concatenate(parts)), want, rtol=1e-4, atol=2e-5)
    assert pool.packed[0][0][1].shape[-1] == dim // GROUPS[dim], "scales of a key"


@pytest.mark.parametrize("table", ["plain", "twins"])
@pytest.mark.parametrize("kind", BITS)
@pytest.mark.parametrize("dim", GROUPS)
def test_packed_caches_give_it_as_well(dim: int, kind: str, table: str) -> None:
    config = shape(dim=dim)
    layer = inputs(config, 31)
    cache = KINDS[kind](config, PLAIN if table == "plain" else with_kernels(PLAIN, "plain"))
    parts, at = [], 0
    for size in (4, 1, 1, 13, 1, 11):
        parts += step(cache, [layer], at, at + size)
        at += size
    want = oracle(kind, *layer, GROUPS[dim])
    np.testing.assert_allclose(np.array(mx.concatenate(parts)), want, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("dim", [64, 128])
def test_a_served_model_of_another_width_keeps_near_the_full_one(dim: int, tmp_path_factory) -> None:
    wide = load(make_model(tmp_path_factory.mktemp("model"), head_dim=dim))
    tokens = prompt(21, seed=1)
    (table,), count = scattered([tokens], 4)
    pool = PackedPool(wide.config, wide.model.ops, count, 4)
    wide.model.hidden_states(mx.array(tokens[:15]), PagedBatch(pool, [table], [0], [15]))
    got = wide.model(mx.array(tokens[15:]), PagedBatch(pool, [table], [15], [6]))
    assert 1e-5 < np.abs(np.array(got) - whole(wide.model, tokens)[15:]).max() < 0.1
    each = 16 * slot_bytes(wide.config, EIGHT, 4)
    assert PackedPool(wide.config, wide.model.ops, 3, 16).nbytes == 3 * each


@pytest.mark.parametrize(("bits", "apart"), [(8, 0.1), (4, 2.0)])
def test_a_mixed_step_is_near_the_full_one(llm: LLM, bits: int, apart: float) -> None:
    """Two that decode beside a chunk, on scattered blocks; the logits are of size 1."""
    sequences = [prompt(21, seed=1), prompt(6, seed=2), prompt(17, seed=3)]
    tables, count = scattered(sequences, 4)
    pool = PackedPool(llm.config, llm.model.ops, count, 4, bits=bits)
    first = [20, 5, 9]
    row = [t for tokens, n in zip(sequences, first, strict=True) for t in tokens[:n]]
    llm.model.hidden_states(mx.array(row), PagedBatch(pool, tables, [0, 0, 0], first))
    rest = [t for tokens, n in zip(sequences, first, strict=True) for t in tokens[n:]]
    got = np.array(llm.model(mx.array(rest), PagedBatch(pool, tables, first, [1, 1, 8])))
    want = np.concatenate([whole(llm.model, tokens)[n:] for tokens, n in zip(sequences, first, strict=True)])
    worst = np.abs(got - want).max()
    assert 1e-5 < worst < apart


def test_nobody_meets_what_an_old_owner_left(llm: LLM) -> None:
    tokens, table, got = prompt(11), [2, 0, 3], []
    for fill in (0.0, mx.nan):
        pool = PackedPool(llm.config, llm.model.ops, 4, 4)
        for sides in pool.packed:
            for _, scales, biases in sides:
                scales[:], biases[:] = fill, fill
        llm.model.hidden_states(mx.array(tokens[:10]), PagedBatch(pool, [table], [0], [10]))
        got.append(np.array(llm.model(mx.array(tokens[10:]), PagedBatch(pool, [table], [10], [1]))))
    np.testing.assert_array_equal(*got)


def test_takes_the_bytes_that_it_says(llm: LLM) -> None:
    each = 16 * slot_bytes(llm.config, EIGHT, 4)
    assert each < 0.4 * 16 * slot_bytes(llm.config, EngineConfig(), 4)
    assert num_blocks_for(llm.config, EIGHT, 7 * each, 16, 4) == 7
    assert PackedPool(llm.config, llm.model.ops, 7, 16, bits=8).nbytes == 7 * each


def test_steps_and_copies_are_in_place(llm: LLM) -> None:
    pool = PackedPool(llm.config, llm.model.ops, 1 << 14, 16)
    tables = [list(range(i * 16, i * 16 + 16)) for i in range(8)]
    step = lambda n: llm.model(mx.zeros(8, mx.int32), PagedBatch(pool, tables, [n] * 8, [1] * 8)).sum()  # noqa: E731
    mx.eval(step(0))
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    step(1).item()
    step(2).item()
    pool.copy_blocks([(0, 9000)])
    assert mx.get_peak_memory() - before < pool.state[0].nbytes / 4
    for buffer in pool.state:
        np.testing.assert_array_equal(np.array(buffer[:, 9000]), np.array(buffer[:, 0]))


def test_served_answers_do_not_depend_on_neighbours(llm: LLM) -> None:
    texts = []
    for neighbours in (0, 5):
        scheduler = SchedulerConfig(token_budget=24, max_sequences=8)
        loop = Loop(llm.model, llm.tokenizer, ServingConfig(2**19, 8, scheduler=scheduler), engine=packed(8))
        others = [request(llm, f"n{i}", range(i, i + 25), SAMPLED) for i in range(neighbours)]
        texts.append(summary(run(loop, [*others, request(llm, "mine", range(40, 60), SAMPLED)])["mine"][0]))
    assert texts[0] == texts[1]
