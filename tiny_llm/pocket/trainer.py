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
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.pocket.lessons.mix import Mix
from tiny_llm.pocket.recipe import Recipe
from tiny_llm.pocket.sampling import by_error, error_lessons, measured_error
from tiny_llm.pocket.stream import LessonStream
from tiny_llm.pocket.tokenizer import VOCAB_SIZE, shipped_tokenizer
from tiny_llm.train.batches import TrainingBatch, repeated
from tiny_llm.train.differentiable import EVALUATION
from tiny_llm.train.divide import can_divide, divided
from tiny_llm.train.grow import can_grow, grown
from tiny_llm.train.trainer import Trainer, TrainingProgress
from tiny_llm.train.vocabulary import translated

BY_ERROR = ("everything", "textwork", "long")  # stages whose kinds of lessons are sampled by error
SHORTEST_LIMIT = 192  # tokens of a lesson at the beginning of the foundation stage


@dataclass
class StageProgress(TrainingProgress):
    """Where training stands in the recipe, beside the lesson stream."""

    stage: str = "repeats"
    stage_start: int = 0  # tokens before the stage
    period: float = 0.0
    alphabet: float = 0.0
    recent: list[float] = field(default_factory=list)  # answer losses since the limits last grew
    errors: dict[str, float] = field(default_factory=dict)  # of each kind of lesson, as last measured
    measured: int | None = None  # tokens when errors were measured in this stage
    first_step: int = 0  # steps by another recipe, before `relearn`


class PocketTrainer(Trainer):
    """A recipe on its way, in `directory`."""

    progress: StageProgress

    def __init__(self, recipe: Recipe, directory: Path, encode: Callable[[str], list[int]], digest: str):
        super().__init__(recipe, recipe.config, recipe.random_weights(), directory, digest)
        self.recipe = recipe
        self.progress = StageProgress(period=recipe.repeats.period, alphabet=recipe.repeats.alphabet)
        self.stream = LessonStream(recipe, encode)
        self.parent: dict[str, Any] | None = None  # pocket.json of the model that this one goes on from
        self.growth: dict[str, list[int]] = {}  # the parent's sizes and this model's, where they differ

    def follow(self, model: Path) -> None:
        """Start from a trained model; its tokens count.

        It grows if it has fewer layers or a narrower MLP. A dense model is divided into experts if the recipe has some.
        Its embedding is translated if it has another tokenizer.
        Raises ValueError when it is no pocket model, or its shape can't grow to this recipe's.
        """
        made = model / "pocket.json"
        found = load_config(model)
        if not made.exists():
            raise ValueError(f"{made}: not there, so this is no pocket model: name the model/ of a run")
        divides = can_divide(found, self.config)
        if not divides and not can_grow(found, self.config):
            raise ValueError(
                f"{model}: another size than this recipe's: choose the fitting --size, one with more layers or a wider "
                "MLP and everything else alike, or one with experts that its MLPs can fill"
            )
        try:
            self.parent = json.loads(made.read_text(encoding="utf-8"))
            self.progress.tokens = self.progress.first_tokens = int(self.parent["tokens"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{made}: expected an object that tells its tokens, found {error!r}") from error
        self.weights = load_weights(model, found, mx.float32)
        if divides:
            self.weights = divided(self.weights, self.recipe.random_weights(), self.recipe.size.chosen)
        elif found != self.config:
            self.weights = grown(self.weights, self.recipe.random_weights())
        if found != self.config:
            self.growth = {
                "layers": [found.num_hidden_layers, self.config.num_hidden_layers],
                "mlp": [found.intermediate_size, self.config.intermediate_size],
            }
        theirs, ours = Tokenizer.from_file(str(model / "tokenizer.json")), shipped_tokenizer()
        if theirs.to_str() != ours.to_str():
            embedding = self.weights["embed_tokens"]
            embedding["weight"] = translated(embedding["weight"], theirs, ours)
        self._enter("everything")

    def state(self) -> dict[str, Any]:
        stream = self.stream.state()
        return {**super().state(), "stream": stream, "parent": self.parent, "growth": self.growth}

    def made(self) -> dict[str, Any]:
        """How the weights were made, for pocket.json."""
        p = self.progress
        made: dict[str, Any] = {"recipe": self.digest, "steps": p.step - p.first_step, "tokens": p.tokens}
        if self.library != "mlx":
            made["gradients"] = self.library
        if self.growth:
            made["grown"] = self.growth
        if self.parent:
            made["after"] = self.parent
        return made

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.parent = state["parent"]
        self.growth = state["growth"]
        self.stream.restore(state["stream"])

    def relearn(self, before: str) -> None:
        """Go on with this recipe's lessons from here: what came before counts as a run of its own."""
        super().relearn(before)
        self.parent = {**self.made(), "recipe": before}
        self.growth = {}
        self.progress.first_step = self.progress.step
        self.progress.measured = None
        self.stream.forget()

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
        mix, limit = self._lessons()
        return self.stream.next(by_error(mix, p.errors, r.sampling.floor), limit, rng)

    def _lessons(self) -> tuple[Mix, int]:
        """The mix of a stage that is sampled by error, and the most tokens that its lessons may have."""
        r = self.recipe
        if self.progress.stage == "everything":
            return r.everything, r.max_length
        if self.progress.stage == "textwork":
            return r.textwork, r.max_long_length
        return r.long, r.max_long_length

    def advance(self, answers: float) -> None:
        """Let the period grow, pass on to the next stage when its time has come, and measure errors when it is due."""
        p, r = self.progress, self.recipe
        if p.stage == "repeats":
            self._grow_period(answers)
        stage = p.stage
        if stage == "foundation" and p.tokens - p.stage_start >= r.foundation_tokens:
            stage = "everything"
        if stage == "everything" and self.left <= r.textwork_share + r.long_share:
            stage = "textwork"
        if stage == "textwork" and self.left <= r.long_share:
            stage = "long"
        if stage != p.stage:
            self._enter(stage)
        due = p.measured is None or p.tokens - p.measured >= r.sampling.every
        if due and p.stage in BY_ERROR and not self.done:
            self._measure()

    def _measure(self) -> None:
        """Measure the error of each kind of the stage's lessons; processes share the kinds."""
        p, sampling = self.progress, self.recipe.sampling
        mix, limit = self._lessons()
        model = Qwen3(self.config, self.weights, EVALUATION)
        kinds = sorted(mix.weights)
        found = np.zeros(len(kinds))
        for index in range(self.group.rank(), len(kinds), self.group.size()):
            lessons = error_lessons(kinds[index], sampling.lessons, limit, self.stream.encode)
            found[index] = measured_error(model, lessons)
        shared = mx.distributed.all_sum(mx.array(found), group=self.group)
        p.errors = dict(zip(kinds, np.array(shared).round(4).tolist(), strict=True))
        p.measured = p.tokens
        weights = by_error(mix, p.errors, sampling.floor).weights
        rounded = {kind: round(weight, 4) for kind, weight in weights.items()}
        self.write({"stage": p.stage, "errors": p.errors, "weights": rounded})

    def _enter(self, stage: str) -> None:
        p = self.progress
        p.stage = stage
        p.stage_start = p.tokens
        p.measured = None
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
