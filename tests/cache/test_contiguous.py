"""The contiguous cache: what it promises beyond right logits (tests/model/test_qwen3.py holds those)."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.parity import close, ours, prompt
from tests.support import make_model
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.cache.recompute import RecomputeCache
from tiny_llm.model.qwen3 import Qwen3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Qwen3:
    return ours(make_model(tmp_path_factory.mktemp("model")))


def whole(model: Qwen3, tokens: list[int]) -> np.ndarray:
    return np.array(model(mx.array(tokens), RecomputeCache(model.config, model.ops)))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8), step=st.sampled_from([1, 4, 7, 256]))
def test_any_chunking_gives_the_logits_of_the_whole(model: Qwen3, sizes: list[int], step: int) -> None:
    tokens = prompt(sum(sizes))
    cache, at, parts = ContiguousCache(model.config, model.ops, step), 0, []
    for size in sizes:
        parts.append(model(mx.array(tokens[at : at + size]), cache))
        at += size
    close(mx.concatenate(parts), whole(model, tokens))
    assert cache.offset == at


def test_trim_and_go_on_with_other_tokens(model: Qwen3) -> None:
    tokens, other = prompt(20), prompt(20, seed=1)
    cache = ContiguousCache(model.config, model.ops, step=4)
    model(mx.array(tokens), cache)
    cache.trim(9)
    assert cache.offset == 11
    close(model(mx.array(other[:5]), cache), whole(model, tokens[:11] + other[:5])[11:])
    for bad in (-1, 17):
        with pytest.raises(ValueError, match=f"0 to 16 tokens.*{bad}"):
            cache.trim(bad)


def test_forks_go_separate_ways(model: Qwen3) -> None:
    """Both continue from the same 10 tokens, in turns, and neither sees the other's."""
    tokens, left, right = prompt(10), prompt(6, seed=1), prompt(6, seed=2)
    cache = ContiguousCache(model.config, model.ops)
    model(mx.array(tokens), cache)
    fork = cache.fork()
    got = {"left": [], "right": []}
    for a, b in zip(left, right, strict=True):
        got["left"].append(model(mx.array([a]), cache))
        got["right"].append(model(mx.array([b]), fork))
    close(mx.concatenate(got["left"]), whole(model, tokens + left)[10:])
    close(mx.concatenate(got["right"]), whole(model, tokens + right)[10:])


def test_grows_in_steps_and_counts_its_bytes(model: Qwen3) -> None:
    cache = ContiguousCache(model.config, model.ops, step=16)
    assert cache.nbytes == 0
    model(mx.array(prompt(5)), cache)
    slot = 2 * model.config.num_hidden_layers * model.config.num_key_value_heads * model.config.head_dim * 4
    assert cache.nbytes == 16 * slot
    model(mx.array(prompt(12)), cache)
    assert cache.nbytes == 32 * slot
    assert len(cache.state) == 2 * model.config.num_hidden_layers


def test_steps_write_in_place(model: Qwen3) -> None:
    """A step that follows a finished one allocates no second buffer, even where the buffer is most of the memory."""
    cache = ContiguousCache(model.config, model.ops, step=1 << 18)
    token = mx.array([5])
    mx.eval(model(token, cache))
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    for _ in range(3):
        mx.eval(model(token, cache))
    assert mx.get_peak_memory() - before < cache.state[0].nbytes / 4
