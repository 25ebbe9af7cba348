"""The CPU kernels against NumPy in float64, and in the whole model against the plain operations."""

import gc
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.model.parity import prompt
from tests.support import make_model
from tiny_llm import doctor
from tiny_llm.cache.block_files import BlockFiles
from tiny_llm.cache.paged import PagedPool
from tiny_llm.config import EngineConfig, SamplingParams
from tiny_llm.engine.llm import LLM, load
from tiny_llm.kernels import toolchain
from tiny_llm.kernels.cpu import abi, build, compiling, native
from tiny_llm.kernels.cpu.layout import laid_out_bytes, matrices_of, nbytes_of
from tiny_llm.kernels.sim import compiler as simulator
from tiny_llm.kernels.sim.report import CompileError
from tiny_llm.kernels.table import describe_operations, operations
from tiny_llm.model import fused
from tiny_llm.model.cached_attention import Packed
from tiny_llm.model.fingerprint import fingerprint
from tiny_llm.model.loader import load_config, load_weights
from tiny_llm.model.memory import estimate_bytes
from tiny_llm.model.ops import PLAIN
from tiny_llm.views.answers import peak_memory
from tiny_llm.views.speed import at_most, bytes_read

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the CPU kernels are for Linux")
ROWS_OF_X = (1, 2, 3, 4, 5, 8, 9, 33)
KINDS = (mx.float32, mx.float16, mx.bfloat16)
CACHES: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "rotating": {"cache": "rotating", "window": 9, "sinks": 2},
    "8 bits": {"cache": "quantized"},
    "4 bits, rotating": {"cache": "rotating", "window": 9, "sinks": 2, "kv_bits": 4},
}
WIDE = {"num_attention_heads": 2, "num_key_value_heads": 1}  # heads that a cache of few bits takes
MODELS: dict[str, dict[str, Any]] = {
    "dense of 32 bits": {"dtype": "float32"},
    "dense of 16 bits": {"dtype": "bfloat16"},
    "half precision": {"dtype": "float16"},
    "4 bits": {"dtype": "bfloat16", "quantize": {"bits": 4, "group_size": 32}},
    "8 bits": {"dtype": "float16", "quantize": {"bits": 8, "group_size": 64}},
    "Qwen2 of 3 bits": {"model_type": "qwen2", "dtype": "bfloat16", "quantize": {"bits": 3, "group_size": 32}, **WIDE},
    "Llama": {"model_type": "llama", "dtype": "bfloat16", **WIDE},
    "experts": {"model_type": "qwen3_moe", "dtype": "bfloat16", "num_experts": 8, "num_experts_per_tok": 3},
    "Qwen2 with experts of 4 bits": {
        "model_type": "qwen2_moe",
        "dtype": "bfloat16",
        "stack_experts": True,
        "quantize": {"bits": 4, "group_size": 32},
        **WIDE,
    },
    "in parts": {
        "dtype": "bfloat16",
        "quantize": {
            "bits": 4,
            "group_size": 32,
            "model.layers.0.self_attn.k_proj": {"bits": 6, "group_size": 32},
            "model.layers.1.mlp.up_proj": False,
            "model.layers.1.self_attn.v_proj": {"bits": 8, "group_size": 32},
        },
    },
}


@pytest.fixture(scope="module")
def module() -> Any:
    return build.kernels()


def error(got: mx.array, want: np.ndarray) -> float:
    """The root of the mean square error, relative to the size of what is wanted."""
    difference = np.array(got).astype(np.float64) - want
    return float(np.sqrt(np.mean(difference**2) / np.mean(want**2)))


def numbers(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32))


def packed(rows: int, columns: int, bits: int, group: int, kind: mx.Dtype) -> tuple[list[mx.array], np.ndarray]:
    """A matrix as MLX packs it, and what it holds, unpacked by NumPy."""
    arrays = list(mx.quantize(numbers(rows, columns).astype(kind), group_size=group, bits=bits))
    mx.eval(arrays)
    words, scales, biases = (np.array(a.astype(t)) for a, t in zip(arrays, (mx.uint32, *[mx.float32] * 2), strict=True))
    string = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little").reshape(rows, columns, bits)
    codes = (string * (1 << np.arange(bits))).sum(axis=-1).astype(np.float64)
    of_group = np.arange(columns) // group
    return arrays, codes * scales[:, of_group].astype(np.float64) + biases[:, of_group]


# ---- products ----


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("bits", "group"), [(2, 32), (3, 64), (4, 32), (4, 64), (4, 128), (6, 64), (8, 32), (8, 128)])
def test_products_with_packed_weights(bits: int, group: int, kind: mx.Dtype, module: Any) -> None:
    for rows, columns in ((5, group), (16, 384), (49, 384), (100, 640)):
        arrays, dense = packed(rows, columns, bits, group, kind)
        bias = numbers(rows)
        matrix = module.Matrix(module.Arena(), *arrays, bias, columns, bits)
        for count in ROWS_OF_X:
            x = numbers(count, columns, seed=1)
            want = np.array(x).astype(np.float64) @ dense.T + np.array(bias)
            assert error(matrix.product(x, False), want) < 3e-6, (rows, columns, count)
            assert error(matrix.product(x, True), want) < 3e-2, (rows, columns, count)
        tokens = mx.array([0, rows - 1, 2])
        np.testing.assert_allclose(np.array(matrix.rows(tokens)), dense[np.array(tokens)], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_products_with_floats(kind: mx.Dtype, module: Any) -> None:
    for rows, columns in ((1, 1), (5, 7), (33, 100), (64, 576), (17, 515)):
        weight = numbers(rows, columns).astype(kind)
        mx.eval(weight)
        dense = np.array(weight.astype(mx.float32)).astype(np.float64)
        matrix = module.Matrix(module.Arena(), weight, None)
        for count in ROWS_OF_X:
            x = numbers(count, columns, seed=1)
            want = np.array(x).astype(np.float64) @ dense.T
            assert error(matrix.product(x, False), want) < 1e-6, (rows, columns, count)
            assert mx.array_equal(matrix.product(x, True), matrix.product(x, False)), (
                "only codes meet 8-bit activations"
            )
        assert mx.array_equal(matrix.rows(mx.array([rows - 1])), weight[-1:].astype(mx.float32))


def test_extreme_codes_and_scales(module: Any) -> None:
    """Codes with their highest bit set at each place of a word, tiny scales, and numbers of very different sizes."""
    for bits in (4, 8):
        words = mx.full((16, 64 * bits // 32), 0xFFFFFFFF, mx.uint32)
        for scale in (6e-8, 1e-5, 1.0, 60000.0):  # the smallest of float16, below its normal ones; near the largest
            scales = mx.full((16, 2), scale, mx.float16)
            biases = mx.zeros((16, 2), mx.float16)
            mx.eval(words, scales, biases)
            matrix = module.Matrix(module.Arena(), words, scales, biases, None, 64, bits)
            x = mx.array([[10.0 ** (i % 7 - 3) for i in range(64)]])
            want = np.array(x).astype(np.float64).sum() * (2**bits - 1) * float(scales[0, 0].item())
            np.testing.assert_allclose(np.array(matrix.product(x, False)), want, rtol=1e-6)


def test_matrices_side_by_side(module: Any) -> None:
    """Outputs of matrices of other formats stand behind each other, whatever their numbers of rows."""
    arena = module.Arena()
    first, dense = packed(21, 128, 4, 32, mx.float16)
    second, other = packed(3, 128, 6, 64, mx.bfloat16)
    third = numbers(7, 128)
    matrix = module.Matrix(arena, *first, None, 128, 4)
    matrix.join(module.Matrix(arena, *second, numbers(3), 128, 6))
    matrix.join(module.Matrix(arena, third, None))
    whole = np.concatenate([dense, other, np.array(third).astype(np.float64)])
    bias = np.concatenate([np.zeros(21), np.array(numbers(3)), np.zeros(7)])
    for count in ROWS_OF_X:
        x = numbers(count, 128, seed=1)
        assert error(matrix.product(x, False), np.array(x).astype(np.float64) @ whole.T + bias) < 1e-6


def test_x_may_be_any_view(module: Any) -> None:
    weight = numbers(20, 64)
    matrix = module.Matrix(module.Arena(), weight, None)
    x = numbers(64, 6)
    for view in (x.T, numbers(9, 64)[1::3], numbers(3, 128)[:, 64:], mx.broadcast_to(numbers(1, 64), (5, 64))):
        want = np.array(view).astype(np.float64) @ np.array(weight).astype(np.float64).T
        assert error(matrix.product(view, False), want) < 1e-6


@pytest.mark.parametrize(
    "x", [mx.zeros((2, 65)), mx.zeros((64,)), mx.zeros((2, 64), mx.float16)], ids=lambda x: str(x.shape)
)
def test_another_x_is_refused(x: mx.array, module: Any) -> None:
    with pytest.raises(ValueError, match="product: expected 2 axes, the last 64, found"):
        module.Matrix(module.Arena(), numbers(3, 64), None).product(x, False)


def test_no_rows_and_strange_tokens(module: Any) -> None:
    matrix = module.Matrix(module.Arena(), numbers(20, 64), None)
    assert matrix.product(mx.zeros((0, 64)), False).shape == (0, 20)
    rows = matrix.rows(mx.array([-1, 19, 20, 1 << 30, -21]))
    assert mx.array_equal(rows[0], rows[1]) and mx.isnan(rows[2:]).all()


# ---- attention ----


def attention64(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: np.ndarray) -> np.ndarray:
    """Attention in float64 where `mask` (T, S) is True; slots that nobody sees may hold anything."""
    q64, k64, v64 = (np.array(a).astype(np.float64) for a in (q, k, v))
    group = q64.shape[1] // k64.shape[0]
    k64, v64 = (np.where(mask.any(axis=0)[None, :, None], a, 0).repeat(group, axis=0) for a in (k64, v64))
    scores = np.einsum("thd,hsd->hts", q64, k64) * scale
    scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hts,hsd->thd", weights, v64)


def causal(count: int, slots: int, window: int) -> np.ndarray:
    distance = (np.arange(slots - count, slots)[:, None]) - np.arange(slots)
    return (distance >= 0) & ((distance < window) if window else True)


@pytest.mark.parametrize("window", [0, 1, 40, 300])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (9, 3), (2, 2)])
@pytest.mark.parametrize("dim", [8, 20, 64, 80, 128])
def test_attention(dim: int, heads: int, kv_heads: int, window: int, module: Any) -> None:
    for slots in (1, 17, 255, 256, 257, 600):
        keys, values = numbers(kv_heads, slots + 9, dim), numbers(kv_heads, slots + 9, dim, seed=1)
        for count in (1, 2, 4, 5, 70):
            if count > slots:
                continue
            q = numbers(count, heads, dim, seed=2)
            k, v = keys[:, :slots], values[:, :slots]
            want = attention64(q, k, v, dim**-0.5, causal(count, slots, window))
            assert error(module.attend(q, [k, v], dim**-0.5, window, None), want) < 2e-6, (slots, count)


@pytest.mark.parametrize("count", [1, 3, 9])
def test_attention_under_a_mask(count: int, module: Any) -> None:
    """What is not seen may be NaN."""
    slots = 300
    mask = np.random.default_rng(0).random((count, slots)) < 0.3
    mask[:, 0], mask[:, 7] = True, False
    unseen = mx.array(~mask.any(axis=0))[None, :, None]
    k, v = (mx.where(unseen, mx.nan, numbers(2, slots, 32, seed=seed)) for seed in (0, 1))
    if count > 4:
        v = mx.where(unseen, 0.0, v)  # many queries multiply by 0
    q = numbers(count, 4, 32, seed=2)
    got = module.attend(q, [k, v], 0.2, 0, mx.array(mask))
    assert error(got, attention64(q, k, v, 0.2, mask)) < 2e-6


@pytest.mark.parametrize("count", [1, 9])
def test_nan_is_seen(count: int, module: Any) -> None:
    """A model that computes NaN is told from its logits, so attention must not turn NaN into numbers."""
    q, k = numbers(count, 4, 32), numbers(2, 20, 32, seed=1)
    q[0, 1, 3] = mx.nan
    assert mx.isnan(module.attend(q, [k, k], 0.2, 0, None)[0, 1]).all()
    k[1, 2, 5] = mx.nan
    assert mx.isnan(module.attend(q, [k, k], 0.2, 0, None)[0, 2:]).all()


def test_other_types_are_refused(module: Any) -> None:
    q, k = numbers(1, 4, 32), numbers(2, 20, 32).astype(mx.float16)
    with pytest.raises(ValueError, match="expected keys and values in float32, found .* of float16"):
        module.attend(q, [k, k], 0.2, 0, None)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("dim", "group"), [(32, 32), (64, 64), (128, 32)])
def test_attention_over_packed_slots(dim: int, group: int, bits: int, module: Any) -> None:
    for slots in (3, 300):
        k, v = (Packed(*mx.quantize(numbers(2, slots, dim, seed=s), group_size=group, bits=bits)) for s in (0, 1))
        dense = [a.unpacked(0, slots, dim) for a in (k, v)]
        for count in (1, 3, 20):
            if count > slots:
                continue
            q = numbers(count, 6, dim, seed=2)
            got = module.attend(q, [*k, *v], dim**-0.5, 40, None)
            assert error(got, attention64(q, *dense, dim**-0.5, causal(count, slots, 40))) < 2e-6


@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize("window", [0, 21])
def test_attention_over_pages(window: int, bits: int | None, module: Any) -> None:
    """Each sequence reads its own blocks; what lies behind a sequence's end may be NaN."""
    heads, kv_heads, dim, block = 6, 2, 32, 16
    pool = [numbers(kv_heads, 40, block, dim, seed=seed) for seed in (0, 1)]
    tables = np.random.default_rng(0).permutation(40)[:36].reshape(3, 12).astype(np.int32)
    ends = [1, 100, 192]
    q = numbers(3, heads, dim, seed=2)
    slots = pool
    if bits:
        groups = [mx.quantize(a, group_size=32, bits=bits) for a in pool]
        pool = [mx.dequantize(*g, group_size=32, bits=bits) for g in groups]
        slots = [a for g in groups for a in g]
    else:
        behind = mx.zeros((40, block), mx.bool_)
        behind[int(tables[0, 0]), 1:] = True
        slots = [mx.where(behind[None, :, :, None], mx.nan, a) for a in pool]
    got = module.attend_pages(q, slots, mx.array(tables), mx.array(ends, dtype=mx.int32), dim**-0.5, window)
    for row, end in enumerate(ends):
        k, v = (a[:, mx.array(tables[row])].reshape(kv_heads, -1, dim)[:, :end] for a in pool)
        want = attention64(q[row : row + 1], k, v, dim**-0.5, causal(1, end, window))
        assert error(got[row : row + 1], want) < 2e-6, row


# ---- the whole model ----


@pytest.fixture(scope="module", params=MODELS)
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "random", **MODELS[request.param])


def logits(llm: LLM) -> np.ndarray:
    """Of a prompt in two chunks, of a step of few tokens, and of single ones."""
    cache, tokens = llm.kept()[0], mx.array(prompt(26))
    parts = [llm.model(tokens[a:b], cache) for a, b in ((0, 18), (18, 23), (23, 24), (24, 25), (25, 26))]
    return np.array(mx.concatenate(parts).astype(mx.float32))


@pytest.mark.parametrize("kind", CACHES)
def test_the_model_has_the_same_logits(model_dir: Path, kind: str) -> None:
    expected = logits(load(model_dir, config=EngineConfig(ops="plain", dtype="float32", **CACHES[kind])))
    got = logits(load(model_dir, config=EngineConfig(kernels="cpu", **CACHES[kind])))
    far = np.abs(got - expected)
    few_bits = "bits" in kind  # there a number of the cache may round to the next code
    assert np.median(far) < (3e-3 if few_bits else 3e-6)
    assert far.max() < (1.0 if few_bits else 3e-5)


# ---- a step as one operation ----


@pytest.mark.parametrize("kind", CACHES)
def test_a_fork_goes_its_own_way(kind: str, tmp_path: Path) -> None:
    """Steps write buffers in place, but never those that another cache reads as well."""
    config = EngineConfig(kernels="cpu", **CACHES[kind])
    llm = load(make_model(tmp_path / "model", **WIDE), config=config)
    text = prompt(26)

    def after(tokens: list[int], cache: Any) -> np.ndarray:
        rows = [llm.model(mx.array([token]), cache) for token in tokens]
        mx.eval(rows, cache.state)
        return np.array(mx.concatenate(rows))

    def filled() -> Any:
        llm.forget()
        cache = llm.kept()[0]
        mx.eval(llm.model(mx.array(text[:12]), cache), cache.state)
        after(text[12:14], cache)  # now there is room, and steps are one operation
        return cache

    one, other = filled(), None
    other = one.fork()
    first, second = after([5, 6, 7], one), after([8, 9, 10], other)
    third = after([11], one)
    alone = filled()
    np.testing.assert_array_equal(first, after([5, 6, 7], alone))
    np.testing.assert_array_equal(third, after([11], alone))
    np.testing.assert_array_equal(second, after([8, 9, 10], filled()))


def in_a_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | environment
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


ENDS = """
import mlx.core as mx
from tiny_llm.config import EngineConfig, SamplingParams
from tiny_llm.engine.llm import load
llm = load(config=EngineConfig(kernels="cpu"))
stream = llm.stream("hello", SamplingParams(max_tokens=200, ignore_eos=True))
for _ in range(3):
    next(stream)
"""
DROPPED = """
import mlx.core as mx
from tiny_llm.config import EngineConfig
from tiny_llm.engine.llm import load
llm = load(config=EngineConfig(kernels="cpu"))
cache = llm.kept()[0]
mx.eval(llm.model(mx.array([1, 2, 3]), cache), cache.state)
for _ in range(20):
    fork = cache.fork()
    y = llm.model(mx.array([5]), fork)
    mx.async_eval(y)
    del fork
    mx.eval(y)
mx.clear_streams()
"""
THREADS = """
import threading
from tiny_llm.kernels.cpu import build
found = []
def load():
    found.append(build.kernels())
threads = [threading.Thread(target=load) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(found) == 6 and len(set(map(id, found))) == 1, found
"""


@pytest.mark.parametrize("code", [ENDS, DROPPED, THREADS], ids=["ends in a stream", "drops a fork", "loads at once"])
def test_processes_end_well(code: str) -> None:
    for _ in range(3):
        done = in_a_process(code)
        assert done.returncode == 0, done.stderr[-500:]


@pytest.mark.parametrize("bits", [4, 8])
def test_cached_numbers_are_packed_as_mlx_packs_them(bits: int, tmp_path: Path) -> None:
    """By single steps, which pack natively, and as a prompt, which MLX packs."""
    path = make_model(tmp_path / "model", num_hidden_layers=1, **WIDE)
    llm = load(path, config=EngineConfig(kernels="cpu", cache="quantized", kv_bits=bits))
    text = prompt(40)
    states = []
    for cut in (40, 2):
        llm.forget()
        cache = llm.kept()[0]
        mx.eval(llm.model(mx.array(text[:cut]), cache), cache.state)
        for token in text[cut:]:
            mx.eval(llm.model(mx.array([token]), cache), cache.state)
        states.append([array[:, :40] for array in cache.state])
    unpacked = []
    for codes, scales, biases in (state[:3] for state in states):
        unpacked.append(mx.dequantize(codes, scales, biases, group_size=32, bits=bits))
    step = mx.abs(states[0][1]).max()  # the distance of two codes
    assert mx.abs(unpacked[0] - unpacked[1]).max() <= step * 1.01
    assert mx.mean(states[0][0] == states[1][0]) > 0.95


@pytest.mark.parametrize("bits", [None, 8])
def test_steps_of_many_requests_are_those_of_the_layers_one_by_one(bits: int | None, tmp_path: Path) -> None:
    path = make_model(tmp_path / "model", **WIDE)
    settings = {"cache": "quantized", "kv_bits": bits} if bits else {}
    texts = []
    for most in (64, 0):
        llm = load(path, config=EngineConfig(kernels="cpu", **settings))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "STACKED_TOKENS", most)
            answers = llm.generate([prompt(n) for n in (3, 40, 17, 22)], SamplingParams(temperature=0, max_tokens=30))
        texts.append([answer.tokens for answer in answers])
    assert texts[0] == texts[1]


def test_int8_is_near(tmp_path: Path) -> None:
    path = make_model(tmp_path / "model", quantize={"bits": 4, "group_size": 32})
    expected = logits(load(path, config=EngineConfig(kernels="cpu")))
    got = logits(load(path, config=EngineConfig(activations="int8")))
    far = np.sqrt(np.mean((got - expected) ** 2)) / expected.std()
    assert 1e-4 < far < 0.1


def test_matrices_keep_the_bits_of_the_file(tmp_path: Path) -> None:
    config = EngineConfig(kernels="cpu")
    wide, narrow = (load(make_model(tmp_path / kind, dtype=kind), config=config) for kind in ("float32", "bfloat16"))
    sizes = [llm.model.weights["layers"][0]["down_proj"]["cpu"].nbytes for llm in (wide, narrow)]
    assert sizes[0] == 2 * sizes[1]
    assert "layers, products" in describe_operations(wide.model, config)


@pytest.mark.parametrize("kind", MODELS)
def test_a_fingerprint_is_that_of_the_stored_arrays(kind: str, tmp_path: Path) -> None:
    """It left scales out, and failed for a matrix in the kernels' order."""
    path = make_model(tmp_path / "model", **MODELS[kind])
    config = load_config(path)
    weights = load_weights(path, config, mx.float32, native=True)
    expected = fingerprint(config, weights)
    assert load(path, config=EngineConfig(kernels="cpu")).model.fingerprint == expected
    part = next(iter(matrices_of(weights["layers"][1])))
    name = "scales" if "scales" in part else "weight"
    part[name] = part[name] * 1.5
    assert fingerprint(config, weights) != expected


def test_a_saved_cache_is_for_the_same_activations(tmp_path: Path) -> None:
    path = make_model(tmp_path / "model", quantize={"bits": 4, "group_size": 32})
    exact, rounded = (load(path, config=EngineConfig(kernels="cpu", activations=a)) for a in ("float32", "int8"))
    rounded.generate("hello", GREEDY)
    rounded.save_cache(tmp_path / "kept")
    assert load(path, config=rounded.engine_config).load_cache(tmp_path / "kept") > 0
    with pytest.raises(ValueError, match="activations: expected float as this run sets it, found int8"):
        exact.load_cache(tmp_path / "kept")
    words = describe_operations(rounded.model, rounded.engine_config)
    assert words.endswith("; activations: int8 in products of up to 32 rows with packed weights")
    assert "int8" not in describe_operations(exact.model, exact.engine_config)


def test_blocks_on_the_disk_are_for_the_same_activations(tmp_path: Path) -> None:
    """A pool of a model with int8 activations never finds the blocks of one without, nor the other way round."""
    config = load_config(make_model(tmp_path / "model"))
    names = set[str]()
    for int8 in (False, True):
        pool = PagedPool(config, PLAIN._replace(int8=int8), 2, 8)
        files = BlockFiles(tmp_path / "blocks", 1 << 20, pool, "model")
        files.store("address", 0)
        names.update(files.sizes)
    assert len(names) == 2


@pytest.mark.parametrize("kind", MODELS)
def test_the_estimate_of_memory_is_that_of_the_matrices(kind: str, tmp_path: Path) -> None:
    """Codes of 2, 3 and 6 bits are widened, each layer's by its own bits."""
    path = make_model(tmp_path / "model", vocab_size=320, **MODELS[kind])
    config = load_config(path)
    need = estimate_bytes(path, config, mx.float32, 64, native=True)
    weights = load(path, config=EngineConfig(kernels="cpu")).model.weights
    laid_out = nbytes_of(weights["layers"]) + weights["lm_head"]["cpu"].nbytes + weights["embed_tokens"]["cpu"].nbytes
    padding = 10_000 if config.moe else 0  # a router's few rows fill whole vectors
    assert laid_out - padding <= need.weights < laid_out + 20_000  # norms


def test_the_bound_counts_the_matrices_as_they_are_laid_out(tmp_path: Path) -> None:
    """It took 32 bits for each weight, or the bits of the file."""
    path = make_model(tmp_path / "model", quantize={"bits": 6, "group_size": 32}, **WIDE)
    llm = load(path, config=EngineConfig(kernels="cpu"))
    keys = 2 * 2 * 1 * 32 * 4  # K and V, layers, heads, width, bytes
    assert bytes_read(llm, 100) == pytest.approx(laid_out_bytes(llm.model.weights, llm.model.config) + 100 * keys)
    packed = load(path, config=EngineConfig(kernels="cpu", cache="quantized"))
    assert bytes_read(packed, 100) < bytes_read(llm, 100) - 100 * keys / 2
    ring = load(path, config=EngineConfig(kernels="cpu", cache="rotating", window=20))
    assert bytes_read(ring, 100) == pytest.approx(bytes_read(llm, 20))
    assert at_most(llm, 100).median > 0


GREEDY = SamplingParams(temperature=0, max_tokens=24)


def test_peak_memory_counts_what_the_kernels_hold(tmp_path: Path) -> None:
    """It was that of MLX's arrays alone. The matrices are freed with the model."""
    before = build.held_bytes()
    llm = load(make_model(tmp_path / "model", **WIDE), config=EngineConfig(kernels="cpu"))
    matrices = nbytes_of(llm.model.weights)
    assert matrices <= build.held_bytes() - before < matrices + 100_000  # norms, and padding to lines of the cache
    llm.generate("hello", GREEDY)
    assert llm.last_stats and peak_memory(llm.last_stats) > build.held_bytes() > matrices
    del llm
    gc.collect()
    assert build.held_bytes() == before


@pytest.mark.parametrize("cache", ["contiguous", "rotating", "quantized"])
def test_the_shipped_model_says_the_same(cache: str) -> None:
    question = [{"role": "user", "content": "What is a KV cache?"}]
    models = [load(config=EngineConfig(kernels=kernels, cache=cache)) for kernels in ("mlx", "cpu")]
    texts = [llm.generate([question], GREEDY)[0].text for llm in models]
    assert texts[0] == texts[1] != ""


def test_many_requests_say_what_each_says_alone() -> None:
    llm = load(config=EngineConfig(kernels="cpu"))
    questions = ["What is a KV cache?", "Count from 1 to 5.", "hello", "What is 3 + 4?", "Name a color.", "Thanks!"]
    prompts = [[{"role": "user", "content": question}] for question in questions]
    together = [answer.text for answer in llm.generate(prompts, GREEDY)]
    assert together == [llm.generate([one], GREEDY)[0].text for one in prompts]


def test_two_models_compute_at_the_same_time() -> None:
    """All models of a process share the threads of the products."""
    question = [{"role": "user", "content": "What is a KV cache?"}]
    found: list[str] = []

    def ask() -> None:
        llm = load(config=EngineConfig(kernels="cpu"))
        found.extend(llm.generate([question], GREEDY)[0].text for _ in range(4))
        mx.clear_streams()

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12 and len(set(found)) == 1


def test_a_step_writes_the_cache_in_place(tmp_path: Path) -> None:
    """A copy of the buffers in each step would be seen in the peak of memory."""
    llm = load(make_model(tmp_path / "model", max_position_embeddings=8192), config=EngineConfig(kernels="cpu"))
    cache = llm.kept()[0]
    mx.eval(llm.model(mx.array(prompt(26)), cache), cache.state)
    cache.capacity = 8192
    mx.eval(llm.model(mx.array([1]), cache), cache.state)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    for _ in range(3):
        mx.eval(llm.model(mx.array([1]), cache), cache.state)
    assert mx.get_peak_memory() - before < cache.keys[0].nbytes / 2


# ---- the choice ----


def test_the_switchboard_takes_them_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINY_LLM_KERNELS", raising=False)
    assert operations(EngineConfig(), PLAIN, mx.float32).kernels == "cpu"
    assert operations(EngineConfig(), PLAIN, mx.bfloat16).attention is fused.CPU.attention
    assert operations(EngineConfig(kernels="mlx"), PLAIN, mx.float32).attention is fused.CPU.attention
    assert operations(EngineConfig(ops="plain"), PLAIN, mx.float32).attention is PLAIN.attention
    monkeypatch.setenv("TINY_LLM_KERNELS", "mlx")
    assert operations(EngineConfig(), PLAIN, mx.float32).kernels is None
    monkeypatch.setenv("TINY_LLM_KERNELS", "cpu")
    assert operations(EngineConfig(ops="plain"), PLAIN, mx.float32).kernels == "cpu"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernels": "cpu", "dtype": "bfloat16"}, "kernels cpu: .*they compute in float32"),
        ({"activations": "int8", "dtype": "float16"}, "activations int8: .*they compute in float32"),
        ({"activations": "int8"}, "activations: int8 is for packed weights, and this model's are dense"),
        ({"activations": "int8", "kernels": "mlx"}, "activations: int8 is for the CPU kernels, found kernels 'mlx'"),
    ],
)
def test_what_they_cannot_do_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = make_model(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        load(path, config=EngineConfig(**settings))


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine on which they can't be compiled."""

    def kernels() -> Any:
        raise build.NoKernelsError("no C++ compiler: install g++ (apt install g++)")

    monkeypatch.setattr(build, "kernels", kernels)
    monkeypatch.delenv("TINY_LLM_KERNELS", raising=False)
    yield


@pytest.mark.usefixtures("without")
def test_without_a_compiler_all_is_as_before(tmp_path: Path) -> None:
    path = make_model(tmp_path / "model")
    llm = load(path)
    assert llm.model.ops.kernels is None and "weight" in llm.model.weights["embed_tokens"]
    assert llm.generate(["hello"], GREEDY)[0].tokens
    with pytest.raises(ValueError, match="kernels cpu: the CPU kernels can't be used here: no C\\+\\+ compiler"):
        load(path, config=EngineConfig(kernels="cpu"))
    (fact,) = [fact for fact in doctor.collect() if fact.name == "CPU kernels"]
    assert fact.state == "warn" and "apt install g++" in fact.remedy


def kernels_in_a_process(cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    code = (
        "from tiny_llm.kernels.cpu import build\n"
        "try:\n"
        "    print('LANES', build.kernels().LANES)\n"
        "except build.NoKernelsError as error:\n"
        "    print('unavailable:', error)\n"
    )

    env = os.environ | {"TINY_LLM_CACHE": str(cache), **environment}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_compiler_that_fails_is_told(tmp_path: Path) -> None:
    broken = script(tmp_path / "broken", "echo 'module.cpp:1: error: no such thing' >&2; exit 1")
    found = kernels_in_a_process(tmp_path / "cache", CXX=broken).stdout
    assert found == "unavailable: broken can't compile them: module.cpp:1: error: no such thing\n"


def test_a_build_that_crashes_is_tried_apart_and_remembered(tmp_path: Path) -> None:
    """A library that ends its process when it is loaded must not end ours, today or tomorrow."""
    source = tmp_path / "crash.cpp"
    source.write_text('#include <cstdlib>\nextern "C" void* PyInit_tiny_llm_cpu_kernels() { abort(); }\n')
    crash = (
        f'for last; do :; done; case "$*" in *-shared*) g++ -shared -fPIC {source} -o "$last";; *) touch "$last";; esac'
    )
    crashing = script(tmp_path / "crashing", crash)
    first = kernels_in_a_process(tmp_path / "cache", CXX=crashing).stdout
    assert first.startswith("unavailable: a trial of the compiled kernels failed")

    again = kernels_in_a_process(tmp_path / "cache", CXX=crashing).stdout
    assert again.startswith(first.strip()) and "fault to try again" in again


def test_a_folder_that_can_not_be_written_is_told() -> None:
    found = kernels_in_a_process(Path("/dev/null/cache")).stdout
    assert "can't be used: Not a directory; set TINY_LLM_CACHE to another folder" in found


X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="for x86")
COMPILERS = {  # a compiler, and what runs its programs here
    "AVX2, g++": (["g++", "-march=x86-64-v3"], []),
    "AVX2, clang++": (["clang++", "-march=x86-64-v3"], []),
    "NEON, emulated": (["aarch64-linux-gnu-g++", "-static"], ["qemu-aarch64"]),
}


@X86
@pytest.mark.parametrize("name", COMPILERS)
def test_other_instruction_sets(name: str, tmp_path: Path) -> None:
    compiler, runner = COMPILERS[name]
    missing = [tool for tool in (compiler[0], *runner) if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not here")
    source, made = Path(__file__).parent / "native_check.cpp", tmp_path / "check"
    command = [*compiler, *build.FLAGS, f"-I{build.HERE}", str(source), "-o", str(made)]
    subprocess.run(command, check=True)
    done = subprocess.run([*runner, str(made)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "8 lanes, 0 faults\n")


def test_threads_are_those_of_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    processors = len(os.sched_getaffinity(0))
    for text, count in (("1", 1), ("3", 3)):
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", text)
        assert build.threads() == min(count, processors)
    for text in ("", "0", "many", "-2"):
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", text)
        assert build.threads() >= 1


def test_threads_are_at_most_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread for each of a million used to be started, and "²" is a digit that is no number."""
    processors = len(os.sched_getaffinity(0))
    for text in ("1000000", "9" * 5000, "²"):
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", text)
        assert 1 <= build.threads() <= processors


# ---- what goes wrong while they are compiled ----


def test_a_compile_that_failed_is_not_tried_again(tmp_path: Path) -> None:
    """Each start used to run the compiler for ten seconds."""
    count = tmp_path / "count"
    broken = script(tmp_path / "broken", f"echo run >> {count}; echo 'module.cpp:1: error: no such thing' >&2; exit 1")
    first = kernels_in_a_process(tmp_path / "cache", CXX=broken).stdout
    runs = count.read_text()
    again = kernels_in_a_process(tmp_path / "cache", CXX=broken).stdout
    assert "no such thing" in first and again.startswith(first.strip()) and "fault to try again" in again
    assert count.read_text() == runs


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("kill -9 $$", "was ended by signal 9"),
        ("echo 'fatal error: Killed signal terminated program cc1plus' >&2; exit 1", "Killed signal"),
        ("echo 'error: a.s: No space left on device' >&2; exit 1", "No space left"),
    ],
)
def test_a_compile_that_the_machine_ended_is_tried_again(command: str, words: str, tmp_path: Path) -> None:
    ended = script(tmp_path / "ended", command)
    for _ in range(2):
        found = kernels_in_a_process(tmp_path / "cache", CXX=ended).stdout
        assert words in found and "fault" not in found
    assert not list(tmp_path.glob("cache/cpu/*/fault"))


def test_a_full_disk_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The linker said that it returned 1, and that was remembered when the disk had room again."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(compiling.shutil, "disk_usage", lambda _: usage(2**20, 2**20, 0))
    ended = script(tmp_path / "ended", "echo 'collect2: error: ld returned 1 exit status' >&2; exit 1")
    making = tmp_path / "cache" / "cpu" / "hash" / "making"
    making.mkdir(parents=True)
    with pytest.raises(compiling.UnusableSettingError, match=f"the disk of {tmp_path}/cache is full: .* 16 MB"):
        compiling.run_together([[ended]], making, tmp_path / "fault")
    assert not (tmp_path / "fault").exists()


def test_a_compiler_that_makes_nothing_is_told(tmp_path: Path) -> None:
    found = kernels_in_a_process(tmp_path / "cache", CXX="/bin/true").stdout
    assert found == "unavailable: /bin/true made no library; set CXX to another compiler\n"


def test_compiling_and_waiting_are_told(tmp_path: Path) -> None:
    """Two processes on an empty cache said nothing for as long as it took."""
    slow = script(tmp_path / "slow", "sleep 2; echo 'error: wrong' >&2; exit 1")
    code = "from tiny_llm.kernels.cpu import build\ntry:\n    build.kernels()\nexcept build.NoKernelsError:\n    pass\n"
    env = os.environ | {"TINY_LLM_CACHE": str(tmp_path / "cache"), "CXX": slow}
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = sorted(process.communicate()[1] for process in both)
    assert said[0].startswith("tiny-llm: compiling the CPU kernels, once")
    assert said[1] == "tiny-llm: waiting for another process that compiles the CPU kernels\n"


@pytest.mark.parametrize("variable", ["CXX", "TINY_LLM_CACHE"])
def test_a_setting_that_switches_them_off_is_told(variable: str, tmp_path: Path) -> None:
    """A model was slower for a mistyped variable, and nothing said so."""
    path = make_model(tmp_path / "model")
    code = f"from tiny_llm import load\nload({str(path)!r})\n"
    env = os.environ | {"TINY_LLM_CACHE": str(tmp_path / "cache"), variable: "/dev/null/nothing"}
    env.pop("TINY_LLM_KERNELS", None)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert "the CPU kernels are off, which is slower" in done.stderr and variable in done.stderr


def test_a_compiler_that_fails_ends_the_other(tmp_path: Path) -> None:
    """It used to compile nanobind to the end; its child processes must end, too."""
    marker = tmp_path / "alive"
    slow = f'case "$*" in *nb_combined*) (sleep 4; touch {marker}); esac'
    broken = script(tmp_path / "broken", f"{slow}; echo 'error: wrong' >&2; exit 1")
    start = time.monotonic()
    assert "error: wrong" in kernels_in_a_process(tmp_path / "cache", CXX=broken).stdout
    assert time.monotonic() - start < 4
    time.sleep(max(0, start + 5 - time.monotonic()))
    assert not marker.exists()


def test_a_damaged_library_is_compiled_again(tmp_path: Path) -> None:
    """As a power failure leaves it. It used to fail at each start, or to crash."""
    build.kernels()
    usual = build.folder()
    cache = tmp_path / "cache"
    place = cache / "cpu" / usual.name
    shutil.copytree(usual, place)
    (library,) = place.glob("*.so")
    whole = library.read_bytes()
    assert build._is_whole(library)
    for damaged in (b"", bytes(len(whole)), whole[: len(whole) // 2]):
        library.write_bytes(damaged)
        assert not build._is_whole(library)
    assert kernels_in_a_process(cache).stdout.startswith("LANES")
    assert build._is_whole(library)


def test_a_library_that_can_not_be_loaded_is_compiled_again_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an update of the C library: the file is whole, and the system's loader refuses it."""
    path = tmp_path / "kernels.so"
    builds: list[Path] = []

    def built(place: Path) -> Path:
        builds.append(place)
        path.write_text("library")
        return path

    def imported(name: str) -> Any:
        raise ImportError("version `GLIBC_2.99' not found")

    monkeypatch.setattr(build, "folder", lambda: tmp_path)
    monkeypatch.setattr(build, "_built", built)
    monkeypatch.setattr(build, "imported", imported)
    with pytest.raises(build.NoKernelsError, match=r"can't be loaded: version `GLIBC_2.99' not found"):
        build._kernels.__wrapped__()
    assert len(builds) == 2


def test_a_compiler_that_is_no_program_is_named(tmp_path: Path) -> None:
    """The cache folder used to be blamed."""
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF, but not really")
    broken.chmod(0o755)
    found = kernels_in_a_process(tmp_path / "cache", CXX=str(broken)).stdout
    assert found == f"unavailable: {broken} can't be used: Exec format error; set CXX to another compiler\n"


def test_an_unknown_compiler_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another compiler used to be taken without a word."""
    found = kernels_in_a_process(tmp_path / "cache", CXX="no-such-g++").stdout
    assert (
        found.startswith("unavailable: CXX: expected the name or path of a C++ compiler") and "'no-such-g++'" in found
    )
    monkeypatch.setenv("CXX", "g++ -m64")
    toolchain.compiler.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"without arguments, found 'g\+\+ -m64'"):
            simulator.compiler()
    finally:
        toolchain.compiler.cache_clear()


def test_a_nanobind_of_another_abi_is_named(tmp_path: Path) -> None:
    """Its extensions do not know MLX's arrays: "incompatible function arguments"."""
    installed = build._nanobind()
    assert abi.mismatch(installed) is None
    other = tmp_path / "nanobind"
    (other / "src").mkdir(parents=True)
    header = other / "src" / "nb_internals.h"
    header.write_text("#ifndef NB_INTERNALS_VERSION\n#  define NB_INTERNALS_VERSION 7\n#endif\n")
    number = abi.version_of_headers(installed)
    complaint = abi.mismatch(other) or ""
    assert "has internals of version 7, and MLX" in complaint and f"was built with version {number}" in complaint
    assert "pip install" in complaint


def test_a_simulated_kernel_names_a_compiler_that_is_no_program(tmp_path: Path) -> None:
    """It used to be an OSError."""
    with pytest.raises(CompileError, match="no-compiler can't be run: No such file or directory; set CXX"):
        simulator.run([tmp_path / "no-compiler"], "a kernel")


OUT_OF_MEMORY = """
import resource
from pathlib import Path
import mlx.core as mx
from tiny_llm.kernels.cpu import build
module = build.kernels()
weight, x = mx.ones((1, 64)), mx.zeros((64, 400_000)).T
mx.eval(weight, x)
matrix = module.Matrix(module.Arena(), weight, None)
mx.eval(matrix.product(x[:5], False))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 48_000_000, resource.RLIM_INFINITY))
try:
    mx.eval(matrix.product(x, False))
except RuntimeError as error:
    print(error, mx.sum(matrix.product(x[:5] + 1, False)).item())
mx.clear_streams()
"""


def test_memory_that_runs_out_in_a_kernel_is_an_error() -> None:
    """The work runs on MLX's thread, whose exceptions `mx.eval` raises; afterwards the kernels go on."""
    build.kernels()
    done = in_a_process(OUT_OF_MEMORY)
    assert (done.returncode, done.stdout) == (0, "std::bad_alloc 320.0\n"), done.stderr[-500:]
