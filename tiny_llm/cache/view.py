"""Which slots of a pool a sequence's tokens lie in: a token's position is not its slot."""

from typing import NamedTuple


class View(NamedTuple):
    """Where the K and V lie that the next tokens of a sequence see.

    `blocks` is the sequence's block table up to the last of these tokens. They are written to the slots from `first`
    on, counted through the blocks: slot 9 in blocks of 4 is slot 1 of the third block. `held` are the positions of the
    tokens in the slots before `first`, -1 in an unused slot; None where slot and position are the same number, which is
    so until tokens are evicted or blocks permuted.
    """

    blocks: tuple[int, ...]
    first: int
    held: tuple[int, ...] | None = None


class Span(NamedTuple):
    """A sequence's tokens in a step: `length` tokens from position `start` on, over the slots of `view`.

    parents[t] is the number of the token before token t in a tree of drafts, -1 for the last token before the step;
    None for tokens in a row.
    """

    view: View
    start: int
    length: int
    parents: tuple[int, ...] | None = None

    @property
    def scattered(self) -> bool:
        """Whether positions and slots differ, or the tokens make a tree."""
        view = self.view
        return view.held is not None or view.first != self.start or self.parents is not None
