"""The kernels in the real model: `--kernels`."""

from collections import Counter
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.model.parity import prompt
from tests.support import make_model
from tiny_llm.cache.packed import PackedPool
from tiny_llm.cache.paged import PagedPool
from tiny_llm.config import EngineConfig, QuantizationConfig
from tiny_llm.engine.llm import LLM, POCKET, load
from tiny_llm.kernels.launch import choose_back_end
from tiny_llm.kernels.paged_attention import PACKED_TWINS, TWINS
from tiny_llm.kernels.sim import Simulator
from tiny_llm.kernels.table import describe_operations, operations, with_kernels
from tiny_llm.model import fused
from tiny_llm.model.ops import PLAIN
from tiny_llm.quantize.write import write_quantized

CACHES = {
    "contiguous": {},
    "rotating": {"cache": "rotating", "window": 9, "sinks": 2},
    "8 bits": {"cache": "quantized"},
    "4 bits, rotating": {"cache": "rotating", "window": 9, "sinks": 2, "kv_bits": 4},
}
APART = {"float32": (5e-6, 5e-5), "bfloat16": (0.03, 0.25)}  # half of the logits, of size 3, and all
OF_A_CODE = {"8 bits": 0.25, "4 bits, rotating": 1.0}  # where rounding tips a number of the cache over to the next one


ODD = {"hidden_size": 224, "num_attention_heads": 7, "num_key_value_heads": 7, "num_hidden_layers": 1}
MODELS = {
    "dense": {},
    "4 bits": {"quantize": {"bits": 4, "group_size": 32}},
    "Qwen2 of 3 bits": {"model_type": "qwen2", "quantize": {"bits": 3, "group_size": 32}, **ODD},
}


@pytest.fixture(scope="module", params=MODELS)
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "random", dtype="bfloat16", **MODELS[request.param])


@pytest.fixture(scope="module")
def pocket_of_4_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pocket") / "pocket-4bit"
    write_quantized(POCKET, path, QuantizationConfig(4, 64))
    return path


def logits(llm: LLM) -> np.ndarray:
    """Of a prompt in two chunks, the first for matrix kernels, and of three steps behind it."""
    cache, tokens = llm.kept()[0], mx.array(prompt(26))
    parts = [llm.model(tokens[a:b], cache) for a, b in ((0, 18), (18, 23), (23, 24), (24, 25), (25, 26))]
    return np.array(mx.concatenate(parts).astype(mx.float32))


@pytest.mark.parametrize("dtype", APART)
@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("kernels", ["sim", "plain"])
def test_the_model_answers_the_same_on_kernels(model_dir: Path, kind: str, dtype: str, kernels: str) -> None:
    expected = logits(load(model_dir, config=EngineConfig(ops="plain", dtype="float32", **CACHES[kind])))
    got = logits(load(model_dir, config=EngineConfig(kernels=kernels, dtype=dtype, **CACHES[kind])))
    far = np.abs(got - expected)
    half, every = APART[dtype]
    assert np.median(far) < half * (3 if "4 bits" in kind else 1)
    assert far.max() < OF_A_CODE.get(kind, every)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", CACHES)
def test_the_shipped_model_says_the_same_on_kernels(packed: bool, kind: str, pocket_of_4_bits: Path) -> None:
    settings = CACHES[kind] | ({"window": 24, "sinks": 4} if "rotating" in kind else {})
    path = pocket_of_4_bits if packed else None
    plain, kernels = (load(path, config=EngineConfig(**c, **settings)) for c in ({"ops": "plain"}, {"kernels": "sim"}))
    question = [{"role": "user", "content": "What is a KV cache?"}]
    assert (
        kernels.generate(question, max_tokens=8, temperature=0).tokens
        == plain.generate(question, max_tokens=8, temperature=0).tokens
    )


def launches(llm: LLM, steps: list[int], monkeypatch: pytest.MonkeyPatch) -> list[Counter[str]]:
    """How often each kernel runs in each step of so many tokens."""
    names: list[str] = []
    launch = Simulator.launch

    def counted(self: Simulator, interface, *arguments):
        names.append(interface.name)
        return launch(self, interface, *arguments)

    monkeypatch.setattr(Simulator, "launch", counted)
    cache, found = llm.kept()[0], []
    for tokens in steps:
        mx.eval(llm.model(mx.arange(tokens), cache))
        found.append(Counter(names))
        names.clear()
    return found


def test_every_launch_is_a_kernels(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is never dispatched would go unnoticed. Four packed products in a layer are of seven matrices, as
    q, k, v and gate, up lie side by side, and the head is one more."""
    llm = load(model_dir, config=EngineConfig(kernels="sim"))
    layers, packed = llm.config.num_hidden_layers, "scales" in llm.model.weights["lm_head"]
    norms = 4 if llm.config.qk_norm else 2
    always = {"rms_norm": norms * layers + 1, "rope": 2 * layers, "swiglu": layers}
    products = 4 * layers + 1
    prefill, few, decode = launches(llm, [18, 3, 1], monkeypatch)
    for step, kernels in ((prefill, ["quantized_tiles"]), (few, ["quantized_rows"]), (decode, ["quantized_matvec"])):
        attention = ["decode_attention", "merge_attention"] if step is decode else ["flash_attention"]
        assert step == always | dict.fromkeys(attention, layers) | dict.fromkeys(kernels if packed else [], products)


@pytest.mark.parametrize(("kind", "prefill", "decode"), [
    ("8 bits", {"flash_attention"}, {"packed_attention", "merge_attention"}),
    ("rotating", set(), set()),
])  # fmt: skip
def test_the_caches_of_few_tokens_and_few_bits(
    model_dir: Path, kind: str, prefill: set[str], decode: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt of packed keys is unpacked for FlashAttention; beyond its window a rotating cache needs its own mask,
    which no kernel takes."""
    llm = load(model_dir, config=EngineConfig(kernels="sim", **CACHES[kind]))
    found = launches(llm, [18, 1], monkeypatch)
    assert [{name for name in step if "attention" in name} for step in found] == [prefill, decode]


def test_a_rotating_cache_within_its_window(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = load(model_dir, config=EngineConfig(kernels="sim", cache="rotating", window=40))
    prefill, decode = launches(llm, [18, 1], monkeypatch)
    assert "flash_attention" in prefill and "decode_attention" in decode


def test_a_longer_text_compiles_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A length in a template would make another kernel of each token."""
    texts: set[str] = set()
    from tiny_llm.kernels.sim import compiler

    compile_kernel = compiler.compile_kernel
    monkeypatch.setattr(compiler, "compile_kernel", lambda *a: texts.add(a[0]) or compile_kernel(*a))
    ops = with_kernels(PLAIN, "sim")
    x = mx.random.normal((3, 8, 32))  # from 8 elements on MLX makes an input device memory: another kernel
    for tokens in (1, 3):
        before = len(texts)
        for length in (3, 4, 700):
            keys = mx.random.normal((2, length, 32))
            ops.attention(x[:tokens], keys, keys, 0.2)
        assert 1 <= len(texts) - before <= 2, tokens


def test_requests_side_by_side_run_on_the_same_back_end(model_dir: Path) -> None:
    llm = load(model_dir, config=EngineConfig(kernels="sim"))
    assert not PagedPool(llm.config, llm.model.ops, 2, 4).paged.reads_padding
    assert PagedPool(llm.config, PLAIN, 2, 4).paged is TWINS
    assert PackedPool(llm.config, llm.model.ops, 2, 4).paged is PACKED_TWINS, "no kernel reads a packed pool"


@pytest.mark.parametrize("name", ["fused", "plain"])
def test_the_switchboard_builds_the_whole_table(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINY_LLM_KERNELS", raising=False)
    table = operations(EngineConfig(ops=name), PLAIN, mx.bfloat16)
    expected = PLAIN if name == "plain" else fused.choose_ops("fused")
    assert table.attention is expected.attention and table.kernels is None
    assert (table.paged is TWINS) == (choose_back_end() == "plain")
    assert table.paged_packed is PACKED_TWINS
    table = operations(EngineConfig(ops=name, kernels="plain"), PLAIN)
    assert table.attention is not expected.attention and table.paged is TWINS and table.kernels == "plain"


def test_heads_that_no_kernel_takes() -> None:
    ops = with_kernels(PLAIN, "sim")
    with pytest.raises(ValueError, match="expected 1 to 256 dimensions"):
        ops.attention(mx.ones((2, 1, 257)), mx.ones((1, 2, 257)), mx.ones((1, 2, 257)), 1.0)


def test_more_query_heads_than_decode_attention_shares() -> None:
    ops, q, k = with_kernels(PLAIN, "sim"), mx.random.normal((1, 18, 8)), mx.random.normal((1, 5, 8))
    np.testing.assert_allclose(
        np.array(ops.attention(q, k, k, 0.3)), np.array(PLAIN.attention(q, k, k, 0.3)), atol=1e-5
    )


def test_half_precision_weights_of_another_type(model_dir: Path) -> None:
    table, x = with_kernels(PLAIN, "sim"), mx.random.normal((2, 3, 8)).astype(mx.bfloat16)
    normed = table.rms_norm(x, mx.ones(8), 1e-6)
    assert normed.shape == x.shape and normed.dtype == mx.bfloat16


def test_what_runs_where_in_words(pocket_of_4_bits: Path, tmp_path: Path) -> None:
    def words(model: Path | None, **settings) -> str:
        config = EngineConfig(kernels="sim", **settings)
        return describe_operations(load(model, config=config).model, config)

    ours = "kernels on sim: norm, rotation, gate, attention"
    assert words(None) == f"{ours} · MLX's operations: embedding, dense products"
    assert words(pocket_of_4_bits) == f"{ours}, packed products · MLX's operations: embedding"
    body = make_model(tmp_path / "body", quantize={"bits": 8, "group_size": 32, "lm_head": False})
    assert words(body, cache="rotating") == (
        f"{ours}, packed products · MLX's operations: embedding, dense products, attention beyond the window"
    )


def test_a_back_end_that_is_not_here() -> None:
    with pytest.raises(ValueError, match="no cuda here; use cpu, mlx, sim or plain"):
        with_kernels(PLAIN, "cuda")
    with pytest.raises(ValueError, match="kernels: expected one of metal, cuda, cpu, sim, plain, mlx, found 'gpu'"):
        EngineConfig(kernels="gpu")


def test_the_environment_names_the_back_end_of_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_LLM_KERNELS", "sim")
    assert load(POCKET).model.ops.kernels == "sim"
    assert load(POCKET, config=EngineConfig(kernels="plain")).model.ops.kernels == "plain"
    monkeypatch.setenv("TINY_LLM_KERNELS", "vulkan")
    names = "expected one of metal, cuda, cpu, sim, plain, mlx"
    with pytest.raises(ValueError, match=f"kernels: {names} .*TINY_LLM_KERNELS or on=.*found 'vulkan'"):
        load(POCKET)


def test_words_follow_the_table_and_not_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names the back end as well, and without both the CPU kernels may run."""
    monkeypatch.setenv("TINY_LLM_KERNELS", "plain")
    config = EngineConfig()
    assert describe_operations(load(POCKET, config=config).model, config).startswith("kernels on plain: norm,")
    monkeypatch.setenv("TINY_LLM_KERNELS", "mlx")
    assert describe_operations(load(POCKET, config=config).model, config) == (
        "kernels: none of ours, MLX's operations alone"
    )


def test_mlx_alone_means_a_paged_pool_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU our kernels ran over the pool."""
    monkeypatch.delenv("TINY_LLM_KERNELS", raising=False)
    monkeypatch.setattr("tiny_llm.kernels.table.choose_back_end", lambda name=None: "metal")
    assert operations(EngineConfig(kernels="mlx"), PLAIN, mx.float32).paged is TWINS
    assert operations(EngineConfig(ops="plain"), PLAIN, mx.float32).paged is not TWINS
