"""The pocket model's training: random repeats, then its lessons, stage by stage."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from tokenizers import Tokenizer

from tiny_llm.model.directory import load_config
from tiny_llm.model.loader import load_weights
from tiny_llm.pocket.recipe import Recipe
from tiny_llm.pocket.stream import LessonStream
from tiny_llm.pocket.tokenizer import VOCAB_SIZE, shipped_tokenizer
from tiny_llm.train.batches import TrainingBatch, repeated
from tiny_llm.train.trainer import Trainer, TrainingProgress
from tiny_llm.train.vocabulary import translated

SHORTEST_LIMIT = 192  # tokens of a lesson at the beginning of the foundation stage


@dataclass
class StageProgress(TrainingProgress):
    """Where training stands in the recipe, beside the lesson stream."""

    stage: str = "repeats"
    stage_start: int = 0  # tokens before the stage
    period: float = 0.0
    alphabet: float = 0.0
    recent: list[float] = field(default_factory=list)  # answer losses since the limits last grew


class PocketTrainer(Trainer):
    """A recipe on its way, in `directory`."""

    progress: StageProgress

    def __init__(self, recipe: Recipe, directory: Path, encode: Callable[[str], list[int]], digest: str):
        super().__init__(recipe, recipe.config, recipe.random_weights(), directory, digest)
        self.recipe = recipe
        self.progress = StageProgress(period=recipe.repeats.period, alphabet=recipe.repeats.alphabet)
        self.stream = LessonStream(recipe, encode)
        self.parent: dict[str, Any] | None = None  # pocket.json of the model that this one goes on from

    def follow(self, model: Path) -> None:
        """Start from a trained model; its tokens count. Its embedding is translated if it has another tokenizer.

        Raises ValueError when it is no pocket model, or one of another size.
        """
        made, found = model / "pocket.json", load_config(model)
        if not made.exists():
            raise ValueError(f"{made}: not there, so this is no pocket model: name the model/ of a run")
        if found != self.config:
            raise ValueError(f"{model}: another size than this recipe's: choose the fitting --size")
        try:
            self.parent = json.loads(made.read_text(encoding="utf-8"))
            self.progress.tokens = int(self.parent["tokens"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{made}: expected an object that tells its tokens, found {error!r}") from error
        self.weights = load_weights(model, found, mx.float32)
        theirs, ours = Tokenizer.from_file(str(model / "tokenizer.json")), shipped_tokenizer()
        if theirs.to_str() != ours.to_str():
            embedding = self.weights["embed_tokens"]
            embedding["weight"] = translated(embedding["weight"], theirs, ours)
        self._enter("everything")

    def state(self) -> dict[str, Any]:
        return {**super().state(), "stream": self.stream.state(), "parent": self.parent}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.parent = state["parent"]
        self.stream.restore(state["stream"])

    def batch(self, rng: np.random.Generator) -> TrainingBatch:
        p, r = self.progress, self.recipe
        if p.stage == "repeats":
            return repeated(p.period, p.alphabet, VOCAB_SIZE, r.step_tokens, rng)
        if p.stage == "foundation":
            share = (p.tokens - p.stage_start) / r.foundation_tokens
            limit = int(SHORTEST_LIMIT + share * (r.max_length - SHORTEST_LIMIT))
            return self.stream.next(r.foundation, limit, rng)
        if rng.random() < r.refresh_share:
            return repeated(r.repeats.longest_period, VOCAB_SIZE, VOCAB_SIZE, r.step_tokens, rng)
        if p.stage == "everything":
            return self.stream.next(r.everything, r.max_length, rng)
        return self.stream.next(r.long, r.max_long_length, rng)

    def advance(self, answers: float) -> None:
        """Let the period grow, and pass on to the next stage when its time has come."""
        p, r = self.progress, self.recipe
        if p.stage == "repeats":
            self._grow_period(answers)
        stage = p.stage
        if stage == "foundation" and p.tokens - p.stage_start >= r.foundation_tokens:
            stage = "everything"
        if stage == "everything" and p.tokens >= r.tokens * (1 - r.long_share):
            stage = "long"
        if stage != p.stage:
            self._enter(stage)

    def _enter(self, stage: str) -> None:
        self.progress.stage, self.progress.stage_start = stage, self.progress.tokens
        self.stream.forget()

    def _grow_period(self, answers: float) -> None:
        p, r = self.progress, self.recipe.repeats
        p.recent = [*p.recent, answers][-20:]
        full = p.period >= r.longest_period and p.alphabet >= VOCAB_SIZE
        if not full and len(p.recent) >= 10 and np.mean(p.recent[-8:]) < r.threshold:
            p.period = min(p.period * r.period_growth, r.longest_period)
            p.alphabet = min(p.alphabet * r.alphabet_growth, VOCAB_SIZE)
            p.recent = []
        elif p.tokens >= r.max_tokens or (full and len(p.recent) == 20 and np.mean(p.recent) < r.done):
            self._enter("foundation")
