"""An index of documents in a folder: add files, remove them, and keep the search structures up to date.

The catalog (`catalog`) is the truth. The lexical index and the store of vectors are made from it, in this process, when
a search finds that any process has changed the catalog. One process writes at a time; the others wait.
"""

import fcntl
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tiny_llm.apps.rag.catalog import FILE, Catalog, StoredDocument, hash_of
from tiny_llm.apps.rag.chunks import Chunk, ChunkSettings, TokenCounter, chunks_of
from tiny_llm.apps.rag.embedder import Embedder
from tiny_llm.apps.rag.files import Skipped, find_files
from tiny_llm.apps.rag.lexical import LexicalIndex
from tiny_llm.apps.rag.readers import UnreadableError, read_sections
from tiny_llm.apps.rag.stores import VectorStore, make_store, synchronize
from tiny_llm.config.fields import require
from tiny_llm.engine.embed import Vectors

EMBEDDER = "embedder"  # names of settings in the catalog: what the vectors depend on,
EMBEDDER_NAME, STORE = "embedder_name", "store"  # and what `IndexChoice` holds
DEFAULT_STORE = "chroma"

Situate = Callable[[str, Sequence[Chunk]], list[str]]  # a sentence of context for each chunk of a document's text
ShowProgress = Callable[[int, int, str], None]  # number of files done, of how many, the next one


class AddReport(NamedTuple):
    """What `Index.add` did, as paths. `num_chunks`: of the documents that were written."""

    added: list[str]
    replaced: list[str]
    unchanged: list[str]
    removed: list[str]
    skipped: list[Skipped]
    num_chunks: int


class IndexChoice(NamedTuple):
    """The embedder's name and the store with which documents were added to an index; no name for words alone."""

    embedder: str | None
    store: str


class Index:
    """The documents below a folder of files, searchable.

    `embedder`: the model that makes the vectors; None for lexical search alone. `store`: where vectors are searched.
    Raises ValueError where the folder's vectors are by another embedder.
    """

    def __init__(self, folder: Path, *, embedder: Embedder | None = None, store: str = DEFAULT_STORE):
        self.folder, self.embedder, self._store_kind = folder, embedder, store
        self.catalog = Catalog(folder)
        self._store: VectorStore | None = None
        self._lexical: LexicalIndex | None = None
        self._chunks: list[Chunk] = []
        self._by_id: dict[int, int] = {}  # from a chunk's id to its place in the list
        self._seen: tuple[int, int] | None = None  # the catalog's version in these structures
        try:
            self._check_embedder()
        except ValueError:
            self.close()
            raise

    @classmethod
    def open(cls, folder: Path, *, embedder: Embedder | None = None, store: str = DEFAULT_STORE) -> "Index":
        """Open an index that is there. Raises ValueError where the folder has none, or it has no documents."""
        remedy = "add documents with `tiny-llm rag add PATH`, or name another folder with --index"
        require((folder / FILE).is_file(), f"{folder}: expected an index of documents, found none; {remedy}")
        index = cls(folder, embedder=embedder, store=store)
        if index.catalog.num_chunks() == 0:
            index.close()
            raise ValueError(f"{folder}: the index is empty; {remedy}")
        return index

    def close(self) -> None:
        self.catalog.close()

    def record_choice(self, embedder: str) -> None:
        """Write the name by which the embedder was loaded, and the store, for `recorded_choice`."""
        self.catalog.set_setting(EMBEDDER_NAME, embedder)
        self.catalog.set_setting(STORE, self._store_kind)

    def _check_embedder(self) -> None:
        stored = self.catalog.setting(EMBEDDER)
        if self.embedder is None or stored is None or stored == self.embedder.identity:
            return
        own = self.embedder.identity
        raise ValueError(
            f"{self.folder}: the vectors of this index are by {stored}, found the embedder {own}; name the first with "
            "--embedder, or use another folder: --index DIR"
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the index's lock: wait for another process that writes. The lock ends with its process in any case."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def add(
        self,
        paths: Sequence[Path],
        settings: ChunkSettings,
        count_tokens: TokenCounter,
        *,
        situate: Situate | None = None,
        progress: ShowProgress | None = None,
    ) -> AddReport:
        """Add files and folders of files. An unchanged file is left as it is, a changed one replaced.

        A document below one of the paths whose file is gone is removed. Raises ValueError for a path without file and
        document; a file that can't be read is skipped with its reason.
        """
        known = [document.path for document in self.catalog.documents()]
        present = [path for path in paths if path.exists() or not below(known, path)]
        files, skipped = find_files(present)
        report = AddReport([], [], [], [], skipped, 0)
        num_chunks = 0
        with self._writing():
            self._check_embedder()
            for number, file in enumerate(files):
                if progress is not None:
                    progress(number, len(files), str(file))
                num_chunks += self._add_file(file, settings, count_tokens, situate, report)
            names = set(map(str, files))
            gone = [name for path in paths for name in below(known, path) if name not in names]
            lost = sorted(set(gone) - {str(entry.path) for entry in report.skipped})
            self.catalog.remove(lost)
            report.removed.extend(lost)
            self._embed_missing()
            self.refresh()
        return report._replace(num_chunks=num_chunks)

    def _add_file(
        self,
        file: Path,
        settings: ChunkSettings,
        count_tokens: TokenCounter,
        situate: Situate | None,
        report: AddReport,
    ) -> int:
        """Add one file, note in `report` what was done, and return the number of chunks written."""
        name = str(file)
        before = self.catalog.digest(name)
        try:
            digest = digest_of(file, settings, situate is not None)
            if digest == before:
                report.unchanged.append(name)
                return 0
            sections = read_sections(file)
        except UnreadableError as error:
            report.skipped.append(Skipped(file, str(error)))
            return 0
        except OSError as error:
            report.skipped.append(Skipped(file, error.strerror or str(error)))
            return 0
        chunks = chunks_of(sections, name, settings, count_tokens)
        if situate is not None:
            text = "\n\n".join(section.text for section in sections)
            contexts = situate(text, chunks)
            chunks = [with_context(chunk, context) for chunk, context in zip(chunks, contexts, strict=True)]
        self.catalog.put(name, digest, chunks, self._vectors_of(chunks))
        done = report.added if before is None else report.replaced
        done.append(name)
        return len(chunks)

    def _vectors_of(self, chunks: Sequence[Chunk]) -> dict[str, Vectors]:
        """Embed the texts of chunks whose vectors are not in the catalog."""
        if self.embedder is None:
            return {}
        if self.catalog.setting(EMBEDDER) is None:
            self.catalog.set_setting(EMBEDDER, self.embedder.identity)
        texts = {hash_of(chunk.searched): chunk.searched for chunk in chunks}
        known = self.catalog.known_hashes(list(texts))
        missing = {key: text for key, text in texts.items() if key not in known}
        vectors = self.embedder.documents(list(missing.values()))
        return dict(zip(missing, vectors, strict=True))

    def _embed_missing(self) -> None:
        """Embed the chunks that were added without an embedder."""
        if self.embedder is not None:
            vectors = self._vectors_of(self.catalog.chunks())
            if vectors:
                self.catalog.keep_vectors(vectors)

    def remove(self, paths: Sequence[Path]) -> list[str]:
        """Remove the documents at or below these paths, and return them. Raises ValueError where there are none."""
        with self._writing():
            known = [document.path for document in self.catalog.documents()]
            found: list[str] = []
            for path in paths:
                names = below(known, path)
                remedy = "`tiny-llm rag status` lists the documents"
                require(bool(names), f"{path}: expected a document of the index, found none; {remedy}")
                found += [name for name in names if name not in found]
            self.catalog.remove(found)
            self.refresh()
        return found

    def documents(self) -> list[StoredDocument]:
        return self.catalog.documents()

    def refresh(self) -> None:
        """Make the search structures hold what the catalog has, if any process has changed it."""
        version = self.catalog.version()
        if version == self._seen:
            return
        self._chunks = self.catalog.chunks()
        self._by_id = {chunk.id: place for place, chunk in enumerate(self._chunks)}
        self._lexical = None
        if self.embedder is not None:
            if self._store is None:
                self._store = make_store(self._store_kind, self.folder)
            synchronize(self._store, self.catalog.vectors())
        self._seen = version

    @property
    def chunks(self) -> list[Chunk]:
        """All chunks by document and place; searches name them by their places in this list."""
        return self._chunks

    @property
    def lexical(self) -> LexicalIndex:
        """The lexical index of the chunks, made at the first search."""
        if self._lexical is None:
            self._lexical = LexicalIndex([chunk.searched for chunk in self._chunks])
        return self._lexical

    def nearest(self, query: Vectors, k: int) -> list[tuple[int, float]]:
        """Return the places of the k chunks nearest to a vector, each with its cosine."""
        assert self._store is not None, "an index without an embedder has no store"
        found = self._store.search(query, k)
        # another process may have removed a chunk since the catalog was read
        return [(self._by_id[id], cosine) for id, cosine in found if id in self._by_id]


def recorded_choice(folder: Path) -> IndexChoice:
    """Return the choice that was recorded in an index, and the defaults where there is no index or no record."""
    if not (folder / FILE).is_file():
        return IndexChoice(None, DEFAULT_STORE)
    catalog = Catalog(folder)
    choice = IndexChoice(catalog.setting(EMBEDDER_NAME), catalog.setting(STORE) or DEFAULT_STORE)
    catalog.close()
    return choice


def digest_of(file: Path, settings: ChunkSettings, situated: bool) -> str:
    """Return the hash of a file's content and of everything else that its chunks depend on."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    digest.update(f"{settings} {situated}".encode())
    return digest.hexdigest()


def below(names: Sequence[str], path: Path) -> list[str]:
    """Return the documents at a path or below it."""
    place = path.resolve()
    return [name for name in names if Path(name) == place or place in Path(name).parents]


def with_context(chunk: Chunk, context: str) -> Chunk:
    return Chunk(chunk.text, chunk.titles, chunk.source, chunk.page, context)
