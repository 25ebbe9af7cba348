"""Models with experts in the engine: each request's tokens are those of a run alone, however the batch is made up."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engine.test_one_path import assert_same, oracle
from tests.support import make_model
from tiny_llm import SamplingParams, load
from tiny_llm.config import EngineConfig, SchedulerConfig
from tiny_llm.config.serving import ServingConfig
from tiny_llm.engine.answers import join
from tiny_llm.engine.llm import LLM
from tiny_llm.engine.serving import Engine
from tiny_llm.model.expert_store import ExpertStore

FOUR_BITS = {"bits": 4, "group_size": 32}
KERNELS = ["mlx", "cpu"] if sys.platform == "linux" else ["mlx"]
KINDS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "rotating": {"cache": "rotating", "window": 24, "sinks": 2},
    "8 bits": {"cache": "quantized"},
    "rotating, 4 bits": {"cache": "rotating", "window": 24, "sinks": 2, "kv_bits": 4},
}
MODELS: dict[str, dict[str, Any]] = {
    "4 experts, 1 chosen": {"num_experts": 4, "num_experts_per_tok": 1},
    "4 experts, 4 chosen": {"num_experts": 4, "num_experts_per_tok": 4},
    "8 experts, 2 chosen": {"num_experts": 8, "num_experts_per_tok": 2},
    "8 experts, 8 chosen": {"num_experts": 8, "num_experts_per_tok": 8},
    "60 experts, 4 chosen": {"num_experts": 60, "num_experts_per_tok": 4},
    "60 experts, 8 chosen, 4 bits": {
        "num_experts": 60,
        "num_experts_per_tok": 8,
        "quantize": {"bits": 4, "group_size": 32},
        "stack_experts": True,
    },
    "shared expert": {"model_type": "qwen2_moe", "num_attention_heads": 2},
    "shared expert, 4 bits": {
        "model_type": "qwen2_moe",
        "num_attention_heads": 2,
        "quantize": {"bits": 4, "group_size": 32},
    },
    "one dense layer": {"mlp_only_layers": [0], "num_hidden_layers": 3},
}
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
SEEDED = SamplingParams(temperature=0.8, top_p=0.9, max_tokens=8, ignore_eos=True, seed=5)
PROMPTS = [
    [(7 * i) % 250 for i in range(5)],
    [(11 * i + 3) % 250 for i in range(40)],
    [(11 * i + 3) % 250 for i in range(33)] + [(5 * i) % 250 for i in range(40)],  # begins like the one before
    [(13 * i) % 250 for i in range(1, 90)],
]
SERVING = ServingConfig(scheduler=SchedulerConfig(token_budget=24, max_sequences=4))  # prompts come in chunks


@pytest.fixture(scope="module", params=MODELS)
def path(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    settings = dict(MODELS[request.param])
    return make_model(tmp_path_factory.mktemp("model"), settings.pop("model_type", "qwen3_moe"), **settings)


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("kind", KINDS)
def test_several_requests_get_the_tokens_of_runs_alone(path: Path, kernels: str, kind: str) -> None:
    """Prefill in one piece and in chunks, decodes and mixed batches; whole caches and pools."""
    config = EngineConfig(kernels=kernels, **KINDS[kind])
    llm = load(path, config=config)
    with Engine(path, config=config, serving=SERVING) as engine:
        for params in (GREEDY, SEEDED):
            wanted = [oracle(llm, prompt, params)[0] for prompt in PROMPTS]
            together = llm.generate(PROMPTS, params)
            served = [answers[0] for answers in engine.generate(PROMPTS, params)]
            for answers in (together, served):
                for prompt, answer, want in zip(PROMPTS, answers, wanted, strict=True):
                    assert_same(llm, prompt, answer, want)


def test_a_request_that_comes_while_others_decode(path: Path, kernels: str) -> None:
    config = EngineConfig(kernels=kernels)
    llm = load(path, config=config)
    long = replace(GREEDY, max_tokens=30)
    with Engine(path, config=config, serving=SERVING) as engine:
        first = engine.stream(PROMPTS[0], long)
        deltas = [next(first) for _ in range(3)]
        late = engine.generate([PROMPTS[3]], GREEDY)[0][0]
        deltas += first
    assert_same(llm, PROMPTS[3], late, oracle(llm, PROMPTS[3], GREEDY)[0])
    assert_same(llm, PROMPTS[0], join(deltas, late.stats), oracle(llm, PROMPTS[0], long)[0])


def test_requests_share_experts_that_stay_in_the_files(path: Path, kernels: str) -> None:
    """With memory for one to three experts, each step drops experts that the next layer or request needs again."""
    config = EngineConfig(kernels=kernels)
    llm = load(path, config=config)
    sizes = stored(load(path, config=replace(config, expert_bytes=10**9))).sizes
    wanted = [oracle(llm, prompt, GREEDY)[0] for prompt in PROMPTS]
    for experts in (1, 3):
        limited = replace(config, expert_bytes=experts * max(sizes.values()))
        with Engine(path, config=limited, serving=SERVING) as engine:
            answers = [answers[0] for answers in engine.generate(PROMPTS, GREEDY)]
        for prompt, answer, want in zip(PROMPTS, answers, wanted, strict=True):
            assert_same(llm, prompt, answer, want)


def stored(llm: LLM) -> ExpertStore:
    """Return the store of a model whose experts stay in its files."""
    assert llm.config.moe
    store: ExpertStore = llm.model.weights["layers"][llm.config.moe.layers[0]]["experts"]["store"]
    return store
