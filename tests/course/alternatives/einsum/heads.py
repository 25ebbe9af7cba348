"""By indices, clipped at the end of the row."""

import mlx.core as mx


class Row:
    def ahead(self, places):
        at = mx.arange(self.tokens.size) + places
        inside = at < self.tokens.size
        at = mx.minimum(at, self.tokens.size - 1)
        return self.tokens[at], inside & self.answer[at] & (self.text[at] == self.text)
