"""Suffix decoding: guess what followed the same words before, found by a suffix automaton.

The automaton knows all substrings of a growing text, how often each occurs, and what follows it. A state stands for all
substrings that end at the same places; `longest` is the length of the longest of them. `link` leads to the state of the
longest suffix that also occurs elsewhere. A text of n tokens has at most 2n states, and a token is added in constant
time on average. (Blumer et al., 1985; for drafts: SuffixDecoding, arXiv:2411.04975)
"""

from collections.abc import Iterable
from collections.abc import Sequence as Row
from dataclasses import dataclass, field
from typing import NamedTuple

from tiny_llm.decode.acceptance import DraftTree
from tiny_llm.engine.request import Sequence, SequenceId

MOST_COUNTED = 64  # suffixes that an added token counts: only a text that repeats a token for long has more
TRUST = 2  # guesses for each token of a match: the longer the text that is the same, the further it will be
SHARED_TOKENS = 200_000  # of a group's earlier answers
MOST_GROUPS = 64  # whose earlier answers are kept: clients choose their salts
BETWEEN = -1  # stands between two answers, where no guess goes on


class Guess(NamedTuple):
    """Tokens that may follow, and the expected number of them that are right, by how often they followed before."""

    tokens: tuple[int, ...] = ()
    expected: float = 0.0


class KnownSuffix(NamedTuple):
    """The longest suffix of a text that the automaton knows: its state and its length."""

    state: int = 0
    length: int = 0


class SuffixAutomaton:
    """Substrings of the tokens added so far. State 0 is the empty substring.

    `counts`: how often the substrings of a state occur, exact but for a text that repeats itself without a break.
    """

    def __init__(self) -> None:
        self.longest = [0]
        self.links = [-1]
        self.following: list[dict[int, int]] = [{}]
        self.counts = [0]
        self.size = 0  # tokens
        self._last = 0

    def extend(self, tokens: Iterable[int]) -> None:
        """Add tokens to the end of the text."""
        for token in tokens:
            self._add(token)

    # ANCHOR: add
    def _add(self, token: int) -> None:
        state = self._new_state(self.longest[self._last] + 1)
        above = self._last
        while above >= 0 and token not in self.following[above]:
            self.following[above][token] = state
            above = self.links[above]
        if above >= 0:
            self.links[state] = self._ending(above, token)
        else:
            self.links[state] = 0
        self._last = state
        self.size += 1
        self._count(state)

    # ANCHOR_END: add

    def _ending(self, above: int, token: int) -> int:
        """Return the state of the longest substring of `above` with the token behind it, split off if need be."""
        state = self.following[above][token]
        if self.longest[state] == self.longest[above] + 1:
            return state
        part = self._new_state(self.longest[above] + 1)
        self.following[part] = dict(self.following[state])
        self.links[part] = self.links[state]
        self.counts[part] = self.counts[state]
        self.links[state] = part
        while above >= 0 and self.following[above].get(token) == state:
            self.following[above][token] = part
            above = self.links[above]
        return part

    def _new_state(self, longest: int) -> int:
        self.longest.append(longest)
        self.links.append(0)
        self.following.append({})
        self.counts.append(0)
        return len(self.longest) - 1

    def _count(self, state: int) -> None:
        """Count one more occurrence of the text's suffixes."""
        for _ in range(MOST_COUNTED):
            if state <= 0:
                break
            self.counts[state] += 1
            state = self.links[state]

    @property
    def repeated(self) -> KnownSuffix:
        """The longest suffix of the text itself that also occurs earlier in it."""
        state = max(0, self.links[self._last])
        return KnownSuffix(state, self.longest[state])

    def follow(self, match: KnownSuffix, token: int) -> KnownSuffix:
        """Return the longest known suffix of a text after one more token; `match` is that of the text before.

        The match may have been found before the automaton was extended. A token that never occurred gives the empty
        suffix, KnownSuffix().
        """
        # TASK w3.7.2: shorten the suffix until the token follows it
        state, length = self.settled(match)
        while state > 0 and token not in self.following[state]:
            state = self.links[state]
            length = self.longest[state]
        if token not in self.following[state]:
            return KnownSuffix()
        return KnownSuffix(self.following[state][token], length + 1)
        # END TASK

    def settled(self, match: KnownSuffix) -> KnownSuffix:
        """Return where a match lies now: states may have been split since it was found."""
        state, length = match
        while state > 0 and self.longest[self.links[state]] >= length:
            state = self.links[state]
        return KnownSuffix(state, length)

    def guess(self, match: KnownSuffix, limit: int, least: float, *, is_end: bool = False) -> Guess:
        """Return the tokens that most often follow a match, up to `limit`; of equally frequent ones any.

        A guess's probability is the number of times that it followed, divided by the number of times that the text
        before it occurred. The line ends before the guess with which the probability of all of them together falls
        under `least`, before BETWEEN, and where nothing followed. `expected` adds up these probabilities. `is_end`: the
        match is the text's own end, so that its last occurrence has nothing behind it. The empty match occurs before
        every token.
        """
        # TASK w3.7.3: the most frequent token, again and again
        state = self.settled(match).state
        seen = self.counts[state] - is_end if state else self.size
        tokens: list[int] = []
        chance, expected = 1.0, 0.0
        while len(tokens) < limit and self.following[state]:
            following = self.following[state]
            token = max(following, key=lambda token: self.counts[following[token]])
            state = following[token]
            chance *= min(1.0, self.counts[state] / max(1, seen))
            if chance < least or token < 0:
                break
            tokens.append(token)
            expected += chance
            seen = self.counts[state]
        return Guess(tuple(tokens), expected)
        # END TASK


@dataclass
class IndexedText:
    """A sequence, the automatons of earlier answers and of its own tokens, and its longest suffix in `earlier`."""

    sequence: Sequence
    earlier: SuffixAutomaton
    own: SuffixAutomaton = field(default_factory=SuffixAutomaton)
    match: KnownSuffix = KnownSuffix()  # noqa: RUF009 (frozen)


class Readers(NamedTuple):
    """The requests that may share earlier answers: those of one tenant with one salt."""

    tenant: str
    salt: str


def readers(sequence: Sequence) -> Readers:
    """Return the group of a sequence's request."""
    return Readers(sequence.request.tenant, sequence.request.salt)


class SuffixDrafter:
    """Suffix decoding: guesses what followed the longest known suffix of the text most often.

    It is looked up in the sequence's own prompt and answer, and in the earlier answers to the same tenant and salt.
    (arXiv:2411.04975)
    """

    def __init__(self, least: float):
        self.least = least  # probability of all guesses of a draft together
        self._texts: dict[SequenceId, IndexedText] = {}
        self._earlier: dict[Readers, SuffixAutomaton] = {}  # the group that was used last stands last

    def propose(self, sequences: Row[Sequence], limits: Row[int]) -> list[DraftTree]:
        return [self._guess(sequence, limit) for sequence, limit in zip(sequences, limits, strict=True)]

    def _guess(self, sequence: Sequence, limit: int) -> DraftTree:
        text = self._texts.get(sequence.id)
        if text is None:
            text = self._texts[sequence.id] = IndexedText(sequence, self._answers_of(readers(sequence)))
        earlier = text.earlier  # the states of `match` are its own, also where the group has begun a new one since
        for token in sequence.tokens[text.own.size :]:
            text.own.extend([token])
            text.match = earlier.follow(text.match, token)
        least = self.least
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
            group = readers(text.sequence)
            if self._answers_of(group).size > SHARED_TOKENS:
                del self._earlier[group]
            self._answers_of(group).extend([*text.sequence.output, BETWEEN])

    def _answers_of(self, group: Readers) -> SuffixAutomaton:
        """Return the earlier answers of a group. They are kept for the MOST_GROUPS groups that were used last."""
        found = self._earlier.pop(group, None) or SuffixAutomaton()
        self._earlier[group] = found
        if len(self._earlier) > MOST_GROUPS:
            oldest = next(iter(self._earlier))
            del self._earlier[oldest]
        return found
