"""Guess the next tokens of a sequence. A guess may be wrong: it costs time, and never changes an answer."""

from collections import defaultdict
from collections.abc import Sequence as Row
from dataclasses import dataclass, field
from typing import Protocol

from tiny_llm.config.speculation import SpeculationConfig
from tiny_llm.decode.acceptance import DraftTree
from tiny_llm.engine.request import Sequence, SequenceId
from tiny_llm.engine.suffix import KnownSuffix, SuffixAutomaton

TRUST = 2  # guesses for each token of a match: the longer the text that is the same, the further it will be
SHARED_TOKENS = 200_000  # of a tenant's earlier answers
BETWEEN = -1  # stands between two answers, where no guess goes on


class Drafter(Protocol):
    """Proposes drafts for sequences that decode, and is told which sequences have ended."""

    def propose(self, sequences: Row[Sequence], limits: Row[int]) -> list[DraftTree]:
        """Return guesses for the tokens behind each sequence's tokens, limits[i] of them at most."""

    def forget(self, ended: Row[SequenceId]) -> None:
        """Drop the data of sequences that have ended or were preempted."""


@dataclass
class IndexedText:
    """A sequence, the automaton of its own tokens, and its longest suffix that is known from earlier answers."""

    sequence: Sequence
    own: SuffixAutomaton = field(default_factory=SuffixAutomaton)
    match: KnownSuffix = KnownSuffix()  # noqa: RUF009 (frozen)


class SuffixDrafter:
    """Suffix decoding: guesses what followed the longest known suffix of the text most often.

    It is looked up in the sequence's own prompt and answer, and in the earlier answers to the same tenant.
    (arXiv:2411.04975)
    """

    def __init__(self, config: SpeculationConfig):
        self.config = config
        self._texts: dict[SequenceId, IndexedText] = {}
        self._earlier: defaultdict[str, SuffixAutomaton] = defaultdict(SuffixAutomaton)

    def propose(self, sequences: Row[Sequence], limits: Row[int]) -> list[DraftTree]:
        return [self._guess(sequence, limit) for sequence, limit in zip(sequences, limits, strict=True)]

    def _guess(self, sequence: Sequence, limit: int) -> DraftTree:
        text = self._texts.setdefault(sequence.id, IndexedText(sequence))
        earlier = self._earlier[sequence.request.tenant]
        for token in sequence.tokens[text.own.size :]:
            text.own.extend([token])
            text.match = earlier.follow(text.match, token)
        least = self.config.least
        repeated = text.own.repeated
        here = text.own.guess(repeated, min(limit, TRUST * repeated.length), least, is_end=True)
        before = earlier.guess(text.match, min(limit, TRUST * text.match.length), least)
        best = max(here, before, key=lambda guess: guess.expected)
        return DraftTree.chain(best.tokens)

    def forget(self, ended: Row[SequenceId]) -> None:
        for name in ended:
            text = self._texts.pop(name, None)
            if text is None or text.sequence.finish_reason is None:
                continue
            tenant = text.sequence.request.tenant
            if self._earlier[tenant].size > SHARED_TOKENS:
                del self._earlier[tenant]
            self._earlier[tenant].extend([*text.sequence.output, BETWEEN])


def new_drafter(config: SpeculationConfig) -> Drafter | None:
    """Make the drafter of these settings; None for "none"."""
    return SuffixDrafter(config) if config.drafter == "suffix" else None
