"""A token's position is not its slot: holes, permuted blocks and trees of drafts, against masks on whole runs."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.model.parity import ours, prompt
from tests.support import make_model
from tiny_llm.cache.packed import PackedPool
from tiny_llm.cache.paged import PagedBatch, PagedPool
from tiny_llm.cache.recompute import RecomputeCache
from tiny_llm.cache.scattered import Scattered
from tiny_llm.cache.view import View
from tiny_llm.config import EngineConfig
from tiny_llm.engine.request import SequenceId, Share
from tiny_llm.kernels.table import operations
from tiny_llm.model.qwen3 import Qwen3

SIZE = 4


@pytest.fixture(scope="module", params=["full", "windowed"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Qwen3:
    """All layers see all, or layer 1 the last five tokens."""
    if request.param == "full":
        return ours(make_model(tmp_path_factory.mktemp("model")))
    window = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
    return ours(make_model(tmp_path_factory.mktemp("model"), "qwen2", hidden_size=128, **window))


class MaskedRun(RecomputeCache):
    """The oracle: the whole text in one step at given positions, under any mask (T, T), and each layer's window."""

    def __init__(self, model: Qwen3, positions: list[int], mask: np.ndarray):
        super().__init__(model.config, model.ops)
        self.positions, self.mask = np.array(positions), mask

    def begin(self, num_tokens: int) -> mx.array:
        return mx.array(self.positions.astype(np.int32))

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        mask, window = self.mask, self.config.window_of(layer)
        if window is not None:
            mask = mask & (self.positions[None] > self.positions[:, None] - window)
        keys, values = k.swapaxes(0, 1), v.swapaxes(0, 1)
        return self.ops.masked_attention(q, keys, values, self.config.head_dim**-0.5, mx.array(mask))


def causal(length: int) -> np.ndarray:
    return np.tril(np.ones((length, length), np.bool_))


def filled(model: Qwen3, tokens: list[int], table: list[int], bits: int | None = None) -> PagedPool:
    """A pool of NaN in which a sequence's tokens lie in these blocks."""
    make = PackedPool if bits else PagedPool
    pool = make(model.config, model.ops, 12, SIZE, **({"bits": bits} if bits else {}))
    if not bits:
        for side in (pool.keys, pool.values):
            side[:] = [mx.full(buffer.shape, mx.nan) for buffer in side]
    mx.eval(model.hidden_states(mx.array(tokens), PagedBatch(pool, [table], [0], [len(tokens)])))
    return pool


def share(view: View, start: int, length: int, parents: tuple[int, ...] | None = None) -> Share:
    return Share(SequenceId("r", 0), start, (0,) * length, 1, view, parents)


def close(got: mx.array, want: mx.array, atol: float = 5e-5) -> None:
    np.testing.assert_allclose(np.array(got), np.array(want), rtol=1e-4, atol=atol)


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 0, 2], [2, 0, 1]])
def test_blocks_in_any_order(model: Qwen3, order: list[int]) -> None:
    tokens, blocks = prompt(14), [7, 2, 9, 5]
    pool = filled(model, tokens[:12], blocks[:3])
    held = tuple(4 * block + slot for block in order for slot in range(SIZE))
    view = View((*(blocks[block] for block in order), blocks[3]), 12, held)
    got = model(mx.array(tokens[12:]), pool.batch([share(view, 12, 2)]))
    close(got, model(mx.array(tokens), RecomputeCache(model.config, model.ops))[12:])


@pytest.mark.parametrize("bits", [None, 8])
def test_a_hole_in_the_table(model: Qwen3, bits: int | None) -> None:
    """The second block is gone: later tokens keep their positions and do not see what lay there."""
    tokens, blocks = prompt(15), [7, 2, 9, 5]
    pool = filled(model, tokens[:12], blocks[:3], bits)
    view = View((7, 9, 5), 8, (0, 1, 2, 3, 8, 9, 10, 11))
    got = model(mx.array(tokens[12:]), pool.batch([share(view, 12, 3)]))
    mask = causal(15)
    mask[12:, 4:8] = False
    want = model(mx.array(tokens), MaskedRun(model, list(range(15)), mask))[12:]
    close(got, want, 0.3 if bits else 5e-5)


def test_unused_slots_reach_no_sum(model: Qwen3) -> None:
    """Slots between the tokens that are held, in which NaN lies from an old owner."""
    tokens = prompt(12)
    pool = filled(model, tokens[:10], [7, 2, 9])
    view = View((7, 2, 9, 5), 12, (*range(10), -1, -1))
    got = model(mx.array(tokens[10:]), pool.batch([share(view, 10, 2)]))
    close(got, model(mx.array(tokens), RecomputeCache(model.config, model.ops))[10:])


def test_a_tree_of_drafts(model: Qwen3) -> None:
    """Every node's logits are those of the text that leads to it."""
    tokens, drafts = prompt(9), [3, 30, 31, 32, 33, 34]
    parents = [-1, 0, 0, 1, 1, 4]  # 3 is said already; then 30 or 31; 32 or 33 behind 30; 34 behind 33
    pool = filled(model, tokens, [7, 2, 9])
    view = View((7, 2, 9, 5), 9)
    scattered = Scattered.of(view, 9, len(drafts), parents)
    assert scattered.positions.tolist() == [9, 10, 10, 11, 11, 12]
    got = model(mx.array(drafts), pool.batch([share(view, 9, len(drafts), tuple(parents))]))
    for node in range(len(drafts)):
        path = [node]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        text = [*tokens, *(drafts[i] for i in path)]
        close(got[node], model(mx.array(text), RecomputeCache(model.config, model.ops))[-1])


TREES = [[-1, 0, 0, 1, 1, 4], [-1, -1, 0, 2], [*range(-1, 20)], [-1, *[0] * 40]]


def test_trees_of_several_sequences_in_one_launch(tmp_path: Path) -> None:
    """The simulator's kernel under words of bits, against masked attention: behind short texts and long ones."""
    model = ours(make_model(tmp_path))
    shape = model.config
    rng = np.random.default_rng(5)
    lengths = [len(parents) for parents in TREES]
    starts = [0, 5, 70, 130]
    tables = iter(rng.permutation(90).tolist())
    spans = []
    for number, (start, parents) in enumerate(zip(starts, TREES, strict=True)):
        blocks = tuple(next(tables) for _ in range(-(-(start + len(parents)) // SIZE)))
        view = View(blocks, start)
        spans.append(Share(SequenceId(str(number), 0), start, (0,) * len(parents), 1, view, tuple(parents)))
    tokens = sum(lengths)
    heads, kv_heads, dim = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
    q = mx.array(rng.standard_normal((tokens, heads, dim)).astype(np.float32))
    k, v = (mx.array(rng.standard_normal((tokens, kv_heads, dim)).astype(np.float32)) for _ in range(2))
    found = []
    for back_end in ("sim", "mlx"):
        ops = operations(EngineConfig(kernels=back_end), model.ops)
        pool = PagedPool(shape, ops, 90, SIZE)
        for side in (pool.keys, pool.values):
            held = np.random.default_rng(6).standard_normal(pool.shape).astype(np.float32)
            side[:] = [mx.array(held) for _ in side]
        found.append(pool.batch(spans).attend(0, q, k, v))
    close(*found, atol=1e-5)


def test_a_word_says_what_a_token_of_a_tree_sees() -> None:
    """Bit d is the slot d before its own: itself, its ancestors, and all of the text."""
    words = Scattered.of(View((0, 1), 2), 2, 4, [-1, 0, 0, 1]).near()
    assert [f"{int(word):b}" for word in words] == ["111", "1111", "11101", "111101"]


def test_beside_sequences_that_lie_in_order(model: Qwen3) -> None:
    tokens, other = prompt(13), prompt(6, seed=1)
    pool = filled(model, tokens[:12], [7, 2, 9])
    mx.eval(model.hidden_states(mx.array(other[:5]), PagedBatch(pool, [[1, 3]], [0], [5])))
    view = View((2, 7, 9, 5), 12, (4, 5, 6, 7, 0, 1, 2, 3, 8, 9, 10, 11))
    plain = share(View((1, 3), 5), 5, 1), share(View((10, 11), 0), 0, 6)
    batch = pool.batch([*plain, share(view, 12, 1)])
    got = model(mx.array([other[5], *other, tokens[12]]), batch)
    alone = model(mx.array(other), RecomputeCache(model.config, model.ops))
    close(got[0], alone[5])
    close(got[1:7], alone)
    close(got[7], model(mx.array(tokens), RecomputeCache(model.config, model.ops))[12])
