"""The weights that ship: the engine and mlx-lm agree on them, and the commands use them."""

import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import generate_step

from tests.model.parity import close, ours, peer, peer_logits
from tiny_llm import SamplingParams, load
from tiny_llm.cache.recompute import RecomputeCache
from tiny_llm.engine.llm import POCKET

CHAT = [{"role": "user", "content": "What is a KV cache?"}]
LIMITS = {"target": 8_500_000, "draft": 2_000_000, "moe": 8_000_000}


@pytest.mark.parametrize("size", LIMITS)
def test_logits_and_text_are_mlx_lms(size: str) -> None:
    path = POCKET.parent / size
    llm = load(path)
    prompt = llm.encode(CHAT)
    model = ours(path)
    close(model(mx.array(prompt), RecomputeCache(model.config, model.ops)), peer_logits(path, prompt))
    text = llm.generate(CHAT, SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)).tokens
    steps = generate_step(mx.array(prompt), peer(path), max_tokens=40)
    assert text == [int(token) for token, _ in steps]


@pytest.mark.parametrize("size", LIMITS)
def test_size_of_the_file(size: str) -> None:
    assert (POCKET.parent / size / "model.safetensors").stat().st_size <= LIMITS[size]


def test_the_commands_use_it_and_show_no_thinking() -> None:
    command = [sys.executable, "-m", "tiny_llm", "generate", "What is a KV cache?"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.startswith("A KV cache") and "think" not in done.stdout


def test_quantized_groups_fit() -> None:
    """Hidden and MLP sizes are multiples of 128, so every group size divides them."""
    config = load().config
    assert np.gcd(config.hidden_size, config.intermediate_size) % 128 == 0
