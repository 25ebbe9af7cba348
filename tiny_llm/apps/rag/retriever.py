"""Find the passages for a question: lexical and vector search, fused, reranked, and without near copies.

method     rankings
lexical    BM25
vectors    cosine of the embedder's vectors
fused      both, merged by reciprocal rank
reranked   the fused list's head, sorted by a reranker's probability of "yes"
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from tiny_llm.apps.rag.chunks import Chunk
from tiny_llm.apps.rag.index import Index
from tiny_llm.apps.rag.steps import fuse
from tiny_llm.apps.rag.words import content_words
from tiny_llm.config.fields import require, shown
from tiny_llm.config.prompts import Passage

METHODS = ("lexical", "vectors", "fused", "reranked")
CANDIDATES = 50  # of each ranking
RERANKED = 20  # of the fused list
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"


class Ranks(Protocol):
    """A loaded reranker: for each document the probability that it answers the query."""

    def rank(self, query: str, documents: Sequence[str], instruction: str | None = None) -> list[float]: ...


class Hit(NamedTuple):
    """A chunk that was found. `place`: its place among all chunks, by document; scores compare within one search."""

    chunk: Chunk
    score: float
    place: int


@dataclass
class Findings:
    """The hits for a question, best first.

    `coverage`: the largest share of the question's words, weighted by idf, that one of the hits has: 0 to 1.
    """

    query: str
    hits: list[Hit] = field(default_factory=list)
    coverage: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Within it the time counts for a stage."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begin


class Retriever:
    """Searches an index. `method`: one of METHODS; None for the best that the index and the reranker allow.

    `diversity` from 0 to 1: how much a hit's likeness to better hits counts against it (maximal marginal relevance).
    """

    def __init__(
        self, index: Index, *, reranker: Ranks | None = None, method: str | None = None, diversity: float = 0.0
    ):
        require(0 <= diversity <= 1, f"diversity: expected a number from 0 to 1, found {shown(diversity)}")
        self.index, self.reranker, self.diversity = index, reranker, diversity
        self.method = method or self._best_method()
        known = ", ".join(METHODS)
        require(self.method in METHODS, f"method: expected one of {known}, found {shown(method)}")
        needs_vectors = self.method in ("vectors", "fused")
        has_vectors = index.embedder is not None
        remedy = "name one with --embedder, or choose lexical"
        require(not needs_vectors or has_vectors, f"method: {self.method} needs an embedder; {remedy}")
        can_rerank = self.method != "reranked" or reranker is not None
        require(can_rerank, "method: reranked needs a reranker; name one with --reranker")

    def _best_method(self) -> str:
        if self.reranker is not None:
            return "reranked"
        return "lexical" if self.index.embedder is None else "fused"

    def search(self, query: str, k: int = 5) -> list[Passage]:
        """Return the k best passages for a question, best first."""
        return [hit.chunk.passage for hit in self.find(query, k).hits]

    def find(self, query: str, k: int = 5) -> Findings:
        """Return the k best hits for a question, with the time of each stage."""
        require(isinstance(query, str) and query.strip() != "", "question: expected a text, found none")
        require(k >= 1, f"k: expected a number of passages of at least 1, found {k}")
        findings = Findings(query)
        with findings.timed("refresh"):
            self.index.refresh()
        order = self._ranked(query, findings)
        if self.diversity:
            with findings.timed("diversity"):
                order = diverse(order, self._sets(order), k, self.diversity)
        best = order[:k]
        chunks = self.index.chunks
        findings.hits = [Hit(chunks[place], score, place) for place, score in best]
        shares = [self.index.lexical.coverage(query, place) for place, _ in best]
        findings.coverage = max(shares, default=0.0)
        return findings

    def _ranked(self, query: str, findings: Findings) -> list[tuple[int, float]]:
        """Return the places of all candidates and their scores, best first."""
        lexical: list[tuple[int, float]] = []
        vectors: list[tuple[int, float]] = []
        if self.method != "vectors":
            with findings.timed("lexical"):
                lexical = self.index.lexical.search(query, CANDIDATES)
        if self.method == "lexical":
            return lexical
        if self.index.embedder is not None:
            with findings.timed("embed"):
                vector = self.index.embedder.query(query)
            with findings.timed("vectors"):
                vectors = self.index.nearest(vector, CANDIDATES)
        if self.method == "vectors":
            return vectors
        with findings.timed("fuse"):
            rankings = [[place for place, _ in ranking] for ranking in (lexical, vectors)]
            fused = fuse(rankings)
        if self.method == "fused":
            return fused
        with findings.timed("rerank"):
            return self._reranked(query, [place for place, _ in fused[:RERANKED]])

    def _reranked(self, query: str, places: Sequence[int]) -> list[tuple[int, float]]:
        assert self.reranker is not None
        if not places:
            return []
        texts = [self.index.chunks[place].searched for place in places]
        scores = self.reranker.rank(query, texts, INSTRUCTION)
        pairs = zip(places, scores, strict=True)
        return sorted(pairs, key=lambda pair: -pair[1])

    def _sets(self, order: Sequence[tuple[int, float]]) -> dict[int, frozenset[str]]:
        """Return the different words of each candidate."""
        return {place: frozenset(content_words(self.index.chunks[place].text)) for place, _ in order}


def diverse(
    order: Sequence[tuple[int, float]], words: dict[int, frozenset[str]], k: int, weight: float
) -> list[tuple[int, float]]:
    """Choose k of the ranked items in turn, each by (1 - weight) · relevance - weight · likeness to those chosen.

    The relevance is the score over the best score, the likeness the greatest share of common words (Jaccard) with a
    chosen item. (Maximal marginal relevance: Carbonell and Goldstein, SIGIR 1998)
    """
    left = list(order)
    best = max((score for _, score in left), default=0.0)
    chosen: list[tuple[int, float]] = []

    def worth(item: tuple[int, float]) -> float:
        place, score = item
        alike = [likeness(words[place], words[other]) for other, _ in chosen]
        relevance = score / best if best > 0 else 0.0
        return (1 - weight) * relevance - weight * max(alike, default=0.0)

    while left and len(chosen) < k:
        item = max(left, key=worth)
        chosen.append(item)
        left.remove(item)
    return chosen


def likeness(one: frozenset[str], other: frozenset[str]) -> float:
    """Return the share of the words of two sets that both have."""
    either = one | other
    return len(one & other) / len(either) if either else 0.0
