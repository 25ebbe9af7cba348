"""Qwen2-MoE and Qwen3-MoE against mlx-lm, and the fast experts against the loop over all of them."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tests.model.parity import close, ours, peer_logits, prompt
from tests.support import make_model
from tiny_llm.cache.contiguous import ContiguousCache

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
