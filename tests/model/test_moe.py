"""Qwen2-MoE and Qwen3-MoE against mlx-lm, and the fast experts against the loop over all of them."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tests.gguf_files import make_twins
from tests.model.parity import close, ours, peer_logits, prompt
from tests.support import make_model
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.config import EngineConfig, SamplingParams
from tiny_llm.engine.llm import load
from tiny_llm.model.expert_store import ExpertStore, counts_of

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


@pytest.mark.parametrize("ops", ["plain", "fused"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model_type", ["qwen3_moe", "qwen2_moe"])
def test_logits_are_mlx_lm_s(tmp_path: Path, model_type: str, form: str, ops: str) -> None:
    # mlx-lm's qwen2_moe knows neither norm_topk_prob nor layers without experts
    settings = dict(FORMS[form])
    if model_type == "qwen2_moe":
        if "num_hidden_layers" in settings:
            pytest.skip("mlx-lm's qwen2_moe has experts in every layer")
        settings["norm_topk_prob"] = False
    path = make_model(tmp_path, model_type, **settings)
    for length in (1, 3, 40):
        tokens = prompt(length)
        close(logits(path, tokens, ops), peer_logits(path, tokens))


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
        counts = counts_of(llm.model.weights)
        assert counts and counts.hits > 0 and 0 < counts.resident <= expert_bytes
        if expert_bytes == 10**9:
            assert counts.misses <= 8 * 3  # each is read once


def test_the_least_recently_used_expert_is_dropped() -> None:
    reads: list[tuple[int, int]] = []
    store = ExpertStore(lambda *place: reads.append(place) or {}, (0,), 100, 250)
    for expert in (0, 1, 0, 2, 0, 1):
        store.get(0, expert)
    assert reads == [(0, 0), (0, 1), (0, 2), (0, 1)]
    assert store.counts == (2, 4, 200) and store.counts.hit_rate == 2 / 6


@pytest.mark.parametrize(
    ("settings", "expert_bytes", "message"),
    [
        ({"model_type": "qwen3"}, 10**6, "expert_bytes: expected a model with experts, found one without"),
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
    with pytest.raises(ValueError, match="expert_bytes: .*model.gguf is no directory of safetensors.*models convert"):
        load(file, config=EngineConfig(expert_bytes=10**6))
