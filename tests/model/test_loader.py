"""Loading: every stored form gives the tensors of the files, every mistake in the files is named."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from tests.support import make_model, write_json, write_weights
from tiny_llm import _machine
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.config import ModelConfig
from tiny_llm.model import memory
from tiny_llm.model.fused import choose_ops
from tiny_llm.model.loader import (
    check_memory,
    estimate_bytes,
    load_config,
    load_generation_defaults,
    load_weights,
)
from tiny_llm.model.qwen3 import Qwen3

ATTENTION, MLP = "model.layers.1.self_attn", "model.layers.1.mlp"


def stored(directory: Path) -> dict[str, mx.array]:
    """All tensors as MLX itself reads them."""
    tensors: dict[str, mx.array] = {}
    for file in directory.glob("model*.safetensors"):
        tensors |= mx.load(str(file))
    return tensors


def load(directory: Path, dtype: mx.Dtype | None = None) -> dict[str, Any]:
    return load_weights(directory, load_config(directory), dtype)


def equal(a: mx.array, b: mx.array) -> bool:
    return a.dtype == b.dtype and mx.array_equal(a, b).item()


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dense_weights_are_those_of_the_files(tmp_path: Path, model_type: str, shards: int, dtype: str) -> None:
    make_model(tmp_path, model_type, shards=shards, dtype=dtype)
    weights, files = load(tmp_path), stored(tmp_path)
    layer = weights["layers"][1]
    for name in ("weight", "bias") if model_type == "qwen2" else ("weight",):
        assert equal(layer["qkv_proj"][name], mx.concatenate([files[f"{ATTENTION}.{p}_proj.{name}"] for p in "qkv"]))
    gate_up = mx.concatenate([files[f"{MLP}.gate_proj.weight"], files[f"{MLP}.up_proj.weight"]])
    assert equal(layer["gate_up_proj"]["weight"], gate_up)
    assert equal(layer["o_proj"]["weight"], files[f"{ATTENTION}.o_proj.weight"])
    assert equal(layer["down_proj"]["weight"], files[f"{MLP}.down_proj.weight"])
    for norm in ("input_layernorm", "post_attention_layernorm"):
        assert equal(layer[norm]["weight"], files[f"model.layers.1.{norm}.weight"])
    for norm in ("q_norm", "k_norm") if model_type == "qwen3" else ():
        assert equal(layer[norm]["weight"], files[f"{ATTENTION}.{norm}.weight"])
    assert equal(weights["embed_tokens"]["weight"], files["model.embed_tokens.weight"])
    assert equal(weights["norm"]["weight"], files["model.norm.weight"])
    assert equal(weights["lm_head"]["weight"], files["lm_head.weight"])


def test_qwen3_with_attention_bias_has_one_on_the_output_too(tmp_path: Path) -> None:
    layer = load(make_model(tmp_path, attention_bias=True))["layers"][1]
    assert equal(layer["o_proj"]["bias"], stored(tmp_path)[f"{ATTENTION}.o_proj.bias"])
    assert layer["qkv_proj"]["bias"].shape == (4 * 32 + 2 * 2 * 32,)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64])
def test_quantized_weights_are_those_of_the_files(tmp_path: Path, bits: int, group_size: int) -> None:
    make_model(tmp_path, quantize={"bits": bits, "group_size": group_size}, tie_word_embeddings=True)
    weights, files = load(tmp_path), stored(tmp_path)
    for name in ("weight", "scales", "biases"):
        assert equal(weights["embed_tokens"][name], files[f"model.embed_tokens.{name}"])
        assert equal(
            weights["layers"][1]["qkv_proj"][name],
            mx.concatenate([files[f"{ATTENTION}.{part}_proj.{name}"] for part in "qkv"]),
        )
        assert equal(weights["layers"][1]["down_proj"][name], files[f"{MLP}.down_proj.{name}"])
    assert "lm_head" not in weights


@pytest.mark.parametrize("own", [{"bits": 8, "group_size": 32}, {"bits": 4, "group_size": 64}, False], ids=str)
def test_parts_that_differ_stay_apart(tmp_path: Path, own: Any) -> None:
    """mlx-lm's mixed quantizations give some layers more bits."""
    make_model(tmp_path, quantize={"bits": 4, "group_size": 32, f"{ATTENTION}.v_proj": own})
    first, second = (layer["qkv_proj"] for layer in load(tmp_path)["layers"])
    assert set(first) == {"weight", "scales", "biases"}
    assert set(second) == {"parts"}
    for part, letter in zip(second["parts"], "qkv", strict=True):
        for name, array in part.items():
            assert equal(array, stored(tmp_path)[f"{ATTENTION}.{letter}_proj.{name}"])
    assert ("scales" in second["parts"][2]) == (own is not False)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_conversion_covers_all_but_packed_integers(tmp_path: Path, dtype: mx.Dtype) -> None:
    make_model(tmp_path, "qwen2", dtype="bfloat16", quantize={"bits": 4, "group_size": 32, "lm_head": False})
    weights, files = load(tmp_path, dtype), stored(tmp_path)
    assert {array.dtype for _, array in tree_flatten(weights)} == {dtype, mx.uint32}
    down = weights["layers"][1]["down_proj"]
    assert equal(down["weight"], files[f"{MLP}.down_proj.weight"])
    assert equal(down["scales"], files[f"{MLP}.down_proj.scales"].astype(dtype))
    assert equal(weights["lm_head"]["weight"], files["lm_head.weight"].astype(dtype))


def test_a_head_stored_in_a_tied_model_is_ignored(tmp_path: Path) -> None:
    make_model(tmp_path, tie_word_embeddings=True)
    head = {"lm_head.weight": mx.zeros((1, 1)), "lm_head.scales": mx.zeros((2,))}
    write_weights(tmp_path, {**stored(tmp_path), **head})
    assert "lm_head" not in load(tmp_path)


def test_rotary_tables_of_old_files_are_ignored(tmp_path: Path) -> None:
    make_model(tmp_path)
    write_weights(tmp_path, {**stored(tmp_path), f"{ATTENTION}.rotary_emb.inv_freq": mx.zeros((16,))})
    assert len(load(tmp_path)["layers"]) == 2


def test_an_index_decides_which_files_count(tmp_path: Path) -> None:
    """Some published models hold the whole and the shards."""
    make_model(tmp_path, shards=2)
    mx.save_safetensors(str(tmp_path / "model-extra.safetensors"), {"model.norm.weight": mx.zeros((3,))})
    assert load(tmp_path)["norm"]["weight"].shape == (64,)


def test_shards_without_an_index_are_read(tmp_path: Path) -> None:
    make_model(tmp_path, shards=3)
    expected = load(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert all(equal(a, b) for (_, a), (_, b) in zip(tree_flatten(expected), tree_flatten(load(tmp_path)), strict=True))


def test_nothing_is_left_to_read_later(tmp_path: Path) -> None:
    """MLX reads files lazily; such an array fails in any other thread, and when the file is gone."""
    weights = load(make_model(tmp_path, dtype="bfloat16"), mx.float32)
    shutil.rmtree(tmp_path)
    sums: list[float] = []
    thread = threading.Thread(target=lambda: sums.extend(a.sum().item() for _, a in tree_flatten(weights)))
    thread.start()
    thread.join()
    assert len(sums) == len(tree_flatten(weights))


@pytest.mark.parametrize("dtype", [None, mx.float32], ids=["as stored", "converted"])
def test_loading_takes_hardly_more_memory_than_the_model(tmp_path: Path, dtype: mx.Dtype | None) -> None:
    make_model(tmp_path, num_hidden_layers=16, dtype="bfloat16")
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    weights = load(tmp_path, dtype)
    size = sum(array.nbytes for _, array in tree_flatten(weights))
    layer = sum(array.nbytes for _, array in tree_flatten(weights["layers"][0]))
    assert mx.get_active_memory() - before <= size * 1.01
    assert mx.get_peak_memory() - before <= size + 1.5 * layer


Change = Callable[[dict[str, mx.array]], Any]
CASES: dict[str, tuple[dict[str, Any], Change, str]] = {
    "missing": (
        {},
        lambda t: t.pop("model.norm.weight"),
        r"model\*.safetensors: model.norm.weight: expected F32 or F16 or BF16 \[64\], found no such tensor",
    ),
    "missing head": ({}, lambda t: t.pop("lm_head.weight"), r"lm_head.weight: expected .* found no such tensor"),
    "missing bias": (
        {"model_type": "qwen2"},
        lambda t: t.pop(f"{ATTENTION}.k_proj.bias"),
        r"1.self_attn.k_proj.bias: expected .*\[32\], found no such tensor",
    ),
    "unexpected": (
        {},
        lambda t: t.update({"model.layers.2.x": mx.zeros(3), "visual.y": mx.zeros(3)}),
        r"model.safetensors: model.layers.2.x: expected no such tensor by config.json, found it and 1 more",
    ),
    "shape": (
        {},
        lambda t: t.update({f"{MLP}.up_proj.weight": mx.zeros((64, 128))}),
        r"model.safetensors: model.layers.1.mlp.up_proj.weight: expected .*\[128, 64\], found F32 \[64, 128\]",
    ),
    "one axis too many": (
        {},
        lambda t: t.update({"model.norm.weight": mx.zeros((64, 1))}),
        r"model.norm.weight: expected .*\[64\], found F32 \[64, 1\]",
    ),
    "dtype": (
        {},
        lambda t: t.update({"model.norm.weight": mx.zeros(64, mx.int32)}),
        r"model.norm.weight: expected F32 or F16 or BF16 \[64\], found I32 \[64\]",
    ),
    "packed as floats": (
        {"quantize": {"bits": 4, "group_size": 32}},
        lambda t: t.update({f"{MLP}.up_proj.weight": mx.zeros((128, 8))}),
        r"up_proj.weight: expected U32 \[128, 8\], found F32 \[128, 8\]",
    ),
    "packed without scales": (
        {"quantize": {"bits": 4, "group_size": 32}},
        lambda t: t.pop(f"{MLP}.up_proj.scales"),
        r"up_proj.weight: expected F32 or F16 or BF16 \[128, 64\], found U32 \[128, 8\]",
    ),
    "scales without biases": (
        {"quantize": {"bits": 4, "group_size": 32}},
        lambda t: t.pop(f"{MLP}.up_proj.biases"),
        r"up_proj.biases: expected .*\[128, 2\], found no such tensor",
    ),
    "scales without a config": (
        {},
        lambda t: t.update({f"{MLP}.up_proj.scales": mx.zeros((128, 2))}),
        r"model.safetensors: model.layers.1.mlp.up_proj.scales: expected a dense layer by config.json, found scales",
    ),
}


@pytest.mark.parametrize(("options", "change", "message"), CASES.values(), ids=CASES)
def test_a_wrong_tensor_is_named(tmp_path: Path, options: dict[str, Any], change: Change, message: str) -> None:
    tensors = stored(make_model(tmp_path, **options))
    change(tensors)
    write_weights(tmp_path, tensors)
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path)
    assert str(error.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"bits": 8, "group_size": 32}, r"embed_tokens.weight: expected U32 \[320, 16\], found U32 \[320, 8\]"),
        ({"bits": 4, "group_size": 64}, r"embed_tokens.scales: expected .*\[320, 1\], found F32 \[320, 2\]"),
        ({"bits": 4, "group_size": 128}, r"embed_tokens.scales: expected a group_size that divides 64, found 128"),
        ({"bits": 4, "group_size": 32, "model.embed_tokens": False}, r"embed_tokens.scales: expected a dense layer"),
    ],
)
def test_a_quantization_that_is_not_the_files_is_named(
    tmp_path: Path, quantization: dict[str, Any], message: str
) -> None:
    make_model(tmp_path, quantize={"bits": 4, "group_size": 32})
    config = json.loads((tmp_path / "config.json").read_text())
    write_json(tmp_path / "config.json", {**config, "quantization": quantization})
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("../model.safetensors", r"found '../model.safetensors'"),
        ("/etc/passwd", r"expected a model\*.safetensors beside it, found '/etc/passwd'"),
        ("sub/model.safetensors", r"beside it, found 'sub/model.safetensors'"),
        ("..\\model.safetensors", r"beside it"),
        ("model-00009-of-00009.safetensors", r"expected the file model-00009-of-00009.safetensors, found none"),
        ("model-00001-of-00002.safetensors", r"expected in model-00001-of-00002.safetensors, found in model-00002"),
        ("model.safetensors.index.json", r"beside it"),
        ("", r"beside it, found ''"),
        (None, r"beside it, found None"),
        (7, r"beside it, found 7"),
    ],
)
def test_an_index_stays_in_its_directory(tmp_path: Path, entry: Any, message: str) -> None:
    directory = make_model(tmp_path / "model", shards=2)
    (tmp_path / "model.safetensors").write_bytes(b"secret")
    index = directory / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"]["model.norm.weight"] = entry
    write_json(index, table)
    with pytest.raises(ValueError, match=rf"index.json.*: model.norm.weight: .*{message}"):
        load(directory)


@pytest.mark.parametrize("table", [{}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": "x"}])
def test_an_index_without_a_map_is_named(tmp_path: Path, table: Any) -> None:
    make_model(tmp_path, shards=2)
    write_json(tmp_path / "model.safetensors.index.json", table)
    with pytest.raises(ValueError, match=r"model.safetensors.index.json: weight_map: expected an object, found"):
        load(tmp_path)


def test_an_index_with_a_tensor_that_is_nowhere(tmp_path: Path) -> None:
    index = make_model(tmp_path, shards=2) / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"]["model.x"] = "model-00001-of-00002.safetensors"
    write_json(index, table)
    with pytest.raises(ValueError, match=r"model.x: expected in model-00001-of-00002.safetensors, found nowhere"):
        load(tmp_path)


def test_a_tensor_in_two_files_is_named(tmp_path: Path) -> None:
    make_model(tmp_path)
    mx.save_safetensors(str(tmp_path / "model-2.safetensors"), {"lm_head.weight": mx.zeros((3,))})
    with pytest.raises(ValueError, match=r"model.safetensors: lm_head.weight: expected in one file only, found in"):
        load(tmp_path)


def test_a_directory_without_weights_is_named(tmp_path: Path) -> None:
    make_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=rf"{tmp_path}: expected model\*.safetensors, found no such file"):
        load(tmp_path)


def test_a_link_to_the_weights_is_followed(tmp_path: Path) -> None:
    """The Hub's cache is made of links to files of another directory."""
    directory = make_model(tmp_path / "model")
    (directory / "model.safetensors").rename(tmp_path / "blob")
    (directory / "model.safetensors").symlink_to(tmp_path / "blob")
    assert len(load(directory)["layers"]) == 2


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ({"temperature": 0.6, "top_k": 20, "top_p": 0.95}, {"temperature": 0.6, "top_k": 20, "top_p": 0.95}),
        ({"do_sample": True, "temperature": 0.7, "min_p": 0.1}, {"temperature": 0.7, "min_p": 0.1}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}),
        ({"repetition_penalty": 1.05, "max_new_tokens": 9}, {"repetition_penalty": 1.05, "max_tokens": 9}),
        ({"stop_strings": "END", "eos_token_id": 1}, {"stop": ("END",)}),
        ({"temperature": None}, {}),
        (None, {}),
    ],
)
def test_generation_defaults(tmp_path: Path, file: Any, expected: dict[str, Any]) -> None:
    if file is not None:
        write_json(tmp_path / "generation_config.json", file)
    assert load_generation_defaults(tmp_path) == expected


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"temperature": -1}, r"temperature: expected a number from 0 to 100, found -1"),
        ({"top_p": "0.9"}, r"top_p: expected a number from 0 to 1, found '0.9'"),
        ({"top_k": 1.5}, r"top_k: expected an integer"),
        ({"min_p": float("nan")}, r"min_p: expected a number from 0 to 1, found nan"),
        ({"do_sample": "no"}, r'do_sample: expected true or false, found "no"'),
    ],
)
def test_a_bad_generation_default_is_named(tmp_path: Path, file: dict[str, Any], message: str) -> None:
    write_json(tmp_path / "generation_config.json", file)
    with pytest.raises(ValueError, match=rf"{tmp_path}/generation_config.json: {message}"):
        load_generation_defaults(tmp_path)


@pytest.mark.parametrize("dtype", [None, mx.float32, mx.float16], ids=str)
@pytest.mark.parametrize("quantize", [None, {"bits": 4, "group_size": 32}], ids=["dense", "quantized"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
def test_the_estimate_is_what_loading_and_the_cache_take(
    tmp_path: Path, dtype: mx.Dtype | None, quantize: Any, tied: bool, kind: str
) -> None:
    make_model(tmp_path, kind, dtype="bfloat16", quantize=quantize, tie_word_embeddings=tied)
    if tied:
        write_weights(tmp_path, {**stored(tmp_path), "lm_head.weight": mx.zeros((320, 64))})
    need = estimate_bytes(tmp_path, load_config(tmp_path), dtype, 100)
    assert need.weights == sum(array.nbytes for _, array in tree_flatten(load(tmp_path, dtype)))
    # K and V, layers, heads, width, tokens, bytes
    assert need.kv_cache == 2 * 2 * 2 * 32 * 100 * (dtype.size if dtype else 2)
    assert need.total == need.weights + need.kv_cache + need.working


SLIM = {"hidden_size": 128, "intermediate_size": 384}
PACKED = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 6}
EXPERTS = {"hidden_size": 256, "moe_intermediate_size": 192, "num_experts": 16, "num_experts_per_tok": 4}
MANY = {"hidden_size": 128, "moe_intermediate_size": 128, "num_experts": 16, "num_experts_per_tok": 8}
FOUR_BITS = {"bits": 4, "group_size": 32}


@pytest.mark.parametrize(
    ("context", "kind", "shape", "quantize"),
    [
        (300, "qwen3", SLIM, None),
        (2048, "qwen3", SLIM, None),
        (3000, "qwen3", SLIM, None),
        (128, "qwen3", PACKED, FOUR_BITS),
        (300, "qwen3_moe", EXPERTS, None),
        (2048, "qwen2_moe", EXPERTS, None),
        (400, "qwen3_moe", MANY, FOUR_BITS),
        (400, "qwen3_moe", {**MANY, "decoder_sparse_step": 2, "intermediate_size": 2048}, FOUR_BITS),
    ],
)
def test_the_estimate_is_enough_for_a_prompt_and_not_far_too_much(
    tmp_path: Path, context: int, kind: str, shape: dict[str, int], quantize: Any
) -> None:
    """On a CPU a layer's packed weights are unpacked for a prompt; never all layers' at once.

    Of experts it knew nothing, and took a third of what they need for the rows of a prompt.
    """
    make_model(tmp_path, kind, quantize=quantize, max_position_embeddings=4096, **shape)
    config, weights = load_config(tmp_path), load(tmp_path)
    model = Qwen3(config, weights, choose_ops("fused"))
    cache = ContiguousCache(config, model.ops)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    for begin in range(0, context, 2048):
        last = min(2048, context - begin)
        mx.eval(model(mx.zeros(last, mx.int32), cache, rows=slice(last - 1, last)), cache.state)
    need = estimate_bytes(tmp_path, config, None, context)
    taken = mx.get_peak_memory() - before
    assert taken < need.kv_cache + need.working
    assert mx.default_device() == mx.gpu or need.kv_cache + need.working < 3 * taken


@pytest.mark.parametrize("quantize", [None, FOUR_BITS], ids=["dense", "quantized"])
@pytest.mark.parametrize("stacked", [False, True])
def test_the_estimate_is_enough_while_experts_are_joined(tmp_path: Path, stacked: bool, quantize: Any) -> None:
    """A layer's experts exist twice while they are stacked: far more than the largest tensor."""
    shape = {"num_experts": 32, "hidden_size": 256, "moe_intermediate_size": 256}
    make_model(tmp_path, "qwen3_moe", quantize=quantize, stack_experts=stacked, dtype="bfloat16", **shape)
    config = load_config(tmp_path)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    load(tmp_path)
    need = estimate_bytes(tmp_path, config, None, 1)
    assert mx.get_peak_memory() - before < need.weights + need.working


@pytest.mark.parametrize("native", [False, True])
def test_experts_in_files_count_as_far_as_they_are_kept(tmp_path: Path, native: bool) -> None:
    """All experts counted, so that a model was refused that its option would have made small enough."""
    make_model(tmp_path, "qwen2_moe", num_experts=16, dtype="bfloat16")
    config = load_config(tmp_path)
    whole = estimate_bytes(tmp_path, config, mx.float32, 64, native=native)
    number = 2 if native else 4  # bytes
    experts = 2 * 16 * 3 * 64 * 64 * number  # layers, experts, matrices of 64 by 64
    for expert_bytes in (0, 50_000):
        need = estimate_bytes(tmp_path, config, mx.float32, 64, native=native, expert_bytes=expert_bytes)
        assert need.weights == whole.weights - experts + expert_bytes
    assert estimate_bytes(tmp_path, config, mx.float32, 64, native=native, expert_bytes=10**9).weights == whole.weights


def test_experts_in_files_take_no_room_while_loading(tmp_path: Path) -> None:
    shape = {"num_experts": 32, "hidden_size": 256, "moe_intermediate_size": 256, "vocab_size": 320}
    make_model(tmp_path, "qwen3_moe", stack_experts=True, dtype="bfloat16", **shape)
    config = load_config(tmp_path)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    weights = load_weights(tmp_path, config, experts=False)
    need = estimate_bytes(tmp_path, config, None, 1, expert_bytes=0)
    assert mx.get_peak_memory() - before < need.weights + need.working
    assert need.total < estimate_bytes(tmp_path, config, None, 1).total / 4
    assert not any("experts" in layer for layer in weights["layers"])


def test_too_little_memory_for_experts_gives_advice_that_works(tmp_path: Path) -> None:
    make_model(tmp_path, "qwen3_moe", num_experts=64, dtype="bfloat16")
    config = load_config(tmp_path)
    available = estimate_bytes(tmp_path, config, None, 64).total - 10**6
    with pytest.raises(ValueError, match=r"leave experts in the files with --expert-bytes \d+ or less, or") as error:
        check_memory(tmp_path, config, None, 64, available)
    advised = int(str(error.value).split("--expert-bytes ")[1].split()[0])
    assert check_memory(tmp_path, config, None, 64, available, expert_bytes=advised).total <= available


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, ModelConfig]:
    return make_model(tmp_path, num_key_value_heads=4, num_hidden_layers=8), load_config(tmp_path)


def test_too_little_memory_gives_advice_that_works(small: tuple[Path, ModelConfig]) -> None:
    need = check_memory(*small, None, 512)
    assert check_memory(*small, None, 512, need.total) == need
    with pytest.raises(ValueError, match=r"needs about .* GB .* for 512 tokens .* set --max-context \d+") as error:
        check_memory(*small, None, 512, need.total - 1)
    advised = int(str(error.value).split("--max-context ")[1].split()[0])
    assert advised == 511
    assert check_memory(*small, None, advised, need.total - 1).total < need.total
    with pytest.raises(ValueError, match=r"free: take a smaller model or a smaller quantization"):
        check_memory(*small, None, 512, need.weights)


def test_free_memory_is_the_systems(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       9000 kB\nMemFree:        1 kB\nMemAvailable:   4000 kB\n")
    monkeypatch.setattr(_machine, "MEMINFO", meminfo)
    monkeypatch.setattr(mx, "device_info", dict)
    monkeypatch.setattr(_machine, "memory_left", lambda: None)
    assert memory.available_bytes() == 4000 * 1024
    monkeypatch.setattr(_machine, "MEMINFO", tmp_path / "none")
    assert memory.available_bytes() is None
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 5 * 2**30, "memory_size": 1})
    monkeypatch.setattr(mx, "get_active_memory", lambda: 2**30)
    assert memory.available_bytes() == 4 * 2**30
    monkeypatch.setattr(mx, "device_info", lambda: {"free_memory": 77, "total_memory": 99})
    assert memory.available_bytes() == 77


def test_an_unknown_amount_of_memory_stops_nobody(
    small: tuple[Path, ModelConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    assert check_memory(*small, None, 10**9).kv_cache > 10**9
