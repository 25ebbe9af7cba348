"""An index stays what the files are: whatever is added, changed, removed, killed or done by two processes at once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.apps.rag.support import WordVectors, count_words
from tiny_llm.apps.rag.catalog import FILE, Catalog
from tiny_llm.apps.rag.chunks import Chunk, ChunkSettings
from tiny_llm.apps.rag.embedder import Embedder
from tiny_llm.apps.rag.index import AddReport, Index
from tiny_llm.apps.rag.retriever import Retriever

ROOT = Path(__file__).parents[3]
SETTINGS = ChunkSettings(16, 4)
ADD = """
import sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.apps.rag.support import WordVectors, count_words
from tiny_llm.apps.rag.catalog import Catalog
from tiny_llm.apps.rag.chunks import ChunkSettings
from tiny_llm.apps.rag.embedder import Embedder
from tiny_llm.apps.rag.index import Index

class Slow(WordVectors):
    def embed(self, texts, pooling="last", *, normalize=False):
        time.sleep({pause})
        return super().embed(texts, pooling, normalize=normalize)

index = Index(Path({folder!r}), embedder=Embedder(Slow(), "words"), store={store!r})
print("open", flush=True)
index.add([Path({files!r})], ChunkSettings(16, 4), count_words)
"""


def add(index: Index, *paths: Path) -> AddReport:
    return index.add(list(paths), SETTINGS, count_words)


def names(paths: list[str]) -> list[str]:
    return [Path(path).name for path in paths]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.md").write_text(f"# Title {name}\nText of {name} alone.\n")
    return folder


def test_adding_twice_changes_nothing(tmp_path: Path, files: Path) -> None:
    model = WordVectors()
    index = Index(tmp_path / "index", embedder=Embedder(model, "words"), store="numpy")
    first = add(index, files)
    assert (names(first.added), first.num_chunks) == (["a.md", "b.md", "c.md"], 3)
    before, embedded = index.chunks, len(model.texts)
    again = add(index, files)
    assert (names(again.unchanged), again.added, again.num_chunks) == (["a.md", "b.md", "c.md"], [], 0)
    assert index.chunks == before
    assert len(model.texts) == embedded


def test_changed_files_are_replaced_and_deleted_ones_removed(tmp_path: Path, files: Path) -> None:
    index = Index(tmp_path / "index", embedder=Embedder(WordVectors(), "words"), store="numpy")
    add(index, files)
    (files / "a.md").write_text("# Title a\nAnother text.\n")
    (files / "b.md").unlink()
    report = add(index, files)
    assert (names(report.replaced), names(report.removed), names(report.unchanged)) == (["a.md"], ["b.md"], ["c.md"])
    assert [chunk.text for chunk in index.chunks] == ["Another text.", "Text of c alone."]
    found = Retriever(index, method="vectors").find("Text of b alone", 5).hits
    assert {hit.chunk.text for hit in found} == {"Another text.", "Text of c alone."}
    assert len(index.catalog.vectors()) == 2
    (files / "c.md").unlink()
    assert names(add(index, files / "c.md").removed) == ["c.md"]


def test_other_chunk_settings_replace_the_chunks(tmp_path: Path, files: Path) -> None:
    index = Index(tmp_path / "index")
    add(index, files)
    assert len(index.add([files], ChunkSettings(32, 4), count_words).replaced) == 3


def test_only_new_texts_are_embedded(tmp_path: Path, files: Path) -> None:
    model = WordVectors()
    index = Index(tmp_path / "index", embedder=Embedder(model, "words"), store="numpy")
    add(index, files)
    model.texts.clear()
    (files / "a.md").write_text("# Title a\nText of a alone.\n# More\nA new text.\n")
    (files / "copy.md").write_text("# Title c\nText of c alone.\n")
    add(index, files)
    assert model.texts == ["More\nA new text."]


def test_what_can_not_be_read_is_skipped_and_the_rest_added(tmp_path: Path, files: Path) -> None:
    (files / "bad.md").write_bytes(b"\0\1")
    (files / "bad.pdf").write_bytes(b"%PDF-")
    index = Index(tmp_path / "index")
    report = add(index, files)
    assert names(report.added) == ["a.md", "b.md", "c.md"]
    assert [(entry.path.name, entry.reason.split(":")[0]) for entry in report.skipped] == [
        ("bad.md", "a binary file"),
        ("bad.pdf", "a damaged PDF"),
    ]


def test_a_document_that_became_unreadable_stays_as_it_was(tmp_path: Path, files: Path) -> None:
    index = Index(tmp_path / "index")
    add(index, files)
    (files / "a.md").write_bytes(b"\0")
    assert add(index, files).removed == []
    assert len(index.documents()) == 3


def test_documents_are_removed_by_file_and_by_folder(tmp_path: Path, files: Path) -> None:
    index = Index(tmp_path / "index", embedder=Embedder(WordVectors(), "words"), store="numpy")
    add(index, files)
    assert names(index.remove([files / "a.md"])) == ["a.md"]
    with pytest.raises(ValueError, match="a.md: expected a document of the index, found none; `tiny-llm rag status`"):
        index.remove([files / "a.md"])
    assert len(index.remove([files])) == 2
    assert index.chunks == []
    assert index.catalog.vectors() == {}
    assert Retriever(index).find("text", 3).hits == []


def test_another_embedder_is_refused_with_the_remedy(tmp_path: Path, files: Path) -> None:
    add(Index(tmp_path / "index", embedder=Embedder(WordVectors(), "words"), store="numpy"), files)
    with pytest.raises(ValueError, match=r"by words \(mean pooling.*found the embedder others .*--embedder, or use"):
        Index(tmp_path / "index", embedder=Embedder(WordVectors(), "others"))
    assert len(Index(tmp_path / "index").documents()) == 3  # lexical search needs no vectors


def test_an_embedder_that_comes_later_embeds_all(tmp_path: Path, files: Path) -> None:
    add(Index(tmp_path / "index"), files)
    index = Index(tmp_path / "index", embedder=Embedder(WordVectors(), "words"), store="numpy")
    add(index, files)
    assert len(index.catalog.vectors()) == 3
    assert Retriever(index).find("Text of b", 1).hits[0].chunk.text == "Text of b alone."


def test_an_empty_index_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected an index of documents, found none; add documents with `tiny-llm"):
        Index.open(tmp_path / "index")
    Index(tmp_path / "index").close()
    with pytest.raises(ValueError, match="the index is empty; add documents with"):
        Index.open(tmp_path / "index")


def test_a_broken_catalog_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database at all" * 100)
    with pytest.raises(ValueError, match="expected a catalog of documents, found .* remove the folder and add"):
        Index.open(tmp_path)


def test_a_catalog_of_another_version_is_refused(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    catalog._db.execute("pragma user_version = 7")
    catalog.close()
    with pytest.raises(ValueError, match="expected a catalog of version 1, found 7; remove the folder"):
        Catalog(tmp_path)


def test_a_search_sees_what_another_process_added(tmp_path: Path, files: Path) -> None:
    reader = Index(tmp_path / "index", embedder=Embedder(WordVectors(), "words"), store="numpy")
    retriever = Retriever(reader)
    assert retriever.find("text", 3).hits == []
    add(Index(tmp_path / "index", embedder=Embedder(WordVectors(), "words"), store="numpy"), files)
    assert len(retriever.find("text", 5).hits) == 3


def test_a_failed_transaction_leaves_the_old_document(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    catalog.put("a", "1", [Chunk("old")], {})
    with pytest.raises(AttributeError):
        catalog.put("a", "2", [Chunk("new"), None], {})  # type: ignore[list-item]
    assert [chunk.text for chunk in catalog.chunks()] == ["old"]
    assert catalog.digest("a") == "1"


def many_files(folder: Path, number: int) -> None:
    folder.mkdir()
    for i in range(number):
        lines = [f"Sentence {j} of document {i} has these eight words." for j in range(6)]
        (folder / f"{i:02}.txt").write_text("\n".join(lines))


def start(folder: Path, files: Path, pause: float, store: str) -> "subprocess.Popen[str]":
    code = ADD.format(root=str(ROOT), folder=str(folder), files=str(files), pause=pause, store=store)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)


def texts_by_document(folder: Path) -> dict[str, int]:
    catalog = Catalog(folder)
    found = {Path(document.path).name: document.num_chunks for document in catalog.documents()}
    catalog.close()
    return found


def test_killed_in_the_middle_there_is_no_half_document(tmp_path: Path) -> None:
    many_files(tmp_path / "files", 30)
    folder = tmp_path / "index"
    process = start(folder, tmp_path / "files", 0.05, "chroma")
    assert process.stdout is not None and process.stdout.readline() == "open\n"
    deadline = time.monotonic() + 60
    while len(texts_by_document(folder)) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    some = texts_by_document(folder)
    assert 4 <= len(some) < 30
    assert set(some.values()) == {6}
    index = Index(folder, embedder=Embedder(WordVectors(), "words"), store="chroma")
    report = add(index, tmp_path / "files")
    assert len(report.unchanged) == len(some)
    assert len(texts_by_document(folder)) == 30
    found = Retriever(index, method="vectors").find("Sentence 3 of document 17 has these eight words.", 1).hits
    assert found[0].chunk.text == "Sentence 3 of document 17 has these eight words."


def test_two_processes_add_at_once(tmp_path: Path) -> None:
    many_files(tmp_path / "one", 12)
    many_files(tmp_path / "two", 12)
    folder = tmp_path / "index"
    Index(folder).close()
    processes = [start(folder, tmp_path / name, 0.01, "chroma") for name in ("one", "two")]
    assert [process.wait(120) for process in processes] == [0, 0]
    index = Index(folder, embedder=Embedder(WordVectors(), "words"), store="chroma")
    index.refresh()
    assert len(index.documents()) == 24
    assert len(index.chunks) == len(index.catalog.vectors()) == 144
