"""Texts as vectors by this engine: Qwen3-Embedding with its own prompt and pooling, or any model's mean."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from tiny_llm.engine.embed import Pooling, Vectors

TASK = "Given a web search query, retrieve relevant passages that answer the query"
QUERY = "Instruct: {task}\nQuery:{query}"  # Qwen3-Embedding's prompt: no space after "Query:"
BATCH = 32  # texts in one call


class Embeds(Protocol):
    """A loaded model, LLM or Engine, that turns texts into vectors."""

    def embed(self, texts: Sequence[str], pooling: Pooling = "last", *, normalize: bool = False) -> Vectors: ...


class Embedder:
    """A model that embeds. `name` stands in the index, so that another model's vectors are not mixed with it.

    Qwen3-Embedding was trained with the last token's state and a prompt before queries. Of any other model the mean of
    the states is taken, without a prompt.
    """

    def __init__(self, model: Embeds, name: str):
        self.model, self.name = model, name
        self.is_qwen = "qwen3-embedding" in name.lower()
        self.pooling: Pooling = "last" if self.is_qwen else "mean"

    @property
    def identity(self) -> str:
        """What vectors depend on: the model, the pooling and the prompt."""
        prompt = "with a prompt for queries" if self.is_qwen else "without a prompt"
        return f"{self.name} ({self.pooling} pooling, {prompt})"

    def documents(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> Vectors:
        """Return the vectors of texts, (N, hidden), each of length 1. `progress` gets the number of texts done."""
        parts = []
        for batch in batches(texts):
            parts.append(self.model.embed(batch, self.pooling, normalize=True))
            if progress is not None:
                progress(sum(map(len, parts)))
        return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)

    def query(self, text: str) -> Vectors:
        """Return the vector of a question, (hidden,)."""
        prompt = QUERY.format(task=TASK, query=text) if self.is_qwen else text
        vectors = self.model.embed([prompt], self.pooling, normalize=True)
        return vectors.reshape(-1)


def batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    for begin in range(0, len(texts), BATCH):
        yield texts[begin : begin + BATCH]
