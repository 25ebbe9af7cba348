"""A suffix automaton: all substrings of a growing text, how often each occurs, and what follows it.

A state stands for all substrings that end at the same places; `longest` is the length of the longest of them. `link`
leads to the state of the longest suffix that also occurs elsewhere. A text of n tokens has at most 2n states, and a
token is added in constant time on average. (Blumer et al., 1985; for drafts: SuffixDecoding, arXiv:2411.04975)
"""

from collections.abc import Iterable
from typing import NamedTuple

MOST_COUNTED = 64  # suffixes that an added token counts: only a text that repeats a token for long has more


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
        """Return the longest known suffix of a text after one more token; `match` is that of the text before."""
        state, length = self.settled(match)
        while state > 0 and token not in self.following[state]:
            state = self.links[state]
            length = self.longest[state]
        if token not in self.following[state]:
            return KnownSuffix()
        return KnownSuffix(self.following[state][token], length + 1)

    def settled(self, match: KnownSuffix) -> KnownSuffix:
        """Return where a match lies now: states may have been split since it was found."""
        state, length = match
        while state > 0 and self.longest[self.links[state]] >= length:
            state = self.links[state]
        return KnownSuffix(state, length)

    def guess(self, match: KnownSuffix, limit: int, least: float, *, is_end: bool = False) -> Guess:
        """Return the tokens that most often follow a match, up to `limit`.

        It stops where the probability of all of them together falls under `least`. `is_end`: the match is the text's
        own end, and its last occurrence has nothing behind it.
        """
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
