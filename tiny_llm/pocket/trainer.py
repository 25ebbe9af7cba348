"""The state of a training run and its steps; stopped at any time, it goes on where it was."""

import ctypes
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.utils import average_gradients
from mlx.utils import tree_map, tree_unflatten
from tokenizers import Tokenizer

from tiny_llm.config import ModelConfig
from tiny_llm.model.directory import load_config
from tiny_llm.model.loader import load_weights
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.train import checkpoint
from tiny_llm.train.batches import Batch, LessonStream, repeated
from tiny_llm.train.differentiable import TRAINING, TreeAttention, cross_entropy
from tiny_llm.train.optimizer import Optimizer, flatten
from tiny_llm.pocket.recipe import Recipe
from tiny_llm.pocket.tokenizer import VOCAB_SIZE, shipped_tokenizer
from tiny_llm.train.vocabulary import translated
from tiny_llm.train.weights_io import random_weights

SHORTEST_LIMIT = 192  # tokens of a lesson at the beginning of the foundation stage


@dataclass
class Progress:
    """Where training stands, beside the arrays and the lesson stream."""

    step: int = 0
    tokens: int = 0
    stage: str = "repeats"
    stage_start: int = 0  # tokens before the stage
    period: float = 0.0
    alphabet: float = 0.0
    recent: list[float] = field(default_factory=list)  # answer losses since the limits last grew


def keep_memory() -> None:
    """Have glibc keep freed memory: giving it back and taking it again costs as much as the arithmetic of a step."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap never shrinks
        libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD at its limit: large arrays live in the heap, too


class Trainer:
    """One training run in `directory`. The same recipe gives the same weights, in one go or with interruptions."""

    def __init__(self, recipe: Recipe, directory: Path, encode: Callable[[str], list[int]], digest: str):
        self.recipe, self.directory, self.digest = recipe, directory, digest
        self.config = ModelConfig.from_hf(recipe.size.hf_config(), "recipe")
        self.progress = Progress(period=recipe.repeats.period, alphabet=recipe.repeats.alphabet)
        self.stream = LessonStream(recipe, encode)
        self.optimizer = Optimizer(self.config, recipe.muon_rate, recipe.adam_rate, recipe.clip)
        self.weights = random_weights(recipe)
        self.parent: dict[str, Any] | None = None  # pocket.json of the model that this one goes on from
        mx.eval(self.weights)
        self.log = directory / "log.jsonl"
        self.group = mx.distributed.init()
        if recipe.batches % self.group.size():
            raise ValueError(f"{self.group.size()} processes can't share {recipe.batches} batches of a step evenly")

    @property
    def leads(self) -> bool:
        """Whether this process writes files."""
        return self.group.rank() == 0

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

    def save(self) -> None:
        if not self.leads:
            return
        arrays: dict[str, mx.array] = {f"weights.{name}": array for name, array in flatten(self.weights).items()}
        arrays |= {f"optimizer.{name}": array for name, array in self.optimizer.state.items()}
        state = {"progress": asdict(self.progress), "stream": self.stream.state(), "parent": self.parent}
        checkpoint.save(self.directory, checkpoint.Checkpoint(self.digest, arrays, state))

    def resume(self) -> bool:
        """Go on from the newest checkpoint, if there is one. Raises ValueError when another recipe made it."""
        path = checkpoint.find(self.directory)
        if path is None:
            return False
        found = checkpoint.load(path, self.digest)
        self.weights = tree_unflatten(
            [(name.removeprefix("weights."), a) for name, a in found.arrays.items() if name.startswith("weights.")]
        )
        self.optimizer.state = {
            name.removeprefix("optimizer."): a for name, a in found.arrays.items() if name.startswith("optimizer.")
        }
        self.progress = Progress(**found.state["progress"])
        self.parent = found.state["parent"]
        self.stream.restore(found.state["stream"])
        self._cut_log()
        return True

    def _cut_log(self) -> None:
        """Forget what was logged after the checkpoint."""
        if self.leads and self.log.exists():
            lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [x for x in lines if x.endswith("\n") and json.loads(x)["step"] <= self.progress.step]
            self.log.write_text("".join(kept), encoding="utf-8")

    def write(self, entry: dict[str, Any]) -> None:
        if not self.leads:
            return
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.progress.step, "tokens": self.progress.tokens, **entry}) + "\n")

    @property
    def done(self) -> bool:
        return self.progress.tokens >= self.recipe.tokens

    def step(self) -> dict[str, float]:
        """One step: its batches, gradients and update. Returns what is worth logging."""
        begun, p = time.monotonic(), self.progress
        rng = np.random.default_rng([self.recipe.seed, p.step])
        batches = [self._batch(rng) for _ in range(self.recipe.batches)]
        losses, gradients = self._gradients(batches)
        rate = self.recipe.rate(p.step, p.tokens)
        self.weights, norm = self.optimizer.update(self.weights, gradients, rate)
        mx.eval(self.weights, self.optimizer.state, losses, norm)
        p.step += 1
        tokens = sum(batch.num_tokens for batch in batches)
        p.tokens += tokens
        loss, answers = np.array(losses).tolist()
        self._advance(answers)
        measured = {"loss": loss, "answers": answers, "norm": float(np.array(norm)), "rate": rate}
        return {**measured, "seconds": time.monotonic() - begun, "tokens": tokens}

    def _gradients(self, batches: Sequence[Batch]) -> tuple[mx.array, Any]:
        """The two losses (2,) and the gradients, means over all batches. Each process takes its part of them."""
        losses, total = mx.zeros(2), tree_map(mx.zeros_like, self.weights)
        for batch in batches[self.group.rank() :: self.group.size()]:
            found, gradients = mx.value_and_grad(self._loss)(self.weights, batch)
            losses, total = losses + mx.stack(list(found)), tree_map(mx.add, total, gradients)
            mx.eval(losses, total)
        losses, total = average_gradients((losses, total), self.group)
        own = len(batches) / self.group.size()
        return losses / own, tree_map(lambda gradient: gradient / own, total)

    def _loss(self, weights: Any, batch: Batch) -> tuple[mx.array, mx.array]:
        """Weighted mean over all targets, and the mean over the model's own words."""
        model = Qwen3(self.config, weights, TRAINING)
        x = model.hidden_states(batch.tokens, TreeAttention(batch.positions, batch.visible))
        losses = cross_entropy(model.logits(x[batch.at]), batch.targets)
        own = (batch.weights == 1).astype(mx.float32)
        answers = mx.stop_gradient((losses * own).sum() / mx.maximum(own.sum(), 1))
        return (losses * batch.weights).sum() / batch.weights.sum(), answers

    def _batch(self, rng: np.random.Generator) -> Batch:
        p, r = self.progress, self.recipe
        if p.stage == "repeats":
            return repeated(r.repeats, p.period, p.alphabet, VOCAB_SIZE, r.step_tokens, rng)
        if p.stage == "foundation":
            share = (p.tokens - p.stage_start) / r.foundation_tokens
            limit = int(SHORTEST_LIMIT + share * (r.max_length - SHORTEST_LIMIT))
            return self.stream.next(r.foundation, limit, rng)
        if rng.random() < r.refresh_share:
            return repeated(r.repeats, r.repeats.longest_period, VOCAB_SIZE, VOCAB_SIZE, r.step_tokens, rng)
        if p.stage == "everything":
            return self.stream.next(r.everything, r.max_length, rng)
        return self.stream.next(r.long, r.max_long_length, rng)

    def _advance(self, answers: float) -> None:
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
