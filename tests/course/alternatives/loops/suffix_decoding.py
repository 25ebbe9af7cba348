"""The automaton's walks, step by step."""

from tiny_llm.engine.suffix import Guess, KnownSuffix


class SuffixAutomaton:
    def follow(self, match, token):
        state, length = self.settled(match)
        while True:
            if token in self.following[state]:
                return KnownSuffix(self.following[state][token], length + 1)
            if state == 0:
                return KnownSuffix(0, 0)
            state = self.links[state]
            length = self.longest[state]

    def guess(self, match, limit, least, *, is_end=False):
        state = self.settled(match).state
        times = self.size if state == 0 else self.counts[state]
        if is_end:
            times -= 1
        tokens, together, expected = [], 1.0, 0.0
        for _ in range(limit):
            best, most = None, 0
            for token, after in self.following[state].items():
                if self.counts[after] >= most:
                    best, most = token, self.counts[after]
            if best is None or best < 0:
                break
            together = together * most / times
            if together < least:
                break
            tokens.append(best)
            expected = expected + together
            state = self.following[state][best]
            times = most
        return Guess(tuple(tokens), expected)
