"""GGUF files: each type's numbers, each architecture's logits, settings and their refusals, memory while loading."""

import json
import warnings
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from tests.gguf_files import (
    TYPES,
    Stored,
    Twin,
    make_twins,
    pack,
    random_blocks,
    unpack,
    write_gguf,
)
from tests.model.parity import close, ours, peer_logits, prompt
from tests.model.test_qwen3 import LLAMA3
from tests.support import make_model
from tiny_llm import load
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.cache.recompute import RecomputeCache
from tiny_llm.config.gguf_keys import GGUF_RULES
from tiny_llm.config.rules import HARMLESS, REFUSED
from tiny_llm.model.gguf_blocks import BLOCKS, read_blocks
from tiny_llm.model.loader import check_memory, estimate_bytes, load_config, load_weights
from tiny_llm.model.rope import Rope
from tiny_llm.model.source import open_source
from tiny_llm.quantize.plan import matrices, uniform
from tiny_llm.quantize.write import write_quantized

ALIKE = {"": "Q4_1"}
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    **{f"llama {kind}": {"model_type": "llama", "types": {"": kind}} for kind in ("F32", "F16", "BF16")},
    **{
        f"llama {kind}": {"model_type": "llama", "types": {"": kind}}
        for kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
    },
    "llama tied, 9 heads on 3": {
        "model_type": "llama",
        "types": ALIKE,
        "hidden_size": 288,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "llama with biases": {"model_type": "llama", "types": ALIKE, "attention_bias": True, "mlp_bias": True},
    "llama of K types": {
        "model_type": "llama",
        "types": {"": "Q4_K", "token_embd": "Q6_K", "blk.0.ffn_down": "Q6_K", "blk.1.attn_v": "Q5_K"},
        **WIDE,
    },
    "qwen2": {"model_type": "qwen2", "types": {"": "Q4_0", "output": "Q8_0"}},
    "qwen2 tied": {"model_type": "qwen2", "types": {"": "Q8_0"}, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "types": {"": "Q4_1", "token_embd": "Q8_0", "blk.1.attn_k": "F16"}},
    "qwen3 of K types": {"model_type": "qwen3", "types": {"": "Q5_K", "output": "Q6_K"}, "head_dim": 64, **WIDE},
    "qwen3 with experts": {
        "model_type": "qwen3_moe",
        "types": {"": "Q4_1", "blk.0.ffn_gate_inp": "F32", "blk.1.ffn_gate_inp": "F32", "blk.1.ffn_down_exps": "Q8_0"},
        "stack_experts": True,
    },
    "qwen3 with experts of other bits": {
        "model_type": "qwen3_moe",
        "types": {"": "F16", "blk.0.ffn_gate_exps": "Q4_0", "blk.0.ffn_up_exps": "Q8_0"},
        "stack_experts": True,
        "num_experts": 8,
    },
    "qwen3 with theta": {"model_type": "qwen3", "types": {"": "F16"}, "rope_theta": 1e6, "rms_norm_eps": 1e-5},
}
pytestmark = pytest.mark.filterwarnings("ignore:.*takes more memory than the file")


def logits_of(path: Path, tokens: list[int], ops: str = "fused") -> mx.array:
    model = ours(path, ops)
    return model(mx.array(tokens), RecomputeCache(model.config, model.ops))


def read(folder: Path, stored: Stored) -> dict[str, mx.array]:
    """The arrays of a tensor that lies behind some other bytes in a file."""
    (folder / "blocks").write_bytes(bytes(64) + stored.data + bytes(64))
    assert isinstance(stored.kind, str)
    return read_blocks(folder / "blocks", 64, len(stored.data), BLOCKS[TYPES[stored.kind]])


@pytest.mark.parametrize("kind", TYPES)
def test_the_numbers_of_a_type_are_those_of_its_description(tmp_path: Path, kind: str) -> None:
    """For packed types values, scales and biases give them; nothing but the scales of the K types is rounded."""
    stored = pack(kind, np.random.default_rng(0).standard_normal((6, 512)))
    if kind.startswith("Q"):
        stored = Stored(kind, (6, 512), random_blocks(kind, 6 * 512, 1.0))
    own = BLOCKS[TYPES[kind]]
    found = read(tmp_path, stored)
    weight = found["weight"].reshape(6, -1)
    if own.bits:
        scales, biases = (found[name].reshape(6, -1).astype(mx.float32) for name in ("scales", "biases"))
        assert (weight.dtype, weight.shape) == (mx.uint32, (6, 512 * own.bits // 32))
        weight = mx.dequantize(weight, scales, biases, group_size=32, bits=own.bits)
    np.testing.assert_allclose(np.array(weight.astype(mx.float32)), unpack(stored), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_0", "Q4_1", "Q8_0"])
def test_packed_arrays_are_those_of_mlx(tmp_path: Path, kind: str) -> None:
    """Bit by bit, in the types that MLX's own reader keeps."""
    numbers = np.random.default_rng(1).standard_normal((7, 96))
    file = write_gguf(tmp_path / "x.gguf", {"general.architecture": "llama"}, {"a.weight": pack(kind, numbers)})
    theirs = mx.load(str(file))
    found = {f"a.{name}": array for name, array in read(tmp_path, pack(kind, numbers)).items()}
    assert found.keys() == theirs.keys()
    for name, array in found.items():
        assert array.dtype == theirs[name].dtype
        assert mx.array_equal(array.reshape(7, -1), theirs[name]).item()


@pytest.mark.parametrize("kind", ["F16", "Q4_1", "Q6_K"])
def test_large_tensors_are_read_in_strips(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = pack(kind, np.random.default_rng(2).standard_normal((50, 256)))
    whole = read(tmp_path, stored)
    monkeypatch.setattr("tiny_llm.model.gguf_blocks.STRIP", 1000)
    parts = read(tmp_path, stored)
    assert all(mx.array_equal(parts[name], whole[name]).item() for name in whole)


@pytest.fixture(scope="module", params=VARIANTS)
def twin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Twin:
    return make_twins(tmp_path_factory.mktemp("twin"), **VARIANTS[request.param])


def test_logits_are_those_of_mlx_lm_on_the_same_numbers(twin: Twin) -> None:
    want = peer_logits(twin.directory, prompt(40))
    close(logits_of(twin.file, prompt(40)), want)
    close(logits_of(twin.file, prompt(40), "plain"), want)


def test_a_file_gives_the_answers_of_its_directory(twin: Twin) -> None:
    """Greedy, one by one and side by side, with end tokens, template and special tokens of the file."""
    ours, theirs = load(twin.file), load(twin.directory)
    chat = [{"role": "user", "content": "the fox"}]
    assert ours.encode(chat) == theirs.encode(chat)
    prompts = [chat, "the quick brown", "hello there"]
    alone = [ours.generate(each, temperature=0, max_tokens=12).tokens for each in prompts]
    assert alone == [theirs.generate(each, temperature=0, max_tokens=12).tokens for each in prompts]
    assert [each.tokens for each in ours.generate(prompts, temperature=0, max_tokens=12)] == alone
    assert ours.tokenizer.eos_token_ids == theirs.tokenizer.eos_token_ids


def test_the_settings_are_those_of_the_directory(twin: Twin) -> None:
    found, expected = load_config(twin.file), load_config(twin.directory)
    assert {**vars(found), "quantization": None} == vars(expected)


def test_packed_weights_stay_packed(tmp_path: Path) -> None:
    types = {"": "Q4_1", "token_embd": "Q8_0", "blk.0.attn_v": "F16", "output": "Q5_0"}
    weights = load_weights((file := make_twins(tmp_path, "llama", types).file), load_config(file))
    assert weights["embed_tokens"]["weight"].shape == (320, 64 * 8 // 32)
    assert weights["lm_head"]["weight"].shape == (320, 64 * 8 // 32)
    first, second = (layer["qkv_proj"] for layer in weights["layers"])
    assert ["scales" in part for part in first["parts"]] == [True, True, False]
    assert second["weight"].dtype == mx.uint32
    assert {array.dtype for _, array in tree_flatten(weights)} == {mx.uint32, mx.float16}


@pytest.mark.parametrize(("kind", "dtype"), [("F32", mx.float32), ("BF16", mx.bfloat16), ("F16", mx.float16)])
def test_without_a_wish_a_model_computes_in_the_type_of_most_of_its_numbers(
    tmp_path: Path, kind: str, dtype: mx.Dtype
) -> None:
    """Norms are float32 in all files; a model that took this type on would be slow and its cache twice as large."""
    file = make_twins(tmp_path, "qwen3", {"": kind}).file
    model = ours(file, "fused", None)
    cache = ContiguousCache(model.config, model.ops)
    assert model(mx.array(prompt(5)), cache).dtype == dtype
    assert {array.dtype for array in cache.state} == {dtype}


SIZES = {"context_length": 4096, "embedding_length": 96}


def changed(tmp_path: Path, model_type: str = "qwen3", **metadata: Any) -> Path:
    keys = {name.replace("__", "."): value for name, value in metadata.items()}
    return make_twins(tmp_path, model_type, {"": "F16"}, metadata=keys).file


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    ("keys", "rope"),
    [
        ({}, {}),
        ({"type": "none"}, {}),
        ({"type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {"type": "yarn", "factor": 8.0, "original_context_length": 64, "finetuned": True},
            {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
        ),
        (
            {
                "type": "yarn",
                "factor": 8.0,
                "original_context_length": 64,
                "yarn_beta_fast": 16.0,
                "yarn_beta_slow": 2.0,
            },
            {
                "rope_type": "yarn",
                "factor": 8.0,
                "original_max_position_embeddings": 64,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
            },
        ),
    ],
    ids=str,
)
def test_scaled_positions(tmp_path: Path, kind: str, keys: dict[str, Any], rope: dict[str, Any]) -> None:
    metadata = {f"{kind}.rope.scaling.{name}": value for name, value in keys.items()}
    file = make_twins(tmp_path / "a", kind, {"": "F16"}, metadata=metadata).file
    table = {"rope_scaling": rope} if rope else {}
    assert load_config(file).rope == load_config(make_model(tmp_path / "b", kind, **table)).rope


def factors_of(settings: dict[str, Any], theta: float, head_dim: int) -> list[float]:
    """rope_freqs.weight as llama.cpp's converter computes it."""
    found = []
    low = settings["original_max_position_embeddings"] / settings["low_freq_factor"]
    high = settings["original_max_position_embeddings"] / settings["high_freq_factor"]
    for i in range(0, head_dim, 2):
        wavelength = 2 * np.pi * theta ** (i / head_dim)
        if wavelength < high:
            found.append(1.0)
        elif wavelength > low:
            found.append(settings["factor"])
        else:
            smooth = (settings["original_max_position_embeddings"] / wavelength - settings["low_freq_factor"]) / (
                settings["high_freq_factor"] - settings["low_freq_factor"]
            )
            found.append(1 / ((1 - smooth) / settings["factor"] + smooth))
    return found


@pytest.mark.parametrize(("theta", "factor"), [(5e5, 32.0), (5e5, 8.0), (1e4, 8.0)])
def test_the_factors_of_llama_3_become_its_settings(tmp_path: Path, theta: float, factor: float) -> None:
    settings = {**LLAMA3, "factor": factor, "original_max_position_embeddings": 8192}
    factors = np.array(factors_of(settings, theta, 64), np.float32)
    config = {"head_dim": 64, "rope_theta": theta, "max_position_embeddings": 131_072}
    file = make_twins(tmp_path, "llama", {"": "F16"}, extra={"rope_freqs.weight": pack("F32", factors)}, **config).file
    rope = load_config(file).rope
    assert (rope.kind, rope.original_max_position_embeddings) == ("llama3", 8192)
    expected = theta ** (-np.arange(0, 64, 2) / 64) / factors
    np.testing.assert_allclose(np.array(Rope(rope, 64).inverse), expected, rtol=1e-5)


def test_factors_of_another_kind_are_refused(tmp_path: Path) -> None:
    factors = np.linspace(1, 7, 16, dtype=np.float32)
    extra = {"rope_freqs.weight": pack("F32", factors)}
    file = make_twins(tmp_path / "a", "llama", {"": "F16"}, extra=extra, head_dim=32, max_position_embeddings=9000).file
    with pytest.raises(
        ValueError, match=r"rope_freqs.weight: expected Llama 3's factors for 8192 .* 7 times, found \[1"
    ):
        open_source(file)
    ones = {"rope_freqs.weight": pack("F32", np.ones(16))}
    assert (
        load_config(make_twins(tmp_path / "b", "llama", {"": "F16"}, extra=ones, head_dim=32).file).rope.kind
        == "default"
    )
    keys = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    with pytest.raises(ValueError, match=r"rope_freqs.weight: expected the only scaling of positions, found .*linear"):
        open_source(make_twins(tmp_path / "c", "llama", {"": "F16"}, extra=extra, metadata=keys, head_dim=32).file)


def keys_with(verdict: Any) -> list[Any]:
    return [
        pytest.param(key, rule, id=key) for rule in GGUF_RULES for key in rule.keys.split() if rule.verdict is verdict
    ]


@pytest.mark.parametrize(("key", "rule"), keys_with(REFUSED))
def test_a_refused_key_is_refused_by_name(tmp_path: Path, key: str, rule: Any) -> None:
    for i, value in enumerate(rule.neutral):
        keys = {f"llama.{key}": float(value) if type(value) is int else value}
        assert load_config(make_twins(tmp_path / str(i), "llama", {"": "F16"}, metadata=keys).file)
    with pytest.raises(ValueError, match=rf"model.gguf: llama.{key}: expected .* or nothing, found 7.0; .{{10}}"):
        open_source(make_twins(tmp_path / "x", "llama", {"": "F16"}, metadata={f"llama.{key}": 7.0}).file)


@pytest.mark.parametrize(("key", "rule"), keys_with(HARMLESS))
def test_a_harmless_key_changes_nothing(tmp_path: Path, key: str, rule: Any, recwarn: pytest.WarningsRecorder) -> None:
    file = make_twins(tmp_path, "llama", {"": "F16"}, metadata={f"llama.{key}": 3}).file
    assert {**vars(load_config(file))} == vars(load_config(tmp_path / "directory"))
    assert list(recwarn) == []


WRONG = [
    (
        {"general.architecture": "mistral3"},
        r'general.architecture: expected one of llama, qwen2, qwen3, qwen3moe, found "mistral3"',
    ),
    ({"general.architecture": 3}, r"general.architecture: expected one of llama, qwen2, qwen3, qwen3moe, found 3"),
    ({"general.architecture": None}, r"general.architecture: expected one of .*, found nothing"),
    (
        {"split.count": 3},
        r"split.count: expected a whole file, found one of 3 parts; join them: llama-gguf-split --merge",
    ),
    ({"qwen3.block_count": None}, r"qwen3.block_count: expected an integer from 1 to 10000, found nothing"),
    (
        {"qwen3.block_count": 3},
        r"model.layers.2.input_layernorm.weight: expected F32 or F16 or BF16 \[64\], found no such",
    ),
    ({"qwen3.block_count": 1}, r"blk.1.attn_norm.weight: expected no such tensor by config.json, found it and 10 more"),
    (
        {"qwen3.embedding_length": 96},
        r"token_embd.weight: expected F32 or F16 or BF16 \[320, 96\], found F16 \[320, 64\]",
    ),
    ({"qwen3.attention.head_count": [4, 4]}, r"head_count: expected an integer .*, found \[4, 4\]"),
    ({"qwen3.attention.head_count_kv": 3}, r"qwen3.attention.head_count_kv: expected a divisor of 4, found 3"),
    (
        {"qwen3.attention.head_count": 3, "qwen3.attention.head_count_kv": 3, "qwen3.attention.key_length": None},
        r"divisor",
    ),
    (
        {"qwen3.attention.value_length": 16},
        r"qwen3.attention.value_length: expected the width of a head \(32\), found 16",
    ),
    ({"qwen3.rope.dimension_count": 16}, r"qwen3.rope.dimension_count: expected the width of a head \(32\), found 16"),
    ({"qwen3.vocab_size": 319}, r"qwen3.vocab_size: expected 320, as in token_embd.weight, found 319"),
    (
        {"qwen3.rope.scaling.type": "longrope"},
        r'rope.scaling.type: expected one of none, linear, yarn, found "longrope"',
    ),
    ({"qwen3.rope.scaling.type": "linear"}, r"rope.scaling.factor: expected a finite number above 0, found nothing"),
    (
        {"qwen3.attention.layer_norm_rms_epsilon": None},
        r"layer_norm_rms_epsilon: expected a finite number above 0, found n",
    ),
]


@pytest.mark.parametrize(("metadata", "message"), WRONG, ids=str)
def test_a_wrong_setting_is_named(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    file = make_twins(tmp_path, "qwen3", {"": "F16"}, metadata=metadata).file
    with pytest.raises(ValueError, match=message) as error:
        load_weights(file, load_config(file))
    assert str(error.value).startswith(str(file))


def test_an_unknown_setting_is_named_once_and_goes_on(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"model.gguf: unknown keys have no effect: 'qwen3.new_thing' \(2\)"):
        load_config(make_twins(tmp_path, "qwen3", {"": "F16"}, metadata={"qwen3.new_thing": 2}).file)


def test_tensors_that_the_model_has_not_are_named(tmp_path: Path) -> None:
    for name in ("blk.0.ffn_gate_exps.weight", "cls.output.weight", "v.patch_embd.weight", "x", "blk.0.attn_q.scale"):
        extra = {name: pack("F32", np.ones((2, 4)))}
        with pytest.raises(
            ValueError, match=rf"model.gguf: {name}: expected no such tensor in a qwen3, found it; take"
        ):
            open_source(make_twins(tmp_path, "qwen3", {"": "F16"}, extra=extra).file)
    packed = {"blk.0.attn_q.bias": pack("Q8_0", np.ones(128))}
    with pytest.raises(ValueError, match=r"self_attn.q_proj.bias: expected floats, found Q8_0 of shape \[128\]"):
        open_source(make_twins(tmp_path, "qwen3", {"": "F16"}, extra=packed).file)


def test_another_architecture_is_named_before_its_tensors(tmp_path: Path) -> None:
    tensors = {"blk.0.attn_qkv.weight": pack("F16", np.ones((2, 4)))}
    file = write_gguf(tmp_path / "x.gguf", {"general.architecture": "phi3"}, tensors)
    with pytest.raises(
        ValueError, match=r'general.architecture: expected one of llama, qwen2, qwen3, qwen3moe, found "phi3"'
    ):
        open_source(file)


def test_tables_of_old_files_are_left_out(tmp_path: Path) -> None:
    extra = {"blk.0.attn_rot_embd.weight": pack("F32", np.ones(16))}
    file = make_twins(tmp_path, "llama", {"": "F16"}, extra=extra).file
    close(logits_of(file, prompt(9)), peer_logits(tmp_path / "directory", prompt(9)))


@pytest.mark.parametrize("number", [10, 11, 16, 20, 24, 28, 39, 99])
def test_a_type_that_is_not_read_is_named(tmp_path: Path, number: int) -> None:
    extra = {"blk.0.extra.weight": Stored(number, (32, 256), bytes(4096))}
    with pytest.raises(
        ValueError, match=r"blk.0.extra.weight: expected one of F32, .*Q6_K, BF16, found (\w+|type 99); take"
    ):
        open_source(make_twins(tmp_path, "qwen3", {"": "F16"}, extra=extra).file)


def test_sampling_settings_are_the_defaults(tmp_path: Path) -> None:
    keys = {
        "general.sampling.temp": 0.6,
        "general.sampling.top_k": 20,
        "general.sampling.top_p": 0.95,
        "general.sampling.penalty_repeat": 1.05,
        "general.sampling.mirostat": 0,
    }
    llm = load(make_twins(tmp_path, "qwen3", {"": "F16"}, metadata=keys).file)
    assert llm.defaults == {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05}


@pytest.mark.parametrize("dtype", [None, mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("kinds", [{"": "Q4_1", "output": "F16"}, {"": "Q6_K", "output": "Q5_K"}], ids=["packed", "K"])
def test_the_estimate_is_what_loading_takes(tmp_path: Path, dtype: mx.Dtype | None, kinds: dict[str, str]) -> None:
    """Types that become larger here count as they will be."""
    file = make_twins(tmp_path, "llama", kinds, exact=False, **WIDE).file
    config = load_config(file)
    need = estimate_bytes(file, config, dtype, 100)
    assert need.weights == sum(array.nbytes for _, array in tree_flatten(load_weights(file, config, dtype)))
    assert need.kv_cache == 2 * 2 * 2 * 64 * 100 * (dtype.size if dtype else 2)
    with pytest.raises(ValueError, match=rf"^{file}: needs about"):
        check_memory(file, config, dtype, 100, available=need.weights)


@pytest.mark.filterwarnings("default:.*takes more memory than the file")
def test_types_that_take_more_memory_than_in_the_file_are_said(tmp_path: Path) -> None:
    kinds = {"": "Q4_0", "token_embd": "Q6_K", "output": "Q5_K"}
    shape = {**WIDE, "hidden_size": 1024, "vocab_size": 4096}
    file = make_twins(tmp_path / "a", "llama", kinds, exact=False, **shape).file
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        source = open_source(file)
        load_weights(source, load_config(source))
    sizes = "Q6_K as float16 8 MB instead of 3, Q5_K in 8 bits 5 MB instead of 3"
    assert [str(one.message) for one in said] == [f"{file}: takes more memory than the file: {sizes}"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_source(make_twins(tmp_path / "b", "llama", {"": "Q4_K", "output": "Q8_0"}, exact=False, **WIDE).file)


def test_loading_needs_hardly_more_memory_than_the_file(tmp_path: Path) -> None:
    """MLX's own reader holds all arrays at once beside the mapped file."""
    shape = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8, "vocab_size": 1024}
    file = make_twins(tmp_path, "llama", {"": "Q4_1"}, exact=False, **shape).file
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    weights = load_weights(file, load_config(file))
    taken = mx.get_peak_memory() - before
    assert sum(array.nbytes for _, array in tree_flatten(weights)) <= taken < 1.2 * file.stat().st_size


def test_a_file_that_may_not_be_written_is_read(tmp_path: Path) -> None:
    """MLX's own reader opens files for writing, so that one of another user or of the system cannot be read."""
    file = make_twins(tmp_path, "llama", {"": "Q8_0"}).file
    file.chmod(0o444)
    before = file.read_bytes()
    assert len(load(file).generate("the fox", temperature=0, max_tokens=3).tokens) <= 3
    assert file.read_bytes() == before


def test_a_file_written_by_mlx_is_read(tmp_path: Path) -> None:
    """`mx.save_gguf` writes dense tensors and a few kinds of metadata."""
    twin = make_twins(tmp_path, "qwen3", {"": "F16"})
    arrays, metadata = mx.load(str(twin.file), return_metadata=True)
    mx.save_gguf(str(tmp_path / "mlx.gguf"), arrays, metadata)
    close(logits_of(tmp_path / "mlx.gguf", prompt(20)), peer_logits(twin.directory, prompt(20)))
    theirs, own = load(tmp_path / "mlx.gguf"), load(twin.file)
    chat = [{"role": "user", "content": "the fox"}]
    assert (
        theirs.generate(chat, temperature=0, max_tokens=9).tokens
        == own.generate(chat, temperature=0, max_tokens=9).tokens
    )


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_other_alignments(tmp_path: Path, alignment: int) -> None:
    numbers = {f"blk.{i}.attn_norm.weight": pack("F32", np.arange(i + 1)) for i in range(4)}
    head = {"general.architecture": "llama"}
    file = write_gguf(tmp_path / "x.gguf", head, numbers, alignment=alignment)
    assert {name: array.tolist() for name, array in mx.load(str(file)).items()} == {
        f"blk.{i}.attn_norm.weight": list(range(i + 1)) for i in range(4)
    }


def test_a_dense_file_can_be_quantized_and_a_packed_one_is_refused(tmp_path: Path) -> None:
    dense = make_twins(tmp_path / "dense", "llama", {"": "F16"}, tie_word_embeddings=True)
    plan = uniform(matrices(dense.file), 4, 32)
    write_quantized(dense.file, tmp_path / "out", plan)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"] == {"group_size": 32, "bits": 4, "mode": "affine"}
    close(logits_of(tmp_path / "out", prompt(20)), peer_logits(tmp_path / "out", prompt(20)))
    with pytest.raises(ValueError, match=r"model.gguf: expected a dense model, found one quantized to 4 bits already"):
        matrices(make_twins(tmp_path / "packed", "llama", {"": "Q4_1"}).file)
