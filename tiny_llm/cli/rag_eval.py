"""`tiny-llm rag eval`: how well passages are found, and how well questions are answered from them."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiny_llm.cli.options import EngineOptions, option, with_options
from tiny_llm.cli.rag import AsJson, RetrievalOptions, load_embedder, load_model, progress_bar
from tiny_llm.cli.rag import app as app
from tiny_llm.cli.terminal import print_json, table

if TYPE_CHECKING:
    from tiny_llm.apps.rag.embedder import Embedder
    from tiny_llm.apps.rag.retriever import Ranks
    from tiny_llm.engine.llm import LLM

COLUMNS = ("recall_at_1", "recall_at_5", "mrr", "exact", "citation_precision", "refusals", "false_refusals")


@app.command("eval")
@with_options
def evaluate(
    engine: EngineOptions,
    retrieval: RetrievalOptions,
    embedder: Annotated[str | None, option("A model that makes vectors; words alone are searched without one.")] = None,
    book: Annotated[Path | None, option("The folder book/src; of this checkout if not set.")] = None,
    answers: Annotated[bool, option("Let the model answer, too: some minutes.", "--answers/--no-answers")] = True,
    limit: Annotated[int | None, option("Questions of each set at most.", min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Ask 150 questions on the book and 100 on made-up documents, by each method of search side by side."""
    llm = engine.load()
    reranker: Any = None if retrieval.reranker is None else load_model(retrieval.reranker)
    makes = load_embedder(embedder or "none")
    found = report(llm, makes, reranker, retrieval, book_folder(book), answers, limit)
    if as_json:
        print_json(found)
        return
    for name, methods in found["sets"].items():
        rows = [("set", "method", *COLUMNS)]
        for method, figures in methods["methods"].items():
            rows.append((name, method, *(shown_figure(figures.get(column)) for column in COLUMNS)))
        table(rows)


def shown_figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def book_folder(given: Path | None) -> Path | None:
    """Return the folder of the book's text: the one named, or that of the checkout; None where there is none."""
    if given is not None:
        if not (given / "SUMMARY.md").is_file():
            raise typer.BadParameter(
                f"{given}: expected the book's folder src, found no SUMMARY.md", param_hint="--book"
            )
        return given
    here = Path(__file__).parents[2] / "book" / "src"
    if here.is_dir():
        return here
    print("the book is not here, so only the made-up documents are asked about; --book DIR names it", file=sys.stderr)
    return None


def report(
    llm: "LLM",
    embedder: "Embedder | None",
    reranker: "Ranks | None",
    retrieval: RetrievalOptions,
    book: Path | None,
    answers: bool,
    limit: int | None,
) -> dict[str, Any]:
    """Return the figures of each set of questions and method. The model answers by the best method alone."""
    from tiny_llm.apps.rag import evaluate as tests

    sets: dict[str, Sequence[Path]] = {"documents": [tests.DOCUMENTS]}
    if book is not None:
        sets = {"book": tests.book_pages(book), **sets}
    found: dict[str, Any] = {}
    for name, paths in sets.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = set_figures(name, paths, Path(folder), llm, embedder, reranker, retrieval, answers, limit)
    return {"model": llm.name, "embedder": embedder and embedder.name, "sets": found}


def set_figures(
    name: str,
    paths: Sequence[Path],
    folder: Path,
    llm: "LLM",
    embedder: "Embedder | None",
    reranker: "Ranks | None",
    retrieval: RetrievalOptions,
    answers: bool,
    limit: int | None,
) -> dict[str, Any]:
    """Return the figures of one set of questions."""
    from tiny_llm.apps.rag import evaluate as tests
    from tiny_llm.apps.rag.chunks import ChunkSettings, counter
    from tiny_llm.apps.rag.index import Index
    from tiny_llm.apps.rag.retriever import Retriever

    questions = tests.questions_on(name)[:limit]
    index = Index(folder, embedder=embedder, store="numpy")
    index.add(paths, ChunkSettings(), counter(llm.tokenizer))
    methods = ["lexical"]
    if embedder is not None:
        methods += ["vectors", "fused"]
    if reranker is not None:
        methods.append("reranked")
    figures: dict[str, Any] = {}
    for method in methods:
        retriever = Retriever(index, reranker=reranker, method=method, diversity=retrieval.diversity or 0.0)
        figures[method] = tests.retrieval_figures(retriever, questions)
    default = retrieval.method or ("reranked" if reranker is not None else "lexical" if embedder is None else "fused")
    retriever = Retriever(index, reranker=reranker, method=default, diversity=retrieval.diversity or 0.0)
    settings = retrieval.assistant(retriever, llm).settings
    if answers:
        with progress_bar("answering") as progress:
            replies = tests.answer_figures(retriever, llm, questions, settings, lambda n, m: progress(n, m, name))
        seconds = figures[default]["seconds"] | replies.pop("seconds")
        figures[default] |= {**replies, "seconds": seconds}
    thresholds = tests.threshold_figures(retriever, questions, settings.most)
    chunks = len(index.chunks)
    index.close()
    return {"default": default, "chunks": chunks, "methods": figures, "thresholds": thresholds}
