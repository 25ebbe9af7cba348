"""`tiny-llm rag`: add documents to an index, and answer questions from them."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tiny_llm.cli.errors import report, usage
from tiny_llm.cli.inputs import lines_of, text_of
from tiny_llm.cli.options import AsJson, EngineOptions, given, option, with_options
from tiny_llm.cli.terminal import dim, note, print_json, printable, table

if TYPE_CHECKING:
    from tiny_llm.apps.rag.assistant import AnswerSettings, Assistant
    from tiny_llm.apps.rag.embedder import Embedder
    from tiny_llm.apps.rag.index import Index
    from tiny_llm.apps.rag.retriever import Retriever
    from tiny_llm.engine.llm import LLM
    from tiny_llm.model.tokenizer import Tokenizer

app = typer.Typer(help="Answer questions from your documents, with citations.", no_args_is_help=True)
FOLDER = Path(".tiny-llm-rag")
NONE = "none"
Paths = Annotated[list[Path], typer.Argument(help="Files, and folders of files.", show_default=False)]


@dataclass(frozen=True)
class IndexOptions:
    """Which index, and how vectors are made and searched."""

    index: Annotated[Path, typer.Option("--index", "-i", help="The folder of the index.")] = FOLDER
    embedder: Annotated[
        str | None,
        option("A model that makes vectors, such as qwen3-embedding-0.6b; none searches by words alone."),
    ] = None
    store: Annotated[
        Literal["chroma", "faiss", "numpy"] | None, option("Where vectors are searched; chroma if not set.")
    ] = None

    def open(self, create: bool) -> "Index":
        """Open the index, with the embedder and the store that it was made with unless others are named."""
        from tiny_llm.apps.rag.index import Index, recorded_choice

        recorded = recorded_choice(self.index)
        name = self.embedder or recorded.embedder or NONE
        store = self.store or recorded.store
        make = Index if create else Index.open
        index = make(self.index, embedder=load_embedder(name), store=store)
        if create and name != NONE:
            index.record_choice(name)
        return index


@dataclass(frozen=True)
class RetrievalOptions:
    """How passages are found and put before the question."""

    passages: Annotated[int | None, option("Most passages before a question; 4 if not set.")] = None
    budget: Annotated[int | None, option("Most tokens of all these passages; 1200 if not set.")] = None
    answer_tokens: Annotated[int | None, option("Most tokens of an answer; 200 if not set.")] = None
    least_coverage: Annotated[
        float | None,
        option(
            "0 to 1: answer that the documents do not say unless a passage has this share of the question's words; "
            "0.45 if not set."
        ),
    ] = None
    method: Annotated[
        Literal["lexical", "vectors", "fused", "reranked"] | None,
        option("How to search; the best that the index and --reranker allow if not set."),
    ] = None
    reranker: Annotated[str | None, option("A model that sorts found passages, such as qwen3-reranker-0.6b.")] = None
    diversity: Annotated[
        float | None, option("0 to 1: how much a passage loses for its likeness to a better one; 0 if not set.")
    ] = None

    def retriever(self, index: "Index") -> "Retriever":
        from tiny_llm.apps.rag.retriever import Retriever

        reranker = None if self.reranker is None else load_model(self.reranker)
        with usage():
            return Retriever(index, reranker=reranker, method=self.method, diversity=self.diversity or 0.0)

    def settings(self) -> "AnswerSettings":
        from tiny_llm.apps.rag.assistant import AnswerSettings

        settings = given(
            passages=self.passages,
            budget=self.budget,
            answer_tokens=self.answer_tokens,
            least_coverage=self.least_coverage,
        )
        with usage():
            return AnswerSettings(**settings)


def load_model(name: str) -> "LLM":
    from tiny_llm.engine import llm

    note(f"loading {name} …")
    return llm.load(name)


def load_embedder(name: str) -> "Embedder | None":
    from tiny_llm.apps.rag.embedder import Embedder

    return None if name == NONE else Embedder(load_model(name), name)


def load_tokenizer(engine: EngineOptions) -> "Tokenizer":
    """Load the tokenizer of the model that will answer; with --code all of the model, on the learner's files."""
    if engine.code is not None:  # before any import: the learner's files must come first
        return engine.load().tokenizer
    from tiny_llm.engine.llm import POCKET
    from tiny_llm.model import hub
    from tiny_llm.model.tokenizer import Tokenizer

    return Tokenizer.from_dir(POCKET if engine.model is None else hub.resolve(engine.model))


@app.command()
@with_options
def add(
    paths: Paths,
    engine: EngineOptions,
    where: IndexOptions,
    chunk_tokens: Annotated[int | None, option("Most tokens of a chunk; 400 if not set.")] = None,
    overlap: Annotated[int | None, option("Most tokens that neighbouring chunks share; 100 if not set.")] = None,
    context: Annotated[
        bool,
        option("Let the model write a sentence of context for each chunk: it is slow and helps searches.", "--context"),
    ] = False,
) -> None:
    """Add files, and the files of folders: text, Markdown, HTML, PDF, source code.

    A file that has changed replaces its document. A document whose file is gone is removed.
    """
    tokenizer = load_tokenizer(engine)
    from tiny_llm.apps.rag.chunks import ChunkSettings, counter

    with usage("--chunk-tokens, --overlap"):
        settings = ChunkSettings(**given(size=chunk_tokens, overlap=overlap))
    situate = None
    if context:
        from tiny_llm.apps.rag.situate import Situator

        situate = Situator(engine.load())
    index = where.open(create=True)
    with progress_bar("adding") as progress:
        done = index.add(paths, settings, counter(tokenizer), situate=situate, progress=progress)
    for path, reason in done.skipped:
        print(f"skipped {path}: {reason}", file=sys.stderr)
    counts = {"added": done.added, "replaced": done.replaced, "unchanged": done.unchanged, "removed": done.removed}
    print(", ".join(f"{len(names)} {word}" for word, names in counts.items()) + f"; {done.num_chunks} new chunks")
    if situate is not None:
        share = situate.cached_tokens / max(1, situate.prompt_tokens)
        note(f"context: {situate.prompt_tokens} prompt tokens, {share:.0%} of them from the prefix cache")
    if done.skipped and not (done.added or done.replaced or done.unchanged):
        raise typer.Exit(1)


@app.command()
@with_options
def ask(
    question: Annotated[str, typer.Argument(help="The question.", show_default=False)],
    engine: EngineOptions,
    where: IndexOptions,
    retrieval: RetrievalOptions,
    as_json: AsJson = False,
) -> None:
    """Answer one question from the documents, with numbered sources."""
    with usage("QUESTION"):
        text = text_of(question, "question")
        if not text.strip():
            raise ValueError("the question is empty; write what you want to know")
    assistant = open_assistant(engine, where, retrieval)
    if as_json:
        from tiny_llm.views.cited import cited_data

        print_json(cited_data(assistant.ask(text)))
    else:
        answer(assistant, text)


@app.command()
@with_options
def chat(engine: EngineOptions, where: IndexOptions, retrieval: RetrievalOptions) -> None:
    """Ask several questions. A question may refer to earlier ones; /clear forgets them, /quit ends the chat.

    If the input is not a terminal, each of its lines is a question.
    """
    assistant = open_assistant(engine, where, retrieval)
    failed = False
    for line in questions():
        try:
            if line.strip() == "/quit":
                break
            if line.strip() == "/clear":
                assistant.clear()
            elif line.strip():
                answer(assistant, text_of(line, "question"))
        except ValueError as error:
            sys.stdout.flush()
            report(error)
            failed = True
    if failed and not sys.stdin.isatty():
        raise typer.Exit(1)


def questions() -> Iterator[str]:
    """Yield the lines of stdin; at a terminal with a line editor, until Ctrl-D."""
    if not sys.stdin.isatty():
        yield from lines_of(sys.stdin)
        return
    from tiny_llm.cli.editor import make_editor

    editor = make_editor(["/clear", "/quit"])
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            yield editor.prompt("> ")


@app.command()
@with_options
def status(where: IndexOptions, as_json: AsJson = False) -> None:
    """List the documents of an index."""
    from tiny_llm.apps.rag.catalog import FILE, Catalog

    if not (where.index / FILE).is_file():
        raise ValueError(f"{where.index}: expected an index of documents, found none; add some with `tiny-llm rag add`")
    catalog = Catalog(where.index)
    documents = catalog.documents()
    embedder = catalog.setting("embedder") or NONE
    catalog.close()
    if as_json:
        rows = [{"path": one.path, "chunks": one.num_chunks, "characters": one.num_characters} for one in documents]
        print_json({"index": str(where.index), "embedder": embedder, "documents": rows})
        return
    if documents:
        table([(str(one.num_chunks), f"{one.num_characters:,}", one.path) for one in documents])
    total = sum(one.num_chunks for one in documents)
    print(f"{len(documents)} documents, {total} chunks; embedder: {embedder}")


@app.command()
@with_options
def remove(paths: Paths, where: IndexOptions) -> None:
    """Remove documents from an index: files, or all below a folder. The files themselves stay."""
    from tiny_llm.apps.rag.index import Index

    index = Index.open(where.index)
    for name in index.remove(paths):
        print(f"removed {name}")


def open_assistant(engine: EngineOptions, where: IndexOptions, retrieval: RetrievalOptions) -> "Assistant":
    """Load the model and open the index. The model comes first: with --code it puts the learner's files in place."""
    llm = engine.load()
    settings = retrieval.settings()
    from tiny_llm.apps.rag.assistant import Assistant

    return Assistant(retrieval.retriever(where.open(create=False)), llm, settings)


def answer(assistant: "Assistant", question: str) -> None:
    """Show an answer as it comes, and then its sources."""
    from tiny_llm.views.cited import source_lines

    reply = assistant.ask(question, lambda text: print(printable(text, sys.stdout), end="", flush=True))
    print()
    for line in source_lines(reply):
        print(dim(printable(line, sys.stdout), sys.stdout))
    for citation in reply.citations:
        if not citation.exists:
            print(f"warning: the answer cites [{citation.number}], and no passage has this number", file=sys.stderr)
    stages = {name: f"{seconds * 1000:.0f}" for name, seconds in reply.seconds.items() if seconds >= 0.0005}
    note("ms: " + ", ".join(f"{name} {value}" for name, value in stages.items()))


@contextmanager
def progress_bar(verb: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yield a function that shows how much is done, on stderr where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total, name: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task(verb, total=None)
        yield lambda done, total, name: bar.update(line, completed=done, total=total, description=Path(name).name)
