"""Stores of vectors: find the chunks whose vectors point most nearly where the query's does.

    NumpyStore   exact, in memory: the oracle
    FaissStore   exact, in memory, by FAISS (`faiss-cpu`)
    ChromaStore  approximate (HNSW), in files, by ChromaDB (extra `rag`)

Vectors have length 1, so the inner product is the cosine. A store holds nothing but ids and vectors; texts stay in the
catalog, from which `synchronize` makes up for anything that a store lacks.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tiny_llm.engine.embed import Vectors

INSTALL = "install it with pip install"
BATCH = 1000  # vectors in one call of ChromaDB
COLLECTION = "chunks"


class VectorStore(Protocol):
    """Vectors by the id of their chunk."""

    def ids(self) -> set[int]: ...

    def add(self, vectors: Mapping[int, Vectors]) -> None: ...

    def remove(self, ids: Collection[int]) -> None: ...

    def search(self, query: Vectors, k: int) -> list[tuple[int, float]]:
        """Return the ids of the k nearest vectors, nearest first, each with its cosine."""
        ...


def synchronize(store: VectorStore, vectors: Mapping[int, Vectors]) -> None:
    """Make a store hold exactly these vectors. An id never gets another vector, so ids are enough to compare."""
    held = store.ids()
    gone = held - vectors.keys()
    if gone:
        store.remove(gone)
    new = {id: vector for id, vector in vectors.items() if id not in held}
    if new:
        store.add(new)


class NumpyStore:
    """All vectors in one matrix; a search is one product and one sort."""

    def __init__(self) -> None:
        self._vectors: dict[int, Vectors] = {}
        self._matrix: Vectors | None = None

    def ids(self) -> set[int]:
        return set(self._vectors)

    def add(self, vectors: Mapping[int, Vectors]) -> None:
        self._vectors.update(vectors)
        self._matrix = None

    def remove(self, ids: Collection[int]) -> None:
        for id in ids:
            self._vectors.pop(id, None)
        self._matrix = None

    def search(self, query: Vectors, k: int) -> list[tuple[int, float]]:
        if not self._vectors:
            return []
        if self._matrix is None:
            self._matrix = np.stack(list(self._vectors.values()))
        cosines = self._matrix @ query
        ids = list(self._vectors)
        order = np.argsort(-cosines, kind="stable")[:k]
        return [(ids[place], float(cosines[place])) for place in order]


class FaissStore:
    """FAISS's exact index of inner products."""

    def __init__(self) -> None:
        try:
            import faiss
        except ImportError:
            raise ValueError(f"store: faiss is missing: {INSTALL} faiss-cpu, or choose another store") from None
        self._faiss: Any = faiss
        self._index: Any = None
        self._ids: set[int] = set()

    def ids(self) -> set[int]:
        return set(self._ids)

    def add(self, vectors: Mapping[int, Vectors]) -> None:
        matrix = np.stack(list(vectors.values())).astype(np.float32)
        if self._index is None:
            self._index = self._faiss.IndexIDMap2(self._faiss.IndexFlatIP(matrix.shape[1]))
        self._index.add_with_ids(matrix, np.array(list(vectors), np.int64))
        self._ids |= vectors.keys()

    def remove(self, ids: Collection[int]) -> None:
        if self._index is not None:
            self._index.remove_ids(np.array(list(ids), np.int64))
        self._ids -= set(ids)

    def search(self, query: Vectors, k: int) -> list[tuple[int, float]]:
        if not self._ids:
            return []
        cosines, ids = self._index.search(query[None].astype(np.float32), min(k, len(self._ids)))
        return [(int(id), float(cosine)) for id, cosine in zip(ids[0], cosines[0], strict=True) if id >= 0]


class ChromaStore:
    """A collection of ChromaDB in the folder of the index. It never sees a text, and sends nothing anywhere."""

    def __init__(self, folder: Path):
        try:
            import chromadb
            from chromadb.config import Settings
        except ImportError:
            remedy = f"{INSTALL} 'tiny-llm[rag]', or choose another store"
            raise ValueError(f"store: chromadb is missing: {remedy}") from None
        logging.getLogger("chromadb").setLevel(logging.ERROR)
        settings = Settings(anonymized_telemetry=False)
        self._client = chromadb.PersistentClient(str(folder), settings=settings)
        # without an embedding function given, ChromaDB attaches its own, which downloads a model at first use
        self._collection: Any = self._client.get_or_create_collection(
            COLLECTION, embedding_function=None, configuration={"hnsw": {"space": "ip", "ef_search": 200}}
        )

    def ids(self) -> set[int]:
        return set(map(int, self._collection.get(include=[])["ids"]))

    def add(self, vectors: Mapping[int, Vectors]) -> None:
        ids = list(vectors)
        for begin in range(0, len(ids), BATCH):
            part = ids[begin : begin + BATCH]
            embeddings = [vectors[id].tolist() for id in part]
            self._collection.upsert(ids=list(map(str, part)), embeddings=embeddings)

    def remove(self, ids: Collection[int]) -> None:
        listed = list(map(str, ids))
        for begin in range(0, len(listed), BATCH):
            self._collection.delete(ids=listed[begin : begin + BATCH])

    def search(self, query: Vectors, k: int) -> list[tuple[int, float]]:
        number = min(k, self._collection.count())
        if number == 0:
            return []
        found = self._collection.query(query_embeddings=[query.tolist()], n_results=number, include=["distances"])
        pairs = zip(found["ids"][0], found["distances"][0], strict=True)
        return [(int(id), 1 - float(distance)) for id, distance in pairs]


STORES: Sequence[str] = ("chroma", "faiss", "numpy")


def make_store(kind: str, folder: Path) -> VectorStore:
    """Open a store for the index in `folder`. Raises ValueError for an unknown kind, or a package that is missing."""
    if kind == "chroma":
        return ChromaStore(folder / "chroma")
    if kind == "faiss":
        return FaissStore()
    if kind == "numpy":
        return NumpyStore()
    raise ValueError(f"store: expected one of {', '.join(STORES)}, found {kind!r}")
