"""Rows of texts, or of repeated random tokens, ready for a training step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from tiny_llm.train.tree import Tree

PAD = 0


@dataclass(frozen=True)
class TrainingBatch:
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


def pack(
    trees: Sequence[Tree], length: int, prompt_share: float, prompt_weight: float, rng: np.random.Generator
) -> TrainingBatch:
    """Trees as rows of `length` tokens.

    All of the model's own words are targets; of the prompts' a share, chosen by `rng`, which counts `prompt_weight`.
    """
    rows = len(trees)
    tokens, positions = np.full((rows, length), PAD, np.int32), np.zeros((rows, length), np.int32)
    visible = np.broadcast_to(np.eye(length, dtype=bool), (rows, length, length)).copy()
    at, targets, weights = [], [], []
    for row, tree in enumerate(trees):
        tokens[row, : len(tree)], positions[row, : len(tree)] = tree.tokens, tree.depths
        visible[row, : len(tree), : len(tree)] = tree.visible()
        kept = tree.learn | (rng.random(len(tree.learn)) < prompt_share)
        at.append(tree.at[kept] + row * length)
        targets.append(tree.token[kept])
        weights.append(np.where(tree.learn[kept], 1.0, prompt_weight))
    return _batch(tokens, positions, visible, np.concatenate(at), np.concatenate(targets), np.concatenate(weights))


def repeated(period: float, alphabet: float, vocab: int, step_tokens: int, rng: np.random.Generator) -> TrainingBatch:
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
) -> TrainingBatch:
    return TrainingBatch(
        mx.array(tokens.reshape(-1)),
        mx.array(positions),
        mx.array(visible),
        mx.array(at.astype(np.int32)),
        mx.array(targets.astype(np.int32)),
        mx.array(weights.astype(np.float32)),
    )
