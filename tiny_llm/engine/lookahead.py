"""Lookahead decoding: the model guesses for itself, in rows that a step computes beside the next token.

A window of guesses lies behind each text, several levels deep:

    level 0    a  b  c          row 0 follows the text: a is a guess at the next token, b at the token after it
    level 1    d  e  f          d is what the model gave behind a in an earlier step, e behind b, …
    level 2    g  h  i          g is what it gave behind "a d"

The window is a tree: the tokens of level 0 are a line, and under each hangs a column. In a step the model gives a token
behind the end of each column (Jacobi iteration, arXiv:2002.03629). Each column and its new token then join a pool of
n-grams, and every level moves up by one. Lines of the pool that begin with the text's last token are the guesses worth
most, and they are verified beside the window. (arXiv:2402.02057)
"""

from collections import OrderedDict
from collections.abc import Sequence as Row
from dataclasses import dataclass, field

from tiny_llm.decode.acceptance import DraftTree
from tiny_llm.engine.request import Seen, Sequence, SequenceId

DEPTH = 3  # levels of a window; an n-gram has a token more
LINES = 3  # of the pool that a draft verifies
MOST_LINES = 16  # of the pool that begin with one token; the oldest are forgotten


@dataclass
class Window:
    """The guesses behind one text: `levels[l][c]`, and the n-grams found so far by their first token."""

    levels: list[list[int]]
    pool: dict[int, OrderedDict[tuple[int, ...], None]] = field(default_factory=dict)

    def lines(self) -> list[list[int]]:
        """Return the line of tokens from the text to the end of each column."""
        top = self.levels[0]
        return [[*top[: c + 1], *(level[c] for level in self.levels[1:])] for c in range(len(top))]

    def shift(self, new: list[int]) -> None:
        """Take in the model's token behind each column: pool the n-grams, and move every level up."""
        for c, token in enumerate(new):
            first, *rest = [level[c] for level in self.levels]
            self.keep(first, (*rest, token))
        self.levels.append(new)
        if len(self.levels) > DEPTH:
            self.levels.pop(0)

    def keep(self, first: int, rest: tuple[int, ...]) -> None:
        """Add an n-gram to the pool, as the newest with its first token."""
        lines = self.pool.setdefault(first, OrderedDict())
        lines.pop(rest, None)
        lines[rest] = None
        if len(lines) > MOST_LINES:
            lines.popitem(last=False)

    def known(self, first: int) -> list[tuple[int, ...]]:
        """Return what followed a token in the newest n-grams."""
        return list(reversed(self.pool.get(first, ())))[:LINES]


class LookaheadDrafter:
    """Drafts a tree of n-grams and the window of each sequence."""

    taps = ()

    def __init__(self) -> None:
        self._windows: dict[SequenceId, Window] = {}

    def propose(self, sequences: Row[Sequence], limits: Row[int]) -> list[DraftTree]:
        """Return the n-grams after each sequence's last token, and then its window as far as the limit allows."""
        return [self._draft(sequence, limit) for sequence, limit in zip(sequences, limits, strict=True)]

    def observe(self, seen: Row[Seen]) -> None:
        """Take in the model's tokens behind the columns of the windows."""
        for share, result, _ in seen:
            window = self._windows.get(share.sequence)
            if window is None or len(result.drawn) < 2:
                continue
            draft = share.draft
            new = []
            for line, column in zip(window.lines(), zip(*window.levels, strict=True), strict=True):
                node = draft.find(line)
                new.append(column[-1] if node is None else result.drawn[node + 1])
            window.shift(new)

    def copy_blocks(self, pairs: Row[tuple[int, int]]) -> None:
        """Do nothing: this drafter keeps no blocks."""

    def forget(self, ended: Row[SequenceId]) -> None:
        """Drop the windows of sequences that have ended or were preempted."""
        for name in ended:
            self._windows.pop(name, None)

    def _draft(self, sequence: Sequence, limit: int) -> DraftTree:
        window = self._windows.get(sequence.id)
        if window is None:
            width = max(1, (limit - LINES * DEPTH) // DEPTH)
            window = self._windows[sequence.id] = Window([_first_level(sequence, width)])
        found = window.known(sequence.tokens[-1])
        return DraftTree.merged([*found, *window.lines()])


def _first_level(sequence: Sequence, width: int) -> list[int]:
    """Return guesses to begin with: the last tokens of the text, repeated where it is shorter."""
    tokens = sequence.tokens[-width:]
    return (tokens * width)[:width]
