"""What one forward pass computes."""

from dataclasses import dataclass, field
from typing import NamedTuple

from tiny_llm.engine.request import Sequence


class Entry(NamedTuple):
    """A sequence's share of a step: tokens[start : start + length]; `samples` where a token is drawn after its last."""

    sequence: Sequence
    start: int
    length: int
    samples: bool

    @property
    def searches(self) -> bool:
        """Whether the log-probabilities after its last token extend a beam."""
        return self.sequence.request.searches and self.start + self.length == len(self.sequence.tokens)


@dataclass
class Step:
    """One forward pass. `copies` are pairs of blocks (source, target) to copy before it, in this order."""

    number: int
    entries: list[Entry] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(entry.length for entry in self.entries)
