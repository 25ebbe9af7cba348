"""A small model and a training for the tests of this room: it learns to repeat random tokens."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.support import make_config
from tiny_llm.config import ModelConfig
from tiny_llm.train.batches import TrainingBatch, repeated
from tiny_llm.train.settings import Settings
from tiny_llm.train.trainer import Trainer
from tiny_llm.train.weights_io import TrainedWeights, random_weights

SHAPE = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
SETTINGS = Settings(tokens=2500, warmup_steps=3)


def hf_config(model_type: str = "qwen3", **overrides: Any) -> dict[str, Any]:
    return make_config(
        model_type, "float32", {**SHAPE, "tie_word_embeddings": True, "num_hidden_layers": 1, **overrides}
    )


CONFIG = ModelConfig.from_hf(hf_config(), "test")
ROUTED = ModelConfig.from_hf(hf_config("qwen3_moe"), "test")


def weights_of(config: ModelConfig = CONFIG) -> TrainedWeights:
    return random_weights(config, seed=1, qk_gain=1.7, embedding_std=0.05)


class Repeating(Trainer):
    """Learns to repeat; `told` counts the losses it heard of."""

    def __init__(
        self,
        directory: Path,
        settings: Settings = SETTINGS,
        digest: str = "repeating",
        config: ModelConfig = CONFIG,
    ):
        super().__init__(settings, config, weights_of(config), directory, digest)
        self.told = 0

    def batch(self, rng: np.random.Generator) -> TrainingBatch:
        return repeated(4.0, 64.0, CONFIG.vocab_size, 256, rng)

    def advance(self, answers: float) -> None:
        self.told += 1

    def state(self) -> dict[str, Any]:
        return {**super().state(), "told": self.told}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.told = state["told"]
