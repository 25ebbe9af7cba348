"""Models with experts: quantized as mlx-lm would do it with dense routers, read by both engines alike."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from tests.cli.conftest import Run
from tests.gguf_files import make_twins
from tests.model.parity import close, ours, peer_logits, prompt
from tests.quantize.test_sensitive import TEXTS as CALIBRATION
from tests.quantize.test_sensitive import log_softmax, measured
from tests.quantize.test_write import quantized, same, tensors
from tests.support import make_model, stacked_experts, write_weights
from tiny_llm.cache.recompute import RecomputeCache
from tiny_llm.config import QuantizationConfig
from tiny_llm.model.loader import load_config
from tiny_llm.quantize.plan import bits_overall, bits_per_weight, matrices, uniform
from tiny_llm.quantize.sensitive import choose_bits
from tiny_llm.quantize.write import convert, write_quantized

KINDS = ["qwen3_moe", "qwen2_moe"]
ROUTERS = ("mlp.gate", "shared_expert_gate")
UP = "model.layers.1.mlp.{}.up_proj"


def make(path: Path, kind: str, **settings: Any) -> Path:
    if kind == "qwen2_moe":
        settings["norm_topk_prob"] = False  # mlx-lm's qwen2_moe does not know it
    return make_model(path, kind, dtype="bfloat16", **settings)


def logits(path: Path, tokens: list[int]) -> mx.array:
    model = ours(path)
    return model(mx.array(tokens), RecomputeCache(model.config, model.ops))


@pytest.mark.parametrize("stacked", [False, True], ids=["a tensor an expert", "stacked"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_tensors_are_those_of_mlx_lm_with_dense_routers(tmp_path: Path, kind: str, stacked: bool) -> None:
    path = make(tmp_path / "in", kind, stack_experts=stacked, shards=1 if stacked else 3, num_experts=12)
    out = quantized(path, tmp_path / "ours")
    mlx_lm.convert(
        str(make(tmp_path / "same", kind, num_experts=12)),
        str(tmp_path / "theirs"),
        quantize=True,
        q_bits=4,
        q_group_size=32,
        quant_predicate=lambda name, _: not name.endswith(ROUTERS),
    )
    assert same(tensors(out), tensors(tmp_path / "theirs"))
    table = json.loads((out / "config.json").read_text())["quantization"]
    routers = ROUTERS[:1] if kind == "qwen3_moe" else ROUTERS
    assert {name for name, value in table.items() if value is False} == {
        f"model.layers.{layer}.{name if '.' in name else 'mlp.' + name}" for layer in range(2) for name in routers
    }
    tokens = prompt(30)
    close(logits(out, tokens), peer_logits(out, tokens))


def test_experts_that_no_group_fits_are_stacked_and_dense(tmp_path: Path) -> None:
    path = make(tmp_path / "in", "qwen3_moe", moe_intermediate_size=48)
    out = quantized(path, tmp_path / "out")
    found = tensors(out)
    assert found["model.layers.1.mlp.switch_mlp.down_proj.weight"].shape == (4, 64, 48)
    assert "model.layers.1.mlp.switch_mlp.down_proj.scales" not in found
    assert found["model.layers.1.mlp.switch_mlp.up_proj.scales"].shape == (4, 48, 2)
    close(logits(out, prompt(9)), peer_logits(out, prompt(9)))


def test_sizes_count_every_expert(tmp_path: Path) -> None:
    path = make(tmp_path / "in", "qwen2_moe")
    found = matrices(path)
    dense = {name: array for name, array in tensors(path).items() if array.ndim > 1}
    assert sum(matrix.size for matrix in found) == sum(array.size for array in dense.values())
    assert sum(matrix.stack for matrix in found) == len(dense)
    plan = uniform(found, 4, 32)
    stored = tensors(quantized(path, tmp_path / "out"))
    in_matrices = sum(array.nbytes for name, array in stored.items() if "norm" not in name and "bias" not in name[-5:])
    assert bits_overall(found, plan) == pytest.approx(8 * in_matrices / sum(array.size for array in dense.values()))
    assert bits_per_weight(found, plan) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_that_of_a_model_with_only_this_unit_quantized(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path / "in", kind, num_hidden_layers=1)
    dense = log_softmax(ours(path))
    units = measured(ours(path), CALIBRATION, 2)
    paths = {matrix.path for matrix in matrices(path) if not matrix.is_router}
    assert sorted(p for unit in units for p in unit.paths) == sorted(paths)
    for i, unit in enumerate(units):
        everything = {matrix.path for matrix in matrices(path)}
        plan = QuantizationConfig(2, 32, dict.fromkeys(everything - set(unit.paths)))
        write_quantized(path, tmp_path / str(i), plan)
        only = log_softmax(ours(tmp_path / str(i)))
        assert unit.damage == pytest.approx((np.exp(dense) * (dense - only)).sum(-1).mean(), rel=1e-3), unit.paths
    plan = choose_bits(units, 2, 8, 32, 5.0)
    assert plan.layers and not any(name.endswith(ROUTERS) for name in plan.layers)


@pytest.mark.parametrize(
    "types", [{"": "Q4_0"}, {"": "Q8_0", "blk.0.ffn_down_exps": "Q4_1"}, {"": "F16"}], ids=["Q4_0", "mixed", "F16"]
)
def test_a_converted_file_is_read_by_both_engines(tmp_path: Path, types: dict[str, str]) -> None:
    """mlx-lm's configuration of the model has keys without defaults that no GGUF file has."""
    routers = {f"blk.{layer}.ffn_gate_inp": "F32" for layer in range(2)}
    file = make_twins(tmp_path, "qwen3_moe", {**types, **routers}, exact=False, stack_experts=True).file
    convert(file, tmp_path / "out")
    assert load_config(tmp_path / "out") == load_config(file)
    want = np.array(logits(file, prompt(30)))
    assert np.array_equal(np.array(logits(tmp_path / "out", prompt(30))), want)
    close(mx.array(peer_logits(tmp_path / "out", prompt(30))), want)


def test_a_dense_file_is_quantized(tmp_path: Path) -> None:
    file = make_twins(tmp_path, "qwen3_moe", {"": "F16"}, exact=False, stack_experts=True).file
    out = quantized(file, tmp_path / "out")
    assert tensors(out)[UP.format("switch_mlp") + ".weight"].shape == (4, 64, 8)
    close(logits(out, prompt(9)), peer_logits(out, prompt(9)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"experts\.2\.up_proj\.weight: expected a tensor for each of 4 experts, found no such tensor"),
        ("further", r"experts\.4\.up_proj\.weight: expected no such tensor by config\.json, found it"),
        ("twice", r"switch_mlp\.up_proj\.weight: expected no such tensor by config\.json, found it"),
        ("narrow", r"experts\.3\.up_proj\.weight: expected \[64, 64\] as in model\..*, found \[32, 64\]"),
    ],
)
def test_incomplete_experts_are_refused_by_name(tmp_path: Path, change: str, message: str) -> None:
    path = make(tmp_path / "in", "qwen3_moe")
    found = tensors(path)
    name = f"{UP}.weight"
    if change == "missing":
        del found[name.format("experts.2")]
    elif change == "further":
        found[name.format("experts.4")] = found[name.format("experts.3")]
    elif change == "twice":
        stacks = stacked_experts(found)
        found[name.format("switch_mlp")] = stacks[name.format("switch_mlp")]
    else:
        found[name.format("experts.3")] = found[name.format("experts.3")][:32]
    write_weights(path, found)
    with pytest.raises(ValueError, match=f"safetensors: model.layers.1.mlp.{message}"):
        quantized(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_measures_a_model_with_experts(run: Run, tmp_path: Path) -> None:
    path = make(tmp_path / "in", "qwen2_moe")
    result = run("quantize", str(path), "-o", str(tmp_path / "out"), "--tokens", "200", "--json")
    assert result.code == 0, result.err
    told = json.loads(result.out)
    assert told["before"]["bytes"] > told["after"]["bytes"] and told["after"]["perplexity"] > 1
    assert told["left_dense"] == [
        "model.layers.0.mlp.shared_expert.down_proj",
        "model.layers.1.mlp.shared_expert.down_proj",
    ]


def test_the_command_counts_experts(run: Run, tmp_path: Path) -> None:
    path = make(tmp_path / "in", "qwen3_moe")
    options = ("--predicate", "sensitive", "--target-bits", "5.5", "--bits", "3", "--high-bits", "8")
    result = run("quantize", str(path), "-o", str(tmp_path / "out"), "--tokens", "0", *options, "--group-size", "32")
    assert result.code == 0, result.err
    assert f"{2 + 2 * (4 + 1 + 3 * 4)} matrices, 2 left dense" in result.out
    assert "left dense, because" not in result.out
    close(logits(tmp_path / "out", prompt(9)), peer_logits(tmp_path / "out", prompt(9)))
