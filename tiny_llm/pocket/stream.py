"""The stream of lessons as batches for training; every state of it fits into JSON."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tiny_llm.pocket.lessons.dialogue import encode_turns
from tiny_llm.pocket.lessons.mix import Mix
from tiny_llm.pocket.recipe import Recipe
from tiny_llm.train.batches import TrainingBatch, pack
from tiny_llm.train.tree import Tree, grow

LENGTHS = (64, 96, 128, 160, 192, 256, 320, 384, 448, 512, 640, 1024, 1536, 2304)


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

    def next(self, mix: Mix, limit: int, rng: np.random.Generator) -> TrainingBatch:
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
                return pack(trees, length, self.recipe.prompt_share, self.recipe.prompt_weight, rng)

    def forget(self) -> None:
        """Drop what waits: a new stage has another mix."""
        self.waiting, self.trees = {}, {}
