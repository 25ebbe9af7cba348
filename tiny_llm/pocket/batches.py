"""Rows of lessons, or of repeated random tokens, ready for a training step; every state of it fits into JSON."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from tiny_llm.pocket.data import Mix
from tiny_llm.pocket.dialogue import encode_turns
from tiny_llm.pocket.recipe import Recipe, Repeats
from tiny_llm.pocket.tree import Tree, grow

LENGTHS = (64, 96, 128, 160, 192, 256, 320, 384, 448, 512, 640, 1024, 1536, 2304)
PAD = 0


@dataclass(frozen=True)
class Batch:
    """B rows of T tokens and R targets; `at` counts tokens through all rows."""

    tokens: mx.array  # (B·T,) int32
    positions: mx.array  # (B, T) int32
    visible: mx.array  # (B, T, T) bool
    at: mx.array  # (R,) int32
    targets: mx.array  # (R,) int32
    weights: mx.array  # (R,) float32: 1 where the model's own words are learned, less for the prompt's

    @property
    def num_tokens(self) -> int:
        return int(self.tokens.size)


@dataclass
class LessonStream:
    """Lessons of the recipe's stream, gathered by length; `lesson` is the number of the next one.

    `waiting` holds [lesson, …] for each length, drawn but not yet in a batch: they are made anew from their number.
    """

    recipe: Recipe
    encode: Callable[[str], list[int]]
    lesson: int = 0
    waiting: dict[int, list[int]] = field(default_factory=dict)
    trees: dict[int, Tree] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        return {"lesson": self.lesson, "waiting": [[length, *lessons] for length, lessons in self.waiting.items()]}

    def restore(self, state: dict[str, Any]) -> None:
        self.lesson, self.trees = state["lesson"], {}
        self.waiting = {length: lessons for length, *lessons in state["waiting"]}

    def tree(self, mix: Mix, lesson: int) -> Tree:
        dialogues = mix.lesson(self.recipe.seed, lesson)
        return grow(turn for dialogue in dialogues for turn in encode_turns(dialogue, self.encode))

    def next(self, mix: Mix, limit: int, rng: np.random.Generator) -> Batch:
        """The next full batch of lessons of at most `limit` tokens. `rng` picks the prompt tokens to learn."""
        while True:
            number, self.lesson = self.lesson, self.lesson + 1
            tree = self.tree(mix, number)
            if len(tree) > limit:
                continue
            length = next(length for length in LENGTHS if length >= len(tree))
            row = self.waiting.setdefault(length, [])
            row.append(number)
            self.trees[number] = tree
            if len(row) >= max(1, self.recipe.step_tokens // length):
                del self.waiting[length]
                trees = [self.trees.pop(n) if n in self.trees else self.tree(mix, n) for n in row]
                return pack(trees, length, self.recipe, rng)

    def forget(self) -> None:
        """Drop what waits: a new stage has another mix."""
        self.waiting, self.trees = {}, {}


def pack(trees: Sequence[Tree], length: int, recipe: Recipe, rng: np.random.Generator) -> Batch:
    """Trees as rows of `length` tokens. All of the model's own words are targets, and a share of the prompts'."""
    rows = len(trees)
    tokens, positions = np.full((rows, length), PAD, np.int32), np.zeros((rows, length), np.int32)
    visible = np.broadcast_to(np.eye(length, dtype=bool), (rows, length, length)).copy()
    at, targets, weights = [], [], []
    for row, tree in enumerate(trees):
        tokens[row, : len(tree)], positions[row, : len(tree)] = tree.tokens, tree.depths
        visible[row, : len(tree), : len(tree)] = tree.visible()
        kept = tree.learn | (rng.random(len(tree.learn)) < recipe.prompt_share)
        at.append(tree.at[kept] + row * length)
        targets.append(tree.token[kept])
        weights.append(np.where(tree.learn[kept], 1.0, recipe.prompt_weight))
    return _batch(tokens, positions, visible, np.concatenate(at), np.concatenate(targets), np.concatenate(weights))


def repeated(
    repeats: Repeats, period: float, alphabet: float, vocab: int, step_tokens: int, rng: np.random.Generator
) -> Batch:
    """Rows of random tokens that repeat with a random period; what comes a second time is the target."""
    length = int(min(96, max(24, period * 2.2 // 8 * 8)))
    rows = max(1, step_tokens // length)
    order = np.random.default_rng(0).permutation(vocab)[: int(min(alphabet, vocab))]
    tokens, learn = np.zeros((rows, length), np.int32), np.zeros((rows, length), bool)
    for row in range(rows):
        size = int(rng.integers(2, min(length // 2, int(period)) + 1))
        before = int(rng.integers(0, min(length - 2 * size, 6) + 1))
        text = np.concatenate([rng.choice(order, before), np.tile(rng.choice(order, size), length // size + 1)])
        tokens[row] = text[:length]
        learn[row, before + size : length - 1] = True  # the first token of the second round says which round it is
    at = np.flatnonzero(learn)
    targets = np.roll(tokens, -1, axis=1).reshape(-1)[at]
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    visible = np.broadcast_to(np.tri(length, dtype=bool), (rows, length, length))
    return _batch(tokens, positions, visible, at, targets, np.ones(len(at)))


def _batch(
    tokens: NDArray[Any],
    positions: NDArray[Any],
    visible: NDArray[Any],
    at: NDArray[Any],
    targets: NDArray[Any],
    weights: NDArray[Any],
) -> Batch:
    return Batch(
        mx.array(tokens.reshape(-1)),
        mx.array(positions),
        mx.array(visible),
        mx.array(at.astype(np.int32)),
        mx.array(targets.astype(np.int32)),
        mx.array(weights.astype(np.float32)),
    )
