"""Tokens whose positions are not their slots: behind holes, in permuted blocks, or in a tree of drafts."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from tiny_llm.cache.view import View

Numbers = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Scattered:
    """One sequence's T new tokens and the S slots that they look at.

    `positions` and `slots` (T,) are those of the tokens, `held` (S,) the positions in all slots, -1 in an unused one,
    `visible` (T, S) what each token sees.
    """

    blocks: tuple[int, ...]
    positions: Numbers
    slots: Numbers
    held: Numbers
    visible: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, view: View, start: int, length: int, parents: Sequence[int] | None = None) -> "Scattered":
        """Tokens from position `start` on, in a row or, with `parents`, in a tree.

        parents[t] is the number of the token before token t, -1 for one that follows the tokens that are held. A token
        of a tree stands one position behind its parent, and sees its ancestors among the new tokens.
        """
        parents = range(-1, length - 1) if parents is None else parents
        depth = np.zeros(length, np.int32)
        related = np.eye(length, dtype=np.bool_)  # (T, T): itself and its ancestors
        for token, parent in enumerate(parents):
            assert -1 <= parent < token, (token, parent)
            if parent >= 0:
                depth[token] = depth[parent] + 1
                related[token] |= related[parent]
        before = np.arange(view.first) if view.held is None else np.array(view.held)
        assert len(before) == view.first, (len(before), view.first)
        positions = (start + depth).astype(np.int32)
        seen = np.broadcast_to((before >= 0) & (before < start), (length, view.first))
        return cls(
            view.blocks,
            positions,
            np.arange(view.first, view.first + length, dtype=np.int32),
            np.concatenate([before, positions]).astype(np.int32),
            np.concatenate([seen, related], axis=1),
        )

    def mask(self, window: int | None) -> mx.array:
        """What each token sees in a layer with this window, (T, S)."""
        visible = self.visible
        if window is not None:
            visible = visible & (self.held[None] > self.positions[:, None] - window)
        return mx.array(visible)

    @property
    def unused(self) -> mx.array | None:
        """The slots that hold nothing, whose old numbers must not reach a sum; None where there are none."""
        empty = np.flatnonzero(self.held < 0)
        return mx.array(empty.astype(np.uint32)) if len(empty) else None
