"""The paged pool: any mix of sequences in one step gives each of them the logits of its own whole run."""

import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.conftest import kernel_cache  # noqa: F401
from tests.model.parity import close, ours, prompt
from tests.support import make_model
from tiny_llm.cache import paged
from tiny_llm.cache.choose import num_blocks_for, slot_bytes
from tiny_llm.cache.packed import PackedPool
from tiny_llm.cache.paged import PagedBatch, PagedPool
from tiny_llm.cache.recompute import RecomputeCache
from tiny_llm.cache.tables import groups_of
from tiny_llm.cache.view import View
from tiny_llm.config import EngineConfig
from tiny_llm.engine.request import SequenceId, Share
from tiny_llm.kernels.catalog import paged_decode_arguments
from tiny_llm.kernels.paged_attention import Pages, paged_decode, paged_decode_plain
from tiny_llm.kernels.table import paged_on
from tiny_llm.model.qwen3 import Qwen3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Qwen3:
    return ours(make_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Qwen3:
    """Layer 0 sees all, layer 1 the last five tokens."""
    window = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
    return ours(make_model(tmp_path_factory.mktemp("model"), "qwen2", **window))


def whole(model: Qwen3, tokens: list[int]) -> np.ndarray:
    return np.array(model(mx.array(tokens), RecomputeCache(model.config, model.ops)))


def pool_of(model: Qwen3, num_blocks: int, block_size: int) -> PagedPool:
    return PagedPool(model.config, model.ops, num_blocks, block_size)


def on(back_end: str, model: Qwen3) -> Qwen3:
    """The model with a pool's operations on this back end."""
    return Qwen3(model.config, model.weights, model.ops._replace(paged=paged_on(back_end)))


def scattered(sequences: list[list[int]], block_size: int, seed: int = 0) -> tuple[list[list[int]], int]:
    """A block table for each sequence, its blocks anywhere in the pool, and how large that must be."""
    counts = [-(-len(tokens) // block_size) for tokens in sequences]
    free = np.random.default_rng(seed).permutation(sum(counts) + 3).tolist()
    return [[free.pop() for _ in range(count)] for count in counts], sum(counts) + 3


plans = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(plan=plans, block_size=st.sampled_from([1, 3, 4, 16]), order=st.randoms(use_true_random=False))
def test_any_mix_gives_each_its_own_logits(model: Qwen3, plan, block_size: int, order) -> None:
    """Every sequence is cut in its own way; each step takes the next piece of some of them, in any order."""
    check_mix(model, plan, block_size, order)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(plan=plans, order=st.randoms(use_true_random=False))
def test_and_so_with_a_sliding_window(windowed: Qwen3, plan, order) -> None:
    check_mix(windowed, plan, 4, order)


@pytest.mark.parametrize("kind", ["model", "windowed"])
def test_and_so_with_the_kernels(kind: str, request: pytest.FixtureRequest) -> None:
    """In the simulator, as on a GPU: one launch for all that decode, one for all others."""
    request.getfixturevalue("kernel_cache")
    check_mix(on("sim", request.getfixturevalue(kind)), PLAN, 4, random.Random(1), fill=np.nan)


@pytest.mark.parametrize("back_end", ["plain", "sim"])
@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_and_so_with_wider_heads(head_dim: int, back_end: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A GPU's simdgroup holds 32 numbers: 80 leaves lanes without a column."""
    if back_end == "sim":
        request.getfixturevalue("kernel_cache")
    check_mix(on(back_end, ours(make_model(tmp_path, head_dim=head_dim))), PLAN, 4, random.Random(2), fill=np.nan)


PLAN = [[9, 1, 1, 1], [5, 1, 6, 1], [1, 1, 1, 1]]


@pytest.mark.parametrize("kind", ["model", "windowed"])
@pytest.mark.parametrize("fill", [np.nan, np.inf, -1e30])
def test_nobody_meets_what_an_old_owner_left(kind: str, fill: float, request: pytest.FixtureRequest) -> None:
    """A masked slot's weight is 0, but 0 · NaN is NaN."""
    for seed in range(4):
        check_mix(request.getfixturevalue(kind), PLAN, 4, random.Random(seed), fill)


def test_nobody_meets_a_neighbours_nan(model: Qwen3) -> None:
    """The shorter of two tables is filled up, with blocks that are read and masked: none of the longer one's."""
    pool, tokens = pool_of(model, 8, 4), prompt(6)
    mx.eval(model.hidden_states(mx.array(tokens[:5]), PagedBatch(pool, [[3, 5]], [0], [5])))
    for layer in range(model.config.num_hidden_layers):
        pool.values[layer][:, mx.array([0, 1, 2, 6])] = mx.nan
    batch = PagedBatch(pool, [[0, 1, 2, 6], [3, 5]], [14, 5], [1, 1])
    logits = model(mx.array([7, tokens[5]]), batch)
    assert len(batch._groups) == 1
    assert mx.isnan(logits[0]).all()
    close(logits[1], whole(model, tokens)[5])


def check_mix(model: Qwen3, plan: list[list[int]], block_size: int, order, fill: float = 0.0) -> None:
    sequences = [prompt(sum(sizes), seed=i) for i, sizes in enumerate(plan)]
    tables, num_blocks = scattered(sequences, block_size)
    pool, done, left = pool_of(model, num_blocks, block_size), [0] * len(plan), [list(sizes) for sizes in plan]
    for side in (pool.keys, pool.values):
        side[:] = [mx.full(buffer.shape, fill) for buffer in side]
    got: list[list[np.ndarray]] = [[] for _ in plan]
    while any(left):
        chosen = [i for i in range(len(plan)) if left[i] and order.random() < 0.7]
        order.shuffle(chosen)
        if order.random() < 0.5:
            chosen.sort(key=lambda i: left[i][0])  # the decoding ones together, in front
        if not chosen:
            continue
        lengths = [left[i].pop(0) for i in chosen]
        row = [t for i, n in zip(chosen, lengths, strict=True) for t in sequences[i][done[i] : done[i] + n]]
        batch = PagedBatch(pool, [tables[i] for i in chosen], [done[i] for i in chosen], lengths)
        logits = np.array(model(mx.array(row), batch))
        for i, n, part in zip(chosen, lengths, np.split(logits, np.cumsum(lengths)[:-1]), strict=True):
            got[i].append(part)
            done[i] += n
    for parts, tokens in zip(got, sequences, strict=True):
        close(mx.array(np.concatenate(parts)), whole(model, tokens))


def test_thirty_rows_of_very_different_lengths(model: Qwen3) -> None:
    """More rows than one group takes, each against its own run."""
    sequences = [prompt(n, seed=n) for n in (1, 2, 3, 200, 7, 300, 33, *range(40, 130, 4))]
    tables, num_blocks = scattered(sequences, 2)
    pool = pool_of(model, num_blocks, 2)
    filled = [len(tokens) - 1 for tokens in sequences]
    row = mx.array([t for tokens in sequences for t in tokens[:-1]])
    some = [i for i, n in enumerate(filled) if n]
    model.hidden_states(row, PagedBatch(pool, [tables[i] for i in some], [0] * len(some), [filled[i] for i in some]))
    batch = PagedBatch(pool, tables, filled, [1] * len(sequences))
    logits = model(mx.array([tokens[-1] for tokens in sequences]), batch)
    assert len(batch._groups) > 2
    for tokens, row in zip(sequences, logits, strict=True):
        close(row, whole(model, tokens)[-1])


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("window", [None, 9])
def test_the_batch_of_decodes_in_each_dtype(dtype: mx.Dtype, window: int | None) -> None:
    """Against the parts of the kernel's twin, on tables filled up with one and the same block."""
    q, keys, values, tables, lengths, scale, _, _ = paged_decode_arguments(dtype, 6, 2, 40, [70, 5, 33], 8, 0, 0)
    pages = Pages.of(np.array(tables), np.array(lengths), keys.shape, window)
    got = paged_decode_plain(q, keys, values, pages, scale)
    want = paged_decode(q, keys, values, tables, lengths, scale, window or 0, on="plain")
    assert got.dtype == dtype and got.shape == q.shape
    atol = {mx.float32: 1e-5, mx.float16: 2e-3, mx.bfloat16: 2e-2}[dtype]
    np.testing.assert_allclose(*(np.array(x.astype(mx.float32)) for x in (got, want)), atol=atol, rtol=0)


@pytest.mark.parametrize("lengths", [[1] * 8, [1, 1, 40], [64]])
def test_a_step_writes_in_place(model: Qwen3, lengths: list[int]) -> None:
    """Also when the next step is built before the last one's result is read, as the engine does."""
    pool = pool_of(model, 1 << 14, 16)
    tables = [list(range(i * 16, i * 16 + 16)) for i in range(len(lengths))]

    def step(number: int) -> mx.array:
        starts = [number * length for length in lengths]
        return model(mx.zeros(sum(lengths), mx.int32), PagedBatch(pool, tables, starts, lengths)).sum()

    mx.eval(step(0))
    mx.reset_peak_memory()
    before, running = mx.get_active_memory(), step(1)
    for number in (2, 3):
        mx.async_eval(running)
        following = step(number)
        running.item()
        running = following
    mx.eval(running)
    assert pool.keys[0].nbytes > 1 << 25
    assert mx.get_peak_memory() - before < pool.keys[0].nbytes / 4


def test_blocks_are_copied_whole_and_in_place(model: Qwen3) -> None:
    pool = pool_of(model, 1 << 12, 16)
    table = list(range(4))
    tokens = prompt(40)
    model.hidden_states(mx.array(tokens), PagedBatch(pool, [table], [0], [40]))
    mx.eval(pool.state)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    pool.copy_blocks([(2, 9), (0, 1000)])
    assert mx.get_peak_memory() - before < pool.keys[0].nbytes / 4
    for buffer in pool.state:
        got = np.array(buffer)
        np.testing.assert_array_equal(got[:, [9, 1000]], got[:, [2, 0]])
        assert np.abs(got[:, [9, 1000]]).sum() > 0 and np.abs(got[:, 10:1000]).sum() == 0


def test_a_chain_of_copies_takes_what_was_there_before(model: Qwen3) -> None:
    pool = pool_of(model, 4, 2)
    pool.keys[0][:, 0], pool.keys[0][:, 1] = 1.0, 2.0
    pool.copy_blocks([(0, 1), (1, 2)])
    assert [pool.keys[0][0, block, 0, 0].item() for block in range(3)] == [1.0, 1.0, 2.0]
    pool.copy_blocks([])


def test_a_budget_in_bytes_is_kept(model: Qwen3) -> None:
    config = model.config
    each = 16 * slot_bytes(config, EngineConfig(), 4)
    assert each == 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 16 * 4
    count = num_blocks_for(config, EngineConfig(), 10 * each + each // 2, 16, 4)
    assert count == 10
    assert PagedPool(config, model.ops, count, 16).nbytes == 10 * each
    assert num_blocks_for(config, EngineConfig(), 10 * each, 16, 2) == 20
    with pytest.raises(ValueError, match=f"at least {each} bytes.*found 100"):
        num_blocks_for(config, EngineConfig(), 100, 16, 4)
    with pytest.raises(ValueError, match="0 blocks of 16"):
        PagedPool(config, model.ops, 0, 16)


@given(st.lists(st.integers(1, 40), max_size=40), st.integers(0, 30))
def test_groups_waste_no_more_than_they_may(widths: list[int], spare: int) -> None:
    found = groups_of(widths, spare)
    assert [i for a, b in found for i in range(a, b)] == list(range(len(widths)))
    assert all(max(widths[a:b]) * (b - a) - sum(widths[a:b]) <= spare for a, b in found)


def files_entered(run: Callable[[], object]) -> set[str]:
    """The files of the package in which a function is called."""
    found = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        name = frame.f_code.co_filename
        if event == "call" and "tiny_llm/" in name:
            found.add(name.rpartition("tiny_llm/")[2])

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found


def test_a_plain_decode_enters_the_cache_and_its_twin_only(model: Qwen3) -> None:
    pool, config = pool_of(model, 8, 4), model.config
    q = mx.zeros((2, config.num_attention_heads, config.head_dim))
    k = mx.zeros((2, config.num_key_value_heads, config.head_dim))

    def step() -> None:
        batch = PagedBatch(pool, [[0, 1], [2]], [5, 2], [1, 1])
        batch.begin(2)
        mx.eval([batch.attend(layer, q, k, k) for layer in range(config.num_hidden_layers)])
        pool.copy_blocks([])

    step()  # traces what is compiled
    assert files_entered(step) == {"cache/paged.py", "cache/tables.py", "kernels/paged_attention.py"}


@pytest.mark.parametrize("back_end", ["plain", "sim"])
def test_a_pool_takes_its_operations_from_the_table(
    back_end: str, model: Qwen3, request: pytest.FixtureRequest
) -> None:
    if back_end == "sim":
        request.getfixturevalue("kernel_cache")
    calls = list[str]()
    table = paged_on(back_end)
    names = [name for name in ("decode", "prefill", "copy_blocks") if getattr(table, name) is not None]

    def noted(name: str) -> Callable[..., mx.array]:
        operation = getattr(table, name)
        return lambda *arguments: calls.append(name) or operation(*arguments)

    ops = model.ops._replace(paged=table._replace(**{name: noted(name) for name in names}))
    pool = PagedPool(model.config, ops, 8, 4)
    twice = Qwen3(model.config, model.weights, ops)
    mx.eval(twice.hidden_states(mx.array(prompt(5)), PagedBatch(pool, [[0], [1, 2]], [0, 0], [1, 4])))
    pool.copy_blocks([(0, 7)])
    layers = model.config.num_hidden_layers
    expected = {"decode": layers, "copy_blocks": 2 * layers}
    assert Counter(calls) == (expected if back_end == "plain" else expected | {"prefill": layers})


def share(view: View, start: int, length: int, parents: tuple[int, ...] | None = None) -> Share:
    return Share(SequenceId("r", 0), start, (0,) * length, 1, view, parents)


def span(blocks: list[int], start: int, length: int) -> Share:
    return share(View(tuple(blocks), start), start, length)


def test_a_span_is_scattered_by_its_slots_or_by_a_tree() -> None:
    assert not span([0, 1], 4, 2).scattered
    assert share(View((0, 1), 4, (0, 1, 2, 3)), 4, 1).scattered
    assert share(View((0, 1), 4), 5, 1).scattered
    assert share(View((0, 1), 4), 4, 2, (-1, -1)).scattered


def test_a_batch_of_spans_is_the_batch_of_their_numbers(model: Qwen3) -> None:
    """A decode, a chunk, and a tree of drafts behind them."""
    texts = [prompt(6, seed=0), prompt(7, seed=1), prompt(5, seed=2)]
    pool = pool_of(model, 12, 4)
    first = [span([7, 2], 0, 5), span([1], 0, 3), span([9, 5], 0, 5)]
    row = [token for text, piece in zip(texts, first, strict=True) for token in text[: piece.length]]
    mx.eval(model.hidden_states(mx.array(row), pool.batch(first)))
    tree = share(View((9, 5), 5), 5, 2, (-1, -1))
    row = [texts[0][5], *texts[1][3:], 30, 31]
    got = model(mx.array(row), pool.batch([span([7, 2], 5, 1), span([1, 4], 3, 4), tree]))
    close(got[:1], whole(model, texts[0])[5:])
    close(got[1:5], whole(model, texts[1])[3:])
    close(got[5], whole(model, [*texts[2], 30])[5])
    close(got[6], whole(model, [*texts[2], 31])[5])


def pools(model: Qwen3) -> list[PagedPool]:
    return [pool_of(model, 4, 4), PackedPool(model.config, model.ops, 4, 4)]


def fail(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let the next evaluations of a pool fail."""
    evaluate, left = mx.eval, [times]

    def failing(*arrays: object) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise RuntimeError("[malloc] Unable to allocate")
        evaluate(*arrays)

    monkeypatch.setattr(paged.mx, "eval", failing)


def test_a_whole_pool_is_left_as_it_is(model: Qwen3) -> None:
    for pool in pools(model):
        before = [np.array(buffer) for buffer in pool.state]
        assert pool.mend()
        for buffer, old in zip(pool.state, before, strict=True):
            np.testing.assert_array_equal(np.array(buffer), old)


def test_a_pool_whose_writes_fail_is_made_anew(model: Qwen3, monkeypatch: pytest.MonkeyPatch) -> None:
    for pool in pools(model):
        need = pool.nbytes
        pool.write(0, mx.array([1]), mx.array([0]), *(mx.ones((1, *pool.shape[:1], pool.shape[3])) for _ in range(2)))
        with monkeypatch.context() as patch:
            fail(patch, 1)
            assert not pool.mend()
        assert pool.nbytes == need
        assert isinstance(pool, PackedPool) or not any(np.array(buffer).any() for buffer in pool.state)


def test_a_pool_without_room_is_not_made_anew(model: Qwen3, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of(model, 4, 4)
    need = pool.nbytes
    monkeypatch.setattr(paged, "available_bytes", lambda: need - 1)
    fail(monkeypatch, 1)
    with pytest.raises(MemoryError, match=f"no memory for the pool of {need:,} bytes after a step that failed"):
        pool.mend()
    assert pool.state == []
