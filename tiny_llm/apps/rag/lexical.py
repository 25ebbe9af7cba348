"""BM25: rank chunks by the words that they share with a query. (Robertson and Zaragoza, 2009; by the package bm25s)

score = Σ over the query's words  idf(word) · tf / (tf + k1 · (1 - b + b · length / average length))
idf(word) = ln(1 + (N - n + 0.5) / (n + 0.5))   N chunks, of which n have the word
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from tiny_llm.apps.rag.words import all_words, content_words

K1, B = 1.2, 0.75
INSTALL = "search needs the package bm25s: install it with pip install 'tiny-llm[rag]'"


class LexicalIndex:
    """An index of texts in memory."""

    def __init__(self, texts: Sequence[str]):
        try:
            import bm25s
        except ImportError:
            raise ValueError(INSTALL) from None
        rows = [all_words(text) for text in texts]
        self.sets = [frozenset(row) for row in rows]
        self.counts: Counter[str] = Counter()  # in how many texts a word is
        for words in self.sets:
            self.counts.update(words)
        self._bm25 = bm25s.BM25(method="lucene", k1=K1, b=B)
        self._is_empty = not self.counts
        if not self._is_empty:
            self._bm25.index([row or [""] for row in rows], show_progress=False)

    def search(self, query: str, k: int) -> list[tuple[int, float]]:
        """Return the numbers of the k best texts, best first, each with its score above 0."""
        words = [word for word in query_words(query) if word in self.counts]
        if not words:
            return []
        scores = self._bm25.get_scores(words)
        order = np.argsort(-scores, kind="stable")[:k]
        return [(int(number), float(scores[number])) for number in order if scores[number] > 0]

    def idf(self, word: str) -> float:
        """Return the weight of a word; a word that no text has gets the most."""
        having = self.counts[word]
        return math.log(1 + (len(self.sets) - having + 0.5) / (having + 0.5))

    def coverage(self, query: str, number: int) -> float:
        """Return the share of the query's different words, weighted by idf, that a text has: 0 to 1."""
        words = set(query_words(query))
        held = words & self.sets[number]
        total = sum(self.idf(word) for word in words)
        return sum(self.idf(word) for word in held) / total if total else 0.0


def query_words(query: str) -> list[str]:
    """Return a query's content words; all of its words where it has only common ones."""
    return content_words(query) or all_words(query)
