"""The same tokens as mlx-lm's caches on a random model, where the two best logits are far enough apart to say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import QuantizedKVCache, RotatingKVCache

from tests.model.parity import close, ours, peer, prompt
from tests.support import make_model
from tiny_llm.cache.base import KVCache
from tiny_llm.cache.quantized import QuantizedCache
from tiny_llm.cache.rotating import RotatingCache

STEPS, APART = 40, 1e-4


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), head_dim=64)


def greedy(step: Callable[[list[int]], mx.array], chunks: list[list[int]]) -> list[np.ndarray]:
    """Logits (V,) after each chunk, then of `STEPS` tokens, each fed back as it was chosen."""
    rows = [np.array(step(chunk)) for chunk in chunks]
    for _ in range(STEPS):
        rows.append(np.array(step([int(rows[-1].argmax())])))
    return rows


def ours_on(path: Path, make: Callable[..., KVCache]) -> Callable[[list[int]], mx.array]:
    model = ours(path)
    cache = make(model.config, model.ops)
    return lambda tokens: model(mx.array(tokens), cache)[-1]


def theirs_on(path: Path, make: Callable[[], Any]) -> Callable[[list[int]], mx.array]:
    model = peer(path)
    caches = [make() for _ in model.layers]
    return lambda tokens: model(mx.array(tokens)[None], cache=caches)[0, -1]


def same_tokens(mine: list[np.ndarray], theirs: list[np.ndarray], chunks: int) -> int:
    """Compare the tokens up to the first place where the two best are too close; returns how many were compared."""
    for count, (a, b) in enumerate(zip(mine[chunks - 1 :], theirs[chunks - 1 :], strict=True)):
        second, first = np.sort(b)[-2:]
        if first - second <= APART:
            return count
        assert a.argmax() == b.argmax(), f"token {count}"
    return STEPS + 1


@pytest.mark.parametrize("spare", [0, 3, 256])
@pytest.mark.parametrize(("window", "sinks"), [(16, 4), (9, 0), (5, 4), (100, 4)])
def test_rotating(path: Path, window: int, sinks: int, spare: int) -> None:
    """mlx-lm's first chunk fills the window at most: in a longer one its sinks leave the sight of later queries."""
    first, rest = prompt(min(window, 16)), prompt(6, seed=1)
    chunks = [first, *([token] for token in rest)]
    mine = greedy(ours_on(path, lambda *a: RotatingCache(*a, window=window, sinks=sinks, spare=spare)), chunks)
    theirs = greedy(theirs_on(path, lambda: RotatingKVCache(window, keep=sinks)), chunks)
    assert same_tokens(mine, theirs, len(chunks)) == STEPS + 1
    close(mx.array(np.stack(mine)), np.stack(theirs))


@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("bits", [8, 4])
def test_quantized(path: Path, bits: int, group_size: int) -> None:
    chunks = [prompt(20), [7], [8, 9, 10]]
    mine = greedy(ours_on(path, lambda *a: QuantizedCache(*a, bits, group_size)), chunks)
    theirs = greedy(theirs_on(path, lambda: QuantizedKVCache(group_size, bits)), chunks)
    assert same_tokens(mine, theirs, len(chunks)) == STEPS + 1


def test_a_wrong_window_would_be_noticed(path: Path) -> None:
    chunks = [prompt(16)]
    mine = greedy(ours_on(path, lambda *a: RotatingCache(*a, window=15, sinks=4)), chunks)
    theirs = greedy(theirs_on(path, lambda: RotatingKVCache(16, keep=4)), chunks)
    with pytest.raises(AssertionError):
        same_tokens(mine, theirs, 1)
