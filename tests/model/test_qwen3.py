"""The model against mlx-lm on small random directories: every shape that the family comes in."""

import itertools
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.model.parity import close, ours, peer_logits, prompt
from tests.support import make_model
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.cache.recompute import RecomputeCache

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS = {
    "qwen3": {},
    "qwen3 tied": {"tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2"},
    "qwen2.5 tied, million theta": {"model_type": "qwen2", "tie_word_embeddings": True, "rope_theta": 1e6},
    "odd heads": {"num_attention_heads": 7, "num_key_value_heads": 7, "head_dim": 16},
    "14 heads on 2": {"model_type": "qwen2", "hidden_size": 112, "num_attention_heads": 14, "num_key_value_heads": 2},
    "MQA, head_dim 80": {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 80},
    "large eps": {"rms_norm_eps": 0.1},
    "sharded": {"shards": 3},
    "bf16 file": {"dtype": "bfloat16"},
    "fp16 file": {"dtype": "float16", "model_type": "qwen2"},
    "4 bit": {"quantize": {"bits": 4, "group_size": 32}},
    "8 bit": {"quantize": {"bits": 8, "group_size": 64}, "model_type": "qwen2"},
    "mixed bits": {
        "quantize": {
            "bits": 4,
            "group_size": 32,
            "model.layers.0.self_attn.v_proj": {"bits": 8, "group_size": 32},
            "model.layers.1.mlp.gate_proj": False,
        }
    },
    "tied 4 bit": {"quantize": {"bits": 4, "group_size": 64}, "tie_word_embeddings": True},
    "yarn": {"rope_scaling": YARN},
    "yarn, new config": {"rope_theta": None, "rope_parameters": {"rope_theta": 5e5, **YARN}},
    "llama3 rope": {"rope_scaling": LLAMA3},
    "linear rope": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "llama": {"model_type": "llama"},
    "llama tied, 9 heads on 3": {
        "model_type": "llama",
        "hidden_size": 144,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "llama with biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama with its own head_dim": {"model_type": "llama", "head_dim": 48},
    "llama 3.2": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "rope_theta": 5e5,
        "rms_norm_eps": 1e-5,
        "rope_scaling": LLAMA3,
    },
    "llama 4 bit": {"model_type": "llama", "quantize": {"bits": 4, "group_size": 32}, "mlp_bias": True},
}


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A directory and mlx-lm's logits for a prompt of 40 tokens."""
    path = make_model(tmp_path_factory.mktemp("model"), **VARIANTS[request.param])
    return path, peer_logits(path, prompt(40))


@pytest.mark.parametrize("ops", ["plain", "fused"])
def test_logits(variant: tuple[Path, np.ndarray], ops: str) -> None:
    path, want = variant
    model = ours(path, ops)
    close(model(mx.array(prompt(40)), RecomputeCache(model.config, model.ops)), want)


@pytest.mark.parametrize("ops", ["plain", "fused"])
def test_cached_in_chunks_and_single_tokens(variant: tuple[Path, np.ndarray], ops: str) -> None:
    """Chunks of 17, 1, 20, then token by token, over the borders of a cache that grows by 8."""
    path, want = variant
    model, tokens = ours(path, ops), mx.array(prompt(40))
    cache = ContiguousCache(model.config, model.ops, step=8)
    borders = [0, 17, 18, 38, 39, 40]
    parts = [model(tokens[a:b], cache) for a, b in itertools.pairwise(borders)]
    close(mx.concatenate(parts), want)


@pytest.mark.parametrize("ops", ["plain", "fused"])
def test_sliding_window(tmp_path: Path, ops: str) -> None:
    """No peer applies Qwen2's window, so the oracle is a model that never holds more than a window.

    Two layers of window 5 see at most 8 tokens back; so the last logits must not change when earlier tokens do, and
    must change when the earliest visible one does.
    """
    window = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}
    model = ours(make_model(tmp_path, "qwen2", **window), ops)

    def last(tokens: list[int]) -> np.ndarray:
        return np.array(model(mx.array(tokens), RecomputeCache(model.config, model.ops), slice(-1, None)))

    tokens = prompt(30)
    far, near = list(tokens), list(tokens)
    far[30 - 10] = (far[30 - 10] + 1) % 300
    near[30 - 9] = (near[30 - 9] + 1) % 300
    np.testing.assert_allclose(last(far), last(tokens), atol=1e-5)
    assert np.abs(last(near) - last(tokens)).max() > 1e-3
    cache = ContiguousCache(model.config, model.ops)
    parts = [model(mx.array(tokens[a : a + 3]), cache) for a in range(0, 30, 3)]
    close(parts[-1][-1:], last(tokens))


def test_rows_selects_logits(tmp_path: Path) -> None:
    model, tokens = ours(make_model(tmp_path)), mx.array(prompt(12))
    whole = model(tokens, RecomputeCache(model.config, model.ops))
    for rows, want in ((slice(-1, None), whole[-1:]), (mx.array([3, 7]), whole[mx.array([3, 7])])):
        got = model(tokens, RecomputeCache(model.config, model.ops), rows)
        close(got, np.array(want))


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_half_precision_stays_half(tmp_path: Path, dtype: mx.Dtype) -> None:
    """Nothing on the way turns a half-precision model into float32, which would double its cache and its reads."""
    path = make_model(tmp_path, dtype=str(dtype).split(".")[-1])
    for ops in ("plain", "fused"):
        model = ours(path, ops, None)
        cache = ContiguousCache(model.config, model.ops)
        logits = model(mx.array(prompt(10)), cache)
        assert logits.dtype == dtype
        assert {array.dtype for array in cache.state} == {dtype}
        want = peer_logits(path, prompt(10))
        assert np.abs(np.array(logits.astype(mx.float32)) - want).max() < 0.15 * np.abs(want).max()
