"""The documents of an index, as tools search them and answers cite them."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from tiny_llm.apps.agent.tools import ToolArguments
from tiny_llm.apps.rag.retriever import Hit, Retriever
from tiny_llm.apps.rag.steps import MARK
from tiny_llm.config.prompts import Passage, passage_format


class Documents:
    """An index that many threads may search. One thread of its own does the work: an index serves one at a time.

    `open_retriever` is called in that thread, because an embedder computes in the thread that loaded it. Its errors are
    raised here.
    """

    def __init__(self, open_retriever: Callable[[], Retriever]):
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tiny-llm documents")
        try:
            self._retriever = self._thread.submit(open_retriever).result()
        except BaseException:
            self._thread.shutdown(wait=False)
            raise

    def find(self, query: str, k: int) -> list[Hit]:
        """Return the `k` best hits, best first."""
        return self._thread.submit(self._retriever.find, query, k).result().hits

    def search(self, query: str, k: int) -> list[Passage]:
        """Return the `k` best passages, best first."""
        return [hit.chunk.passage for hit in self.find(query, k)]

    def close(self) -> None:
        """End the thread and close the index."""
        self._thread.submit(self._retriever.index.close)
        self._thread.shutdown()


class CitedHit(NamedTuple):
    """A mark such as [2] in an answer: its place in the text, and the hit that has this number."""

    place: int
    hit: Hit


class AnswerSearches:
    """The searches for one answer. Their hits are numbered through, so that each number names one passage."""

    def __init__(self, documents: Documents, most: int):
        self.documents, self.most = documents, most
        self.hits: list[Hit] = []  # by number, which counts from 1
        self._by_query: dict[str, list[Hit]] = {}
        self._lock = threading.Lock()

    def run(self, arguments: ToolArguments) -> str:
        """Search, and return numbered passages: the function of the tool search_documents."""
        found = self.documents.find(arguments["query"], self.most)
        with self._lock:
            first = len(self.hits) + 1
            self.hits += found
            self._by_query[arguments["query"]] = found
        lines = [passage_format().line(number, hit.chunk.passage) for number, hit in enumerate(found, first)]
        return "\n".join(lines)

    def found(self, query: str) -> list[Hit]:
        """Return the hits of a query; none for one that was not searched."""
        return self._by_query.get(query, [])

    def cited(self, text: str) -> list[CitedHit]:
        """Return the hits that a text cites. A number without a hit is left out."""
        marks = [(mark.start(), int(mark[1])) for mark in MARK.finditer(text)]
        return [CitedHit(place, self.hits[number - 1]) for place, number in marks if 1 <= number <= len(self.hits)]
