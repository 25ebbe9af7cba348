"""Stand-ins for models: one token a word, vectors by words, answers from a script."""

import hashlib
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from tiny_llm.decode.text import Delta
from tiny_llm.engine.answers import Stats

DIMENSION = 32


def count_words(texts: Sequence[str]) -> list[int]:
    """The number of tokens of each text, where a word is a token."""
    return [len(text.split()) for text in texts]


class WordVectors:
    """A model that embeds: the sum of a random unit vector for each word. It counts the texts that it was given."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def embed(self, texts: Sequence[str], pooling: str = "last", *, normalize: bool = False) -> Any:
        self.texts += texts
        return np.stack([self._vector(text) for text in texts])

    def _vector(self, text: str) -> Any:
        total = np.zeros(DIMENSION)
        for word in text.lower().split():
            seed = int.from_bytes(hashlib.sha256(word.strip(".,?").encode()).digest()[:4], "big")
            vector = np.random.default_rng(seed).standard_normal(DIMENSION)
            total += vector / np.linalg.norm(vector)
        return (total / max(float(np.linalg.norm(total)), 1e-9)).astype(np.float32)


class ScriptedLLM:
    """A model that gives the next of its answers, with a tokenizer of one token a word."""

    def __init__(self, *answers: str, name: str = "pocket", max_context: int = 4096):
        self.name, self.max_context = name, max_context
        self.answers = list(answers)
        self.asked: list[list[dict[str, str]]] = []
        self.tokenizer = SimpleNamespace(encode=str.split)
        self.last_stats: Stats | None = None

    def encode(self, messages: list[dict[str, str]], template: Any = None) -> list[str]:
        return [word for message in messages for word in message["content"].split()]

    def stream(self, messages: Any, **_: Any) -> Iterator[Delta]:
        self.asked.append(messages)
        self.last_stats = Stats(len(self.encode(messages)), 0, 1, 0.1, 0.1, 1)
        for piece in self.answers.pop(0).split(" "):
            yield Delta(piece + " ", 0, 0, None)

    def generate(self, prompt: Any, **settings: Any) -> Any:
        return SimpleNamespace(text="".join(delta.text for delta in self.stream(prompt)))
