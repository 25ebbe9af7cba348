"""The evaluation: its questions fit their documents, and its figures are what they say."""

from pathlib import Path
from typing import Any

import pytest

from tests.apps.rag.support import count_words
from tiny_llm.apps.rag import evaluate
from tiny_llm.apps.rag.assistant import AnswerSettings, RagAnswer
from tiny_llm.apps.rag.chunks import Chunk, ChunkSettings
from tiny_llm.apps.rag.evaluate import DOCUMENTS, EvalQuestion, book_pages, flat, holds, questions_on, rank_of
from tiny_llm.apps.rag.index import Index
from tiny_llm.apps.rag.retriever import Findings, Hit, Retriever
from tiny_llm.apps.rag.steps import Citation

BOOK = Path(__file__).parents[3] / "book" / "src"


def test_every_phrase_stands_in_the_book() -> None:
    """A page that was rewritten shows here: give the question the page's new words."""
    pages = {path.relative_to(BOOK).as_posix(): flat(path.read_text(encoding="utf-8")) for path in book_pages(BOOK)}
    questions = questions_on("book")
    assert len({question.question for question in questions}) == 150
    for question in questions:
        assert flat(question.evidence[0]) in pages[question.document], question
        assert all(any(flat(phrase) in page for page in pages.values()) for phrase in question.evidence), question


def test_the_made_up_questions_fit_their_documents() -> None:
    pages = {path.name: flat(path.read_text(encoding="utf-8")) for path in DOCUMENTS.iterdir()}
    assert len(pages) == 30
    questions = questions_on("documents")
    assert len({question.question for question in questions}) == 100
    for question in questions:
        if question.has_answer:
            (phrase,) = question.evidence
            assert [name for name, page in pages.items() if flat(phrase) in page] == [question.document], question
            assert holds(pages[question.document], question.answer), question
    assert sum(not question.has_answer for question in questions) == 25


def test_words_find_the_book(tmp_path: Path) -> None:
    """The promise of the default, measured with words as tokens; `bench/rag.py` has the model's own."""
    index = Index(tmp_path)
    index.add(book_pages(BOOK), ChunkSettings(160, 40), count_words)
    figures = evaluate.retrieval_figures(Retriever(index), questions_on("book"))
    assert figures["recall_at_5"] >= 0.9
    assert figures["recall_at_1"] <= figures["mrr"] <= figures["recall_at_10"]


QUESTIONS = [
    EvalQuestion("Q1?", "a.md", ["in 1871"], "1871"),
    EvalQuestion("Q2?", "b.md", ["eight lanes"], "eight lanes"),
    EvalQuestion("Q3?", "", [], ""),
]
A, B = Chunk("It opened in 1871.", source="a.md"), Chunk("It has eight lanes.", source="b.md")


def test_ranks_and_answers_by_hand() -> None:
    assert rank_of(QUESTIONS[0], [B, A]) == 2
    assert rank_of(QUESTIONS[0], [B]) == 0
    assert holds("In 1871, they say.", "1871")
    assert not holds("In 18710", "1871")
    assert holds("It has Eight  lanes [2]", "eight lanes")
    assert not holds("anything", "")


class Found:
    """A retriever that knows its hits."""

    def find(self, query: str, k: int = 5) -> Findings:
        hits = {"Q1?": [A, B], "Q2?": [A, B], "Q3?": [A]}.get(query, [])
        return Findings(query, [Hit(chunk, 1.0, 0) for chunk in hits], 0.4 if query == "Q3?" else 0.9, {"lexical": 0.5})


def test_retrieval_figures_by_hand() -> None:
    retriever: Any = Found()
    figures = evaluate.retrieval_figures(retriever, QUESTIONS)
    assert (figures["recall_at_1"], figures["recall_at_5"], figures["mrr"]) == (0.5, 1.0, 0.75)
    assert figures["seconds"] == {"lexical": 0.5}
    rows = {row["least_coverage"]: row for row in evaluate.threshold_figures(retriever, QUESTIONS, 4)}
    assert rows[0.5] == {"least_coverage": 0.5, "refusals": 1.0, "false_refusals": 0.0}
    assert rows[0.4] == {"least_coverage": 0.4, "refusals": 0.0, "false_refusals": 0.0}


def test_answer_figures_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    hits = [Hit(A, 1.0, 0), Hit(B, 1.0, 1)]
    cited = [Citation(1, "1871", True, 1.0), Citation(2, "1871", True, 0.0)]
    answers = {
        "Q1?": RagAnswer("1871 [1][2].", hits, cited, False, False, "", 1, {"answer": 1.0}),
        "Q2?": RagAnswer("The documents do not say.", hits, [], True, False, "", 1, {"answer": 3.0}),
        "Q3?": RagAnswer("Nine [1].", hits, [Citation(1, "Nine", True, 0.0)], False, False, "", 1, {}),
    }

    class Scripted:
        def __init__(self, *_: object) -> None: ...

        def ask(self, question: str) -> RagAnswer:
            return answers[question]

    monkeypatch.setattr(evaluate, "Assistant", Scripted)
    nothing: Any = None
    figures = evaluate.answer_figures(nothing, nothing, QUESTIONS, AnswerSettings())
    assert figures == {
        "questions": 3,
        "exact": 0.5,
        "citations": 2,
        "citation_precision": 0.5,
        "support": 0.5,
        "refusals": 0.0,
        "false_refusals": 0.5,
        "weak": 0.0,
        "seconds": {"answer": 2.0},
    }
