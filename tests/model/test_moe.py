"""Qwen2-MoE and Qwen3-MoE against mlx-lm and a forward pass in float64; faults of their files named."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.gguf_files import make_twins
from tests.model.parity import close, ours, peer_logits, prompt
from tests.support import make_model, quantize_weights, stacked_experts, write_json, write_weights
from tests.week1.oracles import angles, f64, rms_norm, silu, softmax, turn
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.config import EngineConfig, SamplingParams
from tiny_llm.engine.llm import LLM, load
from tiny_llm.model.expert_files import mlp_bytes
from tiny_llm.model.expert_store import ExpertStore, store_counts
from tiny_llm.model.loader import load_config, load_weights

FORMS: dict[str, dict[str, Any]] = {
    "4 experts, 2 chosen": {},
    "8 experts, 1 chosen": {"num_experts": 8, "num_experts_per_tok": 1},
    "60 experts, 4 chosen": {"num_experts": 60, "num_experts_per_tok": 4},
    "8 experts, all chosen": {"num_experts": 8, "num_experts_per_tok": 8},
    "every second layer": {"decoder_sparse_step": 2, "num_hidden_layers": 4},
    "one dense layer": {"mlp_only_layers": [1], "num_hidden_layers": 3},
    "stacked": {"stack_experts": True},
    "4 bits": {"stack_experts": True, "quantize": {"bits": 4, "group_size": 32}},
    "router of 8 bits": {
        "stack_experts": True,
        "quantize": {"bits": 4, "group_size": 32, "model.layers.0.mlp.gate": {"bits": 8, "group_size": 64}},
    },
}


def logits(path: Path, tokens: list[int], ops: str) -> mx.array:
    model = ours(path, ops)
    return model(mx.array(tokens), ContiguousCache(model.config, model.ops))


# mlx-lm's qwen2_moe knows neither layers without experts nor norm_topk_prob
PEERS = [("qwen3_moe", form) for form in FORMS]
PEERS += [("qwen2_moe", form) for form in FORMS if "num_hidden_layers" not in FORMS[form]]


@pytest.mark.parametrize("ops", ["plain", "fused"])
@pytest.mark.parametrize(("model_type", "form"), PEERS)
def test_logits_are_mlx_lm_s(tmp_path: Path, model_type: str, form: str, ops: str) -> None:
    settings = {**FORMS[form], "norm_topk_prob": model_type == "qwen3_moe"}
    path = make_model(tmp_path, model_type, **settings)
    for length in (1, 3, 40):
        tokens = prompt(length)
        close(logits(path, tokens, ops), peer_logits(path, tokens))


def by_numpy(path: Path, tokens: list[int]) -> np.ndarray:
    """The logits of a Qwen2-MoE in float64, token by token and expert by expert, from the files alone."""
    config = json.loads((path / "config.json").read_text())
    weights = {name: f64(array) for name, array in mx.load(str(path / "model.safetensors")).items()}
    heads, kv_heads, eps = (config[n] for n in ("num_attention_heads", "num_key_value_heads", "rms_norm_eps"))
    dim = config["hidden_size"] // heads
    rotation = angles(np.arange(len(tokens)), dim, config["rope_theta"])

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)

    def mlp(name: str, x: np.ndarray) -> np.ndarray:
        inner = silu(linear(f"{name}.gate_proj", x)) * linear(f"{name}.up_proj", x)
        return linear(f"{name}.down_proj", inner)

    def mixture(name: str, x: np.ndarray) -> np.ndarray:
        shares = softmax(linear(f"{name}.gate", x))
        chosen = np.argsort(-shares)[: config["num_experts_per_tok"]]
        total = shares[chosen].sum() if config["norm_topk_prob"] else 1.0
        routed = sum(shares[expert] / total * mlp(f"{name}.experts.{expert}", x) for expert in chosen)
        gate = 1 / (1 + np.exp(-linear(f"{name}.shared_expert_gate", x)))
        return routed + gate * mlp(f"{name}.shared_expert", x)

    x = weights["model.embed_tokens.weight"][tokens]
    for layer in (f"model.layers.{i}" for i in range(config["num_hidden_layers"])):
        normed = rms_norm(x, weights[f"{layer}.input_layernorm.weight"], eps)
        q, k, v = (linear(f"{layer}.self_attn.{n}_proj", normed) for n in "qkv")
        q = turn(q.reshape(len(tokens), heads, dim), rotation)
        k = turn(k.reshape(len(tokens), kv_heads, dim), rotation)
        v = v.reshape(len(tokens), kv_heads, dim)
        attended = np.zeros_like(q)
        for head in range(heads):
            group = head * kv_heads // heads
            scores = q[:, head] @ k[:, group].T / np.sqrt(dim)
            scores[np.triu_indices(len(tokens), 1)] = -np.inf
            attended[:, head] = softmax(scores) @ v[:, group]
        x = x + linear(f"{layer}.self_attn.o_proj", attended.reshape(len(tokens), -1))
        normed = rms_norm(x, weights[f"{layer}.post_attention_layernorm.weight"], eps)
        x = x + np.stack([mixture(f"{layer}.mlp", row) for row in normed])
    return linear("lm_head", rms_norm(x, weights["model.norm.weight"], eps))


@pytest.mark.parametrize("ops", ["plain", "fused"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("experts", "chosen"), [(4, 1), (8, 2), (60, 8)])
def test_a_shared_expert_beside_normalized_shares(
    tmp_path: Path, experts: int, chosen: int, normalize: bool, ops: str
) -> None:
    """mlx-lm's qwen2_moe ignores norm_topk_prob, so it can't be the oracle."""
    sizes = {"num_experts": experts, "num_experts_per_tok": chosen}
    path = make_model(tmp_path, "qwen2_moe", norm_topk_prob=normalize, **sizes)
    tokens = prompt(40)
    close(logits(path, tokens, ops), by_numpy(path, tokens))


def test_a_shared_expert_under_the_engine_s_layout(tmp_path: Path) -> None:
    """The layout by columns took the shared expert for one matrix, and loading ended with a KeyError."""
    path = make_model(tmp_path, "qwen2_moe")
    model = ours(path)
    model.ops.lay_out(model.weights, model.config)
    got = model(mx.array(prompt(9)), ContiguousCache(model.config, model.ops))
    close(got, by_numpy(path, prompt(9)))


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"num_experts_per_tok": 5}, r"num_experts_per_tok: expected at most num_experts \(4\), found 5"),
    ({"num_experts_per_tok": 0}, r"num_experts_per_tok: expected an integer .*1.*, found 0"),
    ({"num_experts": -1}, r"num_experts: expected an integer .*0.*, found -1"),
    ({"num_experts": 2.5}, r"num_experts: expected an integer .*, found 2\.5"),
    ({"num_local_experts": 8}, r"num_local_experts: expected num_experts \(4\), found 8; remove one of them"),
    ({"mlp_only_layers": [2]}, r"mlp_only_layers: expected a list of layers from 0 to 1, found \[2\]"),
    ({"mlp_only_layers": [-1]}, r"mlp_only_layers: expected a list of layers from 0 to 1, found \[-1\]"),
    ({"mlp_only_layers": 1}, r"mlp_only_layers: expected a list of layers from 0 to 1, found 1"),
    ({"decoder_sparse_step": 0}, r"decoder_sparse_step: expected an integer .*1.*, found 0"),
    ({"moe_intermediate_size": 0}, r"moe_intermediate_size: expected an integer .*1.*, found 0"),
    ({"norm_topk_prob": "yes"}, r'norm_topk_prob: expected true or false, found "yes"'),
]


@pytest.mark.parametrize(("settings", "message"), SETTINGS)
def test_bad_settings_are_named(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    make_model(tmp_path, "qwen3_moe")
    config = json.loads((tmp_path / "config.json").read_text())
    write_json(tmp_path / "config.json", {**config, **settings})
    with pytest.raises(ValueError, match=f"^{tmp_path}/config.json: {message}$"):
        load_config(tmp_path)


REQUIRED = [
    (kind, key)
    for kind in ("qwen3_moe", "qwen2_moe")
    for key in ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
]


@pytest.mark.parametrize(("kind", "key"), [*REQUIRED, ("qwen2_moe", "shared_expert_intermediate_size")])
def test_a_missing_setting_is_named(tmp_path: Path, kind: str, key: str) -> None:
    """A default of transformers in its place made the weights look wrong."""
    make_model(tmp_path, kind)
    config = json.loads((tmp_path / "config.json").read_text())
    del config[key]
    write_json(tmp_path / "config.json", config)
    with pytest.raises(ValueError, match=f"config.json: {key}: expected an integer .*found nothing"):
        load_config(tmp_path)


def test_both_names_of_the_number_of_experts_are_read(tmp_path: Path) -> None:
    make_model(tmp_path, "qwen3_moe", num_local_experts=4)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["num_experts"]
    write_json(tmp_path / "config.json", config)
    found = load_config(tmp_path).moe
    assert found is not None and found.num_experts == 4


MLP = "model.layers.1.mlp"
FAULTS: dict[str, tuple[str, dict[str, Any], str]] = {  # kind of model, its settings, the error
    "no experts": ("qwen3_moe", {}, r"experts.0.gate_proj.weight: expected .*\[64, 64\], found no such"),
    "a missing expert": ("qwen3_moe", {}, r"experts.2.up_proj.weight: expected .*\[64, 64\], found no such tensor"),
    "an expert too many": ("qwen3_moe", {}, r"experts.4.up_proj.weight: expected no such tensor by config.json"),
    "one packed expert": ("qwen3_moe", {}, r"experts.2.up_proj.weight: expected it quantized as .*experts.0.up_proj"),
    "one dense expert": ("qwen3_moe", {}, r"experts.2.up_proj.weight: expected it quantized as .*experts.0.up_proj"),
    "other bits": ("qwen3_moe", {}, r"experts.2.up_proj.weight: expected it quantized as .*, found other bits or none"),
    "a router with more rows": ("qwen3_moe", {}, r"mlp.gate.weight: expected .*\[4, 64\], found F32 \[5, 64\]"),
    "a stack with more experts": (
        "qwen3_moe",
        {"stack_experts": True},
        r"switch_mlp.up_proj.weight: expected .*\[4, 64, 64\], found F32 \[5, 64, 64\]",
    ),
    "stack and experts": (
        "qwen3_moe",
        {},
        r"experts.0.down_proj.weight: expected no such tensor by config.json, found",
    ),
    "no shared expert": ("qwen2_moe", {}, r"shared_expert.gate_proj.weight: expected .*\[96, 64\], found no such"),
    "no gate of the shared expert": ("qwen2_moe", {}, r"shared_expert_gate.weight: expected .*\[1, 64\], found no"),
    "a shared expert too many": ("qwen3_moe", {}, r"shared_expert.up_proj.weight: expected no such tensor"),
    "a dense MLP too many": ("qwen3_moe", {}, r"mlp.up_proj.weight: expected no such tensor by config.json, found it"),
}


def broken(weights: dict[str, mx.array], fault: str) -> dict[str, mx.array]:
    """The tensors of a model with one fault."""
    third = f"{MLP}.experts.2.up_proj"
    only = lambda path, bits: quantize_weights(  # noqa: E731
        weights, {**{name.removesuffix(".weight"): False for name in weights}, path: {"bits": bits, "group_size": 32}}
    )
    if fault == "no experts":
        return {name: array for name, array in weights.items() if f"{MLP}.experts." not in name}
    if fault == "a missing expert":
        return {name: array for name, array in weights.items() if name != f"{third}.weight"}
    if fault == "an expert too many":
        return {**weights, f"{MLP}.experts.4.up_proj.weight": weights[f"{third}.weight"]}
    if fault == "one packed expert":
        return only(third, 4)
    if fault in ("one dense expert", "other bits"):
        four = {"bits": 4, "group_size": 32}
        return quantize_weights(weights, {**four, third: False if "dense" in fault else {**four, "bits": 8}})
    if fault == "a router with more rows":
        router = weights[f"{MLP}.gate.weight"]
        return {**weights, f"{MLP}.gate.weight": mx.concatenate([router, router[:1]])}
    if fault == "a stack with more experts":
        stack = weights[f"{MLP}.switch_mlp.up_proj.weight"]
        return {**weights, f"{MLP}.switch_mlp.up_proj.weight": mx.concatenate([stack, stack[:1]])}
    if fault == "stack and experts":
        return {**weights, **{name: stack for name, stack in stacked_experts(weights).items() if f"{MLP}." in name}}
    if fault == "no shared expert":
        return {name: array for name, array in weights.items() if f"{MLP}.shared_expert." not in name}
    if fault == "no gate of the shared expert":
        return {name: array for name, array in weights.items() if f"{MLP}.shared_expert_gate." not in name}
    inner = "mlp" if "dense" in fault else "mlp.shared_expert"
    return {**weights, f"model.layers.1.{inner}.up_proj.weight": mx.zeros((64, 64))}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_files_is_named(tmp_path: Path, fault: str) -> None:
    """Each error names the file, the tensor, what was expected and what was found."""
    kind, settings, message = FAULTS[fault]
    path = make_model(tmp_path, kind, **settings)
    weights = broken(dict(mx.load(str(path / "model.safetensors"))), fault)
    write_weights(path, weights)
    if any(name.endswith(".scales") for name in weights):
        config = json.loads((path / "config.json").read_text())
        table: dict[str, Any] = {"bits": 4, "group_size": 32}
        if fault == "other bits":
            table[f"{MLP}.experts.2.up_proj"] = {"bits": 8, "group_size": 32}
        write_json(path / "config.json", {**config, "quantization": table})
    with pytest.raises(ValueError, match=f"^{path}/model.*safetensors: model.layers.1.*{message}"):
        load_weights(path, load_config(path))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_dense_experts_of_16_bits(tmp_path: Path, dtype: mx.Dtype) -> None:
    """MLX's product with gathered matrices refuses them on a CPU."""
    path = make_model(tmp_path, "qwen3_moe", dtype="bfloat16")
    for length in (1, 40):
        tokens = mx.array(prompt(length))
        wide, half = (ours(path, "fused", each) for each in (mx.float32, dtype))
        want, got = (model(tokens, ContiguousCache(model.config, model.ops)) for model in (wide, half))
        error = mx.linalg.norm(got.astype(mx.float32) - want) / mx.linalg.norm(want)
        assert error.item() < 0.05


GREEDY = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
STORED: dict[str, dict[str, Any]] = {
    "one tensor an expert": {"dtype": "bfloat16"},
    "stacks of 4 bits": {"stack_experts": True, "quantize": {"bits": 4, "group_size": 32}},
    "shared expert": {"model_type": "qwen2_moe"},
    "one dense layer": {"mlp_only_layers": [1], "num_hidden_layers": 3, "shards": 2},
}


@pytest.mark.parametrize("kernels", [None, "mlx"])
@pytest.mark.parametrize("form", STORED)
def test_experts_in_files_give_the_same_answers(tmp_path: Path, form: str, kernels: Any) -> None:
    path = make_model(tmp_path, **{"model_type": "qwen3_moe", "num_experts": 8, **STORED[form]})
    want = load(path, config=EngineConfig(kernels=kernels)).generate("the quick brown fox", GREEDY).tokens
    for expert_bytes in (150_000, 10**9):
        llm = load(path, config=EngineConfig(kernels=kernels, expert_bytes=expert_bytes))
        assert llm.generate("the quick brown fox", GREEDY).tokens == want
        counts = store_counts(llm.model.weights)
        assert counts and counts.hits > 0 and 0 < counts.resident <= expert_bytes
        if expert_bytes == 10**9:
            assert counts.misses <= 8 * 3  # each is read once


def stored(path: Path) -> LLM:
    """A model that keeps one or two experts in memory."""
    return load(path, config=EngineConfig(expert_bytes=60_000))


def test_a_model_is_read_anew_where_another_lay(tmp_path: Path) -> None:
    """Where the tensors of a file begin was remembered by its name."""
    path = make_model(tmp_path / "model", "qwen3_moe", num_experts=8)
    stored(path).generate("the quick", GREEDY)
    shutil.rmtree(path)
    make_model(path, "qwen3_moe", num_experts=8, seed=5, stack_experts=True)
    assert stored(path).generate("the quick", GREEDY).tokens == load(path).generate("the quick", GREEDY).tokens


def test_files_replaced_after_loading_are_not_mixed_in(tmp_path: Path) -> None:
    path = make_model(tmp_path / "model", "qwen3_moe", num_experts=8)
    want = load(path).generate("the quick", GREEDY).tokens
    llm = stored(path)
    other = make_model(tmp_path / "other", "qwen3_moe", num_experts=8, seed=5)
    for file in path.glob("*.safetensors"):
        (other / file.name).replace(file)
    assert llm.generate("the quick", GREEDY).tokens == want


@pytest.mark.parametrize("size", [0, 10_000, None])
def test_a_file_changed_after_loading_is_named(tmp_path: Path, size: int | None) -> None:
    path = make_model(tmp_path, "qwen3_moe", num_experts=8)
    llm = stored(path)
    for file in path.glob("*.safetensors"):
        with file.open("r+b") as stream:
            if size is None:
                stream.seek(-4, 2)
                stream.write(b"abcd")
            else:
                stream.truncate(size)
        os.utime(file, ns=(1, 1))
    with pytest.raises(ValueError, match=r"model.*safetensors: expected the file that was loaded, found it changed"):
        llm.generate("the quick", GREEDY)


def test_the_least_recently_used_expert_is_dropped() -> None:
    reads: list[tuple[int, int]] = []
    store = ExpertStore(lambda *place: reads.append(place) or {}, {0: 100}, 250)
    for expert in (0, 1, 0, 2, 0, 1):
        store.get(0, expert)
    assert reads == [(0, 0), (0, 1), (0, 2), (0, 1)]
    assert store.counts == (2, 4, 200) and store.counts.hit_rate == 2 / 6


def test_as_many_experts_are_dropped_as_a_larger_one_needs() -> None:
    """All experts were taken to have the size of the first layer's."""
    store = ExpertStore(lambda *place: {}, {0: 100, 1: 150}, 250)
    for place, resident in (((0, 0), 100), ((0, 1), 200), ((1, 0), 250), ((1, 1), 150), ((0, 0), 250)):
        store.get(*place)
        assert store.counts.resident == resident
    assert list(store.kept) == [(1, 1), (0, 0)]


def test_a_read_that_fails_leaves_the_store_usable() -> None:
    def read(layer: int, expert: int) -> dict[str, Any]:
        if expert == 1:
            raise ValueError("gone")
        return {}

    store = ExpertStore(read, {0: 100}, 100)
    store.get(0, 0)
    with pytest.raises(ValueError, match="gone"):
        store.get(0, 1)
    assert store.counts.resident == 0
    store.get(0, 0)
    assert list(store.kept) == [(0, 0)] and store.counts.resident == 100


def mixed_bits(path: Path) -> Path:
    """Write a model whose experts have 4 bits in the first layer and 8 in the second."""
    eight = {"bits": 8, "group_size": 32}
    names = [f"model.layers.1.mlp.switch_mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")]
    quantize = {"bits": 4, "group_size": 32, **dict.fromkeys(names, eight)}
    return make_model(path, "qwen3_moe", num_experts=8, stack_experts=True, quantize=quantize)


@pytest.mark.parametrize("kernels", [None, "mlx"])
def test_experts_of_different_bits_stay_under_the_limit(tmp_path: Path, kernels: Any) -> None:
    path = mixed_bits(tmp_path)
    want = load(path, config=EngineConfig(kernels=kernels)).generate("the quick", GREEDY).tokens
    llm = load(path, config=EngineConfig(kernels=kernels, expert_bytes=60_000))
    assert llm.generate("the quick", GREEDY).tokens == want
    store = llm.model.weights["layers"][0]["experts"]["store"]
    assert store.sizes[1] > 1.5 * store.sizes[0]
    assert store.resident == sum(mlp_bytes(mlp) for mlp in store.kept.values()) <= 60_000


@pytest.mark.parametrize("kernels", [None, "mlx"])
@pytest.mark.parametrize("form", STORED)
def test_a_model_has_one_fingerprint_wherever_its_experts_are(tmp_path: Path, form: str, kernels: Any) -> None:
    """A cache that was saved by a model with its experts in memory was not loaded by the same one without."""
    path = make_model(tmp_path, **{"model_type": "qwen3_moe", "num_experts": 8, **STORED[form]})
    whole, in_files = (load(path, config=EngineConfig(kernels=kernels, expert_bytes=n)).model for n in (None, 10**6))
    assert whole.fingerprint == in_files.fingerprint


def test_models_whose_experts_differ_have_different_fingerprints(tmp_path: Path) -> None:
    """Without the experts in memory, caches of a model were loaded by one with other experts."""
    first = make_model(tmp_path / "first", "qwen3_moe")
    second = make_model(tmp_path / "second", "qwen3_moe")
    weights = dict(mx.load(str(second / "model.safetensors")))
    for name in weights:
        if ".experts." in name:
            weights[name] = weights[name] + 0.01
    write_weights(second, weights)
    for expert_bytes in (None, 10**6):
        config = EngineConfig(expert_bytes=expert_bytes)
        assert load(first, config=config).model.fingerprint != load(second, config=config).model.fingerprint


def test_dense_experts_in_files_are_refused_with_int8_activations(tmp_path: Path) -> None:
    """Loading ended with a TypeError."""
    if mx.default_device() == mx.gpu:
        pytest.skip("int8 activations are for the CPU kernels")
    path = make_model(tmp_path, "qwen3_moe")
    with pytest.raises(ValueError, match="activations: int8 is for packed weights, and this model's are dense"):
        load(path, config=EngineConfig(activations="int8", expert_bytes=10**6))


@pytest.mark.parametrize(
    ("settings", "expert_bytes", "message"),
    [
        (
            {"model_type": "qwen3"},
            10**6,
            "expert_bytes: expected a model with experts, found .*, a dense one; leave it out",
        ),
        ({"model_type": "qwen3_moe"}, 1000, r"at least the \d+ bytes of one expert, found 1000; all experts take \d+"),
    ],
)
def test_a_store_that_cannot_be_is_refused(
    tmp_path: Path, settings: dict[str, Any], expert_bytes: int, message: str
) -> None:
    path = make_model(tmp_path, **settings)
    with pytest.raises(ValueError, match=message):
        load(path, config=EngineConfig(expert_bytes=expert_bytes))


def test_experts_of_a_gguf_file_are_not_read_one_by_one(tmp_path: Path) -> None:
    file = make_twins(tmp_path, "qwen3_moe", {"": "F16"}, stack_experts=True).file
    with pytest.raises(
        ValueError, match="expert_bytes: expected a directory of safetensors.*model.gguf; convert.*models convert"
    ):
        load(file, config=EngineConfig(expert_bytes=10**6))
