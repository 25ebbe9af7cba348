"""Tokens whose positions are not their slots: behind holes, in permuted blocks, or in a tree of drafts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from tiny_llm.cache.tables import padded_tables
from tiny_llm.cache.view import Span, View

if TYPE_CHECKING:
    from tiny_llm.cache.paged import PagedBatch, PagedPool

Numbers = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
WORD = 64  # bits, and the most tokens of a tree
BITS = np.uint64(1) << np.arange(WORD, dtype=np.uint64)


@dataclass(frozen=True)
class Scattered:
    """One sequence's T new tokens and the S slots that they look at."""

    blocks: tuple[int, ...]
    positions: Numbers  # (T,) of the tokens
    slots: Numbers  # (T,) of the tokens
    held: Numbers  # (S,) positions of the tokens in all slots, -1 in an unused slot
    visible: Mask  # (T, S) which slots each token sees
    in_order: bool  # slot and position of all tokens before the new ones are the same number

    @classmethod
    def of(cls, view: View, start: int, length: int, parents: Sequence[int] | None = None) -> "Scattered":
        """Place tokens from position `start` on, in a row or, with `parents`, in a tree.

        parents[t] is the number of the token before token t, -1 for a token that follows the tokens that are held. A
        token of a tree stands one position behind its parent, and sees its ancestors among the new tokens.
        """
        if parents is None:
            parents = range(-1, length - 1)
        depths, related = ancestry(parents)
        before = np.arange(view.first) if view.held is None else np.array(view.held)
        assert len(before) == view.first, (len(before), view.first)
        positions = (start + depths).astype(np.int32)
        usable = (before >= 0) & (before < start)
        seen = np.broadcast_to(usable, (length, view.first))
        end = view.first + length
        return cls(
            blocks=view.blocks,
            positions=positions,
            slots=np.arange(view.first, end, dtype=np.int32),
            held=np.concatenate([before, positions]).astype(np.int32),
            visible=np.concatenate([seen, related], axis=1),
            in_order=view.held is None and view.first == start,
        )

    def mask(self, window: int | None) -> mx.array:
        """Return what each token sees in a layer with this window, (T, S)."""
        visible = self.visible
        if window is not None:
            visible = visible & (self.held[None] > self.positions[:, None] - window)
        return mx.array(visible)

    @property
    def fits_words(self) -> bool:
        """Whether `near` says all that there is to say."""
        return self.in_order and len(self.slots) <= WORD

    def near(self) -> npt.NDArray[np.uint64]:
        """Return a word for each new token, (T,): bit d says whether it sees the slot d before its own."""
        words = []
        for token, slot in enumerate(self.slots):
            seen = self.visible[token, slot::-1]  # from its own slot backwards
            bits = BITS[: len(seen)]
            seen = seen[:WORD]
            words.append(bits[seen].sum())
        return np.array(words, np.uint64)

    @property
    def unused(self) -> mx.array | None:
        """The slots that hold no token, whose old numbers must not reach a sum; None where there are none."""
        empty = np.flatnonzero(self.held < 0)
        if not len(empty):
            return None
        return mx.array(empty.astype(np.uint32))


def ancestry(parents: Sequence[int]) -> tuple[Numbers, Mask]:
    """Return each token's depth, (T,) int32, and whether it sees each of the tokens, (T, T) bool: row t is token t's.

    A token with the parent -1 has the depth 0, every other token one more than its parent. A token sees itself, its
    parent, the parent's parent and so on. A parent has a smaller number than its children.
    """
    # TASK w3.9.1: one deeper than the parent, which sees all other ancestors
    length = len(parents)
    depths = np.zeros(length, np.int32)
    related = np.eye(length, dtype=np.bool_)
    for token, parent in enumerate(parents):
        assert -1 <= parent < token, (token, parent)
        if parent >= 0:
            depths[token] = depths[parent] + 1
            related[token] |= related[parent]
    return depths, related
    # END TASK


class TreeArrays(NamedTuple):
    """The trees of a step as a kernel reads them."""

    tables: mx.array  # (R, M) int32, each tree's blocks in order
    spans: list[tuple[int, int]]  # how many tokens each tree has, and its sequence with them
    near: mx.array  # (T,) uint64, see `Scattered.near`


class ScatteredBatch:
    """The cache of a step with scattered sequences behind `num_plain` tokens of others, which `plain` attends."""

    def __init__(self, pool: "PagedPool", plain: "PagedBatch | None", num_plain: int, spans: Sequence[Span]):
        self.pool, self.plain, self.num_plain = pool, plain, num_plain
        self.sequences = [Scattered.of(span.view, span.start, span.length, span.parents) for span in spans]
        blocks = []
        slots = []
        for sequence in self.sequences:
            table = np.array(sequence.blocks)
            places, rest = np.divmod(sequence.slots, pool.block_size)
            blocks.append(table[places])
            slots.append(rest)
        row_of_blocks = np.concatenate(blocks)
        row_of_slots = np.concatenate(slots)
        self._blocks = mx.array(row_of_blocks.astype(np.uint32))  # the type of an index
        self._slots = mx.array(row_of_slots.astype(np.uint32))
        self._trees = None
        if pool.paged.prefill is not None and all(sequence.fits_words for sequence in self.sequences):
            self._trees = self._tree_arrays()

    def begin(self, num_tokens: int) -> mx.array:
        """Return the positions of all tokens, (T,) int32."""
        positions = [mx.array(sequence.positions) for sequence in self.sequences]
        if self.plain is not None:
            positions.insert(0, self.plain.begin(self.num_plain))
        return mx.concatenate(positions)

    def open_buffers(self, num_tokens: int) -> None:
        """Return None: these steps go through `attend`."""

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """Write k and v (T, Hkv, D) of all sequences; return what q (T, Hq, D) sees, (T, Hq, D)."""
        row = self.num_plain
        parts = []
        if self.plain is not None:
            parts.append(self.plain.attend(layer, q[:row], k[:row], v[:row]))
        self.pool.write(layer, self._blocks, self._slots, k[row:], v[row:])
        if self._trees is not None and self.pool.windows[layer] is None:
            parts.append(self._attend_trees(layer, q[row:], self._trees))
            return parts[0] if len(parts) == 1 else mx.concatenate(parts)
        for sequence in self.sequences:
            mine = q[row : row + len(sequence.slots)]
            parts.append(self._attend(layer, sequence, mine))
            row += len(sequence.slots)
        return parts[0] if len(parts) == 1 else mx.concatenate(parts)

    def _tree_arrays(self) -> TreeArrays:
        tables = []
        spans = []
        words = []
        for sequence in self.sequences:
            tables.append(sequence.blocks)
            spans.append((len(sequence.slots), len(sequence.held)))
            words.append(sequence.near())
        padded = mx.array(padded_tables(tables))
        near = mx.array(np.concatenate(words))
        return TreeArrays(padded, spans, near)

    def _attend_trees(self, layer: int, q: mx.array, trees: TreeArrays) -> mx.array:
        """Return what the tokens of all trees see, by the kernel that reads the pool's blocks where they lie."""
        pool = self.pool
        assert pool.paged.prefill is not None
        keys, values = pool.buffers(layer)
        return pool.paged.prefill(q, keys, values, trees.tables, trees.spans, pool.scale, None, trees.near)

    def _attend(self, layer: int, sequence: Scattered, q: mx.array) -> mx.array:
        """Return what the tokens of one sequence see."""
        pool = self.pool
        keys, values = pool.sequence(layer, sequence.blocks, len(sequence.held))
        unused = sequence.unused
        if unused is not None:
            values[:, unused] = 0  # a masked slot is multiplied by 0, and 0 · NaN is NaN
        window = pool.windows[layer]
        mask = sequence.mask(window)
        return pool.ops.masked_attention(q, keys, values, pool.scale, mask)
