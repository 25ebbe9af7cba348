"""`tiny-llm rag eval`: how well passages are found, and how well questions are answered from them."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tiny_llm.cli.options import AsJson, EngineOptions, option, with_options
from tiny_llm.cli.rag import RetrievalOptions, load_embedder, load_model, progress_bar
from tiny_llm.cli.rag import app as app
from tiny_llm.cli.terminal import print_json, table

COLUMNS = ("recall_at_1", "recall_at_5", "mrr", "exact", "citation_precision", "refusals", "false_refusals")


@app.command("eval")
@with_options
def evaluate(
    engine: EngineOptions,
    retrieval: RetrievalOptions,
    embedder: Annotated[str | None, option("A model that makes vectors; words alone are searched without one.")] = None,
    book: Annotated[Path | None, option("The folder book/src; of this checkout if not set.")] = None,
    answers: Annotated[
        bool, option("Let the model answer as well, which takes minutes.", "--answers/--no-answers")
    ] = True,
    limit: Annotated[int | None, option("Most questions of each set.", min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Ask 150 questions on the book and 100 on made-up documents, and compare the methods of search."""
    llm = engine.load()
    from tiny_llm.apps.rag.comparison import Comparison

    compared = Comparison(
        llm,
        embedder=load_embedder(embedder or "none"),
        reranker=None if retrieval.reranker is None else load_model(retrieval.reranker),
        method=retrieval.method,
        diversity=retrieval.diversity or 0.0,
        settings=retrieval.settings(),
        limit=limit,
        answers=answers,
    )
    folder = book_folder(book)
    with progress_bar("answering") as progress:
        found = compared.run(folder, lambda done, total: progress(done, total, "answering"))
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
    print("book/src: not found, so no question on the book is asked; name its folder with --book DIR", file=sys.stderr)
    return None
