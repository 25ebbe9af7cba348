"""Which slots of a pool a sequence's tokens lie in: a token's position is not its slot."""

from typing import NamedTuple, Protocol


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


class Span(Protocol):
    """A sequence's tokens in a step, as a store reads them: `length` tokens from position `start` on.

    They look at the slots of `view`. parents[t] is the number of the token before token t in a tree of drafts, -1 for
    one that follows the last token before the step; None for tokens in a row. `scattered`: positions and slots differ,
    or the tokens make a tree.
    """

    @property
    def view(self) -> View: ...

    @property
    def start(self) -> int: ...

    @property
    def length(self) -> int: ...

    @property
    def parents(self) -> tuple[int, ...] | None: ...

    @property
    def scattered(self) -> bool: ...
