"""BM25 by hand, stores against exact search, rankings fused, reranked and without near copies."""

import socket
from collections.abc import Sequence
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.apps.rag.support import WordVectors, count_words
from tiny_llm.apps.rag.chunks import ChunkSettings
from tiny_llm.apps.rag.embedder import Embedder
from tiny_llm.apps.rag.index import Index
from tiny_llm.apps.rag.lexical import LexicalIndex
from tiny_llm.apps.rag.retriever import Retriever, diverse
from tiny_llm.apps.rag.steps import fuse
from tiny_llm.apps.rag.stores import STORES, ChromaStore, NumpyStore, make_store, synchronize
from tiny_llm.apps.rag.words import all_words, content_words

TEXTS = ["the red mill grinds rye", "the mill mill stands still", "a pool with water", "water and rye bread"]


def test_bm25_by_hand() -> None:
    """idf(mill) = ln(1 + (4 - 2 + .5) / (2 + .5)) = ln 2; lengths 5, 5, 4, 4, on average 4.5."""

    def weight(tf: int, length: int) -> float:
        return log(2) * tf / (tf + 1.2 * (0.25 + 0.75 * length / 4.5))

    index = LexicalIndex(TEXTS)
    assert index.search("mill", 4) == [
        (1, pytest.approx(weight(2, 5), rel=1e-5)),
        (0, pytest.approx(weight(1, 5), rel=1e-5)),
    ]
    both = index.search("Which mill grinds rye?", 4)
    assert both[0][0] == 0
    assert both[0][1] == pytest.approx(2 * weight(1, 5) + log(1 + 3.5 / 1.5) / log(2) * weight(1, 5), rel=1e-5)


def test_coverage_is_the_share_of_weight() -> None:
    index = LexicalIndex(TEXTS)
    assert index.coverage("red mill", 0) == 1
    assert index.coverage("mill unicorn", 0) == pytest.approx(log(2) / (log(2) + log(1 + 4.5 / 0.5)))
    assert index.coverage("unicorn", 0) == 0


def test_an_empty_index_finds_nothing() -> None:
    assert LexicalIndex([]).search("mill", 3) == []
    assert LexicalIndex(["..."]).search("mill", 3) == []
    assert LexicalIndex(TEXTS).search("unicorn", 3) == []


def test_words() -> None:
    assert all_words("The policies' boxes, prefill_chunk and KVCache 2.5") == [
        *("the", "policy", "box", "prefill", "chunk", "and", "kvcache", "2.5"),
    ]
    assert content_words("Who is the keeper of the towers?") == ["keeper", "tower"]


def vectors(number: int, dimension: int = 48) -> dict[int, Any]:
    rows = np.random.default_rng(0).standard_normal((number, dimension)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return dict(enumerate(rows, 1))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("kind", STORES)
def test_stores_find_what_numpy_finds(kind: str, tmp_path: Path) -> None:
    if kind == "faiss":
        pytest.importorskip("faiss")
    all_of_them, store = vectors(400), make_store(kind, tmp_path)
    exact = NumpyStore()
    synchronize(exact, all_of_them)
    synchronize(store, {id: all_of_them[id] for id in range(1, 301)})
    synchronize(store, all_of_them)
    gone = set(range(5, 400, 7))
    kept = {id: vector for id, vector in all_of_them.items() if id not in gone}
    synchronize(store, kept)
    synchronize(exact, kept)
    assert store.ids() == exact.ids() == set(kept)
    for query in list(vectors(20).values()):
        found, wanted = store.search(query, 10), exact.search(query, 10)
        assert [id for id, _ in found] == [id for id, _ in wanted]
        np.testing.assert_allclose([c for _, c in found], [c for _, c in wanted], atol=1e-5)
    assert make_store("numpy", tmp_path).search(query, 3) == []


@pytest.mark.usefixtures("no_network")
def test_chroma_is_persistent_and_has_no_embedder_of_its_own(tmp_path: Path) -> None:
    """ChromaDB's default embedding function downloads a model; it must never be attached, reopened either."""
    synchronize(ChromaStore(tmp_path), vectors(20))
    again = ChromaStore(tmp_path)
    assert again.ids() == set(range(1, 21))
    assert again._collection._embedding_function is None
    assert again.search(vectors(20)[3], 1)[0][0] == 3


def test_chroma_finds_nearly_all_of_ten_thousand(tmp_path: Path) -> None:
    all_of_them = vectors(10_000)
    store, exact = ChromaStore(tmp_path), NumpyStore()
    synchronize(store, all_of_them)
    synchronize(exact, all_of_them)
    rng = np.random.default_rng(1)
    hits = 0
    for id in rng.integers(1, 10_001, 20).tolist():
        query = all_of_them[id] + 0.1 * rng.standard_normal(48).astype(np.float32)
        query /= np.linalg.norm(query)
        wanted = {found for found, _ in exact.search(query, 10)}
        hits += len(wanted & {found for found, _ in store.search(query, 10)})
    assert hits >= 190


def test_an_unknown_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="store: expected one of chroma, faiss, numpy, found 'sql'"):
        make_store("sql", tmp_path)


def test_fusion_by_hand() -> None:
    """b: 1/62 + 1/61, a: 1/61 + 1/63, c: 1/63, d: 1/62."""
    assert fuse([["a", "b", "c"], ["b", "d", "a"]]) == [
        ("b", pytest.approx(1 / 62 + 1 / 61)),
        ("a", pytest.approx(1 / 61 + 1 / 63)),
        ("d", pytest.approx(1 / 62)),
        ("c", pytest.approx(1 / 63)),
    ]


def test_diversity_leaves_near_copies_out() -> None:
    words = {0: frozenset("abcd"), 1: frozenset("abcd"), 2: frozenset("wxyz")}
    order = [(0, 1.0), (1, 0.9), (2, 0.5)]
    assert [place for place, _ in diverse(order, words, 2, 0.0)] == [0, 1]
    assert [place for place, _ in diverse(order, words, 2, 0.5)] == [0, 2]
    assert diverse([], words, 2, 0.5) == []


@pytest.fixture
def index(tmp_path: Path) -> Index:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(text)
    made = Index(tmp_path / "index", embedder=Embedder(WordVectors(), "words"), store="numpy")
    made.add([tmp_path], ChunkSettings(), count_words)
    return made


class Reverse:
    """A reranker that prefers short texts."""

    def rank(self, query: str, documents: Sequence[str], instruction: str | None = None) -> list[float]:
        return [1 / len(document) for document in documents]


def test_methods_rank_by_what_they_say(index: Index) -> None:
    lexical = Retriever(index, method="lexical").find("red mill", 4)
    assert [hit.chunk.text for hit in lexical.hits] == TEXTS[:2]
    found = Retriever(index, method="vectors").find("water and rye bread", 4)
    assert found.hits[0].chunk.text == TEXTS[3]
    assert found.hits[0].score == pytest.approx(1)
    fused = Retriever(index).find("water and rye bread", 4)
    assert fused.hits[0].score == pytest.approx(2 / 61)
    assert {"refresh", "lexical", "embed", "vectors", "fuse"} <= set(fused.seconds)
    reranked = Retriever(index, reranker=Reverse()).find("water and rye bread", 4)
    assert [hit.chunk.text for hit in reranked.hits] == sorted(TEXTS, key=len)
    assert [passage.text for passage in Retriever(index).search("red mill", 1)] == [TEXTS[0]]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"method": "fused"}, "method: fused needs an embedder; name one with --embedder, or choose lexical"),
        ({"method": "reranked"}, "method: reranked needs a reranker; name one with --reranker"),
        ({"method": "best"}, "method: expected one of lexical, vectors, fused, reranked, found 'best'"),
        ({"diversity": 1.5}, "diversity: expected a number from 0 to 1, found 1.5"),
    ],
)
def test_impossible_searches_are_refused(tmp_path: Path, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Retriever(Index(tmp_path), **options)


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_is_refused(index: Index, question: str) -> None:
    with pytest.raises(ValueError, match="question: expected a text, found none"):
        Retriever(index).find(question)
