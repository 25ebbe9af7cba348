"""Measure retrieval: how well and how fast passages are found and questions answered, by each method side by side.

    python bench/rag.py [--model pocket] [--embedder pocket] [--limit 40] [--no-answers] [--json]

At the top level stand the figures of the default method: recall_at_5 and mrr of the questions on the book; exact,
citation_precision and refusals of those on the made-up documents, of which a quarter have no answer; seconds by stage.
`methods` has the same for each method. The documents' texts and questions lie in tiny_llm/apps/rag/eval.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import tiny_llm  # noqa: E402
from tiny_llm.apps.rag.assistant import AnswerSettings, Assistant  # noqa: E402
from tiny_llm.apps.rag.chunks import ChunkSettings, chunks_of, counter  # noqa: E402
from tiny_llm.apps.rag.comparison import Comparison  # noqa: E402
from tiny_llm.apps.rag.embedder import Embedder  # noqa: E402
from tiny_llm.apps.rag.evaluate import DOCUMENTS, book_pages  # noqa: E402
from tiny_llm.apps.rag.index import Index  # noqa: E402
from tiny_llm.apps.rag.readers import read_sections  # noqa: E402
from tiny_llm.apps.rag.retriever import Retriever  # noqa: E402
from tiny_llm.apps.rag.situate import Situator  # noqa: E402
from tiny_llm.engine.llm import LLM  # noqa: E402

BOOK = ROOT / "book" / "src"
ANSWERED = ("exact", "citation_precision", "support", "refusals", "false_refusals")
PAIRS = (  # two questions on the same passages
    ("How high is the Tarn bridge and the Velden bridge?", "How long are Velden bridge and Tarn bridge?"),
    ("How high is the lighthouse of Brelle and of Brenn?", "Who built the lighthouse of Brenn and of Brelle?"),
    ("What does code E3 mean on the Orell P200 and P300?", "How many sheets hold the Orell P300 and the Orell P200?"),
)


def indexing(embedder: Embedder | None, llm: LLM) -> dict[str, float]:
    """Chunks a second when the book is added, and when nothing has changed."""
    with tempfile.TemporaryDirectory() as folder:
        index = Index(Path(folder), embedder=embedder, store="numpy")
        pages, count_tokens = book_pages(BOOK), counter(llm.tokenizer)
        begin = time.perf_counter()
        chunks = index.add(pages, ChunkSettings(), count_tokens).num_chunks
        middle = time.perf_counter()
        index.add(pages, ChunkSettings(), count_tokens)
        end = time.perf_counter()
        index.close()
    return {"chunks": chunks, "chunks_per_second": chunks / (middle - begin), "seconds_unchanged": end - middle}


def second_question(llm: LLM) -> dict[str, Any]:
    """The time to the first token of a question, and of a second one on the same documents, the fastest of five."""
    settings = AnswerSettings(least_coverage=0.0, passages=2, answer_tokens=1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        index = Index(Path(folder))
        index.add([DOCUMENTS], ChunkSettings(), counter(llm.tokenizer))
        retriever = Retriever(index)
        for pair in PAIRS:
            times: list[list[float]] = [[], []]
            cached = 0.0
            for _ in range(5):
                llm.forget()
                for place, question in enumerate(pair):
                    reply = Assistant(retriever, llm, settings).ask(question)
                    assert llm.last_stats is not None
                    times[place].append(llm.last_stats.time_to_first_token)
                cached = reply.cached_tokens / reply.prompt_tokens
            first, second = map(min, times)
            rows.append({"first": first, "second": second, "ratio": first / second, "cached": cached})
        index.close()
    return {"pairs": rows, "ratio": sorted(row["ratio"] for row in rows)[len(rows) // 2]}


def context(llm: LLM) -> dict[str, float]:
    """A sentence of context for the chunks of a page: seconds for each, and the share of tokens that were cached."""
    page = BOOK / "setup.md"
    sections = read_sections(page)
    chunks = chunks_of(sections, str(page), ChunkSettings(), counter(llm.tokenizer))
    llm.forget()
    situator = Situator(llm)
    begin = time.perf_counter()
    situator("\n\n".join(section.text for section in sections), chunks)
    seconds = (time.perf_counter() - begin) / len(chunks)
    share = situator.cached_tokens / situator.prompt_tokens
    return {"chunks": len(chunks), "seconds_per_chunk": seconds, "cached": share}


def figures(arguments: argparse.Namespace) -> dict[str, Any]:
    llm = tiny_llm.load(None if arguments.model == "pocket" else arguments.model)
    embedder = None
    if arguments.embedder:
        own = arguments.embedder == arguments.model
        name = None if arguments.embedder == "pocket" else arguments.embedder
        embedder = Embedder(llm if own else tiny_llm.load(name), arguments.embedder)
    reranker: Any = tiny_llm.load(arguments.reranker) if arguments.reranker else None
    compared = Comparison(
        llm, embedder, reranker, limit=arguments.limit, answers=not arguments.no_answers, every=arguments.every
    )
    found = compared.run(BOOK)
    book, documents = found["sets"]["book"], found["sets"]["documents"]
    methods = {}
    for method, of_book in book["methods"].items():
        answered = documents["methods"][method]
        row = {name: of_book[name] for name in ("recall_at_1", "recall_at_5", "recall_at_10", "mrr")}
        row |= {name: answered[name] for name in ANSWERED if name in answered}
        methods[method] = {**row, "seconds": of_book["seconds"]}
    return {
        **methods[book["default"]],
        "default": book["default"],
        "model": arguments.model,
        "embedder": arguments.embedder,
        "methods": methods,
        "sets": found["sets"],
        "indexing": indexing(embedder, llm),
        "second_question": second_question(llm),
        "context": context(llm),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--embedder")
    parser.add_argument("--reranker")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--no-answers", action="store_true")
    parser.add_argument(
        "--every", action="store_true", help="let the model answer by each method, not by the best alone"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = figures(arguments)
    if arguments.json:
        print(json.dumps(found))
        return
    for method, row in found["methods"].items():
        numbers = ", ".join(f"{name} {value:.3f}" for name, value in row.items() if name != "seconds")
        stages = ", ".join(f"{stage} {1000 * seconds:.2f}" for stage, seconds in row["seconds"].items())
        print(f"{method}: {numbers}\n  ms: {stages}")
    for name in ("indexing", "second_question", "context"):
        print(f"{name}: {found[name]}")


if __name__ == "__main__":
    main()
