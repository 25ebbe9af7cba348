"""Sample the kinds of lessons by error: measure what share of each kind's answers is wrong, and weigh kinds by it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.pocket.lessons.dialogue import encode_turns
from tiny_llm.pocket.lessons.mix import Mix
from tiny_llm.train.batches import pack
from tiny_llm.train.differentiable import TreeAttention
from tiny_llm.train.tree import Tree, grow

EncodedTurn = tuple[list[int], list[int]]  # prompt and completion
SEED = -1  # no training's seed; the evaluation's are words
BATCH_TOKENS = 4096
ROUND = 32  # rows of a batch are padded to a multiple of it
TRIES = 4  # lessons drawn for one that is short enough


@dataclass(frozen=True)
class Sampling:
    """When errors are measured and how they count."""

    every: int = 1_000_000  # tokens between two measurements
    lessons: int = 40  # of each kind
    floor: float = 0.1  # added to each error, so that a kind without errors is not forgotten


@dataclass(frozen=True)
class MeasuredLesson:
    """A lesson's tree and its different turns."""

    tree: Tree
    turns: list[EncodedTurn]


def by_error(mix: Mix, errors: dict[str, float], floor: float) -> Mix:
    """Return the mix with each weight times (floor + error), normalised. A kind without a measurement has error 1."""
    weights = {}
    for kind, weight in mix.weights.items():
        weights[kind] = weight * (floor + errors.get(kind, 1.0))
    total = sum(weights.values())
    return Mix({kind: weight / total for kind, weight in weights.items()})


def error_lessons(kind: str, number: int, limit: int, encode: Callable[[str], list[int]]) -> list[MeasuredLesson]:
    """Return up to `number` lessons of a kind, of at most `limit` tokens: the same ones each time, not trained on."""
    only = Mix({kind: 1.0})
    found: list[MeasuredLesson] = []
    for index in range(TRIES * number):
        turns: list[EncodedTurn] = []
        for dialogue in only.lesson(SEED, index):
            turns += [turn for turn in encode_turns(dialogue, encode) if turn not in turns]
        tree = grow(turns)
        if len(tree) <= limit:
            found.append(MeasuredLesson(tree, turns))
        if len(found) == number:
            break
    return found


def measured_error(model: Qwen3, lessons: Sequence[MeasuredLesson]) -> float:
    """Return the share of answers with a token that is not the likeliest one, given the right tokens before it."""
    order = sorted(lessons, key=lambda lesson: len(lesson.tree))
    wrong = total = 0
    while order:
        length = -(-len(order[-1].tree) // ROUND) * ROUND
        rows = max(1, BATCH_TOKENS // length)
        chosen = order[-rows:]
        order = order[:-rows]
        wrong += wrong_answers(model, chosen, length)
        total += sum(len(lesson.turns) for lesson in chosen)
    return round(wrong / max(1, total), 4)


def wrong_answers(model: Qwen3, lessons: Sequence[MeasuredLesson], length: int) -> int:
    """Return the number of wrong answers in lessons that share a batch, as rows of `length` tokens."""
    trees = [lesson.tree for lesson in lessons]
    batch = pack(trees, length, 0.0, 0.0, np.random.default_rng(0))
    hidden = model.hidden_states(batch.tokens, TreeAttention(batch.positions, batch.visible))
    likeliest = mx.argmax(model.logits(hidden[batch.at]), axis=-1)
    missed_at = np.flatnonzero(np.array(likeliest != batch.targets))
    nodes = np.array(batch.at)[missed_at].tolist()
    tokens = np.array(batch.targets)[missed_at].tolist()
    missed = set(zip(nodes, tokens, strict=True))
    wrong = 0
    for row, lesson in enumerate(lessons):
        for prompt, completion in lesson.turns:
            targets = lesson.tree.targets_of(prompt, completion)
            wrong += any((row * length + node, token) in missed for node, token in targets)
    return wrong
