"""What a pocket model is made by: its size, the stages of its lessons and the optimizer's settings."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tiny_llm.config import ModelConfig
from tiny_llm.pocket.lessons import mix as mixes
from tiny_llm.pocket.lessons.mix import EVERYTHING, FOUNDATION, LONG, Mix
from tiny_llm.pocket.sampling import Sampling
from tiny_llm.pocket.tokenizer import VOCAB_SIZE
from tiny_llm.train.settings import Settings
from tiny_llm.train.weights_io import TrainedWeights, random_weights

LESSONS_HASHED = 40
TEXTWORK: Mix = getattr(mixes, "TEXTWORK", Mix({**EVERYTHING.weights, "text": 0.5}))


@dataclass(frozen=True)
class Size:
    """The shape of a Qwen3; `hidden` and `mlp` are multiples of 128 so that every quantization group fits."""

    hidden: int
    layers: int
    mlp: int
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    experts: int = 0  # of each layer; `mlp` is then the size of one
    chosen: int = 0  # experts of a token

    def hf_config(self) -> dict[str, Any]:
        """config.json."""
        experts = {
            "num_experts": self.experts,
            "num_experts_per_tok": self.chosen,
            "moe_intermediate_size": self.mlp,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
        return {
            "architectures": ["Qwen3MoeForCausalLM" if self.experts else "Qwen3ForCausalLM"],
            "model_type": "qwen3_moe" if self.experts else "qwen3",
            **(experts if self.experts else {}),
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.mlp,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "attention_bias": False,
            "vocab_size": VOCAB_SIZE,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
        }


TARGET = Size(hidden=256, layers=6, mlp=640)
DEEP = Size(hidden=256, layers=7, mlp=512)  # as many parameters as TARGET
DRAFT = Size(hidden=128, layers=3, mlp=256)
MOE = Size(hidden=256, layers=5, mlp=64, experts=8, chosen=2)  # divided from a TARGET


@dataclass(frozen=True)
class Repeats:
    """The first stage: random tokens that repeat. Each time the loss falls under `threshold`, both limits grow."""

    period: float = 4.0
    alphabet: float = 64.0
    threshold: float = 0.8
    period_growth: float = 1.2
    alphabet_growth: float = 1.4
    longest_period: float = 44.0
    done: float = 0.35
    max_tokens: int = 3_000_000


@dataclass(frozen=True)
class Recipe(Settings):
    """Everything that decides the weights, but for how long training goes on (`tokens`, all stages together)."""

    size: Size
    tokens: int = field(default=40_000_000, kw_only=True)
    step_tokens: int = 2560  # of a batch
    repeats: Repeats = field(default_factory=Repeats)
    foundation: Mix = FOUNDATION
    foundation_tokens: int = 2_000_000
    everything: Mix = EVERYTHING
    textwork: Mix = TEXTWORK
    textwork_share: float = 0.2  # of the run's tokens, before the long stage
    long: Mix = LONG
    long_share: float = 0.2  # of the run's tokens, at the end
    sampling: Sampling = field(default_factory=Sampling)  # from the stage `everything` on
    refresh_share: float = 0.04  # of the batches after the foundation: any token must be copied, the rare ones too
    max_length: int = 1024
    max_long_length: int = 4096
    prompt_share: float = 0.15  # of the prompt's tokens that are learned too
    prompt_weight: float = 0.2
    qk_gain: float = 1.7
    embedding_std: float = 0.05
    after: str | None = None  # a hash of the weights that training starts from, instead of random ones

    @property
    def config(self) -> ModelConfig:
        """The model's shape as the engine reads it."""
        return ModelConfig.from_hf(self.size.hf_config(), "recipe")

    def random_weights(self) -> TrainedWeights:
        """What training starts from, unless it goes on from a trained model."""
        return random_weights(self.config, self.seed, self.qk_gain, self.embedding_std)

    def following(self, weights: Path) -> "Recipe":
        """The recipe that goes on from trained weights, on lessons of its own: past repeats and foundation.

        Raises ValueError when the file is not there.
        """
        if not weights.is_file():
            raise ValueError(f"{weights}: not there: name the directory of a trained model, such as runs/target/model")
        after = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
        return replace(self, after=after, seed=int(after[:8], 16))

    def digest(self, tokenizer: str) -> str:
        """A hash of the settings, the tokenizer's file and a sample of the lessons; `tokens` does not count."""
        settings = json.dumps(asdict(replace(self, tokens=0)), sort_keys=True)
        lessons = [self.long.lesson(self.seed, index) for index in range(LESSONS_HASHED)]
        return hashlib.sha256("\n".join((settings, tokenizer, repr(lessons))).encode()).hexdigest()[:16]


RECIPES = {
    "target": Recipe(TARGET, batches=2),
    "deep": Recipe(DEEP, batches=2),
    "draft": Recipe(DRAFT, batches=2),
    "moe": Recipe(MOE, batches=2, balance=0.01),
    "moe-unbalanced": Recipe(MOE, batches=2),
}
