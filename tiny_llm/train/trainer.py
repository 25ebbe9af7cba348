"""The state of a training run and its steps; stopped at any time, it goes on where it was.

What is learned is a subclass's matter: it makes the batches and says what comes next. Everything else is the same for
every model: gradients over processes that share a step, the update, the log, the checkpoints.
"""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.utils import average_gradients
from mlx.utils import tree_map, tree_unflatten

from tiny_llm.config import ModelConfig
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.train import checkpoint
from tiny_llm.train.batches import TrainingBatch
from tiny_llm.train.differentiable import TRAINING, TreeAttention, cross_entropy
from tiny_llm.train.optimizer import Arrays, Optimizer, flatten
from tiny_llm.train.settings import Settings
from tiny_llm.train.weights_io import TrainedWeights

Differentiate = Callable[[TrainedWeights, TrainingBatch], tuple[tuple[mx.array, mx.array], TrainedWeights]]


@dataclass
class TrainingProgress:
    """Where training stands, beside the arrays; it fits into JSON."""

    step: int = 0
    tokens: int = 0
    first_tokens: int = 0  # those of the model that the run goes on from
    averaged: int = 0  # steps whose weights are in the mean


class Trainer(ABC):
    """One training run in `directory`. The same settings give the same weights, in one go or with interruptions.

    `digest` tells runs apart: a checkpoint with another one is refused.
    """

    def __init__(self, settings: Settings, config: ModelConfig, weights: TrainedWeights, directory: Path, digest: str):
        self.settings, self.config, self.weights = settings, config, weights
        self.directory, self.digest = directory, digest
        self.progress = TrainingProgress()
        self.mean: TrainedWeights | None = None  # of the weights over the run's last steps
        self.optimizer = Optimizer(config, settings.muon_rate, settings.adam_rate, settings.clip)
        self.differentiate: Differentiate = mx.value_and_grad(self.loss)
        self.library = "mlx"  # whose gradients are taken
        mx.eval(self.weights)
        self.log = directory / "log.jsonl"
        self.group = mx.distributed.init()
        if settings.batches % self.group.size():
            raise ValueError(f"{self.group.size()} processes can't share {settings.batches} batches of a step evenly")

    @abstractmethod
    def batch(self, rng: np.random.Generator) -> TrainingBatch:
        """The next batch; `rng` is the step's own."""

    @abstractmethod
    def advance(self, answers: float) -> None:
        """Take note of a step's loss on the model's own words; what is learned next may depend on it."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the arrays; it fits into JSON."""
        return {"progress": asdict(self.progress)}

    def restore(self, state: dict[str, Any]) -> None:
        """Stand where `state` was taken."""
        self.progress = type(self.progress)(**state["progress"])

    @property
    def leads(self) -> bool:
        """Whether this process writes files."""
        return self.group.rank() == 0

    @property
    def left(self) -> float:
        """The share of the run's own tokens that are still to come."""
        p = self.progress
        own = self.settings.tokens - p.first_tokens
        return max(0.0, (self.settings.tokens - p.tokens) / max(1, own))

    @property
    def done(self) -> bool:
        return self.progress.tokens >= self.settings.tokens

    @property
    def published(self) -> TrainedWeights:
        """The weights to publish: their mean over the run's last steps once there is one, else as they are."""
        return self.weights if self.mean is None else self.mean

    def save(self) -> None:
        if not self.leads:
            return
        arrays = prefixed("weights.", flatten(self.weights))
        arrays |= prefixed("optimizer.", self.optimizer.state)
        if self.mean is not None:
            arrays |= prefixed("mean.", flatten(self.mean))
        checkpoint.save(self.directory, checkpoint.Checkpoint(self.digest, arrays, self.state()))

    def resume(self, relearn: bool = False) -> bool:
        """Go on from the newest checkpoint, if there is one.

        Raises ValueError when another recipe made it, unless `relearn` allows that, and for a model of another shape.
        """
        path = checkpoint.find(self.directory)
        if path is None:
            return False
        found = checkpoint.load(path, None if relearn else self.digest)
        weights = without_prefix("weights.", found.arrays)
        mean = without_prefix("mean.", found.arrays)
        if shapes(weights) != shapes(flatten(self.weights)):
            raise ValueError(f"{path}: a model of another shape than this recipe's: use another --out")
        self.weights = tree_unflatten(list(weights.items()))
        self.mean = tree_unflatten(list(mean.items())) if mean else None
        self.optimizer.state = without_prefix("optimizer.", found.arrays)
        self.restore(found.state)
        self._cut_log()
        if found.recipe != self.digest:
            self.relearn(found.recipe)
        return True

    def relearn(self, before: str) -> None:
        """Take note that the recipe `before` made the checkpoint that this run goes on from."""
        self.write({"relearn": before, "recipe": self.digest})

    def _cut_log(self) -> None:
        """Forget what was logged after the checkpoint."""
        if self.leads and self.log.exists():
            lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [x for x in lines if x.endswith("\n") and json.loads(x)["step"] <= self.progress.step]
            self.log.write_text("".join(kept), encoding="utf-8")

    def write(self, entry: dict[str, Any]) -> None:
        """Add a line to the log."""
        if not self.leads:
            return
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.progress.step, "tokens": self.progress.tokens, **entry}) + "\n")

    def step(self) -> dict[str, float]:
        """One step: its batches, gradients and update. Returns what is worth logging."""
        begun, p = time.monotonic(), self.progress
        rng = np.random.default_rng([self.settings.seed, p.step])
        batches = [self.batch(rng) for _ in range(self.settings.batches)]
        losses, gradients = self.gradients(batches)
        rate = self.settings.rate(p.step, self.left)
        self.weights, norm = self.optimizer.update(self.weights, gradients, rate)
        mx.eval(self.weights, self.optimizer.state, losses, norm)
        p.step += 1
        tokens = sum(batch.num_tokens for batch in batches)
        p.tokens += tokens
        self._average()
        loss, answers = np.array(losses).tolist()
        self.advance(answers)
        measured = {"loss": loss, "answers": answers, "norm": float(np.array(norm)), "rate": rate}
        return {**measured, "seconds": time.monotonic() - begun, "tokens": tokens}

    def _average(self) -> None:
        """Take the weights into their running mean, near the end of the run."""
        p = self.progress
        if self.left > self.settings.average_share:
            self.mean = None  # also when more tokens were allowed after an average had begun
            p.averaged = 0
            return
        p.averaged += 1
        if self.mean is None:
            self.mean = self.weights
            return
        share = 1 / p.averaged
        self.mean = tree_map(lambda mean, weight: mean + share * (weight - mean), self.mean, self.weights)
        mx.eval(self.mean)

    def gradients(self, batches: Sequence[TrainingBatch]) -> tuple[mx.array, Any]:
        """The two losses (2,) and the gradients, means over all batches. Each process takes its part of them."""
        losses, total = mx.zeros(2), tree_map(mx.zeros_like, self.weights)
        for batch in batches[self.group.rank() :: self.group.size()]:
            found, gradients = self.differentiate(self.weights, batch)
            losses, total = losses + mx.stack(list(found)), tree_map(mx.add, total, gradients)
            mx.eval(losses, total)
        losses, total = average_gradients((losses, total), self.group)
        own = len(batches) / self.group.size()
        return losses / own, tree_map(lambda gradient: gradient / own, total)

    def loss(self, weights: Any, batch: TrainingBatch) -> tuple[mx.array, mx.array]:
        """Weighted mean over all targets, and the mean over the model's own words."""
        model = Qwen3(self.config, weights, TRAINING)
        x = model.hidden_states(batch.tokens, TreeAttention(batch.positions, batch.visible))
        losses = cross_entropy(model.logits(x[batch.at]), batch.targets)
        own = (batch.weights == 1).astype(mx.float32)
        answers = mx.stop_gradient((losses * own).sum() / mx.maximum(own.sum(), 1))
        return (losses * batch.weights).sum() / batch.weights.sum(), answers


def prefixed(prefix: str, arrays: Arrays) -> Arrays:
    """Return the arrays with `prefix` before each name."""
    return {prefix + name: array for name, array in arrays.items()}


def without_prefix(prefix: str, arrays: Arrays) -> Arrays:
    """Return the arrays whose names begin with `prefix`, named without it."""
    chosen = [name for name in arrays if name.startswith(prefix)]
    return {name.removeprefix(prefix): arrays[name] for name in chosen}


def shapes(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array by its name."""
    return {name: array.shape for name, array in arrays.items()}
