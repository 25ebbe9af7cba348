"""Evaluate retrieval and answers: 150 questions on the book, and 100 on 30 made-up documents with near misses.

A question names its document, phrases that stand where the answer is, and the answer. A quarter of the questions on
the made-up documents have no answer there, though similar documents answer similar questions.

    recall@k              the share of questions of which one of the first k chunks has a phrase
    mrr                   the mean of 1 / rank of the first such chunk, 0 where there is none among the first ten
    exact                 the share of answers that contain the expected one
    citation_precision    the share of citations whose passage has a phrase
    support               the mean overlap of citations, see `check_citations`
    refusals              the share of questions without an answer to which the answer is that the documents do not say
    false_refusals        the same share of the questions that have an answer
"""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_llm.apps.rag.assistant import AnswerSettings, Assistant, RagAnswer
from tiny_llm.apps.rag.chunks import Chunk
from tiny_llm.apps.rag.retriever import Findings, Retriever
from tiny_llm.apps.rag.words import all_words
from tiny_llm.engine.llm import LLM

FOLDER = Path(__file__).parent / "eval"
DOCUMENTS = FOLDER / "documents"
DEPTH = 10  # hits of a question
PAGES = ("*.md", "week*/*.md", "appendix/*.md")  # of the book
SHARES = (0.0, 0.2, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8)

ShowQuestion = Callable[[int, int], None]


@dataclass(frozen=True)
class EvalQuestion:
    """A question, its document, phrases of which one stands wherever the answer is, and the answer; empty if absent."""

    question: str
    document: str
    evidence: Sequence[str]
    answer: str

    @property
    def has_answer(self) -> bool:
        return self.document != ""

    def is_in(self, chunk: Chunk) -> bool:
        """Return whether a chunk holds the answer."""
        text = flat(chunk.text)
        return any(flat(phrase) in text for phrase in self.evidence)


def flat(text: str) -> str:
    return " ".join(text.split())


def questions_on(name: str) -> list[EvalQuestion]:
    """Return the questions on "book" or "documents"."""
    lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [EvalQuestion(**json.loads(line)) for line in lines]


def book_pages(folder: Path) -> list[Path]:
    """Return the pages of the book's text in its folder `src`."""
    return sorted(path for pattern in PAGES for path in folder.glob(pattern))


def retrieval_figures(retriever: Retriever, questions: Sequence[EvalQuestion]) -> dict[str, Any]:
    """Return recall, mrr and the mean seconds of each stage over the questions that have an answer."""
    ranks: list[int] = []
    found: list[Findings] = []
    retriever.find("warm up", 1)
    for question in questions:
        if question.has_answer:
            findings = retriever.find(question.question, DEPTH)
            ranks.append(rank_of(question, [hit.chunk for hit in findings.hits]))
            found.append(findings)
    figures: dict[str, Any] = {}
    for k in (1, 3, 5, 10):
        figures[f"recall_at_{k}"] = mean([0 < rank <= k for rank in ranks])
    figures["mrr"] = mean([1 / rank if rank else 0.0 for rank in ranks])
    figures["seconds"] = stage_seconds([findings.seconds for findings in found])
    return figures


def rank_of(question: EvalQuestion, chunks: Sequence[Chunk]) -> int:
    """Return the rank of the first chunk that holds the answer, from 1; 0 where none does."""
    for rank, chunk in enumerate(chunks, 1):
        if question.is_in(chunk):
            return rank
    return 0


def answer_figures(
    retriever: Retriever,
    llm: LLM,
    questions: Sequence[EvalQuestion],
    settings: AnswerSettings,
    progress: ShowQuestion | None = None,
) -> dict[str, Any]:
    """Answer each question alone, and return the figures of the answers."""
    answers: list[RagAnswer] = []
    for number, question in enumerate(questions):
        if progress is not None:
            progress(number, len(questions))
        answers.append(Assistant(retriever, llm, settings).ask(question.question))
    pairs = list(zip(questions, answers, strict=True))
    known = [(question, answer) for question, answer in pairs if question.has_answer]
    absent = [answer for question, answer in pairs if not question.has_answer]
    precise = [right for question, answer in known for right in right_citations(question, answer)]
    support = [citation.overlap for _, answer in known for citation in answer.citations]
    return {
        "questions": len(answers),
        "exact": mean([holds(answer.text, question.answer) for question, answer in known]),
        "citations": len(precise),
        "citation_precision": mean(precise),
        "support": mean(support),
        "refusals": mean([answer.refused for answer in absent]),
        "false_refusals": mean([answer.refused for _, answer in known]),
        "weak": mean([answer.weak for answer in answers]),
        "seconds": stage_seconds([answer.seconds for answer in answers]),
    }


def right_citations(question: EvalQuestion, answer: RagAnswer) -> list[bool]:
    """Return for each citation of an answer whether its passage exists and holds the expected answer."""
    found = []
    for citation in answer.citations:
        chunk = answer.hits[citation.number - 1].chunk if citation.exists else None
        found.append(chunk is not None and question.is_in(chunk))
    return found


def threshold_figures(retriever: Retriever, questions: Sequence[EvalQuestion], most: int) -> list[dict[str, float]]:
    """Return for each least coverage the shares of questions that are refused without asking the model."""
    found = [(question, retriever.find(question.question, most).coverage) for question in questions]
    rows = []
    for share in SHARES:
        absent = [coverage < share for question, coverage in found if not question.has_answer]
        known = [coverage < share for question, coverage in found if question.has_answer]
        rows.append({"least_coverage": share, "refusals": mean(absent), "false_refusals": mean(known)})
    return rows


def holds(text: str, expected: str) -> bool:
    """Return whether the words of the expected answer stand in a text, one after the other."""
    words, wanted = all_words(text), all_words(expected)
    size = len(wanted)
    return size > 0 and any(words[begin : begin + size] == wanted for begin in range(len(words) - size + 1))


def mean(values: Sequence[float]) -> float:
    """Return the mean, 0 of nothing."""
    return statistics.fmean(values) if values else 0.0


def stage_seconds(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean seconds of each stage over the questions that went through it."""
    stages = dict.fromkeys(stage for row in rows for stage in row)
    return {stage: mean([row[stage] for row in rows if stage in row]) for stage in stages}
