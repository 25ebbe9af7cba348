"""Run the evaluation by each method of search side by side."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiny_llm.apps.rag.assistant import AnswerSettings
from tiny_llm.apps.rag.chunks import ChunkSettings, counter
from tiny_llm.apps.rag.embedder import Embedder
from tiny_llm.apps.rag.evaluate import (
    DOCUMENTS,
    ShowQuestion,
    answer_figures,
    book_pages,
    questions_on,
    retrieval_figures,
    threshold_figures,
)
from tiny_llm.apps.rag.index import Index
from tiny_llm.apps.rag.retriever import Ranks, Retriever
from tiny_llm.engine.llm import LLM


@dataclass(frozen=True)
class Comparison:
    """What is compared: the model that answers, and what searches. `limit`: questions of each set at most.

    `method`: the one by which the model answers; None for the best that embedder and reranker allow. With `every` it
    answers by each method.
    """

    llm: LLM
    embedder: Embedder | None = None
    reranker: Ranks | None = None
    method: str | None = None
    diversity: float = 0.0
    settings: AnswerSettings = field(default_factory=AnswerSettings)
    chunking: ChunkSettings = field(default_factory=ChunkSettings)
    limit: int | None = None
    answers: bool = True
    every: bool = False

    def run(self, book: Path | None, progress: ShowQuestion | None = None) -> dict[str, Any]:
        """Return the figures of each set of questions. `book`: the folder of the book's text, None to leave it out."""
        sets: dict[str, Sequence[Path]] = {"documents": [DOCUMENTS]}
        if book is not None:
            sets = {"book": book_pages(book), **sets}
        found: dict[str, Any] = {}
        for name, paths in sets.items():
            with tempfile.TemporaryDirectory() as folder:
                found[name] = self._figures(name, paths, Path(folder), progress)
        embedder = None if self.embedder is None else self.embedder.name
        return {"model": self.llm.name, "embedder": embedder, "sets": found}

    def _figures(self, name: str, paths: Sequence[Path], folder: Path, progress: ShowQuestion | None) -> dict[str, Any]:
        """Return the figures of one set of questions: of each method, and what each threshold refuses."""
        questions = questions_on(name)[: self.limit]
        index = Index(folder, embedder=self.embedder, store="numpy")
        index.add(paths, self.chunking, counter(self.llm.tokenizer))
        default = self._retriever(index, self.method)
        figures: dict[str, Any] = {}
        for method in self._methods():
            retriever = self._retriever(index, method)
            figures[method] = retrieval_figures(retriever, questions)
            if self.answers and (self.every or method == default.method):
                replies = answer_figures(retriever, self.llm, questions, self.settings, progress)
                seconds = figures[method]["seconds"] | replies.pop("seconds")
                figures[method] |= {**replies, "seconds": seconds}
        thresholds = threshold_figures(default, questions, self.settings.passages)
        chunks = len(index.chunks)
        index.close()
        return {"default": default.method, "chunks": chunks, "methods": figures, "thresholds": thresholds}

    def _retriever(self, index: Index, method: str | None) -> Retriever:
        return Retriever(index, reranker=self.reranker, method=method, diversity=self.diversity)

    def _methods(self) -> list[str]:
        """Return the methods that embedder and reranker allow."""
        methods = ["lexical"]
        if self.embedder is not None:
            methods += ["vectors", "fused"]
        if self.reranker is not None:
            methods.append("reranked")
        return methods
