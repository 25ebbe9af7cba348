"""Embeddings, reranking and tokens."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from tests.engine.test_rank import make_reranker
from tests.server.conftest import LOCAL, Running, serving, wait_for
from tiny_llm import load
from tiny_llm.server.models import ModelSpec

TEXTS = ["the quick brown fox", "hello there", "the weather is fine"]


def test_embeddings_are_those_of_the_library(tiny: Running, random_path: Path) -> None:
    expected = load(random_path).embed(TEXTS, normalize=True)
    create = tiny.client().embeddings.create
    coded = create(model="tiny", input=TEXTS)  # the client asks for base64
    plain = create(model="tiny", input=TEXTS, encoding_format="float")
    for found in (coded, plain):
        assert [item.index for item in found.data] == [0, 1, 2]
        np.testing.assert_allclose([item.embedding for item in found.data], expected, atol=1e-5)
    assert coded.usage.prompt_tokens == coded.usage.total_tokens > 0
    short = create(model="tiny", input=TEXTS[0], dimensions=8, encoding_format="float").data[0].embedding
    np.testing.assert_allclose(short, expected[0][:8] / np.linalg.norm(expected[0][:8]), atol=1e-5)


@pytest.mark.parametrize(
    "given", [{"input": [[1, 2]]}, {"input": ""}, {"input": []}, {"input": ["a", ""]}, {"dimensions": 9999}]
)
def test_faulty_texts_are_refused(tiny: Running, given: dict[str, object]) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        tiny.client().embeddings.create(**{"model": "tiny", "input": "a", **given})
    assert error.value.param.partition("[")[0] in given


def test_reranking_is_that_of_the_library(tmp_path: Path) -> None:
    path = make_reranker(tmp_path / "reranker")
    documents = ["the answer is two", "hello there", "the dog is lazy"]
    body = {"model": "reranker", "query": "what is the answer?", "documents": [*documents[:2], {"text": documents[2]}]}
    expected = load(path).rank(body["query"], documents)
    with serving(ModelSpec("reranker", str(path))) as running, running.http() as http:
        results = http.post("/v1/rerank", json=body).json()["results"]
        best = http.post("/v1/rerank", json={**body, "top_n": 1, "return_documents": False}).json()["results"]
    assert sorted(result["index"] for result in results) == [0, 1, 2]
    scores = [result["relevance_score"] for result in results]
    assert scores == sorted(scores, reverse=True)
    for result in results:
        assert result["relevance_score"] == pytest.approx(expected[result["index"]], abs=1e-4)
        assert result["document"] == {"text": documents[result["index"]]}
    assert best == [{key: results[0][key] for key in ("index", "relevance_score")}]


def test_a_model_that_can_not_rerank(tiny: Running) -> None:
    with tiny.http() as http:
        answer = http.post("/v1/rerank", json={"model": "tiny", "query": "a", "documents": ["b"]})
    assert answer.status_code == 422 and "yes" in answer.json()["error"]["message"]
    assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == ("model", "unsupported_by_model")


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/embeddings", {"input": TEXTS}), ("/v1/rerank", {"query": "a", "documents": TEXTS})],
)
def test_work_for_a_client_that_has_left_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, body) -> None:
    """Regression: the engine embedded all texts of a client that had closed its connection."""
    batches = []

    def endless(*_: object, **__: object) -> Iterator[np.ndarray]:
        while True:
            batches.append(time.monotonic())
            time.sleep(0.01)
            yield np.zeros((1, 1), np.float32)

    for name in ("embed_batches", "rank_batches"):
        monkeypatch.setattr(f"tiny_llm.engine.serving.{name}", endless)
    with serving(ModelSpec("reranker", str(make_reranker(tmp_path / "reranker")))) as running, running.http() as http:
        with pytest.raises(httpx.ReadTimeout):
            http.post(path, json={"model": "reranker", **body}, timeout=0.5)
        running.wait_idle()
        wait_for(lambda: time.monotonic() - batches[-1] > 0.3)


def test_an_embedding_that_takes_too_long_gets_504(random_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(*_: object, **__: object) -> None:
        await asyncio.sleep(60)

    with serving(ModelSpec("tiny", str(random_path)), settings=replace(LOCAL, request_seconds=0.1)) as running:
        monkeypatch.setattr(running.models.first.engine, "aembed", slow)
        with pytest.raises(openai.InternalServerError) as error:
            running.client().embeddings.create(model="tiny", input="a")
    assert error.value.status_code == 504 and error.value.code == "answer_timeout"


def test_tokens_there_and_back(pocket: Running) -> None:
    llm = load()
    with pocket.http() as http:
        found = http.post("/tokenize", json={"prompt": "hello there", "return_token_strs": True}).json()
        assert found["tokens"] == llm.encode("hello there") and found["count"] == len(found["tokens"])
        assert found["max_model_len"] == 4096 and "".join(found["token_strs"]) == "hello there"
        assert http.post("/detokenize", json={"tokens": found["tokens"]}).json() == {"prompt": "hello there"}
        messages = [{"role": "user", "content": "hello"}]
        chat = http.post("/tokenize", json={"messages": messages, "chat_template_kwargs": {"enable_thinking": False}})
        assert chat.json()["tokens"] == llm.encode(messages, {"enable_thinking": False})
        assert http.post("/tokenize", json={}).status_code == 400
        assert http.get("/version").json()["version"]
