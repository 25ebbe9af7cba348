"""RoPE against complex numbers in float64, MLX's kernel, and mlx-lm's scaled forms."""

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.rope_utils import initialize_rope

from tiny_llm.config import ModelConfig, RopeConfig
from tiny_llm.model import fused
from tiny_llm.model.rope import Rope, apply_rope

SCALINGS = {
    "default": None,
    "linear": {"type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    "yarn, own gain": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 16,
        "beta_slow": 2,
        "mscale": 0.7,
        "mscale_all_dim": 0.4,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
}


def config(scaling: dict | None, theta: float = 10000.0, nested: bool = False) -> RopeConfig:
    data = {
        "model_type": "qwen3",
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "intermediate_size": 8,
        "num_attention_heads": 2,
        "vocab_size": 8,
        "max_position_embeddings": 512,
    }
    if nested:
        data["rope_parameters"] = {"rope_theta": theta, **(scaling or {"rope_type": "default"})}
    else:
        data |= {"rope_theta": theta, "rope_scaling": scaling}
    return ModelConfig.from_hf(data).rope


def rotate(rope: Rope, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return np.array(apply_rope(mx.array(x), rope.at(mx.array(positions))))


def sample(dim: int = 64) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.standard_normal((9, 3, dim)).astype(np.float32), np.array([0, 1, 2, 3, 50, 51, 300, 5, 511], np.int32)


def test_pairs_turn_like_complex_numbers() -> None:
    """x_i + i·x_{i+D/2} times e^{i·position·theta^(-2i/D)}."""
    x, positions = sample()
    z = x[..., :32].astype(np.float64) + 1j * x[..., 32:]
    z *= np.exp(1j * positions[:, None, None] * 1e6 ** (-np.arange(0, 64, 2) / 64))
    got = rotate(Rope(RopeConfig(theta=1e6), 64), x, positions)
    np.testing.assert_allclose(got, np.concatenate([z.real, z.imag], axis=-1), rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("form", [apply_rope, fused.rope_gpu])
def test_scalings_are_mlx_lms(scaling: str, nested: bool, form) -> None:
    x, positions = sample()
    peer = initialize_rope(64, 10000.0, False, SCALINGS[scaling], 512)
    want = mx.stack(
        [peer(mx.array(row)[None, :, None], offset=int(at))[0, :, 0] for row, at in zip(x, positions, strict=True)]
    )
    rope = Rope(config(SCALINGS[scaling], nested=nested), 64)
    got = form(mx.array(x), rope.at(mx.array(positions)))
    np.testing.assert_allclose(np.array(got), np.array(want), rtol=1e-4, atol=5e-5)


def test_attention_factor_overrides_the_formula() -> None:
    scaling = SCALINGS["yarn"]
    gain = Rope(config(scaling), 64).gain
    assert gain == pytest.approx(0.1 * np.log(4) + 1)
    assert Rope(config({**scaling, "attention_factor": 1.5}), 64).gain == 1.5


def test_only_the_distance_counts() -> None:
    """q·k after rotation is the same at (7, 3) and (107, 103)."""
    x, _ = sample()
    rope = Rope(RopeConfig(), 64)
    q, k = np.repeat(x[:1], 2, axis=0), np.repeat(x[1:2], 2, axis=0)
    q, k = rotate(rope, q, np.array([7, 107])), rotate(rope, k, np.array([3, 103]))
    products = (q * k).sum(axis=-1)
    np.testing.assert_allclose(products[0], products[1], atol=2e-4)
    assert abs(products[0] - (x[0] * x[1]).sum(axis=-1)).max() > 0.1
