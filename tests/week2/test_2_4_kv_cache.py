"""2.4 The KV cache, through its own operations alone; attention is the tests' own, in numpy."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import numpy as np

from tests.week1.oracles import Array, attend, f64, normal
from tests.week1.tiny import QWEN3
from tiny_llm.course.check import Checker, task

CONFIG = replace(QWEN3, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
WINDOWED = replace(CONFIG, sliding_window=3, sliding_layers=(1,))


class Ops:
    """Attention as chapter 1.3 has it, on k and v with heads first."""

    @staticmethod
    def attention(q: mx.array, k: mx.array, v: mx.array, scale: float, window: int | None = None) -> mx.array:
        assert k.shape == v.shape, f"attention got keys of shape {k.shape} and values of shape {v.shape}"
        return mx.array(causal(f64(q), f64(k), f64(v), scale, window), mx.float32)


def causal(q: Array, k: Array, v: Array, scale: float, window: int | None = None) -> Array:
    """The last T of S tokens. q (T, Hq, D), k and v (Hkv, S, D)."""
    share = q.shape[1] // k.shape[0]
    back = np.arange(k.shape[1] - len(q), k.shape[1])[:, None] - np.arange(k.shape[1])
    mask = (back >= 0) & (back < (window or 10**9))
    return np.stack([attend(q[:, h], k[h // share], v[h // share], scale, mask) for h in range(q.shape[1])], axis=1)


def inputs(length: int, seed: int = 0) -> tuple[mx.array, ...]:
    """q (T, 4, 8), k and v (T, 2, 8)."""
    return tuple(mx.array(normal(length, heads, 8, seed=10 * seed + i)) for i, heads in enumerate((4, 2, 2)))


def whole(seed: int, length: int, window: int | None = None) -> Array:
    """Attention of a text without any cache."""
    q, k, v = (f64(x) for x in inputs(length, seed))
    return causal(q, k.swapaxes(0, 1), v.swapaxes(0, 1), 8**-0.5, window)


@contextmanager
def guarded() -> Iterator[None]:
    """MLX writes beyond a buffer's end without a word, and the process dies later; here it is an error at once."""
    update = mx.slice_update

    def checked(buffer: mx.array, new: mx.array, start: mx.array, axes: list[int]) -> mx.array:
        for first, axis in zip(start.tolist(), axes, strict=True):
            if first + new.shape[axis] > buffer.shape[axis]:
                raise IndexError(
                    f"slots {first} to {first + new.shape[axis] - 1} of a buffer with {buffer.shape[axis]}"
                )
        return update(buffer, new, start, axes)

    with patch.object(mx, "slice_update", checked):
        yield


def new(m: Any, step: int = 4, config: Any = CONFIG) -> Any:
    return m.ContiguousCache(config, Ops(), step)


def fed(cache: Any, seeds: list[int], begin: int, end: int) -> list[mx.array]:
    """One step with tokens `begin` to `end` of the texts `seeds`, one for each layer."""
    cache.begin(end - begin)
    length = 12
    with guarded():
        return [cache.attend(i, *(x[begin:end] for x in inputs(length, seed))) for i, seed in enumerate(seeds)]


def run(cache: Any, seeds: list[int], ends: list[int], layer: int, begin: int = 0) -> mx.array:
    """Steps up to each of `ends`; what a layer gave, all steps in a row."""
    parts = []
    for end in ends:
        parts.append(fed(cache, seeds, begin, end)[layer])
        begin = end
    return mx.concatenate(parts)


def begun(m: Any, sizes: list[int], step: int = 4) -> list[Any]:
    cache = new(m, step)
    return [cache.begin(size).tolist() for size in sizes]


def counted(m: Any, sizes: list[int], step: int = 4) -> list[list[int]]:
    """start, offset and capacity in each step."""
    cache, seen = new(m, step), []
    for size in sizes:
        cache.begin(size)
        seen.append([cache.start, cache.offset, cache.capacity])
    return seen


@task("w2.4.1")
def test_positions(check: Checker) -> None:
    """A prompt of 4 tokens, one more, then three at once."""
    check(lambda m: begun(m, [4, 1, 3]), [[0, 1, 2, 3], [4], [5, 6, 7]], what="positions")
    check(lambda m: str(new(m).begin(2).dtype), "mlx.core.int32", what="dtype of the positions")


@task("w2.4.1")
def test_room_in_whole_steps(check: Checker) -> None:
    want = [[0, 3, 4], [3, 4, 4], [4, 5, 8], [5, 12, 12], [12, 13, 16], [13, 30, 32]]
    check(lambda m: counted(m, [3, 1, 1, 7, 1, 17]), want, what="[start, offset, capacity] (step 4)")
    check(lambda m: counted(m, [3, 1], 256), [[0, 3, 256], [3, 4, 256]], what="[start, offset, capacity] (step 256)")


def after_trim(m: Any) -> list[Any]:
    cache = new(m)
    cache.begin(3)
    cache.begin(6)
    cache.offset = 2  # seven are forgotten
    return [cache.begin(1).tolist(), cache.start, cache.offset, cache.capacity, cache.at.tolist()]


@task("w2.4.1")
def test_it_goes_on_where_the_text_was_cut(check: Checker) -> None:
    check(after_trim, [[2], 2, 3, 12, [2]], what="[positions, start, offset, capacity, at] after a cut to 2 tokens")


def written(m: Any, sizes: list[int], cut: int | None = None, buffers: bool = False) -> Any:
    """What the last write returns, or the buffers that all leave; before it the text is cut to `cut` tokens."""
    cache, rows, at = new(m), mx.arange(24.0).reshape(12, 2, 1), 0
    layers = [mx.zeros((2, 0, 1)), mx.zeros((2, 0, 1))]
    for i, size in enumerate(sizes):
        if cut is not None and i == len(sizes) - 1:
            cache.offset = cut
        cache.begin(size)
        with guarded():
            out = cache.write(layers, 1, rows[at : at + size])
        at += size
    return layers if buffers else out


def heads_first(*tokens: int) -> Array:
    """Token t brings 2t for head 0 and 2t + 1 for head 1."""
    return np.array([[[2.0 * t + head] for t in tokens] for head in (0, 1)])


@task("w2.4.2")
def test_tokens_first_in_heads_first_out(check: Checker) -> None:
    check(lambda m: written(m, [3]), heads_first(0, 1, 2), axes="H T D", what="after 3 tokens")


@task("w2.4.2")
def test_written_behind_what_is_there(check: Checker) -> None:
    for sizes in ([3, 1], [3, 2], [1, 1, 1, 1, 1], [4, 6]):
        want = heads_first(*range(sum(sizes)))
        check(lambda m, s=sizes: written(m, s), want, axes="H T D", what=f"after steps of {sizes} tokens (of 4 slots)")


@task("w2.4.2")
def test_the_buffer_itself_is_kept_with_its_room(check: Checker) -> None:
    shapes = lambda m: [list(buffer.shape) for buffer in written(m, [3, 2], buffers=True)]  # noqa: E731
    check(shapes, [[2, 0, 1], [2, 8, 1]], what="shapes of both layers' buffers after 5 tokens in layer 1")
    want = np.concatenate([heads_first(*range(5)), np.zeros((2, 3, 1))], axis=1)
    check(lambda m: written(m, [3, 2], buffers=True)[1], want, axes="H T D", what="the buffer after 5 tokens")


@task("w2.4.2")
def test_what_was_forgotten_is_overwritten(check: Checker) -> None:
    """Six tokens, cut to two, one more: it stands behind the second."""
    check(lambda m: written(m, [6, 1], cut=2), heads_first(0, 1, 6), axes="H T D", what="after a cut")


@task("w2.4.3")
def test_four_tokens_one_by_one(check: Checker) -> None:
    check(lambda m: run(new(m), [0], [1, 2, 3, 4], 0), whole(0, 4), axes="T H D", terms=8)


@task("w2.4.3")
def test_any_steps_give_the_same(check: Checker) -> None:
    for ends in ([12], [5, 6, 12], [3, 4, 5, 11, 12]):
        call = lambda m, e=ends: run(new(m), [0], e, 0)  # noqa: E731
        check(call, whole(0, 12), axes="T H D", what=f"attention, steps up to {ends}", terms=12)


@task("w2.4.3")
def test_each_layer_has_its_own(check: Checker) -> None:
    check(lambda m: run(new(m), [0, 1, 2], [4, 5, 9], 1), whole(1, 9), axes="T H D", what="the second layer", terms=9)
    check(lambda m: run(new(m), [0, 1, 2], [4, 5, 9], 2), whole(2, 9), axes="T H D", what="the third layer", terms=9)


@task("w2.4.3")
def test_a_layers_window(check: Checker) -> None:
    for layer, window in ((0, None), (1, 3)):
        call = lambda m, i=layer: run(new(m, 4, WINDOWED), [0, 1], [4, 5, 9], i)  # noqa: E731
        check(call, whole(layer, 9, window), axes="T H D", what=f"layer {layer} (layer 1 sees 3)", terms=9)


def trimmed(m: Any, *cuts: int) -> list[int]:
    cache = new(m)
    fed(cache, [0], 0, 10)
    offsets = []
    for cut in cuts:
        cache.trim(cut)
        offsets.append(cache.offset)
    return offsets


@task("w2.4.4")
def test_the_last_tokens_go(check: Checker) -> None:
    check(lambda m: trimmed(m, 3, 0, 5, 2), [7, 7, 2, 0], what="offsets after forgetting 3, 0, 5 and 2 of 10 tokens")


@task("w2.4.4")
def test_what_follows_is_as_if_they_had_never_come(check: Checker) -> None:
    def other_text(m: Any) -> mx.array:
        cache = new(m)
        fed(cache, [1], 0, 4)
        run(cache, [0], [10], 0, begin=4)
        cache.trim(6)
        return run(cache, [1], [5, 9], 0, begin=4)

    check(other_text, whole(1, 9)[4:], axes="T H D", what="attention after a cut", terms=9)


def refusal(m: Any, cut: int) -> str:
    cache = new(m)
    fed(cache, [0], 0, 10)
    try:
        cache.trim(cut)
    except ValueError:
        return f"refused, {cache.offset} tokens are left"
    return f"taken, {cache.offset} tokens are left"


@task("w2.4.4")
def test_more_than_there_are_is_refused(check: Checker) -> None:
    for cut in (11, -1):
        what = f"forgetting {cut} of 10 tokens"
        check(lambda m, c=cut: refusal(m, c), "refused, 10 tokens are left", what=what)


def forked(m: Any, which: int) -> mx.array:
    """Common tokens 0 to 5 of text 0; then the cache goes on with it and the fork with text 1, in turns."""
    cache = new(m, 8)
    fed(cache, [0], 0, 5)
    both, got = (cache, cache.fork()), []
    for at in range(5, 9):
        steps = [fed(each, [seed], at, at + 1)[0] for seed, each in enumerate(both)]
        got.append(steps[which])
    return mx.concatenate(got)


@task("w2.4.5")
def test_forks_do_not_see_each_other(check: Checker) -> None:
    mixed = [mx.concatenate([a[:5], b[5:]]) for a, b in zip(inputs(12), inputs(12, 1), strict=True)]
    q, k, v = (f64(x)[:9] for x in mixed)
    check(lambda m: forked(m, 0), whole(0, 9)[5:], axes="T H D", what="the first", terms=9)
    want = causal(q, k.swapaxes(0, 1), v.swapaxes(0, 1), 8**-0.5)[5:]
    check(lambda m: forked(m, 1), want, axes="T H D", what="the fork", terms=9)


@task("w2.4.5")
def test_a_fork_counts_by_itself(check: Checker) -> None:
    def offsets(m: Any) -> list[int]:
        cache = new(m)
        fed(cache, [0], 0, 5)
        fork = cache.fork()
        fed(fork, [0], 5, 7)
        cache.trim(1)
        return [cache.offset, fork.offset, cache.fork().fork().offset]

    check(offsets, [4, 7, 4], what="offsets of a cache of 5, its fork with 2 more, and a fork's fork after a cut")
