"""Turns that begin alike, packed as one tree, so that what they share is computed once.

    system and tools ─┬─ question 1 ── call ── result ── answer
                      └─ question 2 ─┬─ answer
                                     └─ think block ── answer

A row holds the tree's tokens in the order of their making. A token stands at its depth, sees its ancestors only, and
has one target for each turn that goes on from it: so each turn is learned exactly as if it stood alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int32]


@dataclass(frozen=True)
class Tree:
    """N tokens, `parents` -1 for the root. After node `at` comes `token`; `learn` marks the model's own words."""

    tokens: Integers  # (N,)
    depths: Integers  # (N,)
    parents: Integers  # (N,)
    at: Integers  # (M,)
    token: Integers  # (M,)
    learn: NDArray[np.bool_]  # (M,)

    def __len__(self) -> int:
        return len(self.tokens)

    def targets_of(self, prompt: list[int], completion: list[int]) -> list[tuple[int, int]]:
        """Return (node, token) for each token of the completion: where it is predicted, and itself."""
        pairs = zip(self.parents.tolist(), self.tokens.tolist(), strict=True)
        children = {pair: node for node, pair in enumerate(pairs)}
        node, targets = -1, []
        text = prompt + completion
        for place, token in enumerate(text):
            if place >= len(prompt):
                targets.append((node, token))
            node = children.get((node, token), -1)  # the last token has no node
        return targets

    def visible(self) -> NDArray[np.bool_]:
        """Whether token i may look at token j: itself and its ancestors. (N, N)"""
        seen = np.eye(len(self), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


def grow(turns: Iterable[tuple[list[int], list[int]]]) -> Tree:
    """The tree of (prompt, completion) pairs. The last token of a completion is only a target, never a node."""
    tokens: list[int] = []
    depths: list[int] = []
    parents: list[int] = []
    children: dict[tuple[int, int], int] = {}
    targets: dict[tuple[int, int], bool] = {}
    for prompt, completion in turns:
        node, text = -1, prompt + completion
        for place, token in enumerate(text):
            if node >= 0:
                targets[node, token] = targets.get((node, token), False) or place >= len(prompt)
            if place == len(text) - 1:
                break
            child = children.setdefault((node, token), len(tokens))
            if child == len(tokens):
                tokens.append(token)
                depths.append(place)
                parents.append(node)
            node = child
    nodes, at = (np.array(x, np.int32) for x in (list(zip(tokens, depths, parents, strict=True)), list(targets)))
    return Tree(nodes[:, 0], nodes[:, 1], nodes[:, 2], at[:, 0], at[:, 1], np.array(list(targets.values())))
