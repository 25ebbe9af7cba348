"""The automaton's walks, by recursion and with the longest suffixes first."""

from tiny_llm.engine.suffix import Guess, KnownSuffix


class SuffixAutomaton:
    def follow(self, match, token):
        match = self.settled(match)
        after = self.following[match.state].get(token)
        if after is not None:
            return KnownSuffix(after, match.length + 1)
        if match.state == 0:
            return KnownSuffix()
        link = self.links[match.state]
        return self.follow(KnownSuffix(link, self.longest[link]), token)

    def guess(self, match, limit, least, *, is_end=False):
        state = self.settled(match).state
        before = (self.counts[state] if state else self.size) - int(is_end)
        tokens, chances = (), [1.0]
        while len(tokens) < limit and self.following[state]:
            count, token = max((self.counts[after], token) for token, after in self.following[state].items())
            chance = chances[-1] * count / before
            if token == -1 or chance < least:
                break
            tokens, chances = (*tokens, token), [*chances, chance]
            state, before = self.following[state][token], count
        return Guess(tokens, sum(chances[1:]))
