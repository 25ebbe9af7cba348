"""The catalog of an index: documents, their chunks and the chunks' vectors, in one SQLite file.

A document and all its chunks are written in one transaction, so a process that is killed leaves whole documents. The
vectors lie here, too, by the hash of their text: a store of vectors (`stores`) can always be made again from them.
"""

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tiny_llm.apps.rag.chunks import Chunk
from tiny_llm.engine.embed import Vectors

FORMAT = 1
FILE = "catalog.sqlite"
WAIT = 60.0  # seconds for another process's transaction
TABLES = """
create table settings (name text primary key, value text not null);
create table documents (id integer primary key, path text unique not null, digest text not null, added real not null);
create table chunks (
    id integer primary key autoincrement, document integer not null references documents(id) on delete cascade,
    number integer not null, titles text not null, page integer, context text not null, text text not null,
    hash text not null
);
create index chunks_of_document on chunks(document);
create index chunks_of_hash on chunks(hash);
create table vectors (hash text primary key, vector blob not null);
"""


class StoredDocument(NamedTuple):
    """A document in the catalog. `digest`: the hash of its content and of the settings that made its chunks."""

    path: str
    digest: str
    num_chunks: int
    num_characters: int


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Catalog:
    """An open catalog. Several processes may have the same one open; each call sees what is committed.

    Raises ValueError for a file that is no catalog, or one of another version.
    """

    def __init__(self, folder: Path):
        self.path = folder / FILE
        folder.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None, check_same_thread=False)
        try:
            self._db.execute("pragma foreign_keys = on")
            self._db.execute("pragma journal_mode = wal")
            self._prepare()
        except sqlite3.DatabaseError as error:
            self._db.close()
            remedy = "remove the folder and add the documents again"
            raise ValueError(f"{self.path}: expected a catalog of documents, found {error}; {remedy}") from error

    def _prepare(self) -> None:
        """Make the tables where there are none. Raises ValueError for a catalog of another version."""
        with self._transaction():
            tables = self._db.execute("select count(*) from sqlite_master where name = 'documents'").fetchone()
            if tables[0] == 0:
                for statement in TABLES.split(";\n"):
                    self._db.execute(statement)
                self._db.execute(f"pragma user_version = {FORMAT}")
        (version,) = self._db.execute("pragma user_version").fetchone()
        if version != FORMAT:
            self._db.close()
            remedy = "remove the folder and add the documents again"
            raise ValueError(f"{self.path}: expected a catalog of version {FORMAT}, found {version}; {remedy}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Within it all changes are one: other processes see all of them or none."""
        self._db.execute("begin immediate")
        try:
            yield
        except BaseException:
            self._db.execute("rollback")
            raise
        self._db.execute("commit")

    def close(self) -> None:
        self._db.close()

    def version(self) -> tuple[int, int]:
        """Return a value that changes whenever a process, this one included, commits a change of the documents."""
        (others,) = self._db.execute("pragma data_version").fetchone()
        return others, self._db.total_changes

    def setting(self, name: str) -> str | None:
        row = self._db.execute("select value from settings where name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_setting(self, name: str, value: str) -> None:
        self._db.execute("insert or replace into settings values (?, ?)", (name, value))

    def documents(self) -> list[StoredDocument]:
        """Return all documents, sorted by their paths."""
        query = (
            "select path, digest, count(chunks.id), coalesce(sum(length(text)), 0) from documents "
            "left join chunks on chunks.document = documents.id group by documents.id order by path"
        )
        return [StoredDocument(*row) for row in self._db.execute(query)]

    def digest(self, path: str) -> str | None:
        row = self._db.execute("select digest from documents where path = ?", (path,)).fetchone()
        return None if row is None else str(row[0])

    def put(self, path: str, digest: str, chunks: Sequence[Chunk], vectors: Mapping[str, Vectors]) -> None:
        """Write a document in the place of its earlier version. `vectors` are by the hash of their text."""
        # ANCHOR: put
        with self._transaction():
            self._db.execute("delete from documents where path = ?", (path,))
            row = self._db.execute("insert into documents values (null, ?, ?, ?)", (path, digest, time.time()))
            for number, chunk in enumerate(chunks):
                titles = json.dumps(chunk.titles, ensure_ascii=False)
                values = (row.lastrowid, number, titles, chunk.page, chunk.context, chunk.text, hash_of(chunk.searched))
                self._db.execute("insert into chunks values (null, ?, ?, ?, ?, ?, ?, ?)", values)
            self._keep(vectors)
        # ANCHOR_END: put

    def keep_vectors(self, vectors: Mapping[str, Vectors]) -> None:
        with self._transaction():
            self._keep(vectors)

    def _keep(self, vectors: Mapping[str, Vectors]) -> None:
        rows = [(key, np.asarray(vector, np.float32).tobytes()) for key, vector in vectors.items()]
        self._db.executemany("insert or replace into vectors values (?, ?)", rows)

    def remove(self, paths: Sequence[str]) -> None:
        """Remove documents, and the vectors that no chunk has any more, in one transaction."""
        with self._transaction():
            self._db.executemany("delete from documents where path = ?", [(path,) for path in paths])
            self._db.execute("delete from vectors where hash not in (select hash from chunks)")

    def chunks(self) -> list[Chunk]:
        """Return all chunks by document and place, each with its id, which no other chunk ever has."""
        query = (
            "select chunks.id, text, titles, path, page, context from chunks "
            "join documents on documents.id = chunks.document order by path, number"
        )
        found = []
        for id, text, titles, path, page, context in self._db.execute(query):
            found.append(Chunk(text, tuple(json.loads(titles)), path, page, context, id))
        return found

    def num_chunks(self) -> int:
        (number,) = self._db.execute("select count(*) from chunks").fetchone()
        return int(number)

    def known_hashes(self, hashes: Sequence[str]) -> set[str]:
        """Return those of the hashes of which there is a vector."""
        query = "select hash from vectors where hash = ?"
        return {key for key in hashes if self._db.execute(query, (key,)).fetchone() is not None}

    def vectors(self) -> dict[int, Vectors]:
        """Return the vector of each chunk that has one, by the chunk's id."""
        query = "select chunks.id, vector from chunks join vectors on vectors.hash = chunks.hash"
        return {id: np.frombuffer(blob, np.float32) for id, blob in self._db.execute(query)}
