"""Vectors by this engine: the prompt and pooling of Qwen3-Embedding, and its published scores where its weights are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import make_model
from tiny_llm import load
from tiny_llm.apps.rag.chunks import Chunk
from tiny_llm.apps.rag.embedder import Embedder
from tiny_llm.apps.rag.situate import Situator
from tiny_llm.model import hub


class Recorder:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def embed(self, texts: Any, pooling: str = "last", *, normalize: bool = False) -> Any:
        self.calls.append((list(texts), pooling, normalize))
        return np.ones((len(texts), 4), np.float32)


def test_qwen_embedding_gets_its_own_prompt_and_pooling() -> None:
    model = Recorder()
    embedder = Embedder(model, "Qwen/Qwen3-Embedding-0.6B")
    embedder.query("What is it?")
    embedder.documents(["a", "b"])
    task = "Given a web search query, retrieve relevant passages that answer the query"
    assert model.calls == [
        ([f"Instruct: {task}\nQuery:What is it?"], "last", True),
        (["a", "b"], "last", True),
    ]


def test_other_models_get_the_mean_and_no_prompt() -> None:
    model = Recorder()
    Embedder(model, "pocket").query("What is it?")
    assert model.calls == [(["What is it?"], "mean", True)]


def test_documents_are_embedded_in_batches() -> None:
    model, done = Recorder(), []
    vectors = Embedder(model, "pocket").documents(["x"] * 70, done.append)
    assert vectors.shape == (70, 4)
    assert done == [32, 64, 70]
    assert Embedder(model, "pocket").documents([]).shape == (0, 1)


def test_vectors_are_the_engines_own(tmp_path: Path) -> None:
    llm = load(make_model(tmp_path / "model"))
    texts = [f"the quick brown fox number {i}" for i in range(40)]
    vectors = Embedder(llm, "any").documents(texts)
    np.testing.assert_allclose(vectors, llm.embed(texts, "mean", normalize=True), atol=1e-5)


def test_the_published_pairs() -> None:
    """The scores of the model card of Qwen3-Embedding-0.6B."""
    try:
        path = hub.resolve("Qwen/Qwen3-Embedding-0.6B")
    except (ValueError, OSError) as error:
        pytest.skip(str(error))
    embedder = Embedder(load(path), "Qwen/Qwen3-Embedding-0.6B")
    queries = np.stack([embedder.query("What is the capital of China?"), embedder.query("Explain gravity")])
    documents = embedder.documents(
        [
            "The capital of China is Beijing.",
            "Gravity is a force that attracts two bodies towards each other. It gives weight to physical objects and "
            "is responsible for the movement of planets around the sun.",
        ]
    )
    np.testing.assert_allclose(queries @ documents.T, [[0.7646, 0.1414], [0.1355, 0.6000]], atol=5e-3)


def test_context_computes_a_document_once() -> None:
    """The prompts of a document's chunks share its text, which the prefix cache computes for the first of them."""
    situator = Situator(load())
    document = " ".join(f"Sentence {i} says that the mill has {i} wheels." for i in range(60))
    chunks = [Chunk(f"Part {i} says that the mill has {i} wheels.") for i in range(4)]
    sentences = situator(document, chunks)
    assert len(sentences) == 4
    assert situator.cached_tokens > 0.5 * situator.prompt_tokens
