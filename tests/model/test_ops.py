"""Every operation, plain and fused, against numpy in float64."""

import mlx.core as mx
import numpy as np
import pytest

from tests.support import make_config
from tiny_llm.config import ModelConfig
from tiny_llm.model import fused, ops
from tiny_llm.model.ops import PLAIN, Ops

TABLES = {"plain": PLAIN, "cpu": fused.CPU, "gpu": fused.GPU}  # MLX runs the GPU's table on a CPU, too
RNG = np.random.default_rng(0)


@pytest.fixture(params=TABLES)
def table(request: pytest.FixtureRequest) -> Ops:
    return TABLES[request.param]


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def close(got: mx.array, want: np.ndarray, atol: float = 2e-5) -> None:
    assert got.dtype == mx.float32
    np.testing.assert_allclose(np.array(got), want, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("bias", [False, True])
def test_linear(table: Ops, rows: int, bias: bool) -> None:
    x, weight, b = normal(rows, 96), normal(80, 96), normal(80)
    w = {"weight": mx.array(weight)} | ({"bias": mx.array(b)} if bias else {})
    close(table.linear(mx.array(x), w), x.astype(np.float64) @ weight.T + (b if bias else 0))


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_quantized_linear_and_embedding(table: Ops, bits: int, group_size: int) -> None:
    """Bits and group size are found from the shapes alone, also where width and group differ by no power of two."""
    width = 384
    packed = mx.quantize(mx.array(normal(40, width)), group_size=group_size, bits=bits)
    w = dict(zip(("weight", "scales", "biases"), packed, strict=True))
    dense = np.array(mx.dequantize(*packed, group_size=group_size, bits=bits)).astype(np.float64)
    for rows in (5, fused.UNPACKED_ROWS):
        x, bias = normal(rows, width), normal(40)
        close(table.linear(mx.array(x), w), x @ dense.T, atol=1e-4)
        close(table.linear(mx.array(x), w | {"bias": mx.array(bias)}), x @ dense.T + bias, atol=1e-4)
    close(table.embedding(mx.array([3, 39, 0, 3]), w, width), dense[[3, 39, 0, 3]])


def test_by_columns_changes_the_order_in_memory_alone() -> None:
    """Matrices, also in parts, but neither norms, nor packed ones, nor the embedding, which is read by rows."""
    dense, norm = mx.array(normal(130, 96)), {"weight": mx.array(normal(96))}
    packed = dict(zip(("weight", "scales", "biases"), mx.quantize(mx.array(normal(8, 96)), group_size=32), strict=True))
    layer = {"o_proj": {"weight": dense}, "qkv_proj": {"parts": [{"weight": dense}, packed]}, "input_layernorm": norm}
    weights = {"embed_tokens": {"weight": dense}, "layers": [layer], "lm_head": {"weight": dense}}
    config = ModelConfig.from_hf(make_config("qwen3", "float32", {}))
    fused.by_columns(weights, config)
    changed = [layer["o_proj"], layer["qkv_proj"]["parts"][0], weights["lm_head"]]
    for weight in changed:
        assert memoryview(weight["weight"]).strides == (4, 4 * 130)
        assert mx.array_equal(weight["weight"], dense)
    for weight in (weights["embed_tokens"], packed):
        assert memoryview(weight["weight"]).strides[1] == 4
    x = normal(5, 96)
    close(fused.linear(mx.array(x), changed[0]), x.astype(np.float64) @ np.array(dense).T)


def test_linear_in_parts_is_the_parts_side_by_side(table: Ops) -> None:
    """q, k and v of different precision cannot be one matrix."""
    x, dense = normal(4, 64), normal(24, 64)
    packed = mx.quantize(mx.array(normal(32, 64)), group_size=64, bits=8)
    parts = [{"weight": mx.array(dense)}, dict(zip(("weight", "scales", "biases"), packed, strict=True))]
    unpacked = np.array(mx.dequantize(*packed, group_size=64, bits=8))
    want = np.concatenate([x @ dense.T, x @ unpacked.T], axis=1)
    close(table.linear(mx.array(x), {"parts": parts}), want, atol=1e-4)


def test_embedding(table: Ops) -> None:
    weight = normal(10, 8)
    close(table.embedding(mx.array([9, 0, 9]), {"weight": mx.array(weight)}, 8), weight[[9, 0, 9]])


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_rms_norm(table: Ops, eps: float) -> None:
    x, weight = normal(3, 5, 48), normal(48)
    x64 = x.astype(np.float64)
    want = x64 / np.sqrt((x64**2).mean(axis=-1, keepdims=True) + eps) * weight
    close(table.rms_norm(mx.array(x), mx.array(weight), eps), want)


def test_rms_norm_squares_in_float32() -> None:
    """300² overflows half precision."""
    x = mx.full((1, 32), 300.0, mx.float16)
    for table in TABLES.values():
        out = table.rms_norm(x, mx.ones((32,), mx.float16), 1e-6)
        assert out.dtype == mx.float16
        np.testing.assert_allclose(np.array(out), 1.0, atol=1e-3)


@pytest.mark.parametrize("spread", [1.0, 30.0])
@pytest.mark.parametrize("rows", [4, fused.MANY_ROWS])
def test_swiglu(table: Ops, spread: float, rows: int) -> None:
    x = normal(rows, 66) * np.float32(spread)
    gate, up = np.split(x.astype(np.float64), 2, axis=-1)
    close(table.swiglu(mx.array(x)), gate / (1 + np.exp(-gate)) * up, atol=3e-5 * spread)


def test_softmax_and_silu() -> None:
    x = normal(3, 50) * 20
    e = np.exp(x.astype(np.float64) - x.max(axis=-1, keepdims=True))
    close(ops.softmax(mx.array(x)), e / e.sum(axis=-1, keepdims=True))
    close(ops.softmax(mx.array([[1e4, 1e4]])), np.array([[0.5, 0.5]]))
    close(ops.silu(mx.array(x)), x / (1 + np.exp(-x.astype(np.float64))), atol=1e-5)


def test_exp_of_nonpositive_numbers() -> None:
    """The error that its docstring promises."""
    x = np.concatenate([np.linspace(-40, 0, 4001), [-1e30, -np.inf]]).astype(np.float32)
    got = np.array(fused.exp_nonpositive(mx.array(x)), np.float64)
    want = np.exp(x.astype(np.float64))
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)
    assert (got[x < -32] < 1e-13).all()


def test_choose() -> None:
    assert fused.choose_ops("plain") is PLAIN
    assert fused.choose_ops("fused") is (fused.GPU if mx.default_device() == mx.gpu else fused.CPU)
    with pytest.raises(ValueError, match="quick"):
        fused.choose_ops("quick")
