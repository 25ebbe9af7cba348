"""Group-affine weights: every bit as MLX has it, and by definition in numpy."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import make_model
from tiny_llm import load
from tiny_llm.config import EngineConfig
from tiny_llm.model import ops
from tiny_llm.quantize import affine

BITS, GROUPS = (2, 3, 4, 6, 8), (32, 64, 128)
DTYPES = (mx.float32, mx.float16, mx.bfloat16)
KINDS = {
    "normal": lambda a: a,
    "positive": np.abs,
    "far above zero": lambda a: a + 40,
    "far below zero": lambda a: a - 40,
    "tiny": lambda a: 1e-6 * a,
    "below the smallest scale": lambda a: 1e-8 * a,
    "zeros": lambda a: 0 * a,
    "negative zeros": lambda a: -0.0 * np.abs(a),
    "equal": lambda a: 0 * a - 0.3,
    "whole": np.round,
    "outliers": lambda a: np.where(np.abs(a) > 2, 30 * a, a),
    "symmetric": lambda a: np.sign(a),
}


def weights(kind: str, rows: int = 9, columns: int = 256, seed: int = 0) -> np.ndarray:
    return KINDS[kind](np.random.default_rng(seed).standard_normal((rows, columns))).astype(np.float32)


def same_bits(a: mx.array, b: mx.array) -> bool:
    """Zeros of both signs are different here."""
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    return bytes(memoryview(mx.contiguous(a))) == bytes(memoryview(mx.contiguous(b)))


def check_against_mlx(w: mx.array, group_size: int, bits: int) -> None:
    got = affine.quantize(w, group_size, bits)
    want = mx.quantize(w, group_size=group_size, bits=bits)
    for name, array in zip(("weight", "scales", "biases"), want, strict=True):
        assert same_bits(got[name], array), name
    back = affine.dequantize(*want, group_size, bits)
    assert same_bits(back, mx.dequantize(*want, group_size=group_size, bits=bits))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", GROUPS)
def test_bit_equal_to_mlx(dtype: mx.Dtype, bits: int, group_size: int) -> None:
    for kind in KINDS:
        check_against_mlx(mx.array(weights(kind)).astype(dtype), group_size, bits)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 7),
    groups=st.integers(1, 5),
    group_size=st.sampled_from(GROUPS),
    bits=st.sampled_from(BITS),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 10**6),
    scale=st.floats(1e-9, 1e4),
    shift=st.floats(-3, 3),
)
def test_bit_equal_to_mlx_on_odd_shapes(
    rows: int, groups: int, group_size: int, bits: int, dtype: mx.Dtype, seed: int, scale: float, shift: float
) -> None:
    w = scale * (weights("normal", rows, groups * group_size, seed) + shift)
    check_against_mlx(mx.array(w.astype(np.float32)).astype(dtype), group_size, bits)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 5), blocks=st.integers(1, 9), bits=st.sampled_from(BITS), seed=st.integers(0, 10**6))
def test_packing_is_a_row_of_bits(rows: int, blocks: int, bits: int, seed: int) -> None:
    """Against numpy, which packs bits into bytes; words are four bytes, lowest first."""
    values = np.random.default_rng(seed).integers(0, 2**bits, (rows, 32 * blocks), dtype=np.uint32)
    stream = (values[..., None] >> np.arange(bits, dtype=np.uint32)).astype(np.uint8) & 1
    want = np.packbits(stream.reshape(rows, -1), axis=1, bitorder="little").view("<u4")
    packed = affine.pack(mx.array(values), bits)
    assert packed.dtype == mx.uint32
    np.testing.assert_array_equal(np.array(packed), want)
    np.testing.assert_array_equal(np.array(affine.unpack(packed, bits)), values)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["normal", "positive", "far above zero", "outliers"])
def test_no_weight_is_off_by_more_than_half_a_step_and_zero_stays(kind: str, bits: int) -> None:
    """By the definition: up to half a step, and a bit more at the far end, where the ladder was stretched for zero."""
    w = weights(kind)
    w[:, 5] = 0
    q = affine.quantize(mx.array(w), 64, bits)
    back = np.array(affine.dequantize(q["weight"], q["scales"], q["biases"], 64, bits))
    step = np.repeat(np.abs(np.array(q["scales"])), 64, axis=1)
    assert (np.abs(back - w) <= 1.01 * step + 1e-6).all()
    assert np.mean(np.abs(back - w) <= 0.501 * step + 1e-6) > 0.9
    assert (np.abs(back[:, 5]) <= 2e-6 * np.abs(w).max()).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", GROUPS)
def test_the_linear_layer(dtype: mx.Dtype, bits: int, group_size: int) -> None:
    """Against float64 on the dequantized weights; in float32 against mx.quantized_matmul as well."""
    w = affine.quantize(mx.array(weights("normal")).astype(dtype), group_size, bits)
    x = mx.array(weights("normal", 5, 256, seed=1)).astype(dtype)
    dense = mx.dequantize(w["weight"], w["scales"], w["biases"], group_size=group_size, bits=bits).astype(mx.float32)
    want = np.array(x.astype(mx.float32), np.float64) @ np.array(dense, np.float64).T
    got = affine.quantized_linear(x, w)
    assert got.dtype == dtype
    tolerance = {mx.float32: 1e-5, mx.float16: 2e-3, mx.bfloat16: 2e-2}[dtype]
    np.testing.assert_allclose(np.array(got.astype(mx.float32)), want, rtol=tolerance, atol=20 * tolerance)
    biased = affine.quantized_linear(x, w | {"bias": mx.arange(9).astype(dtype)})
    assert mx.array_equal(biased, got + mx.arange(9).astype(dtype))
    if dtype == mx.float32:
        np.testing.assert_allclose(np.array(got), np.array(ops.quantized_product(x, w)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", BITS)
def test_the_embedding(bits: int) -> None:
    table = mx.array(weights("normal", 11, 128)).astype(mx.bfloat16)
    w, tokens = affine.quantize(table, 32, bits), mx.array([3, 0, 10, 3])
    rows = mx.dequantize(w["weight"], w["scales"], w["biases"], group_size=32, bits=bits)[tokens]
    assert same_bits(affine.quantized_embedding(tokens, w, 128), rows)


def test_the_unfused_table_takes_every_kind_of_weight() -> None:
    table = affine.unfused(ops.PLAIN)
    dense = {"weight": mx.array(weights("normal", 6, 64)), "bias": mx.arange(6).astype(mx.float32)}
    packed = affine.quantize(mx.array(weights("normal", 4, 64, seed=1)), 32, 4)
    x = mx.array(weights("normal", 3, 64, seed=2))
    for w in (dense, packed, {"parts": [dense, packed]}):
        assert mx.allclose(table.linear(x, w), ops.PLAIN.linear(x, w), rtol=1e-4, atol=1e-4).item()
    for w in (dense, packed):
        tokens = mx.array([2, 2, 0])
        assert mx.array_equal(table.embedding(tokens, w, 64), ops.PLAIN.embedding(tokens, w, 64))


def test_plain_operations_run_it_in_the_real_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a learner writes is what answers."""
    path = make_model(tmp_path, quantize={"bits": 4, "group_size": 32, "model.layers.0.self_attn.v_proj": False})
    texts = {
        ops: load(path, config=EngineConfig(ops=ops)).generate("hello", max_tokens=8, temperature=0.0).tokens
        for ops in ("plain", "fused")
    }
    assert texts["plain"] == texts["fused"]
    monkeypatch.setattr(affine, "unpack", lambda packed, bits: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load(path, config=EngineConfig(ops="plain")).generate("hello", max_tokens=8)


@pytest.mark.parametrize(
    ("columns", "group_size", "bits", "message"),
    [
        (128, 64, 5, "bits: expected 2 or 3 or 4 or 6 or 8, found 5"),
        (128, 64, 0, "bits: expected .*, found 0"),
        (128, 16, 4, "group size: expected 32 or 64 or 128, found 16"),
        (96, 64, 4, "divides its rows of 96, found 64: take 32$"),
        (100, 64, 4, "divides its rows of 100, found 64: leave this layer dense$"),
        (128 * 3 + 64, 128, 4, "found 128: take 32 or 64$"),
    ],
)
def test_what_does_not_fit_is_refused(columns: int, group_size: int, bits: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        affine.quantize(mx.zeros((2, columns)), group_size, bits)
