"""The agent searches an index of documents: what it finds is text from outside."""

import threading
from pathlib import Path

import pytest

from tests.apps.agent.documents import INJECTION, MILL, POOL, open_documents
from tests.apps.agent.scripted import make_agent, results, run, yes
from tiny_llm.apps.agent.builtin import Builtin, LongOutputs, make_builtin
from tiny_llm.apps.agent.documents import AnswerSearches, Documents
from tiny_llm.apps.agent.files import Root
from tiny_llm.apps.agent.nouns import ApprovalRules
from tiny_llm.apps.agent.session import AgentSession
from tiny_llm.apps.rag.index import Index
from tiny_llm.apps.rag.retriever import Retriever

pytest.importorskip("bm25s")
SEARCH = [("search_documents", {"query": "height of the red mill"})]
WRITE = [("write_file", {"path": "a.txt", "content": "new"})]


@pytest.mark.parametrize("with_vectors", [False, True])
def test_a_search_gives_numbered_passages(tmp_path: Path, with_vectors: bool) -> None:
    documents = open_documents(tmp_path, with_vectors)
    tools = make_builtin(Builtin(Root(tmp_path), LongOutputs(), documents))
    events = run(make_agent(tmp_path, SEARCH, "38 metres [1].", tools=tools))
    (found,) = results(events)
    assert found.splitlines()[0] == f"[1] (The mill, mill.md) {MILL}"
    documents.close()


def test_passages_taint_the_session(tmp_path: Path) -> None:
    """A document tells the model to write a file: the call is asked for, though all calls are approved."""
    documents = open_documents(tmp_path)
    asked: list[str] = []

    async def approve(call: object, reason: str) -> bool:
        asked.append(reason)
        return False

    tools = make_builtin(Builtin(Root(tmp_path), LongOutputs(), documents))
    rules = ApprovalRules(everything=True)
    search = [("search_documents", {"query": "length of the pool"})]
    agent = make_agent(tmp_path, search, WRITE, "I will not.", tools=tools, rules=rules, approve=approve)
    events = run(agent)
    assert INJECTION in results(events)[0]
    assert agent.session.tainted
    assert asked == ["text from outside came before it"]
    assert not (tmp_path / "a.txt").exists()
    documents.close()


def test_a_search_without_a_hit_taints_nothing_but_says_so(tmp_path: Path) -> None:
    documents = open_documents(tmp_path)
    tools = make_builtin(Builtin(Root(tmp_path), LongOutputs(), documents))
    events = run(make_agent(tmp_path, [("search_documents", {"query": "zebra"})], "None.", tools=tools, approve=yes))
    assert results(events) == ["no passages"]
    documents.close()


def test_many_threads_search_one_index(tmp_path: Path) -> None:
    documents = open_documents(tmp_path, with_vectors=True)
    found: list[str] = []

    def search(query: str) -> None:
        found.append(documents.search(query, 1)[0].text)

    threads = [threading.Thread(target=search, args=(query,)) for query in ["the red mill", "the pool"] * 8]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([text for text in found if MILL in text]) == 8
    assert len([text for text in found if POOL in text]) == 8
    documents.close()


def test_the_passages_of_an_answer_are_numbered_through(tmp_path: Path) -> None:
    documents = open_documents(tmp_path)
    searches = AnswerSearches(documents, 1)
    assert searches.run({"query": "red mill"}).startswith("[1] (The mill, mill.md)")
    assert searches.run({"query": "length of the pool"}).startswith("[2] (The pool, pool.md)")
    assert searches.run({"query": "zebra"}) == ""
    cited = searches.cited("It is 25 metres long [2], they say [3].")
    assert [(each.place, Path(each.hit.chunk.source).name) for each in cited] == [(21, "pool.md")]
    assert [hit.chunk.title for hit in searches.found("red mill")] == ["The mill"]
    assert searches.found("other") == []
    documents.close()


def test_a_folder_without_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected an index of documents, found none; add documents with"):
        Documents(lambda: Retriever(Index.open(tmp_path)))


def test_the_text_of_a_session_that_searched_is_kept(tmp_path: Path) -> None:
    documents = open_documents(tmp_path)
    tools = make_builtin(Builtin(Root(tmp_path), LongOutputs(), documents))
    agent = make_agent(tmp_path, SEARCH, "38 metres [1].", tools=tools, path=tmp_path / "s.jsonl")
    run(agent)
    agent.session.close()
    read = AgentSession(tmp_path / "s.jsonl")
    assert read.tainted and MILL in read.messages[-2]["content"]
    read.close()
    documents.close()
