"""What each kind of cache promises: attention by the definition whatever the steps, trimming, forks, bytes in place."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cache.kinds import CONFIG, KINDS, inputs, oracle, shape, step
from tests.model.parity import close, ours, prompt
from tests.support import make_model
from tiny_llm.cache.base import KVCache
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.cache.quantized import QuantizedCache
from tiny_llm.cache.rotating import RotatingCache
from tiny_llm.cache.rotating_quantized import RotatingQuantizedCache
from tiny_llm.kernels.table import with_kernels
from tiny_llm.model import fused
from tiny_llm.model.ops import PLAIN
from tiny_llm.model.qwen3 import Qwen3

TABLES = {"plain": PLAIN, "cpu": fused.CPU, "gpu": fused.GPU, "twins": with_kernels(PLAIN, "plain")}
STEPS = st.lists(st.one_of(st.just(1), st.integers(1, 9), st.integers(10, 30)), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Qwen3:
    return ours(make_model(tmp_path_factory.mktemp("model")))


def run(cache: KVCache, layers: list, sizes: list[int]) -> np.ndarray:
    """The last layer's attention over all steps."""
    parts, at = [], 0
    for size in sizes:
        parts.append(step(cache, layers, at, at + size)[-1])
        at += size
    assert cache.offset == at
    return np.array(mx.concatenate(parts))


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(sizes=STEPS)
def test_any_steps_give_the_attention_of_the_definition(kind: str, table: str, sizes: list[int]) -> None:
    layers = [inputs(CONFIG, sum(sizes), seed) for seed in (0, 1)]
    got = run(KINDS[kind](CONFIG, TABLES[table]), layers, sizes)
    np.testing.assert_allclose(got, oracle(kind, *layers[-1]), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(7, 7, 64), (6, 1, 128), (1, 1, 32)])
def test_odd_heads(kind: str, heads: int, kv_heads: int, dim: int) -> None:
    config = shape(heads, kv_heads, dim)
    layer = inputs(config, 40)
    got = run(KINDS[kind](config, fused.choose_ops("fused")), [layer], [3, 1, 20, 1, 1, 14])
    np.testing.assert_allclose(got, oracle(kind, *layer, 64 if dim > 32 else 32), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "bits" not in kind])
def test_a_head_dim_that_no_group_divides(kind: str) -> None:
    config = shape(7, 7, 80)
    layer = inputs(config, 21)
    got = run(KINDS[kind](config, PLAIN), [layer], [5, 1, 15])
    np.testing.assert_allclose(got, oracle(kind, *layer), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("own_window", [1, 4, 100])
@pytest.mark.parametrize("table", ["cpu", "twins"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layers_own_window_holds_as_well(kind: str, table: str, own_window: int) -> None:
    config = replace(CONFIG, sliding_window=own_window, sliding_layers=(1,))
    layers = [inputs(config, 30, seed) for seed in (0, 1)]
    got = run(KINDS[kind](config, TABLES[table]), layers, [4, 1, 1, 13, 1, 10])
    np.testing.assert_allclose(got, oracle(kind, *layers[1], own_window=own_window), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_is_of_its_layer_alone(kind: str) -> None:
    """Layers share the step's masks: what one narrows must be as before for the next."""
    config = replace(CONFIG, sliding_window=3, sliding_layers=(0,))
    layers = [inputs(config, 30, seed) for seed in (0, 1)]
    got = run(KINDS[kind](config, PLAIN), layers, [4, 1, 1, 13, 1, 10])
    np.testing.assert_allclose(got, oracle(kind, *layers[1]), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(sizes=STEPS)
def test_cached_logits_do_not_depend_on_the_chunks(model: Qwen3, kind: str, sizes: list[int]) -> None:
    tokens = prompt(sum(sizes))
    one_by_one, chunked = (KINDS[kind](model.config, model.ops) for _ in range(2))
    want = mx.concatenate([model(mx.array([token]), one_by_one) for token in tokens])
    at, parts = 0, []
    for size in sizes:
        parts.append(model(mx.array(tokens[at : at + size]), chunked))
        at += size
    if "bits" in kind:
        same_but_for_a_code(parts, want)
    else:
        close(mx.concatenate(parts), np.array(want))


def same_but_for_a_code(parts: list[mx.array], want: mx.array) -> None:
    """Rounding in the last digit may tip a number over to the next code: small differences, at few places."""
    got, wanted = np.array(mx.concatenate(parts)), np.array(want)
    assert np.abs(got - wanted).max() < 0.2
    assert np.median(np.abs(got - wanted)) < 5e-3


@pytest.mark.parametrize(("bits", "apart"), [(8, 0.1), (4, 1.5)])
def test_a_packed_ring_is_near_the_plain_one(model: Qwen3, bits: int, apart: float) -> None:
    """Of logits of size 1, long after the ring has gone round."""
    ring = {"window": 9, "sinks": 2, "spare": 5}
    caches = (
        RotatingQuantizedCache(model.config, model.ops, bits, **ring),
        RotatingCache(model.config, model.ops, **ring),
    )
    text = mx.array(prompt(40))
    got, want = (np.array(mx.concatenate([model(text[:30], c), model(text[30:], c)])) for c in caches)
    assert 1e-4 < np.abs(got - want).max() < apart


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_trim_and_regrow(kind: str, data: st.DataObject) -> None:
    """Forgetting and going on with other tokens is as if the forgotten had never come, as often as one likes."""
    cache = KINDS[kind](CONFIG, fused.choose_ops("fused"))
    text = inputs(CONFIG, 1)
    text = tuple(x[:0] for x in text)
    for round in range(data.draw(st.integers(1, 5))):
        cut = data.draw(st.integers(0, cache.trimmable))
        cache.trim(cut)
        kept = text[0].shape[0] - cut
        new = inputs(CONFIG, data.draw(st.integers(1, 20)), seed=round)
        text = tuple(mx.concatenate([old[:kept], x]) for old, x in zip(text, new, strict=True))
        at = kept
        while at < text[0].shape[0]:
            end = min(text[0].shape[0], at + data.draw(st.integers(1, 9)))
            got = np.array(step(cache, [text], at, end)[0])
            np.testing.assert_allclose(got, oracle(kind, *text)[at:end], rtol=1e-4, atol=2e-5)
            at = end


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "rotating" in kind])
def test_trimming_as_far_as_it_goes_again_and_again(kind: str) -> None:
    """What was written over stays lost, however little the text has grown since."""
    cache, text = KINDS[kind](CONFIG, PLAIN), inputs(CONFIG, 40)
    run(cache, [text], [40])
    for seed in range(1, 5):
        cache.trim(cache.trimmable)
        kept = cache.offset
        text = tuple(mx.concatenate([old[:kept], x]) for old, x in zip(text, inputs(CONFIG, 1, seed), strict=True))
        got = np.array(step(cache, [text], kept, kept + 1)[0])
        np.testing.assert_allclose(got, oracle(kind, *text)[kept:], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_trimming_refuses_what_it_cannot_and_takes_all(kind: str) -> None:
    cache, layer = KINDS[kind](CONFIG, PLAIN), inputs(CONFIG, 60)
    run(cache, [layer], [30, 1, 29])
    for bad in (-1, 61):
        with pytest.raises(ValueError, match=f"trim: expected .*found {bad}"):
            cache.trim(bad)
    if cache.trimmable < 59:
        with pytest.raises(ValueError, match=f"trim: expected at most {cache.trimmable} tokens"):
            cache.trim(cache.trimmable + 1)
    assert cache.offset == 60
    cache.trim(60)
    assert (cache.offset, cache.trimmable) == (0, 0)
    np.testing.assert_allclose(run(cache, [layer], [30, 30]), oracle(kind, *layer), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_forks_go_separate_ways(kind: str) -> None:
    """In turns, so that each writes where the other reads."""
    common, ends = inputs(CONFIG, 17), [inputs(CONFIG, 9, seed) for seed in (1, 2)]
    texts = [tuple(mx.concatenate([a, b]) for a, b in zip(common, end, strict=True)) for end in ends]
    cache = KINDS[kind](CONFIG, fused.choose_ops("fused"))
    run(cache, [common], [17])
    caches = [cache, cache.fork()]
    for at in range(17, 26):
        for text, each in zip(texts, caches, strict=True):
            got = np.array(step(each, [text], at, at + 1)[0])
            np.testing.assert_allclose(got, oracle(kind, *text)[at : at + 1], rtol=1e-4, atol=2e-5)


def big(kind: str) -> KVCache:
    room = 1 << 16
    ops = fused.choose_ops("fused")
    if kind == "rotating":
        return RotatingCache(CONFIG, ops, window=20, sinks=2, spare=room, step=room)
    return QuantizedCache(CONFIG, ops, step=room) if kind == "8 bits" else ContiguousCache(CONFIG, ops, step=room)


@pytest.mark.parametrize("kind", ["contiguous", "rotating", "8 bits"])
def test_steps_write_in_place(kind: str) -> None:
    """A step that follows a finished one copies no buffer."""
    cache, layer = big(kind), inputs(CONFIG, 9)
    for at in range(4):
        mx.eval(step(cache, [layer], at, at + 1))
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    for at in range(4, 9):
        mx.eval(step(cache, [layer], at, at + 1))
    assert mx.get_peak_memory() - before < min(buffer.nbytes for buffer in cache.state[:1]) / 4


def test_a_long_step_of_a_rotating_cache_writes_in_place() -> None:
    """Its pieces, too: each waits until the one before has read."""
    cache = RotatingCache(CONFIG, fused.choose_ops("fused"), window=1 << 16, sinks=2, spare=7)
    layer = inputs(CONFIG, 200)
    mx.eval(step(cache, [layer], 0, 100))
    cache.keys[0] = mx.concatenate([cache.keys[0], mx.zeros((2, cache.full - cache.capacity, 32))], axis=1)
    cache.values[0], cache.capacity = mx.zeros(cache.keys[0].shape), cache.full
    mx.eval(cache.state)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(step(cache, [layer], 100, 200))
    assert mx.get_peak_memory() - before < cache.keys[0].nbytes / 4


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_and_state(kind: str) -> None:
    cache, layers = KINDS[kind](CONFIG, PLAIN), [inputs(CONFIG, 25, seed) for seed in (0, 1)]
    assert cache.nbytes == 0 and cache.state == []
    run(cache, layers, [20, 5])
    assert cache.nbytes == sum(array.nbytes for array in cache.state) > 0
