"""The stream of lessons as batches for training; every state of it fits into JSON."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

import numpy as np

from tiny_llm.pocket.lessons.dialogue import encode_turns
from tiny_llm.pocket.lessons.mix import Mix
from tiny_llm.pocket.recipe import Recipe
from tiny_llm.train.batches import TrainingBatch, pack
from tiny_llm.train.tree import Tree, grow

LENGTHS = (64, 96, 128, 160, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 2304, 3072, 4096)


class DrawnLesson(NamedTuple):
    """A lesson of the stream by its number; the kind was drawn by the weights of that time."""

    number: int
    kind: str


@dataclass
class LessonStream:
    """Lessons of the recipe's stream, gathered by length; `lesson` is the number of the next one.

    `waiting` holds the lessons of each length that are drawn but not yet in a batch. They are made again from their
    number and kind when training resumes.
    """

    recipe: Recipe
    encode: Callable[[str], list[int]]
    lesson: int = 0
    waiting: dict[int, list[DrawnLesson]] = field(default_factory=dict)
    trees: dict[int, Tree] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        return {"lesson": self.lesson, "waiting": [[length, *lessons] for length, lessons in self.waiting.items()]}

    def restore(self, state: dict[str, Any]) -> None:
        self.lesson, self.trees = state["lesson"], {}
        self.waiting = {}
        for length, *lessons in state["waiting"]:
            self.waiting[length] = [DrawnLesson(*lesson) for lesson in lessons]

    def draw(self, mix: Mix) -> DrawnLesson:
        """Draw the next lesson's kind by the weights of the mix."""
        number = self.lesson
        self.lesson += 1
        random = Random(f"{self.recipe.seed}/kind/{number}")
        (kind,) = random.choices(list(mix.weights), list(mix.weights.values()))
        return DrawnLesson(number, kind)

    def tree(self, drawn: DrawnLesson) -> Tree:
        """Make the lesson as one tree of tokens."""
        only = Mix({drawn.kind: 1.0})
        dialogues = only.lesson(self.recipe.seed, drawn.number)
        return grow(turn for dialogue in dialogues for turn in encode_turns(dialogue, self.encode))

    def next(self, mix: Mix, limit: int, rng: np.random.Generator) -> TrainingBatch:
        """The next full batch of lessons of at most `limit` tokens. `rng` picks the prompt tokens to learn."""
        while True:
            drawn = self.draw(mix)
            tree = self.tree(drawn)
            if len(tree) > limit:
                continue
            length = next(length for length in LENGTHS if length >= len(tree))
            row = self.waiting.setdefault(length, [])
            row.append(drawn)
            self.trees[drawn.number] = tree
            if len(row) >= max(1, self.recipe.step_tokens // length):
                del self.waiting[length]
                trees = [self.trees.pop(each.number) if each.number in self.trees else self.tree(each) for each in row]
                return pack(trees, length, self.recipe.prompt_share, self.recipe.prompt_weight, rng)

    def forget(self) -> None:
        """Drop what waits: a new stage has another mix."""
        self.waiting, self.trees = {}, {}
