"""The attention kernels as they are called: whole, over ragged lengths, with windows, by chunks that part anywhere."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.kernels.oracles import attention_parts, causal_attention, float64, merged, packed_parts
from tiny_llm.kernels import decode_attention, flash_attention, packed_attention
from tiny_llm.kernels.catalog import decode_arguments, flash_arguments, packed_arguments
from tiny_llm.kernels.flash_attention import QUERIES, keys_for, tiles_of
from tiny_llm.kernels.sim import Simulator


def rounded(dtype: mx.Dtype) -> float:
    return {mx.float32: 1e-6, mx.float16: 2e-3, mx.bfloat16: 1.5e-2}[dtype]


@pytest.mark.parametrize("on", ["sim", "plain"])
@pytest.mark.parametrize(
    ("dtype", "heads", "kv_heads", "dim", "lengths", "window", "chunk"),
    [
        (mx.float32, 14, 2, 80, [31, 32, 33, 1], 0, 32),  # parts that are empty for the short ones
        (mx.float16, 7, 7, 64, [63, 64, 65], 33, 32),
        (mx.bfloat16, 8, 1, 128, [40, 3], 0, 16),
        (mx.float32, 2, 2, 256, [5], 5, 64),
        (mx.float32, 4, 4, 7, [17], 1, 8),
    ],
)
def test_decode_attention_is_exact(
    dtype: mx.Dtype, heads: int, kv_heads: int, dim: int, lengths: list[int], window: int, chunk: int, on: str
) -> None:
    arguments = decode_arguments(dtype, heads, kv_heads, dim, lengths, window, chunk)
    got = decode_attention(*arguments, on=Simulator(check=True, seed=2) if on == "sim" else on)
    parts = attention_parts(*map(float64, arguments[:-1]), chunk=10**6)
    truth = merged(*parts, None).reshape(got.shape)
    assert got.dtype == dtype
    np.testing.assert_allclose(float64(got), truth, rtol=0, atol=rounded(dtype) * np.abs(truth).max())


def test_decode_attention_equals_mlx() -> None:
    q, k, v, lengths, scale, *_ = decode_arguments(mx.float32, 14, 2, 64, [100, 100], 0, 0)
    expected = mx.fast.scaled_dot_product_attention(q[:, :, None], k, v, scale=scale)[:, :, 0]
    for chunk in (1, 99, 100, 0):
        got = decode_attention(q, k, v, lengths, scale, 0, chunk, on="sim")
        np.testing.assert_allclose(np.array(got), np.array(expected), atol=2e-6)


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(16, 8, 128), (32, 8, 128), (14, 2, 64)])
def test_keys_and_values_are_read_once_for_a_group_of_heads(heads: int, kv_heads: int, dim: int) -> None:
    """Both launches together, the parts written and read again included. Qwen3-0.6B, 4B and Qwen2.5-0.5B, in half."""
    arguments, simulator = decode_arguments(mx.float16, heads, kv_heads, dim, [1024], 0, 0), Simulator(check=True)
    decode_attention(*arguments, on=simulator)
    q, k, v = arguments[:3]
    assert sum(report.traffic for report in simulator.reports) / (k.nbytes + v.nbytes + 2 * q.nbytes) <= 1.05
    shared = {b.name: b for b in simulator.reports[0].buffers}
    assert shared["k"].read == k.nbytes
    assert shared["v"].read == v.nbytes


@pytest.mark.parametrize("on", ["sim", "plain"])
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (mx.float32, (14, 2, 96, [31, 32, 33, 1], 0, 32, 8, 32)),  # parts that are empty for the short ones
        (mx.float16, (7, 7, 64, [63, 64, 65], 33, 32, 4, 64)),
        (mx.bfloat16, (8, 1, 128, [40, 3], 0, 16, 4, 128)),
        (mx.float32, (2, 2, 256, [5], 5, 64, 8, 64)),
    ],
)
def test_packed_attention_is_exact(dtype: mx.Dtype, shape: tuple[Any, ...], on: str) -> None:
    arguments = packed_arguments(dtype, *shape)
    got = packed_attention(*arguments, on=Simulator(check=True, seed=2) if on == "sim" else on)
    truth = merged(*packed_parts(*map(float64, arguments[:-1]), 10**6), None).reshape(got.shape)
    assert got.dtype == dtype
    np.testing.assert_allclose(float64(got), truth, rtol=0, atol=rounded(dtype) * np.abs(truth).max())


@pytest.mark.parametrize(("bits", "group"), [(4, 64), (8, 32)])
def test_packed_keys_and_values_are_read_once(bits: int, group: int) -> None:
    """A read of 4 bits and a scale for each 64 costs 0.28 of half's 16 bits; the parts weigh the more."""
    arguments = packed_arguments(mx.float16, 16, 8, 128, [512], 0, 0, bits, group)
    simulator = Simulator(check=True)
    packed_attention(*arguments, on=simulator)
    for b in simulator.reports[0].buffers:
        if b.name[0] in "kv":
            assert b.read == b.unique_read


def test_huge_scores_do_not_overflow() -> None:
    q, k, v, lengths, *_ = decode_arguments(mx.float32, 1, 1, 64, [40], 0, 16)
    got = decode_attention(q, k, v, lengths, 1000.0, 0, 16, on="sim")
    best = (q[0, 0] @ k[0, 0].T).argmax().item()
    np.testing.assert_allclose(np.array(got[0, 0]), np.array(v[0, 0, best]), atol=1e-5)


@pytest.mark.parametrize("on", ["sim", "plain"])
@pytest.mark.parametrize(
    ("dtype", "heads", "kv_heads", "dim", "spans", "window"),
    [
        (mx.float32, 2, 1, 64, [(31, 31), (32, 32), (33, 33), (1, 1)], 0),
        (mx.float16, 7, 7, 80, [(1, 64), (5, 17)], 16),
        (mx.bfloat16, 4, 1, 128, [(15, 16), (17, 48)], 0),
        (mx.float32, 14, 2, 24, [(0, 3), (34, 65)], 33),
        (mx.float32, 1, 1, 256, [(10, 10)], 1),
    ],
)
def test_flash_attention_is_exact(
    dtype: mx.Dtype, heads: int, kv_heads: int, dim: int, spans: list[tuple[int, int]], window: int, on: str
) -> None:
    arguments = flash_arguments(dtype, heads, kv_heads, dim, spans, window)
    got = flash_attention(*arguments, on=Simulator(check=True, seed=2) if on == "sim" else on)
    truth = causal_attention(*map(float64, arguments))
    assert got.dtype == dtype
    np.testing.assert_allclose(float64(got), truth, rtol=0, atol=rounded(dtype) * np.abs(truth).max())


def test_flash_attention_equals_mlx() -> None:
    q, k, v, spans, scale, _ = flash_arguments(mx.float32, 4, 2, 64, [(40, 70)], 0)
    got = flash_attention(q, k, v, spans, scale, on="sim")
    batch = (x[None] for x in (q.swapaxes(0, 1), k, v))
    expected = mx.fast.scaled_dot_product_attention(*batch, scale=scale, mask="causal")[0].swapaxes(0, 1)
    np.testing.assert_allclose(np.array(got), np.array(expected), atol=2e-6)


@pytest.mark.parametrize(("dim", "tokens", "window"), [(64, 100, 0), (128, 70, 24)])
def test_flash_attention_moves_what_the_paper_says(dim: int, tokens: int, window: int) -> None:
    """Q and O once; K and V once for each tile of queries that sees them (arXiv:2205.14135, theorem 2: N² d / rows of
    a tile). With the scores in memory there would be 4 H N² elements more."""
    arguments = flash_arguments(mx.float16, 2, 1, dim, [(tokens, tokens)], window)
    simulator = Simulator(check=True)
    q = arguments[0]
    flash_attention(*arguments, on=simulator)
    seen = 0
    for first, count, _, _ in tiles_of([(tokens, tokens)]):
        seen += first + count - (max(0, first - window + 1) if window else 0)
    read = {b.name: b.read for b in simulator.reports[0].buffers}
    assert read["k"] == read["v"] == seen * 2 * dim * 2  # both heads
    assert read["q"] == q.nbytes
    if not window:
        assert seen <= tokens**2 / (2 * QUERIES) + 2 * tokens
    assert simulator.reports[0].threadgroup_bytes <= 32 * 1024


def test_keys_and_values_fit_into_a_threadgroup_s_memory() -> None:
    assert all(2 * 4 * keys_for(dim) * -(-dim // 8) * 8 <= 16 * 1024 for dim in range(1, 257))


def test_flash_attention_of_huge_scores() -> None:
    q, k, v, spans, *_ = flash_arguments(mx.float32, 1, 1, 64, [(1, 40)], 0)
    got = flash_attention(q, k, v, spans, 1000.0, on="sim")
    best = (q[0, 0] @ k[0].T).argmax().item()
    np.testing.assert_allclose(np.array(got[0, 0]), np.array(v[0, best]), atol=1e-5)
