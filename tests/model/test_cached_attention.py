"""Attention under a mask and over packed arrays, each form against a loop in float64."""

import mlx.core as mx
import numpy as np
import pytest

from tests.model.test_attention import inputs, oracle
from tiny_llm.model import cached_attention, fused
from tiny_llm.model.cached_attention import BLOCK, Packed

MASKED = {
    "plain": cached_attention.masked_attention,
    "cpu": fused.masked_attention_cpu,
    "gpu": fused.masked_attention_gpu,
}
PACKED = {
    "blocks": cached_attention.packed_attention,
    "product": cached_attention.packed_attention_product,
    "cpu": cached_attention.packed_attention_cpu,
}
SHAPES = [(1, 1, 4, 2, 64), (1, 300, 7, 7, 64), (3, 40, 8, 1, 128), (5, BLOCK - 1, 4, 2, 64), (9, BLOCK, 4, 2, 128)]
SHAPES += [(BLOCK + 1, BLOCK + 1, 2, 1, 64), (40, 2 * BLOCK + 7, 2, 2, 64)]


@pytest.mark.parametrize("form", MASKED)
@pytest.mark.parametrize("shape", [(1, 5, 4, 2, 32), (6, 300, 7, 7, 80), (9, 40, 8, 1, 64)])
def test_masked(form: str, shape: tuple[int, ...]) -> None:
    q, k, v = inputs(*shape)
    mask = np.random.default_rng(1).random((shape[0], shape[1])) < 0.5
    mask[:, 2] = True
    want = np.stack(
        [oracle(q[t : t + 1], k[:, mask[t]], v[:, mask[t]], 0.2, None)[0] for t in range(shape[0])]  # all it sees
    )
    got = MASKED[form](mx.array(q), mx.array(k), mx.array(v), 0.2, mx.array(mask))
    np.testing.assert_allclose(np.array(got), want, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("form", PACKED)
@pytest.mark.parametrize("window", [None, 1, 20])
@pytest.mark.parametrize("layout", [(8, 64), (4, 64), (4, 32)])
@pytest.mark.parametrize("shape", SHAPES)
def test_packed(form: str, window: int | None, layout: tuple[int, int], shape: tuple[int, ...]) -> None:
    """Around the borders of blocks; the oracle sees what the packed arrays stand for."""
    bits, group_size = layout
    q, k, v = map(mx.array, inputs(*shape))
    packed = [Packed(*mx.quantize(x, group_size=group_size, bits=bits)) for x in (k, v)]
    assert packed[0].layout(shape[-1]) == (group_size, bits)
    kept = [np.array(mx.dequantize(*x, group_size=group_size, bits=bits)) for x in packed]
    got = PACKED[form](q, *packed, 0.2, window)
    np.testing.assert_allclose(np.array(got), oracle(np.array(q), *kept, 0.2, window), rtol=1e-4, atol=3e-5)


def test_half_precision_stays_half() -> None:
    q, k, v = (mx.array(x).astype(mx.bfloat16) for x in inputs(3, 300, 4, 2, 64))
    packed = [Packed(*mx.quantize(x, group_size=64, bits=8)) for x in (k, v)]
    for attend in PACKED.values():
        assert attend(q, *packed, 0.2).dtype == mx.bfloat16


def test_no_more_than_a_block_is_unpacked_at_a_time() -> None:
    """Memory on top of the packed arrays stays far below the unpacked ones."""
    slots, dim = 64 * BLOCK, 128
    k, v = (Packed(*mx.quantize(mx.random.normal((2, slots, dim)), group_size=64, bits=4)) for _ in range(2))
    q = mx.random.normal((64, 2, dim))
    mx.eval(q, *k, *v)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(cached_attention.packed_attention(q, k, v, 0.1))
    assert mx.get_peak_memory() - before < 2 * slots * dim * 4 / 4
